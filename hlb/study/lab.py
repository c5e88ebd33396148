"""The lab of `hlb sweep --budget`: trains arms, keeps their runs in the ledger, and counts the seconds.

Runs that choose have seeds `seed`, `seed + 1`, ...; those of the last rung begin at `seed + FRESH`. A
ledger's runs of the same recipe, data set, device and seed are not made again. Those that a sweep with a
budget made, and what it built, have used their part of the budget: a killed sweep that is started again has
what is left.
"""

from __future__ import annotations

import dataclasses
import time
from collections import defaultdict
from pathlib import Path
from statistics import fmean, median

import torch
from rich.console import Console

from ..data import Dataset
from ..errors import UserError
from ..execution import shortage_explained
from ..files import noted
from ..runs import environment, statistics
from ..runs import ledger as ledgers
from ..runs.display import line, seconds
from ..runs.statistics import clocked
from ..settings import fields
from ..step import work
from ..train import Run
from .grid import Configuration, key, text
from .halving import Tally
from .sweep import read
from .trainers import Trainers

FRESH = 1_000_000  # from the first seed of a choice to the first of the last rung


class DeviceLost(Exception):
    """The device answers no more; a new process has to go on."""


class Lab:
    """`configurations` are the arms, by number; halving.Lab says what is asked of it. `unwritten` says why
    runs are not in the ledger.
    """

    def __init__(
        self,
        configurations: list[Configuration],
        dataset: Dataset,
        *,
        budget: float,
        started: float,
        seed: int,
        eval_every: int,
        ledger: Path,
        console: Console,
    ):
        self.configurations, self.dataset = configurations, dataset
        self.budget, self.started, self.seed, self.eval_every = budget, started, seed, eval_every
        self.ledger, self.console = ledger, console
        self.dropped: dict[int, str] = {}
        self.unwritten: list[str] = []
        self.trainers = Trainers(self.dataset, configurations)
        self.device_name = environment.device_name(configurations[0].execution.device)
        # (arm, fresh) -> seed -> record
        self.runs: dict[tuple[int, bool], dict[int, dict]] = defaultdict(dict)
        # arm -> seconds of each run, on the clock and off it
        self.took: dict[int, list[float]] = defaultdict(list)
        self.builds: list[float] = []  # seconds of each, and of those that shared another one's network
        self.shared: list[float] = []
        examples = len(dataset.tensors[0])
        self.work = [work(one.recipe, examples) for one in configurations]
        self.pace: float | None = None  # seconds per `work`, before there are runs
        self.spent = 0.0  # seconds of the budget, before this process
        self._resume()

    def _resume(self) -> None:
        """Takes over what the ledger has of these arms."""
        arms = {text(one.recipe): arm for arm, one in enumerate(self.configurations)}
        builds = set()
        for record in read(self.ledger):
            trained, dataset, seed = key(record)
            arm = arms.get(trained)
            where = (dataset, record.get("device_name"))
            if arm is None or where != (self.dataset.name, self.device_name) or not isinstance(seed, int):
                continue
            if not self.seed <= seed < self.seed + 2 * FRESH:
                continue
            mine = self.runs[arm, seed >= self.seed + FRESH]
            if seed in mine:
                continue
            mine[seed] = record
            if record["status"] == "failed":
                self.dropped[arm] = record.get("fault") or f"seed {seed} diverged"
                continue
            elapsed = max(record.get("elapsed") or 0.0, clocked(record))
            self.took[arm].append(elapsed)
            if record.get("arm"):
                self.spent += elapsed
                builds.add(record.get("build_seconds") or 0.0)
        self.builds = sorted(builds)
        self.spent += sum(builds)

    # What a race asks

    def left(self) -> float:
        return self.budget - self.spent - (time.perf_counter() - self.started)

    def built(self) -> float:
        return sum(self.builds)

    def building(self, arm: int) -> float:
        configuration = self.configurations[arm]
        if self.trainers.has(configuration):
            return 0.0
        if like := self.trainers.like(configuration):
            return fmean(self.shared or [like.build_seconds - like.compile_seconds])
        return max(self.builds, default=0.0)

    def cost(self, arm: int) -> float:
        if self.took[arm]:
            return fmean(self.took[arm])
        done = {other: took for other, took in self.took.items() if took}
        if done:
            return self.work[arm] * fmean(fmean(took) / self.work[other] for other, took in done.items())
        return (self.pace or 0.0) * self.work[arm]

    def build(self, arm: int) -> None:
        self._built(arm)

    def train(self, counts: dict[int, int], fresh: bool = False) -> None:
        forwards = True
        while todo := [arm for arm, n in counts.items() if len(self._ok(arm, fresh)) < n]:
            todo = [arm for arm in todo if arm not in self.dropped]
            for arm in todo if forwards else reversed(todo):
                if self.left() < self.cost(arm) + self.building(arm):
                    return
                self._run(arm, fresh)
            if not todo:
                return
            forwards = not forwards

    def tally(self, arm: int, fresh: bool = False) -> Tally:
        runs = self._ok(arm, fresh)
        if not runs:
            return Tally(0, 0.0, 0.0, 0.0)
        accuracy = statistics.summary([run["accuracy"] for run in runs])
        return Tally(len(runs), accuracy["mean"], (accuracy["std"] or 0.0) ** 2, median(map(clocked, runs)))

    def bound(self, arm: int) -> float | None:
        return statistics.lower_bound([run["accuracy"] for run in self._ok(arm, fresh=True)])

    # How it is done

    def _ok(self, arm: int, fresh: bool = False) -> list[dict]:
        return [run for run in self.runs[arm, fresh].values() if run["status"] == "ok"]

    def samples(self, arm: int, fresh: bool = False) -> list[dict]:
        """The ledger's records of the arm's runs, those that failed as well."""
        return list(self.runs[arm, fresh].values())

    def _built(self, arm: int):
        """Its trainer and provenance; None where it cannot be built, which drops it."""
        configuration = self.configurations[arm]
        if self.trainers.has(configuration):
            return self.trainers.ready(configuration)
        line(self.console, f"building {configuration.name} ...")
        begin, like = time.perf_counter(), self.trainers.like(configuration)
        try:
            with shortage_explained(configuration.recipe):
                trainer, provenance = self.trainers.ready(configuration)
        except Exception as error:
            self._drop(arm, self.seed, error)
            return None
        self.builds.append(time.perf_counter() - begin)
        if like is not None:
            self.shared.append(self.builds[-1])
        if self.pace is None:
            self.pace = trainer.estimate_seconds(self.eval_every) / self.work[arm]
        return trainer, provenance

    def _run(self, arm: int, fresh: bool) -> None:
        """The arm's next run."""
        configuration, mine = self.configurations[arm], self.runs[arm, fresh]
        first = self.seed + FRESH * fresh
        seed = next(seed for seed in range(first, first + FRESH) if seed not in mine)
        if (built := self._built(arm)) is None:
            return
        trainer, provenance = built
        environment.reset_peak_memory(trainer.execution.device)
        begin = time.perf_counter()
        try:
            with shortage_explained(configuration.recipe):
                run = trainer.run(seed, self.eval_every)
        except Exception as error:
            self._drop(arm, seed, error)
            return
        record = ledgers.record(run, provenance)
        self._keep(arm, seed, {**record, "elapsed": time.perf_counter() - begin})
        if run.status == "failed":
            self.dropped[arm] = f"seed {seed} diverged"
            line(self.console, f"{configuration.name}: dropped: {self.dropped[arm]}")
            return
        self.took[arm].append(time.perf_counter() - begin)
        n, mean, _, _ = self.tally(arm, fresh)
        line(
            self.console,
            f"{configuration.name}, seed {seed}: {run.accuracy:.2%} in {seconds(clocked(record))} s; "
            f"n {n}, mean {mean:.3%}; {max(0.0, self.left()):.0f} s left",
        )

    def _keep(self, arm: int, seed: int, record: dict) -> None:
        configuration = self.configurations[arm]
        record = ledgers.finite({**record, "sweep": configuration.values, "arm": configuration.name})
        self.runs[arm, seed >= self.seed + FRESH][seed] = record
        with noted(self.unwritten, "--ledger", self.ledger):
            ledgers.append(self.ledger, record)

    def _drop(self, arm: int, seed: int, error: Exception) -> None:
        """Records that the arm cannot be trained, and why, so that no later process tries. Raises
        DeviceLost.
        """
        configuration = self.configurations[arm]
        why = " ".join(str(error).split()) or type(error).__name__
        why = why if isinstance(error, UserError) else f"{type(error).__name__}: {why}"
        self.dropped[arm] = why[:300]
        line(self.console, f"{configuration.name}: dropped: {self.dropped[arm]}")
        about = {
            "recipe": configuration.recipe.name,
            "recipe_fields": fields(configuration.recipe),
            "execution": dataclasses.asdict(configuration.execution),
            "dataset": self.dataset.name,
            "device": configuration.execution.device,
            "device_name": self.device_name,
        }
        self._keep(
            arm, seed, {**about, **dataclasses.asdict(Run(seed, "failed")), "fault": self.dropped[arm]}
        )
        error.__traceback__ = None  # its frames hold the trainer
        self.trainers.forget(configuration.name)
        if on_gpu(configuration.execution.device):
            try:
                torch.cuda.synchronize()
            except RuntimeError as lost:
                raise DeviceLost(" ".join(str(lost).split())[:200]) from None


def on_gpu(device: str) -> bool:
    return device.startswith("cuda")
