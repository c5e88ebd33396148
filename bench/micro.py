"""Every kernel beside the PyTorch that it replaces, at the recipes' shapes: time, rate, memory, launches.

    python -m bench                                       every op
    python -m bench cross_entropy --case record94 --json record.json --csv rows.csv

The PyTorch is the op's reference: eager, compiled, and compiled with max-autotune. An op is compared with its
reference in float64 first; where it is wrong it is not timed, its row says so, and the exit status is 1.
`forward` saves what the backward needs, as in training; `training` is forward and backward together. Rates
are of the bytes and FLOPs that the op must move and do, whatever an implementation moves; the ceilings are a
copy of as many bytes and a large matrix product, timed the same way (kernels/timing.py).

Without a CUDA device no kernel is timed: the references run on the CPU, at a small batch.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import shlex
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NoReturn

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import kernels
from hlb import UserError, environment, ledger
from hlb.files import atomic, check_writable
from kernels import launch, timing
from kernels.calls import AUTOTUNED, calls, tensors
from kernels.compare import check, leaves, upstream
from kernels.spec import Case, KernelSpec

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
CPU_BATCH = 16  # n of a case on a CPU, at most


def compiled(function: Callable, **options) -> Callable:
    torch._dynamo.reset()  # each case is compiled for its own shapes, however many came before
    return torch.compile(function, dynamic=False, options=options or None)


# How an op is done -> its function. All but the last are references.
IMPLEMENTATIONS: dict[str, Callable[[KernelSpec], Callable]] = {
    "eager": lambda spec: spec.reference,
    "compiled": lambda spec: compiled(spec.reference),
    "max-autotune": lambda spec: compiled(spec.reference, **AUTOTUNED),
    "triton": lambda spec: spec.op,
}


@dataclass
class Row:
    """One implementation of one call. Times in seconds; what was not measured is None."""

    op: str
    case: str
    dtype: str
    direction: str
    implementation: str
    fields: dict
    median: float | None = None
    spread: float | None = None  # distance between the quartiles
    samples: tuple[float, ...] = ()
    bytes: int | None = None
    bytes_per_second: float | None = None
    percent_of_copy: float | None = None
    flops: int | None = None
    flops_per_second: float | None = None
    percent_of_matmul: float | None = None
    peak_bytes: int | None = None  # allocated during a call, beyond its inputs
    launches: int | None = None  # of Triton kernels
    speed_up: float | None = None  # of the op: time of the fastest reference / its own
    fault: str | None = None


@dataclass(frozen=True)
class Work:
    """What one call of an op must move and do, and how many kernels it launches."""

    bytes: int
    flops: int
    launches: int


def timed_on() -> tuple[str, str | None]:
    """The device, and why no kernel can be timed there, if so."""
    if not torch.cuda.is_available():
        return "cpu", "there is no CUDA device"
    if not launch.INSTALLED:
        return "cuda", "triton is not installed"
    return "cuda", "TRITON_INTERPRET=1 is set" if launch.INTERPRETED else None


def directions(spec: KernelSpec, case: Case, dtype: torch.dtype) -> tuple[str, ...]:
    """`forward`, and `training` where a gradient can be asked for; found on shapes alone."""
    outputs = spec.reference(**leaves(spec, spec.make(case, dtype, "meta")))
    return ("forward", "training") if any(out.requires_grad for out in tensors(outputs)) else ("forward",)


def work(spec: KernelSpec, case: Case, dtype: torch.dtype, inputs: dict) -> dict[str, Work]:
    """direction -> what the spec declares for the kernels that the op launches then."""
    with launch.recording() as launches:
        outputs = tensors(spec.op(**leaves(spec, inputs)))
        forward = Counter(one.name for one in launches)
        roots = [out for out in outputs if out.requires_grad]
        if roots:
            torch.autograd.backward(roots, upstream(roots))
        training = Counter(one.name for one in launches)
    moved, done = spec.bytes(case, dtype), spec.flops(case, dtype)

    def total(declared: dict[str, int], counts: Counter) -> int:
        """A kernel that both directions launch is divided by the number of its launches."""
        return sum(declared.get(name, 0) * count // training[name] for name, count in counts.items())

    return {
        direction: Work(total(moved, counts), total(done, counts), counts.total())
        for direction, counts in (("forward", forward), ("training", training))
    }


def peak_bytes(call: timing.Call, device: str) -> int | None:
    """What a call allocates at most, beyond what was there before; None on a CPU."""
    if device == "cpu":
        return None
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


@cache
def copy_seconds(size: int, device: str) -> float:
    return timing.copy(size, device).median


@cache
def matmul_rate(dtype: torch.dtype, device: str) -> float:
    return timing.matmul(dtype, device)


def measure(
    spec: KernelSpec, case: Case, dtype: torch.dtype, device: str, chosen: list[str], samples: int
) -> list[Row]:
    """The rows of a case: for each direction, each of the `chosen` implementations."""
    inputs = spec.make(case, dtype, device)
    declared, wrong = {}, None
    try:
        declared = work(spec, case, dtype, inputs) if launch.INSTALLED else {}
        found = check(spec, case, dtype, device) if "triton" in chosen else ()
        wrong = f"wrong: {'; '.join(found)}" if found else None
    except Exception as error:  # of one op: the others are worth having
        wrong = one_line(error)
    rows = []
    for direction in directions(spec, case, dtype):
        group = []
        for implementation in chosen:
            labels = (spec.name, case.name, launch.short(dtype), direction, implementation)
            row = Row(*labels, fields=dict(case))
            group.append(row)
            if implementation == "triton" and wrong:
                row.fault = wrong
                continue
            try:
                function = IMPLEMENTATIONS[implementation](spec)
                prepared = calls(spec, case, dtype, function, inputs, direction, device)
                result = timing.measure(prepared, device, samples)
                row.peak_bytes = peak_bytes(prepared[0], device)
            except Exception as error:  # of one implementation: the others are worth having
                row.fault = one_line(error)
                continue
            row.median, row.spread, row.samples = result.median, result.spread, result.samples
            rates(row, declared.get(direction), dtype, device)
        references = [row.median for row in group if row.implementation != "triton" and row.median]
        for row in group:
            if row.implementation == "triton" and row.median and references:
                row.speed_up = min(references) / row.median
        rows += group
    return rows


def rates(row: Row, declared: Work | None, dtype: torch.dtype, device: str) -> None:
    """Fills in what follows from the time and from the declared work."""
    if declared is None:
        return
    if row.implementation == "triton":
        row.launches = declared.launches
    if declared.bytes:
        row.bytes = declared.bytes
        row.bytes_per_second = declared.bytes / row.median
        row.percent_of_copy = 100 * copy_seconds(declared.bytes, device) / row.median
    if declared.flops:
        row.flops = declared.flops
        row.flops_per_second = declared.flops / row.median
        row.percent_of_matmul = 100 * row.flops_per_second / matmul_rate(dtype, device)


def one_line(error: Exception) -> str:
    first = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


# heading -> how a row's cell is written; a column without a number is left out
COLUMNS: dict[str, Callable[[Row], str]] = {
    "case": lambda row: row.case,
    "direction": lambda row: row.direction,
    "by": lambda row: row.implementation,
    "us": lambda row: "FAILED" if row.fault else f"{row.median * 1e6:.2f}",
    "spread": lambda row: number(row.spread, 1e6, ".2f"),
    "GB/s": lambda row: number(row.bytes_per_second, 1e-9, ".1f"),
    "% of copy": lambda row: number(row.percent_of_copy, 1, ".0f"),
    "TFLOP/s": lambda row: number(row.flops_per_second, 1e-12, ".2f"),
    "% of matmul": lambda row: number(row.percent_of_matmul, 1, ".0f"),
    "peak MiB": lambda row: number(row.peak_bytes, 2**-20, ".1f"),
    "launches": lambda row: number(row.launches, 1, "d"),
    "speed-up": lambda row: number(row.speed_up, 1, ".2f"),
}
LEFT = ("case", "direction", "by")


def number(value: float | None, scale: float, form: str) -> str:
    return "" if value is None else format(value * scale, form)


def show(console: Console, spec: KernelSpec, rows: list[Row]) -> None:
    """An op's table, and below it what failed."""
    console.print(f"\n[bold]{spec.name}[/]  {escape(spec.formula)}")
    columns = {heading: [cell(row) for row in rows] for heading, cell in COLUMNS.items()}
    columns = {heading: cells for heading, cells in columns.items() if any(cells)}
    table = Table(box=None, pad_edge=False)
    for heading in columns:
        table.add_column(heading, justify="left" if heading in LEFT else "right", no_wrap=True)
    for cells in zip(*columns.values()):
        table.add_row(*map(escape, cells))
    console.print(table)
    for row in rows:
        if row.fault:
            console.print(
                f"FAILED {row.op} {row.case} {row.direction} {row.implementation}: {row.fault}", markup=False
            )


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    """The options, checked. UserError for what is none."""
    parser = Parser(prog="python -m bench", description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(kernels.CATALOGUE)}")
    parser.add_argument("--case", default="", help="only cases whose name contains this")
    parser.add_argument("--dtype", choices=DTYPES, help="default: float16 on a GPU, float32 on a CPU")
    parser.add_argument("--samples", type=int, default=timing.SAMPLES)
    parser.add_argument("--compile", action="store_true", help="compiled references on a CPU as well")
    parser.add_argument("--json", type=Path, help="where the record goes")
    parser.add_argument("--csv", type=Path, help="where the rows go")
    options = parser.parse_args(arguments)
    for name in options.names:
        if name not in kernels.CATALOGUE:
            raise UserError(f"NAME: got {name!r}, accepted are {', '.join(kernels.CATALOGUE)}")
    if options.samples < 1:
        raise UserError(f"--samples: got {options.samples}, accepted is 1 or more")
    if options.json and options.csv and options.json.resolve() == options.csv.resolve():
        raise UserError(f"--json and --csv: both are {options.json}; give two files")
    for option in ("json", "csv"):
        if getattr(options, option):
            check_writable(getattr(options, option), f"--{option}")
    return options


