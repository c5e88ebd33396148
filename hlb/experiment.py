"""An experiment: some runs of one recipe, with their statistics, ledger lines and checkpoint. The library's front door."""

from __future__ import annotations

import dataclasses
import datetime
import re
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from . import checkpoint, environment, statistics
from . import ledger as ledgers
from .data import Dataset, load
from .display import Display, closing_lines, duration, statistics_table
from .errors import UserError
from .execution import Execution, resolve
from .files import check_writable
from .recipes import Recipe
from .recipes import recipe as configure
from .train import Run, Trainer, Watcher

DEFAULT = "record94"

BANNER = """\
 SYNTHETIC DATA - THIS IS NOT CIFAR-10
 {reason}
 Training recipe {recipe} on built-in shapes instead. Its accuracy means nothing for CIFAR-10.
 For the real thing: give --data DIR with cifar-10-batches-py/ in it, or connect to download it."""


@dataclass
class Result:
    """What `train` returns: the resolved recipe and execution, the finished runs, and the last run's network.

    Statistics are dicts of mean, std, min, max, ci95 and n over the runs that did not fail.
    """

    recipe: Recipe
    execution: Execution
    dataset: str
    runs: list[Run]
    network: torch.nn.Module | None
    device_name: str
    memory: dict
    wall_seconds: float
    interrupted: bool = False

    def _ok(self) -> list[Run]:
        return [run for run in self.runs if run.status == "ok"]

    @property
    def accuracy(self) -> dict:
        return statistics.summary([run.accuracy for run in self._ok()])

    @property
    def train_seconds(self) -> dict:
        return statistics.summary([run.train_seconds for run in self._ok()])

    @property
    def eval_seconds(self) -> dict:
        return statistics.summary([run.eval_seconds for run in self._ok()])

    @property
    def val_seconds(self) -> dict:
        return statistics.summary([row["val_seconds"] for run in self._ok() for row in run.epochs
                                   if row["val_seconds"] is not None])

    @property
    def run_wall_seconds(self) -> dict:
        return statistics.summary([run.wall_seconds for run in self._ok()])

    @property
    def claim(self) -> str:
        """Whether these runs are a record claim, in a sentence."""
        ok = self._ok()
        return statistics.record_claim([run.accuracy for run in ok], len(self.runs) - len(ok), self.dataset,
                                       self.recipe.target)[1]

    def json(self) -> dict:
        """What `hlb train --json` prints."""
        return {"recipe": self.recipe.name, "dataset": self.dataset, "device": self.execution.device,
                "device_name": self.device_name, "dtype": self.recipe.dtype, "views": self.recipe.views,
                "runs": [dataclasses.asdict(run) for run in self.runs], "accuracy": self.accuracy,
                "train_seconds": self.train_seconds, "eval_seconds": self.eval_seconds, "val_seconds": self.val_seconds,
                "wall_seconds": self.wall_seconds, "memory": self.memory, "record_claim": self.claim,
                "interrupted": self.interrupted, "recipe_fields": dataclasses.asdict(self.recipe),
                "execution_fields": dataclasses.asdict(self.execution), "versions": environment.versions()}


