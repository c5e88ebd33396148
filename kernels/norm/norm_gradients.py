"""The gradients of batch norm and what surrounds it: passes C and D of norm_act.py, beside norm_passes.py.

    C  sums         dz and its two sums, recomputing z from u
    D  gradient     dv and d gate from dz and the sums; back through the pool

u * gate is recomputed in float32, so the gradient of the gate is exact. The last program of the sums adds up
what all of them left (base/arrival.py), in a fixed order.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..base.arrival import counters, last
from ..base.launch import launch, tl, triton
from ..base.narrow import gradient_scale, saturated
from .activations import ACTIVATIONS
from .norm_passes import _corners, _per_image, float32_like
from .tiles import STAGES, SUMS, SUMS_OF_IMAGES, WARPS, grid, spans, tiles_of


@triton.jit
def _sums(
    p_u,  # [m, C]
    p_gate,  # float32 [n, C]
    p_dy,  # [m, C]
    p_dmean,  # float32 [n, C]
    p_mean,  # [C]
    p_rstd,  # [C]
    p_weight,  # [C]
    p_bias,  # [C]
    p_partial,  # [tiles, 2, C]: sums of dz and of dz * (v - mean)
    p_sums,  # [2, C]: of dz and of dz * xhat
    p_arrived,  # int32, for each block of columns
    p_now,  # int32 [1], which becomes 0, or None
    m,
    HW: tl.constexpr,
    C: tl.constexpr,
    GATE: tl.constexpr,
    DMEAN: tl.constexpr,
    SLOPE: tl.constexpr,
    SPAN: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    STAGES: tl.constexpr,
):
    tile, tiles = tl.program_id(0), tl.num_programs(0)
    cols = tl.program_id(1) * COLS + tl.arange(0, COLS)  # [COLS]
    m_cols = cols < C
    if p_now is not None:
        tl.store(p_now, 0, mask=tile + tl.program_id(1) == 0)
    b_mean = tl.load(p_mean + cols, mask=m_cols, other=0.0)
    b_rstd = tl.load(p_rstd + cols, mask=m_cols, other=0.0)
    b_scale = tl.load(p_weight + cols, mask=m_cols, other=0.0) * b_rstd
    b_bias = tl.load(p_bias + cols, mask=m_cols, other=0.0)
    first = tile.to(tl.int64) * SPAN
    o_all = tl.arange(0, ROWS)[:, None] * C + cols[None, :]  # [ROWS, COLS], from the tile's first row on
    b_sum = tl.zeros((ROWS, COLS), dtype=tl.float32)
    b_sum_centred = tl.zeros((ROWS, COLS), dtype=tl.float32)
    for start in tl.range(0, SPAN, ROWS, num_stages=STAGES):
        rows = tile * SPAN + start + tl.arange(0, ROWS)  # [ROWS]
        m_all = (rows < m)[:, None] & m_cols[None, :]  # [ROWS, COLS]
        o_tile = (first + start) * C
        b_v = tl.load(p_u + o_tile + o_all, mask=m_all, other=0.0).to(tl.float32)
        b_dy = tl.load(p_dy + o_tile + o_all, mask=m_all, other=0.0).to(tl.float32)
        if GATE:
            b_v *= _per_image(p_gate, rows, cols, m_all, HW, C)
        if DMEAN:
            b_dy += _per_image(p_dmean, rows, cols, m_all, HW, C) * (1 / HW)
        b_centred = b_v - b_mean[None, :]
        b_dz = b_dy * SLOPE(b_centred * b_scale[None, :] + b_bias[None, :])
        b_sum += b_dz  # 0 outside the mask, as dy is
        b_sum_centred += b_dz * b_centred
    o_partial = tile * 2 * C + cols
    tl.store(p_partial + o_partial, tl.sum(b_sum, axis=0), mask=m_cols)
    tl.store(p_partial + o_partial + C, tl.sum(b_sum_centred, axis=0), mask=m_cols)

    if last(p_arrived + tl.program_id(1), tiles):
        b_sum = tl.zeros((ROWS, COLS), dtype=tl.float32)
        b_sum_centred = tl.zeros((ROWS, COLS), dtype=tl.float32)
        for start in tl.range(0, tiles, ROWS, loop_unroll_factor=2):  # four loads in flight
            t = start + tl.arange(0, ROWS)[:, None]
            m_tiles = (t < tiles) & m_cols[None, :]  # [ROWS, COLS]
            o_tiles = t * 2 * C + cols[None, :]
            b_sum += tl.load(p_partial + o_tiles, mask=m_tiles, other=0.0, cache_modifier=".cg")
            b_sum_centred += tl.load(p_partial + o_tiles + C, mask=m_tiles, other=0.0, cache_modifier=".cg")
        tl.store(p_sums + cols, tl.sum(b_sum, axis=0), mask=m_cols)
        b_rstd = tl.load(p_rstd + cols, mask=m_cols, other=0.0)  # not kept: registers of the loop above
        tl.store(p_sums + C + cols, tl.sum(b_sum_centred, axis=0) * b_rstd, mask=m_cols)


@triton.jit
def _gradient(
    p_u,  # [m, C]
    p_gate,  # float32 [n, C]
    p_dy,  # [m, C]
    p_dmean,  # float32 [n, C]
    p_argmax,  # int8 [m, C], with POOL
    p_mean,  # [C]
    p_rstd,  # [C]
    p_weight,  # [C]
    p_bias,  # [C]
    p_sums,  # [2, C]: of dz and of dz * xhat
    p_dx,  # [n, H, W, C]
    p_dgate,  # float32 [n, C], with GATE: then a program has one image
    p_dx8,  # bytes of e5m2, as dx, or None
    p_largest,  # float32 [1], of the step before, with dx8
    p_now,  # int32 [1], the bits of the largest |dx|, or None
    m,
    H: tl.constexpr,
    W: tl.constexpr,
    C: tl.constexpr,
    POOL: tl.constexpr,
    GATE: tl.constexpr,
    DMEAN: tl.constexpr,
    SLOPE: tl.constexpr,
    SPAN: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    STAGES: tl.constexpr,
):
    PH: tl.constexpr = H // 2 if POOL else H  # the extents of u
    PW: tl.constexpr = W // 2 if POOL else W
    cols = tl.program_id(1) * COLS + tl.arange(0, COLS)  # [COLS]
    b_mean = tl.load(p_mean + cols, mask=cols < C, other=0.0)
    b_rstd = tl.load(p_rstd + cols, mask=cols < C, other=0.0)
    b_weight = tl.load(p_weight + cols, mask=cols < C, other=0.0)
    b_bias = tl.load(p_bias + cols, mask=cols < C, other=0.0)
    # dv = scale * dz - offset - slope * (v - mean)
    b_scale = b_rstd * b_weight
    b_offset = tl.load(p_sums + cols, mask=cols < C, other=0.0) / m * b_scale
    b_slope = tl.load(p_sums + C + cols, mask=cols < C, other=0.0) / m * b_scale * b_rstd
    first = tl.program_id(0).to(tl.int64) * SPAN
    o_all = tl.arange(0, ROWS)[:, None] * C + cols[None, :]  # [ROWS, COLS], from the tile's first row on
    b_dgate = tl.zeros((ROWS, COLS), dtype=tl.float32)
    b_now = tl.zeros((ROWS, COLS), dtype=tl.int32)
    if p_dx8 is not None:
        scale8 = gradient_scale(p_largest)
    for start in tl.range(0, SPAN, ROWS, num_stages=STAGES):
        o_rows = start + tl.arange(0, ROWS)  # [ROWS]
        rows = tl.program_id(0) * SPAN + o_rows
        m_rows = (o_rows < SPAN) & (rows < m)
        m_all = m_rows[:, None] & (cols < C)[None, :]  # [ROWS, COLS]
        o_tile = (first + start) * C
        b_u = tl.load(p_u + o_tile + o_all, mask=m_all, other=0.0).to(tl.float32)
        b_v = b_u
        if GATE:
            b_gate = _per_image(p_gate, rows, cols, m_all, PH * PW, C)
            b_v = b_u * b_gate
        b_dy = tl.load(p_dy + o_tile + o_all, mask=m_all, other=0.0).to(tl.float32)
        if DMEAN:
            b_dy += _per_image(p_dmean, rows, cols, m_all, PH * PW, C) * (1 / (PH * PW))
        b_centred = b_v - b_mean[None, :]
        b_dz = b_dy * SLOPE(b_centred * b_scale[None, :] + b_bias[None, :])
        b_du = b_dz * b_scale[None, :] - b_offset[None, :] - b_centred * b_slope[None, :]
        if GATE:
            b_dgate += tl.where(m_all, b_du * b_u, 0.0)
            b_du *= b_gate
        b_dx = b_du.to(p_dx.dtype.element_ty)
        if p_now is not None:  # as bits the absolute values have the same order, and NaN is the largest
            b_size = tl.abs(tl.where(m_all, b_dx, 0.0).to(tl.float32)).to(tl.int32, bitcast=True)
            b_now = tl.maximum(b_now, b_size)
        if p_dx8 is not None:
            b_dx8 = saturated(b_dx.to(tl.float32) * scale8, tl.float8e5).to(tl.int8, bitcast=True)
        if POOL:
            b_argmax = tl.load(p_argmax + o_tile + o_all, mask=m_all, other=0)
            p_image = p_dx + (first + start) // (PH * PW) * (H * W * C)
            o_windows = _corners(first + start, rows, cols, H, W, C)
            # The last window of an odd row or column also clears what the pool dropped beside it.
            for place in tl.static_range(9):
                dy, dx = place // 3, place % 3
                m_place = m_all
                if dy == 2:
                    m_place = m_place & ((rows // PW % PH == PH - 1) & (H % 2 == 1))[:, None]
                if dx == 2:
                    m_place = m_place & ((rows % PW == PW - 1) & (W % 2 == 1))[:, None]
                inside = dy < 2 and dx < 2
                b_place = tl.where((b_argmax == dy * 2 + dx) & inside, b_dx, 0.0).to(b_dx.dtype)
                tl.store(p_image + (dy * W + dx) * C + o_windows, b_place, mask=m_place)
                if p_dx8 is not None:
                    p_image8 = p_dx8 + (first + start) // (PH * PW) * (H * W * C)
                    b_place = tl.where((b_argmax == dy * 2 + dx) & inside, b_dx8, 0)
                    tl.store(p_image8 + (dy * W + dx) * C + o_windows, b_place, mask=m_place)
        else:
            tl.store(p_dx + o_tile + o_all, b_dx, mask=m_all)
            if p_dx8 is not None:
                tl.store(p_dx8 + o_tile + o_all, b_dx8, mask=m_all)
    if p_now is not None:
        tl.atomic_max(p_now, tl.max(b_now), sem="relaxed")
    if GATE:
        tl.store(p_dgate + tl.program_id(0) * C + cols, tl.sum(b_dgate, axis=0), mask=cols < C)


def sums(
    u: Tensor,
    gate: Tensor | None,
    dy: Tensor,
    d_mean: Tensor | None,
    stats: Tensor,
    rstd: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    activation: str,
    now: Tensor | None = None,
) -> Tensor:
    """Pass C: the sums of dz and of dz * xhat [2, c], which are d bias and d weight; `now` becomes 0, for
    `gradient`.
    """
    n, c, h, w = u.shape
    m = n * h * w
    blocks = spans(m, c, **(SUMS if gate is None and d_mean is None else SUMS_OF_IMAGES))
    programs = grid(m, c, blocks)
    partial, both = float32_like(u, programs[0], 2, c), float32_like(u, 2, c)
    launch(
        _sums,
        programs,
        u,
        gate if gate is not None else u,
        dy,
        d_mean if d_mean is not None else u,
        stats,
        rstd,
        weight,
        bias,
        partial,
        both,
        counters(u),
        None if now is None else now.view(torch.int32),
        m,
        HW=h * w,
        C=c,
        GATE=gate is not None,
        DMEAN=d_mean is not None,
        SLOPE=ACTIVATIONS[activation].slope,
        STAGES=STAGES,
        num_warps=WARPS,
        **blocks,
    )
    return both


def gradient(
    u: Tensor,
    gate: Tensor | None,
    dy: Tensor,
    d_mean: Tensor | None,
    argmax: Tensor | None,
    stats: Tensor,
    rstd: Tensor,
    weight: Tensor,
    bias: Tensor,
    both_sums: Tensor,
    dx: Tensor,
    d_gate: Tensor,
    *,
    activation: str,
    dx8: Tensor | None = None,
    largest: Tensor | None = None,
    now: Tensor | None = None,
) -> None:
    """Pass D: writes d gate, if there is a gate, and dx: with `argmax` that of what was pooled, else of u.
    With `dx8` also dx as e5m2, scaled by `largest` float32 [1]; to `now` float32 [1] goes the largest |dx|.
    """
    n, c, h, w = u.shape
    m = n * h * w
    blocks = tiles_of(m, c, h * w if gate is not None else 0)
    launch(
        _gradient,
        grid(m, c, blocks),
        u,
        gate if gate is not None else u,
        dy,
        d_mean if d_mean is not None else u,
        argmax if argmax is not None else u,
        stats,
        rstd,
        weight,
        bias,
        both_sums,
        dx,
        d_gate,
        None if dx8 is None else dx8.view(torch.int8),
        largest,
        None if now is None else now.view(torch.int32),
        m,
        H=dx.shape[2],
        W=dx.shape[3],
        C=c,
        POOL=argmax is not None,
        GATE=gate is not None,
        DMEAN=d_mean is not None,
        SLOPE=ACTIVATIONS[activation].slope,
        STAGES=STAGES,
        num_warps=WARPS,
        **blocks,
    )
