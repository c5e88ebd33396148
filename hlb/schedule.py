"""Learning-rate schedules: one multiplier of the peak rate per training step.

A schedule is a function of (recipe, total steps, steps per epoch); add one here and name it in SCHEDULES.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from .recipes import Recipe


def one_cycle(recipe: Recipe, steps: int, per_epoch: int) -> np.ndarray:
    """~0 -> 1 over the warm-up, down to final_lr, there for the last final_epochs. float64 [steps].

    The knots are those of PyTorch's linear OneCycleLR: the peak is step warmup * steps - 1, the last step
    of the descent the one before the constant rest.
    """
    held = round(recipe.final_epochs * per_epoch)
    peak, last = max(recipe.warmup * steps - 1, 0), max(steps - held - 1, 0)
    return np.interp(
        np.arange(steps), [0, peak, max(last, peak + 1e-9)], [0.0 if peak else 1.0, 1.0, recipe.final_lr]
    )


def linear(recipe: Recipe, steps: int, per_epoch: int) -> np.ndarray:
    """1 at step 0 (after an optional warm-up from initial_lr) down a straight line that meets final_lr where
    the last final_epochs begin, or would meet it at `steps`.
    """
    peak = recipe.warmup * steps
    last = max(steps - round(recipe.final_epochs * per_epoch), peak + 1e-9)
    first = recipe.initial_lr if peak else 1.0
    return np.interp(np.arange(steps), [0, peak, last], [first, 1.0, recipe.final_lr])


SCHEDULES = {"one_cycle": one_cycle, "linear": linear}


def multipliers(recipe: Recipe, steps: int, per_epoch: int) -> np.ndarray:
    """The recipe's schedule for filters, linear layers and biases; float64 [steps]."""
    return SCHEDULES[recipe.schedule](recipe, steps, per_epoch)


def stem_steps(recipe: Recipe, steps: int, per_epoch: int) -> int:
    """The number of first steps in which the stem's bias trains (0 where the stem has none)."""
    return 0 if recipe.stem_width else min(steps, math.ceil(recipe.whiten_bias_epochs * per_epoch))


def stem_multipliers(recipe: Recipe, steps: int, per_epoch: int) -> np.ndarray:
    """The stem bias's own schedule: 1 at step 0, linearly to 0 at `stem_steps`, where it freezes. float64
    [steps].
    """
    trained = stem_steps(recipe, steps, per_epoch)
    return np.clip(1 - np.arange(steps) / max(trained, 1), 0, None) * (trained > 0)


def lookahead_decays(steps: int, decay: float, every: int) -> np.ndarray:
    """Lookahead's decay at each step, decay**every * (step / steps)**3: the slow weights slow down. float64
    [steps + 1].
    """
    return decay**every * (np.arange(steps + 1) / steps) ** 3
