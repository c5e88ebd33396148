"""Plots of a record of `python -m bench`, as PNG or SVG.

roofline(record, Path("roofline.png"), Path("roofline.svg"))
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import geometric_mean, median

from .benches import DIRECTIONS, REFERENCES, about, by_call, speed_ups, timed
from .drawing import BLUE, GREEN, GREY, INK, ORANGE, PINK, RED, SKY, dot, drawn, nothing, plain_ticks, rows_of

COLORS = {
    **dict(zip(REFERENCES, (GREY, SKY, BLUE, PINK))),
    "triton": RED,
    "triton images": ORANGE,
    "triton rows": "#a6611a",
    "tuned": GREEN,
}
MARKERS = "osD^vP*Xhp<>d8H"  # of ops


def roofline(record: dict, *paths: Path) -> None:
    """The roofline of a record of `python -m bench`: rates over arithmetic intensities, of declared FLOPs
    and bytes, under the measured ceilings; beside it, for ops without matrix products, the share of a copy's
    bandwidth. Forward and backward are separate points where both were timed.
    """
    rows = [row for ways in by_call(timed(record)).values() for row in _separate(ways)]
    products = [row for row in rows if row.get("flops_per_second") and row.get("bytes")]
    others = [row for row in rows if row.get("percent_of_copy") and not row.get("flops_per_second")]
    lines = _lines(others)
    with drawn(paths, f"Roofline\n{about(record)}", 12, max(5.5, 2.3 + 0.24 * len(lines))) as figure:
        left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
        _roof(left, record, products, rows)
        _shares(right, lines)
        named = {row["implementation"] for row in rows}
        handles = [dot(color, "o", name) for name, color in COLORS.items() if name in named]
        ways = {row["direction"] for row in rows}
        handles += [dot(INK, "o", way, hollow=way != "forward") for way in DIRECTIONS if way in ways]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles) or 1)


def _separate(ways: dict[str, dict]) -> list[dict]:
    """The rows of a call, without the sum of forward and backward where the backward is there by itself."""
    these = DIRECTIONS[:2] if "backward" in ways else DIRECTIONS
    return [row for way in these for row in ways.get(way, {}).values()]


def _look(row: dict) -> dict[str, str]:
    """A point's colours."""
    color = COLORS.get(row["implementation"], INK)
    return {"color": color, "markerfacecolor": color if row["direction"] == "forward" else "none"}


def _roof(axes, record: dict, products: Sequence[dict], rows: Sequence[dict]) -> None:
    """Points under the two ceilings, on logarithmic axes."""
    axes.set_title("matrix products and convolutions")
    if not products:
        nothing(axes, "no op with matrix products was timed")
        return
    axes.set(xscale="log", yscale="log", xlabel="declared FLOP / declared byte", ylabel="FLOP/s")
    markers = dict(zip(dict.fromkeys(row["op"] for row in products), MARKERS))
    for row in products:
        axes.plot(
            row["flops"] / row["bytes"],
            row["flops_per_second"],
            ls="",
            marker=markers.get(row["op"], "."),
            ms=5.5 if len(products) < 200 else 4,
            alpha=0.8,
            zorder=2 if row["implementation"] in REFERENCES else 3,
            **_look(row),
        )
    handles = [dot(INK, marker, op) for op, marker in markers.items()]
    axes.legend(handles=handles, loc="lower right", ncols=1 + (len(markers) > 5))
    _ceilings(axes, record, rows, [row["flops"] / row["bytes"] for row in products])
    axes.set_ylim(min(row["flops_per_second"] for row in products) / 2)


def _ceilings(axes, record: dict, rows: Sequence[dict], intensities: Sequence[float]) -> None:
    """The rates of a copy and of a large matrix product. Labels are above, where no point should be."""
    copy, peak = record.get("copy_bytes_per_second"), record.get("matmul_flops_per_second")
    what = f"copy, {_rate(copy, 'B')}" if copy else ""
    if not copy and (rates := [row["bytes_per_second"] for row in rows if row.get("bytes_per_second")]):
        copy = max(rates)
        what = f"no copy in the record;\nits largest rate, {_rate(copy, 'B')}"
    low, high = min(intensities) / 2, max(intensities) * 2
    if copy and peak:
        low, high = min(low, peak / copy / 30), max(high, 3 * peak / copy)
    label = {"textcoords": "offset points", "va": "bottom", "annotation_clip": False}
    if peak:
        start = peak / copy if copy else low
        axes.plot([start, high], [peak, peak], color=INK, lw=1.2)
        axes.plot([low, start], [peak, peak], color=INK, lw=0.8, ls=":")
        axes.annotate(f"matrix product, {_rate(peak, 'FLOP')}", (low, peak), (4, 2), **label)
    if copy:
        end = peak / copy if peak else high
        axes.plot([low, end], [low * copy, end * copy], color=INK, lw=1.2)
        axes.annotate(what, (end / 2, end / 2 * copy), (-6, 0), ha="right", **label)
    axes.set_xlim(low, high)


