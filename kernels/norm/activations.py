"""The activations of `norm_act.ACTIVATIONS` and their derivatives, on float32 blocks, for kernels to call.

    name   act(z)                          act'(z)
    gelu   z * P                           P + z * p              distribution P, density p of a normal X
    silu   z * s                           s + z * s * (1 - s)    s = 1 / (1 + exp(-z))
    relu   max(z, 0)                       1 above 0, else 0
    celu   above 0 z, else 0.3 * (e - 1)   above 0 1, else e      e = exp(z / 0.3)

A kernel that streams values is bound by instructions, not by memory, once it spends some thirty on each, so
there is no division and no erf here. A GPU has one instruction each for 2^x and for 1 / sqrt(x), and 1 / x is
the square of the latter. What a normal distribution has beyond |z| is its density times a polynomial of the
fifth degree in 1 / (1 + 0.2316 |z|), to 7.5e-8, so P and p share an exponential.

Errors against float64, as a part of max(1, |result|), are within BOUNDS for z of any size: those of the
polynomial, of float32, and of the two instructions, of which each may be 2^-22 of its result off. Infinite z
give what they give in PyTorch, NaN gives NaN (of relu's slope: 0).
Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26.
"""

from __future__ import annotations

from ..base.launch import tl, triton

BOUNDS = {"gelu": (5e-7, 1.5e-6), "silu": (8e-7, 1e-6), "relu": (0.0, 0.0), "celu": (1e-7, 4e-7)}  # act, act'

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
def _both(z, NAME: tl.constexpr):
    """(act(z), act'(z)). The compiler drops the one that is not used."""
    if NAME is None:
        y, slope = z, tl.full(z.shape, 1.0, tl.float32)
    elif NAME == "gelu":
        below, density = _normal(z)
        y, slope = z * below, below + z * density
    elif NAME == "silu":
        y = z * _reciprocal(1.0 + tl.exp2(z * -LOG2_E))
        # s and 1 - s of |z|, neither as a difference, whose rounding z would multiply.
        power = tl.exp2(tl.abs(z) * -LOG2_E)
        larger = _reciprocal(1.0 + power)
        smaller = power * larger
        slope = tl.where(z > 0, larger, smaller) + z * (larger * smaller)
    elif NAME == "relu":
        y, slope = tl.maximum(z, 0.0, propagate_nan=tl.PropagateNan.ALL), tl.where(z > 0, 1.0, 0.0)
    else:
        tl.static_assert(NAME == "celu")
        power = tl.exp2(z * (LOG2_E / CELU_ALPHA))
        y, slope = tl.where(z > 0, z, CELU_ALPHA * (power - 1.0)), tl.where(z > 0, 1.0, power)
    return y, slope


@triton.jit
def activate(z, NAME: tl.constexpr):
    """act(z); without a `NAME` z itself."""
    y, _ = _both(z, NAME)
    return y


@triton.jit
def activation_slope(z, NAME: tl.constexpr):
    """act'(z); 0 at 0 for relu, as in torch."""
    _, slope = _both(z, NAME)
    return slope
