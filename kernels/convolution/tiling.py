"""How a convolution's passes are cut into tiles: what is computed, how, and what that costs.

    problem = Problem("forward", n=512, h=31, w=31, c=32, o=128, pool=True)
    config = Config("images", rows=128, cols=64, depth=32, warps=4, stages=3)
    useful(problem), flops(problem, config), bytes(problem)

A pass is a matrix product of tiles of rows x cols that are summed over depth: forward rows are outputs
(pooling windows, four outputs each), columns their channels; dgrad rows are pixels of x, columns its
channels; wgrad rows are channels of y, columns (tap, channel of x), and the depth goes over outputs.

The outputs come in one of two orders. `images`: a tile (in wgrad a step of depth) lies at one place of many
images, and taps in the zero padding, or on what floor pooling drops, are skipped by loop bounds. `rows`:
outputs row by row, image by image, and such taps are masked. Where c (the depth's channels) is no multiple of
a step, taps and channels are one flat axis of size * size * c, which is cut into steps: then nothing is
skipped.

A third order, `windows`, is for pooled passes of few channels, by pooling windows, of whose two outputs side
by side each row of x has 4 * c values. wgrad (window_gradients.py): rows are channels of y, columns a
piece of those values, all of which a program keeps, and the depth goes over windows. forward
(window_passes.py): rows are images, columns channels of y, depth a piece. `splits` programs share the
windows.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch

from ..base.launch import cdiv

PASSES = ("forward", "dgrad", "wgrad")
ORDERS = ("images", "rows", "windows")
FLOAT8 = torch.float8_e4m3fn  # stands for both dtypes of 8 bits
# Channels of x that windows can have, of a pass: with 16 a forward pass has so little to do for a row of x
# that the assembler waits for each product, with 32 a multiprocessor holds one program.
FEW = {"forward": (24,), "wgrad": (8, 16, 24, 32)}


@dataclass(frozen=True)
class Problem:
    """One pass over one convolution: x [n, c, h, w], filters [o, c, size, size], zero padding 1 where size
    is 3; with `pool`, only what a 2x2 floor max pool keeps matters. `dtype` is that of what is multiplied; of
    8 bits, results have 16, filters of a dgrad are turned, and dz is that of all outputs.
    """

    kind: str
    n: int
    h: int
    w: int
    c: int
    o: int
    size: int = 3
    pool: bool = False
    dtype: torch.dtype = torch.float16

    @property
    def pad(self) -> int:
        return self.size // 3

    @property
    def result(self) -> int:
        """Bytes of a value that the pass writes."""
        return max(2, self.dtype.itemsize)

    @property
    def expanded(self) -> bool:
        """Whether gradients of pooled outputs are expanded as they are loaded."""
        return self.pool and self.kind != "forward" and self.dtype != FLOAT8

    @property
    def kept(self) -> tuple[int, int]:
        """Rows and columns of outputs that matter."""
        shrunk = 2 * self.pad - self.size + 1
        return tuple(
            (extent + shrunk) // 2 * 2 if self.pool else extent + shrunk for extent in (self.h, self.w)
        )

    @property
    def output(self) -> tuple[int, int]:
        """Rows and columns of y, pooled if so."""
        return tuple(extent // 2 if self.pool else extent for extent in self.kept)

    @property
    def columns(self) -> int:
        """Of the matrix product."""
        return {"forward": self.o, "dgrad": self.c, "wgrad": self.size**2 * self.c}[self.kind]

    @property
    def places(self) -> int:
        """Of an image, that rows (in wgrad the depth) go over, four to a window."""
        return self.h * self.w if self.kind == "dgrad" else prod(self.kept)


@dataclass(frozen=True)
class Config:
    """A launch configuration: the order of outputs, the extents of a tile, warps, pipeline stages; whether
    tiles are loaded through tensor descriptors (order `images`, no flat axis); programs that share a wgrad
    tile, each with part of the depth.
    """

    order: str
    rows: int
    cols: int
    depth: int
    warps: int
    stages: int
    descriptors: bool = False
    splits: int = 1

    def __str__(self) -> str:
        text = f"{self.order} {self.rows}x{self.cols}x{self.depth}, {self.warps} warps, {self.stages} stages"
        text += f", {self.splits} splits" if self.splits > 1 else ""
        return text + (", descriptors" if self.descriptors else "")


def flat(problem: Problem, config: Config) -> bool:
    """Whether taps and channels are one axis."""
    if problem.kind == "wgrad":
        return problem.c % config.cols != 0
    return (problem.c if problem.kind == "forward" else problem.o) % config.depth != 0


def windowed(problem: Problem) -> bool:
    """Whether a pass can go by windows: channels of x in whole accesses of 16 bytes and so few, and of y in
    whole tiles, that a program holds its sums.
    """
    return (
        problem.pool
        and problem.size == 3
        and problem.dtype.itemsize == 2
        and problem.c in FEW.get(problem.kind, ())
        and problem.o % 64 == 0
    )


def steps(problem: Problem, config: Config) -> int:
    """That the windows are cut into, by the order `windows`: a forward tile's, or those of a depth."""
    if problem.kind == "forward":
        return cdiv(problem.n, config.rows) * prod(problem.output)
    return cdiv(problem.n * prod(problem.output), config.depth)


