"""Successive halving: within a budget of seconds, the fastest arm whose mean accuracy reaches a target.

An arm is a configuration. Its time is known after a few runs (0.001 s between runs of 0.8 s), its accuracy is
not (0.14 points between runs of record94, so 0.14 / sqrt(n) of a mean): the question is how few epochs still
reach the target. So all arms have 10 runs each, the better half 20, the better half of those 40, ..., and
what is left of the budget, 40 % of the runs' time or more, shows what was found:

    reach_k  = P(the lower 95 % bound of the last rung of arm k will reach the target | its runs so far)
    chance_k = reach_k * product of 1 - reach_j over the faster arms j

"Better" is a larger chance_k: the probability that k is the fastest arm of which it can be shown. It ranks a
slow arm low once a faster one is sure to do, and an arm low whose accuracy is hopeless; what has less than a
hundredth of the leader's leaves without waiting for its half. Arms within 0.2 % of each other's time count as
equally fast, the surer one first. reach_k is normal, with the runs' spread pooled over all arms. (Without the
bound's margin in reach_k the leader more often misses the target; accuracy alone stays with slow arms.)

A mean of the arm that looked best is too high, and so is its bound. So the last rung has seeds that nothing
was chosen by, and a number of runs that was fixed before the first of them. If the leader is not sure to do
(90 %), a third of it goes to a slower arm that is surer, first: only if that one's bound reaches the target
is the leader tested. Both at 95 %, in an order fixed before: the probability to claim an arm that misses the
target is at most 5 % (a fixed sequence of tests; Maurer, Hothorn and Lehmacher, 1995), and nearly always
there is something to claim. A budget that is raised after a verdict looks twice at the same runs, and its
error is a little larger.

`python -m bench halving` simulates all this, by this code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import NamedTuple, Protocol

FIRST = 10  # runs of an arm in the first rung
BEGUN = 0.7  # of the budget, which building and the first rung may take: beyond it no further arm is begun
RESERVED = 0.4  # of the seconds that are not for building, which are kept for the last rung
HOPELESS = 0.01  # of the leader's chance
SURE, SAFE = 0.9, 1 / 3  # a leader surer than that is alone in the last rung; else the safer arm's part of it
ALIKE = 0.002  # of a time: differences below it are none
SPREAD, WEIGHT = 0.0014, 10  # std of a run's accuracy before there are runs, and how many runs that is worth
NORMAL = NormalDist()
BOUND = NORMAL.inv_cdf(0.95)


class Tally(NamedTuple):
    """Runs of an arm: how many, mean and variance (n - 1; 0 for one run) of their accuracies, which are
    fractions, and a run's seconds on the clock.
    """

    n: int
    mean: float
    variance: float
    seconds: float


class Lab(Protocol):
    """Where the arms are trained. It drops an arm that cannot be."""

    budget: float  # seconds
    dropped: dict[int, str]  # arm -> why

    def left(self) -> float:
        """Seconds of the budget that are left."""

    def built(self) -> float:
        """Seconds that building took so far."""

    def building(self, arm: int) -> float:
        """What it is expected to take before the arm can be trained; 0.0 where it is built."""

    def build(self, arm: int) -> None:
        """Makes it ready to be trained."""

    def cost(self, arm: int) -> float:
        """Seconds that one more run of the arm takes, on the clock and off it."""

    def train(self, counts: dict[int, int], fresh: bool = False) -> None:
        """Trains the arms in turn until each has so many runs, or until no run fits in what is left. `fresh`
        runs are of other seeds.
        """

    def tally(self, arm: int, fresh: bool = False) -> Tally:
        """The arm's runs so far."""

    def bound(self, arm: int) -> float | None:
        """The one-sided lower 95 % bound of its fresh runs' mean accuracy; None for fewer than two."""


@dataclass(frozen=True)
class Rung:
    """A rung that has ended: how many runs each arm was to have, the chances of those in it, who goes on."""

    runs: int
    chances: dict[int, float]
    kept: list[int]


def spread(tallies: Sequence[Tally]) -> float:
    """The standard deviation of a run's accuracy, pooled over arms."""
    degrees = [max(tally.n - 1, 0) for tally in tallies]
    squares = sum(n * tally.variance for n, tally in zip(degrees, tallies))
    return math.sqrt((WEIGHT * SPREAD**2 + squares) / (WEIGHT + sum(degrees)))


def reach(tally: Tally, target: float, std: float, runs: int) -> float:
    """The probability that the lower 95 % bound of the mean of `runs` further runs reaches the target."""
    margin = tally.mean - target - BOUND * std / math.sqrt(runs)
    return max(NORMAL.cdf(margin / (std * math.sqrt(1 / tally.n + 1 / runs))), 1e-300)


def chances(tallies: dict[int, Tally], reaches: dict[int, float]) -> dict[int, float]:
    """Of each arm, the probability that it reaches the target and no faster one does."""
    fastest = min(tally.seconds for tally in tallies.values())
    steps = {arm: round(tally.seconds / (ALIKE * fastest)) for arm, tally in tallies.items()}
    found, none_yet = {}, 1.0
    for arm in sorted(tallies, key=lambda arm: (steps[arm], -reaches[arm])):
        found[arm] = none_yet * reaches[arm]
        none_yet = max(none_yet * (1 - reaches[arm]), 1e-300)
    return found


