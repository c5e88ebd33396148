"""A pooled 3x3 convolution of few channels, down columns of its pooling windows.

    u[n, y, x, o] = max over places (py, px) of z[n, 2y + py, 2x + px, o],   z the convolution, zero padding 1

A row of the matrix product is a window of an image; a tile is the same window of many images, and a program
goes down a column of them. Of a row of x, the two outputs side by side of a window read 4 pixels: 4 * c
values that lie in a row of memory. They count for the rows of z above, at and below that of x, by filter rows
2, 1 and 0, and for both outputs by filters that stand beside themselves, a pixel on for the right one:

    wide[r, (s, c), (px, o)] = filters[o, r, s - px, c] where 0 <= s - px < 3, else 0           s < 4

So a window's 8 pixels are loaded once for some channels of y, where an implicit matrix product
(conv_passes.py) loads 36, and a program's filters stay in shared memory. Two rows of z are under way,
the even and the odd one of windows, each in registers of its own: a turn of the loop is two rows of x, after
which each row of z is where it was. The last window of a column takes a turn more, whose first rows of z
and last products are of no use.

Layouts, precision and the argmax, of the values as stored, the first of equal ones, are those of
conv_passes.py. The statistics of u are another pass (`norm_passes.statistics`): within this one they
would take more registers than there are. x comes through tensor descriptors, whose boxes are 0 beyond its
edges. FLOPs: 4/3 of the useful ones, since 2 of 8 (s, px) are no tap, and those turns.
Source: the project's own; rows of x that count for several rows of z are those of direct convolutions.
"""

from __future__ import annotations

from torch import Tensor

from ..base.launch import box, launch, tl, triton
from . import tiling
from .conv_passes import tile_constants
from .tiling import Config, Problem


