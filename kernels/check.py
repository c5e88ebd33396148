"""The ahead-of-time check: every launch of every op, compiled for four chips on a machine that needs no GPU.

`plan` runs the ops on fake tensors (shapes without memory) at the recipes' full sizes and notes what they
launch, `compile_all` compiles that, `judge` applies the rules:

- no local-memory stack, so no register is spilled; shared memory within the chip's limit; a possible grid;
- tensor-core instructions for every `tl.dot` of float16, bfloat16 and tf32;
- an asynchronous copy in every loop that loads for a `tl.dot`, where the launch asks for pipeline stages;
- 16-byte accesses wherever each thread has an address of its own and rows are multiples of 16 bytes, but for
  the arguments that the SPEC names in `narrow`; and those really are accessed in narrower pieces somewhere;
- registers at most 10 % above those of the committed snapshot, if it knows this version of triton.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Container, Iterable
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

from .aot import Compiled, broken, compile_launch, identity
from .compare import execute
from .launch import Launch, recording, short
from .spec import Case, KernelSpec

SHARED = {80: 163, 89: 99, 90: 227, 100: 227}  # compute capability -> KiB of shared memory for a program
SNAPSHOT = Path(__file__).with_name("registers.json")


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
    ccs: tuple[int, ...]
    cases: list[str]
    number: int  # among the launches of this kernel in the first case
    results: dict[int, Compiled] = field(default_factory=dict)
    faults: dict[str, list[int]] = field(default_factory=dict)  # what is wrong -> on which chips

    @property
    def key(self) -> str:
        """In the snapshot."""
        config = f"{self.launch.num_warps} warps {self.launch.num_stages} stages"
        number = f" #{self.number}" if self.number > 1 else ""
        return "/".join((self.spec.name, self.launch.name, self.cases[0], short(self.dtype), config + number))


def plan(specs: Iterable[KernelSpec], everything: bool = False) -> tuple[list[Row], list[str]]:
    """(launches to compile, what went wrong before that).

    float16, or an op's only dtype, at every case for every chip; other dtypes for 9.0 until each kernel has
    had a case; or, if `everything`, these too at every case for every chip.
    """
    rows, faults = [], []
    for spec in specs:
        main = torch.float16 if torch.float16 in spec.dtypes else spec.dtypes[0]
        for dtype in sorted(spec.dtypes, key=lambda d: d != main):
            whole = everything or dtype == main
            found: dict[str, Row] = {}
            for case in spec.cases:
                declared = set(spec.bytes(case, dtype))
                seen = {row.launch.name for row in found.values()}
                if not whole and declared <= seen:
                    continue
                where = f"{spec.name} {case.name} {short(dtype)}"
                try:
                    launches = {identity(launch): launch for launch in record(spec, case, dtype)}
                except Exception as error:  # of one op: the others are still checked
                    faults.append(f"{where}: cannot be recorded: {type(error).__name__}: {error}")
                    continue
                launched = {launch.name for launch in launches.values()}
                if undeclared := declared ^ launched:
                    faults.append(f"{where}: not both launched and in bytes: {', '.join(sorted(undeclared))}")
                numbers = Counter()
                for key, launch in launches.items():
                    numbers[launch.name] += 1
                    if key in found:
                        found[key].cases.append(case.name)
                    elif whole or launch.name not in seen:
                        ccs = tuple(SHARED) if whole else (90,)
                        found[key] = Row(spec, launch, dtype, ccs, [case.name], numbers[launch.name])
            rows += found.values()
    return rows, faults


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
            for future in as_completed(futures):
                results[futures[future]] = future.result()
                progress(len(results), len(_tasks))

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
    """Of the dimension that lies contiguous in memory."""
    extents = [(stride, extent) for stride, extent in zip(tensor.stride(), tensor.shape) if extent > 1]
    return min(extents, default=(1, 1))[1] * tensor.itemsize


def violations(launch: Launch, result: Compiled, narrow: Container[str] = ()) -> list[str]:
    """The rules that a launch breaks on a chip, registers apart, a line each."""
    if result.error:
        return [f"does not compile: {result.error}"]
    found = list(result.faults)
    if result.stack:
        found.append(f"spills: {result.stack} bytes of stack")
    if result.shared > SHARED[result.cc] * 1024:
        found.append(f"shared memory: {result.shared / 1024:.0f} KiB, the limit is {SHARED[result.cc]}")
    if max(launch.grid[1:], default=1) > 65535:
        found.append(f"grid: {launch.grid}, only the first extent may be above 65535")
    tensors = dict(zip(launch.kernel.arg_names, launch.arguments))
    for name, (least, _) in result.widths.items():
        if least < 16 and name not in narrow and row_bytes(tensors[name]) % 16 == 0:
            found.append(f"{name}: {least} bytes an access, and `narrow` does not say why")
    return found


def grown(registers: int, before: int | None) -> list[str]:
    """A fault where registers are more than 10 %, and at least 2, above those of before."""
    if before is None or registers <= 1.1 * before or registers < before + 2:
        return []
    return [f"registers: {registers}, {before} in the snapshot"]


def judge(rows: list[Row], snapshot: dict[str, dict[str, int]]) -> list[str]:
    """Fills in `faults`; returns what is wrong with SPECs as a whole."""
    for row in rows:
        before = snapshot.get(row.key, {})
        for cc, result in row.results.items():
            found = violations(row.launch, result, row.spec.narrow) + grown(
                result.registers, before.get(chip(cc))
            )
            for fault in found:
                row.faults.setdefault(fault, []).append(cc)
    return [
        f"{spec.name}: `narrow` names {name}, which has no narrow access"
        for spec in {row.spec: None for row in rows}
        for name in stale(spec.narrow, [r for row in rows if row.spec is spec for r in row.results.values()])
    ]


def stale(narrow: Iterable[str], results: list[Compiled]) -> list[str]:
    """The arguments that need no excuse; none while a kernel does not compile."""
    if any(result.error for result in results):
        return []
    needed = {name for r in results for name, (least, _) in r.widths.items() if least < 16}
    return sorted(set(narrow) - needed - {name for r in results for name in r.uniform})


# Registers, as they were


def load_snapshot() -> dict[str, dict[str, dict[str, int]]]:
    """triton's version -> a row's key -> chip -> registers."""
    return json.loads(SNAPSHOT.read_text()) if SNAPSHOT.exists() else {}


def updated(snapshot: dict, version: str, rows: list[Row]) -> dict:
    """The snapshot with these rows' registers in place of all that it knew of their ops for this version."""
    ops = {row.spec.name for row in rows}
    kept = {key: value for key, value in snapshot.get(version, {}).items() if key.split("/")[0] not in ops}
    new = {row.key: {chip(cc): r.registers for cc, r in row.results.items() if not r.error} for row in rows}
    return snapshot | {version: dict(sorted((kept | new).items()))}


def snapshot_text(snapshot: dict) -> str:
    """As JSON, a line for each launch."""
    versions = []
    for version, entries in sorted(snapshot.items()):
        lines = ",\n".join(f" {json.dumps(key)}: {json.dumps(value)}" for key, value in entries.items())
        versions.append(f"{json.dumps(version)}: {{\n{lines}\n}}")
    return "{\n" + ",\n".join(versions) + "\n}"


def write(path: Path, text: str) -> None:
    """The whole file or none of it."""
    new = path.with_name(path.name + ".new")
    new.write_text(text + "\n")
    os.replace(new, path)
