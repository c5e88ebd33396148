"""The head: global max pool, linear, scale.

    m = max over h, w of x                                       logits = scale * m @ weight^T
    d m = scale * d logits @ weight                              d weight = scale * d logits^T @ m
    d x = d m / (number of positions that hold the maximum)      where x is the maximum, else 0

x [n, c, h, w] channels-last, weight [classes, c] in the dtype of x -> logits [n, classes] in float32 (float64
for float64), summed in float32. Where several positions hold the maximum, its gradient is shared among them
equally, as `amax` does; a NaN is the maximum of its map. The maxima [n, c] are kept in the dtype of x, which
holds them exactly. d weight is summed over the images of a program by three tf32 products, which is float32's
precision on tensor cores, and over programs by base/sums.py.

Bytes: x read once forward; x read and its gradient written once backward.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .base.launch import FLOATS, cdiv, expect, launch, power_of_2, register, tl, triton
from .base.spec import EVALUATED, Case, KernelSpec, sized
from .base.sums import SUMS, sum_splits


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
def _weights(p_weight, k, o_all, C: tl.constexpr):
    """Those of class k, float32 [BLOCK, BLOCK_C], each row the same; `o_all` has channels in that shape."""
    return tl.load(p_weight + k * C + o_all, mask=o_all < C, other=0.0).to(tl.float32)


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
    BLOCK_CLASSES: tl.constexpr,
):
    images = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)[:, None]  # [BLOCK, 1]
    channels, classes = tl.arange(0, BLOCK_C)[None, :], tl.arange(0, BLOCK_CLASSES)[None, :]
    m_all = (images < n) & (channels < C)  # [BLOCK, BLOCK_C]
    o_maps = images.to(tl.int64) * (HW * C) + channels
    b_max = tl.load(p_x + o_maps, mask=m_all, other=0.0)
    for i in tl.static_range(1, HW):  # unrolled: all of a map is asked for at once
        b_x = tl.load(p_x + o_maps + i * C, mask=m_all, other=0.0)
        b_max = tl.maximum(b_max, b_x, propagate_nan=tl.PropagateNan.ALL)
    tl.store(p_maxima + images.to(tl.int64) * C + channels, b_max, mask=m_all)

    b_max = b_max.to(tl.float32)
    o_all = tl.broadcast_to(channels, [BLOCK, BLOCK_C])
    b_logits = tl.zeros([BLOCK, BLOCK_CLASSES], tl.float32)
    for k in tl.static_range(CLASSES):
        b_logit = tl.sum(b_max * _weights(p_weight, k, o_all, C), axis=1)[:, None]  # [BLOCK, 1]
        b_logits = tl.where(classes == k, b_logit, b_logits)
    tl.store(p_logits + images * CLASSES + classes, b_logits * SCALE, mask=(images < n) & (classes < CLASSES))


@triton.jit
def _pool_head_bwd(
    p_dlogits,  # float32 [n, CLASSES]
    p_x,  # [n, HW, C]
    p_weight,  # [CLASSES, C]
    p_maxima,  # [n, C]
    p_dx,  # [n, HW, C]
    p_partial,  # float32 [programs, CLASSES, C]: d weight
    n,
    C: tl.constexpr,
    HW: tl.constexpr,
    CLASSES: tl.constexpr,
    SCALE: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_CLASSES: tl.constexpr,
):
    images = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)[:, None]  # [BLOCK, 1]
    channels = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    classes = tl.arange(0, BLOCK_CLASSES)
    m_all = (images < n) & (channels < C)  # [BLOCK, BLOCK_C]
    o_maps = images.to(tl.int64) * (HW * C) + channels
    b_max = tl.load(p_maxima + images.to(tl.int64) * C + channels, mask=m_all, other=0.0).to(tl.float32)
    b_count = tl.zeros([BLOCK, BLOCK_C], tl.float32)
    for i in tl.static_range(HW):
        b_x = tl.load(p_x + o_maps + i * C, mask=m_all, other=0.0).to(tl.float32)
        b_count += (b_x == b_max).to(tl.float32)

    m_logits = (images < n) & (classes < CLASSES)[None, :]  # [BLOCK, BLOCK_CLASSES]
    b_dlogits = tl.load(p_dlogits + images * CLASSES + classes[None, :], mask=m_logits, other=0.0) * SCALE
    b_dweight = tl.dot(tl.trans(b_dlogits), b_max, input_precision="tf32x3")  # [BLOCK_CLASSES, BLOCK_C]
    o_weight = (tl.program_id(0) * CLASSES + classes[:, None]) * C + channels
    tl.store(p_partial + o_weight, b_dweight, mask=(classes < CLASSES)[:, None] & (channels < C))

    b_dmax = tl.zeros([BLOCK, BLOCK_C], tl.float32)
    o_all = tl.broadcast_to(channels, [BLOCK, BLOCK_C])
    for k in tl.static_range(CLASSES):
        b_dlogit = tl.load(p_dlogits + images * CLASSES + k, mask=images < n, other=0.0)  # [BLOCK, 1]
        b_dmax += b_dlogit * _weights(p_weight, k, o_all, C)
    b_share = b_dmax * SCALE / b_count
    for i in tl.static_range(HW):  # x again, from the cache
        b_x = tl.load(p_x + o_maps + i * C, mask=m_all, other=0.0).to(tl.float32)
        b_dx = (b_x == b_max).to(tl.float32) * b_share  # NaN where the maximum is
        tl.store(p_dx + o_maps + i * C, b_dx.to(p_dx.dtype.element_ty), mask=m_all)


ELEMENTS = 2048  # of a map position that a program handles: 16 a thread, two accesses of 16 bytes in 16 bit
BLOCK_BWD = 16  # images of a program, backward: the depth of the smallest product


def _block(c: int) -> int:
    """Images of a program, forward."""
    return max(1, min(16, ELEMENTS // power_of_2(c)))


def _channels(c: int) -> int:
    """Of a program, backward: a channel's gradients need no other."""
    return min(ELEMENTS // BLOCK_BWD, max(16, power_of_2(c)))


def _constants(x: Tensor, weight: Tensor, scale: float, block: int, block_c: int) -> dict:
    _, c, h, w = x.shape
    extents = {"C": c, "HW": h * w, "CLASSES": len(weight), "SCALE": scale}
    return extents | {"BLOCK": block, "BLOCK_C": block_c, "BLOCK_CLASSES": max(16, power_of_2(len(weight)))}


@register("hlb::pool_head")
def _forward(x: Tensor, weight: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """(logits, maxima [n, c])"""
    n, c = x.shape[:2]
    logits = torch.empty((n, len(weight)), dtype=torch.float32, device=x.device)
    maxima = x.new_empty((n, c))
    constants = _constants(x, weight, scale, _block(c), power_of_2(c))
    launch(_pool_head_fwd, (cdiv(n, _block(c)),), x, weight, maxima, logits, n, **constants)
    return logits, maxima


@_forward.register_fake
def _(x, weight, scale):
    n, c = x.shape[:2]
    return x.new_empty((n, len(weight)), dtype=torch.float32), x.new_empty((n, c))


@register("hlb::pool_head_backward")
def _backward_both(
    d_logits: Tensor, x: Tensor, weight: Tensor, maxima: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """(d x in the layout of x, d weight)"""
    n, c = x.shape[:2]
    grid = cdiv(n, BLOCK_BWD), cdiv(c, _channels(c))
    d_x, d_weight = torch.empty_like(x), torch.empty_like(weight)
    partial = torch.empty((grid[0], *weight.shape), dtype=torch.float32, device=x.device)
    constants = _constants(x, weight, scale, BLOCK_BWD, _channels(c))
    launch(_pool_head_bwd, grid, d_logits, x, weight, maxima, d_x, partial, n, **constants)
    sum_splits(partial, d_weight)
    return d_x, d_weight


@_backward_both.register_fake
def _(d_logits, x, weight, maxima, scale):
    return torch.empty_like(x), torch.empty_like(weight)


def _setup(ctx, inputs, output):
    x, weight, ctx.scale = inputs
    ctx.save_for_backward(x, weight, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # no zeros are made for the maxima


def _backward(ctx, d_logits, d_maxima):
    return *_backward_both(d_logits.contiguous(), *ctx.saved_tensors, ctx.scale), None


_forward.register_autograd(_backward, setup_context=_setup)


def op(x: Tensor, weight: Tensor, scale: float) -> Tensor:
    """As `reference`, in one launch forward and two backward.

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
    weight = case.classes * case.c  # read by each program, which backward writes as many sums
    splits, times = cdiv(case.n, BLOCK_BWD), cdiv(case.c, _channels(case.c))
    return {
        "_pool_head_fwd": maps + maxima + logits + cdiv(case.n, _block(case.c)) * weight * dtype.itemsize,
        "_pool_head_bwd": 2 * maps + maxima + times * logits + splits * weight * (dtype.itemsize + 4),
        "_sum_splits": weight * (splits * 4 + dtype.itemsize),
    }


def _flops(case: Case, dtype: torch.dtype) -> dict[str, int]:
    """d weight, on whole tiles."""
    rows, columns = (cdiv(case[of], b) * b for of, b in (("n", BLOCK_BWD), ("c", _channels(case.c))))
    return {"_pool_head_bwd": 2 * rows * columns * max(16, power_of_2(case.classes))}


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
    flops=_flops,
    case_of=sized(n=("x", 0), c=("x", 1), h=("x", 2), w=("x", 3), classes=("weight", 0)),
    part="layer",
    backward=("_pool_head_bwd", "_sum_splits"),
    dtypes=FLOATS,
    differentiable=("x", "weight"),
    reduction=lambda case: max(case.c, case.n),
    narrow={
        "p_logits": "rows of 10 classes are no multiple of 16 bytes",
        "p_dlogits": "rows of 10 classes are no multiple of 16 bytes",
        **SUMS,
    },
)
