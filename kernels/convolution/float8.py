"""Convolutions whose operands are 8-bit floats: formats, scales, rounding and the reference.

    z         = conv(e4m3(x), e4m3(filters * s) / s)                 s: `filter_scale`, from the extents
    d x       = dgrad(e5m2(dz * g) / g, e4m3(filters * s) / s)       g: `gradient_scale`, from the last step
    d filters = wgrad(dz, x)                                         both in the network's dtype, as they are

e4m3 and e5m2 round to the nearest, ties to even, and saturate; x, filters and dz are rounded as stored in the
network's dtype, and gradients pass the rounding of x and filters as if it were not there. Scales are powers
of two, one a tensor, so a kernel multiplies the 8-bit x, filters * s and dz * g as they are, adds up in
float32, and multiplies the sum by 1 / s, or by 1 / (s * g), before it is stored.

    x         scale 1: after batch norm and activation x lies within some units, and e4m3 has all its digits
              from 1/64 to 448
    filters   Muon keeps the root mean square of filters at 1 / sqrt(size^2 * c). That goes to about 2.7, the
              middle of e4m3's full range; what another optimizer makes of it lies near enough
    dz        `largest`, float32 [1] on the device, is the largest |dz| of the step before, or 0: it goes to
              between 2^12 and 2^13, a seventh of what e5m2 holds or less

wgrad has 16-bit operands because Hopper multiplies 8-bit ones only where the dimension that is summed over is
contiguous, and wgrad's is the pixels. So x and dz are kept in 16 bits, whatever else is written.

`largest` is an input whose gradient is what it is to be in the next step, max |dz|: autograd returns it
beside those of the filters, and whoever owns the buffer copies it there (hlb/step.py). So nothing is written
in a backward pass, and an evaluation, which has none, leaves it alone.

The reference rounds by arithmetic, on any device, and multiplies in the network's dtype, which adds up in
float32: a value of e4m3 or e5m2 is exact in float16 and bfloat16. So it is with its scale undone, since it
has no more digits than the value that it was rounded from, and no smaller last place.
Sources: Micikevicius et al., arXiv 2209.05433 (formats); Blake et al., arXiv 2303.11257 (static scales).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..base.narrow import AIM, FIRST

TILE = 1 << 18  # values whose float32 copy stays in a CPU's cache


class Format(NamedTuple):
    """An 8-bit float: its dtype, digits after the leading one, least normal exponent, and largest value."""

    dtype: torch.dtype
    digits: int
    least: int
    largest: float


E4M3 = Format(torch.float8_e4m3fn, 3, -6, 448.0)
E5M2 = Format(torch.float8_e5m2, 2, -14, 57344.0)
ACTIVATIONS, FILTERS, GRADIENTS = E4M3, E4M3, E5M2

# conv_dtype of a block -> its passes with 8-bit operands; with `auto` all have the network's dtype.
PASSES: dict[str, tuple[str, ...]] = {
    "auto": (),
    "float8": ("forward", "dgrad"),
    "float8_forward": ("forward",),
}

MIDDLE = 2  # filters of the usual root mean square are scaled to about this, and then by sqrt(2) at most


def filter_scale(c: int, size: int = 3) -> float:
    """The power of two that filters [o, c, size, size] are multiplied by: 128 for 256 channels."""
    return float(MIDDLE * 2 ** round(math.log2(size * size * c) / 2))


def gradient_scale(largest: Tensor) -> Tensor:
    """largest float32 [1], of the last step -> the power of two [1] that dz is multiplied by.

    2^(AIM - floor(log2 largest)), by the bits of `largest` alone; 2^FIRST where it is 0, infinite or NaN.
    """
    exponent = largest.float().view(torch.int32) >> 23  # with float32's bias of 127; the sign is 0
    known = (exponent > 0) & (exponent < 255)
    scaled = (AIM + 254 - exponent).clamp(1, 254)
    return torch.where(known, scaled, FIRST + 127).mul(1 << 23).view(torch.float32)


def rounded(x: Tensor, form: Format, scale: float | Tensor = 1.0) -> Tensor:
    """The values of x [n, ...] as a format holds x * scale, divided by the scale again: of the shape, layout
    and dtype of x.

    `scale` is a power of two, a number or float32 [1]. NaN stays NaN. The result has no gradient.
    """
    x = x.detach()
    if not x.is_cpu or torch.compiler.is_compiling():
        return _rounded(x, form, scale)
    out = torch.empty_like(x)
    images = max(1, TILE // x[0].numel())
    for to, values in zip(out.split(images), x.split(images)):
        to.copy_(_rounded(values, form, scale))
    return out


def _rounded(x: Tensor, form: Format, scale: float | Tensor) -> Tensor:
    """In float32: adding one and a half times 2^(23 - digits) units of x's leading digit rounds away what the
    format does not hold.
    """
    values = (x.float() * scale).clamp(-form.largest, form.largest)
    unit = (values.view(torch.int32) & 0x7F800000).clamp((form.least + 127) << 23).view(torch.float32)
    beyond = unit * (1.5 * 2 ** (23 - form.digits))
    return ((values + beyond - beyond) / scale).to(x.dtype)


def stored(x: Tensor, form: Format, scale: float | Tensor = 1.0) -> Tensor:
    """x * scale in a format, of its dtype: what a kernel reads."""
    return (x.float() * scale).clamp(-form.largest, form.largest).to(form.dtype)


class _Convolution(torch.autograd.Function):
    """z from x, filters and `largest`, as the module says; d x in 8 bits where `dgrad` says so."""

    @staticmethod
    def forward(ctx, x: Tensor, filters: Tensor, largest: Tensor, padding: int, dgrad: bool) -> Tensor:
        ctx.save_for_backward(x, filters, largest)
        ctx.padding, ctx.dgrad = padding, dgrad
        return F.conv2d(rounded(x, ACTIVATIONS), _filters(filters), padding=padding)

    @staticmethod
    def backward(ctx, dz: Tensor) -> tuple[Tensor | None, ...]:
        x, filters, largest = ctx.saved_tensors
        wants_dx, wants_filters = ctx.needs_input_grad[:2]
        if not ctx.dgrad:
            return *_gradients(dz, x, filters, ctx.padding, wants_dx, wants_filters), None, None, None
        dx = None
        if wants_dx:
            dz8 = rounded(dz, GRADIENTS, gradient_scale(largest))
            dx, _ = _gradients(dz8, x, _filters(filters), ctx.padding, True, False)
        _, d_filters = _gradients(dz, x, filters, ctx.padding, False, wants_filters)
        now = torch.linalg.vector_norm(dz, math.inf).float().view(1)
        return dx, d_filters, now, None, None


def _filters(filters: Tensor) -> Tensor:
    return rounded(filters, FILTERS, filter_scale(*filters.shape[1:3]))


def _gradients(
    dz: Tensor, x: Tensor, filters: Tensor, padding: int, wants_dx: bool, wants_filters: bool
) -> tuple[Tensor | None, Tensor | None]:
    if not (wants_dx or wants_filters):
        return None, None
    ones, mask = [1, 1], [wants_dx, wants_filters, False]
    both = torch.ops.aten.convolution_backward(
        dz, x, filters, None, ones, [padding] * 2, ones, False, [0, 0], 1, mask
    )
    return both[0], both[1]


def reference(
    x: Tensor, filters: Tensor, conv_dtype: str, largest: Tensor | None = None, padding: int | None = None
) -> Tensor:
    """x [n, c, h, w], filters [o, c, size, size] -> z [n, o, h', w'], in any floating dtype and layout, on
    any device; padded as `conv.reference` unless `padding` says otherwise. `conv_dtype` is a key of PASSES,
    but not `auto`. `largest` float32 [1] is the largest |dz| of the step before; its gradient is this step's.
    Without it, dz has the scale of a first step.
    """
    largest = torch.zeros(1, device=x.device) if largest is None else largest
    padding = filters.shape[2] // 3 if padding is None else padding
    return _Convolution.apply(x, filters, largest, padding, "dgrad" in PASSES[conv_dtype])
