"""The head: global max pool, linear, scale.

    m = max over h, w of x                                       logits = scale * m @ weight^T
    d m = scale * d logits @ weight                              d weight = scale * d logits^T @ m
    d x = d m / (number of positions that hold the maximum)      where x is the maximum, else 0

x [n, c, h, w] channels-last, weight [classes, c] in the dtype of x -> logits [n, classes] in float32 (float64
for float64), summed in float32. Where several positions hold the maximum, its gradient is shared among them
equally, as `amax` does; a NaN is the maximum of its map. The maxima [n, c] are kept in the dtype of x, which
holds them exactly.

Bytes: x read once forward; x read and its gradient written once backward.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .launch import FLOATS, cdiv, expect, launch, power_of_2, register, tl, triton
from .spec import EVALUATED, Case, KernelSpec


def reference(x: Tensor, weight: Tensor, scale: float) -> Tensor:
    """[n, c, h, w] and [classes, c] -> logits [n, classes].

    Compiled by PyTorch, the first of several maxima takes the whole gradient: `x` may then be computed again
    for it, unrounded, so that none of its values equals the maximum and a share would be 0 / 0.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    compiled = torch.compiler.is_compiling()
    m = F.max_pool2d(x, x.shape[2:]).flatten(1) if compiled else x.amax((2, 3))
    return F.linear(m.to(wide), weight.to(wide)) * scale


