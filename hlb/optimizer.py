"""The optimizer: parameters in arenas, each one flat tensor, and one table of learning rates.

`Arena` lays all parameters of one dtype out as views of one flat tensor and their gradients as views of
another, so that an update is one op over the arena. The optimizer reads the rates of a step from a table on
the device by a step counter on the device: nothing in a step comes from the host.

Any torch.optim.Optimizer can take the place of Muon or SGD for the 3x3 filters (`TorchOptimizer`), to try an
idea before it has a kernel: at its own speed, neither compiled nor captured.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from kernels.sgd import average

from . import schedule
from .errors import UserError

if TYPE_CHECKING:
    from .averaging import Averages
    from .networks import Network
    from .recipes import Recipe

OPTIMIZERS = ("sgd", "muon")  # of the 3x3 filters, those that are ops; others are torch.optim.Optimizers
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
        self.channels_last = channels_last
        for p, start in zip(self.params, starts):
            p.data, p.grad = self.view(self.compute, p), self.view(self.grad, p)
            if p.dim() == 4 and not channels_last:
                o, c, h, w = p.shape
                numbers = self.numbers[start : start + p.numel()]
                numbers.copy_(numbers.view(o, h, w, c).permute(0, 3, 1, 2).flatten())

    def view(self, flat: Tensor, p: nn.Parameter) -> Tensor:
        """A parameter's part of a flat tensor of the arena, in the parameter's shape and layout."""
        start, turned = self.offsets[p], p.dim() == 4 and self.channels_last
        shape = (p.shape[0], *p.shape[2:], p.shape[1]) if turned else p.shape
        view = flat[start : start + p.numel()].view(shape)
        return view.permute(0, 3, 1, 2) if turned else view

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


def _kind(name: str) -> str:
    """The kind of the parameter of this name."""
    if name == "stem.bias":
        return "stem"
    if "bias" in name:
        return "biases"
    return "filters" if name.endswith("filters") else "linear"


def factory(optimizer: str | Callable) -> Callable[..., torch.optim.Optimizer]:
    """What makes the torch.optim.Optimizer that a recipe names, `torch.optim.AdamW`; or the callable itself.
    Raises UserError for a name that cannot be imported, and for anything that is not an optimizer.
    """
    make = optimizer
    if isinstance(optimizer, str):
        module, _, name = optimizer.rpartition(".")
        try:
            make = getattr(importlib.import_module(module), name)
        except Exception as error:  # whatever a module of somebody's may raise
            raise UserError(f"optimizer: got {optimizer!r}, which cannot be imported: {error}") from None
    wrong = isinstance(make, type) and not issubclass(make, torch.optim.Optimizer)
    if wrong or not callable(make):
        raise UserError(
            f"optimizer: got {optimizer!r}, which is not a torch.optim.Optimizer; accepted are "
            f"{', '.join(OPTIMIZERS)} and such a class, for example torch.optim.AdamW"
        )
    return make


class TorchOptimizer:
    """A torch.optim.Optimizer over the 3x3 filters of an arena, which updates their values in place.

    The rate of every parameter group is the recipe's `lr` times the schedule's multiplier. `weight_decay` is
    that of the recipe over its `lr`, as for SGD: that much per step at the peak rate. Both are passed where
    the class takes them.
    """

    def __init__(self, recipe: Recipe, arena: Arena, filters: list[nn.Parameter]):
        self.name, self.arena, self.filters = name_of(recipe.optimizer), arena, filters
        self.values = [arena.view(arena.value, p).detach().requires_grad_() for p in filters]
        make = factory(recipe.optimizer)
        takes = inspect.signature(make).parameters
        bound = make.keywords if isinstance(make, functools.partial) else {}
        given = {"lr": recipe.lr, "weight_decay": recipe.weight_decay / recipe.lr}
        given = {key: value for key, value in given.items() if key in takes and key not in bound}
        self.make = functools.partial(make, self.values, **given)
        self.reset()
        self._try()
        self.reset()

    def reset(self) -> None:
        """A new optimizer, which knows nothing of the run before."""
        try:
            self.optimizer = self.make()
        except (TypeError, ValueError) as error:
            why = " ".join(str(error).split())
            raise UserError(f"optimizer: {self.name} cannot be made for the 3x3 filters: {why}") from None
        if not isinstance(self.optimizer, torch.optim.Optimizer):
            made = type(self.optimizer).__name__
            raise UserError(f"optimizer: {self.name} made a {made}, not a torch.optim.Optimizer")
        closure = inspect.signature(self.optimizer.step).parameters.get("closure")
        if closure is not None and closure.default is inspect.Parameter.empty:
            raise UserError(f"optimizer: {self.name} needs a closure that evaluates the loss anew")

    def _try(self) -> None:
        """A step without gradients, before anything is trained: some optimizers refuse dense ones."""
        for value in self.values:
            value.grad = torch.zeros_like(value)
        try:
            self.optimizer.step()
        except (RuntimeError, TypeError, ValueError) as error:
            why = " ".join(str(error).split())
            raise UserError(f"optimizer: {self.name} cannot update the 3x3 filters: {why}") from None

    def step(self, rate: float) -> None:
        """An update of the values at this rate; the gradients are zero afterwards."""
        for value, p in zip(self.values, self.filters):
            value.grad = p.grad.to(value.dtype, copy=True)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        for p in self.filters:
            p.grad.zero_()


def name_of(optimizer: str | Callable) -> str:
    """What records call the optimizer of a recipe: `torch.optim.AdamW` by either of its names."""
    if isinstance(optimizer, str):
        return optimizer
    module, name = (getattr(optimizer, field, None) for field in ("__module__", "__qualname__"))
    if name is None:  # functools.partial(torch.optim.SGD, momentum=0.9)
        return repr(optimizer)
    if optimizer is getattr(torch.optim, name, None):
        module = "torch.optim"
    return f"{module}.{name}"


class Optimizer:
    """SGD with Nesterov momentum; of the 3x3 filters Muon or a torch.optim.Optimizer if the recipe says so.

    Kinds: filters (3x3), linear (head, squeeze-and-excite, projection), biases, and the stem's bias, which
    has a schedule of its own and freezes where that reaches 0.
    """

    def __init__(self, network: Network, steps: int, per_epoch: schedule.PerEpoch, *, channels_last: bool):
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
        shapes["filters"] = shapes["filters"] * schedule.batch_multipliers(recipe, steps, per_epoch)
        shapes["stem"] = schedule.stem_multipliers(recipe, steps, per_epoch)
        table = np.stack([peaks[kind] * shapes[kind] for kind in self.names], axis=1)
        device = network.running.device
        self.rates = torch.tensor(table, dtype=torch.float32, device=device)  # [steps, kinds]
        self.step_index = torch.zeros(1, dtype=torch.int64, device=device)
        self.momenta = None  # Muon's, where it is warmed: float32 [steps]
        if recipe.muon_momentum_warmup:
            momenta = schedule.muon_momenta(recipe, steps, per_epoch)
            self.momenta = torch.tensor(momenta, dtype=torch.float32, device=device)

        self.recipe, self.ops = recipe, network.ops
        by_sgd = [kind for kind in self.names if kind != "filters" or recipe.optimizer == "sgd"]
        self.segments = [
            tuple(
                (*span, self.names.index(kind), recipe.weight_decay / peaks[kind])
                for kind, span in arena.spans.items()
                if kind in by_sgd
            )
            for arena in self.arenas
        ]
        by_muon = members["filters"] if recipe.optimizer == "muon" else []
        self.matrices = [
            tuple((arena.offsets[p], p.shape[0], p[0].numel()) for p in by_muon if p in arena.offsets)
            for arena in self.arenas
        ]
        self.plugged = None
        if recipe.optimizer not in OPTIMIZERS:
            arena = next(arena for arena in self.arenas if "filters" in arena.spans)
            self.plugged = TorchOptimizer(recipe, arena, members["filters"])

    def reset(self) -> None:
        """Back to step 0, from the network's present weights."""
        self.step_index.zero_()
        for arena in self.arenas:
            arena.reset()
        if self.plugged:
            self.plugged.reset()

    @torch.no_grad()
    def step(self, averages: Averages | None = None) -> None:
        """One update from the gradients, which are then zero again; with `averages`, averaged as the step's
        row of the table says (kernels/sgd.py).
        """
        recipe = self.recipe
        for i, (arena, segments, matrices) in enumerate(zip(self.arenas, self.segments, self.matrices)):
            shared = (arena.value, arena.grad, arena.buffer, self.rates, self.step_index)
            copies = {"compute": arena.copy}
            if averages is not None:
                copies |= {"slow": averages.slow[i], "averages": averages.table}
            if matrices:
                column = self.names.index("filters")
                settings = {"momentum": recipe.muon_momentum, "momenta": self.momenta}
                settings["steps"] = recipe.muon_steps
                self.ops.muon(*shared, matrices, column=column, **settings, **copies)
            if segments:
                self.ops.sgd(*shared, segments, momentum=recipe.momentum, **copies)
        if self.plugged:
            self._step_plugged(averages)
        self.step_index += 1

    def _step_plugged(self, averages: Averages | None) -> None:
        """The filters' update by a torch.optim.Optimizer, then what the ops do in one pass: average, copy."""
        rate = self.rates[int(self.step_index), self.names.index("filters")]
        self.plugged.step(float(rate))
        arena = self.plugged.arena
        filters = slice(*arena.spans["filters"])
        if averages is not None:
            slow = averages.slow[self.arenas.index(arena)]
            average(arena.value[filters], slow[filters], averages.table, self.step_index)
        if arena.copy is not None:
            arena.copy[filters].copy_(arena.value[filters])
