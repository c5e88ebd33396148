"""The activations, a row of ACTIVATIONS each: act(z) for the reference, act(z) and act'(z) for kernels.

    name   act(z)                          act'(z)
    gelu   z * P                           P + z * p              distribution P, density p of a normal X
    silu   z * s                           s + z * s * (1 - s)    s = 1 / (1 + exp(-z))
    relu   max(z, 0)                       1 above 0, else 0
    celu   above 0 z, else 0.3 * (e - 1)   above 0 1, else e      e = exp(z / 0.3)

A new one is two functions of float32 blocks and a row: recipes accept its name, a kernel is passed the
function that it needs, and tests/kernels/test_activations.py compares both with autograd.

A kernel that streams values is bound by instructions, not by memory, once it spends some thirty on each, so
there is no division and no erf here. A GPU has one instruction each for 2^x and for 1 / sqrt(x), and 1 / x is
the square of the latter. What a normal distribution has beyond |z| is its density times a polynomial of the
fifth degree in 1 / (1 + 0.2316 |z|), to 7.5e-8, so P and p share an exponential.

Errors against float64 are those of the polynomial, of float32, and of the two instructions, of which each may
be 2^-22 of its result off. Infinite z give what they give in PyTorch, NaN gives NaN (of relu's slope: 0).
Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from ..base.launch import tl, triton

CELU_ALPHA = tl.constexpr(0.3)
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _reciprocal(x):
    """1 / x of what is above 0."""
    root = tl.rsqrt(x)
    return root * root


@triton.jit
def _normal(z):
    """(P(X <= z), density at z) of a normal variable X."""
    size = tl.abs(z)
    t = _reciprocal(1.0 + 0.2316418882 * size)
    power = tl.exp2(size * size * (-0.5 * LOG2_E))
    series = 0.5307027145 * t - 0.7265760135
    series = series * t + 0.7107068705
    series = series * t - 0.142248368
    series = series * t + 0.127414796
    beyond = series * t * power
    return tl.where(z > 0, 1.0 - beyond, beyond), 0.3989422804 * power


@triton.jit
def gelu(z):
    below, _ = _normal(z)
    return z * below


@triton.jit
def gelu_slope(z):
    below, density = _normal(z)
    return below + z * density


@triton.jit
def silu(z):
    return z * _reciprocal(1.0 + tl.exp2(z * -LOG2_E))


@triton.jit
def silu_slope(z):
    # s and 1 - s of |z|, neither as a difference, whose rounding z would multiply.
    power = tl.exp2(tl.abs(z) * -LOG2_E)
    larger = _reciprocal(1.0 + power)
    smaller = power * larger
    return tl.where(z > 0, larger, smaller) + z * (larger * smaller)


@triton.jit
def relu(z):
    return tl.maximum(z, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def relu_slope(z):
    return tl.where(z > 0, 1.0, 0.0)  # 0 at 0, as in PyTorch


@triton.jit
def celu(z):
    return tl.where(z > 0, z, CELU_ALPHA * (tl.exp2(z * (LOG2_E / CELU_ALPHA)) - 1.0))


@triton.jit
def celu_slope(z):
    return tl.where(z > 0, 1.0, tl.exp2(z * (LOG2_E / CELU_ALPHA)))


class Activation(NamedTuple):
    """One activation. `bounds`: the largest errors of `forward` and `slope` for z of any size, as a part of
    max(1, |result|). `jumps`: act' is not continuous, so that rounding of z may change a whole gradient.
    """

    reference: Callable[[Tensor], Tensor]  # act(z) in PyTorch, which differentiates it
    forward: Callable  # act(z) in a kernel, of a float32 block
    slope: Callable  # act'(z) in a kernel
    bounds: tuple[float, float]
    jumps: bool = False


ACTIVATIONS: dict[str, Activation] = {
    "gelu": Activation(F.gelu, gelu, gelu_slope, (5e-7, 1.5e-6)),
    "silu": Activation(F.silu, silu, silu_slope, (8e-7, 1e-6)),
    "relu": Activation(F.relu, relu, relu_slope, (0.0, 0.0), jumps=True),
    "celu": Activation(lambda z: F.celu(z, alpha=0.3), celu, celu_slope, (1e-7, 4e-7)),
}
