"""Muon: momentum whose update is orthogonalised, for convolution filters seen as matrices [out, in * 3 * 3].

    buffer = momentum * buffer + grad           g = grad + momentum * buffer              (Nesterov)
    value  = value * sqrt(out) / norm(value)                              (filters keep their scale)
    value  = value - lr * orthogonalise(g)

orthogonalise is a few steps of a quintic Newton-Schulz iteration: with X = g / norm(g) = U S V^T,
    X <- a X + b (X X^T) X + c (X X^T)^2 X,        that is  S <- a S + b S^3 + c S^5  on the singular values,
which drives them towards 1 (into about [0.7, 1.2], not to 1 exactly) and leaves U and V alone. It runs in
bfloat16 for a 16-bit network and in the network's own dtype otherwise; a permutation of columns changes
nothing, so filters may be flattened in any memory order.

FLOPs per step and filter, m = min(out, in * 9), k the other side: 4 m^2 k + 2 m^3.
Source: Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024); airbench94_muon.
"""

from __future__ import annotations

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalise(g: Tensor, steps: int, coefficients: tuple[float, float, float] = COEFFICIENTS) -> Tensor:
    """[m, k] -> [m, k] with the same singular vectors and singular values near 1, in the dtype of `g`."""
    a, b, c = coefficients
    x = g.T if g.shape[0] > g.shape[1] else g
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if g.shape[0] > g.shape[1] else x


def reference(
    values: list[Tensor],
    grads: list[Tensor],
    buffers: list[Tensor],
    lr: Tensor,
    *,
    momentum: float,
    steps: int,
) -> None:
    """One step, in place on `values` and `buffers`; lists of matrices [out, in * 3 * 3], lr a scalar
    tensor.
    """
    for value, grad, buffer in zip(values, grads, buffers):
        buffer.mul_(momentum).add_(grad)
        g = grad.to(value.dtype).add(buffer, alpha=momentum)
        g = g.to(torch.bfloat16) if grad.dtype.itemsize == 2 else g
        value.mul_(value.shape[0] ** 0.5 / value.norm())
        value.sub_(orthogonalise(g, steps).to(value.dtype) * lr)
