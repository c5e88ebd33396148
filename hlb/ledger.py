"""The ledger: one flat JSON object a line for every finished run, appended and flushed.

A killed process loses only the run in flight: what it left of a line is skipped by `load` and ended by the
next append.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import os
import shlex
import sys
from pathlib import Path

from . import environment

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

DEFAULT = Path("results") / "ledger.jsonl"


def provenance(trainer) -> dict:
    """What all runs of a trainer have in common: what was asked for, on what, by which code and command."""
    commit, dirty = environment.commit()
    execution = trainer.execution
    return {
        "recipe": trainer.recipe.name,
        "recipe_fields": dataclasses.asdict(trainer.recipe),
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


def record(run, provenance: dict) -> dict:
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


def finite(value: object) -> object:
    """`value` with every float that JSON cannot hold replaced by None."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    if isinstance(value, float) and not abs(value) < float("inf"):
        return None
    return value
