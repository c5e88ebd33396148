"""The gradients of a convolution as implicit matrix products, for conv.py and conv_bn_act.py.

    dgrad   dx[n, y, x, c] = sum over r, s, o of dz[n, y + pad - r, x + pad - s, o] * filters[o, r, s, c]
    wgrad   dw[o, r, s, c] = sum over n, y, x of dz[n, y, x, o] * x[n, y + r - pad, x + s - pad, c]

Layouts, precision and tiles are those of conv_passes.py. dz is read as it is, or from one value for
each pooling window and its place (`argmax`), expanding it as it is loaded; what floor pooling drops is never
read. dgrad is a convolution of dz with the filters turned round. The depth of wgrad, which goes over all
outputs, is split among programs, whose float32 sums base/sums.py adds up in a fixed order. A pooled wgrad
of few channels has a form of its own, window_gradients.py.
Source: Chetlur et al., arXiv 1410.0759 (implicit matrix product).
"""

from __future__ import annotations

from math import prod

from torch import Tensor

from ..base.launch import cdiv, launch, tl, triton
from ..base.narrow import gradient_scale
from ..base.sums import sum_splits
from ..norm.norm_passes import float32_like
from . import tiling, window_gradients
from .conv_passes import constants, filters_box, images_box, pixels, place_of, product, undone
from .tiling import FLOAT8, Config, Problem


