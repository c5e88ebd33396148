"""The ahead-of-time check: every launch of every op, compiled for four chips on a machine that needs no GPU.

`collect` runs the ops on fake tensors (shapes without memory) at the recipes' full sizes and notes what they
launch on each chip, `compile_all` compiles that, `judge` applies the rules:

- no local-memory stack, so no register is spilled; shared memory within the chip's limit; a possible grid;
- tensor-core instructions for every `tl.dot` of float16, bfloat16 and tf32, those of 9.0 (wgmma) there, of
  which the assembler leaves out none and lets one begin before the last one ends;
- an asynchronous copy in every loop that loads for a `tl.dot`, where the launch asks for pipeline stages;
- 16-byte accesses wherever each thread has an address of its own and rows are multiples of 16 bytes, but for
  the arguments that the SPEC names in `narrow`; and those really are accessed in narrower pieces somewhere.

These hold whatever the baseline; bench/gate/static.py compares a launch with it.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from hlb.files import atomic
from kernels.base.chips import TARGETS, targeting
from kernels.base.correctness import execute
from kernels.base.launch import Launch, TensorDescriptor, recording, short
from kernels.base.spec import Case, KernelSpec

from .aot import Compiled, broken, compile_launch, identity


def chip(cc: int) -> str:
    """90 -> 9.0"""
    return f"{cc // 10}.{cc % 10}"


# What is launched


class _RealOps(TorchDispatchMode):
    """Runs the launchers of `hlb::` ops on fake tensors, where torch would run their fake implementations."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "hlb":
            function = OPDEFS[function.name()]._init_fn
        return function(*args, **(kwargs or {}))


def record(spec: KernelSpec, case: Case, dtype: torch.dtype) -> list[Launch]:
    """What one call launches, forward and backward, at the case's full size; no memory is touched."""
    with FakeTensorMode(), _RealOps(), recording() as launches:
        execute(spec, spec.op, spec.make(case, dtype, "cpu"))
    return launches


@dataclass
class Row:
    """A launch of an op, which several cases may share. `results` is by compute capability."""

    spec: KernelSpec
    launch: Launch
    dtype: torch.dtype
    ccs: tuple[int, ...]  # of the chips on which it is launched
    cases: list[str]
    number: int  # among the launches of this kernel in the first case
    tf32: bool = False  # whether torch's float32 products were to be tf32
    results: dict[int, Compiled] = field(default_factory=dict)
    faults: dict[str, list[int]] = field(default_factory=dict)  # what is wrong -> on which chips

    @property
    def precision(self) -> str:
        return "tf32" if self.tf32 else short(self.dtype)

    @property
    def key(self) -> str:
        """In a record and a baseline. Rows of one key differ in what some integers are multiples of, only."""
        config = f"{self.launch.num_warps} warps {self.launch.num_stages} stages"
        options = f" {words}" if (words := tile_options(self.launch)) else ""
        number = f" #{self.number}" if self.number > 1 else ""
        parts = (self.spec.name, self.launch.name, self.cases[0], self.precision, config + options + number)
        return "/".join(parts)


def tile(launch: Launch) -> str:
    """ROWSxCOLSxDEPTH of a kernel that multiplies matrices in such tiles; else nothing."""
    extents = [str(launch.constants.get(name, "")) for name in ("ROWS", "COLS", "DEPTH")]
    return "x".join(extents) if all(extents) else ""


def tile_options(launch: Launch) -> str:
    """The tile and what else tells configurations apart: 128x128x64 images pool."""
    if not tile(launch):
        return ""
    words = [name.lower() for name, value in launch.constants.items() if value is True]
    words += ["descriptors"] * any(isinstance(a, TensorDescriptor) for a in launch.arguments)
    return " ".join((tile(launch), *words))


