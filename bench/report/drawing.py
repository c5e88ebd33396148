"""What all plots share: colours, style, files, and labels that do not overlap.

Colours are told apart by colour-blind people (Okabe and Ito, 2008), on white and on black. The same plot has
the same bytes.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from hlb.errors import UserError
from hlb.files import atomic

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
    "figure.dpi": 110,
    "savefig.dpi": 110,
    "svg.hashsalt": "hlb",
    "text.parse_math": False,  # a name may have a $
}
# Where a label may stand: points right of and above its own point, nearest first.
PLACES = sorted(
    (
        (x, y)
        for x in (-120, -90, -60, -30, -8, 0, 8, 30, 60, 90, 120)
        for y in range(-96, 97, 8)
        if abs(x) + abs(y) > 7
    ),
    key=lambda place: (math.hypot(place[0] / 2, place[1]), -place[0], -place[1]),
)


def check_installed() -> None:
    """Raises UserError without matplotlib."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UserError("plots need matplotlib, which is not installed: pip install matplotlib") from None


@contextlib.contextmanager
def drawn(
    paths: Sequence[Path], title: str, width: float, height: float, data: str | None = None
) -> Iterator:
    """Yields a figure of `width` x `height` inches and then saves it to each path, PNG or SVG by its suffix.
    `data` is the description in the files' metadata. Raises UserError without matplotlib.
    """
    check_installed()
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure((width, height), layout="constrained")
        figure.suptitle(title, x=0.01, ha="left")
        yield figure
        for path in paths:
            kind = path.suffix.removeprefix(".")
            fixed = {"Software": None} if kind == "png" else {"Date": None, "Creator": None}
            with atomic(path) as temporary:
                figure.savefig(
                    temporary, format=kind, transparent=kind == "svg", metadata=fixed | {"Description": data}
                )


def dot(color: str, marker: str, label: str, hollow: bool = False):
    """An entry of a legend."""
    from matplotlib.lines import Line2D

    face = "none" if hollow else color
    return Line2D([], [], ls="", marker=marker, color=color, markerfacecolor=face, label=label)


def nothing(axes, why: str) -> None:
    """Axes without data that say why."""
    axes.text(0.5, 0.5, why, transform=axes.transAxes, ha="center")
    axes.grid(visible=False)
    axes.set(xticks=[], yticks=[])


def rows_of(axes, names: Sequence[str]) -> None:
    """A band for each name, from below."""
    for y in range(1, len(names), 2):
        axes.axhspan(y - 0.5, y + 0.5, color=GREY, alpha=0.1, lw=0)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(-0.5, len(names) - 0.5)
    axes.grid(axis="y", visible=False)


def plain_ticks(axes) -> None:
    """Labels 1, 2, 5, 10 on a logarithmic x axis."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 3000 * low else (1,)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def label(
    figure,
    axes,
    points: Sequence[tuple[float, float, str]],
    lines: Sequence[tuple[tuple, tuple]],
    size: float = 8,
) -> None:
    """Writes the text of each point (x, y, text) as near to it as possible without covering a point, another
    text or one of the vertical and horizontal `lines` ((x, y), (x, y)); a line leads from a text that is far.
    Call it last, when limits, scales and other artists are final.
    """
    from matplotlib.transforms import Bbox

    figure.draw_without_rendering()
    inside, scale = axes.get_window_extent(), figure.dpi / 72
    spots = axes.transData.transform([(x, y) for x, y, _ in points])
    taken = [Bbox([spot, spot]).padded(4 * scale) for spot in spots]
    drawn_lines = [Bbox(axes.transData.transform(line)).padded(scale) for line in lines]

    def near(box: Bbox, x: float, y: float) -> tuple[float, float]:
        return min(max(x, box.x0), box.x1), min(max(y, box.y0), box.y1)

    def lead(box: Bbox, x: float, y: float) -> list[tuple[float, float]]:
        """Points of the line from a text to its point, if that is far or another point is about as near."""
        end = near(box, x, y)
        far = math.dist(end, (x, y))
        others = (math.dist(near(box, *spot), spot) for spot in spots if tuple(spot) != (x, y))
        if far < 12 * scale and far < 0.8 * min(others, default=math.inf):
            return []
        parts = max(2, int(far / (3 * scale)))
        way = [(end[0] + (x - end[0]) * i / parts, end[1] + (y - end[1]) * i / parts) for i in range(parts)]
        return [place for place in way if math.dist(place, (x, y)) > 6 * scale]

    def free(box: Bbox, x: float, y: float) -> bool:
        if not (inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1):
            return False
        if any(box.overlaps(other) for other in (*taken, *drawn_lines)):
            return False
        way = lead(box, x, y)
        return not any(other.contains(*place) for other in taken for place in way)

    for (x, y), (_, _, text) in sorted(zip(spots, points), key=lambda item: -item[0][1]):
        written = axes.annotate(text, (0, 0), xycoords="figure pixels", fontsize=size)
        extent = written.get_window_extent()
        written.remove()
        for dx, dy in PLACES:
            left = x + dx * scale - (extent.width if dx < 0 else extent.width / 2 if dx == 0 else 0)
            box = Bbox.from_bounds(left, y + dy * scale - extent.height / 2, extent.width, extent.height)
            if free(box, x, y):
                break
        else:  # there is no room
            box = Bbox.from_bounds(x + 8 * scale, y, extent.width, extent.height)
        way = lead(box, x, y)
        if way:
            ends = axes.transData.inverted().transform((way[0], (x, y)))
            axes.plot(*ends.T, color=INK, lw=0.5, alpha=0.7, zorder=1)
        taken += [box, *(Bbox([place, place]).padded(scale) for place in way)]
        start = axes.transData.inverted().transform((box.x0, (box.y0 + box.y1) / 2))
        axes.text(*start, text, fontsize=size, va="center", in_layout=False)
