"""The training program: build once, then per run prepare, train, evaluate.

What is on the clock (`Clock`): a run's `train_seconds` cover everything done for it from untrained weights
on, that is reset and initialisation, whitening, augmentation and every training step; `eval_seconds` the
final evaluation with test-time views. Both are taken between device synchronisations. Off the clock: what
`Trainer` builds once per process (moving the uint8 data, compiling, warm-up on made-up images), and
per-epoch validation.
"""

from __future__ import annotations

import functools
import math
import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

import kernels
from kernels.views import VIEWS

from . import schedule, whitening
from .averaging import Averaging
from .data import Dataset
from .evaluate import evaluate
from .execution import Execution, apply, synchronize, torch_dtype
from .networks import Network
from .optimizer import Optimizer
from .recipes import Recipe


class Clock:
    """A stopwatch that waits for the device: `with clock:` adds the seconds inside to `clock.seconds`."""

    def __init__(self, device: torch.device):
        self.device, self.seconds = device, 0.0

    def __enter__(self) -> Clock:
        synchronize(self.device)
        self._start = time.perf_counter()
        return self

    def __exit__(self, *_) -> None:
        synchronize(self.device)
        self.seconds += time.perf_counter() - self._start


@dataclass
class Run:
    """One finished run. Accuracies are fractions, times seconds; a diverged run is `failed` and has no
    accuracy.
    """

    seed: int
    status: str = "ok"
    accuracy: float | None = None
    views: str = ""
    prepare_seconds: float = 0.0
    train_seconds: float = 0.0  # prepare included
    eval_seconds: float = 0.0
    wall_seconds: float = 0.0  # of the run, validation included
    steps: int = 0
    epochs: list[dict] = field(default_factory=list)


class Watcher:
    """What an experiment tells whoever watches it; this one watches nothing. Entered around the runs."""

    def __enter__(self) -> Watcher:
        return self

    def __exit__(self, *_) -> None:
        pass

    def started(self, trainer: Trainer, runs: int, eval_every: int) -> None:
        """The build is done, the first run about to begin."""

    def step(self, run: Run, step: int) -> None:
        """Training step `step` (from 1) was submitted to the device."""

    def epoch(self, run: Run, row: dict) -> None:
        """An epoch ended; `row` is its entry in `run.epochs`."""

    def finished(self, run: Run) -> None:
        """A run ended, its evaluation included."""


