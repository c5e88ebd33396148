"""Initial weights: each element is uniform between a lowest and a highest value of its own.

    weight = low + (high - low) * uniform

`Network.reset` says how a module is initialised, given a function that draws. Called with one that fills a
tensor with the lower end of its range it gives `low`, and with the upper end `high`; elements that are not
random (biases of batch norm, identity filters) are the same in both. So a run's weights are drawn on the
device in a few launches, from its seed alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .networks import Network
    from .optimizer import Arena


class InitialWeights:
    """The distribution of a network's initial weights, arena by arena."""

    def __init__(self, network: Network, arenas: list[Arena]):
        self.ops, self.arenas = network.ops, arenas
        self.low, high = self._ends(network, -1), self._ends(network, 1)
        self.width = [top - bottom for top, bottom in zip(high, self.low)]

    def _ends(self, network: Network, sign: int) -> list[Tensor]:
        """The flat weights, float32 or wider, when every draw is the lower (-1) or upper (1) end of its
        range.
        """
        network.reset(lambda tensor, bound: tensor.fill_(sign * bound))
        flat = [arena.compute for arena in self.arenas]
        return [weights.to(torch.promote_types(weights.dtype, torch.float32), copy=True) for weights in flat]

    @torch.no_grad()
    def draw(self, seed: Tensor) -> None:
        """Sets the network's weights to those of `seed`, an int64 scalar on the device. Philox draws are
        numbered in channels-last order, so that both layouts get the same weights.
        """
        for i, (arena, low, width) in enumerate(zip(self.arenas, self.low, self.width)):
            uniform = self.ops.uniform(seed, i, len(low))
            uniform = uniform if arena.numbers is None else uniform[arena.numbers]
            arena.load(torch.addcmul(low, width, uniform))
