"""What a person sees of training: a table that updates in place on a terminal, and rows that append elsewhere.

One run shows a row per epoch, several runs a row per run. On a terminal a progress bar with the time left stands below.
"""

from __future__ import annotations

import math
import time

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from .train import Run, Watcher

# heading -> how a value is written; a value that is None is left blank
EPOCH_COLUMNS = {"epoch": "d", "train_loss": ".4f", "val_loss": ".4f", "train_acc": ".4f", "val_acc": ".4f",
                 "average_val_acc": ".4f", "train_seconds": ".2f"}
RUN_COLUMNS = {"run": "d", "seed": "d", "train_acc": ".4f", "val_acc": ".4f", "accuracy": ".4f", "train_seconds": ".3f",
               "eval_seconds": ".3f"}
REFRESH_SECONDS = 0.1


def duration(seconds: float) -> str:
    """Seconds for people: `0.8 s`, `42 s`, `13 min`, `2 h 05 min`."""
    if seconds < 99.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


class Display(Watcher):
    """Shows `runs` runs of `steps` steps on `console`. Use as a context manager around the runs."""

    def __init__(self, console: Console, runs: int, steps: int, averages: bool):
        self.console, self.runs, self.steps = console, runs, steps
        self.columns = dict(RUN_COLUMNS if runs > 1 else EPOCH_COLUMNS)
        if not averages:
            self.columns.pop("average_val_acc", None)
        self.rows: list[dict] = []
        self.current: dict = {}
        self.done = 0
        self.shown = 0.0
        self.live = None
        if console.is_terminal and not console.is_jupyter:
            self.progress = Progress(TextColumn("{task.description}"), BarColumn(bar_width=None), TextColumn("{task.percentage:>3.0f} %"),
                                     TimeRemainingColumn(), console=console, auto_refresh=False, expand=True)
            self.task = self.progress.add_task("", total=runs * steps)
            self.live = Live(console=console, auto_refresh=False, transient=False)

    def __enter__(self) -> Display:
        if self.live:
            self.live.start()
            self._refresh(force=True)
        else:
            self._print("  ".join(name.rjust(self._width(name)) for name in self.columns))
        return self

    def __exit__(self, *_) -> None:
        if self.live:
            self.current = {}
            self.live.update(self._table(self.rows), refresh=True)
            self.live.stop()

    def step(self, run: Run, step: int) -> None:
        if self.live:
            epoch = len(run.epochs) + 1
            self.current = {"run": self.done + 1, "seed": run.seed} if self.runs > 1 else {"epoch": epoch}
            self.progress.update(self.task, completed=self.done * self.steps + step,
                                 description=f"run {self.done + 1} of {self.runs}" if self.runs > 1 else f"step {step}")
            self._refresh()

    def epoch(self, run: Run, row: dict) -> None:
        if self.runs == 1:
            self._add(row)

    def run(self, run: Run) -> None:
        """After a run, its evaluation included."""
        self.done += 1
        if self.runs > 1:
            self._add({**(run.epochs[-1] if run.epochs else {}), "run": self.done, "seed": run.seed, "accuracy": run.accuracy,
                       "train_seconds": run.train_seconds, "eval_seconds": run.eval_seconds})
        if self.live:
            self.progress.update(self.task, completed=self.done * self.steps)

    def _add(self, row: dict) -> None:
        self.rows.append(row)
        self.current = {}
        if self.live:
            self._refresh(force=True)
        else:
            self._print("  ".join(self._cell(row, name).rjust(self._width(name)) for name in self.columns))

    def _print(self, line: str) -> None:
        self.console.print(Text(line), soft_wrap=True)
        self.console.file.flush()

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

    def _refresh(self, force: bool = False) -> None:
        now = time.perf_counter()
        if force or now - self.shown > REFRESH_SECONDS:
            self.shown = now
            rows = [*self.rows, self.current] if self.current else self.rows
            self.live.update(Group(self._table(rows[-max(4, self.console.height - 6):]), self.progress), refresh=True)


def statistics_table(result) -> Table:
    """Mean, standard deviation, extremes and confidence interval of what was measured over the finished runs."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("", "mean", "std", "min", "max", "95 % interval"):
        table.add_column(name, justify="left" if not name else "right", no_wrap=True)
    for name, stats, style in (("accuracy", result.accuracy, ".4f"), ("train seconds", result.train_seconds, ".3f"),
                               ("final evaluation seconds", result.eval_seconds, ".3f"),
                               ("validation seconds per epoch", result.val_seconds, ".3f"),
                               ("wall-clock seconds per run", result.run_wall_seconds, ".3f")):
        if stats["n"]:
            cells = ["" if stats[key] is None else format(stats[key], style) for key in ("mean", "std", "min", "max")]
            interval = stats["ci95"]
            table.add_row(name, *cells, "" if interval is None else f"{interval[0]:{style}} .. {interval[1]:{style}}")
    return table


def closing_lines(result) -> list[str]:
    """What stands under the statistics: failures, memory, device, views, record claim."""
    lines = []
    failed = sum(run.status == "failed" for run in result.runs)
    if failed:
        lines.append(f"{failed} of {len(result.runs)} runs failed: the loss became NaN or infinite")
    memory = result.memory
    if memory["allocated"] is not None:
        lines.append(f"peak GPU memory: {memory['allocated'] / 2**20:,.0f} MiB allocated, "
                     f"{memory['reserved'] / 2**20:,.0f} MiB reserved")
    lines.append(f"peak memory of the process: {memory['resident'] / 2**20:,.0f} MiB")
    lines.append(f"device: {result.device_name}   dtype: {result.recipe.dtype}   data: {result.dataset}   "
                 f"test-time views: {result.recipe.views}   n: {len(result.runs)}")
    lines.append(f"wall clock of the process: {duration(result.wall_seconds)}")
    lines.append(result.claim)
    return lines
