"""Batch normalisation and what surrounds it in a block: [pool] -> [x gate] -> BN -> activation [+ residual].

    u = maxpool2x2(x)                 optional; drops an odd last row and column
    v = u * gate                      optional
    z = (v - mean) * rstd * weight + bias,     rstd = 1 / sqrt(max(var, 0) + eps)
    y = act(z) + residual             residual optional, added after the activation

x [n, c, h, w] channels-last, gate [n, c], residual as y. In training mean and var are the batch's (var
biased); in evaluation they are the running ones. Statistics, weight, bias and running buffers are float32
in every dtype; only a float64 network computes its batch statistics in float64.

With m = n * h' * w' values per channel and xhat = (v - mean) * rstd, the gradients are

    dz = (dy + d_mean / (h' * w')) * act'(z)               d_mean that of the spatial mean of y
    d bias = sum of dz,   d weight = sum of dz * xhat      per channel
    dv = rstd * weight * (dz - d bias / m - xhat * d weight / m)
    du = dv * gate,       d gate = sum of dv * u           per image and channel
    d x = du at the first of the largest of its window, else 0

The kernels see rows of c channels, one row per pixel, and are passes that can be launched on their own: a
convolution whose epilogue emits u, argmax and partial statistics replaces the first.

    A  statistics   (mean, M2) per tile of rows; with a pool also u and argmax, its place in the window
       merge        of all tiles, by Chan's formula, into mean, variance and rstd
    B  normalise    y from u, and its spatial mean; with a pool and running statistics, all of evaluation
    C  sums         dz and its two sums, recomputing z from u
    D  gradient     dv and d gate from dz and the sums; back through the pool

v is never stored: u * gate is recomputed in float32 wherever it is needed, so the gradient of the gate is
exact, and x itself is u where nothing pools. Everything is accumulated in float32, tiles in a fixed order.

Bytes, training: x read twice and y written once forward; x and dy read twice and dx written once backward;
with a pool x read once, u written once and read once in place of x, and u in its place backward.
Sources: Ioffe and Szegedy, arXiv 1502.03167; Chan, Golub, LeVeque (1983).
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from .activations import activate, activation_slope
from .launch import cdiv, expect, launch, power_of_2, tl, triton
from .spec import Case, KernelSpec

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,  # exact, by erf
    "silu": F.silu,
    "relu": F.relu,
    "celu": lambda z: F.celu(z, alpha=0.3),
}


TILE = 1 << 19  # values whose float32 copy stays in a CPU's cache


def _statistics(rows: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Mean and biased variance [c] of rows [m, c], in `dtype`.

    Two passes over each tile of rows give its mean and M2, the sum of squared deviations from it; tiles merge
    as in Chan, Golub, LeVeque (1983). PyTorch's own training kernel adds a channel up term by term on a CPU,
    which at a quarter of a million values is wrong by 5e-5, differently for each thread count. Off a CPU, or
    compiled, all rows are one tile.
    """
    whole = not rows.is_cpu or torch.compiler.is_compiling()
    mean = m2 = seen = 0
    for tile in rows.split(len(rows) if whole else max(1, TILE // rows.shape[1])):
        wide, count = tile.to(dtype), len(tile)
        tile_mean = wide.mean(0)
        delta, seen = tile_mean - mean, seen + count
        m2 = m2 + (wide - tile_mean).square_().sum(0) + delta.square() * (count * (seen - count) / seen)
        mean = mean + delta * (count / seen)
    return mean, m2 / seen


class _Normalise(torch.autograd.Function):
    """Batch norm over the batch, and its mean and biased variance [c], which carry no gradient."""

    @staticmethod
    def forward(ctx, v: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        rows = v.permute(0, 2, 3, 1).flatten(0, 2)  # [n * h * w, c], a view where v is channels-last
        mean, variance = _statistics(rows, weight.dtype)
        ctx.save_for_backward(v, weight, mean, (variance + eps).rsqrt())
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance)
        return F.batch_norm(v, mean, variance, weight, bias, False, 0.0, eps), mean, variance

    @staticmethod
    def backward(ctx, dz: Tensor, *_) -> tuple[Tensor | None, ...]:
        v, weight, mean, rstd = ctx.saved_tensors
        grads = torch.ops.aten.native_batch_norm_backward(
            dz, v, weight, None, None, mean, rstd, True, ctx.eps, [True, True, True]
        )
        return *grads, None


def reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running: Tensor,
    *,
    training: bool,
    eps: float,
    activation: str,
    pool: bool = False,
    gate: Tensor | None = None,
    residual: Tensor | None = None,
    spatial_mean: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Returns y, the batch's statistics [2, c] (mean and unbiased variance; in evaluation `running`
    itself), and with `spatial_mean` the mean of y over h and w, [n, c] in float32 or wider, else None.

    `running` [2, c] holds mean and variance; it is read in evaluation and never written here (see
    `running_stats`). Raises ValueError when training with one value per channel.
    """
    v = F.max_pool2d(x, 2) if pool else x
    if gate is not None:
        v = v * gate[:, :, None, None].to(v.dtype)
    wide = torch.promote_types(v.dtype, torch.float32)
    weight, bias = weight.to(wide), bias.to(wide)
    if training:
        count = v.numel() // v.shape[1]
        if count < 2:
            raise ValueError(
                f"x: got one value per channel (shape {tuple(v.shape)}), training needs two or more"
            )
        z, mean, variance = _Normalise.apply(v, weight, bias, eps)
        stats = torch.stack((mean, variance * (count / (count - 1)))).to(running.dtype)
    else:
        z = F.batch_norm(v, running[0].to(wide), running[1].to(wide), weight, bias, False, 0.0, eps)
        stats = running
    y = ACTIVATIONS[activation](z)
    y = y if residual is None else y + residual
    if not spatial_mean:
        return y, stats, None
    return y, stats, y.permute(0, 2, 3, 1).sum((1, 2), dtype=wide) / (y.shape[2] * y.shape[3])


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
def _merge_statistics(
    p_partial,  # [tiles, 2, C]: mean, M2
    p_stats,  # [2, C]: mean, unbiased variance
    p_rstd,  # [C]
    m,
    tiles,
    C: tl.constexpr,
    EPS: tl.constexpr,
    SPAN: tl.constexpr,  # rows of a tile; the last has what is left of m
    TILES: tl.constexpr,
    COLS: tl.constexpr,
):
    cols = tl.program_id(0) * COLS + tl.arange(0, COLS)  # [COLS]
    b_first = tl.load(p_partial + cols, mask=cols < C, other=0.0)
    b_delta = tl.zeros((COLS,), dtype=tl.float32)
    for start in range(0, tiles, TILES):
        t = start + tl.arange(0, TILES)[:, None]
        b_count = tl.minimum(tl.maximum(m - t * SPAN, 0), SPAN).to(tl.float32)  # [TILES, 1]
        m_all = (t < tiles) & (cols < C)[None, :]  # [TILES, COLS]
        b_mean = tl.load(p_partial + t * 2 * C + cols[None, :], mask=m_all, other=0.0)
        b_delta += tl.sum(b_count * (b_mean - b_first[None, :]), axis=0)
    b_all_mean = b_first + b_delta / m
    b_m2 = tl.zeros((COLS,), dtype=tl.float32)
    for start in range(0, tiles, TILES):
        t = start + tl.arange(0, TILES)[:, None]
        b_count = tl.minimum(tl.maximum(m - t * SPAN, 0), SPAN).to(tl.float32)
        m_all = (t < tiles) & (cols < C)[None, :]
        o_all = t * 2 * C + cols[None, :]
        b_between = tl.load(p_partial + o_all, mask=m_all, other=0.0) - b_all_mean[None, :]
        b_within = tl.load(p_partial + o_all + C, mask=m_all, other=0.0)
        b_m2 += tl.sum(b_within + b_count * b_between * b_between, axis=0)
    b_m2 = tl.maximum(b_m2, 0.0)
    tl.store(p_stats + cols, b_all_mean, mask=cols < C)
    tl.store(p_stats + C + cols, b_m2 / (m - 1), mask=cols < C)
    tl.store(p_rstd + cols, 1.0 / tl.sqrt(b_m2 / m + EPS), mask=cols < C)


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
        b_z = (b_v - b_mean[None, :]) * b_rstd[None, :] * b_weight[None, :] + b_bias[None, :]
        b_y = activate(b_z, ACTIVATION)
        if RESIDUAL:
            b_y += tl.load(p_residual + o_tile + o_all, mask=m_all, other=0.0).to(tl.float32)
        b_stored = b_y.to(p_y.dtype.element_ty)
        tl.store(p_y + o_tile + o_all, b_stored, mask=m_all)
        if SPATIAL:
            b_total += tl.where(m_all, b_stored.to(tl.float32), 0.0)
    if SPATIAL:
        tl.store(p_spatial + tl.program_id(0) * C + cols, tl.sum(b_total, axis=0) / HW, mask=cols < C)


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
    p_partial,  # [tiles, 2, C]: sums of dz and of dz * xhat
    m,
    HW: tl.constexpr,
    C: tl.constexpr,
    GATE: tl.constexpr,
    DMEAN: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SPAN: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    tile = tl.program_id(0)
    cols = tl.program_id(1) * COLS + tl.arange(0, COLS)  # [COLS]
    b_mean = tl.load(p_mean + cols, mask=cols < C, other=0.0)
    b_rstd = tl.load(p_rstd + cols, mask=cols < C, other=0.0)
    b_weight = tl.load(p_weight + cols, mask=cols < C, other=0.0)
    b_bias = tl.load(p_bias + cols, mask=cols < C, other=0.0)
    first = tile.to(tl.int64) * SPAN
    o_all = tl.arange(0, ROWS)[:, None] * C + cols[None, :]  # [ROWS, COLS], from the tile's first row on
    b_sum = tl.zeros((ROWS, COLS), dtype=tl.float32)
    b_sum_xhat = tl.zeros((ROWS, COLS), dtype=tl.float32)
    for start in range(0, SPAN, ROWS):
        rows = tile * SPAN + start + tl.arange(0, ROWS)  # [ROWS]
        m_all = (rows < m)[:, None] & (cols < C)[None, :]  # [ROWS, COLS]
        o_tile = (first + start) * C
        b_v = tl.load(p_u + o_tile + o_all, mask=m_all, other=0.0).to(tl.float32)
        if GATE:
            b_v *= _per_image(p_gate, rows, cols, m_all, HW, C)
        b_dy = tl.load(p_dy + o_tile + o_all, mask=m_all, other=0.0).to(tl.float32)
        if DMEAN:
            b_dy += _per_image(p_dmean, rows, cols, m_all, HW, C) / HW
        b_xhat = (b_v - b_mean[None, :]) * b_rstd[None, :]
        b_dz = b_dy * activation_slope(b_xhat * b_weight[None, :] + b_bias[None, :], ACTIVATION)
        b_dz = tl.where(m_all, b_dz, 0.0)
        b_sum += b_dz
        b_sum_xhat += b_dz * b_xhat
    o_partial = tile * 2 * C + cols
    tl.store(p_partial + o_partial, tl.sum(b_sum, axis=0), mask=cols < C)
    tl.store(p_partial + o_partial + C, tl.sum(b_sum_xhat, axis=0), mask=cols < C)


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
    m,
    H: tl.constexpr,
    W: tl.constexpr,
    C: tl.constexpr,
    POOL: tl.constexpr,
    GATE: tl.constexpr,
    DMEAN: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SPAN: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    PH: tl.constexpr = H // 2 if POOL else H  # the extents of u
    PW: tl.constexpr = W // 2 if POOL else W
    cols = tl.program_id(1) * COLS + tl.arange(0, COLS)  # [COLS]
    b_mean = tl.load(p_mean + cols, mask=cols < C, other=0.0)
    b_rstd = tl.load(p_rstd + cols, mask=cols < C, other=0.0)
    b_weight = tl.load(p_weight + cols, mask=cols < C, other=0.0)
    b_bias = tl.load(p_bias + cols, mask=cols < C, other=0.0)
    b_mean_dz = tl.load(p_sums + cols, mask=cols < C, other=0.0) / m
    b_mean_dz_xhat = tl.load(p_sums + C + cols, mask=cols < C, other=0.0) / m
    first = tl.program_id(0).to(tl.int64) * SPAN
    o_all = tl.arange(0, ROWS)[:, None] * C + cols[None, :]  # [ROWS, COLS], from the tile's first row on
    b_dgate = tl.zeros((ROWS, COLS), dtype=tl.float32)
    for start in range(0, SPAN, ROWS):
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
            b_dy += _per_image(p_dmean, rows, cols, m_all, PH * PW, C) / (PH * PW)
        b_xhat = (b_v - b_mean[None, :]) * b_rstd[None, :]
        b_dz = b_dy * activation_slope(b_xhat * b_weight[None, :] + b_bias[None, :], ACTIVATION)
        b_du = b_dz - b_mean_dz[None, :] - b_xhat * b_mean_dz_xhat[None, :]
        b_du *= (b_rstd * b_weight)[None, :]
        if GATE:
            b_dgate += tl.where(m_all, b_du * b_u, 0.0)
            b_du *= b_gate
        b_dx = b_du.to(p_dx.dtype.element_ty)
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
        else:
            tl.store(p_dx + o_tile + o_all, b_dx, mask=m_all)
    if GATE:
        tl.store(p_dgate + tl.program_id(0) * C + cols, tl.sum(b_dgate, axis=0), mask=cols < C)


BLOCK = 2048  # values of a tile
PROGRAMS = 512  # at most about as many where each leaves a partial sum
MERGED = 512  # tiles merged at a time
WARPS = 8


def _spans(m: int, c: int) -> dict[str, int]:
    """SPAN, ROWS and COLS of a kernel that leaves a partial sum per program: few programs, long spans."""
    cols = min(64, power_of_2(c))
    rows = BLOCK // cols
    steps = cdiv(cdiv(m, rows) * cdiv(c, cols), PROGRAMS)
    return {"SPAN": rows * steps, "ROWS": rows, "COLS": cols}


def _tiles(c: int, image: int = 0) -> dict[str, int]:
    """Those of a kernel that leaves none, or one per image of `image` rows: a span is one tile or image."""
    cols = min(64, power_of_2(c))
    if not image:
        return {"SPAN": BLOCK // cols, "ROWS": BLOCK // cols, "COLS": cols}
    rows = min(BLOCK // cols, power_of_2(image))
    return {"SPAN": image, "ROWS": rows, "COLS": min(power_of_2(c), max(cols, BLOCK // rows))}


def _grid(m: int, c: int, blocks: dict[str, int]) -> tuple[int, int]:
    return cdiv(m, blocks["SPAN"]), cdiv(c, blocks["COLS"])


def _map(like: Tensor, h: int, w: int, dtype: torch.dtype | None = None) -> Tensor:
    """An unwritten channels-last tensor of the images and channels of `like`."""
    return torch.empty(
        (*like.shape[:2], h, w),
        dtype=dtype or like.dtype,
        device=like.device,
        memory_format=torch.channels_last,
    )


def _float32(like: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=like.device)


def _shrunk(x: Tensor, pool: bool) -> tuple[int, int]:
    h, w = x.shape[2:]
    return (h // 2, w // 2) if pool else (h, w)


def statistics(
    x: Tensor, gate: Tensor | None, u: Tensor, argmax: Tensor, *, pool: bool
) -> tuple[Tensor, int]:
    """Pass A: partial statistics [tiles, 2, c] (mean, M2) of v and the rows of a tile; `u` and `argmax` are
    written where `pool`.
    """
    n, c, h, w = x.shape
    oh, ow = _shrunk(x, pool)
    m = n * oh * ow
    blocks = _spans(m, c)
    grid = _grid(m, c, blocks)
    partial = _float32(x, grid[0], 2, c)
    launch(
        _tile_statistics,
        grid,
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


def merge(partial: Tensor, span: int, m: int, eps: float) -> tuple[Tensor, Tensor]:
    """The rest of pass A: statistics [2, c] (mean, unbiased variance) and rstd [c] of `m` rows, from those of
    tiles of `span` rows, the last of which may be shorter.
    """
    tiles, _, c = partial.shape
    stats, rstd = _float32(partial, 2, c), _float32(partial, c)
    cols = min(8, power_of_2(c))
    launch(
        _merge_statistics,
        (cdiv(c, cols),),
        partial,
        stats,
        rstd,
        m,
        tiles,
        C=c,
        EPS=eps,
        SPAN=span,
        TILES=min(MERGED, power_of_2(tiles)),
        COLS=cols,
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
    blocks = _tiles(c, oh * ow if spatial.numel() else 0)
    launch(
        _normalise,
        _grid(m, c, blocks),
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
        ACTIVATION=activation,
        num_warps=WARPS,
        **blocks,
    )


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
) -> Tensor:
    """Pass C: the sums of dz and of dz * xhat [2, c], which are d bias and d weight."""
    n, c, h, w = u.shape
    m = n * h * w
    blocks = _spans(m, c)
    grid = _grid(m, c, blocks)
    partial = _float32(u, grid[0], 2, c)
    launch(
        _sums,
        grid,
        u,
        gate if gate is not None else u,
        dy,
        d_mean if d_mean is not None else u,
        stats,
        rstd,
        weight,
        bias,
        partial,
        m,
        HW=h * w,
        C=c,
        GATE=gate is not None,
        DMEAN=d_mean is not None,
        ACTIVATION=activation,
        num_warps=WARPS,
        **blocks,
    )
    return partial.sum(0)


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
) -> None:
    """Pass D: writes d gate, if there is a gate, and dx: with `argmax` that of what was pooled, else of u."""
    n, c, h, w = u.shape
    m = n * h * w
    blocks = _tiles(c, h * w if gate is not None else 0)
    launch(
        _gradient,
        _grid(m, c, blocks),
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
        m,
        H=dx.shape[2],
        W=dx.shape[3],
        C=c,
        POOL=argmax is not None,
        GATE=gate is not None,
        DMEAN=d_mean is not None,
        ACTIVATION=activation,
        num_warps=WARPS,
        **blocks,
    )


def _outputs(x: Tensor, pool: bool, spatial_mean: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Unwritten y, u, argmax and spatial mean; empty where there is none, since an op cannot return None."""
    n, c = x.shape[:2]
    oh, ow = _shrunk(x, pool)
    nothing = (0,) * 4
    return (
        _map(x, oh, ow),
        _map(x, oh, ow) if pool else x.new_empty(nothing),
        _map(x, oh, ow, torch.int8) if pool else x.new_empty(nothing, dtype=torch.int8),
        _float32(x, n, c) if spatial_mean else _float32(x, 0, 0),
    )


@torch.library.custom_op("hlb::norm_act", mutates_args=(), device_types=("cuda", "cpu"))
def _train(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    gate: Tensor | None,
    residual: Tensor | None,
    eps: float,
    activation: str,
    pool: bool,
    spatial_mean: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(y, statistics, spatial mean, u, argmax, rstd)"""
    y, u, argmax, spatial = _outputs(x, pool, spatial_mean)
    partial, span = statistics(x, gate, u, argmax, pool=pool)
    stats, rstd = merge(partial, span, y.numel() // y.shape[1], eps)
    kept = u if pool else x
    normalise(kept, gate, stats, rstd, weight, bias, residual, y, spatial, activation=activation)
    return y, stats, spatial, u, argmax, rstd


@_train.register_fake
def _(x, weight, bias, gate, residual, eps, activation, pool, spatial_mean):
    y, u, argmax, spatial = _outputs(x, pool, spatial_mean)
    c = x.shape[1]
    return y, _float32(x, 2, c), spatial, u, argmax, _float32(x, c)


@torch.library.custom_op("hlb::norm_act_backward", mutates_args=(), device_types=("cuda", "cpu"))
def _train_backward(
    argmax: Tensor,
    dy: Tensor,
    d_mean: Tensor | None,
    u: Tensor,
    stats: Tensor,
    rstd: Tensor,
    weight: Tensor,
    bias: Tensor,
    gate: Tensor | None,
    h: int,
    w: int,
    activation: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """(d x [n, c, h, w], (d bias, d weight) [2, c], d gate)"""
    dx, d_gate = _gradients(u, gate, h, w)
    saved = (u, gate, dy, d_mean)
    both = sums(*saved, stats, rstd, weight, bias, activation=activation)
    places = argmax if argmax.numel() else None
    gradient(*saved, places, stats, rstd, weight, bias, both, dx, d_gate, activation=activation)
    return dx, both, d_gate


def _gradients(u: Tensor, gate: Tensor | None, h: int, w: int) -> tuple[Tensor, Tensor]:
    """Unwritten d x and d gate."""
    return _map(u, h, w), _float32(u, 0, 0) if gate is None else torch.empty_like(gate)


@_train_backward.register_fake
def _(argmax, dy, d_mean, u, stats, rstd, weight, bias, gate, h, w, activation):
    dx, d_gate = _gradients(u, gate, h, w)
    return dx, _float32(u, 2, u.shape[1]), d_gate


def _setup(ctx, inputs, output):
    x, weight, bias, gate, residual, _, activation, pool, spatial_mean = inputs
    y, stats, spatial, u, argmax, rstd = output
    ctx.save_for_backward(u if pool else x, argmax, stats, rstd, weight, bias, gate)
    ctx.map, ctx.activation, ctx.residual = x.shape[2:], activation, residual is not None
    ctx.mark_non_differentiable(stats, u, argmax, rstd, *(() if spatial_mean else (spatial,)))
    ctx.set_materialize_grads(False)


def _backward(ctx, dy, d_stats, d_mean, *_):
    u, argmax, stats, rstd, weight, bias, gate = ctx.saved_tensors
    dy = torch.zeros_like(u) if dy is None else dy.contiguous(memory_format=torch.channels_last)
    d_mean = None if d_mean is None else d_mean.contiguous()
    dx, (d_bias, d_weight), d_gate = _train_backward(
        argmax, dy, d_mean, u, stats, rstd, weight, bias, gate, *ctx.map, ctx.activation
    )
    d_residual = None
    if ctx.residual:
        pixels = u.shape[2] * u.shape[3]
        d_residual = dy if d_mean is None else (dy + d_mean[:, :, None, None] / pixels).to(dy.dtype)
    return dx, d_weight, d_bias, None if gate is None else d_gate, d_residual, None, None, None, None


_train.register_autograd(_backward, setup_context=_setup)


@torch.library.custom_op("hlb::norm_act_eval", mutates_args=(), device_types=("cuda", "cpu"))
def _evaluate(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running: Tensor,
    gate: Tensor | None,
    residual: Tensor | None,
    eps: float,
    activation: str,
    pool: bool,
    spatial_mean: bool,
) -> tuple[Tensor, Tensor]:
    """(y, spatial mean)"""
    y, _, _, spatial = _outputs(x, pool, spatial_mean)
    mean, variance = running
    normalise(
        x,
        gate,
        mean,
        variance,
        weight,
        bias,
        residual,
        y,
        spatial,
        activation=activation,
        pool=pool,
        running=True,
        eps=eps,
    )
    return y, spatial


@_evaluate.register_fake
def _(x, weight, bias, running, gate, residual, eps, activation, pool, spatial_mean):
    y, _, _, spatial = _outputs(x, pool, spatial_mean)
    return y, spatial


def op(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running: Tensor,
    *,
    training: bool,
    eps: float,
    activation: str,
    pool: bool = False,
    gate: Tensor | None = None,
    residual: Tensor | None = None,
    spatial_mean: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """As `reference`, for x channels-last, and float32 weight, bias, running and gate; without gradient in
    evaluation.

    `running` may be columns of a wider buffer. Raises ValueError for a wrong shape, dtype, layout or device,
    or an unknown activation, naming the argument.
    """
    expect("x", x, None, None, None, None, channels_last=True)
    n, c = x.shape[:2]
    oh, ow = _shrunk(x, pool)
    narrow = {"dtypes": (torch.float32,), "device": x.device}
    expect("weight", weight, c, **narrow)
    expect("bias", bias, c, **narrow)
    for row in running if running.dim() == 2 and len(running) == 2 else ():
        expect("running", row, c, **narrow)
    if running.dim() != 2 or len(running) != 2:
        expect("running", running, 2, c, **narrow)
    if gate is not None:
        expect("gate", gate, n, c, **narrow)
    if residual is not None:
        expect("residual", residual, n, c, oh, ow, dtypes=(x.dtype,), device=x.device, channels_last=True)
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation: got {activation!r}, accepted are {', '.join(ACTIVATIONS)}")
    count = n * oh * ow
    if count == 0 or c == 0:
        raise ValueError(f"x: got shape {list(x.shape)}, accepted is one with an output")
    if not training:
        y, spatial = _evaluate(x, weight, bias, running, gate, residual, eps, activation, pool, spatial_mean)
        return y, running, spatial if spatial_mean else None
    if count < 2:
        raise ValueError(f"x: got one value per channel (shape {(n, c, oh, ow)}), training needs two or more")
    y, stats, spatial, *_ = _train(x, weight, bias, gate, residual, eps, activation, pool, spatial_mean)
    return y, stats, spatial if spatial_mean else None


def _make(case: Case, dtype: torch.dtype, device) -> dict:
    def image(h: int, w: int) -> Tensor:
        values = torch.randn(case.n, h, w, case.c, device=device) + case.offset
        return values.to(dtype).permute(0, 3, 1, 2)

    x = image(*case.map)
    return {
        "x": x,
        "weight": torch.rand(case.c, device=device) + 0.5,
        "bias": torch.randn(case.c, device=device),
        "running": torch.rand(2, case.c, device=device) + 0.5,
        "training": case.training,
        "eps": 1e-12,
        "activation": case.activation,
        "pool": case.pool,
        "gate": torch.rand(case.n, case.c, device=device) if case.gate else None,
        "residual": image(*_shrunk(x, case.pool)) if case.residual else None,
        "spatial_mean": case.spatial,
    }


def _count(case: Case) -> int:
    """Values per channel of y."""
    h, w = case.map
    return case.n * ((h // 2) * (w // 2) if case.pool else h * w)


def _images(case: Case, span: int) -> int:
    """How many images each program of so many rows touches, added up."""
    m = _count(case)
    image = m // case.n
    return sum((min(first + span, m) - 1) // image - first // image + 1 for first in range(0, m, span))


def _bytes(case: Case, dtype: torch.dtype) -> dict[str, int]:
    m, c = _count(case), case.c
    values, channels = m * c * dtype.itemsize, 4 * c  # bytes of y, of a float32 a channel
    image = m // case.n
    window = 4 if case.pool else 1
    few = _spans(m, c)["SPAN"]
    forward = _tiles(c, image if case.spatial else 0)["SPAN"]
    backward = _tiles(c, image if case.gate else 0)["SPAN"]

    def parameters(span: int, rows: int, images: int) -> int:
        return (cdiv(m, span) * rows + _images(case, span) * images) * channels

    counts = {
        "_normalise": ((1 if case.training else window) + case.residual + 1) * values
        + parameters(forward, 4, case.gate)
        + case.spatial * case.n * channels
    }
    if not case.training:
        return counts
    return counts | {
        "_tile_statistics": (window + case.pool) * values + case.pool * m * c + parameters(few, 2, case.gate),
        "_merge_statistics": (cdiv(m, few) * 2 + 3) * channels,
        "_sums": 2 * values + parameters(few, 4 + 2, case.gate + case.spatial),
        "_gradient": 2 * values
        + case.pool * m * c
        + case.n * prod(case.map) * c * dtype.itemsize
        + parameters(backward, 6, case.gate + case.spatial)
        + case.gate * case.n * channels,
    }


def _case(label: str, n: int, c: int, map: tuple[int, int], options: str, training: bool = True) -> Case:
    flags = {name: name in options.split() for name in ("pool", "gate", "residual", "spatial")}
    return Case(label, n=n, c=c, map=map, **flags, activation="gelu", offset=0.0, training=training)


def _network(training: bool) -> tuple[Case, ...]:
    """Every norm of the recipes `seed` and `record94`."""
    n, batch = (512, 2000) if training else (1000, 2000)
    rows = (
        ("stem", n, 32, 31, ""),
        ("r1.conv1", n, 128, 31, "pool spatial"),
        ("r1.conv2", n, 128, 15, ""),
        ("r1.conv3", n, 128, 15, "gate residual"),
        ("r2.conv1", n, 256, 15, "pool"),
        ("r3.conv1", n, 512, 7, "pool spatial"),
        ("r3.conv2", n, 512, 3, ""),
        ("r3.conv3", n, 512, 3, "gate residual"),
        ("record94 g1.conv1", batch, 64, 31, "pool"),
        ("record94 g1.conv2", batch, 64, 15, ""),
        ("record94 g2.conv1", batch, 256, 15, "pool"),
        ("record94 g2.conv2", batch, 256, 7, ""),
        ("record94 g3.conv1", batch, 256, 7, "pool"),
        ("record94 g3.conv2", batch, 256, 3, ""),
    )
    return tuple(
        _case(label if training else f"{label} eval", images, c, (side, side), options, training)
        for label, images, c, side, options in rows
    )


SPACE = {
    "n": (1, 3),
    "c": (3, 12, 32, 40, 72),
    "map": ((31, 27), (23, 15), (13, 11), (7, 6), (5, 3), (3, 2), (2, 7)),
    "pool": (False, True),
    "gate": (False, True),
    "residual": (False, True),
    "spatial": (False, True),
    "activation": tuple(ACTIVATIONS),
    "offset": (0.0, 100.0),  # mean / std
}
NARROW = {
    "p_argmax": "one byte beside each value of u: 8 bytes beside its 16",
    "p_rstd": "one number a channel",
    "p_stats": "two numbers a channel",
    "p_partial": "two numbers a program and channel",
    "p_spatial": "one number an image and channel",
    "p_dgate": "one number an image and channel",
}


def _small(case: Case) -> bool:
    """Whether the interpreter has it done in a second."""
    return case.n * case.c * prod(case.map) <= 1 << 16


def _well_conditioned(case: Case) -> bool:
    """Whether relative errors mean something. Batch norm takes out what is constant and what scales v, so d x
    of two values and d gate of a single image are 0, and of a few are mostly cancellation; at
    mean / std = 100 the mean's last bit is 1e-5 of the deviation, which only many values average out.
    """
    return _count(case) >= (256 if case.offset else 5) and (case.n > 1 or not case.gate)


SPEC = KernelSpec(
    name="norm_act",
    formula="y = act((v - mean) * rstd * weight + bias) + residual, v = maxpool(x) * gate, statistics of v",
    reference=reference,
    op=op,
    ops=("hlb::norm_act", "hlb::norm_act_backward"),
    make=_make,
    cases=_network(training=True),
    space=SPACE | {"training": (True,)},
    counted=(
        _case("pooled", 3, 32, (15, 13), "pool spatial residual"),
        _case("gated", 3, 64, (9, 11), "gate residual"),
    ),
    bytes=_bytes,
    valid=lambda case: _small(case) and _well_conditioned(case),
    differentiable=("x", "weight", "bias", "gate", "residual"),
    reduction=_count,
    narrow=NARROW,
)

EVAL_SPEC = KernelSpec(
    name="norm_act_eval",
    formula="y = act((v - mean) * rstd * weight + bias) + residual, v = maxpool(x) * gate, fixed statistics",
    reference=reference,
    op=op,
    ops=("hlb::norm_act_eval",),
    make=_make,
    cases=_network(training=False),
    space=SPACE | {"c": (3, 32, 72), "training": (False,)},
    counted=(_case("pooled", 3, 32, (15, 13), "pool gate spatial residual", training=False),),
    bytes=_bytes,
    valid=lambda case: _small(case) and _count(case) > 0,
    narrow={"p_spatial": NARROW["p_spatial"]},
)
