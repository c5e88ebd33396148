"""Squeeze-and-excite: one gate per image and channel.

    z1 = s @ W1^T + b1      u = gelu(z1)      z2 = u @ W2^T + b2      gate = sigmoid(z2)
    d z2 = d gate * gate * (1 - gate)         d z1 = (d z2 @ W2) * gelu'(z1)         d s = d z1 @ W1
    d W2 = d z2^T @ u       d b2 = sum over n of d z2       d W1 = d z1^T @ s       d b1 = sum over n of d z1

s [n, c] the spatial mean of x [n, c, h, w] as `norm_act` emits it, W1 [c / r, c], b1 [c / r], W2 [c, c / r],
b2 [c] -> gate [n, c], in the dtype of s (float32, float64 for float64). The gate multiplies another tensor
than x in this network, the last convolution's output, which is why the op ends at the gate.

Weights may be 16-bit, s and biases are float32. Products are three tf32 ones each, which is float32's
precision on tensor cores. A program has 16 images and a slice of the channels; the hidden values, or their
gradients, which take all channels, each slice computes anew. Sums over a program's images are float32, and
added up by base/sums.py in a fixed order, so results repeat bit for bit.

Bytes: s read, the gate written forward; s, the gate and its gradient read, d s written backward, all float32
[n, c]; the sums of 16 images each. FLOPs: 4 * c * c / r per image, twice that backward. Source: Hu, Shen,
Sun, arXiv 1709.01507.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .base.launch import FLOATS, cdiv, expect, launch, power_of_2, register, tl, triton
from .base.spec import Case, KernelSpec, sized
from .base.sums import SUMS, sum_splits
from .norm.activations import gelu, gelu_slope


def reference(s: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor) -> Tensor:
    """Spatial mean [n, c] -> gate [n, c], in the dtype of `s`."""
    hidden = F.gelu(F.linear(s, weight1.to(s.dtype), bias1.to(s.dtype)))
    return torch.sigmoid(F.linear(hidden, weight2.to(s.dtype), bias2.to(s.dtype)))


@triton.jit
def _se_gate_fwd(
    p_s,  # float32 [n, C]
    p_weight1,  # [R, C]
    p_bias1,  # float32 [R]
    p_weight2,  # [C, R]
    p_bias2,  # float32 [C]
    p_z1,  # float32 [n, R]
    p_gate,  # float32 [n, C]
    n,
    C: tl.constexpr,
    R: tl.constexpr,
    SLICE: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    images = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)[:, None]
    channels, hidden = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_R)
    m_images, m_hidden = images < n, hidden < R
    b_z1 = tl.zeros([BLOCK, BLOCK_R], tl.float32)
    for c in range(0, C, BLOCK_C):
        m_c = c + channels < C  # [BLOCK_C]
        b_s = tl.load(p_s + images * C + c + channels, mask=m_images & m_c, other=0.0)  # [BLOCK, BLOCK_C]
        o_weight1 = hidden[:, None] * C + c + channels
        b_weight1 = tl.load(p_weight1 + o_weight1, mask=m_hidden[:, None] & m_c, other=0.0)
        b_z1 = tl.dot(b_s, tl.trans(b_weight1).to(tl.float32), b_z1, input_precision="tf32x3")
    b_z1 += tl.load(p_bias1 + hidden, mask=m_hidden, other=0.0)
    tl.store(p_z1 + images * R + hidden, b_z1, mask=m_images & m_hidden & (tl.program_id(1) == 0))

    b_hidden = gelu(b_z1)  # 0 in the columns that are padding
    for i in range(0, SLICE, BLOCK_C):
        c = tl.program_id(1) * SLICE + i
        m_c = c + channels < C
        o_weight2 = (c + channels)[:, None] * R + hidden
        b_weight2 = tl.load(p_weight2 + o_weight2, mask=m_c[:, None] & m_hidden, other=0.0)
        b_z2 = tl.dot(b_hidden, tl.trans(b_weight2).to(tl.float32), input_precision="tf32x3")
        b_z2 += tl.load(p_bias2 + c + channels, mask=m_c, other=0.0)
        tl.store(p_gate + images * C + c + channels, tl.sigmoid(b_z2), mask=m_images & m_c)


@triton.jit
def _dz2(p_dgate, p_gate, o_all, m_all):
    b_gate = tl.load(p_gate + o_all, mask=m_all, other=0.0)
    return tl.load(p_dgate + o_all, mask=m_all, other=0.0) * b_gate * (1.0 - b_gate)


@triton.jit
def _se_gate_bwd(
    p_dgate,  # float32 [n, C]
    p_gate,  # float32 [n, C]
    p_s,  # float32 [n, C]
    p_z1,  # float32 [n, R]
    p_weight1,  # [R, C]
    p_weight2,  # [C, R]
    p_ds,  # float32 [n, C]
    p_partial,  # float32 [programs, R * C + C * R + R + C]: d W1, d W2, d b1, d b2
    n,
    C: tl.constexpr,
    R: tl.constexpr,
    SLICE: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    images = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)[:, None]
    channels, hidden = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_R)
    m_images, m_hidden = images < n, hidden < R
    p_dweight1 = p_partial + tl.program_id(0).to(tl.int64) * (2 * R * C + R + C)
    p_dweight2 = p_dweight1 + R * C
    p_dbias1 = p_dweight2 + C * R
    p_dbias2 = p_dbias1 + R
    b_z1 = tl.load(p_z1 + images * R + hidden, mask=m_images & m_hidden, other=0.0)  # [BLOCK, BLOCK_R]
    b_dhidden = tl.zeros([BLOCK, BLOCK_R], tl.float32)
    for c in range(0, C, BLOCK_C):
        o_all, m_all = images * C + c + channels, m_images & (c + channels < C)  # [BLOCK, BLOCK_C]
        o_weight2, m_weight2 = (c + channels)[:, None] * R + hidden, (c + channels < C)[:, None] & m_hidden
        b_weight2 = tl.load(p_weight2 + o_weight2, mask=m_weight2, other=0.0)  # [BLOCK_C, BLOCK_R]
        b_dz2 = _dz2(p_dgate, p_gate, o_all, m_all)
        b_dhidden = tl.dot(b_dz2, b_weight2.to(tl.float32), b_dhidden, input_precision="tf32x3")

    b_hidden = gelu(b_z1)  # 0 beyond the images and in the columns that are padding
    b_dz1 = b_dhidden * gelu_slope(b_z1)
    tl.store(p_dbias1 + hidden, tl.sum(b_dz1, axis=0), mask=m_hidden & (tl.program_id(1) == 0))
    for i in range(0, SLICE, BLOCK_C):
        c = tl.program_id(1) * SLICE + i
        m_c = c + channels < C  # [BLOCK_C]
        o_all, m_all = images * C + c + channels, m_images & m_c
        b_dz2 = _dz2(p_dgate, p_gate, o_all, m_all)  # again, from the cache
        tl.store(p_dbias2 + c + channels, tl.sum(b_dz2, axis=0), mask=m_c)
        b_dweight2 = tl.dot(tl.trans(b_dz2), b_hidden, input_precision="tf32x3")  # [BLOCK_C, BLOCK_R]
        o_weight2, m_weight2 = (c + channels)[:, None] * R + hidden, m_c[:, None] & m_hidden
        tl.store(p_dweight2 + o_weight2, b_dweight2, mask=m_weight2)

        o_weight1, m_weight1 = hidden[:, None] * C + c + channels, m_hidden[:, None] & m_c
        b_s = tl.load(p_s + o_all, mask=m_all, other=0.0)
        b_dweight1 = tl.dot(tl.trans(b_dz1), b_s, input_precision="tf32x3")  # [BLOCK_R, BLOCK_C]
        tl.store(p_dweight1 + o_weight1, b_dweight1, mask=m_weight1)
        b_weight1 = tl.load(p_weight1 + o_weight1, mask=m_weight1, other=0.0)
        b_ds = tl.dot(b_dz1, b_weight1.to(tl.float32), input_precision="tf32x3")
        tl.store(p_ds + o_all, b_ds, mask=m_all)


BLOCK = 16  # images of a program, the rows of a tensor-core tile
SLICE = (
    128  # channels for which a program computes what is of one channel; what is of all, it computes itself
)


def _blocks(c: int, r: int) -> dict[str, int]:
    block_c = min(64, max(16, power_of_2(c)))
    width = min(SLICE, cdiv(c, block_c) * block_c)
    return {"SLICE": width, "BLOCK": BLOCK, "BLOCK_C": block_c, "BLOCK_R": max(16, power_of_2(r))}


def _grid(n: int, c: int) -> tuple[int, int]:
    return cdiv(n, BLOCK), cdiv(c, SLICE)


@register("hlb::se_gate")
def _forward(
    s: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor
) -> tuple[Tensor, Tensor]:
    """(gate [n, c], z1 [n, c / r])"""
    gate, z1 = torch.empty_like(s), s.new_empty((len(s), len(weight1)))
    r, c = weight1.shape
    arguments = s, weight1, bias1, weight2, bias2, z1, gate, len(s)
    launch(_se_gate_fwd, _grid(len(s), c), *arguments, C=c, R=r, **_blocks(c, r))
    return gate, z1


@_forward.register_fake
def _(s, weight1, bias1, weight2, bias2):
    return torch.empty_like(s), s.new_empty((len(s), len(weight1)))


@register("hlb::se_gate_backward")
def _backward_all(
    d_gate: Tensor, gate: Tensor, s: Tensor, z1: Tensor, weight1: Tensor, weight2: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(d s, d W1 and behind it d W2, d b1 and behind it d b2)"""
    (r, c), n = weight1.shape, len(gate)
    d_s, d_weights, d_biases = _gradients(gate, weight1)
    partial = gate.new_empty((cdiv(n, BLOCK), d_weights.numel() + d_biases.numel()))
    arguments = d_gate, gate, s, z1, weight1, weight2, d_s, partial, n
    launch(_se_gate_bwd, _grid(n, c), *arguments, C=c, R=r, **_blocks(c, r))
    sum_splits(partial, d_weights, d_biases)
    return d_s, d_weights, d_biases


