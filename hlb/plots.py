"""Plots, each as the files that its paths name, PNG or SVG: of records of `python -m bench`.

    roofline(record, Path("roofline.png"), Path("roofline.svg"))

Colours are told apart by colour-blind people (Okabe and Ito, 2008), on white and on black. What a plot was
drawn from is the description in its file's metadata, where `data` is given.
"""

from __future__ import annotations

import contextlib
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import geometric_mean, median

from .errors import UserError
from .files import atomic

INK, GREY = "#24292f", "#808890"
BLUE, SKY, GREEN, ORANGE, RED, PINK = "#0072b2", "#56b4e9", "#009e73", "#e69f00", "#d55e00", "#cc79a7"
STYLE = {
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GREY,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    "figure.titlesize": 11,
    "savefig.dpi": 110,
    "svg.hashsalt": "hlb",  # the same plot has the same bytes
}

REFERENCES = {"eager": GREY, "compiled": SKY, "max-autotune": BLUE, "cudnn": PINK}  # colours
OURS = {"triton": RED, "triton images": ORANGE, "triton rows": "#a6611a", "tuned": GREEN}
DIRECTIONS = ("forward", "backward", "both", "training")  # the last two are forward and backward together
MARKERS = "osD^vP*Xhp<>d8H"  # of ops


@contextlib.contextmanager
def drawn(paths: Sequence[Path], width: float, height: float, data: str | None = None) -> Iterator:
    """Gives a figure of so many inches; on leaving, saves it to each path. UserError without matplotlib."""
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError('plots need matplotlib: pip install "hlb[plot]", or -e ".[plot]"') from None
    with rc_context(STYLE):
        figure = Figure((width, height), layout="constrained")
        yield figure
        for path in paths:
            kind = path.suffix.removeprefix(".")
            fixed = {"Software": None} if kind == "png" else {"Date": None, "Creator": None}
            with atomic(path) as temporary:
                figure.savefig(temporary, format=kind, metadata=fixed | {"Description": data})


def about(record: dict) -> str:
    """What a record of `python -m bench` is of, in a line: device, dtypes, day, commit."""
    dtypes = dict.fromkeys(row["dtype"] for row in record["rows"])
    commit = record.get("commit")
    if commit is not None:
        commit = f"commit {commit[:8]}{' with changes' if record.get('dirty') else ''}"
    day = (record.get("time") or "")[:10]
    parts = [record.get("device_name"), ", ".join(dtypes), day, commit]
    if not record.get("kernels_timed"):
        on = "CPU" if record.get("device") == "cpu" else record.get("device")
        parts.insert(0, f"references on {on}")
    return ", ".join(filter(None, parts))


def timed(record: dict) -> list[dict]:
    """The rows that have a time."""
    return [row for row in record["rows"] if row.get("median") and not row.get("fault")]


def by_call(rows: Sequence[dict]) -> dict[tuple, dict[str, dict]]:
    """(op, case, dtype) -> direction -> implementation -> row."""
    found = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        found[row["op"], row["case"], row["dtype"]][row["direction"]][row["implementation"]] = row
    return found


def roofline(record: dict, *paths: Path) -> None:
    """The roofline of a record of `python -m bench`: rates over arithmetic intensities, of the declared FLOPs
    and bytes, under the measured ceilings; beside it, of what does no matrix product, the share of a copy's
    bandwidth. Forward and backward are separate points where both were timed.
    """
    rows = [row for ways in by_call(timed(record)).values() for row in _separate(ways)]
    products = [row for row in rows if row.get("flops_per_second") and row.get("bytes")]
    others = [row for row in rows if row.get("percent_of_copy") and not row.get("flops_per_second")]
    lines = _lines(others)
    with drawn(paths, 12, max(5.5, 2.3 + 0.24 * len(lines))) as figure:
        figure.suptitle(f"Roofline\n{about(record)}", x=0.01, ha="left")
        left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
        _roof(left, record, products, rows)
        _shares(right, lines)
        named = [row["implementation"] for row in rows]
        handles = [_dot(color, "o", name) for name, color in (REFERENCES | OURS).items() if name in named]
        ways = dict.fromkeys(row["direction"] for row in rows)
        handles += [_dot(INK, "o", way, hollow=way != "forward") for way in DIRECTIONS if way in ways]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles) or 1)


def _separate(ways: dict[str, dict]) -> list[dict]:
    """The rows of a call, without the sum of forward and backward where the backward is there by itself."""
    return [
        row for way in DIRECTIONS[: 2 if "backward" in ways else None] for row in ways.get(way, {}).values()
    ]


def _dot(color: str, marker: str, label: str, hollow: bool = False):
    """An entry of a legend."""
    from matplotlib.lines import Line2D

    face = "none" if hollow else color
    return Line2D([], [], ls="", marker=marker, color=color, markerfacecolor=face, label=label)


def _color(row: dict) -> str:
    return (REFERENCES | OURS).get(row["implementation"], INK)


def _roof(axes, record: dict, products: Sequence[dict], rows: Sequence[dict]) -> None:
    """Points under the two ceilings, on logarithmic axes."""
    axes.set(xlabel="declared FLOP / declared byte", ylabel="FLOP/s")
    axes.set_title("matrix products and convolutions")
    if not products:
        _nothing(axes, "no op with matrix products was timed")
        return
    axes.set(xscale="log", yscale="log")
    markers = dict(zip(dict.fromkeys(row["op"] for row in products), MARKERS))
    for row in products:
        color = _color(row)
        axes.plot(
            row["flops"] / row["bytes"],
            row["flops_per_second"],
            ls="",
            marker=markers.get(row["op"], "."),
            ms=5.5 if len(products) < 200 else 4,
            color=color,
            markerfacecolor=color if row["direction"] == "forward" else "none",
            alpha=0.8,
            zorder=3 if row["implementation"] in OURS else 2,
        )
    axes.legend(
        handles=[_dot(INK, marker, op) for op, marker in markers.items()],
        loc="lower right",
        ncols=1 + (len(markers) > 5),
    )
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
        low, high = min(low, peak / copy / 10), max(high, 3 * peak / copy)
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
    scale, prefix = next(
        (s, p) for s, p in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1, "")) if value >= s or s == 1
    )
    return f"{value / scale:.3g} {prefix}{unit}/s"


