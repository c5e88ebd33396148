"""The parts of a run on tensors without memory: which ops each calls, and what PyTorch does between them.

    run = Rehearsal(recipe)
    calls, between = run.part(lambda: run.step(variant))     and run.prepare, run.step.shuffle, run.evaluate

It is the engine's own step and evaluation that run, with the references as ops. So what is counted of a part
is what a run does, whichever kernels it takes, and no GPU is needed.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

import kernels
from kernels.base.traffic import Traffic

from ..averaging import Averaging
from ..evaluate import score
from ..networks import Network
from ..optimizer import Optimizer
from ..recipes import AUGMENTATION
from ..step import Step, rounds

COLOURS = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
Call = tuple[str, dict]  # an op and its arguments by name


class Rehearsal:
    """What `train.Trainer` builds of a recipe for sets of so many examples and tests, on `meta`."""

    def __init__(self, recipe, dtype: torch.dtype = torch.float16, examples: int = 50000, tests: int = 10000):
        self.recipe, self.calls, self.between = recipe, [], Traffic()
        self._outputs: dict[tuple, object] = {}
        ops = {op: self._noted(op, function) for op, function in kernels.BACKENDS["reference"].items()}
        steps, per_epoch = recipe.steps(examples), recipe.steps_per_epoch(examples)
        changes = {name: getattr(recipe, name) for name in AUGMENTATION}
        augment = functools.partial(ops["augment"], **changes, **COLOURS, dtype=dtype)
        with torch.device("meta"):
            self.network = Network(recipe, SimpleNamespace(**ops)).cast(dtype)
            self.optimizer = Optimizer(self.network, steps, per_epoch, channels_last=True)
            self.averaging = Averaging(self.network, self.optimizer, steps, per_epoch)
            train, self.tests = (
                (torch.empty(n, 32, 32, 3, dtype=torch.uint8), torch.empty(n, dtype=torch.int64))
                for n in (examples, tests)
            )
        self.examples = min(recipe.train_examples or examples, examples)
        state = self.network, self.optimizer, self.averaging
        self.step = Step(*state, *train, self.examples, rounds(recipe, examples), augment, compile=False)

    def part(self, work: Callable[[], None]) -> tuple[list[Call], Traffic]:
        """The calls of ops in order, and the operators of PyTorch outside them, backward pass included."""
        self.calls, self.between = [], Traffic()
        with self.between:
            work()
        return self.calls, self.between

    def prepare(self) -> None:
        """What precedes the first step, but for the whitening filters, which the host makes of 12 x 12
        numbers.
        """
        self.step.reset(0)
        images = self.step.images[: self.examples][: self.recipe.whiten_images]
        self.network.ops.patch_covariance(images, **COLOURS, centered=self.recipe.whiten_centered)

    def evaluate(self) -> None:
        """The final evaluation."""
        recipe = self.recipe
        score(self.network, *self.tests, recipe.views, **COLOURS, fraction=recipe.views_fraction)

    def _noted(self, op: str, function: Callable) -> Callable:
        """The op, its calls noted and its operators left out of `between`."""
        signature = inspect.signature(function)

        @functools.wraps(function)
        def call(*args, **kwargs):
            inputs = signature.bind(*args, **kwargs).arguments
            inputs |= inputs.pop("options", {})
            if not torch.is_grad_enabled():
                inputs = {k: v.detach() if isinstance(v, Tensor) else v for k, v in inputs.items()}
            self.calls.append((op, inputs))
            key = (op, torch.is_grad_enabled(), *((name, shown(value)) for name, value in inputs.items()))
            if key in self._outputs:  # a run repeats few different calls
                outputs = tree_map_only(Tensor, _like, self._outputs[key])
            else:
                there = self.between
                before = [counts.copy() for counts in (there.bytes, there.flops, there.launches)]
                self._outputs[key] = outputs = function(*args, **kwargs)
                there.bytes, there.flops, there.launches = before
            wanted = [v for v in inputs.values() if isinstance(v, Tensor) and v.requires_grad]
            if wanted:
                single = isinstance(outputs, Tensor)
                outputs = _Opaque.apply([outputs] if single else outputs, *wanted)
                outputs = outputs[0] if single else outputs
            return outputs

        return call


def shown(value):
    """What the outputs and the cost of an op depend on, of an argument."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype, value.requires_grad
    return value


def _like(tensor: Tensor) -> Tensor:
    """Another tensor without memory, as this one."""
    fresh = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
    return fresh.requires_grad_(tensor.requires_grad)


class _Opaque(torch.autograd.Function):
    """The outputs of an op as they are, with a backward pass of no operators."""

    @staticmethod
    def forward(ctx, outputs, *wanted: Tensor) -> tuple:
        ctx.wanted = wanted
        ctx.set_materialize_grads(False)
        found = [out.detach() if isinstance(out, Tensor) else out for out in outputs]
        ctx.mark_non_differentiable(
            *(f for f, out in zip(found, outputs) if isinstance(out, Tensor) and not out.requires_grad)
        )
        return tuple(found)

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple:
        return None, *(torch.empty_like(tensor) for tensor in ctx.wanted)