def _rate(value: float, unit: str) -> str:
    """1.2e12 as 1.2 T of the unit a second."""
    prefixes = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (0, ""))
    scale, prefix = next((scale, prefix) for scale, prefix in prefixes if value >= scale)
    return f"{value / (scale or 1):.3g} {prefix}{unit}/s"


def _lines(rows: Sequence[dict]) -> dict[str, list[dict]]:
    """op and direction -> rows, by the median share of ours, else of all."""
    lines = defaultdict(list)
    for row in rows:
        lines[f"{row['op']} {row['direction']}"].append(row)

    def share(rows: list[dict]) -> float:
        mine = [row for row in rows if row["implementation"] not in REFERENCES] or rows
        return median(row["percent_of_copy"] for row in mine)

    return dict(sorted(lines.items(), key=lambda line: share(line[1])))


def _shares(axes, lines: dict[str, list[dict]]) -> None:
    """A dot for each case, a line for each op, its implementations below one another."""
    axes.set_title("other ops, a dot for each case")
    if not lines:
        nothing(axes, "no op without matrix products was timed")
        return
    axes.set_xlabel("% of the bandwidth of a copy of as many bytes")
    there = {row["implementation"] for rows in lines.values() for row in rows}
    order = [name for name in COLORS if name in there] + sorted(there - COLORS.keys())
    for y, rows in enumerate(lines.values()):
        for row in rows:
            below = (order.index(row["implementation"]) + 0.5) / len(order)
            axes.plot(row["percent_of_copy"], y + 0.7 * (0.5 - below), "o", ms=4, **_look(row))
    rows_of(axes, list(lines))
    most = max(row["percent_of_copy"] for rows in lines.values() for row in rows)
    axes.set_xlim(0, max(105, 1.05 * most) if most > 50 else None)


def speed_up(record: dict, *paths: Path) -> None:
    """How much faster ops are than their references, from a record of `python -m bench`: a bar for each op is
    the geometric mean over its cases, a stroke one case. Our fastest is compared, forward and backward
    together where there is a backward; without any of ours, compiled references are compared with eager ones.
    """
    mine = any(row["implementation"] not in REFERENCES for row in timed(record))
    ratios = {base: speed_ups(record, base) for base in (REFERENCES[:2] if mine else REFERENCES[:1])}
    means = {base: {op: geometric_mean(each) for op, each in by_op.items()} for base, by_op in ratios.items()}
    ops = sorted({op for by_op in means.values() for op in by_op}, key=lambda op: means["eager"].get(op, 0))
    what = "the fastest of ours" if mine else "torch.compile"
    with drawn(paths, f"Speed-up by {what}\n{about(record)}", 8, 1.9 + 0.42 * max(len(ops), 3)) as figure:
        axes = figure.subplots()
        if not ops:
            nothing(axes, "only eager references were timed: there is nothing to compare")
            return
        for place, base in enumerate(ratios):
            for op, values in ratios[base].items():
                at, mean = ops.index(op) + (0.19 - 0.38 * place if mine else 0), means[base][op]
                axes.barh(at, mean - 1, 0.36, left=1, color=COLORS[base], alpha=0.55)
                axes.plot(values, [at] * len(values), "|", ms=7, color=INK, alpha=0.7)
                end = {"xytext": (6, 0), "textcoords": "offset points", "va": "center"}
                axes.annotate(f"{mean:.2f}", (max(*values, mean, 1), at), fontsize=8, **end)
        axes.axvline(1, color=INK, lw=1)
        everything = [value for by_op in ratios.values() for values in by_op.values() for value in values]
        axes.set_xscale("log")
        axes.set_xlim(min(0.8, *everything) / 1.1, max(1.25, *everything) * 1.35)
        plain_ticks(axes)
        rows_of(axes, ops)
        axes.set_xlabel("times faster; a bar is the geometric mean of an op's cases, a stroke a case")
        handles = [dot(COLORS[base], "s", f"over {base}") for base in ratios]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
