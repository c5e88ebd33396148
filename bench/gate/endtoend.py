"""Whole runs of a recipe against its baseline: the time of training and evaluation, and the accuracy.

Time is judged as a kernel's is: where the first runs look slower than is allowed, as many fresh ones, of
another process and from other seeds, are judged. Runs of one process share what it leaves on all of them;
the allowed slowdown has to cover that. Accuracy is judged on all runs together: red where even the upper
bound of its change is a loss of more than is tolerated. A run that diverged is red.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from hlb import UserError
from hlb.runs.statistics import clocked

from . import verdict
from .baseline import Runs
from .judge import Assessment, different

RUNS = 10
LEAST = 2  # runs that a bound takes


@dataclass(frozen=True)
class RunCriteria:
    """How many runs, the ratio of times that is allowed, and the loss of accuracy, a fraction, tolerated."""

    runs: int = RUNS
    allowed: float = 1.02
    loss: float = 0.0005


@dataclass
class Record:
    """Runs as `hlb train --json` records them: seconds and accuracy of those that did not fail."""

    seconds: list[float]
    accuracy: list[float]
    failed: int
    dataset: str
    fields: dict = field(default_factory=dict)

    @classmethod
    def read(cls, content: dict) -> Record:
        ok = [run for run in content["runs"] if run["status"] == "ok"]
        return cls(
            [clocked(run) for run in ok],
            [run["accuracy"] for run in ok],
            len(content["runs"]) - len(ok),
            content["dataset"],
            content["recipe_fields"],
        )


# A recipe, a number of runs, the seed of the first -> their record.
Train = Callable[[str, int, int], Record]


def trained(data: str, recipe: str, runs: int, seed: int) -> Record:
    """Trains in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "runs.json"
        runs_of = ["--recipe", recipe, "--runs", str(runs), "--seed", str(seed), "--data", data]
        quiet = ["--json", str(path), "--ledger", os.devnull, "--eval-every", "0", "--quiet"]
        status = subprocess.run([sys.executable, "-m", "hlb", "train", *runs_of, *quiet]).returncode
        if status not in (0, 1) or not path.exists():  # 1: every run failed, which is judged as well
            raise UserError(f"--recipe: `hlb train --recipe {recipe}` ended with status {status}")
        return Record.read(json.loads(path.read_text()))


def begin(name: str, before: Runs | None, train: Train, runs: int) -> Record:
    """The first runs of a recipe. Raises UserError if their data set is not the baseline's."""
    record = train(name, runs, 0)
    if before is not None and record.dataset != before.dataset:
        raise UserError(
            f"--recipe: the baseline of {name} is of {before.dataset}, these runs are of {record.dataset}; "
            f"give --data {before.dataset}, or --update"
        )
    return record


def judge(
    name: str,
    before: Runs | None,
    first: Record,
    train: Train,
    criteria: RunCriteria,
    level: float,
    machine: str,
) -> tuple[list[Assessment], list[Record]]:
    """The assessments of a recipe's time and accuracy, each at this level, and what was run for them.
    `machine` says in what the machine is not as it was, if so: then the time is not judged.
    """
    records = [first]
    marked = name if first.dataset == "cifar10" else f"{name} ({first.dataset})"
    time, accuracy = Assessment(f"{marked} time"), Assessment(f"{marked} accuracy")
    if before is not None:
        time.baseline, accuracy.baseline = statistics.fmean(before.seconds), statistics.fmean(before.accuracy)
        judged = not first.failed and not machine
        if judged and verdict.look(before.seconds, first.seconds) > criteria.allowed:
            records.append(train(name, criteria.runs, criteria.runs))
            time.again = criteria.runs
    failed = sum(record.failed for record in records)
    for one in (time, accuracy):
        if failed:
            total = len(records) * criteria.runs
            one.state, one.message = "wrong", f"{failed} of {total} runs diverged"
        elif before is None:
            one.state, one.message = "new", "not in the baseline; --update takes it in"
    accuracies = [value for record in records for value in record.accuracy]
    if not failed:
        time.now, accuracy.now = statistics.fmean(records[-1].seconds), statistics.fmean(accuracies)
        if before is not None:
            judge_time(time, before.seconds, records[-1].seconds, criteria, level, machine)
            judge_accuracy(accuracy, before.accuracy, accuracies, criteria, level)
            if changed := different(before.fields, first.fields):
                accuracy.message += f"; {changed}"
    return [time, accuracy], records


def judge_time(
    one: Assessment,
    before: tuple[float, ...],
    now: list[float],
    criteria: RunCriteria,
    level: float,
    machine: str,
) -> None:
    """Red where the lower bound of the slowdown exceeds what is allowed."""
    ratio = verdict.ratio(before, now, level)
    one.ratio, one.lower = ratio.value, ratio.lower
    one.message = (
        f"{ratio.lower:.3f} to {ratio.upper:.3f} of the baseline's, with confidence {1 - 2 * level:.2%}"
    )
    if machine:
        one.message = "not judged, as the machine is not as it was"
    elif ratio.lower > criteria.allowed:
        one.state = "slow"
        one.message = f"slower by at least {ratio.lower - 1:.1%}, allowed is {criteria.allowed - 1:.1%}"


def judge_accuracy(
    one: Assessment, before: tuple[float, ...], now: list[float], criteria: RunCriteria, level: float
) -> None:
    """Red where even the upper bound of the change is below the loss that is tolerated."""
    change = verdict.change(before, now, level, criteria.loss)
    if lost := change.upper < -criteria.loss:
        one.state = "inaccurate"
    one.message = (
        f"changed by {100 * change.value:+.3f} points, {100 * change.upper:+.3f} at most with confidence "
        f"{1 - level:.2%}, {-100 * criteria.loss:+.3f} is tolerated"
    )
    if not lost:
        seen = f"a loss of {100 * change.visible:.3f} points would have shown 4 times out of 5"
        one.message += f"; in {len(now)} runs against {len(before)} {seen}"
