"""The benchmark here against the same at another revision: `python -m bench vs REF NAME ...`.

REF is checked out in a temporary folder. Each repeat runs `python -m bench` in both trees, each in a process
of its own; which goes first alternates, so that drift hits both. Its record shows that a process ran its own
tree's code. A row is compared by the ratio here / there of its medians, repeat by repeat: their geometric
mean, and its 95 % interval by Student's t on their logarithms.
"""

from __future__ import annotations

import contextlib
import math
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from json import loads
from pathlib import Path

from rich.console import Console

from hlb import UserError
from hlb.files import check_output
from hlb.runs import ledger
from hlb.runs.display import line, print_table
from hlb.runs.statistics import summary
from kernels.base.launch import short

ROOT = Path(__file__).resolve().parents[2]
RENAMED = {"training": "both"}  # directions, as older revisions call them
NAMED = 5  # rows of one side alone, in its line
HEADINGS = ("op", "case", "direction", "by", "here us", "there us", "ratio", "95 % interval", "here is")

Key = tuple[str, str, str, str, str]  # op, case, dtype, direction, implementation


@dataclass(frozen=True)
class Comparison:
    """A row of both trees: seconds here and there, repeat by repeat, and what their ratios say."""

    op: str
    case: str
    dtype: str
    direction: str
    implementation: str
    here: list[float]
    there: list[float]
    ratio: float  # geometric mean of here / there
    ci95: list[float]
    verdict: str


def compared(key: Key, here: Sequence[float], there: Sequence[float]) -> Comparison:
    """Compares two repeats or more of a row."""
    logs = summary([math.log(a / b) for a, b in zip(here, there)])
    low, high = map(math.exp, logs["ci95"])
    verdict = "faster" if high < 1 else "slower" if low > 1 else "no difference shown"
    return Comparison(*key, list(here), list(there), math.exp(logs["mean"]), [low, high], verdict)


def run(
    console: Console,
    ref: str,
    names: Sequence[str],
    case: str,
    dtype: str,
    direction: str | None,
    samples: int,
    repeats: int,
    json: str | None,
) -> int:
    """Compares, prints the table, writes the record to `json` if given. `direction` keeps the rows of one.
    Returns the exit status, 1 where a row failed. Raises UserError.
    """
    if repeats < 2:
        raise UserError(f"--repeats: got {repeats}, accepted is 2 or more: an interval takes two")
    check_output(json, "--json")
    options = [*names, *(["--case", case] if case else []), "--dtype", short(dtype)]
    options += ["--samples", str(samples)]
    with worktree(ref) as (tree, commit):
        trees = {"here": (ROOT, _git("rev-parse", "HEAD"), None), "there": (tree, commit, False)}
        changed = " with changes" if _git("status", "--porcelain", "--untracked-files=no") else ""
        here = f"here {trees['here'][1][:10]}{changed}"
        line(console, f"{here}, there {commit[:10]} ({ref}), {repeats} repeats")
        records: dict[str, list[dict]] = {"here": [], "there": []}
        for i in range(repeats):
            for side in ("here", "there") if i % 2 == 0 else ("there", "here"):
                with console.status(f"repeat {i + 1} of {repeats}: {side}"):
                    records[side].append(measured(side, *trees[side], options))
    return conclude(console, records, direction, json)