def shares(problem: Problem, config: Config) -> tuple[int, int]:
    """(steps that a program of order `windows` does, into how many shares they are cut so)"""
    share = cdiv(steps(problem, config), config.splits)
    return share, cdiv(steps(problem, config), share)


def turns(problem: Problem, config: Config) -> int:
    """Steps of all shares of a forward pass by windows, and one more wherever a column begins."""
    all_steps, (share, count), (h, _) = steps(problem, config), shares(problem, config), problem.output
    within = sum(i * share % h > 0 for i in range(1, count))  # shares that begin in a column
    return all_steps + all_steps // h + within


def partials(problem: Problem, config: Config) -> int:
    """Values that the splits of wgrad write, to be added up."""
    if config.order == "windows":  # for each of the two outputs side by side all 3 x 4 taps
        return shares(problem, config)[1] * 2 * problem.o * 12 * problem.c
    return config.splits * problem.o * problem.columns


def useful(problem: Problem) -> int:
    """FLOPs: two for each kept output, tap and channel of x, padding taps included."""
    return 2 * problem.n * prod(problem.kept) * problem.size**2 * problem.c * problem.o


def _pairs(outputs: int, inputs: int, size: int, pad: int) -> int:
    """Of outputs and taps along an axis, those whose pixel lies in [0, inputs)."""
    return sum(max(0, min(inputs + pad - y, size) - max(pad - y, 0)) for y in range(outputs))


def taps(problem: Problem, config: Config) -> int:
    """Pairs of place and tap that an image costs."""
    if config.order == "rows" or flat(problem, config):
        return problem.places * problem.size**2
    outputs, inputs, pad = problem.kept, (problem.h, problem.w), problem.pad
    if problem.kind == "dgrad":
        outputs, inputs, pad = inputs, outputs, problem.size - 1 - pad
    return prod(_pairs(*extents, problem.size, pad) for extents in zip(outputs, inputs))


def _padded(extent: int, tile: int) -> int:
    return cdiv(extent, tile) * tile


def flops(problem: Problem, config: Config) -> int:
    """Of the tiles' products, what is masked in a tile included."""
    if config.order == "windows":  # two rows of a window, each its two outputs times 3 rows of x
        forward = problem.kind == "forward"
        windows = turns(problem, config) * config.rows if forward else steps(problem, config) * config.depth
        return 2 * (2 * windows) * (2 * problem.o) * (12 * problem.c)
    along = config.depth if problem.kind == "wgrad" else config.rows  # what the images are cut into
    if config.order == "images":
        images = _padded(problem.n, along)
    else:  # a fraction of images: tiles go over their bounds
        windows = 4 if problem.pool and problem.kind == "forward" else 1
        places = problem.places // windows
        images = _padded(problem.n * places, along) / places
    if problem.kind == "wgrad":
        other = _padded(problem.o, config.rows)
        columns = _padded(problem.columns, config.cols) / problem.size**2
    else:
        other = _padded(problem.columns, config.cols)
        columns = problem.c if problem.kind == "forward" else problem.o
        if flat(problem, config):
            columns = _padded(problem.size**2 * columns, config.depth) / problem.size**2
    return round(2 * images * taps(problem, config) * other * columns)


def tiles(problem: Problem, config: Config) -> tuple[int, int]:
    """(tiles of rows of a forward pass or dgrad, places of an image that each block of images is cut into)"""
    places = problem.h * problem.w if problem.kind == "dgrad" else prod(problem.output)
    if config.order == "rows":
        return cdiv(problem.n * places, config.rows), 1
    return cdiv(problem.n, config.rows) * places, places


def programs(problem: Problem, config: Config) -> int:
    """Of a launch."""
    if config.order == "windows":
        tile = config.cols if problem.kind == "forward" else config.rows
        return problem.o // tile * shares(problem, config)[1]
    columns = cdiv(problem.columns, config.cols)
    if problem.kind == "wgrad":
        return cdiv(problem.o, config.rows) * columns * config.splits
    return tiles(problem, config)[0] * columns


def bytes(problem: Problem, config: Config) -> int:
    """Of a launch, each address read or written once: x, y or their gradients, filters, partial gradients.
    A pooled y is one value a window; backward it comes with a byte of argmax each, or whole.
    """
    size, item = problem.size, problem.dtype.itemsize
    # Along an axis, the outputs that are kept reach so many pixels.
    reached = (min(e, k + size - 1 - problem.pad) for e, k in zip((problem.h, problem.w), problem.kept))
    x = problem.n * problem.c * prod(reached) * item
    y = problem.n * problem.o * prod(problem.output)
    filters = problem.o * problem.c * size**2
    if problem.kind == "forward":
        return x + filters * item + y * problem.result
    if problem.expanded:
        y *= item + 1
    else:
        y = problem.n * problem.o * prod(problem.kept) * item
    if problem.kind == "dgrad":
        return y + filters * item + problem.n * problem.c * problem.h * problem.w * problem.result
    return y + x + partials(problem, config) * 4
