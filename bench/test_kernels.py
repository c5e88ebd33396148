"""The microbenchmark for pytest-benchmark, with its saved runs and comparisons: `pytest bench`.

    pytest bench --benchmark-autosave
    pytest bench --benchmark-compare --benchmark-compare-fail=median:10%
    pytest bench --benchmark-disable                 once each: does every benchmark still run?

What is timed, and how, is what `python -m bench` times: on a GPU all implementations, by events on the device
and with a cold L2 cache (kernels/base/timing.py); elsewhere the references, by the wall clock, at a batch of
two. Incorrect kernels fail and are not timed. Times are of one call, though pytest-benchmark says rounds.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch

import kernels
from kernels.base import launch, timing

from . import micro
from .calls import calls
from .implementations import FORMS, IMPLEMENTATIONS, KERNELS, distinct, known, scope

DEVICE, UNTIMED = micro.timed_on()
DTYPE = torch.float32 if DEVICE == "cpu" else torch.float16
BATCH = 2  # on a CPU
torch.backends.cudnn.benchmark = True


class Clock:
    """A clock for pytest-benchmark that shows the seconds of the samples taken so far."""

    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


CLOCK = Clock()
fault_of = cache(micro.fault_of)  # of all directions


def parameters():
    """pytest parameters (spec, case, direction, implementation), the case at a batch of BATCH on a CPU."""
    chosen = micro.implementations(DEVICE, UNTIMED)
    for spec in kernels.CATALOGUE.values():
        dtype = spec.dtype(DTYPE)
        for case in spec.cases:
            case = micro.on_cpu(case, BATCH) if DEVICE == "cpu" else case
            for direction in micro.directions(spec, case, dtype):
                for name in known(spec, chosen):
                    label = f"{spec.name}-{case.name}-{direction}-{name}"
                    yield pytest.param(spec, case, direction, name, id=label)


@pytest.mark.benchmark(timer=CLOCK)
@pytest.mark.parametrize("spec, case, direction, implementation", list(parameters()))
def test_speed(benchmark, spec, case, direction, implementation):
    dtype = spec.dtype(DTYPE)
    inputs = spec.make(case, dtype, DEVICE)
    again = implementation in (*FORMS, "tuned") and direction not in distinct(spec, inputs, KERNELS).get(
        implementation, ()
    )
    if again:
        pytest.skip(f"{implementation} launches what another form launches, or is the reference")
    assert fault_of(spec, implementation, case, dtype, DEVICE) is None
    benchmark.group = f"{spec.name} {case.name} {direction}"
    benchmark.extra_info.update(dtype=launch.short(dtype), **case)
    with scope(implementation, direction):
        function = IMPLEMENTATIONS[implementation](spec)
        prepared = calls(spec, case, dtype, function, inputs, direction, DEVICE)
        if benchmark.disabled:
            benchmark(prepared[0])
            return
        take = timing.sampler(prepared, DEVICE)

        def sample():
            CLOCK.seconds += take()

        benchmark.pedantic(sample, rounds=timing.SAMPLES, iterations=1)
