"""The model of a convolution's passes, fitted to what was measured: `python -m bench tune --fit FILE`.

The file is one that `python -m bench tune --json` writes (conversion.py says what it holds); "serial" in it
names the kinds of passes, such as "dgrad pool", in whose kernels each product was waited for before the next.
Sought are model.Constants with the least mean square of log(measured / modelled) over all
configurations, by steps in one of them after the other, from those that are in use.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from math import log
from pathlib import Path
from statistics import fmean

from kernels.base.chips import CHIPS, Chip
from kernels.convolution import model
from kernels.convolution.model import FITTED, Constants
from kernels.convolution.selection import parsed, problem_of
from kernels.convolution.tiling import Config, Problem

FIRST, LAST = 0.2, 0.01  # steps, as parts of a constant
DIGITS = 3


@dataclass(frozen=True)
class Pass:
    """A measured pass and the seconds of its configurations."""

    problem: Problem
    seconds: dict[Config, float]
    serial: bool


def read(path: Path) -> tuple[Chip, list[Pass]]:
    """The chip of a file and its passes. ValueError, naming the file, where it has none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        chip = next(chip for chip in CHIPS if chip.name == content["chip"])
        passes = []
        for name, entry in content["found"].items():
            problem = problem_of(entry.get("key", name))
            kind = problem.kind + " pool" * problem.pool
            seconds = {parsed(text): float(value) for text, value in entry["seconds"].items()}
            passes.append(Pass(problem, seconds, kind in content.get("serial", ())))
        return chip, passes
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, StopIteration):
        raise ValueError(f"{path}: no measured passes of a chip that is known") from None


def errors(passes: list[Pass], chip: Chip, constants: Constants = FITTED) -> Iterator[float]:
    """log(measured / modelled) of each configuration."""
    for one in passes:
        for config, seconds in one.seconds.items():
            yield log(seconds / model.seconds(one.problem, config, chip, constants, one.serial))


def described(errors: list[float]) -> str:
    """27 % off in the mean, 3.1 times at worst"""
    worst = max(map(abs, errors))
    return f"{100 * fmean(map(abs, errors)):.1f} % off in the mean, {100 * worst:.0f} % at worst"


def squares(passes: list[Pass], chip: Chip, constants: Constants) -> float:
    """The mean square of the errors."""
    return fmean(error**2 for error in errors(passes, chip, constants))


def fit(passes: list[Pass], chip: Chip, start: Constants = FITTED) -> Constants:
    """Those of the least square that steps from others lead to."""
    best, step = start, FIRST
    least = squares(passes, chip, best)
    while step >= LAST:
        before = least
        for name in asdict(best):
            for factor in (1 + step, 1 / (1 + step)):
                tried = replace(best, **{name: float(f"{getattr(best, name) * factor:.{DIGITS}g}")})
                if (square := squares(passes, chip, tried)) < least:
                    best, least = tried, square
        if least > 0.9999 * before:
            step /= 2
    return best


def run(path: Path) -> int:
    """Prints how far the model is off now, and the constants with which it would be least. ValueError where
    the file cannot be read.
    """
    chip, passes = read(path)
    print(f"{len(passes)} passes, {sum(len(one.seconds) for one in passes)} configurations on {chip.name}")
    print(f"now: {described(list(errors(passes, chip)))}")
    best = fit(passes, chip)
    print(f"fitted: {described(list(errors(passes, chip, best)))}")
    for name, value in asdict(best).items():
        print(f"  {name:8} {value:.{DIGITS}g}")
    return 0