@dataclass
class Race:
    """The halving of `count` arms, the most promising first, in a lab. What is known stands in its fields at
    any time: `run` may be interrupted.
    """

    lab: Lab
    count: int
    target: float
    seen: Callable[[Rung], None] = lambda rung: None
    alive: list[int] = field(default_factory=list)
    untried: list[int] = field(default_factory=list)  # for which there was no time
    rungs: list[Rung] = field(default_factory=list)
    finalists: list[int] = field(default_factory=list)  # of the last rung, in the order of their tests
    planned: dict[int, int] = field(default_factory=dict)  # their runs in it
    claimed: int | None = None  # the fastest arm that was shown to reach the target

    def run(self, halve: bool = True) -> None:
        """All of it. Without `halve` there is one rung of as many runs as fit, to compare with."""
        self.admit()
        runs = FIRST
        while self._rung(runs if halve else None) and halve:
            runs *= 2
        self._last()

    def _there(self) -> list[int]:
        return [arm for arm in self.alive if arm not in self.lab.dropped]

    def _cost(self, counts: dict[int, int]) -> float:
        """Seconds until the arms have so many runs."""
        missing = {arm: max(0, n - self.lab.tally(arm).n) for arm, n in counts.items()}
        return sum(n * self.lab.cost(arm) + self.lab.building(arm) for arm, n in missing.items() if n)

    def admit(self) -> None:
        """Builds as many arms as leave enough time; one that has runs already is in. The first is trained
        once, to tell what a run takes: on a GPU, steps that are not captured are several times as slow.
        """
        lab = self.lab
        for arm in range(self.count):
            if arm in lab.dropped:
                continue
            if not self._begun(arm):
                there = self._there()
                first = self._cost(dict.fromkeys([*there, arm], FIRST))
                if lab.left() <= 0 or (there and lab.left() - first < (1 - BEGUN) * lab.budget):
                    self.untried.append(arm)
                    continue
                lab.build(arm)
                if not there and arm not in lab.dropped:
                    lab.train({arm: 1})
            self.alive.append(arm)

    def _begun(self, arm: int) -> bool:
        return self.lab.tally(arm).n > 0

    def reserve(self) -> float:
        """Seconds that are kept for the last rung."""
        return RESERVED * max(0.0, self.lab.budget - self.lab.built())

    def _rung(self, runs: int | None) -> bool:
        """Trains the arms up to `runs` each, or as many as fit; whether there will be another rung."""
        there, lab = self._there(), self.lab
        if not there:
            return False
        spare = lab.left() - self.reserve()
        whole = runs is not None and self._cost(dict.fromkeys(there, runs)) <= spare
        if not whole:
            spare -= sum(map(lab.building, there))
            more = int(max(0.0, spare) / sum(map(lab.cost, there)))
            runs = max(1, min(lab.tally(arm).n for arm in there) + more)
        lab.train(dict.fromkeys(there, runs))
        found = self.standing()
        if not found:
            return False
        ranked = list(found)
        half = ranked[: -(-len(ranked) // 2)] if len(ranked) > 1 else ranked
        kept = [arm for arm in half if found[arm] >= HOPELESS * found[ranked[0]]]
        self.rungs.append(Rung(runs, found, kept))
        self.seen(self.rungs[-1])
        if whole:
            self.alive = kept
        return whole and len(kept) > 1

    def standing(self) -> dict[int, float]:
        """The chances of the arms that are in, by the last rung that is kept; the best first."""
        arms = [arm for arm in self._there() if self._begun(arm)]
        if not arms:
            return {}
        found = chances({arm: self.lab.tally(arm) for arm in arms}, self.reaches(arms, self.reserve()))
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def reaches(self, arms: Sequence[int], seconds: float) -> dict[int, float]:
        """`reach` of each arm in a last rung of so many seconds."""
        tallies = {arm: self.lab.tally(arm) for arm in range(self.count) if self._begun(arm)}
        std = spread(list(tallies.values()))
        return {arm: reach(tallies[arm], self.target, std, self._fitting(arm, seconds)) for arm in arms}

    def _fitting(self, arm: int, seconds: float) -> int:
        """Runs of an arm in so many seconds; 2 at least."""
        return max(2, int(seconds / self.lab.cost(arm)))

    def _last(self) -> None:
        """The last rung: shows of the leader, if need be after a safer arm, that it reaches the target."""
        lab, standing = self.lab, self.standing()
        if not standing:
            return
        leader = next(iter(standing))
        # What a stopped one has of it counts, so that it is divided as before.
        had = sum(lab.tally(arm, fresh=True).n * lab.cost(arm) for arm in range(self.count))
        seconds = max(0.0, lab.left()) + had
        safe = self._safer(leader, seconds)
        self.finalists = [leader] if safe is None else [safe, leader]
        for arm in self.finalists:
            part = SAFE * seconds if arm == safe else seconds
            self.planned[arm] = int(part / lab.cost(arm))
            lab.train({arm: self.planned[arm]}, fresh=True)
            seconds -= lab.tally(arm, fresh=True).n * lab.cost(arm)
            bound = lab.bound(arm)
            if arm in lab.dropped or bound is None or bound < self.target:
                return
            self.claimed = arm

    def _safer(self, leader: int, seconds: float) -> int | None:
        """The arm that is tested before the leader: slower, and surer by 0.1; the fastest that is sure, else
        the surest. None where the leader is sure itself, or nothing is surer.
        """
        lab = self.lab
        alone = self.reaches([leader], seconds)[leader]
        slower = [
            arm
            for arm in range(self.count)
            if arm not in lab.dropped
            and self._begun(arm)
            and lab.tally(arm).seconds > (1 + ALIKE) * lab.tally(leader).seconds
        ]
        if alone >= SURE or not slower:
            return None
        reaches = self.reaches(slower, SAFE * seconds)
        sure = [arm for arm in slower if reaches[arm] >= SURE]
        safe = (
            min(sure, key=lambda arm: lab.tally(arm).seconds)
            if sure
            else max(slower, key=reaches.__getitem__)
        )
        return safe if reaches[safe] > alone + 0.1 else None
