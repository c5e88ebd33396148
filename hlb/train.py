"""The training program: build once, then per run prepare, train, evaluate.

What is on the clock (`Clock`): a run's `train_seconds` cover everything done for it from untrained weights on, that is
reset and initialisation, whitening, augmentation and every training step; `eval_seconds` the final evaluation with
test-time views. Both are taken between device synchronisations. Off the clock: what `Trainer` builds once per process
(moving the uint8 data, compiling, warm-up on made-up images), and per-epoch validation.
"""

from __future__ import annotations

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
    """One finished run. Accuracies are fractions, times seconds; a diverged run is `failed` and has no accuracy."""

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
    """What a run tells whoever watches it; the default watches nothing."""

    def step(self, run: Run, step: int) -> None:
        """After training step `step` (from 1) was submitted to the device."""

    def epoch(self, run: Run, row: dict) -> None:
        """After an epoch; `row` is its entry in `run.epochs`."""


class Trainer:
    """A recipe built for an execution and a data set; `run(seed)` trains it from scratch.

    `build_seconds` is all of the construction, `first_step_seconds` the first training step (compilation included),
    `step_seconds` a later one, `compile_seconds` their difference where the step is compiled.
    """

    def __init__(self, recipe: Recipe, execution: Execution, dataset: Dataset):
        begin = time.perf_counter()
        apply(recipe, execution)
        self.recipe, self.execution, self.dataset = recipe, execution, dataset
        self.device = torch.device(execution.device)
        self.ops = kernels.backend(execution.kernels)
        self.dtype = torch_dtype(recipe.dtype)
        self.train_images, self.train_labels, self.test_images, self.test_labels = (
            tensor.to(self.device) for tensor in dataset.tensors)
        self.examples = min(recipe.train_examples or len(self.train_images), len(self.train_images))
        self.per_epoch = recipe.steps_per_epoch(len(self.train_images))
        self.steps = recipe.steps(len(self.train_images))
        self.stem_steps = schedule.stem_steps(recipe, self.steps, self.per_epoch)

        self.network = Network(recipe, self.ops, execution.channels_last).to(self.device).cast(self.dtype)
        self.optimizer = Optimizer(self.network, self.steps, self.per_epoch, channels_last=execution.channels_last)
        self.averaging = Averaging(self.network, self.optimizer, self.steps, self.per_epoch)
        # Per epoch: summed loss, correct predictions. Read only when the clock stands.
        self.metrics = torch.zeros(math.ceil(self.steps / self.per_epoch), 2, device=self.device)
        self.forward, self.loss = self.network, self._loss
        if execution.compile == "on":
            self.forward = torch.compile(self.network, fullgraph=True, dynamic=False)
            self.loss = torch.compile(self._loss, fullgraph=True, dynamic=False)
        self._warm_up()
        self.build_seconds = time.perf_counter() - begin

    def run(self, seed: int, eval_every: int = 1, watcher: Watcher | None = None) -> Run:
        """One training run. `eval_every` is the number of epochs between validations; 0 validates never."""
        watcher = watcher or Watcher()
        begin = time.perf_counter()
        run, clock, eval_clock = Run(seed, views=self.recipe.views), Clock(self.device), Clock(self.device)
        with clock:
            self._prepare(seed)
        run.prepare_seconds = clock.seconds
        for epoch in range(len(self.metrics)):
            with clock:
                self._epoch(epoch, run, watcher)
            run.train_seconds = clock.seconds
            last = epoch == len(self.metrics) - 1
            validate = bool(eval_every) and (last or (epoch + 1) % eval_every == 0)
            if not (last or validate):
                continue
            row = self._row(epoch, run, validate)
            run.epochs.append(row)
            if not math.isfinite(row["train_loss"]):
                run.status = "failed"
            elif last:
                with eval_clock, self.averaging.averaged():
                    accuracy, loss = self._evaluate(self.recipe.views)
                run.accuracy, run.eval_seconds = float(accuracy), eval_clock.seconds
                if not math.isfinite(float(loss)):
                    run.status, run.accuracy = "failed", None
            watcher.epoch(run, row)
            if run.status == "failed":
                break
        run.wall_seconds = time.perf_counter() - begin
        return run

    def adopt_average(self) -> None:
        """Leaves the averaged weights in the network, where the recipe averages; ends the run's averaging."""
        if self.averaging.active:
            self.averaging.adopt()

    def estimate_seconds(self, eval_every: int = 1) -> float:
        """A forecast of a run's wall-clock seconds from the warm-up's step: a forward pass counts as a third of it."""
        forward = self.step_seconds / 3 / self.recipe.batch_size * len(self.test_images)
        validations = len(self.metrics) // eval_every if eval_every else 0
        return self.steps * self.step_seconds + forward * (
            len(VIEWS[self.recipe.views]) + validations * len(VIEWS[self.recipe.val_views]))

    # -- the parts of a run ------------------------------------------------------------------------------------------

    def _prepare(self, seed: int) -> None:
        self.seed = torch.tensor(seed, dtype=torch.int64, device=self.device)
        self.network.train()
        self.network.reset(self.seed)
        whitening.whiten(self.network, self.train_images[:self.examples], self.dataset.mean, self.dataset.std)
        self.optimizer.reset()
        self.averaging.reset()
        self.metrics.zero_()
        self.step = 0

    def _epoch(self, epoch: int, run: Run, watcher: Watcher) -> None:
        number = torch.tensor(epoch, dtype=torch.int64, device=self.device)
        order = self.ops.permutation(self.seed, number, self.examples)
        for ids in order[:self.per_epoch * self.recipe.batch_size].split(self.recipe.batch_size):
            if self.step == self.steps:
                break
            self._step(self.train_images, self.train_labels, ids, number, self.metrics[epoch])
            self.step += 1
            self.averaging.after_step(self.step)
            run.steps = self.step
            watcher.step(run, self.step)

    def _step(self, images: Tensor, labels: Tensor, ids: Tensor, epoch: Tensor, metrics: Tensor) -> None:
        recipe, train_stem = self.recipe, self.step < self.stem_steps
        x = self.network.layout(self.ops.augment(
            images, ids, self.seed, epoch, pad=recipe.pad, flip=recipe.flip, cutout=recipe.cutout,
            mean=self.dataset.mean, std=self.dataset.std, dtype=self.dtype))
        loss, correct, stats = self.loss(x, labels[ids], train_stem)
        loss.backward()
        self.ops.update_running_stats(self.network.running, stats, recipe.bn_momentum)
        self.optimizer.step(train_stem)
        metrics += torch.stack((loss.detach().float(), correct.float()))

    def _loss(self, x: Tensor, targets: Tensor, train_stem: bool) -> tuple[Tensor, Tensor, Tensor]:
        logits, stats = self.network(x, train_stem)
        return *self.ops.cross_entropy(logits, targets, self.recipe.label_smoothing), stats

    def _evaluate(self, views: str) -> tuple[Tensor, Tensor]:
        return evaluate(self.network, self.test_images, self.test_labels, views, mean=self.dataset.mean,
                        std=self.dataset.std, forward=self.forward)

    def _row(self, epoch: int, run: Run, validate: bool) -> dict:
        """An epoch's entry: training loss and accuracy, validation of the network and of the averaged weights."""
        steps = min(self.per_epoch, self.steps - epoch * self.per_epoch)
        seen = min(steps * self.recipe.batch_size, self.examples)
        loss, correct = (self.metrics[epoch] / seen).tolist()
        row = {"epoch": epoch + 1, "train_loss": loss, "val_loss": None, "train_acc": correct, "val_acc": None,
               "average_val_acc": None, "train_seconds": run.train_seconds, "val_seconds": None}
        if validate and math.isfinite(loss):
            with Clock(self.device) as clock:
                accuracy, val_loss = self._evaluate(self.recipe.val_views)
                if self.averaging.active:
                    with self.averaging.averaged():
                        row["average_val_acc"] = float(self._evaluate(self.recipe.val_views)[0])
            row |= {"val_acc": float(accuracy), "val_loss": float(val_loss), "val_seconds": clock.seconds}
        return row

    def _warm_up(self) -> None:
        """Two training steps (and their variants) on made-up images, so that nothing is compiled under the clock."""
        recipe = self.recipe
        count = max(recipe.batch_size, min(recipe.eval_batch_size, len(self.test_images)))
        pixels = torch.arange(count * 32 * 32 * 3, device=self.device).mul(7919).to(torch.uint8).view(count, 32, 32, 3)
        labels = torch.arange(count, device=self.device) % 10
        ids, epoch, metrics = torch.arange(count, device=self.device), torch.tensor(0, device=self.device), self.metrics[0]
        self._prepare(0)
        batch = min(recipe.batch_size, self.examples)
        sizes = [batch, batch]
        if not recipe.drop_last and self.examples % batch:
            sizes.append(self.examples % batch)
        seconds = []
        for size in sizes:
            for self.step in sorted({0, self.stem_steps}):
                with Clock(self.device) as clock:
                    self._step(pixels, labels, ids[:size], epoch, metrics)
                self.optimizer.step_index.zero_()
                seconds.append(clock.seconds)
        if self.execution.compile == "on" or self.device.type == "cuda":
            test = pixels[:recipe.eval_batch_size]
            for size in {len(test), len(self.test_images) % recipe.eval_batch_size} - {0}:
                evaluate(self.network, test[:size], labels[:size], recipe.views, mean=self.dataset.mean,
                         std=self.dataset.std, forward=self.forward)
        variants = len({0, self.stem_steps})
        self.first_step_seconds, self.step_seconds = seconds[0], seconds[variants]
        self.compile_seconds = sum(seconds[:variants]) - variants * self.step_seconds if (
            self.execution.compile == "on") else 0.0