def selected(options: argparse.Namespace, dtype: torch.dtype) -> dict[KernelSpec, list[Case]]:
    """The cases of each op that was asked for. UserError where there is none."""
    specs = [kernels.CATALOGUE[name] for name in options.names or kernels.CATALOGUE]
    found = {spec: [case for case in spec.cases if options.case in case.name] for spec in specs}
    if not any(found.values()):
        names = dict.fromkeys(case.name for spec in specs for case in spec.cases)
        raise UserError(f"--case: got {options.case!r}, cases are {', '.join(names)}")
    found = {spec: cases for spec, cases in found.items() if cases and dtype in spec.dtypes}
    if not found:
        raise UserError(f"--dtype: got {options.dtype}, none of these ops has it")
    return found


def on_cpu(case: Case) -> Case:
    """The case at a batch that a CPU does in little time."""
    return Case(case.name, **{**case, "n": min(case.n, CPU_BATCH)}) if "n" in case else case


def main(arguments: list[str] | None = None) -> int:
    device, untimed = timed_on()
    try:
        options = parsed(arguments)
        options.dtype = options.dtype or ("float32" if device == "cpu" else "float16")
        dtype = DTYPES[options.dtype]
        todo = selected(options, dtype)
    except UserError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    chosen = list(IMPLEMENTATIONS)
    if untimed:
        chosen.remove("triton")
    if device == "cpu":
        chosen.remove("max-autotune")
        if not options.compile:
            chosen.remove("compiled")
        todo = {spec: [on_cpu(case) for case in cases] for spec, cases in todo.items()}

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    name, before = environment.device_name(device), environment.gpu_state(device)
    console.print(f"{name}, {options.dtype}, {options.samples} samples", markup=False)
    if untimed:
        batch = f"references alone, on the CPU, at n = {CPU_BATCH}" if device == "cpu" else "references alone"
        console.print(f"no kernel is timed, because {untimed}: {batch}")
    rows = []
    for spec, cases in todo.items():
        found = [row for case in cases for row in measure(spec, case, dtype, device, chosen, options.samples)]
        show(console, spec, found)
        rows += found
    commit, dirty = environment.commit()
    record = {
        "command": shlex.join(["python", "-m", "bench", *(sys.argv[1:] if arguments is None else arguments)]),
        "device": device,
        "device_name": name,
        "versions": environment.versions(),
        "commit": commit,
        "dirty": dirty,
        "gpu_before": before,
        "gpu_after": environment.gpu_state(device),
        "kernels_timed": untimed is None,
        "matmul_flops_per_second": matmul_rate(dtype, device) if any(row.flops for row in rows) else None,
        "rows": [dataclasses.asdict(row) for row in rows],
    }
    if options.json:
        with atomic(options.json) as temporary:
            temporary.write_text(json.dumps(ledger.finite(record), indent=1, allow_nan=False) + "\n")
    if options.csv:
        write_csv(options.csv, rows)
    return 1 if any(row.fault for row in rows) else 0


def write_csv(path: Path, rows: list[Row]) -> None:
    """A line a row, without its samples and the fields of its case."""
    columns = [field.name for field in dataclasses.fields(Row) if field.name not in ("samples", "fields")]
    with atomic(path) as temporary, open(temporary, "w", newline="") as f:
        writer = csv.DictWriter(f, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(vars(row) for row in rows)


if __name__ == "__main__":
    sys.exit(main())
