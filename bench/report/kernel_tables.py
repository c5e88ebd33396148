"""The tables of kernels in docs/results.md: what each op fuses, moves and gains, and the passes of
convolutions beside cuDNN. From the kernels' SPECs and the records in bench/results/.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import geometric_mean

from kernels import CATALOGUE
from kernels.base import traffic
from kernels.base.spec import Case, KernelSpec

from . import benches, kernel_costs, markdown, records
from .records import RESULTS

UNMEASURED = "not measured"
BY = "by `python -m bench report --markdown`."
KERNEL_COLUMNS = ("op", "what it fuses", "calls", "MB in eager PyTorch", "MB", "bytes saved")
# Which cases of an op its row adds up: those of the first rule that matches any.
CALLS: tuple[tuple[str, Callable[[str], bool]], ...] = (
    ("record94", lambda name: name == "record94" or (name.startswith("record94 ") and " at " not in name)),
    ("seed", lambda name: name == "seed"),
    ("record94", lambda name: name.startswith("record94.")),
    ("seed", lambda name: name.startswith("seed.")),
)
LAST_SIZE = " at 32"  # the end of a shown block's name
PASSES, WHOLES = ("forward", "dgrad", "wgrad"), ("forward", "backward")
PASS_COLUMNS = ("block", *PASSES, *(f"{way}, corrected" for way in WHOLES))


def measured(root: Path) -> dict[str, dict]:
    """GPU -> the rows that `python -m bench` measured there, the latest record's where several have a row,
    and what the records are of.
    """
    by_gpu: dict[str, dict[tuple, dict]] = {}
    about: dict[str, list[str]] = {}
    contents = [records.read(path) for path in sorted((root / RESULTS).rglob("*.json"))]
    kept = [content for content in contents if benches.is_bench(content) and content.get("kernels_timed")]
    for content in sorted(kept, key=lambda content: content.get("time") or ""):
        rows = by_gpu.setdefault(content["device_name"], {})
        rows |= {tuple(row[field] for field in benches.FIELDS): row for row in content["rows"]}
        about.setdefault(content["device_name"], []).append(benches.about(content))
    return {gpu: {"rows": list(rows.values()), "about": about[gpu]} for gpu, rows in by_gpu.items()}


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
        saved = f"{round(100 * (1 - moved / eager))} %".replace("-", "\N{MINUS SIGN}")
        times = [
            ", ".join(f"{geometric_mean(by[name]):.2f}" if by.get(name) else UNMEASURED for by in both)
            if any(by.get(name) for by in both)
            else UNMEASURED
            for both in faster.values()
        ]
        sizes = (kernel_costs.number(size / 1e6) for size in (eager, moved))
        rows.append((f"`{name}`", spec.fuses, calls, *sizes, saved, *(times or [UNMEASURED])))
    notes = (
        "MB are bytes through device memory, forward and backward where there is one, in float16 where an op",
        "has it: of eager PyTorch counted operator by operator, a lower bound; of the op declared, and",
        "counted in Triton's interpreter to within 5 %. Speed-ups are geometric means over an op's cases.",
        *map(losses, gpus.values()),
        f"From the SPECs in `kernels/` and from `{RESULTS.as_posix()}/` {BY}",
    )
    return "\n".join([markdown.table(columns, rows), "", *notes])


def losses(record: dict) -> str:
    """What was measured on a GPU, and the cases in which torch.compile is faster than our fastest."""
    parts = [
        f"`{op}` {direction} ({', '.join(f'{case} {ratio:.2f}' for case, ratio in cases.items())})"
        for (op, direction), cases in benches.slower(record).items()
    ]
    slower = f" torch.compile is faster in these cases (its time over ours): {', '.join(parts)}."
    return f"Measured: {'; '.join(record['about'])}.{slower if parts else ''}"


def passes_table(root: Path) -> str:
    """Microseconds of the blocks of a recipe, pass by pass, of the fastest kernel and of cuDNN."""
    parts = []
    for path in sorted((root / RESULTS).rglob("conv-passes*.json")):
        content = records.read(path)
        corrected = content["corrected"]
        derived, rows = corrected.get("derived", {}).get("seconds", {}), []
        for block in dict.fromkeys(name.rpartition(" ")[0] for name in content["found"]):
            if block.endswith(LAST_SIZE):
                timed = [content["found"][f"{block} {kind}"] for kind in PASSES]
                cells = [{"triton": min(one["seconds"].values()), "cudnn": one["cudnn"]} for one in timed]
                right = {**derived.get(block, {}), **corrected["seconds"].get(block, {})}
                wholes = [pair(cells[0] | right[way]) if way in right else "" for way in WHOLES]
                rows.append((block, *map(pair, cells), *wholes))
        run = content["run"]
        notes = (
            f"Microseconds, Triton / cuDNN, {run['device']}, {run['date']}, commit {run['commit'][:8]},",
            f"{run['note']}.",
            f"Corrected: {corrected['what']}; or derived, as the file says how.",
            f"From `{path.relative_to(root).as_posix()}` {BY}",
        )
        parts += [markdown.table(PASS_COLUMNS, rows), "", *notes]
    return "\n".join(parts) or "No pass has been measured yet."


def pair(seconds: dict) -> str:
    """Microseconds by Triton and by cuDNN, the fewer of them in bold."""
    ours, theirs = (f"{1e6 * seconds[by]:.0f}" for by in ("triton", "cudnn"))
    return f"**{ours}** / {theirs}" if seconds["triton"] < seconds["cudnn"] else f"{ours} / **{theirs}**"


def calls_of(spec: KernelSpec) -> tuple[str, list[Case]]:
    """The calls that an op's row adds up, in words and as cases."""
    for recipe, rule in CALLS:
        if cases := [case for case in spec.cases if rule(case.name)]:
            return f"{len(cases)} of `{recipe}`", cases
    return f"all {len(spec.cases)}", list(spec.cases)
