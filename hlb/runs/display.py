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
from rich.markup import escape
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

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
    console.print(text, highlight=False, markup=False, soft_wrap=True)
    console.file.flush()


def print_table(
    console: Console, headings: Sequence[str], rows: Sequence[Sequence[str]], words: Collection[int]
) -> None:
    """Prints a table without cutting cells; in a narrow terminal the columns `words` wrap between words."""
    table, least = Table(box=None, pad_edge=False), 0
    for i, column in enumerate(zip(headings, *rows)):
        width = max(len(part) for cell in column for part in (cell.split() if i in words else [cell]))
        table.add_column(headings[i], justify="left" if i in words else "right", min_width=width)
        least += width + 2 * (i > 0)
    for row in rows:
        table.add_row(*row)
    console.print(table, width=max(console.width, least), crop=False, highlight=False, markup=False)


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
        self.columns = dict(RUN_COLUMNS if runs > 1 else EPOCH_COLUMNS)
        if recipe.averaging != "ema" or not eval_every:
            self.columns.pop("average_val_acc", None)
        total = f", {duration(runs * estimate)} for {runs}" if runs > 1 else ""
        line(
            self.console,
            f"{recipe.name} on {trainer.dataset.name}, {trainer.execution.device}: {self.steps} steps of "
            f"{recipe.batch_size} in {recipe.dtype}; built in {duration(trainer.build_seconds)}; a run will "
            f"take about {duration(estimate)}{total}",
        )
        if recipe.name == "smoke":
            line(self.console, "smoke is for a first look and for tests: its numbers mean nothing")
        if self.console.is_terminal and not self.console.is_jupyter:
            if runs * estimate > BAR_FROM_SECONDS:
                shown = (
                    TextColumn("{task.description}"),
                    BarColumn(),
                    TaskProgressColumn(),
                    TimeRemainingColumn(),
                )
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
        if self.live and time.perf_counter() - self.drawn > REFRESH_SECONDS:
            epoch = len(run.epochs) + 1
            self.current = {"run": self.done + 1, "seed": run.seed, "epoch": epoch}
            if self.bar:
                where = (
                    f"run {self.done + 1} of {self.runs}, epoch {epoch}"
                    if self.runs > 1
                    else f"epoch {epoch}"
                )
                self.bar.update(self.task, completed=self.done * self.steps + step, description=where)
            self._draw()

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
        return max(len(name), 8)

    def _table(self, rows: list[dict]) -> Table:
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        for name in self.columns:
            table.add_column(name, justify="right", min_width=self._width(name), no_wrap=True)
        for row in rows:
            table.add_row(*(self._cell(row, name) for name in self.columns))
        return table

    def _draw(self) -> None:
        self.drawn = time.perf_counter()
        rows = [*self.rows, self.current] if self.current else self.rows
        table = self._table(rows[-max(4, self.console.height - 7) :])  # what fits on the screen
        self.live.update(Group(table, self.bar) if self.bar else table, refresh=True)


def synthetic_banner(console: Console, recipe: str, reason: str) -> None:
    """Prints, so that no one can miss it, that CIFAR-10 is not available."""
    text = (
        "[b]SYNTHETIC DATA: THIS IS NOT CIFAR-10[/b]\n\n"
        f"{escape(reason)}\n\n"
        f"Recipe {recipe} trains on built-in shapes; its accuracy says nothing about CIFAR-10."
    )
    console.print(Panel(text, border_style="bold red", style="red", expand=False, padding=(1, 4)))


def summarise(console: Console, result: Result, runs: int) -> None:
    """Prints the statistics of an experiment's finished runs, and what they ran on."""
    if result.interrupted:
        line(console, f"interrupted: {len(result.runs)} of {runs} runs finished")
    if not result.runs:
        return
    console.print()
    console.print(_statistics(result))
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


def _statistics(result: Result) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("", "mean", "std", "min", "max", "95 % interval"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
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
            table.add_row(name, *cells, " .. ".join(written(end) for end in stats["ci95"] or ()))
    return table


def seconds(value: float) -> str:
    """Four digits or more, and milliseconds at the finest."""
    return format(value, ".3f" if abs(value) < 10 else ".2f" if abs(value) < 100 else ".1f")
