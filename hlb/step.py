"""A training step: what it does on the device, and the little that the host must know of it.

    x, y  = augment(images[ids]), labels[ids]     ids: that row of the round's order which the counter says
    loss  = cross entropy(network(x), y)                   forward, then backward into the flat gradients
    running statistics, weights, averages                  the update

`build` makes all of it from a recipe: network, optimizer, averages and the step that trains them.

The host knows a step's `Variant` only, which follows from the recipe. So a step can be compiled, and one step
or a whole run captured as a CUDA graph: seeds, rates, averages and orders are read from the device.
"""

from __future__ import annotations

import functools
import math
from bisect import bisect
from collections.abc import Callable
from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import Tensor

from . import schedule
from .averaging import Averaging, table
from .data import Dataset
from .errors import UserError
from .execution import Execution, compiled, torch_dtype
from .initial import InitialWeights
from .networks import Network
from .optimizer import Optimizer
from .ranges import AUGMENTATION
from .recipes import Recipe


class Round(NamedTuple):
    """Training images shown once each, in an order of their own."""

    first: int  # step
    images: int  # all, or that many of those whose loss was largest


class Variant(NamedTuple):
    """What is fixed when a step is compiled or captured."""

    size: int  # side of the images
    count: int  # images
    train_stem: bool  # whether the stem's bias still trains
    average: bool = False  # whether weights are averaged
    hard: bool = False  # whether it has the label smoothing of hard images


