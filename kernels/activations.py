"""The activations of `norm_act.ACTIVATIONS` and their derivatives, on float32 blocks, for kernels to call.

    name   act(z)                  act'(z)
    gelu   z * P                   P + z * p               P and p: distribution and density of a normal variable
    silu   z * s                   s * (1 + z * (1 - s))   s = 1 / (1 + exp(-z))
    relu   max(z, 0)               1 above 0, else 0
    celu   z above 0,              1 above 0,              a = 0.3
           else a * (e - 1)        else e                  e = exp(z / a)

Kernels that stream values are bound by instructions rather than by memory once a value takes about twenty, so
there is no division, exp or erf here, which take five to thirty. A GPU has one instruction each for 2^x and
1 / sqrt(x), and 1 / x is the square of the latter. P beyond |z| is the density times a polynomial of the fifth
degree in t = 1 / (1 + 0.2316 |z|), within 7.5e-8: both need the same exponential.

Errors against float64, as a part of max(1, |result|), are at most those of BOUNDS, for z of any size: of the
polynomial, of float32's rounding, and of the two instructions, which are right to 2^-22 of their result.
Infinite z give what PyTorch gives, NaN gives NaN (relu's slope: 0).
Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26.
"""

from __future__ import annotations

from .launch import tl, triton

BOUNDS = {"gelu": (4e-7, 1.5e-6), "silu": (6e-7, 1.5e-6), "relu": (0.0, 0.0), "celu": (2e-7, 6e-7)}  # act, act'

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
        sigmoid = _reciprocal(1.0 + tl.exp2(z * -LOG2_E))
        y, slope = z * sigmoid, sigmoid * (1.0 + z * (1.0 - sigmoid))
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
