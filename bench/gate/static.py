"""The gate without a GPU: compiled code, and the work that kernels issue, beside a baseline.

    python -m bench gate --static                        compiles every launch of every op for four chips
    python -m bench gate --static conv se_gate           these ops alone
    python -m bench gate --static --from check.json      what `python -m bench check --json` has found
    python -m bench gate --static --update               makes what is found the baseline

A compiler gives the same code for the same kernel each time, so nothing here is noise; LIMITS leave room for
what comes with every edit. Another triton or ptxas gives other code, and is not compared. What has to hold
whatever was before is the business of `python -m bench check`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

import kernels
from hlb import UserError
from hlb.files import atomic, check_writable

from . import snapshot
from .outcome import Outcome, junit, show, write_files
from .snapshot import UPDATE, Numbers, Sections

BASELINE = Path(__file__).parents[1] / "baselines" / "static.json"


def growth(before: int, now: int) -> float:
    """Infinite from nothing to something."""
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
    """worse, better, or nothing."""
    if column in KEPT:
        return "worse" if before and not now else "better" if now and not before else ""
    limit = LIMITS[column]
    return "worse" if limit.exceeded(before, now) else "better" if limit.exceeded(now, before) else ""


def changes_of(name: str, before: dict[str, Numbers], now: dict[str, Numbers]) -> list[Change]:
    """What changed of an entry, {} where there is none. A column that the baseline lacks is not compared."""
    found: dict[tuple[str, int, int, str], list[str]] = {}
    for chip in sorted(before | now, key=float):
        if chip not in now:
            found.setdefault(("missing", 1, 0, "worse"), []).append(chip)
        elif chip not in before:
            found.setdefault(("new", 0, 1, "new"), []).append(chip)
        else:
            for column in now[chip].keys() & before[chip].keys():
                a, b = before[chip][column], now[chip][column]
                if a != b:
                    found.setdefault((column, a, b, judged(column, a, b)), []).append(chip)
    return [Change(name, *what, tuple(chips)) for what, chips in sorted(found.items())]


def red(changes: list[Change]) -> bool:
    return any(change.verdict == "worse" for change in changes)


def _weight(change: Change) -> tuple[int, float]:
    """Least where it matters most."""
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
        found = [change for name in own for change in changes[name]]
        columns: dict[str, list[Change]] = {}
        for change in sorted(found, key=_weight):
            columns.setdefault(change.column, []).append(change)
        cells = {"entries": str(len(own)), "changed": str(sum(bool(changes[name]) for name in own) or "")}
        cells |= {column: _cell(group) for column, group in columns.items()}
        said = "; ".join(_said(group) for group in columns.values() if group[0].verdict)
        outcomes.append(Outcome(kernel, red(found), cells, said))
    return outcomes


def _cell(group: list[Change]) -> str:
    first = group[0]
    if first.column in ("missing", "new"):
        return str(len(group))
    return f"{growth(first.before, first.now) - 1:+.1%}" if first.before else f"+{first.now}"


def _said(group: list[Change]) -> str:
    """What matters most of the changes of a number, and of how many entries it is said."""
    first = group[0]
    others = len({change.name for change in group if change.verdict == first.verdict} - {first.name})
    where = first.name.split("/", 2)[2]
    return f"{first} ({where}{f' and {others} more' if others else ''})"


def verdict(changes: dict[str, list[Change]]) -> str:
    """In a line, of all entries."""
    counts = Counter(min((c.verdict for c in found), key=RANKS.index) for found in changes.values() if found)
    if not counts:
        return "as in the baseline"
    words = ", ".join(f"{counts[rank]} {rank or 'changed within limits'}" for rank in RANKS if counts[rank])
    return words if counts.keys() == {""} else f"{words}; if that is meant: {UPDATE}"


def run(
    console: Console,
    names: list[str],
    baseline: Path | None,
    found: Path | None,
    update: bool,
    junit: Path | None,
    summary: Path | None,
) -> int:
    """Compares the ops `names`, or all, with a baseline, or writes them to it (`update`). Returns the exit
    status, 1 where something is red.

    UserError where there is nothing to compare with, or where other compilers made it: neither green nor red.
    """
    file = baseline or BASELINE
    if unknown := [name for name in names if name not in kernels.CATALOGUE]:
        raise UserError(f"no op {unknown[0]!r}; there are {', '.join(kernels.CATALOGUE)}")
    for option, path in {
        "--baseline": file if update else None,
        "--junit": junit,
        "--summary": summary,
    }.items():
        if path:
            check_writable(path, option)
    known = None if update and not names else snapshot.read(file)
    record = snapshot.record(found, names)
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
