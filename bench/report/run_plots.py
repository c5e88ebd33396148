"""Plots of runs, as PNG or SVG: accuracy against time, runs one by one, and the time of a step."""

from __future__ import annotations

import json
import math
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path

from hlb.runs.statistics import summary

from .drawing import BLUE, GREEN, GREY, INK, ORANGE, RED, dot, drawn, label, nothing, plain_ticks, rows_of
from .records import Group, Record

TARGETS = (94, 95, 96)  # %
NAMED = 15  # of our points have a name beside them
NEAR = 2.5  # times of one GPU up to this multiple of the least have a panel of their own
# (ours, another system that we ran, or published; on a GPU) -> colour, marker, name
LOOKS = {
    ("ours", True): (RED, "o", "ours, GPU"),
    ("ours", False): (ORANGE, "s", "ours, CPU"),
    ("theirs", True): (GREEN, "o", "theirs, measured by us, GPU"),
    ("theirs", False): (GREEN, "s", "theirs, measured by us, CPU"),
    ("published", True): (BLUE, "o", "published, GPU"),
    ("published", False): (GREY, "s", "published, CPU"),
}
MEASURED = ("ours", "theirs")


def points(mine: Sequence[Record], published: Sequence[Record]) -> list[dict]:
    """What `accuracy_time` draws: the records whose accuracy and time are known."""
    fields = ("system", "execution", "hardware", "seconds", "accuracy", "accuracy_ci95", "gpu")
    return [
        {"whose": MEASURED[not record.ours] if measured else "published"}
        | {field: getattr(record, field) for field in fields}
        for measured, records in ((True, mine), (False, published))
        for record in records
        if record.seconds and record.accuracy
    ]


def of_one_gpu(points: Sequence[dict]) -> list[dict]:
    """The fastest points that we measured on the GPU with the most points; [] if there are fewer than two."""
    by_gpu: dict[str, list[dict]] = {}
    for point in points:
        if point["gpu"] and point["whose"] in MEASURED:
            by_gpu.setdefault(point["hardware"], []).append(point)
    most = max(by_gpu.values(), key=len, default=[])
    near = [point for point in most if point["seconds"] <= NEAR * most[0]["seconds"]]
    return near if len(near) > 1 else []


def accuracy_time(mine: Sequence[Record], published: Sequence[Record], *paths: Path) -> None:
    """Accuracy in percent over seconds, with the 95 % interval of the mean. The upper panel has the fastest
    points of one GPU, the lower one all points on a logarithmic axis, where of the former only the first has
    its name. The files' description is the points, as JSON.
    """
    drawable = points(mine, published)
    near = of_one_gpu(drawable)
    absent = [record for record in (*mine, *published) if record.seconds and not record.accuracy]
    missing = f"     (without an accuracy: {', '.join(short(r.system) for r in absent)})" if absent else ""
    title = "Accuracy against time; bars are 95 % intervals of the mean"
    with drawn(paths, title, 8, 7.4 if near else 4.4, json.dumps(drawable)) as figure:
        heights = (3, 4) if near else (1,)
        *above, axes = figure.subplots(len(heights), squeeze=False, height_ratios=heights)[:, 0]
        if not drawable:
            nothing(axes, "there is no record")
            return
        here = [point for point in drawable if point["whose"] in MEASURED and point not in near[1:]]
        named = [*here[:NAMED], *(point for point in drawable if point["whose"] == "published")]
        _panel(axes, drawable, TARGETS, 1.8, 5)
        axes.set(xscale="log", xlabel=f"seconds{missing}")
        plain_ticks(axes)
        drawings = [(axes, drawable, named, TARGETS)]
        for upper in above:
            aims = [target for target in TARGETS if target <= 100 * max(p["accuracy"] for p in near) + 0.2]
            _panel(upper, near, aims, 1.05, 1.2)
            upper.set_title(f"Measured on {near[0]['hardware']}, every time by our rule")
            drawings.append((upper, near, near, aims))
        there = {(point["whose"], point["gpu"]) for point in drawable}
        handles = [dot(*look) for kind, look in LOOKS.items() if kind in there]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(3, len(handles)))
        for drawing in drawings:
            _names(figure, *drawing)


def _panel(axes, points: Sequence[dict], targets: Sequence[int], left: float, right: float) -> None:
    """Points with their intervals, and the targets. `left` and `right` are the room for names, as factors."""
    axes.set(ylabel="test accuracy, %")
    for point in points:
        color, marker, _ = LOOKS[point["whose"], point["gpu"]]
        axes.plot(point["seconds"], 100 * point["accuracy"], marker, color=color, ms=6)
        if point["accuracy_ci95"]:
            axes.vlines(point["seconds"], *(100 * bound for bound in point["accuracy_ci95"]), color, lw=1.2)
    for target in targets:
        axes.axhline(target, color=INK, lw=0.8, ls=(0, (4, 3)), zorder=1)
    times, (low, high) = [point["seconds"] for point in points], axes.get_ylim()
    axes.set_xlim(min(times) / left, max(times) * right)
    room = 0.17 * (high - low)
    axes.set_ylim(low - room, high + room)


