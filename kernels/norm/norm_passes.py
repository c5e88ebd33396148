"""The passes of batch norm and what surrounds it, for norm_act.py and for what fuses some of them.

The kernels see rows of c channels, one row per pixel, and are passes that can be launched on their own: a
convolution whose epilogue emits u, argmax and partial statistics replaces the first. Formulas and names are
those of norm_act.py.

    A  statistics   (mean, M2) per tile of rows; with a pool also u and argmax, its place in the window
       merge        of all tiles, by Chan's formula, into mean, variance and rstd
    B  normalise    y from u, and its spatial mean; with a pool and running statistics, all of evaluation

C and D are those of norm_gradients.py. v is never stored: u * gate is recomputed in float32 wherever it is
needed, and x itself is u where nothing pools. Everything is accumulated in float32, tiles in a fixed order;
the last program of a merge adds up what all of them left (base/arrival.py). v - mean is taken before it is
scaled: of a constant channel it is 0, and rstd a million.
Source of the merge: Chan, Golub, LeVeque (1983).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..base.arrival import counters, last
from ..base.launch import cdiv, launch, tl, triton
from .activations import ACTIVATIONS
from .tiles import STATISTICS, WARPS, grid, groups_of, spans, tiles_of


@triton.jit
def _corners(first, rows, cols, H: tl.constexpr, W: tl.constexpr, C: tl.constexpr):
    """Where 2x2 windows begin, from the start of the image of the window `first` on: [ROWS, COLS]."""
    PH: tl.constexpr = H // 2
    PW: tl.constexpr = W // 2
    image = rows // (PH * PW) - (first // (PH * PW)).to(tl.int32)
    y, x = 2 * (rows // PW % PH), 2 * (rows % PW)
    return ((image * H + y) * W + x)[:, None] * C + cols[None, :]


@triton.jit
def _pooled(p_x, first, rows, cols, m_all, H: tl.constexpr, W: tl.constexpr, C: tl.constexpr):
    """The largest of each 2x2 window, in float32, and its place 0..3 in it; of equal ones the first.
    Rows number the windows, and `first` is the smallest of them.
    """
    p_x += first // ((H // 2) * (W // 2)) * (H * W * C)
    o_windows = _corners(first, rows, cols, H, W, C)  # [ROWS, COLS]
    b_max = tl.load(p_x + o_windows, mask=m_all, other=0.0).to(tl.float32)
    b_argmax = tl.zeros(b_max.shape, dtype=tl.int8)
    for place in tl.static_range(1, 4):
        o_place = (place // 2 * W + place % 2) * C
        b_next = tl.load(p_x + o_place + o_windows, mask=m_all, other=0.0).to(tl.float32)
        larger = (b_next > b_max) | (b_next != b_next)  # NaN wins
        b_max = tl.where(larger, b_next, b_max)
        b_argmax = tl.where(larger, place, b_argmax).to(tl.int8)
    return b_max, b_argmax


@triton.jit
def _per_image(p, rows, cols, m_all, HW: tl.constexpr, C: tl.constexpr):
    """Of a float32 [n, C], the values of the images that the rows belong to: [ROWS, COLS]."""
    return tl.load(p + (rows // HW)[:, None] * C + cols[None, :], mask=m_all, other=0.0)


@triton.jit
def _tile_statistics(
    p_x,  # [n, H, W, C]
    p_gate,  # float32 [n, C]
    p_u,  # [m, C], with POOL
    p_argmax,  # int8 [m, C], with POOL
    p_partial,  # [tiles, 2, C]: mean, M2
    m,
    H: tl.constexpr,
    W: tl.constexpr,
    C: tl.constexpr,
    POOL: tl.constexpr,
    GATE: tl.constexpr,
    SPAN: tl.constexpr,  # rows of a program
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    HW: tl.constexpr = (H // 2) * (W // 2) if POOL else H * W
    tile = tl.program_id(0)
    cols = tl.program_id(1) * COLS + tl.arange(0, COLS)  # [COLS]
    # Deviations are taken from the first row, so a constant channel has mean and variance to the last bit.
    first = tile.to(tl.int64) * SPAN
    row = tile * SPAN + tl.arange(0, 1)  # [1]
    m_row = (cols < C)[None, :]  # [1, COLS]
    if POOL:
        b_row, _ = _pooled(p_x, first, row, cols, m_row, H, W, C)
    else:
        b_row = tl.load(p_x + first * C + cols[None, :], mask=m_row, other=0.0)
    b_row = b_row.to(tl.float32)
    if GATE:
        b_row *= _per_image(p_gate, row, cols, m_row, HW, C)

    o_all = tl.arange(0, ROWS)[:, None] * C + cols[None, :]  # [ROWS, COLS], from the tile's first row on
    b_count = tl.zeros((ROWS,), dtype=tl.float32)
    b_mean = tl.zeros((ROWS, COLS), dtype=tl.float32)  # of every ROWS-th row
    b_m2 = tl.zeros((ROWS, COLS), dtype=tl.float32)
    for start in range(0, SPAN, ROWS):
        rows = tile * SPAN + start + tl.arange(0, ROWS)  # [ROWS]
        m_rows = rows < m
        m_all = m_rows[:, None] & (cols < C)[None, :]  # [ROWS, COLS]
        o_tile = (first + start) * C
        if POOL:
            b_u, b_argmax = _pooled(p_x, first + start, rows, cols, m_all, H, W, C)
            tl.store(p_u + o_tile + o_all, b_u.to(p_u.dtype.element_ty), mask=m_all)
            tl.store(p_argmax + o_tile + o_all, b_argmax, mask=m_all)
        else:
            b_u = tl.load(p_x + o_tile + o_all, mask=m_all, other=0.0)
        b_v = b_u.to(tl.float32)
        if GATE:
            b_v *= _per_image(p_gate, rows, cols, m_all, HW, C)
        b_v -= b_row
        b_count += m_rows.to(tl.float32)
        b_delta = tl.where(m_all, b_v - b_mean, 0.0)
        b_mean += b_delta * (1.0 / tl.maximum(b_count, 1.0))[:, None]
        b_m2 += b_delta * (b_v - b_mean)

    b_tile_mean = tl.sum(b_count[:, None] * b_mean, axis=0) / tl.sum(b_count, axis=0)  # [COLS]
    b_between = b_mean - b_tile_mean[None, :]
    b_tile_m2 = tl.sum(b_m2 + b_count[:, None] * b_between * b_between, axis=0)
    o_partial = tile * 2 * C + cols
    tl.store(p_partial + o_partial, tl.sum(b_row, axis=0) + b_tile_mean, mask=cols < C)
    tl.store(p_partial + o_partial + C, b_tile_m2, mask=cols < C)


@triton.jit
def _merged(b_count, b_mean, b_m2, b_from):
    """(rows, mean, M2) of all tiles, from those of each, [TILES, COLS], and a mean [COLS] near theirs: where
    all are equal to it, so is the result, to the last bit. `b_count`, the rows, may be [TILES, 1].
    """
    b_rows = tl.sum(b_count, axis=0)
    b_mean -= b_from[None, :]
    b_offset = tl.sum(b_count * b_mean, axis=0) / tl.maximum(b_rows, 1.0)  # [COLS]
    b_between = b_mean - b_offset[None, :]
    return b_rows, b_from + b_offset, tl.sum(b_m2 + b_count * b_between * b_between, axis=0)


@triton.jit
def _merge_statistics(
    p_partial,  # [tiles, 2, C]: mean, M2
    p_groups,  # [groups, 3, C]: rows, mean, M2 of TILES tiles each
    p_stats,  # [2, C]: mean, unbiased variance
    p_rstd,  # [C]
    p_arrived,  # int32, for each block of columns
    m,
    tiles,
    C: tl.constexpr,
    EPS: tl.constexpr,
    PLACES: tl.constexpr,  # m / PLACES rows are cut into tiles PLACES times, side by side
    SPAN: tl.constexpr,  # rows of a tile; the last PLACES of them have what is left
    TILES: tl.constexpr,  # of a program
    GROUPS: tl.constexpr,  # merged at a time
    COLS: tl.constexpr,
):
    group, groups = tl.program_id(0), tl.num_programs(0)
    cols = tl.program_id(1) * COLS + tl.arange(0, COLS)  # [COLS]
    m_cols = cols < C
    t = group * TILES + tl.arange(0, TILES)[:, None]  # [TILES, 1]
    m_all = (t < tiles) & m_cols[None, :]  # [TILES, COLS]
    o_all = t * 2 * C + cols[None, :]
    b_count = tl.minimum(tl.maximum(m // PLACES - t // PLACES * SPAN, 0), SPAN).to(tl.float32)
    b_from = tl.load(p_partial + group * TILES * 2 * C + cols, mask=m_cols, other=0.0)
    b_mean = tl.load(p_partial + o_all, mask=m_all, other=0.0)
    b_m2 = tl.load(p_partial + o_all + C, mask=m_all, other=0.0)
    b_rows, b_mean, b_m2 = _merged(b_count, b_mean, b_m2, b_from)
    o_group = group * 3 * C + cols
    tl.store(p_groups + o_group, b_rows + tl.zeros((COLS,), tl.float32), mask=m_cols)
    tl.store(p_groups + o_group + C, b_mean, mask=m_cols)
    tl.store(p_groups + o_group + 2 * C, b_m2, mask=m_cols)

    if last(p_arrived + tl.program_id(1), groups):
        b_all = tl.zeros((COLS,), tl.float32)  # rows
        b_all_mean = tl.load(p_groups + C + cols, mask=m_cols, other=0.0, cache_modifier=".cg")
        b_all_m2 = tl.zeros((COLS,), tl.float32)
        for start in range(0, groups, GROUPS):
            g = start + tl.arange(0, GROUPS)[:, None]
            m_groups = (g < groups) & m_cols[None, :]  # [GROUPS, COLS]
            o_groups = g * 3 * C + cols[None, :]
            b_counts = tl.load(p_groups + o_groups, mask=m_groups, other=0.0, cache_modifier=".cg")
            b_means = tl.load(p_groups + o_groups + C, mask=m_groups, other=0.0, cache_modifier=".cg")
            b_m2s = tl.load(p_groups + o_groups + 2 * C, mask=m_groups, other=0.0, cache_modifier=".cg")
            b_more, b_its_mean, b_its_m2 = _merged(b_counts, b_means, b_m2s, b_all_mean)
            b_part, b_delta = b_more / tl.maximum(b_all + b_more, 1.0), b_its_mean - b_all_mean
            b_all_m2 += b_its_m2 + b_delta * b_delta * (b_all * b_part)
            b_all_mean += b_delta * b_part
            b_all += b_more
        tl.store(p_stats + cols, b_all_mean, mask=m_cols)
        tl.store(p_stats + C + cols, b_all_m2 / (m - 1), mask=m_cols)
        tl.store(p_rstd + cols, 1.0 / tl.sqrt(b_all_m2 / m + EPS), mask=m_cols)


@triton.jit
def _normalise(
    p_x,  # [n, H, W, C]
    p_gate,  # float32 [n, C]
    p_mean,  # [C]
    p_rstd,  # [C], with RUNNING the variance
    p_weight,  # [C]
    p_bias,  # [C]
    p_residual,  # [m, C]
    p_y,  # [m, C]
    p_spatial,  # float32 [n, C], with SPATIAL: then a program has one image
    m,
    H: tl.constexpr,
    W: tl.constexpr,
    C: tl.constexpr,
    POOL: tl.constexpr,
    GATE: tl.constexpr,
    RESIDUAL: tl.constexpr,
    SPATIAL: tl.constexpr,
    RUNNING: tl.constexpr,
    EPS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SPAN: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    HW: tl.constexpr = (H // 2) * (W // 2) if POOL else H * W
    cols = tl.program_id(1) * COLS + tl.arange(0, COLS)  # [COLS]
    b_mean = tl.load(p_mean + cols, mask=cols < C, other=0.0)
    b_rstd = tl.load(p_rstd + cols, mask=cols < C, other=0.0)
    if RUNNING:
        b_rstd = 1.0 / tl.sqrt(tl.maximum(b_rstd, 0.0) + EPS)
    b_weight = tl.load(p_weight + cols, mask=cols < C, other=0.0)
    b_bias = tl.load(p_bias + cols, mask=cols < C, other=0.0)
    b_scale = b_rstd * b_weight
    first = tl.program_id(0).to(tl.int64) * SPAN
    o_all = tl.arange(0, ROWS)[:, None] * C + cols[None, :]  # [ROWS, COLS], from the tile's first row on
    b_total = tl.zeros((ROWS, COLS), dtype=tl.float32)
    for start in range(0, SPAN, ROWS):
        o_rows = start + tl.arange(0, ROWS)  # [ROWS]
        rows = tl.program_id(0) * SPAN + o_rows
        m_all = ((o_rows < SPAN) & (rows < m))[:, None] & (cols < C)[None, :]  # [ROWS, COLS]
        o_tile = (first + start) * C
        if POOL:
            b_u, _ = _pooled(p_x, first + start, rows, cols, m_all, H, W, C)
        else:
            b_u = tl.load(p_x + o_tile + o_all, mask=m_all, other=0.0)
        b_v = b_u.to(tl.float32)
        if GATE:
            b_v *= _per_image(p_gate, rows, cols, m_all, HW, C)
        b_y = ACTIVATION((b_v - b_mean[None, :]) * b_scale[None, :] + b_bias[None, :])
        if RESIDUAL:
            b_y += tl.load(p_residual + o_tile + o_all, mask=m_all, other=0.0).to(tl.float32)
        b_stored = b_y.to(p_y.dtype.element_ty)
        tl.store(p_y + o_tile + o_all, b_stored, mask=m_all)
        if SPATIAL:
            b_total += tl.where(m_all, b_stored.to(tl.float32), 0.0)
    if SPATIAL:
        tl.store(p_spatial + tl.program_id(0) * C + cols, tl.sum(b_total, axis=0) / HW, mask=cols < C)


def image_like(
    like: Tensor, h: int, w: int, dtype: torch.dtype | None = None, channels: int | None = None
) -> Tensor:
    """An unwritten channels-last tensor of the images of `like`, and of its channels where not told."""
    return torch.empty(
        (len(like), channels or like.shape[1], h, w),
        dtype=dtype or like.dtype,
        device=like.device,
        memory_format=torch.channels_last,
    )


def float32_like(like: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=like.device)


def shrunk(x: Tensor, pool: bool) -> tuple[int, int]:
    h, w = x.shape[2:]
    return (h // 2, w // 2) if pool else (h, w)


def statistics(
    x: Tensor, gate: Tensor | None, u: Tensor, argmax: Tensor, *, pool: bool
) -> tuple[Tensor, int]:
    """Pass A: partial statistics [tiles, 2, c] (mean, M2) of v and the rows of a tile; `u` and `argmax` are
    written where `pool`.
    """
    n, c, h, w = x.shape
    oh, ow = shrunk(x, pool)
    m = n * oh * ow
    blocks = spans(m, c, **STATISTICS)
    programs = grid(m, c, blocks)
    partial = float32_like(x, programs[0], 2, c)
    launch(
        _tile_statistics,
        programs,
        x,
        gate if gate is not None else x,
        u,
        argmax,
        partial,
        m,
        H=h,
        W=w,
        C=c,
        POOL=pool,
        GATE=gate is not None,
        num_warps=WARPS,
        **blocks,
    )
    return partial, blocks["SPAN"]


def merge(partial: Tensor, span: int, m: int, eps: float, places: int = 1) -> tuple[Tensor, Tensor]:
    """The rest of pass A: statistics [2, c] (mean, unbiased variance) and rstd [c] of `m` rows, from those of
    tiles of `span` rows, the last of which may be shorter. Where the rows are images at some `places`, tile i
    is of place i % places, and the last tile of each is shorter.
    """
    tiles, _, c = partial.shape
    stats, rstd = float32_like(partial, 2, c), float32_like(partial, c)
    blocks = groups_of(tiles, c)
    groups = cdiv(tiles, blocks["TILES"])
    launch(
        _merge_statistics,
        (groups, cdiv(c, blocks["COLS"])),
        partial,
        float32_like(partial, groups, 3, c),
        stats,
        rstd,
        counters(partial),
        m,
        tiles,
        C=c,
        EPS=eps,
        PLACES=places,
        SPAN=span,
        **blocks,
    )
    return stats, rstd


def normalise(
    x: Tensor,
    gate: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    y: Tensor,
    spatial: Tensor,
    *,
    activation: str,
    pool: bool = False,
    running: bool = False,
    eps: float = 0.0,
) -> None:
    """Pass B: writes y, and where `spatial` is not empty its spatial mean. With `pool`, x is pooled on the
    way; with `running`, `rstd` is the variance.
    """
    n, c, h, w = x.shape
    oh, ow = y.shape[2:]
    m = n * oh * ow
    blocks = tiles_of(m, c, oh * ow if spatial.numel() else 0)
    launch(
        _normalise,
        grid(m, c, blocks),
        x,
        gate if gate is not None else x,
        mean,
        rstd,
        weight,
        bias,
        residual if residual is not None else x,
        y,
        spatial,
        m,
        H=h,
        W=w,
        C=c,
        POOL=pool,
        GATE=gate is not None,
        RESIDUAL=residual is not None,
        SPATIAL=spatial.numel() > 0,
        RUNNING=running,
        EPS=eps,
        ACTIVATION=ACTIVATIONS[activation].forward,
        num_warps=WARPS,
        **blocks,
    )