def _gradients(gate: Tensor, weight1: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r, c = weight1.shape
    return torch.empty_like(gate), weight1.new_empty(2 * r * c), gate.new_empty(r + c)


@_backward_all.register_fake
def _(d_gate, gate, s, z1, weight1, weight2):
    return _gradients(gate, weight1)


def _setup(ctx, inputs, output):
    s, weight1, _, weight2, _ = inputs
    gate, z1 = output
    ctx.save_for_backward(gate, s, z1, weight1, weight2)
    ctx.mark_non_differentiable(z1)
    ctx.set_materialize_grads(False)  # no zeros are made for z1


def _backward(ctx, d_gate, d_z1):
    d_s, d_weights, d_biases = _backward_all(d_gate.contiguous(), *ctx.saved_tensors)
    r, c = ctx.saved_tensors[3].shape
    d_weight1, d_weight2 = d_weights.split(r * c)
    d_bias1, d_bias2 = d_biases.split((r, c))
    return d_s, d_weight1.view(r, c), d_bias1, d_weight2.view(c, r), d_bias2


_forward.register_autograd(_backward, setup_context=_setup)


def op(s: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor) -> Tensor:
    """As `reference`, in one launch forward and two backward.

    `s` and the biases are float32, the weights of one dtype. Raises ValueError for a wrong shape, dtype,
    layout or device, naming the argument.
    """
    wide, device = (torch.float32,), s.device
    expect("s", s, None, None, dtypes=wide)
    expect("weight1", weight1, None, s.shape[1], device=device)
    expect("bias1", bias1, len(weight1), dtypes=wide, device=device)
    expect("weight2", weight2, *reversed(weight1.shape), dtypes=(weight1.dtype,), device=device)
    expect("bias2", bias2, s.shape[1], dtypes=wide, device=device)
    return _forward(s, weight1, bias1, weight2, bias2)[0]


def _make(case: Case, dtype: torch.dtype, device) -> dict:
    def linear(outputs: int, inputs: int):
        weight = torch.randn(outputs, inputs, device=device) / inputs**0.5
        return weight.to(dtype), torch.randn(outputs, device=device)

    weight1, bias1 = linear(case.r, case.c)
    weight2, bias2 = linear(case.c, case.r)
    s = torch.randn(case.n, case.c, device=device)
    return {"s": s, "weight1": weight1, "bias1": bias1, "weight2": weight2, "bias2": bias2}


def _bytes(case: Case, dtype: torch.dtype) -> dict[str, int]:
    programs, sides = _grid(case.n, case.c)
    product, biases = case.c * case.r, case.c + case.r
    channels, hidden = 4 * case.n * case.c, 4 * case.n * case.r
    weights = programs * (sides + 1) * product * dtype.itemsize  # one read whole by each program
    partial = programs * 4 * (2 * product + biases)
    return {
        "_se_gate_fwd": (sides + 1) * channels + hidden + weights + programs * 4 * (case.c + sides * case.r),
        "_se_gate_bwd": (2 * sides + 2) * channels + sides * hidden + weights + partial,
        "_sum_splits": partial + 2 * product * dtype.itemsize + 4 * biases,
    }


def _flops(case: Case, dtype: torch.dtype) -> dict[str, int]:
    """Matrix products on whole tiles, one of them for each slice of the channels anew."""
    programs, sides = _grid(case.n, case.c)
    blocks = _blocks(case.c, case.r)
    product = 2 * programs * BLOCK * cdiv(case.c, blocks["BLOCK_C"]) * blocks["BLOCK_C"] * blocks["BLOCK_R"]
    return {"_se_gate_fwd": (sides + 1) * product, "_se_gate_bwd": (sides + 3) * product}


SPEC = KernelSpec(
    name="se_gate",
    formula="gate = sigmoid(W2 @ gelu(W1 @ s + b1) + b2)",
    fuses="two linear layers, GELU, sigmoid",
    reference=reference,
    op=op,
    ops=("hlb::se_gate", "hlb::se_gate_backward"),
    make=_make,
    cases=(
        Case("seed.1", n=512, c=128, r=8),
        Case("seed.3", n=512, c=512, r=32),
        Case("seed.1 eval", n=1000, c=128, r=8),
        Case("seed.3 eval", n=1000, c=512, r=32),
    ),
    space={"n": (1, 3, 17, 48), "c": (3, 12, 24, 64, 96, 160), "r": (1, 3, 4, 17)},
    counted=(Case(n=48, c=128, r=8), Case(n=32, c=256, r=16)),
    bytes=_bytes,
    flops=_flops,
    case_of=sized(n=("s", 0), c=("s", 1), r=("weight1", 0)),
    dtype_from="weight1",
    part="layer",
    backward=("_se_gate_bwd", "_sum_splits"),
    dtypes=FLOATS,
    differentiable=("s", "weight1", "bias1", "weight2", "bias2"),
    reduction=lambda case: max(case.c, case.n),
    narrow={
        "p_z1": "a block of 16 images has fewer of these values than threads can read 16 bytes of",
        "p_partial": "among others, a sum for each channel",
        "p_rest": "there are fewer sums for biases than threads",
        **SUMS,
        "p_bias1": "fewer values than a warp has threads",
        "p_bias2": "fewer values than a warp has threads",
    },
)
