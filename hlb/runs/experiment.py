"""An experiment: some runs of one recipe, with their statistics, ledger lines and checkpoint. The library's
front door.
"""

from __future__ import annotations

import dataclasses
import operator
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console

import kernels
from kernels.base import launch

from ..data import Dataset, load
from ..errors import UserError, tell
from ..execution import Execution, device_of, resolve, shortage_explained, torch_defaults
from ..files import check_writable, noted
from ..recipes import Recipe
from ..settings import fields
from ..settings import recipe as configure
from ..train import Callback, Run, Trainer
from . import checkpoint, environment, statistics
from . import ledger as ledgers
from .callbacks import Callbacks, checked
from .classifier import Classifier
from .display import Display, duration, line, summarise, synthetic_banner

# Seconds that Triton's interpreter takes for a pixel of an image and a channel of base_depth in a step, by
# steps of smoke on a CPU of 2.5 GHz; and those of a step that it is not refused for.
INTERPRETED, PATIENCE = 2e-3, 600.0


def default(execution: Execution) -> str:
    """The recipe of the main job: the fastest way to 94 % on a GPU, or on a CPU."""
    return "cpu94" if device_of(execution) == "cpu" else "record94"


@dataclass
class Result:
    """What `train` returns: the resolved recipe and execution, the finished runs, and the last run's network
    with what its predictions need (None where the runs were interrupted).

    Statistics are dicts of mean, std, min, max, ci95 and n over the runs that did not fail.
    """

    recipe: Recipe
    execution: Execution
    dataset: str
    runs: list[Run]
    classifier: Classifier | None
    device_name: str
    memory: dict
    wall_seconds: float
    interrupted: bool = False
    written: dict[str, str] = field(default_factory=dict)  # what -> file
    unwritten: list[str] = field(default_factory=list)  # why a file was not, a line each

    @property
    def network(self) -> torch.nn.Module | None:
        """As `train.Trainer` builds it: of normalised images, and for more than predictions. To predict, take
        `classifier`.
        """
        return self.classifier and self.classifier.network

    def _ok(self) -> list[Run]:
        return [run for run in self.runs if run.status == "ok"]

    @property
    def accuracy(self) -> dict:
        return statistics.summary([run.accuracy for run in self._ok()])

    @property
    def train_seconds(self) -> dict:
        return statistics.summary([run.train_seconds for run in self._ok()], least=0)

    @property
    def eval_seconds(self) -> dict:
        return statistics.summary([run.eval_seconds for run in self._ok()], least=0)

    @property
    def val_seconds(self) -> dict:
        return statistics.summary(
            [
                row["val_seconds"]
                for run in self._ok()
                for row in run.epochs
                if row["val_seconds"] is not None
            ],
            least=0,
        )

    @property
    def run_wall_seconds(self) -> dict:
        return statistics.summary([run.wall_seconds for run in self._ok()], least=0)

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


def check_counts(runs: int, eval_every: int, seed: int) -> tuple[int, int, int]:
    """The three as Python's integers (NumPy's are no JSON). Raises UserError for an invalid number of runs,
    interval of validation or first seed.
    """
    counts = {"--runs": (runs, 1), "--eval-every": (eval_every, 0), "--seed": (seed, 0)}
    checked = []
    for option, (value, least) in counts.items():
        whole = hasattr(value, "__index__") and not isinstance(value, bool)
        if not whole or not least <= value < 2**63 - (checked[0] if option == "--seed" else 0):
            raise UserError(
                f"{option}: got {value!r}, accepted is a whole number from {least} up, below 2**63"
            )
        checked.append(operator.index(value))
    return tuple(checked)