@triton.jit
def _conv_dgrad(
    p_dz,  # [n, DH, DW, OUT]
    p_argmax,  # int8, as dz, with EXPAND
    p_filters,  # [OUT, SIZE, SIZE, C]; TURNED, [C, SIZE, SIZE, OUT], of taps that count backwards
    p_dx,  # [n, H, W, C]
    p_largest,  # float32 [1], which dz of 8 bits was scaled by, or None
    n,
    d_dz,  # descriptors of boxes [ROWS, DEPTH], the same, and [DEPTH, COLS] or [COLS, DEPTH], or None
    d_argmax,
    d_filters,
    DH: tl.constexpr,
    DW: tl.constexpr,
    VH: tl.constexpr,  # rows and columns of dz, expanded, that are not 0
    VW: tl.constexpr,
    H: tl.constexpr,
    W: tl.constexpr,
    C: tl.constexpr,
    OUT: tl.constexpr,
    SIZE: tl.constexpr,
    PAD: tl.constexpr,
    IMAGES: tl.constexpr,
    EXPAND: tl.constexpr,
    TURNED: tl.constexpr,
    SCALE: tl.constexpr,  # of what operands of 8 bits add up to
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    tile = tl.program_id(0) // tl.cdiv(C, COLS)
    start = tl.program_id(0) % tl.cdiv(C, COLS) * COLS
    first, image, m_rows, y, x = place_of(tile, n, H, W, IMAGES, ROWS)
    first_wide = first.to(tl.int64)
    p_dz += first_wide * (DH * DW * OUT)
    p_argmax += first_wide * (DH * DW * OUT)
    # Of smaller filters, pixels at the end may lie in no window that pooling keeps.
    FULL: tl.constexpr = H - VH < SIZE - PAD and W - VW < SIZE - PAD
    b_dx = product(
        p_dz, p_argmax, p_filters, d_dz, d_argmax, d_filters, first, image, m_rows, y, x, start,
        DH, DW, VH, VW, OUT, C, SIZE, SIZE - 1 - PAD, IMAGES, FULL, EXPAND, not TURNED, UPCAST, PRECISION,
        ROWS, COLS, DEPTH,
    )  # fmt: skip
    if p_largest is not None:
        b_dx *= SCALE / gradient_scale(p_largest)
    columns = start + tl.arange(0, COLS)[None, :]
    o_dx = first_wide * (H * W * C) + ((image * H + y) * W + x) * C + columns  # [ROWS, COLS]
    tl.store(p_dx + o_dx, b_dx.to(p_dx.dtype.element_ty), mask=m_rows & (columns < C))


@triton.jit
def _conv_wgrad(
    p_dz,  # [n, DH, DW, OUT]
    p_argmax,  # int8, as dz, with EXPAND
    p_x,  # [n, H, W, C]
    p_partial,  # float32 [splits, OUT, SIZE, SIZE, C]
    n,
    splits,
    d_dz,  # descriptors of boxes [DEPTH, ROWS], the same, and [DEPTH, COLS], or None
    d_argmax,
    d_x,
    DH: tl.constexpr,
    DW: tl.constexpr,
    VH: tl.constexpr,
    VW: tl.constexpr,
    H: tl.constexpr,
    W: tl.constexpr,
    C: tl.constexpr,
    OUT: tl.constexpr,
    SIZE: tl.constexpr,
    PAD: tl.constexpr,
    IMAGES: tl.constexpr,
    LEAST: tl.constexpr,  # 1: each program has a step, and without a way around the loop wgmmas can overlap
    EXPAND: tl.constexpr,
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    FLAT: tl.constexpr = C % COLS != 0  # then a tile's columns may go over several taps
    SKIP: tl.constexpr = IMAGES and not FLAT
    K: tl.constexpr = SIZE * SIZE * C
    columns = tl.program_id(0) * COLS + tl.arange(0, COLS)  # [COLS]
    out_start = tl.program_id(1) * ROWS
    outs = out_start + tl.arange(0, ROWS)  # [ROWS]
    split = tl.program_id(2)
    channel_start = tl.program_id(0) * COLS % C
    if FLAT:
        r, s = (columns // C // SIZE)[None, :], (columns // C % SIZE)[None, :]  # [1, COLS]
    else:
        tap = tl.program_id(0) * COLS // C
        r, s = tap // SIZE, tap % SIZE
    y0, x0, height, width = 0, 0, VH, VW
    if SKIP:  # the outputs whose pixels are there
        y0, x0 = tl.maximum(PAD - r, 0), tl.maximum(PAD - s, 0)
        height, width = tl.minimum(H + PAD - r, VH) - y0, tl.minimum(W + PAD - s, VW) - x0
    if IMAGES:
        blocks = tl.cdiv(n, DEPTH)
        steps = height * width * blocks
    else:
        steps = tl.cdiv(n * (VH * VW), DEPTH)
    begin, end = steps * split // splits, steps * (split + 1) // splits
    b_sum = tl.zeros((ROWS, COLS), dtype=tl.float32)
    if LEAST:
        tl.assume(begin < end)
    for step in tl.range(begin, end):
        if IMAGES:
            first, image = step % blocks * DEPTH, tl.arange(0, DEPTH)[:, None]
            m_rows = first + image < n  # [DEPTH, 1]
            y, x = y0 + step // blocks // width, x0 + step // blocks % width
        else:
            first, image, m_rows, y, x = place_of(step, n, VH, VW, False, DEPTH)
        sy, sx = y + r - PAD, x + s - PAD
        m_x = m_rows
        if not SKIP:
            m_x = m_x & (sy >= 0) & (sy < H) & (sx >= 0) & (sx < W) & (columns < K)[None, :]
        first_wide = first.to(tl.int64)
        o_dz = first_wide * (DH * DW * OUT)
        b_dz = pixels(
            p_dz + o_dz, p_argmax + o_dz, d_dz, d_argmax, first, image, y, x, out_start, outs[None, :],
            m_rows & (outs < OUT)[None, :], DH, DW, OUT, EXPAND, DEPTH, ROWS,
        )  # fmt: skip
        p_images = p_x + first_wide * (H * W * C)
        b_x = pixels(
            p_images, p_images, d_x, d_x, first, image, sy, sx, channel_start, (columns % C)[None, :], m_x,
            H, W, C, False, DEPTH, COLS,
        )  # fmt: skip
        if UPCAST:
            b_dz, b_x = b_dz.to(tl.float32), b_x.to(tl.float32)
        b_sum = tl.dot(tl.trans(b_dz), b_x, b_sum, input_precision=PRECISION)
        if EXPAND:  # see conv_passes.product
            b_sum += 0.0
    o_partial = split.to(tl.int64) * (OUT * K) + outs[:, None] * K + columns[None, :]
    tl.store(p_partial + o_partial, b_sum, mask=(outs < OUT)[:, None] & (columns < K)[None, :])


def _extents(problem: Problem, dz: Tensor, argmax: Tensor | None) -> dict:
    """What both kernels are told of dz."""
    (dh, dw), (vh, vw) = dz.shape[2:], problem.kept
    return {"DH": dh, "DW": dw, "VH": vh, "VW": vw, "EXPAND": argmax is not None}


def dgrad(
    problem: Problem,
    config: Config,
    dz: Tensor,
    argmax: Tensor | None,
    filters: Tensor,
    dx: Tensor,
    largest: Tensor | None = None,
) -> None:
    """Writes dx, from the gradient of all outputs, or with `argmax` from that of the pooled ones. Of 8 bits,
    filters are turned (float8_passes.py), and dz was scaled by `largest` float32 [1].
    """
    turned = problem.dtype == FLOAT8
    box = (config.cols, config.depth) if turned else (config.depth, config.cols)
    launch(
        _conv_dgrad,
        (tiling.programs(problem, config),),
        dz,
        dz if argmax is None else argmax,
        filters,
        dx,
        largest,
        problem.n,
        images_box(dz, config, config.rows, config.depth),
        images_box(argmax, config, config.rows, config.depth),
        filters_box(filters, config, *box),
        TURNED=turned,
        SCALE=undone(problem),
        **_extents(problem, dz, argmax),
        **constants(problem, config),
    )


def fewest_steps(problem: Problem, config: Config) -> int:
    """Of a tile of wgrad; where padding is skipped, of the one whose tap the fewest outputs have."""
    kept = problem.kept
    if config.order == "rows":
        return cdiv(problem.n * prod(kept), config.depth)
    if not tiling.flat(problem, config):
        extents, pad, size = (problem.h, problem.w), problem.pad, problem.size
        kept = [
            min(min(extent + pad - r, outputs) - max(pad - r, 0) for r in range(size))
            for extent, outputs in zip(extents, kept)
        ]
    return cdiv(problem.n, config.depth) * prod(kept)


def wgrad(
    problem: Problem, config: Config, dz: Tensor, argmax: Tensor | None, x: Tensor, d_filters: Tensor
) -> None:
    """Writes d filters, from the gradient of all outputs, or with `argmax` from that of the pooled ones."""
    if config.order == "windows":
        window_gradients.wgrad(problem, config, dz, argmax, x, d_filters)
        return
    o, c, size = problem.o, problem.c, problem.size
    partial = float32_like(x, config.splits, o, size, size, c)
    launch(
        _conv_wgrad,
        (cdiv(problem.columns, config.cols), cdiv(o, config.rows), config.splits),
        dz,
        dz if argmax is None else argmax,
        x,
        partial,
        problem.n,
        config.splits,
        images_box(dz, config, config.depth, config.rows),
        images_box(argmax, config, config.depth, config.rows),
        images_box(x, config, config.depth, config.cols),
        LEAST=int(fewest_steps(problem, config) >= config.splits),
        **_extents(problem, dz, argmax),
        **constants(problem, config),
    )
    sum_splits(partial, d_filters)
