"""Weight averaging: an exponential moving average beside the run, or one that the run follows (lookahead).

Both average everything that makes the network: the trained values (master weights where there are) and the
running statistics. A table on the device says what each step averages; the optimizer's ops average the values
in the pass that updates them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kernels.sgd import average

from . import schedule

if TYPE_CHECKING:
    from .networks import Network
    from .optimizer import Optimizer
    from .recipes import Recipe


def table(recipe: Recipe, steps: int, per_epoch: schedule.PerEpoch) -> np.ndarray:
    """(mix, take) of every step, as kernels/sgd.py defines them; float64 [steps, 2].

    `ema`: slow <- decay * slow + (1 - decay) * value on every n-th step of the last epochs, from a copy on.
    `lookahead` (Zhang et al., arXiv 1907.08610): the same from the first step on with a growing decay, and
    value <- slow each time; after the last step value <- slow. `tail`: lookahead of a constant decay, over
    the last epochs, ending in the last step.
    """
    number = np.arange(1, steps + 1)
    tail = number > steps - round(recipe.averaging_epochs * per_epoch[-1])
    due = number % recipe.averaging_every == 0
    mix, take = np.zeros(steps), np.zeros(steps)
    if recipe.averaging == "ema":
        due &= tail
        mix[due] = 1 - recipe.averaging_decay**recipe.averaging_every
        mix[np.flatnonzero(due)[:1]] = 1
    elif recipe.averaging == "tail":
        due = (steps - number) % recipe.averaging_every == 0
        due &= tail
        mix[due] = 1 - recipe.averaging_decay**recipe.averaging_every
        mix[np.flatnonzero(due)[:1]] = take[due] = 1
    elif recipe.averaging == "lookahead":
        decays = schedule.lookahead_decays(steps, recipe.averaging_decay, recipe.averaging_every)
        mix[due] = 1 - decays[1:][due]
        take[due] = take[-1] = 1
    return np.stack((mix, take), axis=1)


class Averages(NamedTuple):
    """What an update averages: the slow values of each arena, as the present step's row of the table says."""

    slow: list[Tensor]  # flat, one of each arena
    table: Tensor  # [steps, 2]


class Averaging:
    """The average of one network's weights: `ema`, whose slow weights decide the final accuracy; `lookahead`
    and `tail`, which leave the network itself averaged; `none`.
    """

    def __init__(self, network: Network, optimizer: Optimizer, steps: int, per_epoch: schedule.PerEpoch):
        self.kind = network.recipe.averaging
        self.network, self.optimizer = network, optimizer
        self.table, self.slow, self.adopted = None, None, False
        if self.kind != "none":
            rows = table(network.recipe, steps, per_epoch)
            self.table = torch.tensor(rows, dtype=torch.float32, device=network.running.device)
            self.slow = [torch.zeros_like(fast) for fast in self._fast()]

    def _fast(self) -> list[Tensor]:
        return [*(arena.value for arena in self.optimizer.arenas), self.network.running]

    def reset(self) -> None:
        """Forgets the average; lookahead starts from the network as it now is."""
        self.adopted = False
        if self.kind == "lookahead":
            torch._foreach_copy_(self.slow, self._fast())

    @property
    def averages(self) -> Averages:
        """For the optimizer, which averages the weights in the pass that updates them."""
        return Averages(self.slow[:-1], self.table)

    @torch.no_grad()
    def average_running(self) -> None:
        """Averages the running statistics, before the optimizer goes on to the next step."""
        average(self.network.running, self.slow[-1], self.table, self.optimizer.step_index)

    @property
    def active(self) -> bool:
        """Whether there is an average that differs from the network. Waits for the device."""
        if self.kind != "ema" or self.adopted:
            return False
        return bool(self.table[: int(self.optimizer.step_index), 0].any())

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the network holds the averaged weights (where there is an average); afterwards its own
        again.
        """
        if not self.active:
            yield
            return
        own = [fast.clone() for fast in self._fast()]
        self._load(self.slow)
        try:
            yield
        finally:
            self._load(own)

    def adopt(self) -> None:
        """The network takes the averaged weights for good, where there is an average."""
        if self.active:
            self._load(self.slow)
            self.adopted = True

    @torch.no_grad()
    def _load(self, values: list[Tensor]) -> None:
        for arena, flat in zip(self.optimizer.arenas, values):
            arena.load(flat)
        self.network.running.copy_(values[-1])
