"""The ledger: one flat JSON object a line for every finished run, appended and flushed.

A killed process loses only the run in flight: what it left of a line is skipped by `load` and ended by the next append.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

DEFAULT = Path("results") / "ledger.jsonl"


def append(path: Path | str, record: dict) -> None:
    """Adds one line to the ledger and waits until it is on disk. NaN and infinities are written as null."""
    line = json.dumps(_finite(record), allow_nan=False).encode() + b"\n"
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab+") as f:
        if f.tell():
            f.seek(-1, os.SEEK_END)
            if f.read(1) != b"\n":
                line = b"\n" + line
        f.write(line)
        f.flush()
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


def _finite(value: object) -> object:
    """`value` with every float that JSON cannot hold replaced by None."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not abs(value) < float("inf"):
        return None
    return value
