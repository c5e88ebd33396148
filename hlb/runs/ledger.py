"""The ledger: one flat JSON object a line for every finished run, appended and flushed.

A killed process loses only the run in flight: what it left of a line is skipped by `load` and ended by the
next append.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import difflib
import io
import json
import os
import shlex
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from ..errors import UserError
from ..files import atomic
from ..ranges import RANGES
from ..recipes import Recipe, by_epoch
from ..settings import fields
from ..train import Run, Trainer
from . import environment

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

DEFAULT = Path("results") / "ledger.jsonl"
TRUE = ("true", "on", "1", "yes")
DEEPEST = 20  # levels of lists and objects in a line; ours have 4
LARGEST = 2**63  # numbers are below it
# What a run's line may lack, but must not have of another type.
TYPES = {
    **dict.fromkeys(("recipe", "dataset", "device", "device_name", "commit", "command", "time"), str),
    **dict.fromkeys(("views", "note", "untimed"), str),
    "versions": dict,
    "seed": int,
}


class Lines(list):
    """Records of the ledger `path`, and for what reason how many of its other lines were skipped."""

    def __init__(self, path: Path | str, records: Iterable[dict] = (), skipped: Iterable[str] = ()):
        super().__init__(records)
        self.path, self.skipped = path, Counter(skipped)

    @property
    def note(self) -> str:
        """How many lines were skipped and why, in words; empty where none was."""
        count = self.skipped.total()
        why = ", ".join(f"{count} {reason}" for reason, count in self.skipped.items())
        return f"{self.path}: {count} line{'s' * (count > 1)} skipped: {why}" if count else ""


def provenance(trainer: Trainer) -> dict:
    """What all runs of a trainer have in common: what was asked for, on what, by which code and command."""
    commit, dirty = environment.commit()
    execution = trainer.execution
    return {
        **built(trainer),
        "execution": dataclasses.asdict(execution),
        "dataset": trainer.dataset.name,
        "device": execution.device,
        "device_name": environment.device_name(execution.device),
        "versions": environment.versions(),
        "commit": commit,
        "dirty": dirty,
        "command": shlex.join(["hlb", *sys.argv[1:]]),
        "gpu_before": environment.gpu_state(execution.device),
    }


def built(trainer: Trainer) -> dict:
    """What tells a trainer from others of a process: its recipe, and what building it took."""
    return {
        "recipe": trainer.recipe.name,
        "recipe_fields": fields(trainer.recipe),
        "build_seconds": trainer.build_seconds,
        "compile_seconds": trainer.compile_seconds,
        "first_step_seconds": trainer.first_step_seconds,
    }


def record(run: Run, provenance: dict) -> dict:
    """A finished run's line: its provenance, all fields of `train.Run`, peak memory in bytes, time in UTC."""
    memory = environment.peak_memory(provenance["device"])
    return {
        **provenance,
        **dataclasses.asdict(run),
        **{f"peak_memory_{kind}": size for kind, size in memory.items()},
        "gpu_after": environment.gpu_state(provenance["device"]),
        "time": datetime.datetime.now(datetime.timezone.utc).isoformat(),
    }


def append(path: Path | str, record: dict) -> None:
    """Adds one line to the ledger and waits until it is on disk; writers wait for each other's locks.

    NaN and infinities are written as null. Raises OSError, which names `path`, where the line cannot be
    written, to a full disk say; nothing of it stays in the file.
    """
    line = json.dumps(finite(record), allow_nan=False).encode() + b"\n"
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab+", buffering=0) as file:
            if os.path.isfile(path):
                _append(file, line)
            else:  # a device has no end to look at, no disk to wait for
                file.write(line)
    except OSError as error:
        error.filename = str(path)
        raise


