"""A convolution and its two gradients as implicit matrix products, for kernels/conv.py and conv_bn_act.py.

    forward   u[n, y, x, o]  = sum over r, s, c of x[n, y + r - pad, x + s - pad, c] * filters[o, r, s, c]
    dgrad     dx[n, y, x, c] = sum over r, s, o of dz[n, y + pad - r, x + pad - s, o] * filters[o, r, s, c]
    wgrad     dw[o, r, s, c] = sum over n, y, x of dz[n, y, x, o] * x[n, y + r - pad, x + s - pad, c]

All tensors channels-last; filters 3x3 (pad 1), 2x2 or 1x1 (no padding); dots accumulate in float32. How a
pass is cut into tiles, in which order, and what that costs, is kernels/tiling.py's; here are the kernels and
their launchers.

A pooled forward computes the four outputs of its windows one after the other and keeps the largest, as
stored, and its place 0..3 in registers; what floor pooling drops is never computed. Its epilogue is the batch
norm's pass A of kernels/norm_passes.py: (mean, M2) of each tile; in evaluation it is the whole norm. dgrad
and wgrad read dz as it is, or from one value per window and its place (`argmax`), expanding it as it is
loaded.

A step of depth is a tap and some channels, in one loop, which Triton pipelines. Tiles come through pointers
or through tensor descriptors, whose boxes fill with zeros beyond the last image.
Source: Chetlur et al., arXiv 1410.0759 (implicit matrix product).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .activations import activate
from .launch import INTERPRETED, box, cdiv, launch, tl, triton
from .norm_passes import float32_like
from .tiling import Config, Problem


@triton.jit
def _place(tile, n, PLACES_H: tl.constexpr, PLACES_W: tl.constexpr, IMAGES: tl.constexpr, ROWS: tl.constexpr):
    """Where the rows of a tile lie: the first image, each row's image from there on [ROWS, 1], which rows
    there are [ROWS, 1], and y and x: numbers where a tile has one place, else [ROWS, 1].
    """
    PLACES: tl.constexpr = PLACES_H * PLACES_W
    lanes = tl.arange(0, ROWS)[:, None]
    if IMAGES:
        place = tile % PLACES
        first, image = tile // PLACES * ROWS, lanes
        m_rows = first + lanes < n
    else:
        rows = tile * ROWS + lanes
        place = rows % PLACES
        first = tile * ROWS // PLACES
        image = rows // PLACES - first
        m_rows = rows < n * PLACES
    return first, image, m_rows, place // PLACES_W, place % PLACES_W


@triton.jit
def _pixels(
    p_x,
    p_argmax,
    d_x,
    d_argmax,
    first,  # image, at which p_x and p_argmax begin
    image,  # [ROWS, 1], from there on
    y,
    x,
    start,  # channel, for descriptors
    channels,  # [1, COLS]
    m_all,  # [ROWS, COLS]
    H: tl.constexpr,
    W: tl.constexpr,
    C: tl.constexpr,
    EXPAND: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """The channels of pixels (y, x): [ROWS, COLS]. With EXPAND, x [n, H, W, C] has one value for each 2x2
    window, which is that of the pixel that argmax names; the window's others are 0.
    """
    place = y % 2 * 2 + x % 2
    if EXPAND:
        y, x = y // 2, x // 2
    if d_x is None:
        o_all = ((image * H + y) * W + x) * C + channels
        b_x = tl.load(p_x + o_all, mask=m_all, other=0.0)
    else:
        b_x = d_x.load([first, y, x, start]).reshape(ROWS, COLS)
    if EXPAND:
        if d_x is None:
            b_argmax = tl.load(p_argmax + o_all, mask=m_all, other=0)
        else:
            b_argmax = d_argmax.load([first, y, x, start]).reshape(ROWS, COLS)
        b_x = tl.where(b_argmax == place, b_x, 0.0).to(b_x.dtype)
    return b_x


@triton.jit
def _product(
    p_x,
    p_argmax,
    p_filters,
    d_x,
    d_argmax,
    d_filters,
    first,
    image,
    m_rows,
    y,
    x,
    start,  # column, the first of the tile
    H: tl.constexpr,  # extents of x in memory
    W: tl.constexpr,
    VH: tl.constexpr,  # rows and columns of x, expanded, that are not 0
    VW: tl.constexpr,
    C: tl.constexpr,  # channels of x
    OUT: tl.constexpr,  # columns
    SIZE: tl.constexpr,
    PAD: tl.constexpr,
    IMAGES: tl.constexpr,
    EXPAND: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Sum over taps (r, s) and channels of x at (y + r - PAD, x + s - PAD) times filters: [ROWS, COLS].

    filters [OUT, SIZE, SIZE, C]; TRANSPOSED, they are [C, SIZE, SIZE, OUT], and taps count backwards.
    """
    TAPS: tl.constexpr = SIZE * SIZE
    FLAT: tl.constexpr = C % DEPTH != 0  # then a step of depth may go over several taps
    STEPS: tl.constexpr = tl.cdiv(TAPS * C, DEPTH) if FLAT else C // DEPTH  # in all, or of a tap
    columns = start + tl.arange(0, COLS)[None, :]  # [1, COLS]
    SKIP: tl.constexpr = IMAGES and not FLAT
    if SKIP:  # the taps whose pixels are there
        r0, s0 = tl.maximum(PAD - y, 0), tl.maximum(PAD - x, 0)
        width = tl.minimum(VW + PAD - x, SIZE) - s0
        taps = (tl.minimum(VH + PAD - y, SIZE) - r0) * width
    else:
        r0, s0, width, taps = 0, 0, SIZE, TAPS
    b_sum = tl.zeros((ROWS, COLS), dtype=tl.float32)
    for step in tl.range(0, STEPS if FLAT else taps * STEPS):
        if FLAT:
            depth = step * DEPTH + tl.arange(0, DEPTH)  # [DEPTH], as are tap and channel
            tap, channel = depth // C, depth % C
            r, s = (tap // SIZE)[None, :], (tap % SIZE)[None, :]
            channel_start = 0
        else:
            r, s = r0 + step // STEPS // width, s0 + step // STEPS % width
            tap = r * SIZE + s
            channel_start = step % STEPS * DEPTH
            channel = channel_start + tl.arange(0, DEPTH)
        sy, sx = y + r - PAD, x + s - PAD
        m_x, m_filters = m_rows, columns < OUT
        if not SKIP:
            m_x = m_x & (sy >= 0) & (sy < VH) & (sx >= 0) & (sx < VW)
        if FLAT:
            m_x = m_x & (depth < TAPS * C)[None, :]
            m_filters = m_filters & (depth < TAPS * C)[:, None]
        b_x = _pixels(
            p_x, p_argmax, d_x, d_argmax, first, image, sy, sx, channel_start, channel[None, :], m_x,
            H, W, C, EXPAND, ROWS, DEPTH,
        )  # fmt: skip
        if TRANSPOSED and d_filters is None:
            o_filters = (channel * (TAPS * OUT) + (TAPS - 1 - tap) * OUT)[:, None] + columns  # [DEPTH, COLS]
            b_filters = tl.load(p_filters + o_filters, mask=m_filters, other=0.0)
        elif TRANSPOSED:
            b_filters = d_filters.load([channel_start, (TAPS - 1 - tap) * OUT + start])
        elif d_filters is None:
            o_filters = (tap * C + channel)[:, None] + columns * (TAPS * C)
            b_filters = tl.load(p_filters + o_filters, mask=m_filters, other=0.0)
        else:
            b_filters = tl.trans(d_filters.load([start, tap * C + channel_start]))
        if UPCAST:
            b_x, b_filters = b_x.to(tl.float32), b_filters.to(tl.float32)
        b_sum = tl.dot(b_x, b_filters, b_sum, input_precision=PRECISION)
    return b_sum


@triton.jit
def _conv_fwd(
    p_x,  # [n, H, W, C]
    p_filters,  # [OUT, SIZE, SIZE, C]
    p_gate,  # float32 [n, OUT], with GATE
    p_mean,  # [OUT], with NORM, as the next three
    p_variance,
    p_weight,
    p_bias,
    p_residual,  # as out, with RESIDUAL
    p_out,  # [n, OH, OW, OUT]: u, or with NORM y
    p_argmax,  # int8, as out, with STATISTICS and POOL
    p_partial,  # float32 [tiles, 2, OUT]: mean, M2, with STATISTICS
    n,
    d_x,  # descriptors of boxes [ROWS, 1, 1, DEPTH] and [COLS, DEPTH], or None
    d_filters,
    H: tl.constexpr,
    W: tl.constexpr,
    OH: tl.constexpr,
    OW: tl.constexpr,
    C: tl.constexpr,
    OUT: tl.constexpr,
    SIZE: tl.constexpr,
    PAD: tl.constexpr,
    IMAGES: tl.constexpr,
    POOL: tl.constexpr,
    GATE: tl.constexpr,
    STATISTICS: tl.constexpr,
    NORM: tl.constexpr,
    RESIDUAL: tl.constexpr,
    EPS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    tile = tl.program_id(0) // tl.cdiv(
        OUT, COLS
    )  # tiles of the same rows are neighbours, and share them in L2
    start = tl.program_id(0) % tl.cdiv(OUT, COLS) * COLS
    first, image, m_rows, oy, ox = _place(tile, n, OH, OW, IMAGES, ROWS)
    first_wide = first.to(tl.int64)
    p_x += first_wide * (H * W * C)
    if POOL:
        b_u = tl.zeros((ROWS, COLS), dtype=tl.float32)
        b_argmax = tl.zeros((ROWS, COLS), dtype=tl.int8)
        for place in tl.range(0, 4):
            b_next = _product(
                p_x, p_x, p_filters, d_x, d_x, d_filters, first, image, m_rows,
                oy * 2 + place // 2, ox * 2 + place % 2, start,
                H, W, H, W, C, OUT, SIZE, PAD, IMAGES, False, False, UPCAST, PRECISION, ROWS, COLS, DEPTH,
            )  # fmt: skip
            if not NORM:  # the argmax and the statistics are of what is stored
                b_next = b_next.to(p_out.dtype.element_ty).to(tl.float32)
            larger = (b_next > b_u) | (b_next != b_next) | (place == 0)  # NaN wins
            b_u = tl.where(larger, b_next, b_u)
            b_argmax = tl.where(larger, place, b_argmax).to(tl.int8)
    else:
        b_u = _product(
            p_x, p_x, p_filters, d_x, d_x, d_filters, first, image, m_rows, oy, ox, start,
            H, W, H, W, C, OUT, SIZE, PAD, IMAGES, False, False, UPCAST, PRECISION, ROWS, COLS, DEPTH,
        )  # fmt: skip
        if not NORM:
            b_u = b_u.to(p_out.dtype.element_ty).to(tl.float32)

    columns = start + tl.arange(0, COLS)[None, :]
    m_columns = columns < OUT
    m_all = m_rows & m_columns
    o_out = first_wide * (OH * OW * OUT) + ((image * OH + oy) * OW + ox) * OUT + columns  # [ROWS, COLS]
    b_v = b_u
    if GATE:
        b_v *= tl.load(p_gate + (first + image) * OUT + columns, mask=m_all, other=0.0)
    if NORM:
        b_variance = tl.load(p_variance + columns, mask=m_columns, other=0.0)
        b_scale = tl.load(p_weight + columns, mask=m_columns, other=0.0)
        b_scale *= 1.0 / tl.sqrt(tl.maximum(b_variance, 0.0) + EPS)
        b_centred = b_v - tl.load(p_mean + columns, mask=m_columns, other=0.0)
        b_y = activate(b_centred * b_scale + tl.load(p_bias + columns, mask=m_columns, other=0.0), ACTIVATION)
        if RESIDUAL:
            b_y += tl.load(p_residual + o_out, mask=m_all, other=0.0).to(tl.float32)
        tl.store(p_out + o_out, b_y.to(p_out.dtype.element_ty), mask=m_all)
    else:
        tl.store(p_out + o_out, b_u.to(p_out.dtype.element_ty), mask=m_all)
    if STATISTICS:
        if POOL:
            tl.store(p_argmax + o_out, b_argmax, mask=m_all)
        # Deviations are taken from the first row: a constant channel has mean and variance to the last bit.
        b_first = tl.sum(tl.where(tl.arange(0, ROWS)[:, None] == 0, b_v, 0.0), axis=0)[None, :]  # [1, COLS]
        b_v = tl.where(m_rows, b_v - b_first, 0.0)
        b_mean = tl.sum(b_v, axis=0)[None, :] / tl.sum(m_rows.to(tl.float32))
        b_v = tl.where(m_rows, b_v - b_mean, 0.0)
        o_partial = tile * (2 * OUT) + columns
        tl.store(p_partial + o_partial, b_first + b_mean, mask=m_columns)
        tl.store(p_partial + o_partial + OUT, tl.sum(b_v * b_v, axis=0)[None, :], mask=m_columns)


@triton.jit
def _conv_dgrad(
    p_dz,  # [n, DH, DW, OUT]
    p_argmax,  # int8, as dz, with EXPAND
    p_filters,  # [OUT, SIZE, SIZE, C]
    p_dx,  # [n, H, W, C]
    n,
    d_dz,  # descriptors of boxes [ROWS, 1, 1, DEPTH], the same, and [DEPTH, COLS], or None
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
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    tile = tl.program_id(0) // tl.cdiv(C, COLS)
    start = tl.program_id(0) % tl.cdiv(C, COLS) * COLS
    first, image, m_rows, y, x = _place(tile, n, H, W, IMAGES, ROWS)
    first_wide = first.to(tl.int64)
    p_dz += first_wide * (DH * DW * OUT)
    p_argmax += first_wide * (DH * DW * OUT)
    b_dx = _product(
        p_dz, p_argmax, p_filters, d_dz, d_argmax, d_filters, first, image, m_rows, y, x, start,
        DH, DW, VH, VW, OUT, C, SIZE, SIZE - 1 - PAD, IMAGES, EXPAND, True, UPCAST, PRECISION,
        ROWS, COLS, DEPTH,
    )  # fmt: skip
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
    d_dz,  # descriptors of boxes [DEPTH, 1, 1, ROWS], the same, and [DEPTH, 1, 1, COLS], or None
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
    share = tl.cdiv(steps, splits)
    b_sum = tl.zeros((ROWS, COLS), dtype=tl.float32)
    for step in tl.range(split * share, tl.minimum(split * share + share, steps)):
        if IMAGES:
            first, image = step % blocks * DEPTH, tl.arange(0, DEPTH)[:, None]
            m_rows = first + image < n  # [DEPTH, 1]
            y, x = y0 + step // blocks // width, x0 + step // blocks % width
        else:
            first, image, m_rows, y, x = _place(step, n, VH, VW, False, DEPTH)
        sy, sx = y + r - PAD, x + s - PAD
        m_x = m_rows
        if not SKIP:
            m_x = m_x & (sy >= 0) & (sy < H) & (sx >= 0) & (sx < W) & (columns < K)[None, :]
        first_wide = first.to(tl.int64)
        o_dz = first_wide * (DH * DW * OUT)
        b_dz = _pixels(
            p_dz + o_dz, p_argmax + o_dz, d_dz, d_argmax, first, image, y, x, out_start, outs[None, :],
            m_rows & (outs < OUT)[None, :], DH, DW, OUT, EXPAND, DEPTH, ROWS,
        )  # fmt: skip
        p_images = p_x + first_wide * (H * W * C)
        b_x = _pixels(
            p_images, p_images, d_x, d_x, first, image, sy, sx, channel_start, (columns % C)[None, :], m_x,
            H, W, C, False, DEPTH, COLS,
        )  # fmt: skip
        if UPCAST:
            b_dz, b_x = b_dz.to(tl.float32), b_x.to(tl.float32)
        b_sum = tl.dot(tl.trans(b_dz), b_x, b_sum, input_precision=PRECISION)
    o_partial = split.to(tl.int64) * (OUT * K) + outs[:, None] * K + columns[None, :]
    tl.store(p_partial + o_partial, b_sum, mask=(outs < OUT)[:, None] & (columns < K)[None, :])


@triton.jit
def _sum_splits(
    p_partial,  # float32 [splits, SIZE]
    p_sum,  # [SIZE]
    splits,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    o_all = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    b_sum = tl.zeros((BLOCK,), dtype=tl.float32)
    for split in range(splits):
        b_sum += tl.load(p_partial + split * SIZE + o_all, mask=o_all < SIZE, other=0.0)
    tl.store(p_sum + o_all, b_sum.to(p_sum.dtype.element_ty), mask=o_all < SIZE)


SUM_BLOCK = 1024  # filter values of a program that adds up splits


def _constants(problem: Problem, config: Config) -> dict:
    """What all kernels are told."""
    return {
        "H": problem.h,
        "W": problem.w,
        "C": problem.c,
        "OUT": problem.o,
        "SIZE": problem.size,
        "PAD": problem.pad,
        "IMAGES": config.order == "images",
        "UPCAST": INTERPRETED and problem.dtype == torch.bfloat16,
        "PRECISION": "tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee",
        "ROWS": config.rows,
        "COLS": config.cols,
        "DEPTH": config.depth,
        "num_warps": config.warps,
        "num_stages": config.stages,
    }


def _images(x: Tensor, config: Config, rows: int, cols: int):
    """A descriptor of boxes of one pixel of `rows` images and `cols` channels, or None."""
    return box(x.permute(0, 2, 3, 1), rows, 1, 1, cols) if config.descriptors else None


def _matrix(filters: Tensor, config: Config, rows: int, cols: int):
    """A descriptor of boxes of filters as a matrix [o, size * size * c], or None."""
    return box(filters.permute(0, 2, 3, 1).flatten(1), rows, cols) if config.descriptors else None


def tiles(problem: Problem, config: Config) -> tuple[int, int]:
    """(tiles of rows of a forward pass, places that a block of images is cut into)"""
    oh, ow = problem.output
    if config.order == "rows":
        return cdiv(problem.n * oh * ow, config.rows), 1
    return cdiv(problem.n, config.rows) * oh * ow, oh * ow


def forward(
    problem: Problem,
    config: Config,
    x: Tensor,
    filters: Tensor,
    gate: Tensor | None,
    u: Tensor,
    argmax: Tensor,
) -> Tensor:
    """Writes u and, with a pool, argmax; returns (mean, M2) of u * gate of each tile [tiles, 2, o]."""
    partial = float32_like(x, tiles(problem, config)[0], 2, problem.o)
    _forward(problem, config, x, filters, u, gate=gate, argmax=argmax, partial=partial)
    return partial


def plain(problem: Problem, config: Config, x: Tensor, filters: Tensor, y: Tensor) -> None:
    """Writes y, the outputs alone."""
    _forward(problem, config, x, filters, y)


def evaluate(
    problem: Problem,
    config: Config,
    x: Tensor,
    filters: Tensor,
    gate: Tensor | None,
    norm: tuple[Tensor, Tensor, Tensor, Tensor],
    residual: Tensor | None,
    y: Tensor,
    *,
    eps: float,
    activation: str,
) -> None:
    """Writes y, the whole block; `norm` is running mean and variance, weight and bias."""
    options = {"EPS": eps, "ACTIVATION": activation}
    _forward(problem, config, x, filters, y, gate=gate, norm=norm, residual=residual, **options)


def _forward(
    problem: Problem,
    config: Config,
    x: Tensor,
    filters: Tensor,
    out: Tensor,
    *,
    gate: Tensor | None = None,
    norm: tuple[Tensor | None, ...] | None = None,
    residual: Tensor | None = None,
    argmax: Tensor | None = None,
    partial: Tensor | None = None,
    **options,
) -> None:
    oh, ow = problem.output
    launch(
        _conv_fwd,
        (tiles(problem, config)[0] * cdiv(problem.o, config.cols),),
        x,
        filters,
        gate,
        *(norm or (None,) * 4),
        residual,
        out,
        argmax,
        partial,
        problem.n,
        _images(x, config, config.rows, config.depth),
        _matrix(filters, config, config.cols, config.depth),
        OH=oh,
        OW=ow,
        POOL=problem.pool,
        GATE=gate is not None,
        STATISTICS=partial is not None,
        NORM=norm is not None,
        RESIDUAL=residual is not None,
        **({"EPS": 0.0, "ACTIVATION": None} | options),
        **_constants(problem, config),
    )


def dgrad(
    problem: Problem, config: Config, dz: Tensor, argmax: Tensor | None, filters: Tensor, dx: Tensor
) -> None:
    """Writes dx, from the gradient of all outputs, or with `argmax` from that of the pooled ones."""
    rows = problem.n * problem.h * problem.w
    count = cdiv(rows, config.rows)
    if config.order == "images":
        count = cdiv(problem.n, config.rows) * problem.h * problem.w
    launch(
        _conv_dgrad,
        (count * cdiv(problem.c, config.cols),),
        dz,
        dz if argmax is None else argmax,
        filters,
        dx,
        problem.n,
        _images(dz, config, config.rows, config.depth),
        None if argmax is None else _images(argmax, config, config.rows, config.depth),
        _matrix(filters, config, config.depth, config.cols),
        DH=dz.shape[2],
        DW=dz.shape[3],
        VH=problem.kept[0],
        VW=problem.kept[1],
        EXPAND=argmax is not None,
        **_constants(problem, config),
    )


def wgrad(
    problem: Problem, config: Config, dz: Tensor, argmax: Tensor | None, x: Tensor, d_filters: Tensor
) -> None:
    """Writes d filters, from the gradient of all outputs, or with `argmax` from that of the pooled ones."""
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
        _images(dz, config, config.depth, config.rows),
        None if argmax is None else _images(argmax, config, config.depth, config.rows),
        _images(x, config, config.depth, config.cols),
        DH=dz.shape[2],
        DW=dz.shape[3],
        VH=problem.kept[0],
        VW=problem.kept[1],
        EXPAND=argmax is not None,
        **_constants(problem, config),
    )
    count = d_filters.numel()
    constants = {"SIZE": count, "BLOCK": SUM_BLOCK}
    launch(_sum_splits, (cdiv(count, SUM_BLOCK),), partial, d_filters, config.splits, **constants)
