"""Batch normalisation and what surrounds it in a block: [pool] -> [x gate] -> BN -> activation [+ residual].

    v = maxpool2x2(x) * gate          pool and gate optional; the pool drops an odd last row and column
    z = (v - mean) * rstd * weight + bias,     rstd = 1 / sqrt(max(var, 0) + eps)
    y = act(z) + residual             residual optional, added after the activation

x [n, c, h, w] channels-last, gate [n, c], residual as y. In training mean and var are the batch's (var
biased); in evaluation they are the running ones. Statistics, weight, bias and running buffers are float32
in every dtype; only a float64 network computes its batch statistics in float64.

Bytes, training: x read twice and y written once forward; x and dy read twice and dx written once backward.
Source: Ioffe and Szegedy, arXiv 1502.03167.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

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
    `update_running_stats`). Raises ValueError when training with one value per channel.
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


def update_running_stats(running: Tensor, stats: Tensor, momentum: float) -> None:
    """running = (1 - momentum) * running + momentum * stats, in place; both float32 [2, c], all layers at
    once.
    """
    running.lerp_(stats, momentum)
