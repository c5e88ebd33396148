"""The activations of `norm_act.ACTIVATIONS` and their derivatives, on float32 blocks, for kernels to call."""

from __future__ import annotations

from .launch import tl, triton

CELU_ALPHA = tl.constexpr(0.3)


@triton.jit
def activate(z, NAME: tl.constexpr):
    """act(z); without a `NAME` z itself."""
    if NAME is None:
        y = z
    elif NAME == "gelu":
        y = 0.5 * z * (1.0 + tl.erf(z * 0.7071067811865476))
    elif NAME == "silu":
        y = z / (1.0 + tl.exp(-z))
    elif NAME == "relu":
        y = tl.maximum(z, 0.0, propagate_nan=tl.PropagateNan.ALL)
    else:
        tl.static_assert(NAME == "celu")
        y = tl.where(z > 0, z, CELU_ALPHA * (tl.exp(tl.minimum(z, 0.0) / CELU_ALPHA) - 1.0))
    return y


@triton.jit
def activation_slope(z, NAME: tl.constexpr):
    """act'(z); 0 at 0 for relu, as in torch."""
    if NAME is None:
        slope = tl.full(z.shape, 1.0, tl.float32)
    elif NAME == "gelu":
        density = 0.3989422804014327 * tl.exp(-0.5 * z * z)
        slope = 0.5 * (1.0 + tl.erf(z * 0.7071067811865476)) + z * density
    elif NAME == "silu":
        sigmoid = 1.0 / (1.0 + tl.exp(-z))
        slope = sigmoid * (1.0 + z * (1.0 - sigmoid))
    elif NAME == "relu":
        slope = tl.where(z > 0, 1.0, 0.0)
    else:
        tl.static_assert(NAME == "celu")
        slope = tl.where(z > 0, 1.0, tl.exp(tl.minimum(z, 0.0) / CELU_ALPHA))
    return slope
