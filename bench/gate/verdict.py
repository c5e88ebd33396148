"""The statistics of the speed gate: from the seconds of some repeats to bounds of a slowdown.

A repeat is every case once, in a process of its own, since a process leaves its mark (addresses, clocks) on
all that is timed in it: processes, not samples, are what is averaged over (Kalibera and Tuma, Precise
Regression Benchmarking with Random Effects, 2006). Times are compared as logarithms, so that a difference
is a ratio. An eighth of the repeats is trimmed at each end, which leaves a disturbed repeat without weight,
and the bound is that of Yuen (Biometrika 61:1, 1974): Welch's for trimmed means. The level of a bound is
LEVEL over the number of all cases of the gate, by Bonferroni.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from hlb.runs.statistics import quantile

LEVEL = 0.005  # chance of a false alarm anywhere among the kernels, and as much again among the recipes
POWER = 0.8  # with which a loss of accuracy counts as one that could have been seen
LEAST = 4  # repeats that a bound takes


@dataclass(frozen=True)
class Estimate:
    """A trimmed mean, its squared standard error, and the error's degrees of freedom."""

    mean: float
    square: float
    degrees: int


@dataclass(frozen=True)
class Ratio:
    """Time now over time in the baseline, with one-sided bounds, each at the level asked for."""

    value: float
    lower: float
    upper: float


@dataclass(frozen=True)
class AccuracyChange:
    """Mean accuracy now less the baseline's, its one-sided upper bound, and the loss that as many runs would
    have shown with probability POWER. Fractions.
    """

    value: float
    upper: float
    visible: float


def estimate(values: Sequence[float], trim: bool = True) -> Estimate:
    """The estimate from two values or more; `trim` leaves out an eighth of them at each end."""
    n, ordered = len(values), sorted(values)
    cut = n // 8 if trim else 0
    kept = n - 2 * cut
    middle = ordered[cut : n - cut]
    winsorised = [middle[0]] * cut + middle + [middle[-1]] * cut
    centre = math.fsum(winsorised) / n
    square = math.fsum((value - centre) ** 2 for value in winsorised) / (kept * (kept - 1))
    return Estimate(math.fsum(middle) / kept, square, kept - 1)


def degrees(a: Estimate, b: Estimate) -> float:
    """Degrees of freedom of a difference of two means (Welch, Satterthwaite)."""
    both = a.square + b.square
    return both**2 / (a.square**2 / a.degrees + b.square**2 / b.degrees)


def margin(a: Estimate, b: Estimate, level: float) -> float:
    """What a difference of two means must exceed to be above 0 at this level."""
    if a.square + b.square == 0:  # a clock too coarse to show a difference
        return 0.0
    return quantile(1 - level, degrees(a, b)) * math.sqrt(a.square + b.square)


def ratio(baseline: Sequence[float], now: Sequence[float], level: float) -> Ratio:
    """The ratio of the geometric means of seconds per repeat, LEAST or more of each."""
    before, after = (estimate([math.log(value) for value in values]) for values in (baseline, now))
    difference, reach = after.mean - before.mean, margin(before, after, level)
    return Ratio(*(math.exp(value) for value in (difference, difference - reach, difference + reach)))


def look(baseline: Sequence[float], now: Sequence[float]) -> float:
    """The ratio of the medians: a first look at a few repeats."""
    return statistics.median(now) / statistics.median(baseline)


def change(baseline: Sequence[float], now: Sequence[float], level: float, tolerated: float) -> AccuracyChange:
    """The change of accuracy from single runs, two or more of each; a loss of `tolerated` is tolerated."""
    before, after = estimate(baseline, trim=False), estimate(now, trim=False)
    difference, reach = after.mean - before.mean, margin(before, after, level)
    visible = tolerated + reach
    if reach:
        visible += quantile(POWER, degrees(before, after)) * math.sqrt(before.square + after.square)
    return AccuracyChange(difference, difference + reach, visible)


def visible(baseline: Sequence[float], allowed: float, level: float) -> float:
    """The ratio that a gate as noisy as this baseline, of as many repeats, catches about 9 times out of 10.
    By the error alone it would be 19 out of 20, but a bound that is estimated varies too.
    """
    there = estimate([math.log(value) for value in baseline])
    seen = quantile(0.95, 2 * there.degrees) * math.sqrt(2 * there.square)
    return allowed * math.exp(margin(there, there, level) + seen)
