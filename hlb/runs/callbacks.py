"""Callbacks of an experiment: several called as one, and one that writes for TensorBoard."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path

from ..errors import UserError
from ..train import Callback, Run, Trainer


class Callbacks(Callback):
    """Several callbacks, each called in the order given; left in the reverse order, also after an error."""

    def __init__(self, callbacks: Iterable[Callback]):
        self.callbacks = list(callbacks)
        self.stack = contextlib.ExitStack()

    def __enter__(self) -> Callbacks:
        with contextlib.ExitStack() as entered:  # undone where a later one cannot begin
            for callback in self.callbacks:
                entered.enter_context(callback)
            self.stack = entered.pop_all()
        return self

    def __exit__(self, *error) -> None:
        self.stack.__exit__(*error)

    def started(self, trainer: Trainer, runs: int, eval_every: int) -> None:
        for callback in self.callbacks:
            callback.started(trainer, runs, eval_every)

    def step(self, run: Run, step: int) -> None:
        for callback in self.callbacks:
            callback.step(run, step)

    def epoch(self, run: Run, row: dict) -> None:
        for callback in self.callbacks:
            callback.epoch(run, row)

    def finished(self, run: Run) -> None:
        for callback in self.callbacks:
            callback.finished(run)


def checked(callbacks: object) -> list[Callback]:
    """The callbacks that a caller gives, as a list. Raises UserError for what is not a sequence of them."""
    if not isinstance(callbacks, (list, tuple)):
        raise UserError(f"callbacks: got {callbacks!r}, accepted is a list of hlb.Callback")
    for callback in callbacks:
        if not isinstance(callback, Callback):
            raise UserError(f"callbacks: got {callback!r}, accepted are instances of hlb.Callback")
    return list(callbacks)


class TensorBoard(Callback):
    """Writes every epoch's losses and accuracies, and a run's final accuracy and times, to `folder`/seed-N.

    Needs the package tensorboard: raises UserError where it is not installed.
    """

    def __init__(self, folder: Path | str = Path("results") / "tensorboard"):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UserError("TensorBoard: not installed; pip install tensorboard") from None
        self.folder, self.make, self.writer = Path(folder), SummaryWriter, None

    def _write(self, run: Run, values: dict, at: int) -> None:
        """Those of the values that are known, at step `at`."""
        self.writer = self.writer or self.make(str(self.folder / f"seed-{run.seed}"))
        for name, value in values.items():
            if value is not None:
                self.writer.add_scalar(name, value, at)

    def epoch(self, run: Run, row: dict) -> None:
        self._write(run, {name: value for name, value in row.items() if name != "epoch"}, row["epoch"])

    def finished(self, run: Run) -> None:
        names = ("accuracy", "train_seconds", "eval_seconds")
        self._write(run, {f"final/{name}": getattr(run, name) for name in names}, len(run.epochs))
        self.__exit__()

    def __exit__(self, *_) -> None:
        if self.writer is not None:
            self.writer.close()
        self.writer = None
