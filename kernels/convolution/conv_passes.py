"""A convolution as an implicit matrix product, for conv.py and conv_bn_act.py.

    u[n, y, x, o] = sum over r, s, c of x[n, y + r - pad, x + s - pad, c] * filters[o, r, s, c]

All tensors channels-last; filters 3x3 (pad 1), 2x2 or 1x1 (no padding); dots accumulate in float32. How a
pass is cut into tiles, in which order, and what that costs, is tiling.py's; the gradients are
conv_gradients.py's, which shares `product` and what it is made of.

A pooled forward computes the four outputs of its windows one after the other and keeps the largest, as
stored, and its place 0..3 in registers; what floor pooling drops is never computed. Its epilogue is the batch
norm's pass A of norm/norm_passes.py: (mean, M2) of each tile; in evaluation it is the whole norm.

A step of depth is a tap and some channels, in one loop, which Triton pipelines. Tiles come through pointers
or through tensor descriptors, whose boxes fill with zeros beyond the last image.

Operands of 8 bits come from float8_passes.py. Hopper's tensor cores add their products up in 14 digits: of 32
products and the sum before them, what lies 13 places below the largest is cut off. Of 9 * 256 products that
is, simulated, 1.0e-3 of the sums in norm, where rounding the operands is 3.8e-2, so nothing is promoted to
float32 on the way (Triton's `max_num_imprecise_acc`, by default never): at each step of 128 that would leave
1.4e-4, but it takes as many registers again, and pooled tiles of 128x128 and gradients of 128x256 spill.
Sources: Chetlur et al., arXiv 1410.0759 (implicit matrix product); DeepSeek-AI, arXiv 2412.19437, 3.3.2, and
Zhang et al., arXiv 2411.10958 (what tensor cores keep of sums of 8 bits).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..base.launch import INTERPRETED, box, launch, tl, triton
from ..norm.activations import ACTIVATIONS
from . import tiling
from .float8 import filter_scale
from .tiling import FLOAT8, Config, Problem


@triton.jit
def place_of(
    tile, n, PLACES_H: tl.constexpr, PLACES_W: tl.constexpr, IMAGES: tl.constexpr, ROWS: tl.constexpr
):
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
def pixels(
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
        b_x = d_x.load([first, (y * W + x) * C + start])
    if EXPAND:
        if d_x is None:
            b_argmax = tl.load(p_argmax + o_all, mask=m_all, other=0)
        else:
            b_argmax = d_argmax.load([first, (y * W + x) * C + start])
        b_x = tl.where(b_argmax == place, b_x, 0.0).to(b_x.dtype)
    return b_x


@triton.jit
def product(
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
    FULL: tl.constexpr,
    EXPAND: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Sum over taps (r, s) and channels of x at (y + r - PAD, x + s - PAD) times filters: [ROWS, COLS].

    filters [OUT, SIZE, SIZE, C]; TRANSPOSED, they are [C, SIZE, SIZE, OUT], and taps count backwards. FULL
    says that each place has a tap whose pixel is there: without a way around the loop wgmmas can overlap.
    Where pixels are expanded they must not: those come from registers, which the next step writes while a
    wgmma may still read them. There a step uses its sum, by adding 0, so that the compiler waits for it.
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
    if SKIP and FULL:
        tl.assume(taps * STEPS > 0)
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
        b_x = pixels(
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
        if EXPAND:  # see above
            b_sum += 0.0
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
    d_x,  # descriptors of boxes [ROWS, DEPTH] and [COLS, DEPTH], or None
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
    SCALE: tl.constexpr,  # of what operands of 8 bits add up to
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    # Tiles of the same rows are neighbours, and share them in L2.
    tile = tl.program_id(0) // tl.cdiv(OUT, COLS)
    start = tl.program_id(0) % tl.cdiv(OUT, COLS) * COLS
    first, image, m_rows, oy, ox = place_of(tile, n, OH, OW, IMAGES, ROWS)
    first_wide = first.to(tl.int64)
    p_x += first_wide * (H * W * C)
    if POOL:
        b_u = tl.zeros((ROWS, COLS), dtype=tl.float32)
        b_argmax = tl.zeros((ROWS, COLS), dtype=tl.int8)
        for place in tl.range(0, 4):
            b_next = product(
                p_x, p_x, p_filters, d_x, d_x, d_filters, first, image, m_rows,
                oy * 2 + place // 2, ox * 2 + place % 2, start,
                H, W, H, W, C, OUT, SIZE, PAD, IMAGES, True, False, False, UPCAST, PRECISION,
                ROWS, COLS, DEPTH,
            )  # fmt: skip
            if SCALE != 1.0:
                b_next *= SCALE
            if not NORM:  # the argmax and the statistics are of what is stored
                b_next = b_next.to(p_out.dtype.element_ty).to(tl.float32)
            larger = (b_next > b_u) | (b_next != b_next) | (place == 0)  # NaN wins
            b_u = tl.where(larger, b_next, b_u)
            b_argmax = tl.where(larger, place, b_argmax).to(tl.int8)
    else:
        b_u = product(
            p_x, p_x, p_filters, d_x, d_x, d_filters, first, image, m_rows, oy, ox, start,
            H, W, H, W, C, OUT, SIZE, PAD, IMAGES, True, False, False, UPCAST, PRECISION, ROWS, COLS, DEPTH,
        )  # fmt: skip
        if SCALE != 1.0:
            b_u *= SCALE
        if not NORM:
            # Rounded at once, the assembler takes it for part of the loop, and no two wgmmas overlap.
            b_u = (b_u + 0.0).to(p_out.dtype.element_ty).to(tl.float32)

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
        b_y = ACTIVATION(b_centred * b_scale + tl.load(p_bias + columns, mask=m_columns, other=0.0))
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


def tile_constants(problem: Problem, config: Config) -> dict:
    """What the kernels of every order are told."""
    return {
        "C": problem.c,
        "OUT": problem.o,
        "UPCAST": INTERPRETED and problem.dtype in (torch.bfloat16, FLOAT8),
        "ROWS": config.rows,
        "COLS": config.cols,
        "DEPTH": config.depth,
        "num_warps": config.warps,
        "num_stages": config.stages,
    }


def constants(problem: Problem, config: Config) -> dict:
    """What the kernels of implicit matrix products are told."""
    return tile_constants(problem, config) | {
        "H": problem.h,
        "W": problem.w,
        "SIZE": problem.size,
        "PAD": problem.pad,
        "IMAGES": config.order == "images",
        "PRECISION": "tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee",
    }


def undone(problem: Problem) -> float:
    """What takes the scale of filters out of sums of products with them."""
    return 1.0 / filter_scale(problem.c, problem.size) if problem.dtype == FLOAT8 else 1.0


def images_box(x: Tensor | None, config: Config, rows: int, cols: int):
    """A descriptor of boxes of `cols` channels of one pixel of `rows` images, None where there is none. To it
    images are a matrix [n, h * w * c]: a box [rows, 1, 1, cols] would have to be reshaped, for which its tile
    goes through registers on its way to the tensor cores. What of a box lies beyond the pixel's channels is
    the next pixel's, not 0, and belongs to rows or columns of a product that are not stored.
    """
    return box(x.permute(0, 2, 3, 1).flatten(1), rows, cols) if config.descriptors and x is not None else None


def filters_box(filters: Tensor, config: Config, rows: int, cols: int):
    """A descriptor of boxes of filters as a matrix [o, size * size * c], or None."""
    return box(filters.permute(0, 2, 3, 1).flatten(1), rows, cols) if config.descriptors else None


def forward(
    problem: Problem,
    config: Config,
    x: Tensor,
    filters: Tensor,
    out: Tensor,
    *,
    gate: Tensor | None = None,
    argmax: Tensor | None = None,
    partial: Tensor | None = None,
    norm: tuple[Tensor | None, ...] | None = None,
    residual: Tensor | None = None,
    eps: float = 0.0,
    activation: str | None = None,
) -> None:
    """Writes u to `out`; with `partial` [tiles, 2, o] also (mean, M2) of u * gate of each tile, and with a
    pool argmax. With `norm`, running mean and variance, weight and bias, it is y, the whole block.
    """
    oh, ow = problem.output
    launch(
        _conv_fwd,
        (tiling.programs(problem, config),),
        x,
        filters,
        gate,
        *(norm or (None,) * 4),
        residual,
        out,
        argmax,
        partial,
        problem.n,
        images_box(x, config, config.rows, config.depth),
        filters_box(filters, config, config.cols, config.depth),
        OH=oh,
        OW=ow,
        POOL=problem.pool,
        GATE=gate is not None,
        STATISTICS=partial is not None,
        NORM=norm is not None,
        RESIDUAL=residual is not None,
        EPS=eps,
        ACTIVATION=ACTIVATIONS[activation].forward if norm else None,
        SCALE=undone(problem),
        **constants(problem, config),
    )