@contextlib.contextmanager
def worktree(ref: str) -> Iterator[tuple[Path, str]]:
    """A temporary checkout of a revision, and its commit; removed on leaving, also by Ctrl-C."""
    top = _git("rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != ROOT:
        raise UserError(f"{ROOT} is not a git checkout; clone the repository")
    commit = _git("rev-parse", "--verify", f"{ref}^{{commit}}")
    if not commit:
        raise UserError(f"got {ref!r}, by which git knows no commit; fetch it, or take one of `git log`")
    if not _git("ls-tree", commit, "bench/__main__.py"):
        raise UserError(f"{ref} has no `python -m bench`; take a later revision")

    folder = tempfile.mkdtemp(prefix="bench-")
    tree = Path(folder, "there")
    try:
        if _git("worktree", "add", "--detach", "--quiet", str(tree), commit) is None:
            raise UserError(f"git cannot check {ref} out into {folder}; is there room?")
        yield tree, commit
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _git("worktree", "prune")  # forgets it


def _git(*arguments: str) -> str | None:
    """What git prints, in this repository, without its hooks; None where it fails or is not there."""
    command = ("git", "-C", str(ROOT), "-c", f"core.hooksPath={os.devnull}", *arguments)
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def measured(side: str, tree: Path, commit: str, dirty: bool | None, options: Sequence[str]) -> dict:
    """The record of one benchmark by a tree's own code, which is at `commit`, and changed or not if `dirty`
    says which.
    """
    path = os.pathsep.join([str(tree), *filter(None, [os.environ.get("PYTHONPATH")])])
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "record.json")
        done = subprocess.run(
            [sys.executable, "-m", "bench", *options, "--json", str(file)],
            cwd=tree,
            env=os.environ | {"PYTHONPATH": path},
            capture_output=True,
            text=True,
        )
        if not file.exists():
            said = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["it says nothing"]
            raise UserError(f"the benchmark {side} fails, exit status {done.returncode}: {said[0]}")
        record = loads(file.read_text())
    ran = record.get("commit"), record.get("dirty")
    if ran[0] != commit or dirty not in (None, ran[1]):
        raise UserError(f"the benchmark {side} ran {ran[0]}, changed: {ran[1]}, in place of {commit}")
    return record


def by_key(records: Sequence[dict], direction: str | None) -> dict[Key, list[dict]]:
    """The rows of one direction, or of all, repeat by repeat."""
    groups: dict[Key, list[dict]] = {}
    for record in records:
        for row in record["rows"]:
            way = RENAMED.get(row["direction"], row["direction"])
            if direction in (None, way):
                key = row["op"], row["case"], row["dtype"], way, row["implementation"]
                groups.setdefault(key, []).append(row)
    return groups


def conclude(
    console: Console, records: dict[str, list[dict]], direction: str | None, json: str | None
) -> int:
    """Prints the comparison, writes its record; returns the exit status."""
    groups = {side: by_key(records[side], direction) for side in records}
    failed = {
        side: {
            key: faults[0]
            for key, repeats in rows.items()
            if (faults := [r["fault"] for r in repeats if r["fault"]])
        }
        for side, rows in groups.items()
    }
    here, there = (
        {key: [row["median"] for row in repeats] for key, repeats in rows.items() if key not in failed[side]}
        for side, rows in groups.items()
    )
    rows = [compared(key, here[key], there[key]) for key in here if key in there]
    table = [
        (
            *(row.op, row.case, row.direction, row.implementation),
            *(f"{statistics.median(values) * 1e6:.2f}" for values in (row.here, row.there)),
            *(f"{row.ratio:.3f}", f"{row.ci95[0]:.3f} to {row.ci95[1]:.3f}", row.verdict),
        )
        for row in rows
    ]
    if table:
        print_table(console, HEADINGS, table, words=(0, 1, 2, 3, 8))
        line(console, "each interval stands alone: of twenty rows without a difference, one shows some")
    only = {
        "here": [key for key in groups["here"] if key not in groups["there"]],
        "there": [key for key in groups["there"] if key not in groups["here"]],
    }
    for side, keys in only.items():
        if keys:
            more = f" and {len(keys) - NAMED} more" if len(keys) > NAMED else ""
            line(console, f"only {side}: {', '.join(map(' '.join, keys[:NAMED]))}{more}")
    for side, faults in failed.items():
        for key, fault in faults.items():
            line(console, f"FAILED {side}: {' '.join(key)}: {fault}")
    if json:
        first, last = records["here"][0], records["here"][-1]
        record = {
            "command": shlex.join(["python", "-m", "bench", *sys.argv[1:]]),
            **{side: {name: records[side][0][name] for name in ("commit", "dirty")} for side in records},
            **{name: first[name] for name in ("device", "device_name", "versions", "gpu_before")},
            "gpu_after": last["gpu_after"],
            "repeats": len(records["here"]),
            "rows": [asdict(row) for row in rows],
            **{f"only_{side}": keys for side, keys in only.items()},
            **{f"failed_{side}": list(faults.items()) for side, faults in failed.items()},
        }
        ledger.write(json, record)
    return 1 if any(failed.values()) else 0
