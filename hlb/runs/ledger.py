"""The ledger: one flat JSON object a line for every finished run, appended and flushed.

A killed process loses only the run in flight: what it left of a line is skipped by `load` and ended by the
next append.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import difflib
import json
import os
import shlex
import sys
from pathlib import Path

from ..errors import UserError
from ..files import atomic
from ..settings import fields
from ..train import Run, Trainer
from . import environment

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

DEFAULT = Path("results") / "ledger.jsonl"
TRUE = ("true", "on", "1", "yes")


def provenance(trainer: Trainer) -> dict:
    """What all runs of a trainer have in common: what was asked for, on what, by which code and command."""
    commit, dirty = environment.commit()
    execution = trainer.execution
    return {
        "recipe": trainer.recipe.name,
        "recipe_fields": fields(trainer.recipe),
        "execution": dataclasses.asdict(execution),
        "dataset": trainer.dataset.name,
        "device": execution.device,
        "device_name": environment.device_name(execution.device),
        "versions": environment.versions(),
        "commit": commit,
        "dirty": dirty,
        "command": shlex.join(["hlb", *sys.argv[1:]]),
        "build_seconds": trainer.build_seconds,
        "compile_seconds": trainer.compile_seconds,
        "first_step_seconds": trainer.first_step_seconds,
        "gpu_before": environment.gpu_state(execution.device),
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

    NaN and infinities are written as null.
    """
    line = json.dumps(finite(record), allow_nan=False).encode() + b"\n"
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab+") as f:
        if fcntl:
            with contextlib.suppress(OSError):  # some network file systems have no locks
                fcntl.flock(f, fcntl.LOCK_EX)
        if f.seek(0, os.SEEK_END):
            f.seek(-1, os.SEEK_END)
            if f.read(1) != b"\n":  # a kill cut the last line short
                line = b"\n" + line
        f.write(line)
        f.flush()
        if os.path.isfile(path):  # a device has no disk to wait for
            os.fsync(f.fileno())


def load(path: Path | str) -> list[dict]:
    """All whole records, oldest first; a line that a kill cut short is left out."""
    records = []
    for line in Path(path).read_bytes().splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


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
    """`value` with every float that JSON cannot hold replaced by None."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    if isinstance(value, float) and not abs(value) < float("inf"):
        return None
    return value


def is_run(record: dict) -> bool:
    """Whether a line of a ledger is a run with all the fields that are compared."""
    numbers = [record.get(name) for name in ("accuracy", "train_seconds", "eval_seconds")]
    return all(isinstance(record.get(name), dict) for name in ("recipe_fields", "execution")) and (
        record.get("status") == "failed"
        or (record.get("status") == "ok" and all(type(number) in (int, float) for number in numbers))
    )


def select(selection: str) -> list[dict]:
    """The runs that FILE or FILE:field=value,... names. Raises UserError if there are none.

    A field is one of a recipe, of an execution or of a ledger line, in that order where several have it. A
    colon is part of FILE where such a file exists.
    """
    parts = selection.split(":")
    paths = (":".join(parts[:i]) for i in range(len(parts), 0, -1))
    path = next(filter(os.path.isfile, paths), parts[0])
    try:
        records = [record for record in load(path) if is_run(record)]
    except OSError as error:
        raise UserError(
            f"{selection}: cannot read {path!r}: {error.strerror}; accepted is a ledger, FILE or "
            "FILE:field=value,..."
        ) from None
    if not records:
        raise UserError(f"{selection}: {path} holds no runs; `hlb train --ledger FILE` writes them")
    for field, value in _conditions(selection, selection[len(path) + 1 :]):
        known = dict.fromkeys(name for record in records for name in _fields(record))
        if field not in known:
            near = difflib.get_close_matches(field, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            raise UserError(f"{selection}: the runs in {path} have no field {field!r}; {hint}")
        there = [*dict.fromkeys(_text(_fields(record).get(field)) for record in records)]
        records = [record for record in records if _matches(field, _fields(record).get(field), value)]
        if not records:
            shown = ", ".join(there[:10]) + ", ..." * (len(there) > 10)
            raise UserError(f"{selection}: no run has {field}={value}; accepted is one of {shown}")
    return records


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


def _text(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _matches(field: str, value: object, wanted: str) -> bool:
    """Whether a field has the value that was written; a commit, whether it begins with that."""
    if field == "commit":
        return str(value).startswith(wanted)
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
