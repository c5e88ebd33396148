"""Every kernel beside the PyTorch that it replaces, at the recipes' shapes: time, rate, memory, launches.

The implementations are listed in implementations.py. An op is compared with its reference first; an incorrect
one is not timed, its row says so, and the exit status is 1. `forward` saves what the backward needs, as
in training; `backward` is that of graphs made before the clock; `both` is the two together. Rates are of the
bytes and FLOPs that the op must move and do, whatever an implementation moves; the ceilings are a copy of as
many bytes and a large matrix product, timed the same way in the same process (kernels/base/timing.py).

Without a CUDA device no kernel is timed: the references run on the CPU, at a small batch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from rich.console import Console
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from hlb import UserError
from hlb.execution import cpus
from hlb.runs import environment
from kernels.base import chips, launch, timing
from kernels.base.compilers import missing
from kernels.base.correctness import leaves
from kernels.base.spec import Case, KernelSpec

from .calls import DIRECTIONS, calls, roots
from .check import check
from .implementations import FORMS, IMPLEMENTATIONS, KERNELS, distinct, faults, known, launches_of, scope
from .rows import Row, show, speed_ups

CPU_BATCH = 16  # n of a case on a CPU, at most
# Rough seconds of a case, for the estimate: its compilation, and its times in all directions.
SECONDS = dict.fromkeys(IMPLEMENTATIONS, 1.5) | {"compiled": 12.0, "max-autotune": 90.0}


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


def implementations(
    device: str, untimed: str | None, compile: bool = False, autotune: bool = False
) -> list[str]:
    """The implementations that are timed on a device: those that are autotuned only if `autotune`, on a CPU
    those that are compiled only if `compile`.
    """
    left_out = {name for name in KERNELS if untimed}
    if not autotune:
        left_out.add("max-autotune")
    if device == "cpu" and not compile:
        left_out.add("compiled")
    return [name for name in IMPLEMENTATIONS if name not in left_out]


def few(spec: KernelSpec) -> list[Case]:
    """The cases that are timed where none is asked for: record94's of its largest images, else the first."""
    of_record = [case for case in spec.cases if case.name.startswith("record94") and " at " not in case.name]
    return of_record or list(spec.cases[:1])


def estimate(todo: dict[KernelSpec, list[Case]], chosen: Sequence[str]) -> str:
    """How many cases there are, and about how long they take, in a line."""
    count = sum(map(len, todo.values()))
    seconds = sum(len(cases) * sum(map(SECONDS.get, known(spec, chosen))) for spec, cases in todo.items())
    return f"{count} case{'s' * (count != 1)}: {timing.about(seconds)}"


def compile_ahead(
    todo: dict[KernelSpec, list[Case]], dtype: torch.dtype, chosen: Sequence[str], processes: int
) -> int:
    """Compiles what the cases will launch here, in several processes, for Triton's cache; how many launches.
    A case that cannot be recorded fails where it is timed.
    """
    rows, chip = [], chips.here()
    for spec, cases in todo.items():
        own = spec.dtype(dtype)
        for case in cases:
            for name in (name for name in chosen if name == "triton" or name in FORMS):
                with contextlib.suppress(Exception), scope(name):
                    rows += (
                        check.Row(spec, one, own, (chip.cc,), [case.name], 1)
                        for one in check.record(spec, case, own)
                    )
    check.compile_all(rows, processes, lambda done, of: None)
    return len(rows)


def directions(spec: KernelSpec, case: Case, dtype: torch.dtype) -> tuple[str, ...]:
    """`forward`, and all of DIRECTIONS where a gradient can be asked for; found on shapes alone."""
    outputs = spec.reference(**leaves(spec, spec.make(case, dtype, "meta")))
    return DIRECTIONS if roots(outputs) else DIRECTIONS[:1]


def on_cpu(case: Case, batch: int = CPU_BATCH) -> Case:
    """The case at a batch that is quick on a CPU."""
    return Case(case.name, **{**case, "n": min(case.n, batch)}) if "n" in case else case


