"""README's tables, between markers: our best beside others on its GPU, records, the seed system's baselines
beside ours, kernels, passes of convolutions, and how often the speed gate is wrong.

    <!-- records -->
    <!-- /records -->

No number of them is written by hand: they come from bench/results/, published.json, baselines.json and the
kernels' SPECs. Beside them stands a plot of the records, docs/accuracy-time.png.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import geometric_mean

from kernels import CATALOGUE, page, traffic
from kernels.spec import Case, KernelSpec

from . import benches, records, run_plots
from .errors import UserError
from .files import atomic
from .records import RESULTS, UNKNOWN, Group, Record

PLOT = Path("docs") / "accuracy-time.png"
BASELINES = Path(__file__).with_name("baselines.json")
UNMEASURED = "not measured"
BY = "by `hlb report --markdown`."
GPU_COLUMNS = ("system", "GPU", f"seconds: {records.CONTRACT}", "accuracy: mean [95 % interval]", "n")
BASELINE_COLUMNS = (
    "system",
    "run with",
    "hardware",
    "dtype",
    "accuracy: mean [95 % interval]",
    "n",
    "time in s",
)
LAST_SIZE = " at 32"  # ends the blocks whose passes are shown
PASSES, WHOLES = ("forward", "dgrad", "wgrad"), ("forward", "backward")
PASS_COLUMNS = ("block", *PASSES, *(f"{way}, corrected" for way in WHOLES))
KERNEL_COLUMNS = ("op", "what it fuses", "calls", "MB in eager PyTorch", "MB", "bytes saved")
# Which cases of an op its row is of: those of the first rule that finds any; their bytes are added up.
CALLS: tuple[tuple[str, Callable[[str], bool]], ...] = (
    ("record94", lambda name: name == "record94" or (name.startswith("record94 ") and " at " not in name)),
    ("seed", lambda name: name == "seed"),
    ("record94", lambda name: name.startswith("record94.")),
    ("seed", lambda name: name.startswith("seed.")),
)


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (columns, *rows)]
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "--|" * len(columns), *lines[1:]])


def groups(root: Path) -> list[Group]:
    """All runs of a checkout."""
    return [*records.trained(root), *records.timed(root)]


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
        (one.system, one.hardware or UNKNOWN, records.seconds(one), records.accuracy(one), records.runs(one))
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
        records.unclaimed(found),
        f"From `{RESULTS.as_posix()}/` and `hlb/{records.PUBLISHED.name}` {BY}",
    )
    return "\n".join([markdown(records.COLUMNS, list(map(records.row, records.beside(found)))), "", *notes])


def baselines_table(root: Path) -> str:
    """The seed system's own runs, its runs by us, and ours of `seed`."""
    theirs = json.loads(BASELINES.read_text(encoding="utf-8"))
    rows = []
    for run in theirs["runs"]:
        dtype = run.pop("dtype") or UNKNOWN
        rows.append((Record(system=theirs["system"], source=theirs["source"], n=theirs["n"], **run), dtype))
    for group in [*records.timed(root), *records.trained(root)]:
        if group.system.startswith((theirs["system"], "`seed`")) and group.dataset == "cifar10":
            rows.append((group.record, group.system.partition(", ")[2]))
    cells = [
        (
            r.system.partition(",")[0],
            r.execution or "",
            r.hardware or UNKNOWN,
            dtype,
            accuracy,
            records.runs(r),
            records.time(r) if r.own_contract else records.seconds(r),
        )
        for r, dtype in rows
        for accuracy in [records.accuracy(r).removesuffix(f", std {UNKNOWN}")]
    ]
    (least, most), (fewest, cached) = theirs["gb_allocated"], theirs["gb_cached"]
    notes = (
        f"Theirs: {theirs['source']}; {theirs['contract']};",
        f"{least}-{most} GB allocated, {fewest}-{cached} GB cached. Ours: {records.CONTRACT}.",
        f"Test-time views of both: {records.views(Record('', '', views=theirs['views']))}.",
        f"From `hlb/{BASELINES.name}` and `{RESULTS.as_posix()}/` {BY}",
    )
    head = "The seed system's own runs, and ours of `seed`:"
    return "\n".join([head, "", markdown(BASELINE_COLUMNS, cells), "", *notes])


def measured(root: Path) -> dict[str, dict]:
    """GPU -> the rows that `python -m bench` measured there, a later record's in place of an earlier's, and
    what the records are of.
    """
    found: dict[str, dict[tuple, dict]] = {}
    about: dict[str, list[str]] = {}
    contents = [records.read(path) for path in sorted((root / RESULTS).rglob("*.json"))]
    kept = [content for content in contents if benches.is_bench(content) and content.get("kernels_timed")]
    for content in sorted(kept, key=lambda content: content.get("time") or ""):
        rows = found.setdefault(content["device_name"], {})
        rows |= {tuple(row[field] for field in benches.FIELDS): row for row in content["rows"]}
        about.setdefault(content["device_name"], []).append(benches.about(content))
    return {gpu: {"rows": list(rows.values()), "about": about[gpu]} for gpu, rows in found.items()}