class _Quiet(Watcher):
    """A display that shows nothing."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def run(self, run: Run) -> None:
        pass


def train(recipe: str | Recipe | None = None, *, settings: dict | list[str] = (), data: str | Dataset = "auto",
          execution: Execution = Execution(), seed: int = 0, runs: int = 1, eval_every: int = 1,
          ledger: str | Path | None = ledgers.DEFAULT, save: str | Path | None = None, quiet: bool = False,
          console: Console | None = None, started: float | None = None) -> Result:
    """Trains `runs` runs of a recipe, seeds `seed`, `seed + 1`, ..., and returns their `Result`.

    `recipe` is a name of `hlb.RECIPES`, a `Recipe`, or None for the default: record94, or smoke where `data` is "auto"
    and CIFAR-10 cannot be had. `settings` replaces fields, as `--set`. `data` is auto, cifar10, synthetic, a folder, or
    a `Dataset`. `eval_every` is in epochs, 0 for never. Each finished run is appended to `ledger` (None: nowhere);
    `save` receives the last finished run's weights. The table goes to `console` (standard output), unless `quiet`.
    `wall_seconds` count from `started`, a `time.perf_counter()` (now). An interrupt ends with the runs that had finished.
    Raises UserError.
    """
    started = time.perf_counter() if started is None else started
    for option, value, least in (("--runs", runs, 1), ("--eval-every", eval_every, 0), ("--seed", seed, 0)):
        if value < least or value >= 2**63:
            raise UserError(f"{option}: got {value}, accepted is a whole number of {least} or more")
    for option, path in (("--ledger", ledger), ("--save", save)):
        if path is not None:
            check_writable(path, option)
    console = console or Console(file=sys.stdout)
    resolve(configure(recipe or DEFAULT, settings), execution)  # a mistake is told before anything is downloaded
    dataset = data if isinstance(data, Dataset) else load(data)
    fell_back = data == "auto" and dataset.name == "synthetic"
    recipe, execution = resolve(configure(recipe or ("smoke" if fell_back else DEFAULT), settings), execution)
    if fell_back and not quiet:
        reason = "CIFAR-10 is not on disk and could not be downloaded."
        console.rule(style="bold red")
        console.print(BANNER.format(reason=reason, recipe=recipe.name), style="bold red", highlight=False)
        console.rule(style="bold red")

    environment.reset_peak_memory(execution.device)
    with _out_of_memory_explained(recipe):
        trainer = Trainer(recipe, execution, dataset)
        name = environment.device_name(execution.device)
        if not quiet:
            _announce(console, trainer, name, runs, eval_every)
        display = _Quiet() if quiet else Display(console, runs, trainer.steps, recipe.averaging == "ema" and eval_every > 0)
        finished, interrupted, state = [], False, environment.gpu_state(execution.device)
        provenance = _provenance(recipe, execution, dataset, trainer, name)
        with display:
            for i in range(runs):
                try:
                    run = trainer.run(seed + i, eval_every, display)
                except KeyboardInterrupt:
                    interrupted = True
                    break
                finished.append(run)
                display.run(run)
                if ledger is not None:
                    after = environment.gpu_state(execution.device)
                    ledgers.append(ledger, _record(run, provenance, environment.peak_memory(execution.device), state, after))
                    state = after
                if save is not None:
                    checkpoint.save(save, trainer, run)
    result = Result(recipe, execution, dataset.name, finished, trainer.network if finished else None, name,
                    environment.peak_memory(execution.device), time.perf_counter() - started, interrupted)
    if finished and not interrupted:
        trainer.adopt_average()
    if not quiet:
        if interrupted:
            console.print(f"interrupted: {len(finished)} of {runs} runs finished", style="bold", highlight=False)
        if finished:
            console.print(statistics_table(result))
        for line in closing_lines(result) if finished else []:
            console.print(line, highlight=False, soft_wrap=True)
    return result


def _announce(console: Console, trainer: Trainer, device: str, runs: int, eval_every: int) -> None:
    recipe, estimate = trainer.recipe, trainer.estimate_seconds(eval_every)
    total = f", {duration(runs * estimate)} for {runs}" if runs > 1 else ""
    console.print(f"{recipe.name} on {trainer.dataset.name}: {trainer.steps} steps of {recipe.batch_size} in {recipe.dtype} "
                  f"on {device}; built in {duration(trainer.build_seconds)}; a run will take about "
                  f"{duration(estimate)}{total}", highlight=False, soft_wrap=True)
    if recipe.name == "smoke":
        console.print("smoke is for a first look and for tests: its numbers mean nothing", highlight=False)


def _provenance(recipe: Recipe, execution: Execution, dataset: Dataset, trainer: Trainer, device_name: str) -> dict:
    """What all runs of an experiment have in common in the ledger."""
    commit, dirty = environment.commit()
    return {"recipe": recipe.name, "recipe_fields": dataclasses.asdict(recipe), "execution": dataclasses.asdict(execution),
            "dataset": dataset.name, "device": execution.device, "device_name": device_name,
            "versions": environment.versions(), "commit": commit, "dirty": dirty, "command": shlex.join(["hlb", *sys.argv[1:]]),
            "build_seconds": trainer.build_seconds, "compile_seconds": trainer.compile_seconds,
            "first_step_seconds": trainer.first_step_seconds}


def _record(run: Run, provenance: dict, memory: dict, before: dict | None, after: dict | None) -> dict:
    """A run's line in the ledger."""
    return {**provenance, **dataclasses.asdict(run), "time": datetime.datetime.now(datetime.timezone.utc).isoformat(),
            "peak_memory_allocated": memory["allocated"], "peak_memory_reserved": memory["reserved"],
            "peak_memory_resident": memory["resident"], "gpu_before": before, "gpu_after": after}


class _out_of_memory_explained:
    """Turns an allocator's error into a UserError: how much was asked for, and which setting lowers it."""

    def __init__(self, recipe: Recipe):
        self.recipe = recipe

    def __enter__(self):
        return self

    def __exit__(self, kind, error, _):
        if not isinstance(error, RuntimeError):
            return
        text = str(error)
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in text:
            return
        asked = re.search(r"[Tt]ried to allocate ([\d.]+ \w+)", text)
        raise UserError(f"out of memory: {asked.group(1) if asked else 'more'} was needed on top of what was in use; lower it "
                        f"with --set batch_size (now {self.recipe.batch_size}) or eval_batch_size "
                        f"(now {self.recipe.eval_batch_size})") from None