def work(spec: KernelSpec, case: Case, dtype: torch.dtype, inputs: dict) -> dict[str, Work]:
    """direction -> what the spec declares for the kernels that the op launches then."""
    forward, both = (Counter(one.name for one in these) for these in launches_of(spec, spec.op, inputs))
    moved, done = spec.bytes(case, dtype), spec.flops(case, dtype)

    def total(declared: dict[str, int], counts: Counter) -> int:
        """A kernel that both directions launch is divided by the number of its launches."""
        return sum(declared.get(name, 0) * count // both[name] for name, count in counts.items())

    return {
        direction: Work(total(moved, counts), total(done, counts), counts.total())
        for direction, counts in zip(DIRECTIONS, (forward, both - forward, both))
    }


def peak_bytes(call: timing.Call, device: str) -> int | None:
    """Peak bytes that a call allocates beyond what was allocated before; None on a CPU."""
    if device == "cpu":
        return None
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def launches(call: timing.Call, device: str) -> int | None:
    """Number of kernels, copies and fills of a call, from PyTorch's profiler; None where it sees none, as
    without CUPTI, and on a CPU.
    """
    if device == "cpu":
        return None
    torch.cuda.synchronize(device)
    try:
        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            call()
            torch.cuda.synchronize(device)
    except RuntimeError:  # of the profiler: the call has been timed
        return None
    return on_device(seen.events()) or None


def on_device(events: Sequence) -> int:
    """How many of a profile's events are work of the device; named ranges do not count."""
    return sum(event.device_type == DeviceType.CUDA and not event.is_user_annotation for event in events)


@cache
def copy_seconds(size: int, device: str) -> float:
    return timing.copy(size, device).median


@cache
def copy_rate(device: str) -> float:
    return timing.copy_rate(device)


@cache
def matmul_rate(dtype: torch.dtype, device: str) -> float:
    return timing.matmul(dtype, device)


def measure(
    spec: KernelSpec,
    case: Case,
    dtype: torch.dtype,
    device: str,
    chosen: Sequence[str],
    samples: int,
    direction: str | None = None,
) -> list[Row]:
    """The rows of a case: for each direction, or the one given, each of the `chosen` implementations."""
    inputs = spec.make(case, dtype, device)
    declared, wrong = {}, {}
    try:
        declared = work(spec, case, dtype, inputs) if launch.INSTALLED else {}
    except Exception as error:  # one op fails: the others are still timed
        wrong["triton"] = one_line(error)
    counts = distinct(spec, inputs, chosen)
    for name in counts.keys() - wrong.keys():
        if fault := fault_of(spec, name, case, dtype, device):
            wrong[name] = fault
    rows = []
    for way in [direction] if direction else directions(spec, case, dtype):
        group = []
        for name, counted in counts.items():
            if way not in counted:
                continue
            row = Row(spec.name, case.name, launch.short(dtype), way, name, dict(case), fault=wrong.get(name))
            group.append(row)
            if row.fault:
                continue
            try:
                with scope(name, way):
                    prepared = calls(spec, case, dtype, IMPLEMENTATIONS[name](spec), inputs, way, device)
                    result = timing.measure(prepared, device, samples)
                    row.peak_bytes = peak_bytes(prepared[0], device)
                    row.launches = counted[way] or launches(prepared[0], device)
            except Exception as error:  # one implementation fails: the others are still timed
                row.fault = one_line(error)
                continue
            row.median, row.spread, row.samples = result.median, result.spread, result.samples
            rates(row, declared.get(way), dtype, device)
        speed_ups(group)
        rows += group
    return rows


def fault_of(spec: KernelSpec, name: str, case: Case, dtype: torch.dtype, device: str) -> str | None:
    """Why an implementation is not timed, in a line; None where it is correct."""
    try:
        wrong = faults(spec, name, case, dtype, device)
    except Exception as error:  # one implementation fails: the others are still timed
        return one_line(error)
    return f"wrong: {'; '.join(wrong)}" if wrong else None


def rates(row: Row, declared: Work | None, dtype: torch.dtype, device: str) -> None:
    """Fills in what follows from the time and from the declared work."""
    if declared is None:
        return
    if declared.bytes:
        row.bytes = declared.bytes
        row.bytes_per_second = declared.bytes / row.median
        row.copy_bytes_per_second = declared.bytes / copy_seconds(declared.bytes, device)
        row.percent_of_copy = 100 * row.bytes_per_second / row.copy_bytes_per_second
    if declared.flops:
        row.flops = declared.flops
        row.flops_per_second = declared.flops / row.median
        row.percent_of_matmul = 100 * row.flops_per_second / matmul_rate(dtype, device)


def one_line(error: Exception) -> str:
    """The error of a kernel: its kind and first line. Raises UserError where nothing can be compiled here,
    and so no kernel is at fault.
    """
    if why := missing(error):
        raise UserError(f"nothing can be compiled here: {why}") from None
    first = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def run(
    console: Console,
    todo: dict[KernelSpec, list[Case]],
    dtype: torch.dtype,
    *,
    samples: int,
    direction: str | None,
    compile: bool,
    command: str,
    autotune: bool = False,
) -> dict:
    """Measures the cases and shows a table for each op. Returns the record, all that --json holds."""
    device, untimed = timed_on()
    if device == "cuda":
        torch.backends.cudnn.benchmark = True  # the fastest that cuDNN has, as in training
    chosen = implementations(device, untimed, compile, autotune)
    before = environment.gpu_state(device)
    console.print(
        f"{environment.device_name(device)}, {launch.short(dtype)}, {samples} samples", markup=False
    )
    if untimed:
        batch = f"references alone, on the CPU, at n = {CPU_BATCH}" if device == "cpu" else "references alone"
        console.print(f"no kernel is timed, because {untimed}: {batch}")
    console.print(estimate(todo, chosen))
    if not untimed and device == "cuda":
        processes = cpus()
        console.print(f"compiled {compile_ahead(todo, dtype, chosen, processes)} launches of Triton")
    rows = []
    for spec, cases in todo.items():
        measured = []
        for case in map(on_cpu, cases) if device == "cpu" else cases:
            measured += measure(spec, case, spec.dtype(dtype), device, chosen, samples, direction)
        show(console, spec, measured)
        rows += measured
    return as_record(rows, dtype, device, untimed, before, command)


def as_record(
    rows: list[Row], dtype: torch.dtype, device: str, untimed: str | None, before: dict | None, command: str
) -> dict:
    """What --json holds: rows, and on what and by what they were measured; `before` is the GPU's state
    then.
    """
    commit, dirty = environment.commit()
    return {
        "command": command,
        "time": datetime.datetime.now(datetime.timezone.utc).isoformat(),
        "device": device,
        "device_name": environment.device_name(device),
        "versions": environment.versions(),
        "commit": commit,
        "dirty": dirty,
        "gpu_before": before,
        "gpu_after": environment.gpu_state(device),
        "kernels_timed": untimed is None,
        "matmul_flops_per_second": matmul_rate(dtype, device) if any(row.flops for row in rows) else None,
        "copy_bytes_per_second": copy_rate(device) if any(row.bytes for row in rows) else None,
        "copied_by": timing.copier(device),
        "rows": [dataclasses.asdict(row) for row in rows],
    }
