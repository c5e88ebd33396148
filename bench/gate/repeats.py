"""One repeat of the speed gate: every case once, in a process of its own.

The process first runs matrix products for WARM_SECONDS, since a chip that was idle has other clocks. A
case's inputs are made afresh, the op is timed as the microbenchmark does it, and the median of its samples
is the case's one number of the repeat. Its values are compared with the reference in the first repeat that it
is in: a case that is wrong has no time.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TextIO

import torch

import kernels
from hlb import UserError
from kernels.base import launch, timing
from kernels.base.correctness import check
from kernels.base.spec import Case, KernelSpec

from ..calls import calls
from ..micro import directions, one_line
from .baseline import CEILINGS

WARM_SECONDS = 3.0
COPIED = {"cuda": 1 << 29, "cpu": 1 << 20}  # bytes that the copy moves
READY = "ready"  # what the process says first
ROOT = Path(__file__).parents[2]


def catalogue(ops: Sequence[str] = ()) -> dict[str, dict]:
    """Name -> fields of the call, of every case, forward and both: `sgd seed forward`. Of `ops` alone, if any
    are given.
    """
    by_name = {}
    for op in ops or kernels.CATALOGUE:
        spec, dtype = kernels.CATALOGUE[op], kernels.CATALOGUE[op].dtype()
        for case in spec.cases:
            call = json.loads(json.dumps({"dtype": launch.short(dtype), **case}, default=str))
            for direction in directions(spec, case, dtype):
                if direction != "backward":  # which is in both
                    by_name[f"{op} {case.name} {direction}"] = call
    return by_name


def named(name: str) -> tuple[KernelSpec, Case, str]:
    """The op, the case and the direction that a name of the catalogue stands for."""
    op, rest = name.split(" ", 1)
    label, direction = rest.rsplit(" ", 1)
    spec = kernels.CATALOGUE[op]
    return spec, next(case for case in spec.cases if case.name == label), direction


def measured(
    names: Sequence[str], checked: Sequence[str], samples: int, device: str
) -> Iterator[tuple[str, float | str]]:
    """(name, seconds or a fault) of one name after the other; the values of those in `checked` are compared
    first. Ends early where a fault took the device with it. Raises UserError where nothing can be compiled.
    """
    for name in names:
        try:
            if name in CEILINGS:
                value = ceiling(name, device, samples)
            else:
                value = op(name, name in checked, samples, device)
        except Exception as error:  # of one case: the others are worth having
            value = one_line(error)
        yield name, value
        if device == "cuda":
            try:
                torch.cuda.synchronize()
            except RuntimeError:  # nothing works after an illegal access
                return
            torch.cuda.empty_cache()


def warm(device: str) -> None:
    """Keeps the device busy for a while."""
    begin = time.perf_counter()
    while time.perf_counter() < begin + WARM_SECONDS:
        ceiling("matmul", device, samples=20)


def ceiling(name: str, device: str, samples: int) -> float:
    """Seconds of a large copy, or of a large matrix product."""
    if name == "copy":
        return timing.copy(COPIED[device], device, samples).median
    dtype = torch.float32 if device == "cpu" else torch.float16
    return 2 * timing.SIDE[device] ** 3 / timing.matmul(dtype, device, samples)


def op(name: str, checked: bool, samples: int, device: str) -> float | str:
    """Seconds of a case, or the fault of its values."""
    spec, case, direction = named(name)
    if checked and (fault := wrong(spec, case, device)):
        return fault
    torch.manual_seed(0)  # the same inputs in every repeat
    dtype = spec.dtype()
    inputs = spec.make(case, dtype, device)
    take = timing.sampler(calls(spec, case, dtype, spec.op, inputs, direction, device), device)
    return statistics.median(take() for _ in range(samples))


@cache
def wrong(spec: KernelSpec, case: Case, device: str) -> str:
    """The fault of an op's values; "" where they are right."""
    faults = check(spec, case, spec.dtype(), device)
    return f"wrong values: {'; '.join(faults)}" if faults else ""


class Repeats:
    """Called with names, it times each once, in a process of its own. A case that ends the process is at
    fault itself; another process times those after it.
    """

    command = (sys.executable, "-m", "bench.gate.repeats")

    def __init__(self, samples: int = timing.SAMPLES):
        self.samples, self.checked = samples, set()

    def __call__(self, names: list[str]) -> dict[str, float | str]:
        results: dict[str, float | str] = {}
        while left := [name for name in names if name not in results]:
            status = self._process(left, results)
            rest = [name for name in names if name not in results]
            if rest and status:
                results[rest[0]] = f"its process ended with status {status}"
        self.checked |= set(names)
        return results

    def _process(self, names: list[str], results: dict[str, float | str]) -> int:
        """Adds the results of a new process; returns its exit status."""
        request = {"names": names, "checked": [name for name in names if name not in self.checked]}
        child = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        try:
            with contextlib.suppress(BrokenPipeError):  # it has said why
                child.stdin.write(json.dumps({**request, "samples": self.samples, "device": "cuda"}))
                child.stdin.close()
            if child.stdout.readline().strip() != READY:
                raise UserError(f"`{' '.join(self.command)}` did not start; what it wrote says why")
            for line in child.stdout:
                name, value = json.loads(line)
                if name is None:
                    raise UserError(value)
                results[name] = value
            return child.wait()
        finally:
            child.kill()
            child.wait()
            child.stdout.close()


def serve(request: dict, out: TextIO) -> None:
    """Serves a process: `request` holds the arguments of `measured`; writes a line for each name, or one
    without a name that says why nothing can be measured.
    """
    warm(request["device"])
    print(READY, file=out, flush=True)
    try:
        for pair in measured(**request):
            print(json.dumps(pair), file=out, flush=True)
    except UserError as error:
        print(json.dumps((None, str(error))), file=out, flush=True)


if __name__ == "__main__":
    lines = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not mix with results
    try:
        serve(json.load(sys.stdin), lines)
    except (KeyboardInterrupt, BrokenPipeError):  # the gate has ended and says so itself
        os._exit(130)