@triton.jit
def _pool_head_fwd(
    p_x,  # [n, HW, C]
    p_weight,  # [CLASSES, C]
    p_maxima,  # [n, C]
    p_logits,  # float32 [n, CLASSES]
    n,
    C: tl.constexpr,
    HW: tl.constexpr,
    CLASSES: tl.constexpr,
    SCALE: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    images = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    channels = tl.arange(0, BLOCK_C)[None, :]
    m_images = images < n
    m_all = m_images[:, None] & (channels < C)  # [BLOCK, BLOCK_C]
    o_maps = images.to(tl.int64)[:, None] * (HW * C) + channels
    b_max = tl.load(p_x + o_maps, mask=m_all, other=0.0).to(tl.float32)
    for i in range(1, HW):
        b_x = tl.load(p_x + o_maps + i * C, mask=m_all, other=0.0).to(tl.float32)
        b_max = tl.maximum(b_max, b_x, propagate_nan=tl.PropagateNan.ALL)
    o_max = images.to(tl.int64)[:, None] * C + channels
    tl.store(p_maxima + o_max, b_max.to(p_maxima.dtype.element_ty), mask=m_all)

    for k in tl.static_range(CLASSES):
        b_weight = tl.load(p_weight + k * C + channels, mask=channels < C, other=0.0)  # [1, BLOCK_C]
        b_logit = tl.sum(b_max * b_weight.to(tl.float32), axis=1) * SCALE  # [BLOCK]
        tl.store(p_logits + images * CLASSES + k, b_logit, mask=m_images)


@triton.jit
def _pool_head_bwd(
    p_dlogits,  # float32 [n, CLASSES]
    p_x,  # [n, HW, C]
    p_weight,  # [CLASSES, C]
    p_maxima,  # [n, C]
    p_dx,  # [n, HW, C]
    n,
    C: tl.constexpr,
    HW: tl.constexpr,
    CLASSES: tl.constexpr,
    SCALE: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    images = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    channels = tl.arange(0, BLOCK_C)[None, :]
    m_images = images < n
    m_all = m_images[:, None] & (channels < C)  # [BLOCK, BLOCK_C]
    o_maps = images.to(tl.int64)[:, None] * (HW * C) + channels
    o_max = images.to(tl.int64)[:, None] * C + channels
    b_max = tl.load(p_maxima + o_max, mask=m_all, other=0.0).to(tl.float32)
    b_count = tl.zeros([BLOCK, BLOCK_C], tl.float32)
    for i in range(HW):
        b_x = tl.load(p_x + o_maps + i * C, mask=m_all, other=0.0).to(tl.float32)
        b_count += (b_x == b_max).to(tl.float32)

    b_dmax = tl.zeros([BLOCK, BLOCK_C], tl.float32)
    for k in tl.static_range(CLASSES):
        b_dlogit = tl.load(p_dlogits + images * CLASSES + k, mask=m_images, other=0.0)  # [BLOCK]
        b_weight = tl.load(p_weight + k * C + channels, mask=channels < C, other=0.0)  # [1, BLOCK_C]
        b_dmax += b_dlogit[:, None] * b_weight.to(tl.float32)
    b_share = b_dmax * SCALE / b_count
    for i in range(HW):  # x again, from the cache
        b_x = tl.load(p_x + o_maps + i * C, mask=m_all, other=0.0).to(tl.float32)
        b_dx = (b_x == b_max).to(tl.float32) * b_share  # NaN where the maximum is
        tl.store(p_dx + o_maps + i * C, b_dx.to(p_dx.dtype.element_ty), mask=m_all)


ELEMENTS = 2048  # of a map position that a program handles: 16 a thread, two accesses of 16 bytes in 16 bit


def _block(c: int) -> int:
    """Images of a program."""
    return max(1, ELEMENTS // power_of_2(c))


def _constants(x: Tensor, weight: Tensor, scale: float) -> dict:
    _, c, h, w = x.shape
    return {
        "C": c,
        "HW": h * w,
        "CLASSES": len(weight),
        "SCALE": scale,
        "BLOCK": _block(c),
        "BLOCK_C": power_of_2(c),
    }


@register("hlb::pool_head")
def _forward(x: Tensor, weight: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """(logits, maxima [n, c])"""
    n, c = x.shape[:2]
    logits = torch.empty((n, len(weight)), dtype=torch.float32, device=x.device)
    maxima = x.new_empty((n, c))
    grid = (cdiv(n, _block(c)),)
    launch(_pool_head_fwd, grid, x, weight, maxima, logits, n, **_constants(x, weight, scale))
    return logits, maxima


@_forward.register_fake
def _(x, weight, scale):
    n, c = x.shape[:2]
    return x.new_empty((n, len(weight)), dtype=torch.float32), x.new_empty((n, c))


@register("hlb::pool_head_backward")
def _backward_x(d_logits: Tensor, x: Tensor, weight: Tensor, maxima: Tensor, scale: float) -> Tensor:
    """d x, in the layout of x."""
    n, c = x.shape[:2]
    d_x = torch.empty_like(x)
    grid = (cdiv(n, _block(c)),)
    launch(_pool_head_bwd, grid, d_logits, x, weight, maxima, d_x, n, **_constants(x, weight, scale))
    return d_x


@_backward_x.register_fake
def _(d_logits, x, weight, maxima, scale):
    return torch.empty_like(x)


def _setup(ctx, inputs, output):
    x, weight, ctx.scale = inputs
    ctx.save_for_backward(x, weight, output[1])
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, d_logits, d_maxima):
    x, weight, maxima = ctx.saved_tensors
    d_logits = d_logits.contiguous()
    d_weight = (d_logits.T @ maxima.float() * ctx.scale).to(weight.dtype)
    return _backward_x(d_logits, x, weight, maxima, ctx.scale), d_weight, None


_forward.register_autograd(_backward, setup_context=_setup)


def op(x: Tensor, weight: Tensor, scale: float) -> Tensor:
    """As `reference`, in one launch forward, and one and a small matrix product backward.

    Raises ValueError for a wrong shape, dtype, layout or device, naming the argument.
    """
    expect("x", x, None, None, None, None, channels_last=True)
    expect("weight", weight, None, x.shape[1], dtypes=(x.dtype,), device=x.device)
    if x.shape[2] * x.shape[3] == 0:
        raise ValueError(f"x: got shape {list(x.shape)}, accepted is a map of one position or more")
    return _forward(x, weight, scale)[0]


def _make(case: Case, dtype: torch.dtype, device) -> dict:
    """Values of a few levels where `ties`, so that maxima recur within a map."""
    x = torch.randn(case.n, case.c, case.h, case.w, device=device)
    x = x.mul(2).round() if case.ties else x
    return {
        "x": x.to(dtype).to(memory_format=torch.channels_last),
        "weight": torch.randn(case.classes, case.c, device=device).to(dtype),
        "scale": case.scale,
    }


def _bytes(case: Case, dtype: torch.dtype) -> dict[str, int]:
    maps = case.n * case.c * case.h * case.w * dtype.itemsize
    maxima, logits = case.n * case.c * dtype.itemsize, case.n * case.classes * 4
    weight = cdiv(case.n, _block(case.c)) * case.classes * case.c * dtype.itemsize  # read by each program
    return {
        "_pool_head_fwd": maps + maxima + logits + weight,
        "_pool_head_bwd": 2 * maps + maxima + logits + weight,
    }


def _case(label: str, n: int, c: int, scale: float, side: int = 3) -> Case:
    return Case(label, n=n, c=c, h=side, w=side, classes=10, scale=scale, ties=False)


SPEC = KernelSpec(
    name="pool_head",
    formula="logits = scale * (max over h, w of x) @ weight^T",
    fuses="global max pool, linear layer, scale",
    reference=reference,
    op=op,
    ops=("hlb::pool_head", "hlb::pool_head_backward"),
    make=_make,
    cases=(
        _case("seed", 512, 512, 0.1),
        _case("seed eval", 1000, 512, 0.1),
        _case("record94", 1536, 256, 1 / 256),
        _case("record94 at 24", 1536, 256, 1 / 256, 2),
        *(_case(f"record94 eval at {n}", n, 256, 1 / 256) for n in EVALUATED),
        _case("smoke", 500, 64, 1 / 64),
    ),
    space={
        "n": (1, 3, 65),
        "c": (3, 12, 24, 40, 64),
        "h": (1, 3, 6, 11),
        "w": (1, 2, 3, 7),
        "classes": (10, 17),
        "scale": (1.0, 1 / 256),
        "ties": (False, True),
    },
    counted=(Case(n=33, c=64, h=3, w=3, classes=10, scale=0.1, ties=False),),
    bytes=_bytes,
    dtypes=FLOATS,
    differentiable=("x", "weight"),
    reduction=lambda case: max(case.c, case.n),
    narrow={
        "p_weight": "one row at a time, shared by all threads, from the cache",
        "p_logits": "rows of 10 classes are no multiple of 16 bytes",
        "p_dlogits": "rows of 10 classes are no multiple of 16 bytes",
    },
)
