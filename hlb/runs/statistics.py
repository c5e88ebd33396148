"""Which runs count, their statistics, tests of two groups of runs, and the rule of a record claim."""

from __future__ import annotations

import functools
import json
import math
import warnings
from collections.abc import Iterable, Sequence
from statistics import NormalDist
from typing import NamedTuple

from .ledger import DEFAULTS, written

RECORD_RUNS = 100
UNRECORDED = "not recorded"  # of a field that came later than the run
LABELS = ("name", "target")  # fields of a recipe that change nothing of a run


class Identity(NamedTuple):
    """What tells a run from others: recipe and execution as JSON, data set, device, seed. Of a line without a
    seed, all of it.
    """

    recipe: str
    execution: str
    dataset: str | None
    device_name: str | None
    seed: int | str


def identity(record: dict) -> Identity:
    """A run's identity. It has neither the recipe's name and aim, nor which of a machine's GPUs executed it
    and with how many threads, which is in the name of a CPU.
    """
    execution = {k: v for k, v in record.get("execution", {}).items() if k not in ("device", "threads")}
    seed = record.get("seed")
    return Identity(
        json.dumps(decisive(record["recipe_fields"]), sort_keys=True),
        json.dumps(execution, sort_keys=True),
        record.get("dataset"),
        record.get("device_name"),
        json.dumps(record, sort_keys=True) if seed is None else seed,
    )


def clocked(record: dict) -> float:
    """A run's seconds on the clock: of training and final evaluation."""
    return record["train_seconds"] + record["eval_seconds"]


def decisive(fields: dict) -> dict:
    """The fields of a recipe that decide what a run does; one that came after the run has its default."""
    whole = DEFAULTS | fields
    return {name: _typed(whole[name], DEFAULTS.get(name)) for name in whole if name not in LABELS}


def _typed(value: object, example: object) -> object:
    """A field's value in the field's type: 8 epochs are 8.0."""
    if isinstance(value, (list, tuple)):
        return [_typed(item, example[0] if isinstance(example, list) else example) for item in value]
    return float(value) if isinstance(example, float) and type(value) is int else value


def distinct(runs: Iterable[dict]) -> list[dict]:
    """The first run of each identity: each (recipe, execution, seed) counts once, wherever runs count."""
    first: dict[Identity, dict] = {}
    for run in runs:
        first.setdefault(identity(run), run)
    return list(first.values())


def mixed(runs: Iterable[dict]) -> dict[str, list[str]]:
    """The fields of recipe and execution, and the data set, in which some runs differ: all values of each."""
    every = []
    for run in runs:
        fields = {"dataset": run.get("dataset")} | decisive(run["recipe_fields"]) | run["execution"]
        if "device" in fields:
            fields["device"] = str(fields["device"]).partition(":")[0]  # any GPU of a machine
        every.append(fields)
    values = {
        name: list(dict.fromkeys(written(fields.get(name, UNRECORDED)) for fields in every))
        for name in dict.fromkeys(name for fields in every for name in fields)
    }
    return {name: several for name, several in values.items() if len(several) > 1}


@functools.cache
def quantile(probability: float, degrees: float) -> float:
    """Of Student's t distribution."""
    from scipy.stats import t  # takes a third of a second to import

    return float(t.ppf(probability, degrees))


def summary(values: Sequence[float], least: float = -math.inf) -> dict[str, object]:
    """mean, std (n - 1), min, max, ci95 (two-sided, Student's t) and n; None where n is too small. ci95 does
    not go below `least`, such as 0 for seconds.
    """
    n = len(values)
    if n == 0:
        return {"mean": None, "std": None, "min": None, "max": None, "ci95": None, "n": 0}
    mean = math.fsum(values) / n
    std = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1)) if n > 1 else None
    half = quantile(0.975, n - 1) * std / math.sqrt(n) if n > 1 else None
    return {
        "mean": mean,
        "std": std,
        "min": min(values),
        "max": max(values),
        "ci95": None if half is None else [max(least, mean - half), mean + half],
        "n": n,
    }


def lower_bound(values: Sequence[float], confidence: float = 0.95) -> float | None:
    """One-sided lower bound of the mean (Student's t); None for fewer than two values."""
    stats = summary(values)
    if stats["std"] is None:
        return None
    return stats["mean"] - quantile(confidence, len(values) - 1) * stats["std"] / math.sqrt(len(values))


def welch(a: Sequence[float], b: Sequence[float]) -> dict[str, object]:
    """Welch's t test of two means: difference (mean of b less that of a), its two-sided 95 % interval ci95
    (Welch-Satterthwaite) and p. All are None where a group is empty; ci95 and p are None where a group has a
    single value, or where all values of each group are equal.
    """
    if not a or not b:
        return {"difference": None, "ci95": None, "p": None}
    difference = math.fsum(b) / len(b) - math.fsum(a) / len(a)
    if min(len(a), len(b)) < 2 or (min(a) == max(a) and min(b) == max(b)):
        return {"difference": difference, "ci95": None, "p": None}
    from scipy.stats import ttest_ind

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # one of the groups may be constant
        test = ttest_ind(b, a, equal_var=False)
        interval = test.confidence_interval(0.95)
    return {
        "difference": difference,
        "ci95": [float(interval.low), float(interval.high)],
        "p": float(test.pvalue),
    }


def holm(ps: Sequence[float]) -> list[float]:
    """p values of a family of tests, in the same order, adjusted by Holm's step-down procedure."""
    adjusted, largest = [0.0] * len(ps), 0.0
    for rank, i in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[i]))
        adjusted[i] = largest
    return adjusted


def runs_needed(std_a: float, std_b: float, difference: float, power: float = 0.8) -> int:
    """Runs of each of two groups, 2 or more, for a two-sided test at 5 % to see a true `difference` of means
    with probability `power`. The standard deviations are in the difference's unit. (Normal approximation
    with Guenther's correction for Student's t, The American Statistician 35:4, 1981.)
    """
    level, reach = (NormalDist().inv_cdf(probability) for probability in (0.975, power))
    runs = ((level + reach) / difference) ** 2 * (std_a**2 + std_b**2) + level**2 / 4
    return max(2, math.ceil(runs))


def record_claim(accuracies: Sequence[float], failed: int, dataset: str, target: float) -> tuple[bool, str]:
    """Whether the runs are a record claim, and why or why not, in a sentence.

    The rule: CIFAR-10, at least 100 runs, none failed, and a one-sided lower 95 % bound of the mean
    accuracy that reaches the target (0.94, 0.95, 0.96).
    """
    n, bound = len(accuracies), lower_bound(accuracies)
    if target == 0:
        return False, "no record claim: this recipe aims at none"
    if dataset != "cifar10":
        return False, f"no record claim: the data set is {dataset}"
    if failed:
        return False, f"no record claim: {failed} of {n + failed} runs failed"
    if n < RECORD_RUNS:
        return False, f"no record claim: {n} of the {RECORD_RUNS} runs that one takes"
    met = bound >= target
    return met, (
        f"{'a' if met else 'no'} record claim: the mean of {n} runs is at least {bound:.4%} with "
        f"95 % confidence, {'which reaches' if met else 'short of'} {target:.1%}"
    )
