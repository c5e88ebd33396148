"""What a person sees of training: a table that updates in place on a terminal, rows that append elsewhere.

One run shows a row per epoch, several runs a row per run. On a terminal a progress bar with the time left
stands below.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ..train import Callback, Run, Trainer

if TYPE_CHECKING:
    from .experiment import Result

# heading -> how a value is written; a value that is None is left blank
EPOCH_COLUMNS = {
    "epoch": "d",
    "train_loss": ".4f",
    "val_loss": ".4f",
    "train_acc": ".4f",
    "val_acc": ".4f",
    "average_val_acc": ".4f",
    "train_seconds": ".2f",
}
RUN_COLUMNS = {
    "run": "d",
    "seed": "d",
    "train_acc": ".4f",
    "val_acc": ".4f",
    "accuracy": ".4f",
    "train_seconds": ".3f",
    "eval_seconds": ".3f",
}
# Which of these, and of the statistics at the end, a narrow terminal does without, the first of them first.
EXPENDABLE = (
    *("train_loss", "val_loss", "train_acc", "average_val_acc", "eval_seconds", "run", "epoch", "seed"),
    *("train_seconds", "val_acc", "min", "max", "std", "95 % interval"),
)
WIDEST = {"run": 8, "seed": 8, "epoch": 5}  # of a number, where that is not 7
REFRESH_SECONDS = 0.1
BAR_FROM_SECONDS = 2.0  # shorter experiments get no progress bar


def duration(seconds: float) -> str:
    """Seconds for people: `0.8 s`, `42 s`, `13 min`, `2 h 05 min`."""
    if seconds < 99.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def line(console: Console, text: str) -> None:
    """Prints `text` as it is, at once; a terminal breaks it where it ends."""
    console.print(text, highlight=False, markup=False, emoji=False, soft_wrap=True)
    console.file.flush()


def fitting(widths: Sequence[int], expendable: Sequence[int], room: float) -> list[int]:
    """Which columns of these widths fit in a line, with two spaces between them: all but as many as it takes
    of the expendable ones, the first of them first.
    """
    kept = list(range(len(widths)))
    for column in expendable:
        if len(kept) == 1 or sum(widths[i] for i in kept) + 2 * (len(kept) - 1) <= room:
            break
        kept.remove(column)
    return kept


def print_table(
    console: Console,
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    words: Collection[int],
    expendable: Sequence[int] = (),
) -> None:
    """Prints a table without cutting cells. In a narrow terminal the columns `words` wrap between words, then
    the `expendable` ones go, the first of them first; what still does not fit, the terminal breaks.
    """
    columns = list(zip(headings, *rows))
    widths = [max(map(len, column)) for column in columns]
    least = [
        max(len(word) for cell in column for word in cell.split() or [""]) if i in words else widths[i]
        for i, column in enumerate(columns)
    ]
    kept = fitting(least, expendable, console.width if console.is_terminal else math.inf)
    while sum(widths[i] for i in kept) + 2 * (len(kept) - 1) > console.width:
        i = max(kept, key=lambda i: widths[i] - least[i])
        if widths[i] == least[i]:
            break
        widths[i] -= 1
    table = Table(box=None, pad_edge=False, width=sum(widths[i] for i in kept) + 2 * (len(kept) - 1))
    for i in kept:
        side = "left" if i in words else "right"
        table.add_column(headings[i], justify=side, width=widths[i], no_wrap=i not in words)
    for row in rows:
        table.add_row(*(Text(row[i]) for i in kept))  # as it is: a string may hold markup
    console.print(table, crop=False, highlight=False, markup=False)


class Display(Callback):
    """Shows an experiment on `console`."""

    def __init__(self, console: Console):
        self.console = console
        self.rows: list[dict] = []
        self.current: dict = {}
        self.done = 0
        self.drawn = 0.0
        self.live: Live | None = None
        self.bar: Progress | None = None

    def started(self, trainer: Trainer, runs: int, eval_every: int) -> None:
        recipe, estimate = trainer.recipe, trainer.estimate_seconds(eval_every)
        self.runs, self.steps = runs, trainer.steps
        self.starts, self.eval_every = trainer.starts, eval_every
        self.columns = dict(RUN_COLUMNS if runs > 1 else EPOCH_COLUMNS)
        if recipe.averaging != "ema" or not eval_every:
            self.columns.pop("average_val_acc", None)
        batches = " and ".join(map(str, recipe.batch_sizes))
        total = f", {duration(runs * estimate)} for {runs}" if runs > 1 else ""
        line(
            self.console,
            f"{recipe.name} on {trainer.dataset.name}, {trainer.execution.device}: {self.steps} steps of "
            f"{batches} in {recipe.dtype}; built in {duration(trainer.build_seconds)}; a run will "
            f"take about {duration(estimate)}{total}",
        )
        if recipe.name == "smoke":
            line(self.console, "smoke is for a first look and for tests: its numbers mean nothing")
        if self.console.is_terminal and not self.console.is_jupyter:
            if runs * estimate > BAR_FROM_SECONDS:
                bar = [BarColumn(min(40, self.console.width - 46))] if self.console.width > 50 else []
                shown = TextColumn("{task.description}"), *bar, TaskProgressColumn(), TimeRemainingColumn()
                self.bar = Progress(*shown, console=self.console, auto_refresh=False)
                self.task = self.bar.add_task("", total=runs * self.steps)
            self.live = Live(console=self.console, auto_refresh=False)
            self.live.start()
            self._draw()
        else:
            line(self.console, "  ".join(name.rjust(self._width(name)) for name in self.columns))

    def __exit__(self, *_) -> None:
        if self.live:
            self.live.update(self._table(self.rows), refresh=True)
            self.live.stop()

    def step(self, run: Run, step: int) -> None:
        tested = self._tested(step)
        if self.live and (tested or time.perf_counter() - self.drawn > REFRESH_SECONDS):
            epoch = len(run.epochs) + 1
            self.current = {"run": self.done + 1, "seed": run.seed, "epoch": epoch}
            if self.bar:
                what = [f"run {self.done + 1} of {self.runs}"] if self.runs > 1 else []
                what.append(f"{tested} ..." if tested else f"epoch {epoch}")
                done, all = self.done * self.steps + step, self.runs * self.steps
                # An evaluation is left, which may take long: not yet 100 %.
                self.bar.update(self.task, completed=min(done, 0.99 * all), description=", ".join(what))
            self._draw()

    def _tested(self, step: int) -> str:
        """What comes after a step that is no training."""
        if step == self.steps:
            return "evaluating"
        ends = step in self.starts and self.eval_every
        return "validating" if ends and self.starts.index(step) % self.eval_every == 0 else ""

    def epoch(self, run: Run, row: dict) -> None:
        if self.runs == 1:
            self._add(row)

    def finished(self, run: Run) -> None:
        self.done += 1
        if self.runs > 1:
            fields = {
                name: getattr(run, name) for name in ("seed", "accuracy", "train_seconds", "eval_seconds")
            }
            self._add({**run.epochs[-1], **fields, "run": self.done})
        if self.bar:
            self.bar.update(self.task, completed=self.done * self.steps)

    def _add(self, row: dict) -> None:
        self.rows.append(row)
        self.current = {}
        if self.live:
            self._draw()
        else:
            line(
                self.console,
                "  ".join(self._cell(row, name).rjust(self._width(name)) for name in self.columns),
            )

    def _cell(self, row: dict, name: str) -> str:
        value = row.get(name)
        if value is None:
            return ""
        return format(value, self.columns[name]) if math.isfinite(value) else str(value)

    @staticmethod
    def _width(name: str) -> int:
        return max(len(name), WIDEST.get(name, 7))

    def _table(self, rows: list[dict]) -> Table:
        """Of the columns that fit in the terminal."""
        columns = [[name, *(self._cell(row, name) for row in rows)] for name in self.columns]
        widths = [max(self._width(column[0]), *map(len, column)) for column in columns]
        table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
        kept = fitting(widths, _expendable(self.columns), self.console.width)
        for i in kept:
            table.add_column(columns[i][0], justify="right", min_width=widths[i], no_wrap=True)
        for row in zip(*(columns[i][1:] for i in kept)):
            table.add_row(*row)
        return table

    def _draw(self) -> None:
        self.drawn = time.perf_counter()
        rows = [*self.rows, self.current] if self.current else self.rows
        table = self._table(rows[-max(4, self.console.height - 7) :])  # what fits on the screen
        self.live.update(Group(table, self.bar) if self.bar else table, refresh=True)


def synthetic_banner(console: Console, recipe: str, reason: str) -> None:
    """Prints, so that no one can miss it, that CIFAR-10 is not available."""
    text = Text.assemble(
        ("SYNTHETIC DATA: THIS IS NOT CIFAR-10", "bold"),
        f"\n\n{reason}\n\n"
        f"Recipe {recipe} trains on built-in shapes; its accuracy says nothing about CIFAR-10.",
    )
    console.print(Panel(text, border_style="bold red", style="red", expand=False, padding=(1, 4)))


def _expendable(headings: Sequence[str]) -> list[int]:
    """Which columns a narrow terminal does without, in that order."""
    headings = list(headings)
    return [headings.index(name) for name in EXPENDABLE if name in headings]


def summarise(console: Console, result: Result, runs: int) -> None:
    """Prints the statistics of an experiment's finished runs, and what they ran on."""
    if result.interrupted:
        line(console, f"interrupted: {len(result.runs)} of {runs} runs finished")
    if not result.runs:
        return
    console.print()
    headings = ("", "mean", "std", "min", "max", "95 % interval")
    print_table(console, headings, _statistics(result), words={0}, expendable=_expendable(headings))
    console.print()
    failed = sum(run.status == "failed" for run in result.runs)
    if failed:
        line(console, f"{failed} of {len(result.runs)} runs failed: the loss became NaN or infinite")
    line(
        console,
        f"n: {len(result.runs)}   test-time views: {result.recipe.tested}   data: {result.dataset}   "
        f"dtype: {result.recipe.dtype}",
    )
    line(console, f"device: {result.device_name}")
    sizes = [f"{size / 2**20:,.0f} MiB {kind}" for kind, size in result.memory.items() if size is not None]
    if sizes:  # on Windows the host's is not known
        line(console, f"peak memory: {', '.join(sizes)}")
    line(console, f"wall clock of the process: {duration(result.wall_seconds)}")
    line(console, result.claim)
    for what, path in result.written.items():
        line(console, f"{what}: {path}")


def _statistics(result: Result) -> list[list[str]]:
    """A row for each quantity."""
    rows = []
    for name, stats, written in (
        ("accuracy", result.accuracy, "{:.4f}".format),
        ("train s", result.train_seconds, seconds),
        ("evaluation s", result.eval_seconds, seconds),
        ("validation s", result.val_seconds, seconds),  # of an epoch
        ("wall clock s", result.run_wall_seconds, seconds),  # of a run
    ):
        if stats["n"]:
            known = [stats[key] for key in ("mean", "std", "min", "max")]
            cells = ["" if value is None else written(value) for value in known]
            rows.append([name, *cells, " .. ".join(written(end) for end in stats["ci95"] or ())])
    return rows


def seconds(value: float) -> str:
    """Four digits or more, and milliseconds at the finest."""
    return format(value, ".3f" if abs(value) < 10 else ".2f" if abs(value) < 100 else ".1f")
