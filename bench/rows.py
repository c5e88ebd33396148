"""Rows of the benchmark: what they hold, how a table of them looks, and as which files they are written."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hlb.files import atomic
from kernels.base.spec import KernelSpec

from .implementations import KERNELS, REFERENCES


@dataclass
class Row:
    """One implementation of one call. Times in seconds; what was not measured is None."""

    op: str
    case: str
    dtype: str
    direction: str
    implementation: str
    fields: dict
    median: float | None = None
    spread: float | None = None  # distance between the quartiles
    samples: tuple[float, ...] = ()
    bytes: int | None = None
    bytes_per_second: float | None = None
    percent_of_copy: float | None = None
    copy_bytes_per_second: float | None = None  # of a copy of as many bytes
    flops: int | None = None
    flops_per_second: float | None = None
    percent_of_matmul: float | None = None
    peak_bytes: int | None = None  # allocated during a call, beyond its inputs
    launches: int | None = None  # of the op and its forms, those of its own kernels
    speed_up: float | None = None  # of the op: time of the fastest reference / its own
    speed_up_eager: float | None = None
    speed_up_compiled: float | None = None
    fault: str | None = None


def speed_ups(group: list[Row]) -> None:
    """Fills in the speed-ups of the op and its forms over the references, in rows of one call."""
    references = {row.implementation: row.median for row in group if row.implementation in REFERENCES}
    times = {name: median for name, median in references.items() if median}
    for row in group:
        if row.implementation in KERNELS and row.median:
            row.speed_up = min(times.values()) / row.median if times else None
            row.speed_up_eager = times["eager"] / row.median if "eager" in times else None
            row.speed_up_compiled = times["compiled"] / row.median if "compiled" in times else None


# heading -> how a row's cell is written; a column without a number is left out
COLUMNS: dict[str, Callable[[Row], str]] = {
    "case": lambda row: row.case,
    "direction": lambda row: row.direction,
    "by": lambda row: row.implementation,
    "us": lambda row: "FAILED" if row.fault else f"{row.median * 1e6:.2f}",
    "spread": lambda row: number(row.spread, 1e6, ".2f"),
    "GB/s": lambda row: number(row.bytes_per_second, 1e-9, ".1f"),
    "% of copy": lambda row: number(row.percent_of_copy, 1, ".0f"),
    "TFLOP/s": lambda row: number(row.flops_per_second, 1e-12, ".2f"),
    "% of matmul": lambda row: number(row.percent_of_matmul, 1, ".0f"),
    "peak MiB": lambda row: number(row.peak_bytes, 2**-20, ".1f"),
    "launches": lambda row: number(row.launches, 1, "d"),
    "speed-up": lambda row: number(row.speed_up, 1, ".2f"),
}
LEFT = ("case", "direction", "by")
SPARE = ("peak MiB", "spread", "TFLOP/s", "GB/s", "launches")  # dropped in turn where a line is too short


def number(value: float | None, scale: float, form: str) -> str:
    return "" if value is None else format(value * scale, form)


def table(columns: dict[str, list[str]]) -> Table:
    """A case, and a direction, is named where it begins."""
    made = Table(box=None, pad_edge=False)
    for heading in columns:
        made.add_column(heading, justify="left" if heading in LEFT else "right", no_wrap=True)
    before = None
    for cells in zip(*columns.values()):
        case, direction, *others = map(escape, cells)
        same = before and (case == before[0], (case, direction) == before)
        made.add_row(*("" if same and same[i] else name for i, name in enumerate((case, direction))), *others)
        before = case, direction
    return made


def show(console: Console, spec: KernelSpec, rows: list[Row]) -> None:
    """An op's table, and below it what failed; above it the extents and options of a case that is alone."""
    console.print(f"\n[bold]{spec.name}[/]  {escape(spec.formula)}")
    if len({row.case for row in rows}) == 1:
        fields = rows[0].fields.items()
        console.print(", ".join(key if value is True else f"{key} {value}" for key, value in fields if value))
    columns = {heading: [cell(row) for row in rows] for heading, cell in COLUMNS.items()}
    columns = {heading: cells for heading, cells in columns.items() if any(cells)}
    unbounded = console.options.update_width(1 << 16)
    for spare in SPARE:
        if console.measure(table(columns), options=unbounded).maximum <= console.width:
            break
        columns.pop(spare, None)
    console.print(table(columns))
    for row in rows:
        if row.fault:
            said = f"FAILED {row.op} {row.case} {row.direction} {row.implementation}: {row.fault}"
            console.print(said, markup=False)


def write_csv(path: Path, record: dict) -> None:
    """A line a row, without its samples and the fields of its case."""
    columns = [field.name for field in dataclasses.fields(Row) if field.name not in ("samples", "fields")]
    with atomic(path) as temporary, open(temporary, "w", newline="") as f:
        writer = csv.DictWriter(f, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(record["rows"])
