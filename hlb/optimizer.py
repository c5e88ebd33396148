"""The optimizer: parameters in arenas, each one flat tensor, and one table of learning rates.

`Arena` lays all parameters of one dtype out as views of one flat tensor and their gradients as views of
another, so that an update is one op over the arena. The optimizer reads the rates of a step from a table on
the device by a step counter on the device: nothing in a step comes from the host.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from . import schedule

KINDS = ("filters", "linear", "biases", "stem")  # of parameters, in the order of the rate table's columns
_ALIGN = 64  # elements: every parameter starts on a 128-byte boundary or better


class Arena:
    """Parameters of one dtype, those of a kind side by side.

    `compute` and `grad` are flat, in the parameters' dtype; `value` is what the optimizer updates: float32
    master weights, or `compute` itself. 4-D parameters lie channels-last where `channels_last`; where not,
    `numbers` has each element's place in that order. `spans` says from where to where a kind's elements lie.
    """

    def __init__(self, members: dict[str, list[nn.Parameter]], *, master: bool, channels_last: bool):
        self.params = [p for params in members.values() for p in params]
        dtype, device = self.params[0].dtype, self.params[0].device
        starts = np.cumsum([0, *(-(-p.numel() // _ALIGN) * _ALIGN for p in self.params)]).tolist()
        self.offsets = dict(zip(self.params, starts))
        self.spans, seen = {}, 0
        for kind, params in members.items():
            self.spans[kind] = starts[seen], starts[seen := seen + len(params)]
        self.compute = torch.zeros(starts[-1], dtype=dtype, device=device)
        self.grad = torch.zeros_like(self.compute)
        self.value = self.compute.float() if master and dtype.itemsize == 2 else self.compute
        self.buffer = torch.zeros_like(self.value)
        self.numbers = None if channels_last else torch.arange(starts[-1], device=device)
        for p, start in zip(self.params, starts):
            turned = p.dim() == 4 and channels_last
            shape = (p.shape[0], *p.shape[2:], p.shape[1]) if turned else p.shape
            views = (flat[start : start + p.numel()].view(shape) for flat in (self.compute, self.grad))
            p.data, p.grad = (v.permute(0, 3, 1, 2) if turned else v for v in views)
            if p.dim() == 4 and not channels_last:
                o, c, h, w = p.shape
                numbers = self.numbers[start : start + p.numel()]
                numbers.copy_(numbers.view(o, h, w, c).permute(0, 3, 1, 2).flatten())

    @property
    def copy(self) -> Tensor | None:
        """The copy of master weights that the network computes with, where there is one."""
        return None if self.value is self.compute else self.compute

    def reset(self) -> None:
        """Takes the parameters as they now are as the start; clears gradient and momentum."""
        self.grad.zero_()
        self.buffer.zero_()
        if self.copy is not None:
            self.value.copy_(self.compute)

    def load(self, values: Tensor) -> None:
        """The network goes on with these values."""
        self.value.copy_(values)
        if self.copy is not None:
            self.compute.copy_(values)


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _kind(name: str) -> str:
    """The kind of the parameter of this name."""
    if name == "stem.bias":
        return "stem"
    if "bias" in name:
        return "biases"
    return "filters" if name.endswith("filters") else "linear"


class Optimizer:
    """SGD with Nesterov momentum, and Muon for the 3x3 filters where the recipe says so.

    Kinds: filters (3x3), linear (head, squeeze-and-excite, projection), biases, and the stem's bias, which
    has a schedule of its own and freezes where that reaches 0.
    """

    def __init__(self, network, steps: int, per_epoch: int, *, channels_last: bool):
        recipe = network.recipe
        trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
        members = {kind: [p for name, p in trained.items() if _kind(name) == kind] for kind in KINDS}
        self.names = [kind for kind in KINDS if members[kind]]
        dtypes = dict.fromkeys(members[kind][0].dtype for kind in self.names)
        self.arenas = [
            Arena(
                {kind: members[kind] for kind in self.names if members[kind][0].dtype == dtype},
                master=recipe.master_weights == "on",
                channels_last=channels_last,
            )
            for dtype in dtypes
        ]

        peaks = dict(zip(KINDS, (recipe.lr, recipe.linear_lr, recipe.bias_lr, recipe.bias_lr)))
        shapes = dict.fromkeys(KINDS, schedule.multipliers(recipe, steps, per_epoch))
        shapes["stem"] = schedule.stem_multipliers(recipe, steps, per_epoch)
        table = np.stack([peaks[kind] * shapes[kind] for kind in self.names], axis=1)
        device = network.running.device
        self.rates = torch.tensor(table, dtype=torch.float32, device=device)  # [steps, kinds]
        self.step_index = torch.zeros(1, dtype=torch.int64, device=device)

        self.recipe, self.ops = recipe, network.ops
        by_muon = {"filters"} if recipe.optimizer == "muon" else set()
        self.segments = [
            tuple(
                (*span, self.names.index(kind), recipe.weight_decay / peaks[kind])
                for kind, span in arena.spans.items()
                if kind not in by_muon
            )
            for arena in self.arenas
        ]
        self.starts = self._starts(network)
        self.matrices = [
            tuple(
                (arena.offsets[p], p.shape[0], p[0].numel())
                for kind in by_muon & arena.spans.keys()
                for p in members[kind]
            )
            for arena in self.arenas
        ]

    def _starts(self, network) -> list[tuple[Arena, Tensor, Tensor]]:
        """Per arena the least value of each element's initial distribution, and its width: what the network's
        own initialisation gives when every draw is at its lower end, and at its upper.
        """
        ends = []
        for sign in (-1, 1):
            network.reset(lambda tensor, bound, sign=sign: tensor.fill_(sign * bound))
            ends.append([arena.compute.to(_wide(arena.compute), copy=True) for arena in self.arenas])
        return [(arena, low, high - low) for arena, low, high in zip(self.arenas, *ends)]

    @torch.no_grad()
    def draw(self, seed: Tensor) -> None:
        """The network's initial weights, drawn by Philox from `seed` (int64 scalar), in a few launches:
        low + width * uniform over each arena, whose draws are numbered in channels-last order.
        """
        for i, (arena, low, width) in enumerate(self.starts):
            uniform = self.ops.uniform(seed, i, len(low))
            uniform = uniform if arena.numbers is None else uniform[arena.numbers]
            arena.load(torch.addcmul(low, width, uniform))

    def reset(self) -> None:
        """Back to step 0, from the network's present weights."""
        self.step_index.zero_()
        for arena in self.arenas:
            arena.reset()

    @torch.no_grad()
    def step(self, slow: list[Tensor] | None = None, averages: Tensor | None = None) -> None:
        """One update from the gradients, which are then zero again. `slow` holds a flat tensor for each
        arena, averaged as the step's row of `averages` says (kernels/sgd.py).
        """
        recipe = self.recipe
        for i, (arena, segments, matrices) in enumerate(zip(self.arenas, self.segments, self.matrices)):
            shared = (arena.value, arena.grad, arena.buffer, self.rates, self.step_index)
            average = {"compute": arena.copy, "slow": slow and slow[i], "averages": averages}
            if matrices:
                column = self.names.index("filters")
                settings = {"momentum": recipe.muon_momentum, "steps": recipe.muon_steps}
                self.ops.muon(*shared, matrices, column=column, **settings, **average)
            if segments:
                self.ops.sgd(*shared, segments, momentum=recipe.momentum, **average)
        self.step_index += 1
