"""The filters' gradient of a pooled 3x3 convolution of few channels, by its pooling windows.

    dw[o, r, s, c] = sum over n, y, x of dz[n, y, x, o] * x[n, 2y + py + r - 1, 2x + px + s - 1, c]
    where (py, px) is the place that argmax names of window (n, y, x) and channel o

Of a row of x, the two outputs side by side of a window read 4 pixels: 4 * c values that lie in a row of
memory, and a window reads 4 such rows. What is summed, over windows and their two rows py, is for each px

    sums[px, o, r, s, c],   r < 3, s < 4:   the gradient of place (py, px) times the pixels of row py + r

a matrix [2 * o, 3 * 4 * c] that a program holds whole in registers, for 64 channels of y, so that each window
is loaded once: 16 pixels, its pooled gradient and argmax, as they are. An implicit matrix product
(conv_gradients.py) reads a pixel nine times, for as many columns. Windows are split among programs,
and `_fold` adds up their sums in a fixed order:

    dw[o, r, s, c] = sum over splits and px of sums[px, o, r, s + px, c]

Layouts and precision are those of conv_passes.py: dz [n, o, h / 2, w / 2], argmax a byte beside each,
x [n, c, h, w], all channels-last; sums in float32. FLOPs: 4/3 of the useful ones, since 2 of 8 (px, s) are no
tap. For 24 -> 64 channels of 31x31 the matrix is 144 registers of each thread.
Source: the project's own; the pieces of x are those of Chetlur et al., arXiv 1410.0759, two windows wide.
"""

from __future__ import annotations

from torch import Tensor

from ..base.launch import launch, power_of_2, tl, triton
from ..norm.norm_passes import float32_like
from . import tiling
from .conv_passes import place_of, tile_constants
from .tiling import Config, Problem


@triton.jit
def patch(
    p_x,  # at the first image
    o_x,  # [DEPTH, 1], of (image, row 0, pixel x), where x may be -1
    m_rows,  # [DEPTH, 1]
    y,  # [DEPTH, 1]
    x,  # [DEPTH, 1], of the first pixel
    offset: tl.constexpr,
    H: tl.constexpr,
    W: tl.constexpr,
    C: tl.constexpr,
    COLS: tl.constexpr,
):
    """Values `offset` on of the four pixels at (y, x), (y, x + 1), ...: [DEPTH, COLS]."""
    values = offset + tl.arange(0, COLS)[None, :]
    m_all = m_rows
    if offset < C:
        m_all = m_all & ((x >= 0) | (values >= C))
    if H % 2 == 0:  # else floor pooling drops what would reach over the edge
        m_all = m_all & (y < H)
    if W % 2 == 0:
        m_all = m_all & (x * C + values < W * C)
    return tl.load(p_x + y * (W * C) + o_x + values, mask=m_all, other=0.0)


