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
        z, center, rstd = torch.native_batch_norm(v, weight, bias, None, None, True, 0.0, eps)
        variance = (rstd.detach() ** -2 - eps).clamp(min=0) * (count / (count - 1))
        stats = torch.stack((center.detach(), variance)).to(running.dtype)
    else:
        z = F.batch_norm(v, running[0].to(wide), running[1].to(wide), weight, bias, False, 0.0, eps)
        stats = running
    y = ACTIVATIONS[activation](z)
    y = y if residual is None else y + residual
    mean = y.permute(0, 2, 3, 1).sum((1, 2), dtype=wide) / (y.shape[2] * y.shape[3]) if spatial_mean else None
    return y, stats, mean


def update_running_stats(running: Tensor, stats: Tensor, momentum: float) -> None:
    """running = (1 - momentum) * running + momentum * stats, in place; both float32 [2, c], all layers at
    once.
    """
    running.lerp_(stats, momentum)