@contextlib.contextmanager
def _tf32(on: bool) -> Iterator[None]:
    before, torch.backends.cuda.matmul.allow_tf32 = torch.backends.cuda.matmul.allow_tf32, on
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _on_chips(
    spec: KernelSpec, case: Case, dtype: torch.dtype, tf32: bool, ccs: Iterable[int]
) -> dict[str, tuple[Launch, int, tuple[int, ...]]]:
    """identity -> a launch of a case, its number among those of its kernel, the chips that launch it."""
    by_identity: dict[str, tuple[Launch, int, tuple[int, ...]]] = {}
    for cc in ccs:
        with targeting(TARGETS[cc]), _tf32(tf32):
            launches = {identity(launch): launch for launch in record(spec, case, dtype)}
        numbers = Counter()
        for key, launch in launches.items():
            numbers[launch.name] += 1
            _, number, others = by_identity.get(key, (launch, numbers[launch.name], ()))
            by_identity[key] = launch, number, (*others, cc)
    return by_identity


def _declared(spec: KernelSpec, case: Case, dtype: torch.dtype, ccs: Iterable[int]) -> set[str]:
    """The kernels for which a case declares bytes, on any of the chips."""
    names: set[str] = set()
    for cc in ccs:
        with targeting(TARGETS[cc]):
            names |= set(spec.bytes(case, dtype))
    return names


def collect(specs: Iterable[KernelSpec], everything: bool = False) -> tuple[list[Row], list[str]]:
    """(launches to compile, faults before any compilation).

    float16, or an op's only dtype, at every case for every chip; other dtypes, and tf32 where it makes a
    difference, for 9.0 until each kernel has had a case; or, if `everything`, these too at every case for
    every chip. Then, for 9.0 and in the first dtype, what is compiled for `KernelSpec.others` alone.
    """
    rows, faults = [], []
    for spec in specs:
        main = spec.dtype()
        variants = [(dtype, False) for dtype in sorted(spec.dtypes, key=lambda d: d != main)]
        if torch.float32 in spec.dtypes and any(spec.flops(case, torch.float32) for case in spec.cases):
            variants.append((torch.float32, True))
        planned: dict[tuple[str, torch.dtype], Row] = {}
        plan = [(*variant, spec.cases) for variant in variants] + [(main, False, spec.others())]
        for dtype, tf32, cases in plan:
            whole, shared = everything or dtype == main, cases is spec.cases
            ccs = tuple(cc for cc in TARGETS if cc >= spec.since) if everything or whole and shared else (90,)
            seen: set[str] = set()
            for case in cases:
                declared = _declared(spec, case, dtype, ccs)
                if not whole and declared <= seen:
                    continue
                where = f"{spec.name} {case.name} {short(dtype)}"
                try:
                    launches = _on_chips(spec, case, dtype, tf32, ccs)
                except Exception as error:  # one op fails: the others are still checked
                    faults.append(f"{where}: cannot be recorded: {type(error).__name__}: {error}")
                    continue
                launched = {launch.name for launch, _, _ in launches.values()}
                if undeclared := declared ^ launched:
                    faults.append(f"{where}: not both launched and in bytes: {', '.join(sorted(undeclared))}")
                for key, (launch, number, chips) in launches.items():
                    row = planned.get((key, dtype))
                    if not row and (whole or launch.name not in seen):
                        row = Row(spec, launch, dtype, chips, [case.name], number, tf32)
                        planned[key, dtype] = row
                    elif shared and row and row.tf32 == tf32:  # else tf32 makes no difference
                        row.cases.append(case.name)
                        row.ccs = tuple(cc for cc in TARGETS if cc in (*row.ccs, *chips))
                seen |= launched
        rows += planned.values()
    return rows, faults


def work(rows: list[Row]) -> dict[tuple[str, str, str], dict[int, dict[str, tuple[int, int]]]]:
    """(op, case, precision) -> compute capability -> kernel -> (bytes, FLOPs) that a call issues, forward and
    backward, as the SPEC declares it for the configurations that this chip launches.
    """
    issued = {}
    for row in rows:
        cases = {case.name: case for case in (*row.spec.cases, *row.spec.others())}
        for name in row.cases:
            chips = issued.setdefault((row.spec.name, name, row.precision), {})
            for cc in row.ccs:
                if cc not in chips:
                    with targeting(TARGETS[cc]), _tf32(row.tf32):
                        moved = row.spec.bytes(cases[name], row.dtype)
                        done = row.spec.flops(cases[name], row.dtype)
                    chips[cc] = {kernel: (moved[kernel], done.get(kernel, 0)) for kernel in moved}
    return issued


