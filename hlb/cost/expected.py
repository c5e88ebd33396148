"""The expected time of a run: the measured times of what it launches, added up.

    expectation = expected.of(recipe, "tuned", chips.here())
    expectation.seconds, expectation.shares["measured"]

Each pass (passes.py) takes what is known of it on this chip, else what arithmetic gives (`Pass.seconds`):

    measured    a convolution's pass of these very shapes (kernels/convolution/measured.json), or a kernel
                whose times were added up over a run that launched it at these shapes (times.json, by
                bench/expect/times.py)
    corrected   a pass of cuDNN's whose measurement was put right, as measured.json says
    scaled      the same at other shapes, by work or bytes
    modelled    arithmetic alone, or the time of a kernel as it was before it was rewritten, put in proportion

Kernels follow one another without a gap, as in the captured runs that were profiled; `prepare`, where the
device waits for the host, takes what it took there. It is an expectation, and no measurement of this run.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path

import kernels
from kernels.base.chips import Chip
from kernels.convolution import model, selection
from kernels.convolution.tiling import Problem

from ..recipes import Recipe
from . import floor
from .passes import Pass

FILE = Path(__file__).with_name("times.json")
BETWEEN = "between the ops"
STATISTICS = "statistics that cuDNN was timed with"
KINDS = ("kernels", "references")  # what most of a profiled run's ops were
HOW = ("measured", "corrected", "scaled", "modelled")


@dataclass(frozen=True)
class Phase:
    """A part of a run: seconds of all its steps, by how they are known."""

    name: str
    steps: int
    by: Counter
    convolutions: float = 0.0  # seconds of it
    least: float = 0.0  # seconds that all else takes at least

    @property
    def seconds(self) -> float:
        return self.by.total()


@dataclass(frozen=True)
class Expectation:
    """The phases of a run on a chip."""

    chip: str
    phases: tuple[Phase, ...]

    @property
    def seconds(self) -> float:
        return sum(phase.seconds for phase in self.phases)

    @property
    def shares(self) -> dict[str, float]:
        """The share of each of HOW in the seconds."""
        total = sum((phase.by for phase in self.phases), Counter())
        return {how: total[how] / self.seconds for how in HOW}

    @property
    def convolutions(self) -> float:
        """Seconds of all convolutions."""
        return sum(phase.convolutions for phase in self.phases)

    @property
    def reachable(self) -> float:
        """Seconds of the run if all but its convolutions took the least that it can."""
        return self.convolutions + sum(phase.least for phase in self.phases)

    @property
    def measured_share(self) -> float:
        return self.shares["measured"]


# Fields that the shapes of a step follow from, beside the sizes of its images.
SHAPES = ("batch_size", "base_depth", "stem_width", "group_widths", "groups", "activation")


def of(recipe: Recipe, choice: str, chip: Chip, parts: list[floor.Phase] | None = None) -> Expectation:
    """What a run in float16 with a choice of kernels is expected to take; `parts` are those of
    `floor.phases`, if they are there. Inside `selection.as_measured()` with the kernels as they were then.
    Errors as `kernels.choose`.
    """
    rates = _Rates(recipe, choice, chip)
    phases = []
    for phase in floor.phases(recipe, choice) if parts is None else parts:
        by: Counter = Counter()
        convolutions = least = 0.0
        if phase.name == "prepare" and rates.prepare:
            by["scaled"] = rates.prepare
        else:
            for times, passes in phase.work:
                for one in passes:
                    seconds, how = _seconds(one, rates, chip)
                    if phase.name == "evaluation" and how == "measured" and not one.problem:
                        how = "scaled"  # no such batch was profiled
                    by[how] += times * seconds
                    convolutions += times * seconds if one.problem else 0.0
                    least += 0.0 if one.problem else times * one.seconds(chip)
        phases.append(Phase(phase.name, phase.steps, by, convolutions, least))
    return Expectation(chip.name, tuple(phases))


def _seconds(one: Pass, rates: _Rates, chip: Chip) -> tuple[float, str]:
    """Seconds of a pass, and how they are known."""
    if one.problem is not None:
        estimate = selection.estimate(one.problem, chip)
        if one.form != "cuDNN":
            apart = estimate.config.order == "windows" and one.problem.kind == "forward"
            return estimate.seconds - (model.apart(one.problem, chip) if apart else 0.0), estimate.how
        if estimate.cudnn is not None:
            # A forward pass of cuDNN was timed with the statistics that it needs; here they are another pass.
            beyond = rates.statistics(one.problem) if one.problem.kind == "forward" else 0.0
            estimate = estimate.replaced or estimate  # which of cuDNN says the same
            how = "corrected" if estimate.corrected and estimate.how == "measured" else estimate.how
            return estimate.cudnn - beyond, how
    return rates.of(one) or (one.seconds(chip), "modelled")


class _Rates:
    """Measured times of a recipe's passes on a chip: of a run with the same shapes, else of one with the same
    activation, else of any run.
    """

    def __init__(self, recipe: Recipe, choice: str, chip: Chip):
        there = _times().get(chip.name, {"recipes": {}, "prepare": {}})

        def likeness(run: dict) -> tuple:
            same = [_items(run["shapes"][name]) == _items(getattr(recipe, name)) for name in SHAPES]
            sizes = set(recipe.sizes) <= set(run["shapes"]["sizes"])
            return all(same) and sizes, run["shapes"]["activation"] == recipe.activation

        run = max(there["recipes"].values(), key=likeness, default={"passes": {}})
        self.rates, self.exact = run["passes"], bool(run["passes"]) and likeness(run)[0]
        chosen = {op: KINDS[name == "reference"] for op, name in kernels.choose(choice).items()}
        self.kind = chosen["conv_bn_act"]
        self.eight = {f"group{i}" for i, name in enumerate(recipe.conv_dtypes, 1) if name != "auto"}
        self.prepare = there["prepare"].get(chosen["patch_covariance"])

    def of(self, one: Pass) -> tuple[float, str] | None:
        """(seconds, how they are known)"""
        rate = self.rates.get(f"{one.name} of {self.kind}" if one.name == BETWEEN else one.name)
        if rate is None:
            return None
        per = "launches" if one.form == "PyTorch" or not rate["bytes"] else "bytes"
        times = getattr(one, per) / rate[per]
        if "factor" in rate and not selection.measured_only():
            return times * rate["seconds"] * rate["factor"], "modelled"
        seconds = rate["seconds"] + rate.get("beside", 0.0)
        same = self.exact and one.layer.partition(".")[0] not in self.eight  # rates are of 16 bits
        return times * seconds, "measured" if same else "scaled"

    def statistics(self, forward: Problem) -> float:
        """Seconds that cuDNN's forward pass was timed with besides: of the pass over z that makes the
        statistics and, where it is pooled, u and argmax.
        """
        rate = self.rates.get(STATISTICS, {"seconds": 0.0, "bytes": 1})
        values = forward.n * forward.o
        moved = values * forward.h * forward.w * forward.dtype.itemsize
        if forward.pool:
            moved += values * prod(forward.output) * (forward.dtype.itemsize + 1)
        return rate["seconds"] * moved / rate["bytes"]


def _items(value) -> tuple:
    return tuple(value) if isinstance(value, tuple | list) else (value,)


@cache
def _times() -> dict:
    return json.loads(FILE.read_text(encoding="utf-8"))


def summary(expectation: Expectation) -> dict:
    """As `hlb recipes --json` has it."""
    return {
        "chip": expectation.chip,
        "expected_seconds": expectation.seconds,
        "measured_share": expectation.measured_share,
        "shares": expectation.shares,
        "phases": [
            {"phase": phase.name, "steps": phase.steps, "seconds": phase.seconds, **phase.by}
            for phase in expectation.phases
        ],
    }
