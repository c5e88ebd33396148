"""Step 2: all that is compiled, on all cores, into the caches that later steps and later runs read.

Recipes are built side by side, each by a process of trainee.py, a few at a time in the order of
CONFIGURATIONS; meanwhile Triton's kernels are compiled in as many processes as there are other CPUs: those
of the recipes' shapes, of the tuner's candidates, of the small tests. What a stop leaves undone is compiled
where it is first called.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time
from collections.abc import Iterator

import torch

import kernels
from kernels import check, chips, launch, measure, tune
from kernels.check import Row

from .steps import Context, result, say
from .trains import CONFIGURATIONS, Configuration, command

CPUS = 4  # that a build keeps busy


def builds(context: Context, found: dict[str, float | str]) -> None:
    """Builds every configuration; fills in the seconds of each, or how it ended."""
    waiting, running = list(CONFIGURATIONS), {}
    together = max(1, len(os.sched_getaffinity(0)) // (2 * CPUS))
    while waiting or running:
        while waiting and len(running) < together:
            one = waiting.pop(0)
            running[one] = time.time(), build(one, context)
        for one, (began, child) in list(running.items()):
            if (status := child.poll()) is not None:
                del running[one]
                took = time.time() - began
                found[one.name] = took if status == 0 else f"ended with status {status}"
                say(f"built {one.name}: {f'{took:.0f} s' if status == 0 else found[one.name]}")
        time.sleep(0.2)


def build(one: Configuration, context: Context) -> subprocess.Popen:
    """A process that builds a configuration, and ends."""
    return subprocess.Popen(
        command(one, context, build=True),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def recorded(specs, cases, dtype: torch.dtype) -> Iterator[Row]:
    """What cases launch on the chip that is here, at their full sizes. One that cannot be recorded fails
    where it is run.
    """
    cc = chips.here().cc
    for spec in specs:
        own = spec.dtype(dtype)
        for case in cases(spec):
            with contextlib.suppress(Exception):
                for one in check.record(spec, case, own):
                    yield Row(spec, one, own, (cc,), [case.name], 1)


def run(context: Context) -> None:
    if context.toy or launch.INTERPRETED:
        say("the interpreter compiles nothing")
        result({"launches": 0, "builds": {}})
        return
    found = {"launches": {}, "builds": {}}
    beside = threading.Thread(target=builds, args=(context, found["builds"]))
    beside.start()
    processes = max(1, len(os.sched_getaffinity(0)) // 2)
    specs = kernels.CATALOGUE.values()

    def compiled(what: str, rows: list[Row]) -> None:
        began = time.time()
        check.compile_all(rows, processes, lambda done, of: None)
        found["launches"][what] = len(rows)
        say(f"compiled {what}: {len(rows)} launches, {time.time() - began:.0f} s")
        result(found)

    compiled("recipes", list(recorded(specs, lambda spec: spec.cases, torch.float16)))
    work = {
        job.problem: measure.worth(job.problem, chips.here())
        for job in tune.jobs(["float16"])
        if tune.is_pass(job)
    }
    began = time.time()
    measure.compiled(work, chips.here(), processes, lambda done, of: None)
    found["launches"]["candidates"] = sum(map(len, work.values()))
    say(f"compiled candidates: {found['launches']['candidates']} launches, {time.time() - began:.0f} s")
    result(found)
    for dtype in (torch.float16, torch.float32, torch.bfloat16):
        what = f"small tests in {launch.short(dtype)}"
        compiled(what, list(recorded(specs, lambda spec: spec.small(), dtype)))
    beside.join()
    result(found)
