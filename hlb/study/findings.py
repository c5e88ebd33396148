"""The result of a sweep: statistics of each configuration, differences from the first, and a verdict."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from rich.console import Console

from ..runs import statistics
from ..runs.display import line, print_table, seconds
from ..settings import fields
from .compare import (
    ACCURACY,
    LEVEL,
    MEASURES,
    SECONDS,
    Measure,
    Sample,
    interval,
    probability,
    scale,
    signed,
    told,
)
from .grid import Configuration

WORDS = {ACCURACY: ("higher", "lower"), SECONDS: ("slower", "faster")}  # of a difference above 0, below 0
STATISTICS = ("configuration", "n", "failed", "accuracy", "95 % interval", "seconds", "95 % interval")
DIFFERENCES = ("configuration", "points", "p", "in accuracy", "time %", "p", "in time")


@dataclass
class SweepResult:
    """What `sweep` returns: the configurations, and a sample of each, its finished runs."""

    configurations: list[Configuration]
    samples: list[Sample]
    runs: int  # planned, of each configuration
    dataset: str
    ledger: str
    interrupted: bool = False
    unwritten: list[str] = field(default_factory=list)  # why runs are not in the ledger, a line each

    @cached_property
    def tests(self) -> dict[str, list[dict]]:
        """By measure, Welch's test of every other configuration against the first; p is Holm's over these."""
        tests = {}
        for measure in MEASURES:
            first, *others = (sample.values(measure) for sample in self.samples)
            tests[measure.name] = [statistics.welch(first, other) for other in others]
            tested = [test for test in tests[measure.name] if test["p"] is not None]
            for test, p in zip(tested, statistics.holm([test["p"] for test in tested])):
                test["p"] = p
        return tests

    def json(self) -> dict:
        """What `hlb sweep --json` prints."""
        first = self.configurations[0]
        return {
            "recipe": first.recipe.name,
            "dataset": self.dataset,
            "device": first.execution.device,
            "device_names": self.devices,
            "ledger": self.ledger,
            "configurations": [
                {
                    "name": configuration.name,
                    "sweep": configuration.values,
                    **sample.json(),
                    "against_first": {name: tests[i - 1] for name, tests in self.tests.items()}
                    if i
                    else None,
                    "recipe_fields": fields(configuration.recipe),
                }
                for i, (configuration, sample) in enumerate(zip(self.configurations, self.samples))
            ],
            "verdict": self.verdict,
            "interrupted": self.interrupted,
        }

    @property
    def devices(self) -> list[str]:
        """Names of the devices that the runs used."""
        return sorted({name for sample in self.samples for name in sample.having("device_name")})

    @property
    def verdict(self) -> str:
        """Which configurations differ from the first at 5 %, and which could not be tested, in sentences."""
        first, *others = self.samples
        note = "".join(
            f" {len(s.records) - len(s.ok)} of {len(s.records)} runs of {s.name} failed."
            for s in self.samples
            if len(s.ok) < len(s.records)
        )
        few = ", ".join(sample.name for sample in self.samples if len(sample.ok) < 2)
        if few:
            note += f" Fewer than two runs that did not fail give no interval and no test: {few}."
        if not others:
            return f"With one configuration there is nothing to compare.{note}"
        if not any(test["p"] is not None for tests in self.tests.values() for test in tests):
            return f"No difference could be tested.{note}"
        real = []
        for i, sample in enumerate(others):
            differences = []
            for measure in MEASURES:
                test = self.tests[measure.name][i]
                if test["p"] is not None and test["p"] < LEVEL:
                    mean = statistics.summary(first.values(measure))["mean"]
                    differences.append(told(measure, mean, test["difference"]))
            if differences:
                real.append(f"{sample.name} is {' and '.join(differences)}")
        if not real:
            return f"No configuration can be told from {first.name} at 5 %.{note}"
        return f"Against {first.name}, {'; '.join(real)}. No other difference is real at 5 %.{note}"


def report(console: Console, result: SweepResult) -> None:
    """Prints the tables and the verdict of a sweep."""
    runs, samples = sum(len(sample.records) for sample in result.samples), result.samples
    if result.interrupted:
        line(console, f"interrupted: {runs} of {result.runs * len(samples)} runs have finished")
    if not runs:
        return
    console.print()
    print_table(console, STATISTICS, _statistics(result), words=(0,), expendable=(2, 6, 4))
    if len(samples) > 1:
        line(console, f"\nagainst {samples[0].name} (p by Welch's t test, Holm-corrected within its column):")
        print_table(console, DIFFERENCES, _differences(result), words=(0, 3, 6))
    console.print()
    devices = "; ".join(result.devices)
    line(console, f"data: {result.dataset}   seconds: training and final evaluation   device: {devices}")
    if len(result.devices) > 1:
        line(console, "warning: the runs are from several devices, whose times differ for that reason alone")
    line(console, result.verdict)


def _statistics(result: SweepResult) -> list[tuple[str, ...]]:
    rows = []
    for sample in result.samples:
        content = sample.json()
        cells = [str(content["n"]), str(content["failed"])]
        for measure, written in ((ACCURACY, "{:.4f}".format), (SECONDS, seconds)):
            stats = content[measure.name]
            cells += [
                "" if stats["mean"] is None else written(stats["mean"]),
                interval(stats["ci95"], written),
            ]
        rows.append((sample.name, *cells))
    return rows


def _differences(result: SweepResult) -> list[tuple[str, ...]]:
    rows = []
    first, *others = result.samples
    for i, sample in enumerate(others):
        cells = [_cells(m, result.tests[m.name][i], first.values(m)) for m in MEASURES]
        rows.append((sample.name, *cells[0], *cells[1]))
    return rows


def _cells(measure: Measure, test: dict, first: list[float]) -> tuple[str, str, str]:
    """Size, p and word of a difference from the values `first`."""
    size, word = "", "not tested"
    if test["difference"] is not None:
        size = test["difference"] * scale(measure, statistics.summary(first)["mean"])
        size = signed(size, f"{{:.{measure.digits}f}}".format)
    if test["p"] is not None:
        word = WORDS[measure][test["difference"] < 0] if test["p"] < LEVEL else "not distinguishable"
    return size, probability(test["p"]), word
