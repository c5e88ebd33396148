"""How the speed gate comes to its verdict, whatever measures for it: a GPU, or a simulation of one.

First a few repeats of every case. What looks slower, or faster, than is allowed is measured again, with as
many repeats as the baseline has, and only these fresh repeats are judged: a case is red where the lower bound
of its slowdown exceeds what is allowed. Had every case been measured again, Bonferroni over all of them
would bound the false alarms; measuring fewer again can only lower their number. That would hold for all
repeats pooled as well; but a disturbance of some minutes is in all of the first repeats, and in the fresh
ones it is not. The correction is over all cases, not over those measured again, because these were picked
by a baseline that may have been fast by chance.

The ceilings, a copy and a matrix product that are none of ours, stand for the machine: where they differ
from the baseline's by more than MACHINE, in the first repeats and in fresh ones, no time is judged. Within
that no time is corrected by them: cases follow them in unknown parts, so that in simulation the correction
by the nearer ceiling caught no more (59 % of slowdowns of 3 % instead of 64 %), and one that takes the
slower ceiling away from every case, which never blames a kernel for the machine, caught 36 %; false alarms
were rare in all.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from . import verdict
from .baseline import CEILINGS, Baseline

MACHINE = 1.02  # by so much a ceiling may differ
FIRST, REPEATS = 3, 16  # repeats before the first look; of a baseline, and of what is measured again

# States of an assessment that are red; others are ok, faster, new and unjudged.
RED = ("slow", "inaccurate", "wrong", "missing", "changed")

# Measures each of the names once: its seconds, or in words what is wrong with it.
Measure = Callable[[list[str]], dict[str, float | str]]


@dataclass(frozen=True)
class Criteria:
    """How often is measured, and the ratio of now to before that is allowed."""

    first: int = FIRST
    repeats: int = REPEATS
    allowed: float = 1.02


@dataclass
class Look:
    """Seconds of each name, repeat by repeat; of what went wrong, the words instead."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)


@dataclass
class Assessment:
    """What was found of a case. Seconds are medians; `ratio` is that of the medians, or of the geometric
    means where there is a `lower` bound, which only fresh repeats give.
    """

    name: str
    state: str = "ok"
    baseline: float | None = None
    now: float | None = None
    ratio: float | None = None
    lower: float | None = None
    again: int = 0  # repeats
    message: str = ""

    @property
    def red(self) -> bool:
        return self.state in RED


@dataclass
class Judgement:
    """The assessments, and in what the machine is not as it was, if so."""

    assessments: list[Assessment]
    machine: str = ""
    first: Look = field(default_factory=Look)
    again: Look = field(default_factory=Look)

    @property
    def red(self) -> list[Assessment]:
        return [assessment for assessment in self.assessments if assessment.red]


def measured(measure: Measure, names: Iterable[str], repeats: int) -> Look:
    """Some repeats of the names. What went wrong once is not measured again."""
    found, names = Look({name: [] for name in names}), list(names)
    for _ in range(repeats):
        for name, value in measure([name for name in names if name not in found.faults]).items():
            if isinstance(value, str):
                found.faults[name] = value
            else:
                found.seconds[name].append(value)
    return found


def judge(base: Baseline, calls: dict[str, dict], measure: Measure, criteria: Criteria) -> Judgement:
    """The verdict on the cases that there are now, name -> call, against those of the baseline."""
    assessments = {name: Assessment(name) for name in (*calls, *base.cases)}
    for name, assessment in assessments.items():
        if name not in calls:
            assessment.state, assessment.message = "missing", "in the baseline, and no longer there"
        elif name not in base.cases:
            assessment.state, assessment.message = "new", "not in the baseline; --update takes it in"
        elif changes := different(base.cases[name].call, calls[name]):
            assessment.state, assessment.message = "changed", f"another call: {changes}; --update takes it in"
        else:
            assessment.baseline = statistics.median(base.cases[name].seconds)
    compared = [name for name, assessment in assessments.items() if assessment.baseline]

    first = measured(measure, (*CEILINGS, *calls), criteria.first)
    result = Judgement(list(assessments.values()), first=first)
    for name in calls:
        note(assessments[name], first)
        if assessments[name].baseline and assessments[name].now:
            assessments[name].ratio = assessments[name].now / assessments[name].baseline
    sessions = [base.sessions[i].ceilings for i in sorted({base.cases[name].session for name in compared})]
    if moved(sessions, first):
        result.again = measured(measure, CEILINGS, criteria.repeats)
        result.machine = moved(sessions, result.again)
        if result.machine:
            return unjudged(result)

    odd = [
        name
        for name in compared
        if assessments[name].ratio and not 1 / criteria.allowed <= assessments[name].ratio <= criteria.allowed
    ]
    if not odd:
        return result
    result.again = measured(measure, (*CEILINGS, *odd), criteria.repeats)
    result.machine = moved(sessions, result.again)
    for name in odd:
        one = assessments[name]
        one.again = len(result.again.seconds[name])
        note(one, result.again)
        if one.state == "ok" and not result.machine:
            before, now = base.cases[name].seconds, result.again.seconds[name]
            weigh(one, before, now, len(compared), criteria.allowed)
    return unjudged(result) if result.machine else result


def unjudged(result: Judgement) -> Judgement:
    """With nothing said of the times of another machine."""
    for assessment in result.assessments:
        if assessment.state == "ok":
            assessment.state = "unjudged"
    return result


def weigh(one: Assessment, before: Iterable[float], now: list[float], family: int, allowed: float) -> None:
    """Assesses a case by fresh repeats, one of a `family`."""
    found = verdict.ratio(before, now, verdict.LEVEL / family)
    one.ratio, one.lower = found.value, found.lower
    if found.lower > allowed:
        one.state = "slow"
        one.message = f"slower by at least {found.lower - 1:.1%}, allowed is {allowed - 1:.1%}"
    elif found.upper < 1:
        one.state = "faster"
        one.message = f"faster: {found.upper:.3f} of its time at most; --update keeps that"


def note(one: Assessment, look: Look) -> None:
    """What a look says of a case by itself."""
    if one.name in look.faults:
        one.state, one.message = "wrong", look.faults[one.name]
    else:
        one.now = statistics.median(look.seconds[one.name])


def moved(sessions: list[dict[str, tuple[float, ...]]], look: Look) -> str:
    """In what the ceilings of a look differ from those of the sessions that made the baseline; "" if not."""
    if look.faults.keys() & set(CEILINGS):
        return "; ".join(f"{name}: {look.faults[name]}" for name in CEILINGS if name in look.faults)
    for ceilings in sessions:
        ratios = {name: verdict.look(ceilings[name], look.seconds[name]) for name in CEILINGS}
        if not all(1 / MACHINE <= ratio <= MACHINE for ratio in ratios.values()):
            times = " and ".join(f"{name} takes {ratio:.3f}" for name, ratio in ratios.items())
            return f"{times} of the baseline's time, {MACHINE - 1:.0%} is let pass"
    return ""


def different(before: dict, now: dict) -> str:
    """In what fields two calls, or two recipes, differ; "" if in none."""
    keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    return ", ".join(f"{key} was {before.get(key)}, is {now.get(key)}" for key in keys)