# Compiled, in several processes

_tasks: list[tuple[Launch, int]] = []  # where forked processes find launches, which cannot be sent to them


def _task(i: int) -> Compiled:
    return compile_launch(*_tasks[i])


def compile_all(rows: list[Row], jobs: int, progress: Callable[[int, int], None]) -> None:
    """Fills in `results`, each different launch compiled once; calls progress(done, of all)."""
    wanted: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        for cc in row.ccs:
            wanted.setdefault((identity(row.launch), cc), []).append(row)
    _tasks[:] = [(sharing[0].launch, cc) for (_, cc), sharing in wanted.items()]
    results: dict[int, Compiled] = {}

    def run(indices: list[int], processes: int) -> None:
        with ProcessPoolExecutor(processes, mp_context=get_context("fork")) as pool:
            futures = {pool.submit(_task, i): i for i in indices}
            try:
                for future in as_completed(futures):
                    results[futures[future]] = future.result()
                    progress(len(results), len(_tasks))
            except BaseException:  # else all that waits would be compiled first
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    try:
        run(list(range(len(_tasks))), jobs)
    except BrokenProcessPool:  # the compiler aborted: once more, each launch in a process of its own
        for i, (launch, cc) in enumerate(_tasks):
            if i not in results:
                try:
                    run([i], 1)
                except BrokenProcessPool:
                    results[i] = broken(launch, cc, "the compiler aborts")
    for i, ((_, cc), sharing) in enumerate(wanted.items()):
        for row in sharing:
            row.results[cc] = results[i]


# Judged


def row_bytes(tensor: Tensor) -> int:
    """Bytes of a row: the dimension that is contiguous in memory."""
    extents = [(stride, extent) for stride, extent in zip(tensor.stride(), tensor.shape) if extent > 1]
    return min(extents, default=(1, 1))[1] * tensor.itemsize


def violations(launch: Launch, result: Compiled, narrow: Container[str] = ()) -> list[str]:
    """The rules that a launch breaks on a chip, a line each."""
    if result.error:
        return [f"does not compile: {result.error}"]
    faults = list(result.faults)
    if result.stack:
        faults.append(f"spills: {result.stack} bytes of stack")
    if result.shared > (limit := TARGETS[result.cc].shared) * 1024:
        faults.append(f"shared memory: {result.shared / 1024:.0f} KiB, the limit is {limit}")
    if max(launch.grid[1:], default=1) > 65535:
        faults.append(f"grid: {launch.grid}, only the first extent may be above 65535")
    tensors = dict(zip(launch.kernel.arg_names, launch.arguments))
    for name, (least, _) in result.widths.items():
        if least < 16 and name not in narrow and row_bytes(tensors[name]) % 16 == 0:
            faults.append(f"{name}: {least} bytes an access, and `narrow` does not say why")
    return faults


def judge(rows: list[Row]) -> list[str]:
    """Fills in `faults`; returns the faults of SPECs as a whole."""
    for row in rows:
        for cc, result in row.results.items():
            narrow = {name.removesuffix(f" {row.precision}") for name in row.spec.narrow}
            for fault in violations(row.launch, result, narrow):
                row.faults.setdefault(fault, []).append(cc)
    return [
        f"{spec.name}: `narrow` names {name}, which has no narrow access"
        for spec in {row.spec: None for row in rows}
        for name in stale(
            spec.narrow,
            [(row.precision, r) for row in rows if row.spec is spec for r in row.results.values()],
        )
    ]


def stale(narrow: Iterable[str], results: list[tuple[str, Compiled]]) -> list[str]:
    """Names in `narrow` that no result, each with its precision, needs; none while a compilation fails."""
    if any(result.error for _, result in results):
        return []
    needed = set()
    for precision, r in results:
        names = {name for name, (least, _) in r.widths.items() if least < 16} | set(r.uniform)
        needed |= names | {f"{name} {precision}" for name in names}
    return sorted(set(narrow) - needed)


def write(path: Path, text: str) -> None:
    """Writes the whole file or nothing."""
    with atomic(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
