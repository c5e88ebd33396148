"""Compares two groups of runs: Welch's t test of accuracy and of time, and a verdict in a sentence."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Console

from ..runs import ledger, statistics
from ..runs.display import line, print_table, seconds

LEVEL = 0.05
HELP = """\
usage: hlb compare A B [--pool] [--json [FILE|-]]

Tests whether the runs A and B differ in accuracy and in time (Welch's t test).
A and B are FILE or FILE:FIELD=VALUE,...: the runs of a ledger of which every
FIELD, of a ledger line, a recipe or an execution, has that VALUE; of `commit`
the first digits do. Each recipe, execution and seed counts once.

  --pool              test also where A or B mixes recipes or executions
  --json [FILE|-]     the same as JSON; - is standard output

  hlb compare old.jsonl new.jsonl
  hlb compare all.jsonl:commit=2f9c all.jsonl:commit=81d0
  hlb compare all.jsonl:recipe=record94,lr=0.24 all.jsonl:lr=0.3
"""


@dataclass(frozen=True)
class Measure:
    """A quantity that is compared, and how a difference of it is put in words."""

    name: str
    title: str
    more: str
    less: str
    unit: str
    digits: int  # after the decimal point, in that unit
    worth: float  # a difference worth seeing, in that unit


ACCURACY = Measure("accuracy", "accuracy", "more accurate", "less accurate", "points", 3, 0.05)
SECONDS = Measure("seconds", "time", "slower", "faster", "%", 2, 1.0)
MEASURES = (ACCURACY, SECONDS)
# fields of a ledger line that decide accuracies and times
TITLES = {"device_name": "devices", "dataset": "data sets", "views": "test-time views"}


@dataclass(frozen=True)
class Sample:
    """Runs that are compared as one group, and a note on them. Statistics leave out failed runs."""

    name: str
    records: list[dict]
    note: str = ""

    @property
    def ok(self) -> list[dict]:
        return [record for record in self.records if record["status"] == "ok"]

    def values(self, measure: Measure) -> list[float]:
        """Accuracies as fractions, or seconds of training and final evaluation together."""
        if measure is ACCURACY:
            return [record["accuracy"] for record in self.ok]
        return [statistics.clocked(record) for record in self.ok]

    def having(self, field: str) -> list[str]:
        """The distinct values of a ledger field among these runs, sorted."""
        return sorted({ledger.written(record.get(field)) for record in self.records})

    def json(self) -> dict:
        """n and failed, and for each measure its `statistics.summary`."""
        return {
            "n": len(self.ok),
            "failed": len(self.records) - len(self.ok),
            **{measure.name: statistics.summary(self.values(measure), least=0) for measure in MEASURES},
        }


def chosen(selection: str) -> Sample:
    """The runs that FILE or FILE:FIELD=VALUE,... names. Raises UserError."""
    runs = ledger.select(selection)
    return Sample(selection, runs, runs.note)


def compare(a: Sample, b: Sample, pool: bool = False) -> dict:
    """What `hlb compare --json` prints: statistics of A and of B, the differences B - A, warnings, a verdict.

    Each recipe, execution and seed counts once. Accuracies are fractions. p and ci95 are None for a
    difference that cannot be tested, for that of times where the runs are from several devices, and for all
    where A or B mixes recipes, executions or data sets, unless they are to be taken as one (`pool`).
    """
    whole, (a, b) = (a, b), (_once(a), _once(b))
    differences = {m.name: statistics.welch(a.values(m), b.values(m)) for m in MEASURES}
    one_device = len({*a.having("device_name"), *b.having("device_name")}) == 1
    mixed = {name: statistics.mixed(sample.records) for name, sample in (("A", a), ("B", b))}
    refused = any(mixed.values()) and not pool
    for name in MEASURES if refused else [] if one_device else [SECONDS]:
        differences[name.name] |= {"ci95": None, "p": None}
    return {
        "A": {"selection": a.name, **a.json(), "mixed": mixed["A"]},
        "B": {"selection": b.name, **b.json(), "mixed": mixed["B"]},
        "difference": differences,
        "warnings": _warnings(*whole, mixed),
        "verdict": _refusal(mixed) if refused else _verdict(a, b, differences, one_device),
    }


def _once(sample: Sample) -> Sample:
    return dataclasses.replace(sample, records=statistics.distinct(sample.records))


def _warnings(a: Sample, b: Sample, mixed: dict[str, dict[str, list[str]]]) -> list[str]:
    """What a reader of the statistics of two samples, repeats included, has to know."""
    lines = [*dict.fromkeys(filter(None, (a.note, b.note)))]
    of_a = {json.dumps(record, sort_keys=True) for record in a.records}
    both = sum(json.dumps(record, sort_keys=True) in of_a for record in b.records)
    for name, sample in (("A", a), ("B", b)):
        again = len(sample.records) - len(_once(sample).records)
        if again:
            lines.append(
                f"{again} of {name}'s runs repeat another's recipe, execution and seed, and are left out"
            )
    a, b = _once(a), _once(b)
    for field, what in TITLES.items():
        one, other = a.having(field), b.having(field)
        for name, values in (("A", one), ("B", other)):
            if len(values) > 1:
                lines.append(f"{name} mixes {what}: {'; '.join(values)}")
        if one != other:
            lines.append(f"A and B differ in their {what}: {'; '.join(one)} in A, {'; '.join(other)} in B")
    for name, fields in mixed.items():
        for field, values in fields.items():
            if field not in TITLES:
                more = "; ..." * (len(values) > 10)
                lines.append(f"{name} mixes {field}: {'; '.join(values[:10])}{more}")
    for name, sample in (("A", a), ("B", b)):
        failed = len(sample.records) - len(sample.ok)
        if failed:
            lines.append(f"{failed} of {name}'s {len(sample.records)} runs failed and are in no mean")
    if both:
        lines.append(f"{both} runs are in A and in B")
    return lines


def _refusal(mixed: dict[str, dict[str, list[str]]]) -> str:
    """Why there is no verdict, and how to get one."""
    sides = [f"{name} mixes {', '.join(fields)}" for name, fields in mixed.items() if fields]
    (field, values), *_ = (item for fields in mixed.values() for item in fields.items())
    value = next(value for value in values if value != statistics.UNRECORDED)
    return (
        f"No verdict, since {' and '.join(sides)}: choose one of each, as FILE:{field}={value}, or take them "
        "together with --pool."
    )


def scale(measure: Measure, mean: float) -> float:
    """The factor from a difference to the measure's unit: points, or per cent of the mean."""
    return 100 if measure is ACCURACY else 100 / mean


def told(measure: Measure, mean: float, difference: float) -> str:
    """A difference from `mean` in words: `faster by 3.10 %`."""
    size = abs(difference) * scale(measure, mean)
    word = measure.more if difference > 0 else measure.less
    return f"{word} by {size:.{measure.digits}f} {measure.unit}"


def _verdict(a: Sample, b: Sample, differences: dict, one_device: bool) -> str:
    few = [f"{name} has {len(sample.ok)}" for name, sample in (("A", a), ("B", b)) if len(sample.ok) < 2]
    if few:
        return (
            "It cannot be tested whether A and B differ: two runs of each that did not fail are needed, "
            f"{' and '.join(few)}."
        )
    real, alike, untested = [], [], []
    for measure in MEASURES:
        test, one, other = differences[measure.name], a.values(measure), b.values(measure)
        mean = statistics.summary(one)["mean"]
        if measure is SECONDS and not one_device:
            untested.append("times on different devices say nothing about A and B and are not compared")
        elif test["p"] is None:
            untested.append(f"{measure.title} cannot be tested, since it is the same in all runs of a group")
        elif test["p"] < LEVEL:
            sign = 1 if test["difference"] > 0 else -1
            ends = sorted(sign * end * scale(measure, mean) for end in test["ci95"])
            low, high = (f"{end:.{measure.digits}f}" for end in ends)
            size, p = told(measure, mean, test["difference"]), probability(test["p"])
            given = f"p < {p[1:]}" if p[0] == "<" else f"p = {p}"
            real.append(f"{size} (95 % interval {low} to {high}, {given})")
        else:
            alike.append(f"in {measure.title} ({_reach(measure, one, other)})")
    clauses = []
    if real:
        clauses.append(f"B is {' and '.join(real)}")
    if alike:
        clauses.append(f"{'they' if real else 'A and B'} cannot be told apart {' or '.join(alike)}")
    sentence = "; ".join(clauses + untested)
    return f"{sentence[0].upper()}{sentence[1:]}."


def _reach(measure: Measure, one: list[float], other: list[float]) -> str:
    """How many runs it takes to detect a difference that matters, with a probability of 80 %."""
    of_one, of_other = statistics.summary(one), statistics.summary(other)
    difference = measure.worth / scale(measure, of_one["mean"])
    needed = statistics.runs_needed(of_one["std"], of_other["std"], difference)
    n, each = f"n = {len(one)} and {len(other)}", " each"
    if len(one) == len(other):
        n, each = f"n = {len(one)} each", ""
    to_see = f"to see a difference of {measure.worth:g} {measure.unit}"
    if needed <= min(len(one), len(other)):
        return f"{n} is enough {to_see}"
    return f"{n} would have to be about {round(needed, 2 - len(str(needed)))}{each} {to_see}"


def show(console: Console, comparison: dict) -> None:
    """Prints a comparison: the selections, a table, warnings and the verdict."""
    for name in "AB":
        line(console, f"{name}: {comparison[name]['selection']}")
    rows = []
    for measure, title, written in (
        (ACCURACY, "accuracy", "{:.4f}".format),
        (SECONDS, "train + eval s", seconds),
    ):
        for name in "AB":
            stats, n, failed = (comparison[name][key] for key in (measure.name, "n", "failed"))
            cells = ["" if stats[key] is None else written(stats[key]) for key in ("mean", "std")]
            rows.append(
                (f"{title} {name}", str(n), str(failed), *cells, interval(stats["ci95"], written), "")
            )
        test, signs = comparison["difference"][measure.name], functools.partial(signed, written=written)
        mean = "" if test["difference"] is None else signs(test["difference"])
        rows.append(("B - A", "", "", mean, "", interval(test["ci95"], signs), probability(test["p"])))
    console.print()
    headings = ("", "n", "failed", "mean", "std", "95 % interval", "p")
    print_table(console, headings, rows, words=(0,), expendable=(2, 4, 1))
    console.print()
    for warning in comparison["warnings"]:
        line(console, f"warning: {warning}")
    line(console, comparison["verdict"])


def signed(value: float, written: Callable[[float], str]) -> str:
    """`value` formatted by `written`, with its sign."""
    return f"{'-' if value < 0 else '+'}{written(abs(value))}"


def interval(ends: list[float] | None, written: Callable[[float], str]) -> str:
    """`low .. high`; nothing for None."""
    return " .. ".join(map(written, ends or ()))


def probability(p: float | None) -> str:
    """A p value with three decimals; nothing for None."""
    return "" if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"
