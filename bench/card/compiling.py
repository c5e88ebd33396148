"""Step 2: all that is compiled, on all cores, into the caches that later steps and later runs read.

A process builds the recipes (building.py), another works out what their runs are expected to take
(expecting.py); here Triton's kernels are compiled meanwhile, in half as many processes as there are CPUs:
those of the recipes' shapes, of the tuner's candidates, of the small tests. After a stop the rest is
compiled where it is first called.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator

import torch

import kernels
from kernels.base import chips, launch

from ..check import check
from ..check.check import Row
from ..tune import measure, tune
from .runner import ROOT
from .steps import Context, result, say


def recorded(cases, dtype: torch.dtype) -> Iterator[Row]:
    """What the `cases(spec)` of every op launch on the chip that is here, at their full sizes. One that
    cannot be recorded fails where it is run.
    """
    cc = chips.here().cc
    for spec in kernels.CATALOGUE.values():
        own = spec.dtype(dtype)
        for case in cases(spec):
            with contextlib.suppress(Exception):
                yield from (
                    Row(spec, one, own, (cc,), [case.name], 1) for one in check.record(spec, case, own)
                )


def candidates() -> dict:
    """The tuner's candidates, by pass."""
    passes = (job.problem for job in tune.jobs(["float16"]) if tune.is_pass(job))
    return {problem: measure.worth(problem, chips.here()) for problem in passes}


def run(context: Context) -> None:
    beside = [
        subprocess.Popen([sys.executable, "-m", f"{__package__}.{name}", context.json()], cwd=ROOT)
        for name in ("building", "expecting")
    ]
    processes, counts = max(1, len(os.sched_getaffinity(0)) // 2), {}

    def compiled(what: str, rows: list[Row]) -> None:
        began = time.time()
        check.compile_all(rows, processes, quiet)
        told(what, len(rows), time.time() - began)

    def told(what: str, count: int, seconds: float) -> None:
        counts[what] = count
        say(f"compiled {what}: {count} launches, {seconds:.0f} s")
        result({"launches": counts})

    compiled("recipes", list(recorded(lambda spec: spec.cases, torch.float16)))
    began, work = time.time(), candidates()
    measure.compiled(work, chips.here(), processes, quiet)
    told("candidates", sum(map(len, work.values())), time.time() - began)
    for dtype in (torch.float16, torch.float32, torch.bfloat16):
        compiled(f"small cases in {launch.short(dtype)}", list(recorded(lambda spec: spec.small(), dtype)))
    for child in beside:
        child.wait()


def quiet(done: int, of: int) -> None:
    """Ignores progress."""
