"""README's tables, between markers: our best beside others on its GPU, recipes, records, the seed system's
baselines beside ours, kernels, and passes of convolutions.

    <!-- records -->
    <!-- /records -->

No number of them is written by hand: they come from bench/results/, published.json, baselines.json, recipes
and SPECs; those of kernels stand in kernel_tables.py. Beside them stands a plot of the records,
docs/accuracy-time.png.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch

from hlb.cost import complexity, expected, floor
from hlb.errors import UserError
from hlb.files import atomic
from hlb.recipes import RECIPES, Recipe
from kernels.base import chips

from . import cells, peers, records, run_plots
from .cells import UNKNOWN
from .kernel_tables import BY, kernels_table, markdown, passes_table
from .records import RESULTS, Group, Record

PLOT = Path("docs") / "accuracy-time.png"
BASELINES = Path(__file__).with_name("baselines.json")
GPU_COLUMNS = (
    "system",
    "run with",
    "GPU",
    f"seconds: {records.CONTRACT}",
    "accuracy: mean [95 % interval]",
    "n",
)
BASELINE_COLUMNS = (
    "system",
    "run with",
    "hardware",
    "dtype",
    "accuracy: mean [95 % interval]",
    "n",
    "time in s",
)
RECIPE_COLUMNS = (
    "recipe",
    "what it is",
    "parameters",
    "GFLOP per image, forward / training",
    "steps",
    "test-time views",
)
WHAT = {  # a recipe, in words; what its fields say of sizes and images is added
    "record94": "default on a GPU: SiLU, Muon",
    "record95": "airbench95",
    "record96": "airbench96, residuals added after the activation",
    "cpu94": "default on a CPU: the same for it",
    "airbench94": "airbench94_muon",
    "seed": "hlb-CIFAR10 of January 2023, its bugs fixed",
    "smoke": "seconds on a CPU, for tests and a first look; its numbers mean nothing",
}
FLOORS = ("record94", "airbench94")  # the recipes whose modelled floor is said


def groups(root: Path) -> list[Group]:
    """All runs of a checkout."""
    return [*records.trained(root), *peers.timed(root)]


def mine(root: Path) -> list[Record]:
    """The records of a checkout."""
    return records.ours(groups(root))


def gpu_table(root: Path) -> str:
    """For each target our best on a GPU, and the other systems that we ran on the same one."""
    shown = []
    for (target, gpu), group in records.best(groups(root)).items():
        if gpu:
            there = [record for record in mine(root) if record.hardware == group.hardware]
            shown += [group.record, *(one for one in there if not one.ours and one.target == target)]
    rows = [
        (
            one.system,
            one.execution or "",
            one.hardware or UNKNOWN,
            cells.seconds(one),
            cells.accuracy(one),
            cells.runs(one),
        )
        for one in shown
    ]
    if not rows:
        return "No GPU has been measured yet."
    note = "Of ours the fastest that reaches its target, else the most accurate."
    return "\n".join([markdown(GPU_COLUMNS, rows), "", f"{note} From `{RESULTS.as_posix()}/` {BY}"])


def records_table(root: Path) -> str:
    """Our records and the published ones, and notes."""
    found = mine(root)
    notes = (
        "By the accuracy aimed at, ours first. A published time is its authors', under their own rules.",
        cells.unclaimed(found),
        f"From `{RESULTS.as_posix()}/` and `bench/report/{records.PUBLISHED.name}` {BY}",
    )
    return "\n".join([markdown(cells.COLUMNS, list(map(cells.row, records.beside(found)))), "", *notes])


def recipes_table(root: Path) -> str:
    """A row for each recipe, counted as `hlb recipes` does; what a run of the first of FLOORS is expected to
    take with the default kernels, and the modelled floors of all of them.
    """
    rows = []
    for name, recipe in RECIPES.items():
        of = complexity.report(recipe)
        shown = Record("", "", views=recipe.views, views_fraction=recipe.views_fraction)
        flops = f"{of['gflop_per_image']['forward']:.3f} / {of['gflop_per_image']['train']:.3f}"
        steps = f"{of['steps']} of {of['batch_size']}"
        parameters = f"{of['parameters']['trainable'] / 1e6:.2f} M"
        rows.append((f"`{name}`", described(recipe), parameters, flops, steps, cells.views(shown)))
    chip = chips.AIMED_AT
    first, *others = (
        f"{floor.seconds(floor.phases(RECIPES[name], 'triton'), chip):.3f} s of `{name}`" for name in FLOORS
    )
    hoped = expected.of(RECIPES[FLOORS[0]], "tuned", chip)
    shares = ", ".join(f"{100 * share:.0f} % {how}" for how, share in hoped.shares.items())
    rates = f"{chip.flops[torch.float16] / 1e12:.0f} TFLOP/s, {chip.bandwidth / 1e12:.1f} TB/s"
    notes = (
        f"A run of `{FLOORS[0]}` with `--kernels tuned` is expected to take {hoped.seconds:.3f} s on an",
        f"{chip.name}: a sum of what was measured of its parts ({shares}), and no measurement of it.",
        f"The modelled floor of a run there is {first}, against {', '.join(others)}: counted",
        f"FLOPs and bytes at {rates} and {1e6 * chip.launch:g} \N{MICRO SIGN}s a launch, no measurement.",
        "`hlb recipes NAME --kernels CHOICE` has both, launch by launch; `hlb recipes` counts recipes,",
        f"and the table is made {BY}",
    )
    return "\n".join([markdown(RECIPE_COLUMNS, rows), "", *notes])


def described(recipe: Recipe) -> str:
    """A recipe in words: how its images grow, and of how many its late epochs are."""
    parts = [WHAT[recipe.name]]
    if len(set(recipe.sizes)) > 1:
        parts.append(f"images that grow, {min(recipe.sizes)} to {max(recipe.sizes)} pixels")
    if recipe.hard_fraction < 1:
        hardest = f"the {100 * recipe.hard_fraction:g} % of the images whose loss was largest"
        parts.append(f"after {recipe.hard_from} epochs only {hardest}")
    return "; ".join(parts)


def baselines_table(root: Path) -> str:
    """The seed system's own runs, its runs by us, and ours of `seed`."""
    theirs = json.loads(BASELINES.read_text(encoding="utf-8"))
    rows = []
    for run in theirs["runs"]:
        dtype = run.pop("dtype") or UNKNOWN
        rows.append((Record(system=theirs["system"], source=theirs["source"], n=theirs["n"], **run), dtype))
    for group in [*peers.timed(root), *records.trained(root)]:
        if group.system.startswith((theirs["system"], "`seed`")) and group.dataset == "cifar10":
            rows.append((group.record, group.system.partition(", ")[2]))
    lines = [
        (
            r.system.partition(",")[0],
            r.execution or "",
            r.hardware or UNKNOWN,
            dtype,
            accuracy,
            cells.runs(r),
            cells.time(r) if r.own_contract else cells.seconds(r),
        )
        for r, dtype in rows
        for accuracy in [cells.accuracy(r).removesuffix(f", std {UNKNOWN}")]
    ]
    (least, most), (fewest, cached) = theirs["gb_allocated"], theirs["gb_cached"]
    notes = (
        f"Theirs: {theirs['source']}; {theirs['contract']};",
        f"{least}-{most} GB allocated, {fewest}-{cached} GB cached. Ours: {records.CONTRACT}.",
        f"Test-time views of both: {cells.views(Record('', '', views=theirs['views']))}.",
        f"From `bench/report/{BASELINES.name}` and `{RESULTS.as_posix()}/` {BY}",
    )
    head = "The seed system's own runs, and ours of `seed`:"
    return "\n".join([head, "", markdown(BASELINE_COLUMNS, lines), "", *notes])


