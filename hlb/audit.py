"""The audit of the clock: which work of a run was done while it was timed.

A run is honest when all its work is on the clock: one reset, one whitening, an order per round, an
augmentation and an update per step, and none of these off it. `Audit` counts the calls of the ops behind
them, on the clock and off it; each replay of a captured graph counts for the calls that were captured.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING

from . import execution

if TYPE_CHECKING:
    from .train import Trainer

# what is counted -> the op whose calls are counted
COUNTED = {
    "reset": "uniform",
    "whitening": "patch_covariance",
    "order": "permutation",
    "augmentation": "augment",
    "statistics": "update_running_stats",
    "sgd": "sgd",
    "muon": "muon",
    "test-time views": "views",
}
# Work of a run's validation, which may be done off the clock.
EVALUATION = ("test-time views",)


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


def expected(trainer: Trainer) -> dict[str, int]:
    """How often a run of this trainer does each thing on its clock: at least that often for the reset and the
    evaluation, exactly for everything else.
    """
    optimizer, steps = trainer.optimizer, trainer.steps
    return {
        "reset": 1,
        "whitening": 1,
        "order": len(trainer.rounds),
        "augmentation": steps,
        "statistics": steps,
        "sgd": steps * sum(bool(segments) for segments in optimizer.segments),
        "muon": steps * sum(bool(matrices) for matrices in optimizer.matrices),
        "test-time views": 1,
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
    trainer.run(seed, eval_every)
    rows, wrong = [], []
    for name, least in expected(trainer).items():
        on, off = audit.on[name], audit.off[name]
        rows.append((name, least, on, off))
        if on < least or (on > least and name not in ("reset", *EVALUATION)):
            wrong.append(f"{name}: {on} on the clock, {least} belong there")
        if off and name not in EVALUATION:
            wrong.append(f"{name}: {off} off the clock")
    return rows, wrong
