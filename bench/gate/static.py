"""The gate without a GPU: compiled code, and the work that kernels issue, beside a baseline.

    python -m bench gate --static                        compiles every launch of every op for four chips
    python -m bench gate --static conv se_gate           these ops alone
    python -m bench gate --static --from check.json      what `python -m bench check --json` wrote
    python -m bench gate --static --update               writes the baseline

A compiler makes the same code of the same kernel each time, so there is no noise; LIMITS leave room for what
comes with every edit. Code of another triton or ptxas is not compared. Rules that hold whatever the baseline
are checked by `python -m bench check`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

import kernels
from hlb import UserError
from hlb.errors import expect_known
from hlb.files import atomic, check_writable

from . import snapshot
from .outcome import Outcome, junit, show, write_files
from .snapshot import UPDATE, Numbers, Sections

BASELINE = Path(__file__).parents[1] / "baselines" / "static.json"


def growth(before: int, now: int) -> float:
    """now / before; infinite from 0 to more."""
    return now / before if before else float("inf") if now else 1.0


@dataclass(frozen=True)
class Limit:
    """What a number may grow to: too much is above `times` the baseline's, and at least `more` above it."""

    times: float
    more: int = 1

    def exceeded(self, before: int, now: int) -> bool:
        return growth(before, now) > self.times and now >= before + self.more


LIMITS = {
    "bytes": Limit(1.005),
    "flops": Limit(1.005),
    "registers": Limit(1.10, 2),
    "stack": Limit(1),  # bytes of a thread: any is a spill
    "shared memory": Limit(1.05),  # bytes of a program
    "instructions": Limit(1.05, 8),
    "global": Limit(1.10, 4),
    "shared": Limit(1.10, 4),
    "local": Limit(1),
    "barrier": Limit(1.10, 2),
    "loop": Limit(1.05, 4),
}
RANKS = ("worse", "better", "new", "")  # what is said of a change; nothing within the limits
KEPT = ("tensor", "async")  # instructions of which some must stay where some were


@dataclass(frozen=True)
class Change:
    """A number of an entry that differs from the baseline's, on the chips where it is the same two numbers.
    Where `column` is "missing" or "new", it is the entry that is. `verdict` is of RANKS.
    """

    name: str
    column: str
    before: int
    now: int
    verdict: str
    chips: tuple[str, ...]

    def __str__(self) -> str:
        numbers = "" if self.column in ("missing", "new") else f" {self.before:,} → {self.now:,}"
        return f"{self.column}{numbers} on {', '.join(self.chips)}"


def judged(column: str, before: int, now: int) -> str:
    """The rank of a change: worse, better or "" (within the limits)."""
    if column in KEPT:
        return "worse" if before and not now else "better" if now and not before else ""
    limit = LIMITS[column]
    return "worse" if limit.exceeded(before, now) else "better" if limit.exceeded(now, before) else ""


def changes_of(name: str, before: dict[str, Numbers], now: dict[str, Numbers]) -> list[Change]:
    """The changes of an entry, {} where it is missing. Columns that the baseline lacks are skipped."""
    grouped: dict[tuple[str, int, int, str], list[str]] = {}
    for chip in sorted(before | now, key=float):
        if chip not in now:
            grouped.setdefault(("missing", 1, 0, "worse"), []).append(chip)
        elif chip not in before:
            grouped.setdefault(("new", 0, 1, "new"), []).append(chip)
        else:
            for column in now[chip].keys() & before[chip].keys():
                a, b = before[chip][column], now[chip][column]
                if a != b:
                    grouped.setdefault((column, a, b, judged(column, a, b)), []).append(chip)
    return [Change(name, *what, tuple(chips)) for what, chips in sorted(grouped.items())]


def red(changes: list[Change]) -> bool:
    return any(change.verdict == "worse" for change in changes)


def _weight(change: Change) -> tuple[int, float]:
    """Sorts the changes that matter most first."""
    return RANKS.index(change.verdict), -abs(growth(change.before, change.now) - 1)


