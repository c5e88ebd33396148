"""What the convolutions of 8-bit operands read, as float8.py defines it: x, filters, and filters for a dgrad.

    x8[...]             = e4m3(x)
    filters8[o,r,s,c]   = e4m3(filters * s)
    turned[c,r,s,o]     = filters8[o,2-r,2-s,c]

Hopper multiplies 8-bit operands only where both have the dimension that is summed over in rows of memory:
forward that is c, as filters lie; of a dgrad it is o. So dgrad is a forward pass of dz by `turned`.
Bytes: x, filters and what is written, once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..base.launch import cdiv, launch, tl, triton
from ..base.narrow import saturated
from .float8 import filter_scale
from .tiling import FLOAT8

BLOCK = 4096  # values of x of a program
SIDE = 64  # of a program's tile of filters


@triton.jit
def _round_images(
    p_x,  # [values]
    p_rounded,  # e4m3, as x
    values,
    BLOCK: tl.constexpr,
):
    o_all = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    b_x = tl.load(p_x + o_all, mask=o_all < values, other=0.0).to(tl.float32)
    tl.store(p_rounded + o_all, saturated(b_x, tl.float8e4nv), mask=o_all < values)


@triton.jit
def _round_filters(
    p_filters,  # [OUT, TAPS, C]
    p_rounded,  # e4m3, as filters
    p_turned,  # e4m3 [C, TAPS, OUT], or None
    C: tl.constexpr,
    OUT: tl.constexpr,
    TAPS: tl.constexpr,
    SCALE: tl.constexpr,
    SIDE: tl.constexpr,
):
    tap = tl.program_id(2)
    outs = tl.program_id(1) * SIDE + tl.arange(0, SIDE)[:, None]  # [SIDE, 1]
    channels = tl.program_id(0) * SIDE + tl.arange(0, SIDE)[None, :]  # [1, SIDE]
    m_all = (outs < OUT) & (channels < C)  # [SIDE, SIDE]
    o_all = (outs * TAPS + tap) * C + channels
    b_filters = tl.load(p_filters + o_all, mask=m_all, other=0.0).to(tl.float32)
    b_rounded = saturated(b_filters * SCALE, tl.float8e4nv)
    tl.store(p_rounded + o_all, b_rounded, mask=m_all)
    if p_turned is not None:
        outs = tl.program_id(1) * SIDE + tl.arange(0, SIDE)[None, :]
        channels = tl.program_id(0) * SIDE + tl.arange(0, SIDE)[:, None]
        o_turned = (channels * TAPS + TAPS - 1 - tap) * OUT + outs
        tl.store(p_turned + o_turned, tl.trans(b_rounded), mask=(outs < OUT) & (channels < C))


def images(x: Tensor) -> Tensor:
    """x [n, c, h, w] channels-last, as e4m3."""
    x8 = torch.empty_like(x, dtype=FLOAT8)
    launch(_round_images, (cdiv(x.numel(), BLOCK),), x, x8, x.numel(), BLOCK=BLOCK, num_warps=8)
    return x8


def unwritten(filters: Tensor, turned: bool) -> Tensor:
    """Turned filters, or nothing. Bytes: PyTorch's checks of ops add up outputs, and it adds no float8."""
    if not turned:
        return filters.new_empty((0,) * 4, dtype=torch.int8)
    o, c, *sides = filters.shape
    return torch.empty((c, *sides, o), dtype=torch.int8, device=filters.device).permute(0, 3, 1, 2)


def filters(filters: Tensor, turned: bool) -> tuple[Tensor, Tensor]:
    """filters [o, c, size, size] channels-last, scaled, as e4m3; and their bytes [c, o, size, size], turned,
    or nothing.
    """
    o, c, size, _ = filters.shape
    rounded, other = torch.empty_like(filters, dtype=FLOAT8), unwritten(filters, turned)
    launch(
        _round_filters,
        (cdiv(c, SIDE), cdiv(o, SIDE), size * size),
        filters,
        rounded,
        other.view(FLOAT8) if turned else None,
        C=c,
        OUT=o,
        TAPS=size * size,
        SCALE=filter_scale(c, size),
        SIDE=SIDE,
        num_warps=4,
    )
    return rounded, other
