"""The tables of README.md and of pages in docs/, each between two markers on a page of PAGES:

    <!-- records -->
    <!-- /records -->

No number in them is written by hand: they come from bench/results/, published.json, the recipes and the
SPECs. The tables of kernels are in kernel_tables.py. `write` also draws docs/accuracy-time.png.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from hlb import settings
from hlb.cost import complexity, expected, floor
from hlb.errors import UserError
from hlb.files import atomic
from hlb.recipes import RECIPES, Recipe
from kernels.base import chips

from . import cells, kernel_costs, markdown, peers, records, run_plots
from .cells import UNKNOWN
from .kernel_tables import BY, kernels_table, passes_table
from .records import RESULTS, Group, Record

PLOT = Path("docs") / "accuracy-time.png"
GPU_COLUMNS = (
    "system",
    "accuracy: mean [95 % interval]",
    "n",
    f"seconds: {records.CONTRACT}",
    "hardware",
    "record",
)
SEED_COLUMNS = (
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
WHAT = {  # a recipe in words; `described` adds what its fields say of sizes and hard images
    "record94": "default on a GPU: SiLU, Muon",
    "record95": "airbench95",
    "record96": "airbench96, residuals added after the activation",
    "cpu94": "default on a CPU: the same for it",
    "airbench94": "airbench94_muon",
    "seed": "hlb-CIFAR10 of January 2023, its bugs fixed",
    "smoke": "seconds on a CPU, for tests and a first look; its numbers mean nothing",
}
FLOORS = ("record94", "airbench94")  # the recipes whose modelled floor is printed
EIGHT = "conv_dtype=auto,float8,float8"  # of the first of these, with which it is expected to be faster


def groups(root: Path) -> list[Group]:
    """All runs of a checkout."""
    return [*records.trained(root), *peers.timed(root)]


def mine(root: Path) -> list[Record]:
    """The records of a checkout, ours and those of other systems that we ran."""
    return records.ours(groups(root))


def gpu_table(root: Path) -> str:
    """For each target three rows: our best on a GPU, the best other system on the same one, and the seed
    system there.
    """
    seed, rows, notes = records.published_seed()["system"], [], []
    for (target, gpu), ours in records.best(groups(root)).items():
        if not gpu:
            continue
        others = [
            group
            for group in peers.timed(root)
            if group.seconds and (group.target, group.hardware) == (target, ours.hardware)
        ]
        seeds = [group for group in others if group.system.startswith(seed)]
        first, *rest = sorted((group for group in others if group not in seeds), key=records.rank) or [None]
        rows += [_beside(group) for group in (ours, first, *seeds) if group]
        notes += [f"Ours ran with {ours.execution}."] * bool(ours.execution)
        for one in (group.record for group in rest if group.record.seconds < first.record.seconds):
            below = f"a mean below {100 * target:g} %: {cells.accuracy(one)}"
            notes.append(f"{one.system} took {one.seconds:.4g} s for {below}, n = {one.n}.")
    if not rows:
        return "No GPU has been measured yet."
    notes += [f"Of several the fastest whose mean reaches the target is shown. {cells.UNCLAIMED}"]
    notes += [f"From `{RESULTS.as_posix()}/` {BY}"]
    return "\n".join([markdown.table(GPU_COLUMNS, rows), "", *notes])


def _beside(group: Group) -> tuple[str, ...]:
    """A group's row, in the order of GPU_COLUMNS."""
    one = group.record
    links = ", ".join(f"[{Path(source).name}]({source})" for source in group.sources)
    about = cells.accuracy(one), cells.runs(one), cells.seconds(one), one.hardware or UNKNOWN
    return one.system, *about, links


def records_table(root: Path) -> str:
    """Our records and the published ones, and notes."""
    rows = mine(root)
    notes = (
        "By the accuracy aimed at, ours first. A published time is its authors', under their own rules.",
        cells.unclaimed(rows),
        f"From `{RESULTS.as_posix()}/` and `bench/report/{records.PUBLISHED.name}` {BY}",
    )
    return "\n".join([markdown.table(cells.COLUMNS, list(map(cells.row, records.beside(rows)))), "", *notes])


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
    eight = expected.of(settings.recipe(FLOORS[0], [EIGHT]), "tuned", chip)
    shares, theirs = (
        ", ".join(f"{100 * share:.0f} % {how}" for how, share in one.shares.items()) for one in (hoped, eight)
    )
    rates = f"{chip.flops[torch.float16] / 1e12:.0f} TFLOP/s, {chip.bandwidth / 1e12:.1f} TB/s"
    notes = (
        f"A run of `{FLOORS[0]}` with `--kernels tuned` is expected to take {hoped.seconds:.3f} s on an",
        f"{chip.name}: a sum of what was measured of its parts ({shares}), and no measurement of it.",
        f"With `--set {EIGHT}` it is expected to take {eight.seconds:.3f} s ({theirs}).",
        f"The modelled floor of a run there is {first}, against {', '.join(others)}: counted",
        f"FLOPs and bytes at {rates} and {1e6 * chip.launch:g} \N{MICRO SIGN}s a launch, no measurement.",
        "`hlb recipes NAME --kernels CHOICE` has both, launch by launch; `hlb recipes` counts recipes,",
        f"and the table is made {BY}",
    )
    return "\n".join([markdown.table(RECIPE_COLUMNS, rows), "", *notes])