def _names(figure, axes, points: Sequence[dict], named: Sequence[dict], targets: Sequence[int]) -> None:
    """The names of some points, clear of all intervals and targets."""
    bars = [
        tuple((point["seconds"], 100 * bound) for bound in point["accuracy_ci95"])
        for point in points
        if point["accuracy_ci95"]
    ]
    levels = [tuple((x, target) for x in axes.get_xlim()) for target in targets]
    others = [(point["seconds"], 100 * point["accuracy"]) for point in points if point not in named]
    shown = [(point["seconds"], 100 * point["accuracy"], named_by(point)) for point in named]
    label(figure, axes, shown, [*bars, *levels, *((spot, spot) for spot in others)])


def named_by(point: dict) -> str:
    """A point's name: the system, and of ours on a GPU its kernels."""
    if kernels := re.search(r"kernels=([^ `]+)", point["execution"] or ""):
        return f"{short(point['system'], 30)}, {kernels[1]}"
    return short(point["system"])


def short(system: str, length: int = 34) -> str:
    """A system in few letters: without its dtype, and without its last words where it is long; 8-bit
    convolutions of some groups are `float8`.
    """
    name, _, rest = system.replace("`", "").partition(", ")
    changed = rest.partition(", ")[2] if system.startswith("`") else ""
    changed = re.sub(r"conv_dtype=\S*float8\S*", "float8", changed)
    text = " ".join(filter(None, [name.partition(" (recorded as")[0], changed]))
    return textwrap.shorten(text, length, placeholder=" …")


def distribution(title: str, groups: Sequence[Group], *paths: Path) -> None:
    """Every run of every group as a dot: its accuracy, and its time beside the group's mean; below the dots
    their mean and its 95 % interval. The fastest group is on top; one without a run that ended well is left
    out.
    """
    groups = sorted(
        (group for group in groups if group.runs),
        key=lambda group: -(summary(group.seconds)["mean"] or math.inf),
    )
    with drawn(paths, title, 10, 1.3 + 0.55 * max(2, len(groups))) as figure:
        left, right = figure.subplots(1, 2, sharey=True)
        if not groups:
            nothing(left, "no run ended well")
            return
        left.set_xlabel("test accuracy, %\ndashed: aimed at")
        left.locator_params(axis="x", nbins=6)
        right.set_xlabel("time, % of the mean,\nwhich is written beside")
        for y, group in enumerate(groups):
            mean, color = summary(group.seconds)["mean"], LOOKS[MEASURED[not group.ours], group.gpu][0]
            _strip(left, y, [100 * value for value in group.accuracies], color)
            _strip(right, y, [100 * value / mean for value in group.seconds], color)
            if group.target:
                left.vlines(100 * group.target, y - 0.5, y + 0.5, INK, (0, (4, 3)), lw=0.8)
            beside = {"xycoords": right.get_yaxis_transform(), "va": "center", "fontsize": 8}
            right.annotate("no time" if mean is None else f"{mean:.4g} s", (1.01, y), **beside)
        for axes in (left, right):
            rows_of(axes, [_about(group) for group in groups])


def _about(group: Group) -> str:
    """In two or three lines: what was trained, how it was executed where that is said, how often, on what."""
    failed = f", {group.failed} failed" if group.failed else ""
    executed, _, note = (group.execution or "").replace("`", "").partition("; ")
    runs = ", ".join(filter(None, (f"n = {len(group.runs)}{failed}", (group.hardware or "")[:30], note)))
    return "\n".join(filter(None, [short(group.system, 46), executed, runs]))


def _strip(axes, y: int, values: Sequence[float], color: str) -> None:
    """Dots in a band, many of them spread evenly over its height, and their mean below."""
    if not values:
        return
    stats = summary(values)
    spread = [y + 0.1 + 0.5 * ((0.618034 * i) % 1 - 0.5) * (len(values) > 4) for i in range(len(values))]
    axes.plot(values, spread, "o", color=color, ms=3 if len(values) > 20 else 5, alpha=0.7, mew=0)
    if stats["ci95"]:
        axes.hlines(y - 0.32, *stats["ci95"], color=INK, lw=1.5)
        axes.plot(stats["mean"], y - 0.32, "|", color=INK, ms=8, mew=1.5)


def step_times(title: str, bars: Sequence[dict[str, dict[str, float]]], *paths: Path) -> None:
    """Milliseconds of a training step. A part has a bar from each of `bars`, series -> part -> seconds, the
    series of which follow one another; the first part and the first bar are on top.
    """
    everything = {series: by_name for bar in bars for series, by_name in bar.items()}
    names = list(dict.fromkeys(name for by_name in everything.values() for name in by_name))[::-1]
    colors = dict(zip(everything, (GREY, BLUE, ORANGE)))
    with drawn(paths, title, 9, 1.5 + 0.18 * len(names) * len(bars)) as figure:
        axes, height = figure.subplots(), 0.8 / len(bars)
        for place, bar in enumerate(bars):
            for y, name in enumerate(names):
                at, end = y + 0.4 - height * (place + 0.5), 0.0
                for series, by_name in bar.items():
                    value = 1e3 * by_name.get(name, 0.0)
                    axes.barh(at, value, height, left=end, color=colors[series], alpha=0.8)
                    end += value
                if end:
                    beside = {"xytext": (4, 0), "textcoords": "offset points", "va": "center", "fontsize": 7}
                    axes.annotate(f"{end:.3g}", (end, at), **beside)
        rows_of(axes, names)
        axes.set_xlabel("ms per step")
        handles = [dot(color, "s", series) for series, color in colors.items()]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