def by_kernel(changes: dict[str, list[Change]]) -> list[Outcome]:
    """An outcome for each kernel of an op, from the changes of each entry: of every number the change that
    matters most.
    """
    names: dict[str, list[str]] = {}
    for name in sorted(changes):
        names.setdefault(" ".join(name.split("/")[:2]), []).append(name)
    outcomes = []
    for kernel, own in names.items():
        of_kernel = [change for name in own for change in changes[name]]
        columns: dict[str, list[Change]] = {}
        for change in sorted(of_kernel, key=_weight):
            columns.setdefault(change.column, []).append(change)
        cells = {"entries": str(len(own)), "changed": str(sum(bool(changes[name]) for name in own) or "")}
        cells |= {column: _cell(group) for column, group in columns.items()}
        said = "; ".join(_said(group) for group in columns.values() if group[0].verdict)
        outcomes.append(Outcome(kernel, red(of_kernel), cells, said))
    return outcomes


def _cell(group: list[Change]) -> str:
    first = group[0]
    if first.column in ("missing", "new"):
        return str(len(group))
    return f"{growth(first.before, first.now) - 1:+.1%}" if first.before else f"+{first.now}"


def _said(group: list[Change]) -> str:
    """The change of a number that matters most, and how many other entries share its rank."""
    first = group[0]
    others = len({change.name for change in group if change.verdict == first.verdict} - {first.name})
    where = first.name.split("/", 2)[2]
    return f"{first} ({where}{f' and {others} more' if others else ''})"


def verdict(changes: dict[str, list[Change]]) -> str:
    """The verdict on all entries, a line."""
    counts = Counter(min((c.verdict for c in group), key=RANKS.index) for group in changes.values() if group)
    if not counts:
        return "as in the baseline"
    words = ", ".join(f"{counts[rank]} {rank or 'changed within limits'}" for rank in RANKS if counts[rank])
    return words if counts.keys() == {""} else f"{words}; if that is meant: {UPDATE}"


def run(
    console: Console,
    names: list[str],
    baseline: Path | None,
    checked: Path | None,
    update: bool,
    junit: Path | None,
    summary: Path | None,
) -> int:
    """Compares the ops `names`, or all, with a baseline, or writes them to it (`update`). Returns the exit
    status, 1 where something is red.

    Raises UserError where there is nothing to compare with, or other compilers made it: neither green nor
    red.
    """
    file = baseline or BASELINE
    expect_known("NAME", kernels.CATALOGUE, *names)
    for option, path in {
        "--baseline": file if update else None,
        "--junit": junit,
        "--summary": summary,
    }.items():
        if path:
            check_writable(path, option)
    known = None if update and not names else snapshot.read(file)
    record = snapshot.record(checked, names)
    if known and known["versions"] != record["versions"]:
        raise UserError(
            f"{file} is of {_versions(known)}, the code here of {_versions(record)}, and code of different "
            f"compilers is not compared: install the former, or make a baseline of the latter ({UPDATE})"
        )
    ops = names or list(kernels.CATALOGUE)
    now = snapshot.of_ops(record["sections"], ops)
    launches = [one for one in record["launches"] if one["op"] in ops]
    counted = f"{len(launches)} launches, {sum(len(one['chips']) for one in launches)} compiles"
    if not update:
        before = snapshot.of_ops(known["sections"], names) if names else known["sections"]
        return _compared(console, counted, before, now, junit, summary)
    if record["faults"]:
        raise UserError(f"no baseline is made of kernels that break a rule: {record['faults'][0]}")
    if known:
        others = snapshot.of_ops(known["sections"], set(kernels.CATALOGUE) - set(names))
        now = {section: others[section] | now[section] for section in now}
    with atomic(file) as temporary:
        temporary.write_text(snapshot.text(record["versions"], now), encoding="utf-8")
    _say(console, f"{counted}: now the baseline, {file}")
    return 0


def _versions(of: dict) -> str:
    return ", ".join(f"{name} {version}" for name, version in of["versions"].items())


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def _compared(
    console: Console, counted: str, before: Sections, now: Sections, file: Path | None, summary: Path | None
) -> int:
    changes = {
        name: changes_of(name, before[section].get(name, {}), now[section].get(name, {}))
        for section in now
        for name in sorted(before[section] | now[section])
    }
    outcomes, line = by_kernel(changes), f"{counted}: {verdict(changes)}"
    if changed := [outcome for outcome in outcomes if outcome.cells["changed"]]:
        show(console, sorted(changed, key=lambda outcome: not outcome.red))
    _say(console, line)
    if file:
        each = [Outcome(name, red(of), message=", ".join(map(str, of))) for name, of in changes.items()]
        with atomic(file) as temporary:
            temporary.write_text(junit("static gate", each), encoding="utf-8")
    write_files("Static gate", line, outcomes, None, summary)
    return int(any(map(red, changes.values())))
