"""The first layer: frozen whitening filters, a trainable projection or bias, and an activation, as one 2x2
convolution.

    project:  y = conv1x1(conv2x2(x, whiten), project) + bias = conv2x2(x, project @ whiten) + bias
    bias:     y = act(conv2x2(x, whiten) + bias)

x [n, 3, h, w] channels-last, whiten [k, 3, 2, 2] frozen, project [c, k, 1, 1], bias [c] float32 -> y [n, c,
h - 1, w - 1], channels-last. Bias and activation are optional; with a projection there is no activation
(batch norm follows it). Merging is exact because nothing stands between the two convolutions; the k-channel
tensor between them never exists. The merged filters are computed in float32 (float64 for float64) and rounded
once; a pixel's 12 products are summed in float32.

    dz = dy * act'(z), z computed again      [d filters^T; d bias] = [patches, 1]^T @ dz
    d project = d filters @ whiten^T         x and whiten have no gradient

dz is rounded to the dtype of dy; its sums over pixels are float32, one per program, added in a second step.

Bytes (16-bit, 32 x 32, c = 32): 6,144 read + 61,504 written per image forward, as much read backward. FLOPs:
2 * 12 * c * 31 * 31 per image.

Sources: Page, "How to train your ResNet" (2019); hlb-CIFAR10.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .activations import activate, activation_slope
from .launch import FLOATS, INTERPRETED, cdiv, expect, launch, power_of_2, register, tl, triton
from .norm_act import ACTIVATIONS
from .patch_covariance import GATHERED, _patch_offsets, patch_bytes, patch_count
from .spec import EVALUATED, Case, KernelSpec


def reference(
    x: Tensor,
    whiten: Tensor,
    *,
    project: Tensor | None = None,
    bias: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """[n, 3, h, w] -> [n, c, h - 1, w - 1] in the dtype of `x`; c is k, or the projection's outputs.

    Raises ValueError for an unknown activation, and for one after a projection.
    """
    _check_activation(activation, project)
    weight = whiten
    if project is not None:
        wide = torch.promote_types(x.dtype, torch.float32)
        weight = torch.einsum("ok,kihw->oihw", project[:, :, 0, 0].to(wide), whiten.to(wide))
    z = F.conv2d(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
    return z if activation is None else ACTIVATIONS[activation](z)


@triton.jit
def _filters(
    p_whiten,  # [K, 12]
    p_project,  # [C, K] or None
    values,  # [16]
    channels,  # [BLOCK_C]
    C: tl.constexpr,
    K: tl.constexpr,
    BLOCK_K: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """The filters transposed, float32 [16, BLOCK_C]: (project @ whiten)^T, or whiten^T."""
    m_values, m_channels = (values < 12)[:, None], (channels < C)[None, :]
    if p_project is None:
        o_whiten = channels[None, :] * 12 + values[:, None]
        b_filters = tl.load(p_whiten + o_whiten, mask=m_values & m_channels, other=0.0).to(tl.float32)
    else:
        k = tl.arange(0, BLOCK_K)
        b_whiten = tl.load(p_whiten + k[None, :] * 12 + values[:, None], mask=m_values & (k < K), other=0.0)
        o_project = channels[None, :] * K + k[:, None]
        b_project = tl.load(p_project + o_project, mask=(k < K)[:, None] & m_channels, other=0.0)
        if UPCAST:
            b_whiten, b_project = b_whiten.to(tl.float32), b_project.to(tl.float32)
        b_filters = tl.dot(b_whiten, b_project, input_precision="ieee")
    return b_filters


@triton.jit
def _activation_input(
    b_patches,  # [BLOCK, 16]
    b_filters,  # float32 [16, BLOCK_C]
    p_bias,  # float32 [C] or None
    channels,  # [BLOCK_C]
    C: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """z in float32, [BLOCK, BLOCK_C]."""
    b_filters = b_filters.to(b_patches.dtype)
    if UPCAST:
        b_patches, b_filters = b_patches.to(tl.float32), b_filters.to(tl.float32)
    b_z = tl.dot(b_patches, b_filters, input_precision="ieee")
    if p_bias is not None:
        b_z += tl.load(p_bias + channels, mask=channels < C, other=0.0).to(tl.float32)[None, :]
    return b_z


@triton.jit
def _stem_fwd(
    p_x,  # [n, H, W, 3]
    p_whiten,  # [K, 12]
    p_project,  # [C, K] or None
    p_bias,  # [C] or None
    p_y,  # [pixels, C]
    pixels,  # n * (H - 1) * (W - 1)
    H: tl.constexpr,
    W: tl.constexpr,
    C: tl.constexpr,
    K: tl.constexpr,
    ACTIVATION: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    values, channels = tl.arange(0, 16), tl.arange(0, BLOCK_C)
    b_filters = _filters(p_whiten, p_project, values, channels, C, K, BLOCK_K, UPCAST)
    m_patches = (rows < pixels)[:, None] & (values < 12)[None, :]
    b_patches = tl.load(p_x + _patch_offsets(rows, values, H, W), mask=m_patches, other=0.0)  # [BLOCK, 16]
    b_z = _activation_input(b_patches, b_filters, p_bias, channels, C, UPCAST)
    o_y = rows.to(tl.int64)[:, None] * C + channels
    m_y = (rows < pixels)[:, None] & (channels < C)
    tl.store(p_y + o_y, activate(b_z, ACTIVATION).to(p_y.dtype.element_ty), mask=m_y)


@triton.jit
def _stem_bwd(
    p_dy,  # [pixels, C]
    p_x,  # [n, H, W, 3]
    p_whiten,  # [C, 12]: read only for an activation, as the bias is
    p_bias,  # [C] or None
    p_partial,  # float32 [programs, 13, C]: d filters^T, and below it d bias
    pixels,  # n * (H - 1) * (W - 1)
    H: tl.constexpr,
    W: tl.constexpr,
    C: tl.constexpr,
    ACTIVATION: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    program, programs = tl.program_id(0), tl.num_programs(0)
    values, channels = tl.arange(0, 16), tl.arange(0, BLOCK_C)
    if ACTIVATION is not None:
        b_filters = _filters(p_whiten, None, values, channels, C, C, BLOCK_C, UPCAST)
    b_sums = tl.zeros([16, BLOCK_C], tl.float32)
    for start in range(program * BLOCK, pixels, programs * BLOCK):
        rows = start + tl.arange(0, BLOCK)  # [BLOCK]
        m_rows = (rows < pixels)[:, None]
        o_patches = _patch_offsets(rows, values, H, W)  # [BLOCK, 16]
        b_patches = tl.load(p_x + o_patches, mask=m_rows & (values < 12), other=0.0)
        o_dy = rows.to(tl.int64)[:, None] * C + channels  # [BLOCK, BLOCK_C]
        b_dz = tl.load(p_dy + o_dy, mask=m_rows & (channels < C), other=0.0)
        if ACTIVATION is not None:
            b_z = _activation_input(b_patches, b_filters, p_bias, channels, C, UPCAST)
            b_dz = (b_dz.to(tl.float32) * activation_slope(b_z, ACTIVATION)).to(b_patches.dtype)
        b_one = tl.full([1, 16], 1.0, tl.float32).to(b_patches.dtype)
        b_patches = tl.where(values[None, :] == 12, b_one, b_patches)  # so that dz itself is summed, too
        if UPCAST:
            b_patches, b_dz = b_patches.to(tl.float32), b_dz.to(tl.float32)
        b_sums = tl.dot(tl.trans(b_patches), b_dz, b_sums, input_precision="ieee")
    o_sums = (program * 13 + values)[:, None] * C + channels
    tl.store(p_partial + o_sums, b_sums, mask=(values < 13)[:, None] & (channels < C))


BLOCK = 128  # pixels of a step
PROGRAMS = 1024  # at most, backward: each writes one partial sum


def _constants(x: Tensor, c: int, activation: str | None) -> dict:
    return {
        "H": x.shape[2],
        "W": x.shape[3],
        "C": c,
        "ACTIVATION": activation,
        "UPCAST": INTERPRETED and x.dtype == torch.bfloat16,
        "BLOCK": BLOCK,
        "BLOCK_C": max(16, power_of_2(c)),
    }


def _pixels(x: Tensor) -> int:
    """Of the output."""
    n, _, h, w = x.shape
    return n * (h - 1) * (w - 1)


def _output(x: Tensor, whiten: Tensor, project: Tensor | None) -> Tensor:
    n, _, h, w = x.shape
    shape = n, len(whiten if project is None else project), h - 1, w - 1
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


@register("hlb::stem")
def _forward(
    project: Tensor | None, bias: Tensor | None, x: Tensor, whiten: Tensor, activation: str | None
) -> Tensor:
    y, pixels, k = _output(x, whiten, project), _pixels(x), len(whiten)
    constants = {"K": k, "BLOCK_K": max(16, power_of_2(k)), **_constants(x, y.shape[1], activation)}
    launch(_stem_fwd, (cdiv(pixels, BLOCK),), x, whiten, project, bias, y, pixels, **constants)
    return y


@_forward.register_fake
def _(project, bias, x, whiten, activation):
    return _output(x, whiten, project)


@register("hlb::stem_backward")
def _backward_sums(
    dy: Tensor, bias: Tensor | None, x: Tensor, whiten: Tensor, activation: str | None
) -> Tensor:
    """float32 [13, c]: d filters^T, and below it d bias."""
    pixels, c = _pixels(x), dy.shape[1]
    programs = min(PROGRAMS, cdiv(pixels, BLOCK))
    partial = torch.empty((programs, 13, c), dtype=torch.float32, device=x.device)
    constants = _constants(x, c, activation)
    launch(_stem_bwd, (programs,), dy, x, whiten, bias, partial, pixels, **constants)
    return partial.sum(0)


@_backward_sums.register_fake
def _(dy, bias, x, whiten, activation):
    return x.new_empty((13, dy.shape[1]), dtype=torch.float32)


def _setup(ctx, inputs, output):
    *tensors, ctx.activation = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, dy):
    project, bias, x, whiten = ctx.saved_tensors
    dy = dy.contiguous(memory_format=torch.channels_last)  # as a network's is; another caller's may not be
    sums = _backward_sums(dy, bias, x, whiten, ctx.activation)
    d_project = d_bias = None
    if project is not None:
        d_project = (whiten.flatten(1).float() @ sums[:12]).T.to(project.dtype).contiguous()
        d_project = d_project.view(project.shape)
    if bias is not None:
        d_bias = sums[12].to(bias.dtype, copy=True)
    return d_project, d_bias, None, None, None


_forward.register_autograd(_backward, setup_context=_setup)


def op(
    x: Tensor,
    whiten: Tensor,
    *,
    project: Tensor | None = None,
    bias: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """As `reference`, in one launch forward, and one, a reduction and a small matrix product backward.

    Raises ValueError for a wrong shape, dtype, layout or device, for an activation that `reference` refuses,
    and for an `x` or `whiten` that requires a gradient, naming the argument.
    """
    _check_activation(activation, project)
    expect("x", x, None, 3, None, None, channels_last=True)
    if min(x.shape[2:]) < 2:
        raise ValueError(f"x: got shape {list(x.shape)}, accepted is a map of 2x2 or more")
    expect("whiten", whiten, None, 3, 2, 2, dtypes=(x.dtype,), device=x.device)
    c = len(whiten)
    if project is not None:
        expect("project", project, None, c, 1, 1, dtypes=(x.dtype,), device=x.device)
        c = len(project)
    if bias is not None:
        expect("bias", bias, c, device=x.device)
    for name, tensor in (("x", x), ("whiten", whiten)):
        if tensor.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"{name}: got a tensor that requires a gradient, accepted is one that does not")
    return _forward(project, bias, x, whiten, activation)


def _check_activation(activation: str | None, project: Tensor | None) -> None:
    accepted = (None, *ACTIVATIONS) if project is None else (None,)
    if activation not in accepted:
        raise ValueError(f"activation: got {activation!r}, accepted are {', '.join(map(str, accepted))}")


def _make(case: Case, dtype: torch.dtype, device) -> dict:
    x = torch.randn(case.n, 3, case.h, case.w, device=device).to(dtype)
    project = torch.randn(case.c, case.k, 1, 1, device=device) / case.k**0.5
    return {
        "x": x.to(memory_format=torch.channels_last),
        "whiten": torch.randn(case.k, 3, 2, 2, device=device).div(12**0.5).to(dtype),
        "project": project.to(dtype) if case.project else None,
        "bias": torch.randn(case.c, device=device) if case.bias else None,
        "activation": case.activation,
    }


def _bytes(case: Case, dtype: torch.dtype) -> dict[str, int]:
    pixels, itemsize = patch_count(case), dtype.itemsize
    programs = cdiv(pixels, BLOCK)
    maps = patch_bytes(case, BLOCK, itemsize) + pixels * case.c * itemsize
    filters = (12 + case.c if case.project else 12) * case.k * itemsize + 4 * case.c * case.bias
    bytes = {"_stem_fwd": maps + programs * filters}
    if case.project or case.bias:
        programs = min(PROGRAMS, programs)
        again = programs * filters if case.activation else 0
        bytes["_stem_bwd"] = maps + again + programs * 13 * case.c * 4
    return bytes


def _flops(case: Case, dtype: torch.dtype) -> dict[str, int]:
    """Products on whole tiles: merging, z, and the sums backward."""
    block_c, steps = max(16, power_of_2(case.c)), cdiv(patch_count(case), BLOCK)
    merge = 2 * 16 * max(16, power_of_2(case.k)) * block_c if case.project else 0
    step = 2 * 16 * BLOCK * block_c
    return {"_stem_fwd": steps * (merge + step), "_stem_bwd": steps * step * (2 if case.activation else 1)}


def _projected(label: str, n: int, c: int = 32, side: int = 32) -> Case:
    return Case(label, n=n, h=side, w=side, k=12, c=c, project=True, bias=False, activation=None)


def _biased(label: str, n: int, side: int = 32) -> Case:
    return Case(label, n=n, h=side, w=side, k=24, c=24, project=False, bias=True, activation="gelu")


_SMALL = "a few hundred filter values, from the cache"

SPEC = KernelSpec(
    name="stem",
    formula="y = act(conv2x2(x, project @ whiten) + bias)",
    fuses="whitening and projection as one convolution; or whitening, bias, activation",
    reference=reference,
    op=op,
    ops=("hlb::stem", "hlb::stem_backward"),
    make=_make,
    cases=(
        _projected("seed", 512),
        _projected("seed eval", 1000),
        _biased("record94", 1536),
        _biased("record94 at 24", 1536, 24),
        _biased("record94 at 28", 1536, 28),
        *(_biased(f"record94 eval at {n}", n) for n in EVALUATED),
        _biased("smoke", 500),
    ),
    space={
        "n": (1, 3),
        "h": (2, 3, 8, 14),
        "w": (2, 4, 7, 16),
        "k": (12, 24, 3, 40),
        "c": (12, 24, 3, 40),
        "project": (True, False),
        "bias": (True, False),
        "activation": (None, *ACTIVATIONS),
    },
    counted=(_projected("projected", 2), _biased("biased", 2)),
    bytes=_bytes,
    flops=_flops,
    valid=lambda case: case.activation is None if case.project else case.c == case.k,
    dtypes=FLOATS,
    differentiable=("project", "bias"),
    reduction=lambda case: 12 + patch_count(case),
    narrow={
        "p_x": GATHERED,
        "p_whiten": _SMALL,
        "p_project": _SMALL,
        "p_bias": _SMALL,
    },
)