def check_interpreted(recipe: Recipe, execution: Execution) -> str:
    """What a training step takes where kernels run in Triton's interpreter, in a line; nothing where none do.
    Raises UserError where that is too long.
    """
    chosen = kernels.choose(execution.kernels).values()
    if not launch.INTERPRETED or execution.device.startswith("cuda") or "triton" not in chosen:
        return ""
    size, batch = max(recipe.sizes), max(recipe.batch_sizes)
    cost = INTERPRETED * batch * size**2 * recipe.base_depth
    said = (
        f"TRITON_INTERPRET=1: a step of {batch} images of {size}x{size}, base_depth="
        f"{recipe.base_depth}, takes about {duration(cost)} in Triton's interpreter"
    )
    if cost > PATIENCE:
        raise UserError(f"{said}; lower these fields, or take --kernels reference")
    return said


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
    if not isinstance(execution, Execution):
        raise UserError(f"execution: got {execution!r}, accepted is an hlb.Execution")
    if not isinstance(data, (str, Path, Dataset)):
        raise UserError(f"data: got {type(data).__name__}, accepted is a word, a folder or an hlb.Dataset")
    first = resolve(configure(default(execution) if recipe is None else recipe, settings), execution)
    if said := check_interpreted(*first):
        line(console, said)
    line(console, "building ...")
    dataset = data if isinstance(data, Dataset) else load(data)
    if data == "auto" and dataset.name == "synthetic":
        if recipe is None:
            first = resolve(configure("smoke", settings), execution)
        synthetic_banner(console, first[0].name, dataset.note)
    return *first, dataset


@torch_defaults()
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
    callbacks: Sequence[Callback] = (),
    quiet: bool = False,
    console: Console | None = None,
    started: float | None = None,
) -> Result:
    """Trains `runs` runs of a recipe, seeds `seed`, `seed + 1`, ..., and returns their `Result`.

    `recipe` is a name of `hlb.RECIPES`, a `Recipe`, or None for the default: record94, on a CPU cpu94, or
    smoke where `data` is "auto" and CIFAR-10 cannot be had. `settings` replaces fields, as `--set`. `data` is
    auto, cifar10, synthetic, a folder, or a `Dataset`. `eval_every` is in epochs, 0 for never. Each finished
    run is appended to `ledger` (None: nowhere); `save` receives the last finished run's weights. Where they
    cannot be written any more, training goes on, and the result's `unwritten` says so. `callbacks` are
    instances of `hlb.Callback`, called in this order. The table goes to `console` (standard output), unless
    `quiet`. `wall_seconds` count from `started`, a `time.perf_counter()` (now). An interrupt returns the runs
    that had finished. Raises UserError.
    """
    started = time.perf_counter() if started is None else started
    runs, eval_every, seed = check_counts(runs, eval_every, seed)
    callbacks = Callbacks(checked(callbacks))
    for option, path in (("--ledger", ledger), ("--save", save)):
        if path is not None:
            check_writable(path, option, append=option == "--ledger")
    console = console or Console(file=sys.stdout, quiet=quiet)
    if not quiet:
        callbacks = Callbacks([Display(console), callbacks])
    recipe, execution, dataset = begin(recipe, settings, data, execution, console)

    finished, interrupted = [], False
    written, unwritten = {}, []
    environment.reset_peak_memory(execution.device)
    with shortage_explained(recipe), callbacks:
        trainer = Trainer(recipe, execution, dataset)
        provenance = ledgers.provenance(trainer)
        callbacks.started(trainer, runs, eval_every)
        try:
            for i in range(runs):
                run = trainer.run(seed + i, eval_every, callbacks)
                finished.append(run)
                callbacks.finished(run)
                if ledger is not None:
                    with noted(unwritten, "--ledger", ledger):
                        ledgers.append(ledger, ledgers.record(run, provenance))
                        written["ledger"] = str(ledger)
                if save is not None and run.status == "ok":
                    with noted(unwritten, "--save", save):
                        checkpoint.save(save, trainer, run)
                        written["model"] = str(save)
            trainer.averaging.adopt()
        except KeyboardInterrupt:
            interrupted = True
    result = Result(
        recipe,
        execution,
        dataset.name,
        finished,
        None if interrupted else Classifier(trainer.network, dataset.mean, dataset.std, dataset.classes),
        provenance["device_name"],
        environment.peak_memory(execution.device),
        time.perf_counter() - started,
        interrupted,
        written,
        list(dict.fromkeys(unwritten)),
    )
    for why in result.unwritten:
        tell("hlb", why)
    if not quiet:
        summarise(console, result, runs)
    return result
