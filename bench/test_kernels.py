"""The microbenchmark for pytest-benchmark, with its saved runs and comparisons: `pytest bench`.

    pytest bench --benchmark-autosave
    pytest bench --benchmark-compare --benchmark-compare-fail=median:10%
    pytest bench --benchmark-disable                 once each: does every benchmark still run?

On a GPU every implementation is timed, the op after a check of its results. Elsewhere it is the reference
alone, at a batch of two.
"""

from __future__ import annotations

import pytest
import torch

import kernels
from kernels import launch, timing
from kernels.calls import calls
from kernels.compare import check
from kernels.spec import Case

from . import micro

DEVICE, UNTIMED = micro.timed_on()
DTYPE = torch.float32 if DEVICE == "cpu" else torch.float16
BATCH = 2  # on a CPU


class Clock:
    """A clock for pytest-benchmark that shows the seconds of the samples taken so far."""

    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


CLOCK = Clock()


def implementations() -> list[str]:
    if DEVICE == "cpu":
        return ["eager"]
    return [name for name in micro.IMPLEMENTATIONS if name != "triton" or not UNTIMED]


def parameters():
    """pytest parameters (spec, case, direction), the case at a batch of BATCH on a CPU."""
    for spec in kernels.CATALOGUE.values():
        for case in spec.cases if DTYPE in spec.dtypes else ():
            if DEVICE == "cpu" and "n" in case:
                case = Case(case.name, **{**case, "n": min(case.n, BATCH)})
            for direction in micro.directions(spec, case, DTYPE):
                yield pytest.param(spec, case, direction, id=f"{spec.name}-{case.name}-{direction}")


@pytest.mark.benchmark(timer=CLOCK)
@pytest.mark.parametrize("implementation", implementations())
@pytest.mark.parametrize("spec, case, direction", list(parameters()))
def test_speed(benchmark, spec, case, direction, implementation):
    inputs = spec.make(case, DTYPE, DEVICE)
    if implementation == "triton":
        assert not check(spec, case, DTYPE, DEVICE)
    function = micro.IMPLEMENTATIONS[implementation](spec)
    take = timing.sampler(calls(spec, case, DTYPE, function, inputs, direction, DEVICE), DEVICE)

    def sample():
        CLOCK.seconds += take()

    benchmark.group = f"{spec.name} {case.name} {direction}"
    benchmark.extra_info.update(dtype=launch.short(DTYPE), **case)
    benchmark.pedantic(sample, rounds=timing.SAMPLES, iterations=1)