def described(recipe: Recipe) -> str:
    """A recipe in words: how its images grow, and of how many its late epochs are."""
    parts = [WHAT[recipe.name]] if recipe.name in WHAT else []
    if len(set(recipe.sizes)) > 1:
        parts.append(f"images that grow, {min(recipe.sizes)} to {max(recipe.sizes)} pixels")
    if recipe.fraction(recipe.hard_from) < 1:
        hardest = f"the {100 * recipe.fraction(recipe.hard_from):g} % of the images whose loss was largest"
        parts.append(f"after {recipe.hard_from} epochs only {hardest}")
    return "; ".join(parts)


def seed_table(root: Path) -> str:
    """The published numbers of the seed system, its runs by us, and our runs of `seed`."""
    theirs = records.published_seed()
    rows = []
    for run in theirs["runs"]:
        about = {name: value for name, value in run.items() if name != "dtype"}
        record = Record(system=theirs["system"], source=theirs["source"], n=theirs["n"], **about)
        rows.append((record, run["dtype"] or UNKNOWN))
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
        f"Published: {theirs['source']}; {theirs['contract']};",
        f"{least}-{most} GB allocated, {fewest}-{cached} GB cached. Ours: {records.CONTRACT}.",
        f"Test-time views of both: {cells.views(Record('', '', views=theirs['views']))}.",
        f"From `bench/report/{records.PUBLISHED.name}` and `{RESULTS.as_posix()}/` {BY}",
    )
    head = "The published numbers of the seed system, then our runs of it and of the recipe `seed`:"
    return "\n".join([head, "", markdown.table(SEED_COLUMNS, lines), "", *notes])


PAGES: dict[str, dict[str, Callable[[Path], str]]] = {  # page -> marker -> table
    "README.md": {"gpu": gpu_table},
    "docs/usage.md": {"recipes": recipes_table},
    "docs/results.md": {
        "records": records_table,
        "seed-system": seed_table,
        "kernels": kernels_table,
        "passes": passes_table,
    },
}


def replaced(text: str, tables: dict[str, str], name: str) -> str:
    """`text` with each table between its markers. Raises UserError, naming the file, unless each marker is
    there once, on a line of its own.
    """
    for marked, table in tables.items():
        lines, markers = text.split("\n"), (f"<!-- {marked} -->", f"<!-- /{marked} -->")
        for marker in markers:
            if (count := lines.count(marker)) != 1:
                raise UserError(f"{name}: expected one line {marker} where the table belongs, got {count}")
        begin, end = map(lines.index, markers)
        if begin > end:
            raise UserError(f"{name}: {markers[1]} comes before {markers[0]}; swap the two lines")
        text = "\n".join([*lines[: begin + 1], "", table, "", *lines[end:]])
    return text


def write(root: Path) -> list[Path]:
    """Brings the tables of all pages of a checkout, docs/kernel-costs.md and the plot up to date. Returns
    their paths. Raises UserError, before anything is written, if a page cannot be read or lacks a marker, or
    where there are no records, whose rows would be lost.
    """
    texts = {}
    for name, tables in PAGES.items():
        text = records.text(root / name, name)
        texts[root / name] = replaced(text, {marked: make(root) for marked, make in tables.items()}, name)
    texts[root / "docs" / "kernel-costs.md"] = kernel_costs.text() + "\n"
    if not groups(root):
        raise UserError(f"--markdown: no record in {root / RESULTS}; it is for a checkout of the project")
    points = mine(root), records.published()
    try:
        (root / PLOT).parent.mkdir(exist_ok=True)
        run_plots.accuracy_time(*points, root / PLOT)
        for path, text in texts.items():
            with atomic(path) as temporary:
                temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--markdown: cannot write {error.filename}: {error.strerror}") from None
    return [*texts, root / PLOT]
