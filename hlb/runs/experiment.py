"""An experiment: some runs of one recipe, with their statistics, ledger lines and checkpoint. The library's
front door.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from ..data import Dataset, load
from ..errors import UserError
from ..execution import Execution, device_of, out_of_memory_explained, resolve
from ..files import check_writable
from ..recipes import Recipe
from ..settings import fields
from ..settings import recipe as configure
from ..train import Run, Trainer, Watcher
from . import checkpoint, environment, statistics
from . import ledger as ledgers
from .display import Display, summarise, synthetic_banner


def default(execution: Execution) -> str:
    """The recipe of the main job: the fastest way to 94 % on a GPU, or on a CPU."""
    return "cpu94" if device_of(execution) == "cpu" else "record94"


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
        return statistics.summary(
            [row["val_seconds"] for run in self._ok() for row in run.epochs if row["val_seconds"] is not None]
        )

    @property
    def run_wall_seconds(self) -> dict:
        return statistics.summary([run.wall_seconds for run in self._ok()])

    @property
    def claim(self) -> str:
        """Whether these runs are a record claim, in a sentence."""
        ok = self._ok()
        return statistics.record_claim(
            [run.accuracy for run in ok], len(self.runs) - len(ok), self.dataset, self.recipe.target
        )[1]

    def json(self) -> dict:
        """What `hlb train --json` prints."""
        return {
            "recipe": self.recipe.name,
            "dataset": self.dataset,
            "device": self.execution.device,
            "device_name": self.device_name,
            "dtype": self.recipe.dtype,
            "views": self.recipe.views,
            "views_fraction": self.recipe.views_fraction,
            "runs": [dataclasses.asdict(run) for run in self.runs],
            "accuracy": self.accuracy,
            "train_seconds": self.train_seconds,
            "eval_seconds": self.eval_seconds,
            "val_seconds": self.val_seconds,
            "wall_seconds": self.wall_seconds,
            "memory": self.memory,
            "record_claim": self.claim,
            "interrupted": self.interrupted,
            "recipe_fields": fields(self.recipe),
            "execution_fields": dataclasses.asdict(self.execution),
            "versions": environment.versions(),
        }


def check_counts(runs: int, eval_every: int, seed: int) -> None:
    """Raises UserError for an invalid number of runs, interval of validation or first seed."""
    for option, value, least in (("--runs", runs, 1), ("--eval-every", eval_every, 0), ("--seed", seed, 0)):
        if not least <= value < 2**63 - (runs if option == "--seed" else 0):
            raise UserError(f"{option}: got {value}, accepted is a whole number from {least} up, below 2**63")


def begin(
    recipe: str | Recipe | None,
    settings: dict | list[str],
    data: str | Dataset,
    execution: Execution,
    console: Console,
) -> tuple[Recipe, Execution, Dataset]:
    """Recipe and execution, resolved, and the data set; arguments as `train`. Mistakes in the settings are
    reported before anything is downloaded; a banner says when synthetic data stand in for CIFAR-10.
    """
    first = resolve(configure(default(execution) if recipe is None else recipe, settings), execution)
    dataset = data if isinstance(data, Dataset) else load(data)
    if data == "auto" and dataset.name == "synthetic":
        if recipe is None:
            first = resolve(configure("smoke", settings), execution)
        synthetic_banner(console, first[0].name, dataset.note)
    return *first, dataset


def train(
    recipe: str | Recipe | None = None,
    *,
    settings: dict | list[str] = (),
    data: str | Dataset = "auto",
    execution: Execution = Execution(),
    seed: int = 0,
    runs: int = 1,
    eval_every: int = 1,
    ledger: str | Path | None = ledgers.DEFAULT,
    save: str | Path | None = None,
    quiet: bool = False,
    console: Console | None = None,
    started: float | None = None,
) -> Result:
    """Trains `runs` runs of a recipe, seeds `seed`, `seed + 1`, ..., and returns their `Result`.

    `recipe` is a name of `hlb.RECIPES`, a `Recipe`, or None for the default: record94, on a CPU cpu94, or
    smoke where `data` is "auto" and CIFAR-10 cannot be had. `settings` replaces fields, as `--set`. `data` is
    auto, cifar10, synthetic, a folder, or a `Dataset`. `eval_every` is in epochs, 0 for never. Each finished
    run is appended to `ledger` (None: nowhere); `save` receives the last finished run's weights. The table
    goes to `console` (standard output), unless `quiet`. `wall_seconds` count from `started`, a
    `time.perf_counter()` (now). An interrupt returns the runs that had finished. Raises UserError.
    """
    started = time.perf_counter() if started is None else started
    check_counts(runs, eval_every, seed)
    for option, path in (("--ledger", ledger), ("--save", save)):
        if path is not None:
            check_writable(path, option)
    console = console or Console(file=sys.stdout, quiet=quiet)
    recipe, execution, dataset = begin(recipe, settings, data, execution, console)

    finished, interrupted = [], False
    environment.reset_peak_memory(execution.device)
    with out_of_memory_explained(recipe), Watcher() if quiet else Display(console) as watcher:
        trainer = Trainer(recipe, execution, dataset)
        provenance = ledgers.provenance(trainer)
        watcher.started(trainer, runs, eval_every)
        try:
            for i in range(runs):
                run = trainer.run(seed + i, eval_every, watcher)
                finished.append(run)
                watcher.finished(run)
                if ledger is not None:
                    ledgers.append(ledger, ledgers.record(run, provenance))
                if save is not None and run.status == "ok":
                    checkpoint.save(save, trainer, run)
            trainer.averaging.adopt()
        except KeyboardInterrupt:
            interrupted = True
    result = Result(
        recipe,
        execution,
        dataset.name,
        finished,
        None if interrupted else trainer.network,
        provenance["device_name"],
        environment.peak_memory(execution.device),
        time.perf_counter() - started,
        interrupted,
    )
    if not quiet:
        summarise(console, result, runs)
    return result
