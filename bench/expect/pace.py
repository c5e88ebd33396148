"""What rewritten kernels are expected to take: their compiled code beside that of the measured ones.

    python -m bench check norm_act conv_bn_act ... --json before.json      of the revision that was measured
    python -m bench check norm_act conv_bn_act ... --json after.json
    python -m bench pace before.json after.json [--out bench/results/h200/rewritten.json]

For each kernel whose code differs, and a recipe's cases of it in float16 on 9.0: registers, shared memory,
the instructions that threads issue for each 16 bytes that are moved, and what a launch is modelled to take:
its start, and the longer of

    OVERLAP * (bytes / bandwidth + instructions / what the chip issues) * waves, the last a whole one
    waves * instructions of a warp * LATENCY

Instructions are those outside the hottest loop once, and its own as often as it runs. The second term is of
small launches, whose few warps wait for themselves. `measured` beside `modelled` shows how far that is right.
So no modelled time is taken as it is: the measured time is scaled by modelled after / before. That factor is
written into hlb/cost/times.json by `python -m bench times`, and counts as modelled.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import statistics
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from hlb import UserError
from hlb.cost import expected
from hlb.errors import Parser, exit_status
from hlb.files import atomic, check_writable
from hlb.runs.display import line, print_table
from kernels import CATALOGUE
from kernels.base import chips
from kernels.base.launch import cdiv
from kernels.base.spec import Case
from kernels.patch_covariance import patch_count

HELP = """\
usage: python -m bench pace BEFORE AFTER [--out FILE]

What rewritten kernels are expected to take: their compiled code in AFTER beside
that of the measured ones in BEFORE. Both are records that
`python -m bench check --json` wrote. Times are modelled, not measured.

  --out FILE  the record, as bench/results/h200/rewritten.json
"""
CHIP, CC = chips.AIMED_AT, "9.0"
CLOCK = 1.755e9  # Hz, of an H200 under load
ISSUED = 4 * CHIP.multiprocessors * CLOCK  # instructions of warps a second
OVERLAP = 0.86
LATENCY = 6 / CLOCK  # seconds of an instruction of a warp that few others stand beside
SPLITS = 16  # rows that the measured `_sum_splits` took at a time

Numbers = dict[str, Any]


def _rows(constants: dict[str, int], case: Case) -> float:
    """Steps of all programs of the stem, which was measured with BLOCK pixels a step."""
    return (
        case.n * (case.h - 1) / constants["ROWS"]
        if "ROWS" in constants
        else patch_count(case) / constants["BLOCK"]
    )


# How often a kernel runs its hottest loop, by its constants, grid, bytes and case; others run it once.
TRIPS: dict[str, Callable[[dict[str, int], list[int], int, Case], float]] = {
    **dict.fromkeys(
        ("_tile_statistics", "_normalise", "_sums", "_gradient"),
        lambda constants, *_: cdiv(constants["SPAN"], constants["ROWS"]),
    ),
    **dict.fromkeys(
        ("_se_gate_fwd", "_se_gate_bwd"), lambda constants, *_: cdiv(constants["C"], constants["BLOCK_C"])
    ),
    "_sum_splits": lambda constants, _, bytes, case: (
        bytes / constants["SIZE"] / 4 / constants.get("ROWS", SPLITS)  # rows of float32
    ),
    **dict.fromkeys(
        ("_stem_fwd", "_stem_bwd"), lambda constants, grid, _, case: _rows(constants, case) / grid[0]
    ),
}


def recipe_of(case: str) -> str | None:
    """The recipe, of the two that were measured, whose training steps have this case."""
    if case.split()[0] in ("smoke", "airbench94", "evaluation") or "eval" in case.split():
        return None
    return "record94" if case.startswith("record94") else "seed"


def modelled(launch: Numbers, bytes: int, case: Case) -> Numbers:
    """Of a launch as the check wrote it: instructions for 16 bytes, and seconds."""
    code, programs = launch["chips"][CC], math.prod(launch["grid"])
    constants = {name: int(value) for name, value in launch["constants"].items() if value.isdigit()}
    trips = TRIPS.get(launch["kernel"], lambda *_: 1)(constants, launch["grid"], bytes, case)
    loop = code["instructions"]["loop"]
    warp = code["instructions"]["all"] - loop + max(1, trips) * loop
    issued = programs * launch["warps"] * warp
    waves = programs / (CHIP.multiprocessors * max(1, round(64 * code["occupancy"] / launch["warps"])))
    last = math.ceil(waves) / waves if waves > 1 else 1
    work = OVERLAP * (bytes / CHIP.bandwidth + issued / ISSUED) * last
    return {
        "registers": code["registers"],
        "shared": code["shared"],
        "instructions": 32 * issued / (bytes / 16),
        "modelled": CHIP.launch + max(work, math.ceil(waves) * warp * LATENCY),
    }


def by_case(record: Numbers) -> dict[tuple[str, str, str], list[Numbers]]:
    """(kernel, op, case) -> its launches in a check's record, of training steps in float16."""
    work = {(w["op"], w["case"]): w["chips"].get(CC, {}) for w in record["work"] if w["dtype"] == "float16"}
    cases = {(op, case.name): case for op in record["names"] for case in CATALOGUE[op].cases}
    launches = defaultdict(list)
    for launch in record["launches"]:
        for name in launch["cases"]:
            moved = work.get((launch["op"], name), {}).get(launch["kernel"])
            case = cases.get((launch["op"], name)) if recipe_of(name) else None
            if launch["dtype"] == "float16" and CC in launch["chips"] and moved and case:
                numbers = modelled(launch, moved["bytes"], case)
                code = [launch["grid"], launch["warps"], launch["chips"][CC]["instructions"]]
                launches[launch["kernel"], launch["op"], name].append(numbers | {"code": code})
    return launches