TABLES: dict[str, Callable[[Path], str]] = {
    "gpu": gpu_table,
    "recipes": recipes_table,
    "records": records_table,
    "kernels": kernels_table,
    "passes": passes_table,
    "baselines": baselines_table,
}


def replaced(text: str, tables: dict[str, str], name: str = "README.md") -> str:
    """`text` with each table between its markers. UserError, naming the file, unless each of them is there
    once, on a line of its own.
    """
    for of, table in tables.items():
        lines, markers = text.split("\n"), (f"<!-- {of} -->", f"<!-- /{of} -->")
        for marker in markers:
            if (count := lines.count(marker)) != 1:
                raise UserError(f"{name}: got {count} lines {marker}, needed is one, where the table belongs")
        begin, end = map(lines.index, markers)
        if begin > end:
            raise UserError(f"{name}: {markers[1]} stands before {markers[0]}; swap the two lines")
        text = "\n".join([*lines[: begin + 1], "", table, "", *lines[end:]])
    return text


def write(path: Path) -> list[Path]:
    """Brings a README's tables up to date, and the plot beside it; returns what was written. UserError where
    a file cannot be read or written, or a marker is missing.
    """
    root = path.parent
    try:
        text = path.read_text(encoding="utf-8")
        text = replaced(text, {of: make(root) for of, make in TABLES.items()}, path.name)
        plot = root / PLOT
        plot.parent.mkdir(exist_ok=True)
        run_plots.accuracy_time(mine(root), records.published(), plot)
        with atomic(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--markdown: {error.filename or path}: {error.strerror}; name a README") from None
    return [path, plot]
