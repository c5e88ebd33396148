"""How often the speed gate is wrong: its own judge (bench/gate/judge.py) on simulated repeats.

The logarithm of a time is the case's own plus, each normal unless said otherwise:

    process      a case in a process: addresses, clocks                       0.3 %
    visit        the median of a case's samples in a repeat                   0.3 %
    drift        all cases of a repeat, each in a part of its own, 0 to 1     0.2 %
    case_day     a case between baseline and now, whatever the repeats        0.2 %
    machine_day  copying and computing between baseline and now; a case follows a
                 mixture of them, in a part of its own, 0 to 1                0.5 %
    outlier      of 1 repeat in 100: longer by this, exponential              5 %
    unequal      a case's noise is this times that of others: log-normal      0.4

Public reports: on one machine GPU tests vary by less than 0.3 % (pytorch/pytorch #5799); five runs of a
kernel span 0.4 to 1.5 %, that is a standard deviation of 0.2 to 0.6 %, and of one that leaves most of the
chip idle 25 % (ROCm/FlyDSL #924); samples of many kernels never settle below 0.5 % (NVIDIA/nvbench
d3a0bec); 200 trainings in 24 containers vary by 1.2 % (fulcrumresearch/cifar-10-speedrun). How the sum
falls into parts is a guess: hence the rates at twice the noise, and where all repeats share one process.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench.gate.baseline import CEILINGS, Baseline, Session, Timed
from bench.gate.judge import Criteria, judge

MOST_FALSE, LEAST_CAUGHT = 0.01, 0.95  # what the gate promises; the second of a slowdown of PROMISED
PROMISED = 0.05
SLOWDOWNS = (0.0, 0.03, PROMISED, 0.10)  # of one case


@dataclass(frozen=True)
class Noise:
    """Standard deviations of the logarithm of a time, and how often there is an outlier of what mean."""

    process: float = 0.003
    visit: float = 0.003
    drift: float = 0.002
    case_day: float = 0.002
    machine_day: float = 0.005
    unequal: float = 0.4
    outliers: float = 0.01
    outlier: float = 0.05

    def times(self, factor: float) -> Noise:
        """All of it larger, but for how often and how unequal it is."""
        sizes = ("process", "visit", "drift", "case_day", "machine_day", "outlier")
        return dataclasses.replace(self, **{name: factor * getattr(self, name) for name in sizes})

    def of_one_process(self) -> Noise:
        """The same where all repeats of a baseline share one process, and all of a gate another."""
        return dataclasses.replace(
            self, process=0.0, case_day=math.hypot(self.case_day, 2**0.5 * self.process)
        )


class Machine:
    """A machine on the day of the baseline; `__call__` measures a repeat as judge.Measure does, and after
    `pass_a_day` another day's. Cases take about a microsecond. `slow` maps cases to their slowdown that day.
    """

    def __init__(self, cases: Sequence[str], noise: Noise, random: np.random.Generator):
        self.names, self.noise, self.random = (*CEILINGS, *cases), noise, random
        n = len(cases)
        self.unequal = np.concatenate([[1, 1], np.exp(noise.unequal * random.standard_normal(n))])
        copied, follows = random.random(n), random.random(n)
        self.follows = np.concatenate([np.eye(2), follows[:, None] * np.stack([copied, 1 - copied], 1)])
        self.drifts = np.concatenate([[1, 1], random.random(n)])
        self.shift = np.zeros(n + 2)

    def pass_a_day(self, slow: dict[str, float]) -> None:
        noise, random = self.noise, self.random
        self.shift = self.follows @ (noise.machine_day * random.standard_normal(2))
        self.shift[2:] += noise.case_day * (self.unequal * random.standard_normal(len(self.names)))[2:]
        for name, slowdown in slow.items():
            self.shift[self.names.index(name)] += math.log1p(slowdown)

    def __call__(self, names: Sequence[str]) -> dict[str, float]:
        noise, random, n = self.noise, self.random, len(self.names)
        own = math.hypot(noise.process, noise.visit) * self.unequal * random.standard_normal(n)
        common = noise.drift * random.standard_normal() * self.drifts
        outliers = (random.random(n) < noise.outliers) * random.exponential(noise.outlier, n)
        there = dict(zip(self.names, (1e-6 * np.exp(self.shift + own + common + outliers)).tolist()))
        return {name: there[name] for name in names}

    def baseline(self, repeats: int) -> Baseline:
        """A baseline of so many repeats."""
        seconds = dict(zip(self.names, zip(*(self(self.names).values() for _ in range(repeats)))))
        session = Session({name: seconds.pop(name) for name in CEILINGS})
        return Baseline(
            "simulated", [session], {name: Timed(times, {}, 0) for name, times in seconds.items()}
        )


@dataclass
class Rates:
    """How many of some gates ended how."""

    gates: int
    false: int = 0  # red for a case that is as it was
    caught: int = 0  # red for the case that is slower


def rates(gates: int, cases: int, slowdown: float, noise: Noise, criteria: Criteria, seed: int) -> Rates:
    """Of simulated gates, each with a machine and a baseline of its own, one case slower by `slowdown`."""
    random, counts = np.random.default_rng(seed), Rates(gates)
    names = [f"case {i}" for i in range(cases)]
    calls: dict[str, dict] = {name: {} for name in names}
    for _ in range(gates):
        machine = Machine(names, noise, random)
        baseline, slow = machine.baseline(criteria.repeats), names[random.integers(cases)]
        machine.pass_a_day({slow: slowdown})
        judgement = judge(baseline, calls, machine, criteria)
        red = {assessment.name for assessment in judgement.red}
        counts.caught += slow in red and slowdown > 0
        counts.false += bool(red - {slow} if slowdown else red)
    return counts
