"""Statistics over runs, and what makes a record claim."""

from __future__ import annotations

import math
from collections.abc import Sequence

RECORD_RUNS = 100


def _quantile(probability: float, degrees: int) -> float:
    from scipy.stats import t  # takes a third of a second to import

    return float(t.ppf(probability, degrees))


def summary(values: Sequence[float]) -> dict[str, object]:
    """mean, std (n - 1), min, max, ci95 (two-sided, Student's t) and n; what n is too small for is None."""
    n = len(values)
    if n == 0:
        return {"mean": None, "std": None, "min": None, "max": None, "ci95": None, "n": 0}
    mean = math.fsum(values) / n
    std = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1)) if n > 1 else None
    half = _quantile(0.975, n - 1) * std / math.sqrt(n) if n > 1 else None
    return {
        "mean": mean,
        "std": std,
        "min": min(values),
        "max": max(values),
        "ci95": None if half is None else [mean - half, mean + half],
        "n": n,
    }


def lower_bound(values: Sequence[float], confidence: float = 0.95) -> float | None:
    """One-sided lower bound of the mean (Student's t); None for fewer than two values."""
    stats = summary(values)
    if stats["std"] is None:
        return None
    return stats["mean"] - _quantile(confidence, len(values) - 1) * stats["std"] / math.sqrt(len(values))


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