def _append(file: io.FileIO, line: bytes) -> None:
    alone = False
    if fcntl:
        with contextlib.suppress(OSError):  # some network file systems have no locks
            fcntl.flock(file, fcntl.LOCK_EX)
            alone = True
    end = file.seek(0, os.SEEK_END)
    if end:
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":  # a kill cut the last line short
            line = b"\n" + line
    try:
        while line:
            line = line[file.write(line) :]
        os.fsync(file.fileno())
    except OSError:
        if alone:  # what follows `end` is ours
            with contextlib.suppress(OSError):
                file.truncate(end)
        raise


def load(path: Path | str) -> Lines:
    """All whole records, oldest first; NaN and infinities are None. Skipped are lines that a kill cut short,
    and what is no JSON object in UTF-8. Raises OSError.
    """
    lines = Lines(path)
    for line in Path(path).read_bytes().split(b"\n"):
        if line.strip(b"\0 \t\r"):
            try:
                lines.append(_record(line))
            except ValueError as error:
                lines.skipped[str(error)] += 1
    return lines


def runs(path: Path | str) -> Lines:
    """As `load`, of the lines that are runs."""
    lines = load(path)
    good = [record for record in lines if is_run(record)]
    return Lines(path, good, lines.skipped + Counter({"no runs": len(lines) - len(good)}))


def _record(line: bytes) -> dict:
    """A line's record. Raises ValueError that says what the line is instead."""
    try:
        text = line.decode("utf-8-sig")
        record = json.loads(text)
        if "\\ud" in text.lower():
            json.dumps(record, ensure_ascii=False).encode()  # halves of a surrogate pair cannot be printed
    except UnicodeError:
        raise ValueError("not in UTF-8") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except ValueError:
        raise ValueError("not in UTF-8" if b"\0" in line else "cut short or no JSON") from None
    if not isinstance(record, dict):
        raise ValueError("no JSON object")
    level: list = [record]
    for _ in range(DEEPEST):
        level = [item for value in level for item in _items(value)]
    if level:
        raise ValueError("nested too deeply")
    return finite(record)


def _items(value: object) -> Iterable:
    """What is in a list or an object."""
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def text(record: dict) -> str:
    """A record as JSON for people and programs; NaN and infinities as null."""
    return json.dumps(finite(record), indent=1, allow_nan=False) + "\n"


def write(path: Path | str, record: dict) -> None:
    """A record as a JSON file, whole or not at all, or on standard output (-)."""
    if path == "-":
        sys.stdout.write(text(record))
        return
    with atomic(path) as temporary:
        temporary.write_text(text(record))


def finite(value: object) -> object:
    """`value` with every float that JSON cannot hold replaced by None, and NumPy's numbers by Python's."""
    if isinstance(value, (str, int)):
        return value
    if isinstance(value, float):
        return float(value) if abs(value) < float("inf") else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return finite(value.tolist()) if isinstance(value, (np.generic, np.ndarray, torch.Tensor)) else value


# Fields of a recipe as JSON has them: what a run did before a field came is the field's default.
DEFAULTS = finite(fields(Recipe(name="")))


def is_run(record: dict) -> bool:
    """Whether a line of a ledger is a run: its recipe and execution, and all that is compared or printed, are
    of their types and in their ranges.
    """
    recipe, execution = record.get("recipe_fields"), record.get("execution")
    if not isinstance(recipe, dict) or not isinstance(execution, dict):
        return False
    fields = ((name, recipe[name]) for name in recipe.keys() & DEFAULTS.keys())
    if not all(_fits(name, value, DEFAULTS[name]) for name, value in fields):
        return False
    if not all(record.get(name) is None or type(record[name]) is kind for name, kind in TYPES.items()):
        return False
    if not 0 <= (record.get("seed") or 0) < LARGEST:
        return False
    if record.get("status") != "ok":
        return record.get("status") == "failed"
    accuracy, *times = (record.get(name) for name in ("accuracy", "train_seconds", "eval_seconds"))
    if not (_number(accuracy) and all(map(_number, times))):
        return False
    return 0 <= accuracy <= 1 and min(times) >= 0 and 1e-9 <= sum(times) <= 1e9


def _number(value: object) -> bool:
    return type(value) in (int, float) and abs(value) < LARGEST


