"""The training program: build once, then per run prepare, train, evaluate.

What is on the clock (`Clock`): a run's `train_seconds` cover everything done for it from untrained weights
on, that is reset and initialisation, whitening, augmentation and every training step; `eval_seconds` the
final evaluation with test-time views. Both are taken between device synchronisations. Off the clock: what
`Trainer` builds once per process (moving the uint8 data, compiling, warm-up, the capture of graphs), and
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

from . import execution, whitening
from .audit import Audit
from .data import Dataset
from .evaluate import score
from .execution import Execution, apply, compiled, synchronize
from .recipes import Recipe
from .step import Variant, build, plan, work

TIMED = 5  # steps of the warm-up that the forecast is made from, at most
TIMING = 0.02  # of a run's seconds, that they may take


class Clock:
    """A stopwatch that waits for the device: `with clock:` adds the seconds inside to `clock.seconds`. It
    tells an `audit` when it runs.
    """

    def __init__(self, device: torch.device, audit: Audit | None = None):
        self.device, self.audit, self.seconds = device, audit, 0.0

    def __enter__(self) -> Clock:
        if self.audit:
            self.audit.running = True
        synchronize(self.device)
        self._start = time.perf_counter()
        return self

    def __exit__(self, *_) -> None:
        synchronize(self.device)
        self.seconds += time.perf_counter() - self._start
        if self.audit:
            self.audit.running = False


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


class Callback:
    """What is called while an experiment trains; here every call does nothing. A context manager around the
    runs.

    `hlb.train(..., callbacks=[...])` takes several. Only `step` is called while the clock runs: what it takes
    is in `train_seconds`, and a GPU may not have finished the step.
    """

    def __enter__(self) -> Callback:
        return self

    def __exit__(self, *_) -> None:
        pass

    def started(self, trainer: Trainer, runs: int, eval_every: int) -> None:
        """The build is done, the first run about to begin."""

    def step(self, run: Run, step: int) -> None:
        """Training step `step` (from 1) was submitted to the device; of a run that is one graph, the last."""

    def epoch(self, run: Run, row: dict) -> None:
        """An epoch ended; `row` is its entry in `run.epochs`."""

    def finished(self, run: Run) -> None:
        """A run ended, its evaluation included."""


class Trainer:
    """A recipe built for an execution and a data set; `run(seed)` trains it from scratch.

    `build_seconds` covers the construction, `first_step_seconds` the first training step (compilation
    included), `step_seconds` a later step of the largest images, `compile_seconds` the extra time of first
    steps where they are compiled. `audit` counts the calls of a run (audit.py).
    """

    def __init__(self, recipe: Recipe, execution: Execution, dataset: Dataset, audit: Audit | None = None):
        begin = time.perf_counter()
        apply(recipe, execution)
        self.recipe, self.execution, self.dataset, self.audit = recipe, execution, dataset, audit
        self.device = torch.device(execution.device)
        self.plan = plan(recipe, len(dataset.tensors[0]))
        self.ops = kernels.backend(execution.kernels)
        if audit:
            self.ops = audit.counted(self.ops)
        self.step = build(recipe, self.ops, execution, dataset)
        self.network, self.optimizer = self.step.network, self.step.optimizer
        self.averaging, self.rounds, self.examples = self.step.averaging, self.step.rounds, self.step.examples
        self.train_images, self.train_labels = self.step.images, self.step.labels
        self.test_images, self.test_labels = (tensor.to(self.device) for tensor in dataset.tensors[2:])
        self.starts = recipe.epoch_starts(len(self.train_images))  # steps that epochs begin with, and the end
        self.kinds = sorted({images for _, images in self.rounds})  # of rounds
        self.steps = len(self.plan)
        self.epochs = len(self.starts) - 1

        forward = compiled(self.network) if execution.compile == "on" else self.network
        colours = {"mean": dataset.mean, "std": dataset.std}
        self.score = functools.partial(score, self.network, **colours, forward=forward)
        wide = torch.promote_types(self.network.head.weight.dtype, torch.float32)
        self.scores = torch.zeros(2, dtype=wide, device=self.device)
        self.final = recipe.views, recipe.views_fraction
        kinds = (self.final, (recipe.val_views, 1.0))
        self.evaluations = {kind: functools.partial(self._evaluate, *kind) for kind in kinds}
        self.steppers = {variant: functools.partial(self.step, variant) for variant in sorted(set(self.plan))}
        self.compile_seconds = 0.0
        self._warm_up()
        self._capture()
        self.build_seconds = time.perf_counter() - begin

    def run(self, seed: int, eval_every: int = 1, callback: Callback | None = None) -> Run:
        """One training run. `eval_every` is the number of epochs between validations, 0 for none; a run that
        is one graph has none either.
        """
        callback = callback or Callback()
        begin = time.perf_counter()
        run, clock = Run(seed, views=self.recipe.views), Clock(self.device, self.audit)
        whole = self.execution.graph == "run"
        with clock:
            self._prepare(seed, self.train_images[: self.examples])
        run.prepare_seconds = clock.seconds
        if whole:
            with clock:
                self.replay_run()
            run.train_seconds, run.steps = clock.seconds, self.steps
            callback.step(run, self.steps)
        for epoch in range(self.epochs):
            last = epoch == self.epochs - 1
            if not whole:
                with clock:
                    self._epoch(epoch, run, callback)
                run.train_seconds = clock.seconds
            validate = not whole and eval_every > 0 and (last or (epoch + 1) % eval_every == 0)
            row = self._row(epoch, run, validate)
            run.epochs.append(row)
            if not math.isfinite(row["train_loss"]):
                run.status = "failed"
            elif last:
                self._final(run)
            callback.epoch(run, row)
            if run.status == "failed":
                break
        run.wall_seconds = time.perf_counter() - begin
        return run

    def estimate_seconds(self, eval_every: int = 1) -> float:
        """A forecast of a run's wall-clock seconds from a step of the warm-up: cost is proportional to the
        images' area, and a forward pass is a third of a step.
        """
        recipe, largest = self.recipe, max(self.plan)
        steps = work(recipe, len(self.train_images)) / (largest.size**2 * largest.count)
        forward = self.step_seconds / 3 / largest.count * len(self.test_images) * (32 / largest.size) ** 2
        validations = self.epochs // eval_every if eval_every and self.execution.graph != "run" else 0
        views = 1 + (len(VIEWS[recipe.views]) - 1) * recipe.views_fraction
        return steps * self.step_seconds + forward * (views + validations * len(VIEWS[recipe.val_views]))

    def _prepare(self, seed: int, images: Tensor) -> None:
        """Initial weights from `seed`, whitening filters from `images`, everything else cleared."""
        self.network.train()
        self.step.reset(seed)
        whitening.whiten(self.network, images, self.dataset.mean, self.dataset.std)

    def _epoch(self, epoch: int, run: Run, callback: Callback) -> None:
        for number in range(self.starts[epoch], self.starts[epoch + 1]):
            self._step(number)
            run.steps += 1
            callback.step(run, run.steps)

    def _row(self, epoch: int, run: Run, validate: bool) -> dict:
        """An epoch's entry: training loss and accuracy, validation of the network and of its average. None
        for what a graph of the whole run does not tell.
        """
        steps = slice(self.starts[epoch], self.starts[epoch + 1])
        seen = sum(variant.count for variant in self.plan[steps])
        loss, correct = (self.step.metrics[steps].double().sum(0) / seen).tolist()
        row = dict.fromkeys(("epoch", "train_loss", "val_loss", "train_acc", "val_acc", "average_val_acc"))
        row |= {"epoch": epoch + 1, "train_loss": loss, "train_acc": correct}
        timed = self.execution.graph != "run" or epoch == self.epochs - 1
        row |= {"train_seconds": run.train_seconds if timed else None, "val_seconds": None}
        if validate and math.isfinite(loss):
            with Clock(self.device) as clock:
                accuracy, val_loss = self._validate(self.recipe.val_views)
                if self.averaging.active:
                    with self.averaging.averaged():
                        row["average_val_acc"] = self._validate(self.recipe.val_views)[0]
            row |= {"val_acc": accuracy, "val_loss": val_loss, "val_seconds": clock.seconds}
        return row

    def _validate(self, views: str, fraction: float = 1.0) -> tuple[float, float]:
        """Accuracy and mean loss over the test set, in one wait for the device."""
        self.evaluations[views, fraction]()
        correct, loss = self.scores.tolist()
        return correct / len(self.test_labels), loss / len(self.test_labels)

    def _evaluate(self, views: str, fraction: float) -> None:
        """Number of right answers and summed loss over the test set, into `scores`."""
        self.scores.copy_(self.score(self.test_images, self.test_labels, views, fraction=fraction))

    def _final(self, run: Run) -> None:
        """The final evaluation: of the averaged weights if the recipe has them, under its views."""
        with Clock(self.device, self.audit) as clock, self.averaging.averaged():
            accuracy, loss = self._validate(*self.final)
        run.eval_seconds = clock.seconds
        if math.isfinite(loss):
            run.accuracy = accuracy
        else:
            run.status = "failed"

    def timed_step(self, variant: Variant | None = None, step: int = 0) -> float:
        """Seconds of one training step as the variant says (the largest images, a whole batch), with the
        rates of step number `step`, captured where a run's is. For warming up and for benchmarks: it trains
        on images in no order.
        """
        self.optimizer.step_index.fill_(step)
        self.step.first.fill_(step)
        with Clock(self.device) as clock:
            self.steppers[variant or max(self.plan)]()
        return clock.seconds

    def _warm_up(self) -> None:
        """Runs every variant of the training step and of the evaluation on made-up images, so that nothing is
        compiled or allocated for the first time on the clock.
        """
        execution, variants = self.execution, sorted(set(self.plan))
        real = self.step.images, self.step.labels
        self.step.images, self.step.labels = self._made_up(len(self.train_images))
        self._prepare(0, self.step.images[:100])
        for images in self.kinds:
            self.step.shuffle(images)
        everything = execution.compile == "on" or self.device.type == "cuda"
        first = [self.timed_step(variant) for variant in (variants if everything else variants[-1:])]
        again = [self.timed_step(variants[-1])]  # one may be slow by chance, and is no forecast
        while len(again) < TIMED and sum(again) < TIMING * self.steps * min(again):
            again.append(self.timed_step(variants[-1]))
        self.first_step_seconds, self.step_seconds = first[0], min(again)
        if execution.compile == "on":
            self.compile_seconds = sum(first) - len(first) * self.step_seconds
        if everything:
            tests = self.test_images, self.test_labels
            self.test_images, self.test_labels = self._made_up(len(self.test_images))
            for evaluation in self.evaluations.values():
                evaluation()
            self.test_images, self.test_labels = tests
        self.step.images, self.step.labels = real
        self.optimizer.reset()

    def _capture(self) -> None:
        """What a run replays: the beginning of each kind of round and the step of each variant, or all steps,
        as `--graph` says; and its final evaluation. Replaying is the run's; nothing is computed here.
        """
        capture = self.audit.capture if self.audit else execution.capture
        final = self.evaluations[self.final]
        kinds = len(self.kinds)
        parts = [functools.partial(self.step.shuffle, images) for images in self.kinds]
        parts += self.steppers.values()
        if self.execution.graph == "step":
            *parts, self.evaluations[self.final] = capture(*parts, final)
        begin, self.steppers = dict(zip(self.kinds, parts)), dict(zip(self.steppers, parts[kinds:]))
        self.shuffles = {first: begin[images] for first, images in self.rounds}
        if self.execution.graph == "run":
            self.replay_run, self.evaluations[self.final] = capture(self._steps, final)

    def _steps(self) -> None:
        """All of a run's."""
        for number in range(self.steps):
            self._step(number)

    def _step(self, number: int) -> None:
        """Step `number`, after the shuffle where a round begins with it."""
        if number in self.shuffles:
            self.shuffles[number]()
        self.steppers[self.plan[number]]()

    def _made_up(self, count: int) -> tuple[Tensor, Tensor]:
        """`count` images and labels without meaning, for the warm-up."""
        pattern, shift = (torch.arange(n, device=self.device) for n in (32 * 32 * 3, count))
        pixels = pattern.mul(7919).to(torch.uint8) + shift.mul(31).to(torch.uint8)[:, None]
        return pixels.view(count, 32, 32, 3), shift % len(self.dataset.classes)