class Trainer:
    """A recipe built for an execution and a data set; `run(seed)` trains it from scratch.

    `build_seconds` is all of the construction, `first_step_seconds` the first training step (compilation
    included), `step_seconds` a later one, `compile_seconds` what the first steps took longer where the
    step is compiled.
    """

    def __init__(self, recipe: Recipe, execution: Execution, dataset: Dataset):
        begin = time.perf_counter()
        apply(recipe, execution)
        self.recipe, self.execution, self.dataset = recipe, execution, dataset
        self.device = torch.device(execution.device)
        self.ops = kernels.backend(execution.kernels)
        self.dtype = torch_dtype(recipe.dtype)
        self.train_images, self.train_labels, self.test_images, self.test_labels = (
            tensor.to(self.device) for tensor in dataset.tensors
        )
        self.examples = min(recipe.train_examples or len(self.train_images), len(self.train_images))
        self.per_epoch = recipe.steps_per_epoch(len(self.train_images))
        self.steps = recipe.steps(len(self.train_images))
        self.stem_steps = schedule.stem_steps(recipe, self.steps, self.per_epoch)

        self.network = Network(recipe, self.ops, execution.channels_last).to(self.device).cast(self.dtype)
        self.optimizer = Optimizer(
            self.network, self.steps, self.per_epoch, channels_last=execution.channels_last
        )
        self.averaging = Averaging(self.network, self.optimizer, self.steps, self.per_epoch)
        # Per epoch: summed loss, correct predictions. Read only when the clock stands.
        self.metrics = torch.zeros(math.ceil(self.steps / self.per_epoch), 2, device=self.device)
        self.forward, self.loss = self.network, self._loss
        if execution.compile == "on":
            self.forward = torch.compile(self.network, fullgraph=True, dynamic=False)
            self.loss = torch.compile(self._loss, fullgraph=True, dynamic=False)
        colours = {"mean": dataset.mean, "std": dataset.std}
        options = ("pad", "flip", "cutout", "brightness", "contrast")
        changes = {name: getattr(recipe, name) for name in options}
        self.augment = functools.partial(self.ops.augment, **changes, **colours, dtype=self.dtype)
        self.evaluate = functools.partial(evaluate, self.network, **colours, forward=self.forward)
        self.compile_seconds = 0.0
        self._warm_up()
        self.build_seconds = time.perf_counter() - begin

    def run(self, seed: int, eval_every: int = 1, watcher: Watcher | None = None) -> Run:
        """One training run. `eval_every` is the number of epochs between validations; 0 validates never."""
        watcher = watcher or Watcher()
        begin = time.perf_counter()
        run, clock = Run(seed, views=self.recipe.views), Clock(self.device)
        with clock:
            self._prepare(seed, self.train_images[: self.examples])
        run.prepare_seconds = clock.seconds
        epochs = len(self.metrics)
        for epoch in range(epochs):
            with clock:
                self._epoch(epoch, run, watcher)
            run.train_seconds = clock.seconds
            last = epoch == epochs - 1
            row = self._row(epoch, run, validate=eval_every > 0 and (last or (epoch + 1) % eval_every == 0))
            run.epochs.append(row)
            if not math.isfinite(row["train_loss"]):
                run.status = "failed"
            elif last:
                self._final(run)
            watcher.epoch(run, row)
            if run.status == "failed":
                break
        run.wall_seconds = time.perf_counter() - begin
        return run

    def estimate_seconds(self, eval_every: int = 1) -> float:
        """A forecast of a run's wall-clock seconds from the warm-up's step: a forward pass counts as a
        third of it.
        """
        forward = self.step_seconds / 3 / self.recipe.batch_size * len(self.test_images)
        validations = len(self.metrics) // eval_every if eval_every else 0
        return self.steps * self.step_seconds + forward * (
            len(VIEWS[self.recipe.views]) + validations * len(VIEWS[self.recipe.val_views])
        )

    def _prepare(self, seed: int, images: Tensor) -> None:
        """Initial weights from `seed`, whitening filters from `images`, everything else cleared."""
        self.seed = torch.tensor(seed, dtype=torch.int64, device=self.device)
        self.network.train()
        self.network.reset(self.seed)
        whitening.whiten(self.network, images, self.dataset.mean, self.dataset.std)
        self.optimizer.reset()
        self.averaging.reset()
        self.metrics.zero_()
        self.step = 0

    def _epoch(self, epoch: int, run: Run, watcher: Watcher) -> None:
        number = torch.tensor(epoch, dtype=torch.int64, device=self.device)
        order = self.ops.permutation(self.seed, number, self.examples)
        for ids in order[: self.per_epoch * self.recipe.batch_size].split(self.recipe.batch_size):
            if self.step == self.steps:
                break
            self._step(self.train_images, self.train_labels, ids, number, self.metrics[epoch])
            self.step += 1
            run.steps = self.step
            watcher.step(run, self.step)

    def _step(self, images: Tensor, labels: Tensor, ids: Tensor, epoch: Tensor, metrics: Tensor) -> None:
        train_stem = self.step < self.stem_steps
        x = self.network.layout(self.augment(images, ids, self.seed, epoch))
        loss, correct, stats = self.loss(x, labels[ids], train_stem)
        loss.backward()
        self.ops.update_running_stats(self.network.running, stats, self.recipe.bn_momentum)
        self.averaging.step()
        metrics += torch.stack((loss.detach().float(), correct.float()))

    def _loss(self, x: Tensor, targets: Tensor, train_stem: bool) -> tuple[Tensor, Tensor, Tensor]:
        logits, stats = self.network(x, train_stem)
        return *self.ops.cross_entropy(logits, targets, self.recipe.label_smoothing), stats

    def _validate(self, views: str) -> tuple[float, float]:
        return self.evaluate(self.test_images, self.test_labels, views)

    def _row(self, epoch: int, run: Run, validate: bool) -> dict:
        """An epoch's entry: training loss and accuracy, validation of the network and of its average."""
        steps = min(self.per_epoch, self.steps - epoch * self.per_epoch)
        seen = min(steps * self.recipe.batch_size, self.examples)
        loss, correct = (self.metrics[epoch] / seen).tolist()
        row = dict.fromkeys(("epoch", "train_loss", "val_loss", "train_acc", "val_acc", "average_val_acc"))
        row |= {"epoch": epoch + 1, "train_loss": loss, "train_acc": correct}
        row |= {"train_seconds": run.train_seconds, "val_seconds": None}
        if validate and math.isfinite(loss):
            with Clock(self.device) as clock:
                accuracy, val_loss = self._validate(self.recipe.val_views)
                if self.averaging.active:
                    with self.averaging.averaged():
                        row["average_val_acc"] = self._validate(self.recipe.val_views)[0]
            row |= {"val_acc": accuracy, "val_loss": val_loss, "val_seconds": clock.seconds}
        return row

    def _final(self, run: Run) -> None:
        """The evaluation that counts: the averaged weights where there are, under the recipe's views."""
        with Clock(self.device) as clock, self.averaging.averaged():
            accuracy, loss = self._validate(self.recipe.views)
        run.eval_seconds = clock.seconds
        if math.isfinite(loss):
            run.accuracy = accuracy
        else:
            run.status = "failed"

    def timed_step(self, step: int = 0, size: int | None = None) -> float:
        """Seconds of one training step on `size` made-up images (a batch), as step number `step` would be.

        For warming up and for benchmarks: it trains the network on nonsense.
        """
        images, labels = self._made_up(size or min(self.recipe.batch_size, self.examples))
        ids, epoch = torch.arange(len(labels), device=self.device), torch.tensor(0, device=self.device)
        self.step = step
        self.optimizer.step_index.fill_(step)
        with Clock(self.device) as clock:
            self._step(images, labels, ids, epoch, self.metrics[0])
        return clock.seconds

    def _made_up(self, count: int) -> tuple[Tensor, Tensor]:
        pixels = torch.arange(count * 32 * 32 * 3, device=self.device).mul(7919).to(torch.uint8)
        return pixels.view(count, 32, 32, 3), torch.arange(count, device=self.device) % 10

    def _warm_up(self) -> None:
        """Training steps and an evaluation in each of their variants, on made-up images, so that nothing is
        compiled under the clock.
        """
        recipe = self.recipe
        self._prepare(0, self._made_up(100)[0])
        steps = sorted({0, min(self.stem_steps, self.steps - 1)})  # the stem's bias trains, or is frozen
        first = [self.timed_step(step) for step in steps]
        self.first_step_seconds, self.step_seconds = first[0], self.timed_step(steps[-1])
        if self.execution.compile == "on":
            self.compile_seconds = sum(first) - len(first) * self.step_seconds
        if not recipe.drop_last and self.examples % recipe.batch_size:
            for step in steps:
                self.timed_step(step, self.examples % recipe.batch_size)
        if self.execution.compile == "on" or self.device.type == "cuda":
            tests = len(self.test_images)
            for size in {min(tests, recipe.eval_batch_size), tests % recipe.eval_batch_size} - {0}:
                self.evaluate(*self._made_up(size), recipe.views)