@triton.jit
def _window_wgrad(
    p_dz,  # [n, PH, PW, OUT]
    p_argmax,  # int8, as dz
    p_x,  # [n, H, W, C]
    p_partial,  # float32 [shares, 2, OUT, 3, 4 * C]
    n,
    share,  # steps that a program does
    steps,  # in all
    H: tl.constexpr,
    W: tl.constexpr,
    C: tl.constexpr,
    OUT: tl.constexpr,  # a multiple of ROWS
    UPCAST: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    DEPTH: tl.constexpr,  # windows of a step
):
    PH: tl.constexpr = H // 2
    PW: tl.constexpr = W // 2
    WHOLE: tl.constexpr = 4 * C // COLS  # pieces of 4 * C values, and one of what is left
    REST: tl.constexpr = 4 * C % COLS
    PIECES: tl.constexpr = WHOLE + (REST > 0)
    start = tl.program_id(1) * ROWS
    outs = start + tl.arange(0, ROWS)[None, :]  # [1, ROWS]
    sums = ()
    for _ in tl.static_range(3):
        for _ in tl.static_range(WHOLE):
            sums = sums + (tl.zeros((2 * ROWS, COLS), dtype=tl.float32),)
        if REST:
            sums = sums + (tl.zeros((2 * ROWS, REST), dtype=tl.float32),)
    begin = tl.program_id(0) * share
    mine = tl.minimum(share, steps - begin)
    tl.assume(mine > 0)  # no share is empty; else the assembler waits for each step of a product
    for step in tl.range(0, mine):
        first, image, m_rows, ph, pw = place_of(begin + step, n, PH, PW, False, DEPTH)
        first_wide = first.to(tl.int64)
        x = 2 * pw - 1  # [DEPTH, 1]
        p_images = p_x + first_wide * (H * W * C)
        o_x = image * (H * W * C) + x * C
        o_dz = first_wide * (PH * PW * OUT) + ((image * PH + ph) * PW + pw) * OUT + outs  # [DEPTH, ROWS]
        b_dz = tl.load(p_dz + o_dz, mask=m_rows, other=0.0)
        b_argmax = tl.load(p_argmax + o_dz, mask=m_rows, other=0)
        b_x = ()
        for r in tl.static_range(4):
            y = 2 * ph - 1 + r
            m_there = m_rows
            if r == 0:
                m_there = m_rows & (y >= 0)
            for i in tl.static_range(WHOLE):
                b_x = b_x + (patch(p_images, o_x, m_there, y, x, i * COLS, H, W, C, COLS),)
            if REST:
                b_x = b_x + (patch(p_images, o_x, m_there, y, x, WHOLE * COLS, H, W, C, REST),)
        for py in tl.static_range(2):
            b_left = tl.where(b_argmax == 2 * py, b_dz, 0.0).to(b_dz.dtype)
            b_right = tl.where(b_argmax == 2 * py + 1, b_dz, 0.0).to(b_dz.dtype)
            b_row = tl.permute(tl.join(b_left, b_right), (0, 2, 1)).reshape(DEPTH, 2 * ROWS)
            before = sums
            sums = ()
            for i in tl.static_range(3 * PIECES):
                b_a, b_b = tl.trans(b_row), b_x[py * PIECES + i]
                if UPCAST:
                    b_a, b_b = b_a.to(tl.float32), b_b.to(tl.float32)
                sums = sums + (tl.dot(b_a, b_b, before[i]),)
    p_sums = p_partial + tl.program_id(0).to(tl.int64) * (24 * OUT * C)
    rows = tl.arange(0, 2 * ROWS)[:, None]  # (px, channel of y)
    o_rows = (rows // ROWS * OUT + start + rows % ROWS) * (12 * C)
    for r in tl.static_range(3):
        for i in tl.static_range(WHOLE):
            o_sums = o_rows + r * 4 * C + i * COLS + tl.arange(0, COLS)[None, :]
            tl.store(p_sums + o_sums, sums[r * PIECES + i])
        if REST:
            o_sums = o_rows + r * 4 * C + WHOLE * COLS + tl.arange(0, REST)[None, :]
            tl.store(p_sums + o_sums, sums[r * PIECES + WHOLE])


@triton.jit
def _fold(
    p_partial,  # float32 [shares, 2, OUT, 3, 4 * C]
    p_sum,  # [OUT, 3, 3 * C]
    shares,
    C: tl.constexpr,
    OUT: tl.constexpr,
    ROWS: tl.constexpr,  # shares that are added at once
    COLS: tl.constexpr,
):
    row = tl.program_id(0)  # (channel of y, r)
    cols = tl.arange(0, COLS)  # [COLS]
    m_cols = cols < 3 * C
    p_left = p_partial + row * (4 * C) + cols[None, :]
    p_right = p_left + 12 * OUT * C + C  # the other output's, a pixel on
    b_sum = tl.zeros((ROWS, COLS), dtype=tl.float32)
    for first in range(0, shares, ROWS):
        rows = first + tl.arange(0, ROWS)[:, None]
        m_all = (rows < shares) & m_cols[None, :]  # [ROWS, COLS]
        o_share = rows.to(tl.int64) * (24 * OUT * C)
        b_sum += tl.load(p_left + o_share, mask=m_all, other=0.0)
        b_sum += tl.load(p_right + o_share, mask=m_all, other=0.0)
    tl.store(p_sum + row * (3 * C) + cols, tl.sum(b_sum, axis=0).to(p_sum.dtype.element_ty), mask=m_cols)


FOLDED = 32  # shares that a program adds at once, for a row of a filter: 192 programs for 64 channels of y


def fold_bytes(problem: Problem, config: Config) -> int:
    """Of `_fold`: 3 of 4 taps of each sum, and the filters' gradient."""
    filters = problem.o * problem.columns
    return tiling.partials(problem, config) * 3 + filters * problem.dtype.itemsize


def wgrad(problem: Problem, config: Config, dz: Tensor, argmax: Tensor, x: Tensor, d_filters: Tensor) -> None:
    """Writes d filters, from the gradient of the pooled outputs and argmax."""
    o, c = problem.o, problem.c
    share, shares = tiling.shares(problem, config)
    partial = float32_like(x, shares, 2, o, 3, 4 * c)
    launch(
        _window_wgrad,
        (shares, o // config.rows),
        dz,
        argmax,
        x,
        partial,
        problem.n,
        share,
        tiling.steps(problem, config),
        H=problem.h,
        W=problem.w,
        **tile_constants(problem, config),
    )
    extents = {"C": c, "OUT": o, "ROWS": FOLDED, "COLS": power_of_2(3 * c)}
    launch(_fold, (3 * o,), partial, d_filters, shares, **extents)
