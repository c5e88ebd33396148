"""Records of `python -m bench` and of `hlb --profile`: recognised, loaded, and arranged by call."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from hlb.errors import UserError

REFERENCES = ("eager", "compiled", "max-autotune", "cudnn")  # any other implementation is ours
DIRECTIONS = ("forward", "backward", "both", "training")  # the last two are forward and backward together
FIELDS = ("op", "case", "dtype", "direction", "implementation")

Calls = dict[tuple[str, str, str], dict[str, dict[str, dict]]]


def is_bench(content: object) -> bool:
    """Whether a JSON file's content is a record of `python -m bench`."""
    rows = content.get("rows") if isinstance(content, dict) else None
    return isinstance(rows, list) and all(
        isinstance(row, dict) and all(isinstance(row.get(field), str) for field in FIELDS) for row in rows
    )


def is_profile(content: object) -> bool:
    """Whether a JSON file's content is a `profiling.Profile`."""
    return isinstance(content, dict) and "step_seconds" in content and isinstance(content.get("rows"), list)


KINDS: dict[str, tuple[Callable[[object], bool], str]] = {
    "kernels": (is_bench, "python -m bench --json FILE"),
    "profile": (is_profile, "hlb --profile TRACE --json FILE"),
}


def load(path: Path | str, option: str) -> dict:
    """The record that an option names. Raises UserError if it cannot be read or is not such a record."""
    accepted, command = KINDS[option]
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--{option}: cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError):
        content = None
    if not accepted(content):
        raise UserError(f"--{option}: {path} is not a record of `{command}`")
    return content


def about_profile(record: dict) -> str:
    """What was profiled, in a line: recipe, data, device, batch, kernels."""
    images = f"{record['images']} images of {record['size']}x{record['size']}"
    return (
        f"{record['recipe']} on {record['dataset']}, {record['device_name']}: {images} in "
        f"{record['recipe_fields']['dtype']}, --kernels {record['execution']['kernels']}"
    )


def about(record: dict) -> str:
    """What was timed, in a line: device, dtypes, day, commit."""
    commit = record.get("commit")
    if commit is not None:
        commit = f"commit {commit[:8]}{' with changes' if record.get('dirty') else ''}"
    dtypes = ", ".join(dict.fromkeys(row["dtype"] for row in record["rows"]))
    parts = [record.get("device_name"), dtypes, (record.get("time") or "")[:10], commit]
    if not record.get("kernels_timed"):
        parts.insert(0, f"references on {'CPU' if record.get('device') == 'cpu' else record.get('device')}")
    return ", ".join(filter(None, parts))


def timed(record: dict) -> list[dict]:
    """The rows that have a time."""
    return [row for row in record["rows"] if row.get("median") and not row.get("fault")]


def by_call(rows: Sequence[dict]) -> Calls:
    """(op, case, dtype) -> direction -> implementation -> row."""
    calls = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        calls[row["op"], row["case"], row["dtype"]][row["direction"]][row["implementation"]] = row
    return calls


def whole(calls: Calls) -> list[dict[str, dict]]:
    """The implementations of each call, forward and backward together where there is a backward."""
    return [max(ways.items(), key=lambda way: DIRECTIONS.index(way[0]))[1] for ways in calls.values()]


def slower(record: dict, base: str = "compiled") -> dict[tuple[str, str], dict[str, float]]:
    """(op, direction) -> case -> the time of `base` over that of our fastest, where below 1. Forward and
    backward are separate.
    """
    ratios = defaultdict(dict)
    for (op, case, _), ways in by_call(timed(record)).items():
        for direction in DIRECTIONS[:2]:
            times = {name: row["median"] for name, row in ways.get(direction, {}).items()}
            mine = [time for name, time in times.items() if name not in REFERENCES]
            if mine and base in times and times[base] < min(mine):
                ratios[op, direction][case] = times[base] / min(mine)
    return dict(ratios)


def speed_ups(record: dict, base: str) -> dict[str, list[float]]:
    """op -> the time of `base` over that of our fastest, for each case in which both were timed. If none of
    ours was timed, the fastest compiled reference takes its place.
    """
    calls = whole(by_call(timed(record)))
    ours = {name for call in calls for name in call if name not in REFERENCES}
    ratios = defaultdict(list)
    for call in calls:
        mine = [row["median"] for name, row in call.items() if name in (ours or REFERENCES[1:3])]
        if mine and base in call:
            ratios[call[base]["op"]].append(call[base]["median"] / min(mine))
    return ratios
