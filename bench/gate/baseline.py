"""The file that the speed gate compares with: seconds of each case in each repeat, and where they are from.

    {"gpu": "NVIDIA H200",
     "sessions": [{"ceilings": {"copy": [s, ...], "matmul": [s, ...]}, "command": ..., "time": ..., ...}],
     "cases": {"sgd seed forward": {"seconds": [s, ...], "call": {"dtype": "float16", ...}, "session": 0}},
     "recipes": {"record94": {"seconds": [s, ...], "accuracy": [...], "dataset": ..., "fields": {...},
                              "session": 0}}}

A session is one `--update`: the machine's ceilings as they were then, and its provenance. Cases that were
measured again since come from a later session than the others; a session of runs alone may lack ceilings.
Seconds are medians, one a repeat, each repeat a process of its own; a recipe's are training and evaluation,
one a run, all of one process.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from hlb import UserError
from hlb.files import atomic
from hlb.runs import environment, ledger

from . import verdict

FOLDER = Path(__file__).parents[1] / "baselines"
CEILINGS = ("copy", "matmul")
COMPARED = ("torch", "triton", "cuda", "driver")  # versions that a time depends on


@dataclass(frozen=True)
class Timed:
    """A case: its seconds, the fields of its call, and the number of its session."""

    seconds: tuple[float, ...]
    call: dict
    session: int


@dataclass(frozen=True)
class Runs:
    """Runs of a recipe: seconds and accuracy (a fraction) of each, the data set, the recipe's fields."""

    seconds: tuple[float, ...]
    accuracy: tuple[float, ...]
    dataset: str
    fields: dict
    session: int


@dataclass(frozen=True)
class Session:
    """Seconds of each ceiling in each repeat, and the provenance of what was measured beside them."""

    ceilings: dict[str, tuple[float, ...]]
    provenance: dict = field(default_factory=dict)


@dataclass
class Baseline:
    """What a GPU was seen to do."""

    gpu: str
    sessions: list[Session] = field(default_factory=list)
    cases: dict[str, Timed] = field(default_factory=dict)
    recipes: dict[str, Runs] = field(default_factory=dict)

    def only(self, ops: Iterable[str]) -> Baseline:
        """With the cases of these ops alone."""
        cases = {name: case for name, case in self.cases.items() if name.split()[0] in ops}
        return dataclasses.replace(self, cases=cases)

    def stale(self, versions: dict) -> list[str]:
        """Where its sessions had other versions than these, a phrase each."""
        pairs = [
            (session.provenance.get("versions", {}).get(name), versions.get(name), name)
            for session in self.sessions
            for name in COMPARED
        ]
        return list(dict.fromkeys(f"{name} {old}, now {new}" for old, new, name in pairs if old != new))


def slug(gpu: str) -> str:
    """A GPU's name as that of a file: NVIDIA H200 -> nvidia-h200."""
    return re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")


def provenance(command: str, gpu: str, before: dict | None) -> dict:
    """By which command, code and versions, on what and when; `before` is the GPU's state at the beginning."""
    commit, dirty = environment.commit()
    return {
        "command": command,
        "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit,
        "dirty": dirty,
        "device_name": gpu,
        "versions": environment.versions(),
        "gpu_before": before,
        "gpu_after": before and environment.gpu_state("cuda"),
    }


def renewed(
    old: Baseline, session: Session, cases: dict[str, Timed], recipes: dict[str, Runs], ops: list[str]
) -> Baseline:
    """`old` with what one session measured in place of all cases of `ops` (none given: of every op) and in
    place of the recipes measured. The session's number in `cases` and `recipes` is filled in here.
    """
    number = len(old.sessions)
    mine = (
        {name: dataclasses.replace(one, session=number) for name, one in part.items()}
        for part in (cases, recipes)
    )
    cases, recipes = mine
    cases |= {name: one for name, one in old.cases.items() if ops and name.split()[0] not in ops}
    recipes = {**old.recipes, **recipes}
    used = sorted({one.session for one in (*cases.values(), *recipes.values())})
    sessions = [*old.sessions, session]

    def renumbered(part: dict) -> dict:
        return {
            name: dataclasses.replace(one, session=used.index(one.session))
            for name, one in sorted(part.items())
        }

    return Baseline(old.gpu, [sessions[i] for i in used], renumbered(cases), renumbered(recipes))


def save(path: Path, baseline: Baseline) -> None:
    """Writes the file whole or not at all; a session or a case is a line, and so is its change."""
    sessions = [
        json.dumps(ledger.finite({"ceilings": one.ceilings, **one.provenance})) for one in baseline.sessions
    ]
    parts = {"gpu": json.dumps(baseline.gpu), "sessions": joined("[", sessions, "]")}
    for name in ("cases", "recipes"):
        items = getattr(baseline, name).items()
        rows = [
            f"{json.dumps(key)}: {json.dumps(ledger.finite(dataclasses.asdict(one)))}" for key, one in items
        ]
        parts[name] = joined("{", rows, "}")
    with atomic(path) as temporary:
        temporary.write_text(joined("{", [f'"{name}": {part}' for name, part in parts.items()], "}") + "\n")


def joined(opening: str, rows: list[str], closing: str) -> str:
    return opening + ",".join(f"\n{row}" for row in rows) + f"\n{closing}"


def load(path: Path, gpu: str) -> Baseline:
    """The baseline of this GPU. UserError where the file cannot be read, is none, or is another GPU's."""
    try:
        content = json.loads(path.read_text())
        baseline = Baseline(
            content["gpu"],
            [Session(_numbers(one.pop("ceilings")), one) for one in content["sessions"]],
            {name: Timed(**_frozen(one, "seconds")) for name, one in content["cases"].items()},
            {name: Runs(**_frozen(one, "seconds", "accuracy")) for name, one in content["recipes"].items()},
        )
        _check(baseline)
    except OSError as error:
        raise UserError(f"--baseline: cannot read {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        said = f"{type(error).__name__}: {error}".split("\n")[0]
        raise UserError(f"--baseline: {path} is no baseline ({said}); remove it") from None
    if baseline.gpu != gpu:
        raise UserError(f"--baseline: {path} is of {baseline.gpu}, and this is {gpu}; give it one of its own")
    return baseline


def _numbers(values: dict) -> dict[str, tuple[float, ...]]:
    return {name: tuple(values[name]) for name in CEILINGS if name in values}


def _frozen(one: dict, *lists: str) -> dict:
    return {**one, **{name: tuple(one[name]) for name in lists}}


def _check(baseline: Baseline) -> None:
    """ValueError where numbers are missing or are no times."""
    for name, one in (*baseline.cases.items(), *baseline.recipes.items()):
        if not 0 <= one.session < len(baseline.sessions):
            raise ValueError(f"{name} has session {one.session} of {len(baseline.sessions)}")
        least = verdict.LEAST if isinstance(one, Timed) else 2
        if len(one.seconds) < least or not all(0 < value < math.inf for value in one.seconds):
            raise ValueError(f"{name} needs {least} or more positive times")
    for number in {case.session for case in baseline.cases.values()}:
        if missing := set(CEILINGS) - set(baseline.sessions[number].ceilings):
            raise ValueError(f"session {number} has cases, and no ceiling {', '.join(missing)}")
    for session in baseline.sessions:
        for name, values in session.ceilings.items():
            if not values or not all(0 < value < math.inf for value in values):
                raise ValueError(f"ceiling {name} needs positive times")