def rounds(recipe: Recipe, examples: int) -> list[Round]:
    """The rounds of a run over `examples` images: one per epoch, and, where the epoch that a round begins in
    shows a fraction of the images, of the hard ones alone, in whole batches. One ends early where the batch
    size changes.
    """
    starts, found, first = recipe.epoch_starts(examples), [], 0
    count = min(recipe.train_examples or examples, examples)
    changes = enumerate(starts[1:], 1)
    ends = [start for epoch, start in changes if recipe.batch(epoch) != recipe.batch(epoch - 1)]
    while first < starts[-1]:
        epoch = bisect(starts, first) - 1
        images, steps = count, recipe.steps_per_epoch(examples, epoch)
        batch, fraction = recipe.batch(epoch), recipe.fraction(epoch)
        hard = max(1, int(fraction * count) // batch)  # batches
        if fraction < 1 and hard * batch < count:
            images, steps = hard * batch, hard
        found.append(Round(first, images))
        first = min(first + steps, *(end for end in ends if end > first), starts[-1])
    return found


def plan(recipe: Recipe, examples: int) -> list[Variant]:
    """The variant of every step of a run over `examples` images. Raises UserError where batch norm would have
    one value per channel.
    """
    per_epoch, starts = recipe.steps_by_epoch(examples), recipe.epoch_starts(examples)
    steps = starts[-1]
    stem_steps = schedule.stem_steps(recipe, steps, per_epoch)
    due = table(recipe, steps, per_epoch).any(axis=1).tolist()
    each, variants = rounds(recipe, examples), []
    everything = min(recipe.train_examples or examples, examples)
    apart = recipe.hard_label_smoothing not in (None, recipe.label_smoothing)
    for (first, images), end in zip(each, [*(later.first for later in each[1:]), steps]):
        hard = apart and images < everything
        for step in range(first, end):
            epoch = bisect(starts, step) - 1
            batch = recipe.batch(epoch)
            shown = min(batch, images - (step - first) * batch)
            variants.append(Variant(recipe.size(epoch), shown, step < stem_steps, due[step], hard))
    for size, count in {(variant.size, variant.count) for variant in variants}:
        side = (size - 1) >> len(recipe.groups)  # of the last map
        if count * side**2 < 2:
            raise UserError(
                f"batch_size: got {recipe.batch_size}, which leaves a batch of one image; of that the last "
                "group has one value per channel, too few for batch norm: take another, or drop_last=true"
            )
    return variants


def work(recipe: Recipe, examples: int) -> int:
    """The pixels of all images in a run over `examples` images, to which the time of its steps is
    proportional.
    """
    return sum(variant.count * variant.size**2 for variant in plan(recipe, examples))


def _alike(grad: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Both flat where both are contiguous: their strides may still differ in dimensions of extent 1, which
    keeps torch from copying many tensors in one launch.
    """
    if grad.is_contiguous() and gradient.is_contiguous():
        return grad.view(-1), gradient.view(-1)
    return grad, gradient


class Step:
    """Training steps of one network on one set of images uint8 [n, h, w, 3] and labels int64 [n]:
    `shuffle(images)` where a round begins, then `step(variant)`.

    `seed` (int64 scalar) keys all draws. `metrics` [steps, 2] has each step's summed loss and number of right
    answers; `losses` [examples] each image's loss when last seen, where rounds need it. `augment` is the op
    with the recipe's options. `compile` compiles forward pass and update, each as one graph without a break;
    the update not where a torch.optim.Optimizer is part of it.
    """

    def __init__(
        self,
        network: Network,
        optimizer: Optimizer,
        averaging: Averaging,
        images: Tensor,
        labels: Tensor,
        augment: Callable[..., Tensor],
        compile: bool,
    ):
        self.network, self.optimizer, self.averaging = network, optimizer, averaging
        self.initial = InitialWeights(network, optimizer.arenas)
        self.images, self.labels, self.augment = images, labels, augment
        self.ops, self.recipe = network.ops, network.recipe
        device = images.device
        self.rounds = rounds(self.recipe, len(images))
        self.examples = examples = min(self.recipe.train_examples or len(images), len(images))
        self.seed = torch.zeros((), dtype=torch.int64, device=device)
        self.number = torch.zeros((), dtype=torch.int64, device=device)  # of the round, from 0
        self.turns = torch.tensor([first for first, _ in self.rounds], device=device)
        self.first = torch.zeros(1, dtype=torch.int64, device=device)
        # The round's order, a row a step; what does not fill a row is beyond the images that are taken. Batch
        # sizes have rows of their own, of the same memory: a round has one.
        counts = {batch: -(-examples // batch) for batch in self.recipe.batch_sizes}
        order = max(batch * count for batch, count in counts.items())
        order = torch.zeros(order, dtype=torch.int64, device=device)
        self.rows = {batch: order[: batch * count].view(count, batch) for batch, count in counts.items()}
        self.batches = self.rows[self.recipe.batch_sizes[0]]
        self.order = order[:examples]
        self.metrics = torch.zeros(len(optimizer.rates), 2, dtype=torch.float32, device=device)
        hard = any(count < examples for _, count in self.rounds)
        self.losses = torch.zeros(examples, dtype=torch.float32, device=device) if hard else None
        self.untrained = network.running.clone()
        self.largest = network.track_gradients()
        trained = [arena.params for arena in optimizer.arenas]  # of a dtype each
        unfrozen = [[p for p in params if p is not network.stem.bias] for params in trained]
        self.trained = {True: trained, False: unfrozen}
        self.forward, self.update = self._forward, self._update
        if compile:
            self.forward = compiled(self._forward)
            self.update = self._update if optimizer.plugged else compiled(self._update)

    @torch.no_grad()
    def reset(self, seed: int) -> None:
        """To step 0 of the run of this seed: its initial weights, and nothing of any run before. The
        whitening filters are the caller's.
        """
        self.seed.fill_(seed)
        self.initial.draw(self.seed)
        self.network.running.copy_(self.untrained)
        self.optimizer.reset()
        self.averaging.reset()
        if self.largest:
            torch._foreach_zero_(self.largest)
        if self.losses is not None:
            self.losses.fill_(math.inf)

    def shuffle(self, images: int) -> None:
        """Begins the round of `images` images that the next step belongs to: sets its number and order."""
        self.first.copy_(self.optimizer.step_index)
        self.number.copy_((self.turns < self.first).sum())
        order = self.ops.permutation(self.seed, self.number, images)
        if images < len(self.order):
            order = self.losses.sort(descending=True, stable=True).indices[order]
        self.order[:images].copy_(order)

    def __call__(self, variant: Variant) -> None:
        loss, correct, stats = self.forward(variant)
        # Written over the flat gradients, not added to them parameter by parameter: a launch for each dtype.
        trained = self.trained[variant.train_stem]
        inputs = [p for params in trained for p in params] + self.largest
        gradients = iter(torch.autograd.grad(loss, inputs))
        for params in trained:
            targets, values = zip(*(_alike(p.grad, gradient) for p, gradient in zip(params, gradients)))
            torch._foreach_copy_(targets, values)
        if self.largest:
            with torch.no_grad():
                torch._foreach_copy_(self.largest, [*gradients])
        self.update(loss.detach(), correct, stats, variant.average)

    def _forward(self, variant: Variant) -> tuple[Tensor, Tensor, Tensor]:
        """Summed loss, number of right answers, batch statistics."""
        row = self.optimizer.step_index - self.first
        # Only where there is one batch size is a last batch shorter.
        ids = self.rows.get(variant.count, self.batches).index_select(0, row)[0, : variant.count]
        size = 0 if variant.size == self.images.shape[1] else variant.size
        x = self.network.layout(self.augment(self.images, ids, self.seed, self.number, size=size))
        logits, stats = self.network(x, variant.train_stem)
        labels = self.labels[ids]
        if self.losses is not None:
            self.ops.scatter_losses(self.losses, ids, logits.detach(), labels)
        recipe = self.recipe
        smoothing = recipe.hard_label_smoothing if variant.hard else recipe.label_smoothing
        return *self.ops.cross_entropy(logits, labels, smoothing), stats

    @torch.no_grad()
    def _update(self, loss: Tensor, correct: Tensor, stats: Tensor, average: bool) -> None:
        row = torch.stack((loss.float(), correct.float()))
        self.metrics.index_copy_(0, self.optimizer.step_index, row[None])
        self.ops.update_running_stats(self.network.running, stats, self.recipe.bn_momentum)
        if average:
            self.averaging.average_running()
        self.optimizer.step(self.averaging.averages if average else None)


def build(recipe: Recipe, ops: SimpleNamespace, execution: Execution, dataset: Dataset) -> Step:
    """The training step of a recipe on a data set's training images, with all that it trains: `step.network`,
    `step.optimizer`, `step.averaging`. Recipe and execution are resolved.
    """
    device, dtype = torch.device(execution.device), torch_dtype(recipe.dtype)
    images, labels = (tensor.to(device) for tensor in dataset.tensors[:2])
    steps, per_epoch = recipe.steps(len(images)), recipe.steps_by_epoch(len(images))
    with device:
        network = Network(recipe, ops, execution.channels_last, classes=len(dataset.classes)).cast(dtype)
    optimizer = Optimizer(network, steps, per_epoch, channels_last=execution.channels_last)
    averaging = Averaging(network, optimizer, steps, per_epoch)
    options = {name: getattr(recipe, name) for name in AUGMENTATION}
    options |= {"mean": dataset.mean, "std": dataset.std, "dtype": dtype}
    augment = functools.partial(ops.augment, **options)
    return Step(network, optimizer, averaging, images, labels, augment, execution.compile == "on")


# Tables of a step, by what holds them: what a recipe says of each step or round. In recipes that differ only
# there all else of a step is the same. One that is not there, or None, is none.
TABLES = (
    ("optimizer", "rates"),
    ("optimizer", "momenta"),
    ("averaging", "table"),
    ("step", "metrics"),
    ("step", "turns"),
)


def _holders(step: Step) -> dict[str, object]:
    return {"step": step, "optimizer": step.optimizer, "averaging": step.averaging}


def tables(step: Step, rows: int = 0) -> dict[tuple[str, str], Tensor]:
    """The tables of a step, by TABLES, those of steps with `rows` rows at least, since compiled code takes
    tables of one length.
    """
    holders = _holders(step)
    found = {place: getattr(holders[place[0]], place[1], None) for place in TABLES}
    steps = len(step.metrics)
    return {
        place: torch.cat((table, table.new_zeros(rows - steps, *table.shape[1:])))
        if rows > steps and place != ("step", "turns")
        else table
        for place, table in found.items()
        if table is not None
    }


def put(step: Step, tables: dict[tuple[str, str], Tensor]) -> None:
    """The step goes on with these tables."""
    for (holder, name), values in tables.items():
        setattr(_holders(step)[holder], name, values)