def _lines(rows: Sequence[dict]) -> dict[str, list[dict]]:
    """op and direction -> rows, by the median share of ours, else of all."""
    lines = defaultdict(list)
    for row in rows:
        lines[f"{row['op']} {row['direction']}"].append(row)

    def share(rows: list[dict]) -> float:
        mine = [row for row in rows if row["implementation"] in OURS] or rows
        return median(row["percent_of_copy"] for row in mine)

    return dict(sorted(lines.items(), key=lambda line: share(line[1])))


def _shares(axes, lines: dict[str, list[dict]]) -> None:
    """Dots on a line for each op, its cases beside one another."""
    axes.set_title("other ops, a dot for each case")
    axes.set_xlabel("% of the bandwidth of a copy of as many bytes")
    if not lines:
        _nothing(axes, "no op without matrix products was timed")
        return
    there = {row["implementation"] for rows in lines.values() for row in rows}
    order = [name for name in REFERENCES | OURS if name in there]
    for y, rows in enumerate(lines.values()):
        if y % 2:
            axes.axhspan(y - 0.5, y + 0.5, color=GREY, alpha=0.1, lw=0)
        for row in rows:
            place = order.index(row["implementation"]) if row["implementation"] in order else 0
            axes.plot(
                row["percent_of_copy"],
                y + 0.66 * (0.5 - (place + 0.5) / len(order)),
                "o",
                ms=4,
                color=_color(row),
                markerfacecolor=_color(row) if row["direction"] == "forward" else "none",
            )
    axes.set_yticks(range(len(lines)), lines)
    axes.set_ylim(-0.6, len(lines) - 0.4)
    most = max(row["percent_of_copy"] for rows in lines.values() for row in rows)
    axes.set_xlim(0, max(105, 1.05 * most) if most > 50 else None)
    axes.grid(axis="y", visible=False)


def _nothing(axes, why: str) -> None:
    axes.text(0.5, 0.5, why, transform=axes.transAxes, ha="center")
    axes.grid(visible=False)
    axes.set(xticks=[], yticks=[])


def speed_up(record: dict, *paths: Path) -> None:
    """How much faster ops are than their references, of a record of `python -m bench`: a bar for each op, the
    geometric mean over its cases, which are dots. The fastest of ours is compared, forward and backward
    together where there is a backward; without any of ours, compiled references with eager ones.
    """
    calls = [
        max(ways.items(), key=lambda way: DIRECTIONS.index(way[0]))
        for ways in by_call(timed(record)).values()
    ]
    mine = any(name in OURS for _, rows in calls for name in rows)
    compared = {"eager": GREY, "compiled": SKY} if mine else {"eager": GREY}
    ratios = {base: defaultdict(list) for base in compared}
    for _, rows in calls:
        ours = [
            row["median"]
            for name, row in rows.items()
            if name in (OURS if mine else ("compiled", "max-autotune"))
        ]
        for base in compared:
            if ours and base in rows:
                ratios[base][rows[base]["op"]].append(rows[base]["median"] / min(ours))
    ops = sorted(
        {op for by_op in ratios.values() for op in by_op},
        key=lambda op: geometric_mean(ratios["eager"].get(op) or [1e-9]),
    )
    what = "Speed-up of the fastest of ours" if mine else "Speed-up by torch.compile"
    with drawn(paths, 8, 2 + 0.42 * max(len(ops), 3)) as figure:
        figure.suptitle(f"{what}\n{about(record)}", x=0.01, ha="left")
        axes = figure.subplots()
        if not ops:
            _nothing(axes, "only eager references were timed: there is nothing to compare")
            return
        for place, (base, color) in enumerate(compared.items()):
            for y, op in enumerate(ops):
                if values := ratios[base].get(op):
                    at, mean = y + (0.19 - 0.38 * place if mine else 0), geometric_mean(values)
                    axes.barh(at, mean - 1, 0.36, left=1, color=color, alpha=0.55)
                    axes.plot(values, [at] * len(values), "|", ms=7, color=INK, alpha=0.7)
                    axes.annotate(
                        f"{mean:.2f}",
                        (max(*values, mean, 1), at),
                        (6, 0),
                        textcoords="offset points",
                        va="center",
                        fontsize=8,
                    )
        axes.axvline(1, color=INK, lw=1)
        everything = [value for by_op in ratios.values() for values in by_op.values() for value in values]
        axes.set_xscale("log")
        axes.set_xlim(min(0.8, *everything) / 1.1, max(1.25, *everything) * 1.35)
        _plain_ticks(axes)
        axes.set_yticks(range(len(ops)), ops)
        axes.set_ylim(-0.6, len(ops) - 0.4)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("times faster (bar: geometric mean of an op's cases; stroke: a case)")
        handles = [_dot(color, "s", f"over {base}") for base, color in compared.items()]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))


def _plain_ticks(axes) -> None:
    """1, 2, 5, 10 on a logarithmic axis of x, as they are written."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axes.get_xlim()
    few = math.log10(high / low) < 2.5
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
