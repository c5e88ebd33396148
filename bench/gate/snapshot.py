"""Numbers of compiled code and of issued work, launch by launch: from the ahead-of-time check, and as a file.

record(None, ["conv"])          {"versions": ..., "launches": [...], ...}, from a check of these ops
entries(record)                 {"work": {"conv/_conv_fwd/r1.conv2/float16": {"9.0": {"bytes": ...}}}, ...}
text(versions, entries)         the same as a baseline that is committed, which `read` reads
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import kernels
from hlb import UserError
from kernels.base import launch

from ..check import sass

UPDATE = "python -m bench gate --static --update"
CHECK = "python -m bench check --json"

# Section -> its columns. Work is of a call, by kernel; of launches, what follows `instructions` are those of
# them that do this or that, and those of the hottest loop.
SECTIONS = {
    "work": ("bytes", "flops"),
    "launches": ("registers", "stack", "shared memory", "instructions", *sass.COUNTED[1:]),
}

Numbers = dict[str, int]  # by column
Entries = dict[str, dict[str, Numbers]]  # op/kernel/case/dtype[/configuration] -> chip -> numbers
Sections = dict[str, Entries]


def record(file: Path | None, names: list[str]) -> dict:
    """The record of a check of the ops `names`, or of all, with its `sections`: from `file`, or of a check
    that is run now.

    Raises UserError for a file of another kind, and where triton is missing.
    """
    if file is None:
        return _checked(names)
    content = _read(file, _parsed, CHECK)
    if content["names"] and not set(names or kernels.CATALOGUE) <= set(content["names"]):
        raise UserError(f"{file} is of {' '.join(content['names'])} alone: name what to compare, of these")
    if content["all"]:
        raise UserError(f"{file} was made with --all, and the baseline is not: {CHECK} {file}")
    return content


def _checked(names: list[str]) -> dict:
    """Runs the check in a process of its own: one that interprets kernels cannot compile them."""
    if not launch.INSTALLED:
        raise UserError("gate --static compiles kernels: it needs triton, which is not installed here")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "check.json")
        command = [sys.executable, "-m", *CHECK.split()[2:], str(file), *names]
        root = Path(__file__).resolve().parents[2]
        status = subprocess.run(command, stdout=subprocess.DEVNULL, cwd=root).returncode
        if not file.exists():
            raise UserError(f"{CHECK} wrote nothing to compare, it ended with status {status}")
        return record(file, names)


def read(file: Path) -> dict:
    """A baseline: its `versions` and `sections`. Raises UserError for any other file."""
    return _read(file, _unpacked, UPDATE)


def _read(file: Path, parse: Callable[[dict], dict], command: str) -> dict:
    try:
        return parse(json.loads(file.read_text(encoding="utf-8")))
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}; {command} makes one") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{file} is not what {command} of this version writes") from None


def _parsed(content: dict) -> dict:
    kept = {key: content[key] for key in ("names", "all", "versions", "faults", "launches")}
    return kept | {"sections": entries(content)}


def _unpacked(baseline: dict) -> dict:
    sections = {section: dict(_entries(baseline[section])) for section in SECTIONS}
    return {"versions": baseline["versions"], "sections": sections}


def _entries(section: dict) -> Iterator[tuple[str, dict[str, Numbers]]]:
    for name, groups in section["entries"].items():
        chips = ((chip, numbers) for group, numbers in groups.items() for chip in group.split())
        yield name, {chip: dict(zip(section["columns"], numbers)) for chip, numbers in chips}


def text(versions: dict[str, str], sections: Sections) -> str:
    """A baseline: a line for each entry, in which chips of the same numbers stand together."""
    parts = [f'"command": {json.dumps(UPDATE)}', f'"versions": {json.dumps(versions)}']
    for section, columns in SECTIONS.items():
        lines = []
        for name, chips in sorted(sections[section].items()):
            groups: dict[tuple[int, ...], list[str]] = {}
            for chip in sorted(chips, key=float):
                groups.setdefault(tuple(chips[chip][column] for column in columns), []).append(chip)
            packed = {" ".join(group): numbers for numbers, group in groups.items()}
            lines.append(f"  {json.dumps(name)}: {json.dumps(packed, separators=(',', ':'))}")
        head = f'"{section}": {{\n "columns": {json.dumps(columns)},\n "entries": {{\n'
        parts.append(head + ",\n".join(lines) + "\n }\n}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def entries(content: dict) -> Sections:
    """The entries of a check's record. Where launches share a name and a chip, the greater of each number."""
    sections: Sections = {section: {} for section in SECTIONS}

    def add(section: str, name: str, chip: str, numbers: Numbers) -> None:
        known = sections[section].setdefault(name, {}).setdefault(chip, numbers)
        known.update({column: max(known[column], number) for column, number in numbers.items()})

    for one in content["launches"]:
        for chip, code in one["chips"].items():
            if not code["error"]:
                groups = (code["instructions"][group] for group in sass.COUNTED)
                whole = code["registers"], code["stack"], code["shared"], *groups
                add("launches", one["key"], chip, dict(zip(SECTIONS["launches"], whole, strict=True)))
    for one in content["work"]:
        for chip, by_kernel in one["chips"].items():
            for kernel, numbers in by_kernel.items():
                add("work", f"{one['op']}/{kernel}/{one['case']}/{one['dtype']}", chip, dict(numbers))
    return sections


def of_ops(sections: Sections, names: Collection[str]) -> Sections:
    """The entries of these ops."""
    return {
        section: {name: chips for name, chips in by_name.items() if name.split("/")[0] in names}
        for section, by_name in sections.items()
    }
