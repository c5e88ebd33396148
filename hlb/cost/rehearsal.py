"""The parts of a run on meta tensors: which ops each calls, and what PyTorch does between them.

    parts(recipe)       all of a run, each different one once

    run = Rehearsal(recipe)
    calls, between = run.part(lambda: run.step(variant))     and run.prepare, run.step.shuffle, run.evaluate

These are the step and the evaluation of a real run, with the references as ops. So what is counted is what a
run does, whichever kernels it takes, and no GPU is needed.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

import kernels
from kernels.base.traffic import Traffic

from ..data import Dataset
from ..evaluate import score
from ..execution import Execution
from ..optimizer import OPTIMIZERS
from ..recipes import Recipe
from ..step import build, rounds
from . import complexity

COLOURS = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
Call = tuple[str, dict]  # an op and its arguments by name


class Rehearsal:
    """What `train.Trainer` builds of a recipe for sets of so many examples, tests and classes, on `meta`.
    A torch.optim.Optimizer, of which no op says what it does, counts as SGD.
    """

    def __init__(
        self,
        recipe: Recipe,
        dtype: torch.dtype = torch.float16,
        examples: int = 50000,
        tests: int = 10000,
        classes: int = 10,
    ):
        changes = {"dtype": str(dtype).removeprefix("torch.")}
        if recipe.optimizer not in OPTIMIZERS:
            changes["optimizer"] = "sgd"
        self.recipe, self.calls, self.between = dataclasses.replace(recipe, **changes), [], Traffic()
        self._outputs: dict[tuple, object] = {}
        ops = {op: self._noted(op, function) for op, function in kernels.BACKENDS["reference"].items()}
        with torch.device("meta"):
            train, self.tests = (
                (torch.empty(n, 32, 32, 3, dtype=torch.uint8), torch.empty(n, dtype=torch.int64))
                for n in (examples, tests)
            )
            execution = Execution(device="meta", compile="off")
            numbers = tuple(map(str, range(classes)))
            dataset = Dataset("without memory", (*train, *self.tests), **COLOURS, classes=numbers)
            self.step = build(self.recipe, SimpleNamespace(**ops), execution, dataset)
        self.network = self.step.network

    def part(self, work: Callable[[], None]) -> tuple[list[Call], Traffic]:
        """The calls of ops in order, and the operators of PyTorch outside them, backward pass included."""
        self.calls, self.between = [], Traffic()
        with self.between:
            work()
        return self.calls, self.between

    def prepare(self) -> None:
        """What precedes the first step, without the whitening filters, which the host computes from 12 x 12
        numbers.
        """
        self.step.reset(0)
        images = self.step.images[: self.step.examples][: self.recipe.whiten_images]
        self.network.ops.patch_covariance(images, **COLOURS, centered=self.recipe.whiten_centered)

    def evaluate(self) -> None:
        """The final evaluation."""
        recipe = self.recipe
        score(self.network, *self.tests, recipe.views, **COLOURS, fraction=recipe.views_fraction)

    def _noted(self, op: str, function: Callable) -> Callable:
        """The op, recording its calls and leaving its operators out of `between`."""
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


@dataclass(frozen=True, eq=False)
class Part:
    """A part of a run that comes `times` times, with what `Rehearsal.part` returns, and what it averages."""

    phase: str
    times: int
    calls: list[Call]
    between: Traffic
    averages: str = "none"


@functools.lru_cache(maxsize=16)  # a report, its floor and its expected time are of the same run
def parts(
    recipe: Recipe, dtype: torch.dtype = torch.float16, examples: int = 50000, tests: int = 10000
) -> tuple[Part, ...]:
    """The different parts of a run, in order."""
    run = Rehearsal(recipe, dtype, examples, tests)
    found = [Part("prepare", 1, *run.part(run.prepare))]
    for images, times in Counter(images for _, images in rounds(recipe, examples)).items():
        found.append(Part("shuffle", times, *run.part(lambda n=images: run.step.shuffle(n))))
    for (variant, averages), times in complexity.steps(recipe, examples).items():
        calls, between = run.part(lambda v=variant: run.step(v))
        found.append(Part(f"train at {variant.size}", times, calls, between, averages))
    return *found, Part("evaluation", 1, *run.part(run.evaluate))


def shown(value):
    """The part of an argument that an op's outputs and cost depend on."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype, value.requires_grad
    return value


def _like(tensor: Tensor) -> Tensor:
    """Another meta tensor like this one."""
    fresh = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
    return fresh.requires_grad_(tensor.requires_grad)


class _Opaque(torch.autograd.Function):
    """The outputs of an op as they are, with a backward pass of no operators."""

    @staticmethod
    def forward(ctx, outputs, *wanted: Tensor) -> tuple:
        ctx.wanted = wanted
        ctx.set_materialize_grads(False)
        detached = [out.detach() if isinstance(out, Tensor) else out for out in outputs]
        ctx.mark_non_differentiable(
            *(d for d, out in zip(detached, outputs) if isinstance(out, Tensor) and not out.requires_grad)
        )
        return tuple(detached)

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple:
        return None, *(torch.empty_like(tensor) for tensor in ctx.wanted)
