"""The audit of the clock: which work of a run was done while it was timed.

A run is honest when all its work is on the clock: one reset, one whitening, an order per round, an
augmentation and an update per step, and none of these off it. `Audit` counts the calls of the ops behind
them, on the clock and off it; each replay of a captured graph counts for the calls that were captured.

Whatever updates the weights, an op or somebody's optimizer, they are compared before and after each step:
one that left all weights of a kind as they were is no update of them.
"""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import execution

if TYPE_CHECKING:
    from .optimizer import Optimizer
    from .train import Trainer

# what is counted -> the op whose calls are counted
COUNTED = {
    "reset": "uniform",
    "whitening": "patch_covariance",
    "order": "permutation",
    "augmentation": "augment",
    "statistics": "update_running_stats",
    "test-time views": "views",
}
EVALUATION = ("test-time views",)  # of a run's validation too, which may be off the clock
UPDATES = "updates of {}"  # a kind of parameters
ANY = 1 << 31


class Audit:
    """Counts calls: `on` while a run's clock runs, `off` otherwise. `running` is set by the clock."""

    def __init__(self):
        self.on, self.off, self.running = Counter(), Counter(), False

    def counted(self, ops: SimpleNamespace) -> SimpleNamespace:
        """The ops, those of COUNTED counting their calls."""
        names = {op: name for name, op in COUNTED.items()}
        return SimpleNamespace(
            **{op: self._counting(names[op], call) if op in names else call for op, call in vars(ops).items()}
        )

    def _counting(self, name: str, call: Callable) -> Callable:
        @functools.wraps(call)
        def counting(*args, **kwargs):
            (self.on if self.running else self.off)[name] += 1
            return call(*args, **kwargs)

        return counting

    def capture(self, *works: Callable[[], None]) -> list[Callable[[], None]]:
        """`execution.capture(*works)`; each replay counts for the calls of its work."""
        inside: list[Counter] = []

        def noted(work: Callable[[], None]) -> None:
            before, self.off = self.off, Counter()
            work()
            inside.append(self.off)
            self.off = before

        def counting(replay: Callable[[], None], calls: Counter) -> None:
            (self.on if self.running else self.off).update(calls)
            replay()

        replays = execution.capture(*(functools.partial(noted, work) for work in works))
        return [functools.partial(counting, *pair) for pair in zip(replays, inside)]


def weights(optimizer: Optimizer) -> dict[str, Tensor]:
    """Copies of what the optimizer updates, the parameters of each kind (`optimizer.KINDS`) as one tensor."""
    return {
        kind: arena.value[slice(*span)].clone()
        for arena in optimizer.arenas
        for kind, span in arena.spans.items()
    }


@contextlib.contextmanager
def watched(trainer: Trainer) -> Iterator[None]:
    """Inside, a step counts as an update of the kinds of weights that it changes; a replay of all steps as
    that many. Weights that differ from those that the last step left were changed off the clock.
    """
    audit, optimizer, left = trainer.audit, trainer.optimizer, {}

    def count(calls: Counter, before: dict[str, Tensor], after: dict[str, Tensor], updates: int) -> None:
        for kind in before:
            if not torch.equal(before[kind].view(torch.uint8), after[kind].view(torch.uint8)):  # NaN is NaN
                calls[UPDATES.format(kind)] += updates

    def watching(work: Callable[[], None]) -> None:
        before, first = weights(optimizer), int(optimizer.step_index)
        count(audit.off, left, before, 1)
        work()
        left.update(weights(optimizer))
        steps = int(optimizer.step_index) - first
        count(audit.on if audit.running else audit.off, before, left, steps)

    steppers, whole = trainer.steppers, trainer.execution.graph == "run"
    trainer.steppers = {variant: functools.partial(watching, work) for variant, work in steppers.items()}
    if whole:
        replay, trainer.replay_run = trainer.replay_run, functools.partial(watching, trainer.replay_run)
    try:
        yield
    finally:
        trainer.steppers = steppers
        if whole:
            trainer.replay_run = replay


def expected(trainer: Trainer) -> dict[str, range]:
    """How often a run of this trainer may do each thing on its clock. Updates are steps with a rate other
    than 0; what a torch.optim.Optimizer does in a step is its own affair.
    """
    optimizer, steps, rounds = trainer.optimizer, trainer.steps, len(trainer.rounds)
    updates = dict(zip(optimizer.names, (optimizer.rates != 0).sum(0).tolist()))
    if optimizer.plugged:
        updates["filters"] = 1
    return {
        "reset": range(1, ANY),
        "whitening": range(1, 2),
        "order": range(rounds, rounds + 1),
        "augmentation": range(steps, steps + 1),
        "statistics": range(steps, steps + 1),
        **{UPDATES.format(kind): range(least, steps + 1) for kind, least in updates.items()},
        "test-time views": range(1, ANY),
    }


def run(
    trainer: Trainer, seed: int = 0, eval_every: int = 1
) -> tuple[list[tuple[str, int, int, int]], list[str]]:
    """Trains once under the trainer's audit. Returns (name, expected, on the clock, off the clock) of
    everything counted, and a sentence for each fault; an honest clock has none.
    """
    audit = trainer.audit
    audit.on.clear()
    audit.off.clear()
    with watched(trainer):
        trainer.run(seed, eval_every)
    rows, wrong = [], []
    for name, accepted in expected(trainer).items():
        on, off = audit.on[name], audit.off[name]
        rows.append((name, accepted.start, on, off))
        if on not in accepted:
            wrong.append(f"{name}: {on} on the clock, {accepted.start} belong there")
        if off and name not in EVALUATION:
            wrong.append(f"{name}: {off} off the clock")
    return rows, wrong
