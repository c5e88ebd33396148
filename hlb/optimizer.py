"""The optimizer: parameters in groups, each one flat tensor, and one table of learning rates.

`Group` lays a set of parameters out as views of one flat tensor and their gradients as views of another, so
that an update is one op over the group. The optimizer reads the rates of a step from a table on the device
by a step counter on the device: nothing in a step comes from the host.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from . import schedule

KINDS = ("filters", "linear", "biases", "stem")  # of groups, in the order of the rate table's columns
_ALIGN = 64  # elements: every parameter starts on a 128-byte boundary or better


class Group:
    """Parameters that are updated alike.

    `compute` and `grad` are flat, in the parameters' dtype; `value` is what the optimizer updates: float32
    master weights, or `compute` itself. 4-D parameters lie channels-last where `channels_last`.
    """

    def __init__(self, params: list[nn.Parameter], *, master: bool, channels_last: bool):
        dtype, device = params[0].dtype, params[0].device
        starts = np.cumsum([0, *(-(-p.numel() // _ALIGN) * _ALIGN for p in params)])
        self.params = params
        self.compute = torch.zeros(int(starts[-1]), dtype=dtype, device=device)
        self.grad = torch.zeros_like(self.compute)
        self.value = self.compute.float() if master and dtype.itemsize == 2 else self.compute
        self.buffer = torch.zeros_like(self.value)
        self.slices = [slice(int(start), int(start) + p.numel()) for start, p in zip(starts, params)]
        for p, at in zip(params, self.slices):
            shape = (p.shape[0], *p.shape[2:], p.shape[1]) if p.dim() == 4 and channels_last else p.shape
            views = (flat[at].view(shape) for flat in (self.compute, self.grad))
            p.data, p.grad = (v.permute(0, 3, 1, 2) if p.dim() == 4 and channels_last else v for v in views)

    def matrices(self, flat: Tensor) -> list[Tensor]:
        """Each parameter's part of a flat tensor of this group as a matrix [first extent, the rest]."""
        return [flat[at].view(p.shape[0], -1) for p, at in zip(self.params, self.slices)]

    def reset(self) -> None:
        """Takes the parameters as they now are as the start; clears gradient and momentum."""
        self.grad.zero_()
        self.buffer.zero_()
        self.read()

    def read(self) -> None:
        """value <- compute, after someone wrote the parameters."""
        if self.value is not self.compute:
            self.value.copy_(self.compute)

    def write(self) -> None:
        """compute <- value, after an update of the master weights."""
        if self.value is not self.compute:
            self.compute.copy_(self.value)


def _kind(name: str) -> str:
    """The group that a parameter of this name belongs to."""
    if name == "stem.bias":
        return "stem"
    if "bias" in name:
        return "biases"
    return "filters" if name.endswith("filters") else "linear"


class Optimizer:
    """SGD with Nesterov momentum, and Muon for the 3x3 filters where the recipe says so.

    Groups: filters (3x3), linear (head, squeeze-and-excite, projection), biases, and the stem's bias, which
    has a schedule of its own and then freezes.
    """

    def __init__(self, network, steps: int, per_epoch: int, *, channels_last: bool):
        recipe = network.recipe
        trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
        members = {kind: [p for name, p in trained.items() if _kind(name) == kind] for kind in KINDS}
        self.names = [kind for kind in KINDS if members[kind]]
        master = recipe.master_weights == "on"
        self.groups = [
            Group(members[kind], master=master, channels_last=channels_last) for kind in self.names
        ]

        peaks = dict(zip(KINDS, (recipe.lr, recipe.linear_lr, recipe.bias_lr, recipe.bias_lr)))
        shapes = dict.fromkeys(KINDS, schedule.multipliers(recipe, steps, per_epoch))
        shapes["stem"] = schedule.stem_multipliers(recipe, steps, per_epoch)
        table = np.stack([peaks[kind] * shapes[kind] for kind in self.names], axis=1)
        self.decays = [recipe.weight_decay / peaks[kind] for kind in self.names]
        self.recipe, self.ops = recipe, network.ops
        device = network.running.device
        self.rates = torch.tensor(table, dtype=torch.float32, device=device)  # [steps, groups]
        self.step_index = torch.zeros(1, dtype=torch.int64, device=device)

    def reset(self) -> None:
        """Back to step 0, from the network's present weights."""
        self.step_index.zero_()
        for group in self.groups:
            group.reset()

    @torch.no_grad()
    def step(self, train_stem: bool = True) -> None:
        """One update from the gradients, which are then zero again. Without `train_stem` the stem's bias is
        frozen.
        """
        recipe, rates = self.recipe, self.rates.index_select(0, self.step_index)[0]
        for i, (name, group) in enumerate(zip(self.names, self.groups)):
            if name == "stem" and not train_stem:
                continue
            if name == "filters" and recipe.optimizer == "muon":
                self.ops.muon(
                    group.matrices(group.value),
                    group.matrices(group.grad),
                    group.matrices(group.buffer),
                    rates[i],
                    momentum=recipe.muon_momentum,
                    steps=recipe.muon_steps,
                )
            else:
                self.ops.sgd(
                    group.value,
                    group.grad,
                    group.buffer,
                    rates[i],
                    momentum=recipe.momentum,
                    weight_decay=self.decays[i],
                )
            group.write()
            group.grad.zero_()
        self.step_index += 1
