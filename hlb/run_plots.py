"""Plots of runs, as PNG or SVG: accuracy against time, runs one by one, and the time of a step."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from .drawing import BLUE, GREY, INK, ORANGE, RED, dot, drawn, label, nothing, plain_ticks, rows_of
from .records import PLAIN, Group, Record
from .statistics import summary

TARGETS = (94, 95, 96)  # %
NAMED = 15  # points of ours that have a name beside them
# (measured by us, on a GPU) -> colour, marker, name
LOOKS = {
    (True, True): (RED, "o", "measured here, GPU"),
    (True, False): (ORANGE, "s", "measured here, CPU"),
    (False, True): (BLUE, "o", "published, GPU"),
    (False, False): (GREY, "s", "published, CPU"),
}


def points(mine: Sequence[Record], published: Sequence[Record]) -> list[dict]:
    """What `accuracy_time` draws: the records of which both are known."""
    fields = ("system", "seconds", "accuracy", "accuracy_ci95", "gpu")
    return [
        {"measured_here": here} | {field: getattr(record, field) for field in fields}
        for here, records in ((True, mine), (False, published))
        for record in records
        if record.seconds and record.accuracy
    ]


def accuracy_time(mine: Sequence[Record], published: Sequence[Record], *paths: Path) -> None:
    """Accuracy in percent over seconds, logarithmic, with the interval of the mean where there is one. The
    first of ours have their names beside them. The files' description is the points, as JSON.
    """
    found = points(mine, published)
    absent = [record for record in (*mine, *published) if record.seconds and not record.accuracy]
    missing = f"     (without an accuracy: {', '.join(short(r.system) for r in absent)})" if absent else ""
    title = "Accuracy against time; bars are 95 % intervals of the mean"
    with drawn(paths, title, 8, 4.4, json.dumps(found)) as figure:
        axes = figure.subplots()
        if not found:
            nothing(axes, "there is no record")
            return
        axes.set(xscale="log", xlabel=f"seconds{missing}", ylabel="test accuracy, %")
        lines, there = [], {}
        for point in found:
            kind = point["measured_here"], point["gpu"]
            color, marker, name = there[kind] = LOOKS[kind]
            x, y = point["seconds"], 100 * point["accuracy"]
            axes.plot(x, y, marker, color=color, ms=6)
            if point["accuracy_ci95"]:
                low, high = (100 * bound for bound in point["accuracy_ci95"])
                axes.vlines(x, low, high, color, lw=1.2)
                lines.append(((x, low), (x, high)))
        for target in TARGETS:
            axes.axhline(target, color=INK, lw=0.8, ls=(0, (4, 3)), zorder=1)
        times, (low, high) = [point["seconds"] for point in found], axes.get_ylim()
        left, right = axes.set_xlim(min(times) / 1.8, max(times) * 5)
        axes.set_ylim(low - 0.35, high + 0.3)
        plain_ticks(axes)
        handles = [dot(*look) for kind, look in LOOKS.items() if kind in there]
        figure.legend(handles=handles, loc="outside lower center", ncols=4)
        here = [point for point in found if point["measured_here"]]
        named = [*here[:NAMED], *(point for point in found if point not in here)]
        shown = [(point["seconds"], 100 * point["accuracy"], short(point["system"])) for point in named]
        label(figure, axes, shown, [*lines, *(((left, y), (right, y)) for y in TARGETS)])


def short(system: str, length: int = 34, execution: bool = False) -> str:
    """A system in few letters: without its dtype, and unless asked for how it was executed; cut where it is
    long.
    """
    name, _, rest = system.replace("`", "").partition(", ")
    changed = rest.partition(", ")[2].split() if system.startswith("`") else []
    kept = [setting for setting in changed if execution or setting.partition("=")[0] not in PLAIN]
    text = " ".join([name.partition(" (recorded as")[0], *kept])
    return text if len(text) <= length else text[: length - 1].rstrip(" ,=") + "…"


def distribution(title: str, groups: Sequence[Group], *paths: Path) -> None:
    """Every run of every group as a dot: its accuracy, and its time beside the group's mean; below the dots
    their mean and its 95 % interval. The fastest group is on top; one without a run that ended well is left
    out.
    """
    groups = sorted(
        (group for group in groups if group.runs), key=lambda group: -summary(group.seconds)["mean"]
    )
    with drawn(paths, title, 10, 1.3 + 0.55 * max(2, len(groups))) as figure:
        left, right = figure.subplots(1, 2, sharey=True)
        if not groups:
            nothing(left, "no run ended well")
            return
        left.set_xlabel("test accuracy, %; dashed: aimed at")
        left.locator_params(axis="x", nbins=6)
        right.set_xlabel("time, % of the mean, which is written beside")
        for y, group in enumerate(groups):
            mean, color = summary(group.seconds)["mean"], LOOKS[True, group.gpu][0]
            _strip(left, y, [100 * value for value in group.accuracies], color)
            _strip(right, y, [100 * value / mean for value in group.seconds], color)
            if group.target:
                left.vlines(100 * group.target, y - 0.5, y + 0.5, INK, (0, (4, 3)), lw=0.8)
            beside = {"xycoords": right.get_yaxis_transform(), "va": "center", "fontsize": 8}
            right.annotate(f"{mean:.4g} s", (1.01, y), **beside)
        for axes in (left, right):
            rows_of(axes, [f"{short(group.system, 46, True)}\n{_about(group)}" for group in groups])


def _about(group: Group) -> str:
    failed = f", {group.failed} failed" if group.failed else ""
    return ", ".join(filter(None, (f"n = {len(group.runs)}{failed}", (group.hardware or "")[:30])))


def _strip(axes, y: int, values: Sequence[float], color: str) -> None:
    """Dots in a band, many of them spread evenly over its height, and their mean below."""
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