def together(launches: list[Numbers]) -> Numbers:
    """The most registers and shared memory, the mean of the rest."""
    return {of: max(one[of] for one in launches) for of in ("registers", "shared")} | {
        of: statistics.fmean(one[of] for one in launches) for of in ("instructions", "modelled")
    }


def rewritten(before: Numbers, after: Numbers) -> list[Numbers]:
    """A row for each kernel of a recipe that both records have, at the same cases, in different code."""
    there, here = by_case(before), by_case(after)
    sides: dict[tuple[str, str], tuple[list, list]] = defaultdict(lambda: ([], []))
    for kernel, op, case in sorted(there.keys() & here.keys()):
        for side, launches in zip(sides[recipe_of(case), kernel], (there, here)):
            side += launches[kernel, op, case]
    rows = []
    for (recipe, kernel), both in sorted(sides.items()):
        was, now = map(together, both)
        if [one["code"] for one in both[0]] != [one["code"] for one in both[1]]:
            factor = now["modelled"] / was["modelled"]
            row = {"recipe": recipe, "kernel": kernel, "before": was, "after": now, "factor": factor}
            rows.append(row | {"measured": measured(recipe, kernel)})
    return rows


HEADINGS = (
    "recipe",
    "kernel",
    "registers",
    "KiB",
    "instructions / 16 bytes",
    "modelled µs",
    "measured µs",
    "expected µs",
)


def measured(recipe: str, kernel: str) -> float | None:
    """Seconds of a launch, the mean of a whole run, by hlb/cost/times.json."""
    times = json.loads(expected.FILE.read_text(encoding="utf-8"))[CHIP.name]["recipes"]
    rate = times[recipe]["passes"].get(kernel)
    return rate["seconds"] / rate["launches"] if rate else None


def table(rows: list[Numbers]) -> list[list[str]]:
    """As HEADINGS."""

    def both(row: Numbers, of: str, form: str, unit: float = 1.0) -> str:
        return " → ".join(format(row[side][of] / unit, form) for side in ("before", "after"))

    lines = []
    for row in rows:
        seconds = row["measured"]
        times = [f"{1e6 * seconds:.1f}", f"{1e6 * seconds * row['factor']:.1f}"] if seconds else ["", ""]
        code = (
            both(row, "registers", ".0f"),
            both(row, "shared", ".0f", 1024),
            both(row, "instructions", ".0f"),
        )
        lines.append([row["recipe"], row["kernel"], *code, both(row, "modelled", ".1f", 1e-6), *times])
    return lines


def read(path: Path) -> Numbers:
    """A check's record. Raises UserError for any other file."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if all(
            "loop" in chip["instructions"] for one in record["launches"] for chip in one["chips"].values()
        ):
            return record | {"names": record["names"] or list(CATALOGUE)}
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise UserError(f"{path} is not what python -m bench check --json of this version writes")


def main(arguments: list[str]) -> int:
    """Returns the exit status: 0, 2 (a mistake), 130 (interrupted)."""
    return exit_status("bench pace", partial(_main, arguments))


def parsed(arguments: list[str]) -> argparse.Namespace:
    """The options of a command line, checked. Raises UserError for invalid ones."""
    parser = Parser(description=HELP)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    if options.out:
        check_writable(options.out, "--out")
    return options


def _main(arguments: list[str]) -> int:
    options = parsed(arguments)
    before, after = read(options.before), read(options.after)
    rows = rewritten(before, after)
    console = Console()
    print_table(console, HEADINGS, table(rows), words=())
    line(console, f"{len(rows)} kernels of other code; what is expected is modelled, and no measurement")
    if options.out:
        record = {"command": "python -m bench pace " + shlex.join(arguments), "chip": CHIP.name}
        record |= {"versions": {"before": before["versions"], "after": after["versions"]}, "rows": rows}
        with atomic(options.out) as temporary:
            temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0
