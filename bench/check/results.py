"""What the ahead-of-time check shows: progress while it compiles, then a table, the faults, and JSON."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from hlb.execution import cpus
from kernels import CATALOGUE
from kernels.base.chips import TARGETS

from . import check
from .aot import versions
from .check import Row, chip


def run(names: list[str], everything: bool, file: str | None, jobs: int | None) -> int:
    """Checks ops by name, or all; writes JSON to `file`, if named. Returns the exit status, 1 where a rule is
    broken.
    """
    torch.set_num_threads(1)  # processes will be forked: no thread of torch's may be at work then
    rows, faults = check.collect([CATALOGUE[name] for name in names or CATALOGUE], everything)
    _compile(rows, jobs or cpus())
    faults += check.judge(rows)
    faults += _grouped(rows)
    if file:
        text = json.dumps(_plain(names, everything, rows, faults), indent=1)
        if file == "-":
            print(text)
            return int(bool(faults))
        check.write(Path(file), text)
    _show(rows)
    for spec in {row.spec: None for row in rows}:
        if without := [chip(cc) for cc in TARGETS if cc < spec.since]:
            print(f"{spec.name}: not for {', '.join(without)}, what it takes comes with {chip(spec.since)}")
    for fault in faults:
        print(f"FAIL {fault}")
    compiled = sum(len(row.results) for row in rows)
    print(f"{len(rows)} launches, compiled {compiled} times: {len(faults) or 'nothing'} wrong")
    return int(bool(faults))


def _grouped(rows: list[Row]) -> list[str]:
    """The faults of rows, a line for each fault of a kernel, with the cases and chips that show it."""
    places: dict[str, list[str]] = {}
    for row in rows:
        for fault, on in row.faults.items():
            place = f"{row.cases[0]} {row.precision} on {', '.join(map(chip, on))}"
            places.setdefault(f"{row.spec.name} {row.launch.name}: {fault}", []).append(place)
    return [f"{fault} ({'; '.join(shown)})" for fault, shown in places.items()]


def _compile(rows: list[Row], jobs: int) -> None:
    console = Console(stderr=True)
    columns = (TextColumn("compiling"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        bar = progress.add_task("", total=None)
        check.compile_all(rows, jobs, lambda done, of: progress.update(bar, completed=done, total=of))


def _accesses(row: Row) -> str:
    """Pointer arguments with accesses below 16 bytes, narrowest and widest of all chips; else 16."""
    spans: dict[str, tuple[int, int]] = {}
    for result in row.results.values():
        for name, (least, most) in result.widths.items():
            a, b = spans.get(name, (least, most))
            spans[name] = min(a, least), max(b, most)
    narrow = {name.removeprefix("p_"): span for name, span in spans.items() if span[0] < 16}
    cells = [f"{name} {a}" + f"-{b}" * (a != b) for name, (a, b) in narrow.items()]
    return ", ".join(cells) or "16" * bool(spans)


COLUMNS = {  # heading -> cell of a row, the worst over the chips
    "op": lambda row: row.spec.name,
    "kernel": lambda row: row.launch.name,
    "case": lambda row: row.cases[0] + f" +{len(row.cases) - 1}" * (len(row.cases) > 1),
    "dtype": lambda row: row.precision,
    "chips": lambda row: "" if row.ccs == tuple(TARGETS) else " ".join(map(chip, row.ccs)),
    "tile": lambda row: check.tile(row.launch),
    "warps": lambda row: str(row.launch.num_warps),
    "regs": lambda row: str(max(r.registers for r in row.results.values())),
    "KiB": lambda row: f"{max(r.shared for r in row.results.values()) / 1024:.0f}",
    "resident": lambda row: f"{row.results[90].occupancy:.0%}" if 90 in row.results else "",
    "bytes": _accesses,
    "": lambda row: "[red]FAIL[/]" if row.faults else "[green]ok[/]",
}
NUMBERS = ("warps", "regs", "KiB", "resident")


def _show(rows: list[Row]) -> None:
    console = Console()
    if not console.is_terminal:
        console.width = 150
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in COLUMNS:
        table.add_column(
            heading, justify="right" if heading in NUMBERS else "left", no_wrap=heading != "bytes"
        )
    for row in sorted(rows, key=lambda row: (row.spec.name, row.launch.name)):
        table.add_row(*(cell(row) for cell in COLUMNS.values()))
    console.print(table)


def _plain(names: list[str], everything: bool, rows: list[Row], faults: list[str]) -> dict:
    """The record, for a program to read. `names` are the ops that were asked for, none for all."""
    return {
        "names": names,
        "all": everything,
        "versions": versions(),
        "faults": faults,
        "launches": [
            {
                "key": row.key,
                "op": row.spec.name,
                "kernel": row.launch.name,
                "cases": row.cases,
                "dtype": row.precision,
                "grid": row.launch.grid,
                "warps": row.launch.num_warps,
                "stages": row.launch.num_stages,
                "constants": {name: str(value) for name, value in row.launch.constants.items()},
                "chips": {
                    chip(cc): {
                        "registers": r.registers,
                        "stack": r.stack,
                        "shared": r.shared,
                        "instructions": r.instructions,
                        "occupancy": r.occupancy,
                        "widths": r.widths,
                        "error": r.error,
                    }
                    for cc, r in row.results.items()
                },
                "faults": {fault: [chip(cc) for cc in on] for fault, on in row.faults.items()},
            }
            for row in rows
        ],
        "work": [
            {
                "op": op,
                "case": case,
                "dtype": precision,
                "chips": {
                    chip(cc): {name: {"bytes": moved, "flops": done} for name, (moved, done) in work.items()}
                    for cc, work in chips.items()
                },
            }
            for (op, case, precision), chips in check.work(rows).items()
        ],
    }