@triton.jit
def beside_themselves(
    p_filters,  # [OUT, 3, 3, C]
    r: tl.constexpr,
    offset: tl.constexpr,
    start,
    C: tl.constexpr,
    COLS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Of filter row r, values `offset` on, channels `start` on, for both outputs: [DEPTH, 2 * COLS]."""
    values = offset + tl.arange(0, DEPTH)[:, None]
    columns = tl.arange(0, 2 * COLS)[None, :]
    s = values // C - columns // COLS
    o_all = (((start + columns % COLS) * 3 + r) * 3 + s) * C + values % C
    return tl.load(p_filters + o_all, mask=(s >= 0) & (s < 3), other=0.0)


@triton.jit
def row_of_x(d_x, d_rest, y, first, x, C: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr):
    """The 4 * C values of a row of x from pixel x on, of a tile's images: pieces [ROWS, DEPTH]."""
    WHOLE: tl.constexpr = 4 * C // DEPTH
    REST: tl.constexpr = 4 * C % DEPTH
    b_x = ()
    for i in tl.static_range(WHOLE):
        b_x = b_x + (d_x.load([y, first, x * C + i * DEPTH]).reshape(ROWS, DEPTH),)
    if REST:
        b_x = b_x + (d_rest.load([y, first, x * C + WHOLE * DEPTH]).reshape(ROWS, REST),)
    return b_x


@triton.jit
def row_product(b_x, wide, r: tl.constexpr, b_z, PIECES: tl.constexpr, UPCAST: tl.constexpr):
    """b_z [ROWS, 2 * COLS] and what a row of x adds to it by filter row r."""
    for i in tl.static_range(PIECES):
        b_a, b_b = b_x[i], wide[r * PIECES + i]
        if UPCAST:
            b_a, b_b = b_a.to(tl.float32), b_b.to(tl.float32)
        b_z = tl.dot(b_a, b_b, b_z)
    return b_z


@triton.jit
def largest(b_a, b_b):
    """NaN wins."""
    return tl.maximum(b_a, b_b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def beside(b_z, p_out, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Of two outputs side by side, as stored: the larger [ROWS, COLS], and whether that is the right one."""
    b_z = b_z.to(p_out.dtype.element_ty).to(tl.float32)
    b_left, b_right = tl.split(tl.permute(tl.reshape(b_z, (ROWS, 2, COLS)), (0, 2, 1)))
    return largest(b_left, b_right), (b_right > b_left).to(tl.int32)


@triton.jit
def _window_fwd(
    p_filters,  # [OUT, 3, 3, C]
    p_out,  # [n, PH, PW, OUT]
    p_argmax,  # int8, as out, or None
    n,
    share,  # windows of a column that a program does, from one column on to the next
    windows,  # of all columns
    d_x,  # descriptors of x as [H, n, W * C], of boxes [1, ROWS, DEPTH] and [1, ROWS, what is left of 4 * C]
    d_rest,
    PH: tl.constexpr,
    PW: tl.constexpr,
    C: tl.constexpr,
    OUT: tl.constexpr,  # a multiple of COLS
    UPCAST: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    WHOLE: tl.constexpr = 4 * C // DEPTH
    REST: tl.constexpr = 4 * C % DEPTH
    PIECES: tl.constexpr = WHOLE + (REST > 0)
    start = tl.program_id(0) % (OUT // COLS) * COLS
    begin = tl.program_id(0) // (OUT // COLS) * share
    end = tl.minimum(begin + share, windows)
    outs = start + tl.arange(0, COLS)[None, :]  # [1, COLS]
    lanes = tl.arange(0, ROWS)[:, None]  # [ROWS, 1]
    wide = ()
    for r in tl.static_range(3):
        for i in tl.static_range(WHOLE):
            wide = wide + (beside_themselves(p_filters, r, i * DEPTH, start, C, COLS, DEPTH),)
        if REST:
            wide = wide + (beside_themselves(p_filters, r, WHOLE * DEPTH, start, C, COLS, REST),)
    for part in tl.range(0, tl.cdiv(end, PH) - begin // PH):
        column = begin // PH + part
        first, pw = column // PW * ROWS, column % PW
        o_first = first.to(tl.int64) * (PH * PW * OUT)
        o_out = (lanes * (PH * PW) + pw) * OUT + outs  # [ROWS, COLS]
        y0 = tl.maximum(begin - column * PH, 0)
        y1 = tl.minimum(end - column * PH, PH)
        b_none = tl.zeros((ROWS, 2 * COLS), dtype=tl.float32)
        b_even, b_odd = b_none, b_none  # of rows of z
        for y in tl.range(y0, y1 + 1):  # ends the window above y, and begins the one at y
            b_x = row_of_x(d_x, d_rest, 2 * y - 1, first, 2 * pw - 1, C, ROWS, DEPTH)
            b_even = row_product(b_x, wide, 2, b_even, PIECES, UPCAST)
            b_upper, right = beside(b_even, p_out, ROWS, COLS)
            b_marked = b_upper.to(tl.int32, bitcast=True) | right  # a stored value's last bits are 0
            b_odd = row_product(b_x, wide, 1, b_odd, PIECES, UPCAST)
            b_even = row_product(b_x, wide, 0, b_none, PIECES, UPCAST)
            b_x = row_of_x(d_x, d_rest, 2 * y, first, 2 * pw - 1, C, ROWS, DEPTH)
            b_odd = row_product(b_x, wide, 2, b_odd, PIECES, UPCAST)
            b_lower, right = beside(b_odd, p_out, ROWS, COLS)
            b_upper = (b_marked & -2).to(tl.float32, bitcast=True)
            b_place = tl.where(b_lower > b_upper, 2 | right, b_marked & 1)
            m_all = (first + lanes < n) & (y > y0)
            o_y = o_first + (y - 1) * (PW * OUT)
            tl.store(p_out + o_y + o_out, largest(b_lower, b_upper).to(p_out.dtype.element_ty), mask=m_all)
            if p_argmax is not None:
                tl.store(p_argmax + o_y + o_out, b_place.to(tl.int8), mask=m_all)
            b_even = row_product(b_x, wide, 1, b_even, PIECES, UPCAST)
            b_odd = row_product(b_x, wide, 0, b_none, PIECES, UPCAST)


def forward(
    problem: Problem, config: Config, x: Tensor, filters: Tensor, out: Tensor, argmax: Tensor | None
) -> None:
    """Writes u to `out`, and argmax where it is wanted."""
    c, (ph, pw) = problem.c, problem.output
    share, _ = tiling.shares(problem, config)
    by_row = x.permute(2, 0, 3, 1).flatten(2)  # [h, n, w * c]
    rest = 4 * c % config.depth
    launch(
        _window_fwd,
        (tiling.programs(problem, config),),
        filters,
        out,
        argmax,
        problem.n,
        share,
        tiling.steps(problem, config),
        box(by_row, 1, config.rows, config.depth),
        box(by_row, 1, config.rows, rest) if rest else None,
        PH=ph,
        PW=pw,
        **tile_constants(problem, config),
    )
