"""Rounding to 8-bit floats in kernels, and the scale of gradients; why so, says convolution/float8.py."""

from __future__ import annotations

from .launch import tl, triton

AIM = 12  # exponent that the last step's largest gradient is scaled to
FIRST = 8  # exponent of the gradients' scale while no largest one is known
_AIM, _FIRST = tl.constexpr(AIM), tl.constexpr(FIRST)


@triton.jit
def saturated(values, DTYPE: tl.constexpr):
    """float32 values to the nearest of an 8-bit float, ties to even, or to its largest. NaN stays."""
    LARGEST: tl.constexpr = 57344.0 if DTYPE == tl.float8e5 else 448.0  # noqa: SIM300
    values = tl.minimum(values, LARGEST, propagate_nan=tl.PropagateNan.ALL)
    return tl.maximum(values, -LARGEST, propagate_nan=tl.PropagateNan.ALL).to(DTYPE)


@triton.jit
def gradient_scale(p_largest):
    """The power of two that brings the largest gradient of the step before, float32 [1], to 2^AIM and more;
    2^FIRST where that is 0, infinite or NaN.
    """
    exponent = tl.load(p_largest).to(tl.int32, bitcast=True) >> 23  # the sign is 0
    known = (exponent > 0) & (exponent < 255)
    scaled = tl.minimum(tl.maximum(_AIM + 254 - exponent, 1), 254)
    return (tl.where(known, scaled, _FIRST + 127) << 23).to(tl.float32, bitcast=True)