def _fits(name: str, value: object, example: object) -> bool:
    """Whether a recipe's field may have that value, by the type of another one."""
    if isinstance(example, list):
        return isinstance(value, list) and all(_fits(name, item, example[0]) for item in value)
    if isinstance(value, list) and by_epoch(name):
        return bool(value) and all(_fits(name, item, example) for item in value)
    if example is None and value is None:
        return True
    if isinstance(example, (bool, str)):
        return type(value) is type(example)
    low, high = RANGES.get(name, (-LARGEST, LARGEST))
    return _number(value) and low <= value <= high


def file_of(selection: str) -> str:
    """FILE of FILE:field=value,..."""
    parts = selection.split(":")
    paths = (":".join(parts[:i]) for i in range(len(parts), 0, -1))
    return next(filter(os.path.isfile, paths), parts[0])


def select(selection: str) -> Lines:
    """The runs that FILE or FILE:field=value,... names. Raises UserError if there are none.

    A field is one of a recipe, of an execution or of a ledger line, in that order where several have it. A
    colon is part of FILE where such a file exists.
    """
    path = file_of(selection)
    try:
        records = there = runs(path)
    except OSError as error:
        raise UserError(
            f"{selection}: cannot read {path!r}: {error.strerror}; accepted is a ledger, FILE or "
            "FILE:field=value,..."
        ) from None
    if not records:
        why = f" ({there.note})" if there.note else ""
        raise UserError(f"{selection}: {path} holds no runs{why}; `hlb train --ledger FILE` writes them")
    for field, value in _conditions(selection, selection[len(path) + 1 :]):
        known = dict.fromkeys(name for record in records for name in _fields(record))
        if field not in known:
            near = difflib.get_close_matches(field, known, n=1)
            hint = (
                f"did you mean {written(near[0])}?" if near else f"there are {', '.join(map(written, known))}"
            )
            raise UserError(f"{selection}: the runs in {path} have no field {field!r}; {hint}")
        known = [*dict.fromkeys(written(_fields(record).get(field)) for record in records)]
        records = [record for record in records if _matches(field, _fields(record).get(field), value)]
        if not records:
            shown = ", ".join(known[:10]) + ", ..." * (len(known) > 10)
            raise UserError(f"{selection}: no run has {field}={value}; accepted is one of {shown}")
    return Lines(path, records, there.skipped)


def _conditions(selection: str, text: str) -> list[tuple[str, str]]:
    """field=value,... as pairs. A part without = goes on with the value before it: group_widths=1,4,4."""
    conditions: list[tuple[str, str]] = []
    for part in text.split(",") if text else []:
        field, equals, value = part.partition("=")
        if equals:
            conditions.append((field.strip(), value.strip()))
        elif conditions:
            conditions[-1] = (conditions[-1][0], f"{conditions[-1][1]},{part}")
        else:
            raise UserError(f"{selection}: got {part!r}, accepted is FILE:field=value,field=value,...")
    return conditions


def _fields(record: dict) -> dict:
    plain = {name: value for name, value in record.items() if not isinstance(value, (dict, list))}
    return {**plain, **record["execution"], **record["recipe_fields"]}


def written(value: object) -> str:
    """A field's value as in FILE:field=value; what a terminal would obey is escaped."""
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if text.isprintable() else repr(text)[1:-1]


def _matches(field: str, value: object, wanted: str) -> bool:
    """Whether a field has the value that was written; a commit, whether it begins with that, and a device,
    whether it is of that kind.
    """
    if field == "commit":
        return str(value).startswith(wanted)
    if field == "device":
        return wanted in (str(value), str(value).partition(":")[0])
    if isinstance(value, bool):
        return (wanted.lower() in TRUE) is value
    if isinstance(value, list):
        parts = wanted.split(",")
        return len(parts) == len(value) and all(_matches("", item, part) for item, part in zip(value, parts))
    if isinstance(value, (int, float)):
        try:
            return float(wanted) == value
        except ValueError:
            return False
    return str(value) == wanted
