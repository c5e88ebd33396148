"""The block: conv -> [pool] -> [x gate] -> BN -> activation [+ residual], as one op.

    u[n, o, y, x] = sum over i, r, s of x[n, i, y + r - 1, x + s - 1] * filters[o, i, r, s]    zero padding
    y, stats, spatial mean = norm_act(u, ...)                                         kernels/norm_act.py

x [n, i, h, w] and filters [o, i, 3, 3] channels-last, accumulated in float32. What BN sees is the pooled,
gated output of the convolution, so the row and column that floor pooling drops influence nothing.

FLOPs: 2 * 9 * i * o * h * w per image forward, as much again for each of d x and d filters.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from . import norm_act
from .launch import expect


def reference(
    x: Tensor, filters: Tensor, weight: Tensor, bias: Tensor, running: Tensor, **options
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Returns y [n, o, h', w'], statistics [2, o], spatial mean or None; arguments, `options` and errors are
    those of `norm_act.reference`.
    """
    return norm_act.reference(F.conv2d(x, filters, padding=1), weight, bias, running, **options)


def composed(
    x: Tensor, filters: Tensor, weight: Tensor, bias: Tensor, running: Tensor, **options
) -> tuple[Tensor, Tensor, Tensor | None]:
    """As `reference`, with PyTorch's convolution and the kernels of `norm_act`.

    Raises ValueError for a wrong shape, dtype, layout or device, naming the argument.
    """
    expect("x", x, None, None, None, None, channels_last=True)
    expect("filters", filters, None, x.shape[1], 3, 3, dtypes=(x.dtype,), device=x.device, channels_last=True)
    return norm_act.op(F.conv2d(x, filters, padding=1), weight, bias, running, **options)
