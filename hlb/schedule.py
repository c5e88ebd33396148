"""Learning-rate schedules: one multiplier of the peak rate per training step.

A schedule is a function of (recipe, total steps, steps of the last epoch); add one here and name it in
SCHEDULES. It goes by steps, also where batch sizes differ: first epochs are then as long as the first, last
as the last.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from .recipes import Recipe

PerEpoch = tuple[int, ...]  # steps of each epoch as it is when whole, by Recipe.steps_by_epoch


def _bend(recipe: Recipe, steps: int, peak: float, end: float) -> np.ndarray:
    """What lr_curve adds to a straight line from 1 at step `peak` to final_lr at step `end`."""
    left = np.interp(np.arange(steps), [peak, end], [1.0, 0.0])
    return (1 - recipe.final_lr) * (left**recipe.lr_curve - left)


def one_cycle(recipe: Recipe, steps: int, per_epoch: int) -> np.ndarray:
    """~0 -> 1 over the warm-up, down to final_lr, there for the last final_epochs. float64 [steps].

    The knots are those of PyTorch's linear OneCycleLR: the peak is step warmup * steps - 1, the last step
    of the descent the one before the constant rest.
    """
    held = round(recipe.final_epochs * per_epoch)
    peak = max(recipe.warmup * steps - 1, 0)
    end = max(steps - held - 1, peak + 1e-9)
    line = np.interp(np.arange(steps), [0, peak, end], [0.0 if peak else 1.0, 1.0, recipe.final_lr])
    return line + _bend(recipe, steps, peak, end)


def linear(recipe: Recipe, steps: int, per_epoch: int) -> np.ndarray:
    """1 at step 0 (after an optional warm-up from initial_lr) down a straight line that meets final_lr where
    the last final_epochs begin, or would meet it at `steps`.
    """
    peak = recipe.warmup * steps
    end = max(steps - round(recipe.final_epochs * per_epoch), peak + 1e-9)
    start = recipe.initial_lr if peak else 1.0
    line = np.interp(np.arange(steps), [0, peak, end], [start, 1.0, recipe.final_lr])
    return line + _bend(recipe, steps, peak, end)


SCHEDULES = {"one_cycle": one_cycle, "linear": linear}


def multipliers(recipe: Recipe, steps: int, per_epoch: PerEpoch) -> np.ndarray:
    """The recipe's schedule for filters, linear layers and biases; float64 [steps]."""
    return SCHEDULES[recipe.schedule](recipe, steps, per_epoch[-1])


def batch_multipliers(recipe: Recipe, steps: int, per_epoch: PerEpoch) -> np.ndarray:
    """What the filters' rate is multiplied by for a step's batch size, (size / first size) ** lr_scaling;
    float64 [steps].
    """
    sizes = np.repeat([recipe.batch(epoch) for epoch in range(len(per_epoch))], per_epoch)[:steps]
    return (sizes / sizes[0]) ** recipe.lr_scaling


def muon_momenta(recipe: Recipe, steps: int, per_epoch: PerEpoch) -> np.ndarray:
    """Muon's momentum in each step: from muon_momentum_start in a straight line to muon_momentum, which it
    has from muon_momentum_warmup on. float64 [steps].
    """
    warm = recipe.muon_momentum_warmup * per_epoch[0]
    return np.interp(np.arange(steps), [0, warm], [recipe.muon_momentum_start, recipe.muon_momentum])


def stem_steps(recipe: Recipe, steps: int, per_epoch: PerEpoch) -> int:
    """The number of first steps in which the stem's bias trains (0 where the stem has none)."""
    return 0 if recipe.stem_width else min(steps, math.ceil(recipe.whiten_bias_epochs * per_epoch[0]))


def stem_multipliers(recipe: Recipe, steps: int, per_epoch: PerEpoch) -> np.ndarray:
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
