"""Weight averaging: an exponential moving average beside the run, or lookahead, which the run follows.

Both average everything that makes the network: the trained values (master weights where there are) and the
running statistics. `Averaging` is told of every step and acts on the recipe's steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from . import schedule


class Averaging:
    """`ema`: slow <- decay * slow + (1 - decay) * fast on every n-th step of the last epochs, starting as a
    copy; the final accuracy is that of the slow weights. `lookahead` (Zhang et al., arXiv 1907.08610): the
    same from the first step on with a growing decay, and fast <- slow each time; after the last step fast
    <- slow. `none`: nothing.
    """

    def __init__(self, network, optimizer, steps: int, per_epoch: int):
        recipe = network.recipe
        self.kind, self.every, self.steps = recipe.averaging, recipe.averaging_every, steps
        self.network, self.optimizer = network, optimizer
        self.first = steps - round(recipe.averaging_epochs * per_epoch) if self.kind == "ema" else 0
        self.decay = recipe.averaging_decay**self.every
        if self.kind == "lookahead":
            self.decays = schedule.lookahead_decays(steps, recipe.averaging_decay, self.every)
        self.slow: list[Tensor] | None = None

    def _fast(self) -> list[Tensor]:
        return [*(group.value for group in self.optimizer.groups), self.network.running]

    def reset(self) -> None:
        """Forgets the average; lookahead starts from the network as it now is."""
        self.slow = [fast.clone() for fast in self._fast()] if self.kind == "lookahead" else None

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """To be called after every training step, `step` counted from 1."""
        if self.kind == "none":
            return
        due = step > self.first and step % self.every == 0
        if self.kind == "ema" and due:
            if self.slow is None:
                self.slow = [fast.clone() for fast in self._fast()]
            else:
                torch._foreach_lerp_(self.slow, self._fast(), 1 - self.decay)
        elif self.kind == "lookahead":
            if due:
                torch._foreach_lerp_(self.slow, self._fast(), 1 - self.decays[step])
            if due or step == self.steps:
                self._load(self.slow)

    @property
    def active(self) -> bool:
        """Whether there is an average that differs from the network."""
        return self.kind == "ema" and self.slow is not None

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
            self.slow = None

    @torch.no_grad()
    def _load(self, values: list[Tensor]) -> None:
        torch._foreach_copy_(self._fast(), values)
        for group in self.optimizer.groups:
            group.write()
