"""Whole runs of a recipe against its baseline: the time of training and evaluation, and the accuracy.

Time is judged as a kernel's is: where the first runs look slower than is allowed, as many fresh ones, of
another process and from other seeds, are judged. Runs of one process share what it leaves on all of them;
what is allowed has to cover that. Accuracy is judged on all runs together: red where even the upper bound
of its change is a loss of more than is tolerated. A run that diverged is red.
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

from . import verdict
from .baseline import Runs
from .judge import Finding, different

RUNS = 10
LEAST = 2  # runs that a bound takes


@dataclass(frozen=True)
class Plan:
    """How many runs, the ratio of times that is allowed, and the loss of accuracy, a fraction, tolerated."""

    runs: int = RUNS
    allowed: float = 1.02
    loss: float = 0.0005


@dataclass
class Record:
    """What `hlb train --json` says of some runs: seconds and accuracy of those that ended well."""

    seconds: list[float]
    accuracy: list[float]
    failed: int
    dataset: str
    fields: dict = field(default_factory=dict)

    @classmethod
    def read(cls, content: dict) -> Record:
        ok = [run for run in content["runs"] if run["status"] == "ok"]
        return cls(
            [run["train_seconds"] + run["eval_seconds"] for run in ok],
            [run["accuracy"] for run in ok],
            len(content["runs"]) - len(ok),
            content["dataset"],
            content["recipe_fields"],
        )


# A recipe, a number of runs, the seed of the first -> their record.
Train = Callable[[str, int, int], Record]


def trained(data: str, recipe: str, runs: int, seed: int) -> Record:
    """Runs in a process of their own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "runs.json"
        runs_of = ["--recipe", recipe, "--runs", str(runs), "--seed", str(seed), "--data", data]
        quiet = ["--json", str(path), "--ledger", os.devnull, "--eval-every", "0", "--quiet"]
        status = subprocess.run([sys.executable, "-m", "hlb", "train", *runs_of, *quiet]).returncode
        if status not in (0, 1) or not path.exists():  # 1: every run failed, which is a finding
            raise UserError(f"--recipe: `hlb train --recipe {recipe}` ended with status {status}")
        return Record.read(json.loads(path.read_text()))


def begin(name: str, before: Runs | None, train: Train, runs: int) -> Record:
    """The first runs of a recipe. UserError where their data set is not the baseline's."""
    record = train(name, runs, 0)
    if before is not None and record.dataset != before.dataset:
        raise UserError(
            f"--recipe: the baseline of {name} is of {before.dataset}, these runs are of {record.dataset}; "
            f"give --data {before.dataset}, or --update"
        )
    return record


def judge(
    name: str, before: Runs | None, first: Record, train: Train, plan: Plan, level: float, machine: str
) -> tuple[list[Finding], list[Record]]:
    """The findings on time and accuracy of a recipe, each at this level, and what was run for them. `machine`
    says in what the machine is not as it was, if so: the time is not judged then.
    """
    records = [first]
    marked = name if first.dataset == "cifar10" else f"{name} ({first.dataset})"
    time, accuracy = Finding(f"{marked} time"), Finding(f"{marked} accuracy")
    if before is not None:
        time.baseline, accuracy.baseline = statistics.fmean(before.seconds), statistics.fmean(before.accuracy)
        judged = not first.failed and not machine
        if judged and verdict.look(before.seconds, first.seconds) > plan.allowed:
            records.append(train(name, plan.runs, plan.runs))
            time.again = plan.runs
    failed = sum(record.failed for record in records)
    for finding in (time, accuracy):
        if failed:
            finding.state, finding.message = "wrong", f"{failed} of {len(records) * plan.runs} runs diverged"
        elif before is None:
            finding.state, finding.message = "new", "not in the baseline; --update takes it in"
    accuracies = [value for record in records for value in record.accuracy]
    if not failed:
        time.now, accuracy.now = statistics.fmean(records[-1].seconds), statistics.fmean(accuracies)
        if before is not None:
            judge_time(time, before.seconds, records[-1].seconds, plan, level, machine)
            judge_accuracy(accuracy, before.accuracy, accuracies, plan, level)
            if changed := different(before.fields, first.fields):
                accuracy.message += f"; {changed}"
    return [time, accuracy], records


def judge_time(
    finding: Finding, before: tuple[float, ...], now: list[float], plan: Plan, level: float, machine: str
) -> None:
    """Red where the lower bound of the slowdown exceeds what is allowed."""
    found = verdict.ratio(before, now, level)
    finding.ratio, finding.lower = found.value, found.lower
    finding.message = (
        f"{found.lower:.3f} to {found.upper:.3f} of the baseline's, with confidence {1 - 2 * level:.2%}"
    )
    if machine:
        finding.message = "not judged, as the machine is not as it was"
    elif found.lower > plan.allowed:
        finding.state = "slow"
        finding.message = f"slower by at least {found.lower - 1:.1%}, allowed is {plan.allowed - 1:.1%}"


def judge_accuracy(
    finding: Finding, before: tuple[float, ...], now: list[float], plan: Plan, level: float
) -> None:
    """Red where even the upper bound of the change is below the loss that is tolerated."""
    found = verdict.change(before, now, level, plan.loss)
    if lost := found.upper < -plan.loss:
        finding.state = "inaccurate"
    finding.message = (
        f"changed by {100 * found.value:+.3f} points, {100 * found.upper:+.3f} at most with confidence "
        f"{1 - level:.2%}, {-100 * plan.loss:+.3f} is tolerated"
    )
    if not lost:
        seen = f"a loss of {100 * found.visible:.3f} points would have shown 4 times out of 5"
        finding.message += f"; in {len(now)} runs against {len(before)} {seen}"