def kernels_table(root: Path) -> str:
    """A row for each op of the catalogue: what it fuses, the bytes it saves, how much faster it is."""
    gpus = measured(root)
    faster = {
        gpu: [benches.speed_ups(record, base) for base in ("eager", "compiled")]
        for gpu, record in gpus.items()
    }
    of = [f"times faster than eager, torch.compile, on {gpu}" for gpu in gpus]
    columns = (*KERNEL_COLUMNS, *(of or ["times faster than eager, torch.compile"]))
    rows = []
    for name, spec in CATALOGUE.items():
        calls, cases = calls_of(spec)
        dtype = spec.dtype()
        eager = sum(traffic.unfused(spec, case, dtype)["training"] for case in cases)
        moved = sum(traffic.fused(spec, case, dtype) for case in cases)
        saved = f"{100 * (1 - moved / eager):.0f} %".replace("-", "\N{MINUS SIGN}")
        times = [
            ", ".join(f"{geometric_mean(by[name]):.2f}" if by.get(name) else UNMEASURED for by in both)
            if any(by.get(name) for by in both)
            else UNMEASURED
            for both in faster.values()
        ]
        sizes = (page.number(size / 1e6) for size in (eager, moved))
        rows.append((f"`{name}`", spec.fuses, calls, *sizes, saved, *(times or [UNMEASURED])))
    notes = (
        "MB are bytes through device memory, forward and backward where there is one, in float16 where an op",
        "has it: of eager PyTorch counted operator by operator, a lower bound; of the op declared, and",
        "counted in Triton's interpreter to within 5 %. Times are geometric means over an op's cases.",
        *map(losses, gpus.values()),
        f"From the SPECs in `kernels/` and from `{RESULTS.as_posix()}/` {BY}",
    )
    return "\n".join([markdown(columns, rows), "", *notes])


def losses(record: dict) -> str:
    """What was measured on a GPU, and in which cases torch.compile was faster than the fastest of ours."""
    parts = [
        f"`{op}` {direction} ({', '.join(f'{case} {ratio:.2f}' for case, ratio in cases.items())})"
        for (op, direction), cases in benches.slower(record).items()
    ]
    slower = f" Of these torch.compile takes less, the ratio of its time to ours: {', '.join(parts)}."
    return f"Measured: {'; '.join(record['about'])}.{slower if parts else ''}"


def passes_table(root: Path) -> str:
    """Microseconds of the blocks of a recipe, pass by pass, of the fastest kernel and of cuDNN."""
    parts = []
    for path in sorted((root / RESULTS).rglob("conv-passes*.json")):
        content = records.read(path)
        rows = []
        for block in dict.fromkeys(name.rpartition(" ")[0] for name in content["found"]):
            if block.endswith(LAST_SIZE):
                found = [content["found"][f"{block} {kind}"] for kind in PASSES]
                cells = [pair(min(one["seconds"].values()), one["cudnn"]) for one in found]
                corrected = content["corrected"]["seconds"].get(block, {})
                wholes = [pair(**corrected[way]) if way in corrected else "" for way in WHOLES]
                rows.append((block, *cells, *wholes))
        run = content["run"]
        notes = (
            f"Microseconds, Triton / cuDNN, {run['device']}, {run['date']}, commit {run['commit'][:8]},",
            f"{run['note']}.",
            f"Corrected: {content['corrected']['what']}.",
            f"From `{path.relative_to(root).as_posix()}` {BY}",
        )
        parts += [markdown(PASS_COLUMNS, rows), "", *notes]
    return "\n".join(parts) or "No pass has been measured yet."


def pair(triton: float, cudnn: float) -> str:
    """Two times, and the smaller of them in bold."""
    ours, theirs = (f"{1e6 * seconds:.0f}" for seconds in (triton, cudnn))
    return f"**{ours}** / {theirs}" if triton < cudnn else f"{ours} / **{theirs}**"


def calls_of(spec: KernelSpec) -> tuple[str, list[Case]]:
    """The calls that an op's row is of, in words and as cases."""
    for recipe, rule in CALLS:
        if cases := [case for case in spec.cases if rule(case.name)]:
            return f"{len(cases)} of `{recipe}`", cases
    return f"all {len(spec.cases)}", list(spec.cases)


def gate_table(root: Path) -> str:
    """How often simulated speed gates were wrong, a row for each noise that was simulated."""
    parts = []
    for path in sorted((root / RESULTS).rglob("gate-*.json")):
        content = records.read(path)
        by_noise: dict[str, list[dict]] = {}
        for row in content["rows"]:
            by_noise.setdefault(row["noise"], []).append(row)
        slowdowns = sorted({row["slowdown"] for row in content["rows"]} - {0.0})
        columns = ("noise", "false alarms", *(f"caught: {100 * each:.0f} % slower" for each in slowdowns))
        rows = []
        for noise, of in by_noise.items():
            false = sum(row["false"] for row in of) / sum(row["gates"] for row in of)
            caught = {row["slowdown"]: row["caught"] / row["gates"] for row in of}
            rows.append(
                (noise, f"{100 * false:.2f} %", *(f"{100 * caught[each]:.1f} %" for each in slowdowns))
            )
        gates, cases = content["rows"][0]["gates"], content["cases"]
        note = f"{gates:,} simulated gates of {cases} cases for each noise, of one case slower and of none:"
        parts += [markdown(columns, rows), "", f"{note} `{path.relative_to(root).as_posix()}`, {BY}"]
    return "\n".join(parts) or "Not simulated."


TABLES: dict[str, Callable[[Path], str]] = {
    "gpu": gpu_table,
    "records": records_table,
    "kernels": kernels_table,
    "passes": passes_table,
    "baselines": baselines_table,
    "gate": gate_table,
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
