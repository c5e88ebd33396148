"""Squeeze-and-excite: one gate per image and channel.

    gate = sigmoid(W2 @ gelu(W1 @ s + b1) + b2),       s the spatial mean of x [n, c, h, w]

s [n, c] as `norm_act` emits it, W1 [c / r, c], b1 [c / r], W2 [c, c / r], b2 [c] -> gate [n, c], in the
dtype of s (float32, float64 for float64). The gate multiplies another tensor than x in this network, the
last convolution's output, which is why the op ends at the gate. FLOPs: 4 * c * c / r per image. Source: Hu,
Shen, Sun, arXiv 1709.01507.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def reference(s: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor) -> Tensor:
    """Spatial mean [n, c] -> gate [n, c], in the dtype of `s`."""
    hidden = F.gelu(F.linear(s, weight1.to(s.dtype), bias1.to(s.dtype)))
    return torch.sigmoid(F.linear(hidden, weight2.to(s.dtype), bias2.to(s.dtype)))
