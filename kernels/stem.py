"""The first layer: frozen whitening filters, a trainable projection or bias, and an activation, as one 2x2
convolution.

    project:  y = conv1x1(conv2x2(x, whiten), project) + bias = conv2x2(x, project @ whiten) + bias
    bias:     y = act(conv2x2(x, whiten) + bias)

x [n, 3, h, w] channels-last, whiten [k, 3, 2, 2] frozen, project [c, k, 1, 1], bias [c] float32 -> y [n, c,
h - 1, w - 1], channels-last. Bias and activation are optional; with a projection there is no activation
(batch norm follows it). Merging is exact because nothing stands between the two convolutions; the k-channel
tensor between them never exists. The merged filters are computed in float32 (float64 for float64) and rounded
once; a pixel's 12 products are summed in float32.

    dz = dy * act'(z), z computed again      d bias = sum of dz
    d project = dz^T @ patches @ whiten^T    x and whiten have no gradient

Twelve values in and 24 to 32 out make a thin matrix product, and pixels of three channels thin loads. So four
outputs of a row are computed side by side: a product of the 2 x 16 values that begin with their pixels, and
of the filters four times over, each output's shifted by a pixel and 0 elsewhere. Hence an infinite pixel
makes NaN of the outputs beside its own. Programs step through all rows, so that each makes the filters once.
Sums over pixels are float32, of a program and then, by base/sums.py, over programs.

Bytes (16-bit, 32 x 32, c = 32): 6,144 read + 61,504 written per image forward, as much read backward. FLOPs:
2 * 12 * c * 31 * 31 per image, more than twice that as they are computed.

Sources: Page, "How to train your ResNet" (2019); hlb-CIFAR10.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .base.launch import FLOATS, INTERPRETED, cdiv, expect, launch, power_of_2, register, tl, triton
from .base.spec import EVALUATED, Case, KernelSpec
from .base.sums import SUMS, sum_splits
from .norm.activations import ACTIVATIONS
from .patch_covariance import patch_count


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
    return z if activation is None else ACTIVATIONS[activation].reference(z)


@triton.jit
def _whitening(p_whiten, columns, K: tl.constexpr):
    """The filters [K, 12] of four outputs of a row, side by side: [32, columns].

    Value 16 * dy + 3 * x + channel is that of pixel x of five in row dy; column K * i + k is filter k of
    output i, which has pixels i and i + 1.
    """
    values, outputs = tl.arange(0, 32)[:, None], (columns // K)[None, :]
    dx = values % 16 // 3 - outputs
    o_whiten = (columns % K)[None, :] * 12 + values % 16 % 3 * 4 + values // 16 * 2 + dx
    return tl.load(p_whiten + o_whiten, mask=(dx >= 0) & (dx < 2) & (outputs < 4), other=0.0)


@triton.jit
def _filters(
    p_whiten,  # [K, 12]
    p_project,  # [C, K] or None
    columns,  # [COLS], of 4 * C
    C: tl.constexpr,
    K: tl.constexpr,
    BLOCK_K: tl.constexpr,  # 4 * K or more
    UPCAST: tl.constexpr,
):
    """As `_whitening`, for C channels: those filters, or their projections, in float32; [32, COLS]."""
    if p_project is None:
        b_filters = _whitening(p_whiten, columns, C).to(tl.float32)
    else:
        k = tl.arange(0, BLOCK_K)
        b_whiten = _whitening(p_whiten, k, K)  # [32, BLOCK_K]
        o_project = (columns % C)[None, :] * K + (k % K)[:, None]
        m_project = (k // K)[:, None] == (columns // C)[None, :]  # of one output
        b_project = tl.load(p_project + o_project, mask=m_project, other=0.0)  # [BLOCK_K, COLS]
        if UPCAST:
            b_whiten, b_project = b_whiten.to(tl.float32), b_project.to(tl.float32)
        b_filters = tl.dot(b_whiten, b_project, input_precision="ieee")
    return b_filters


@triton.jit
def _pixels(p_x, first, rows, H: tl.constexpr, W: tl.constexpr, ROWS: tl.constexpr, GROUPS: tl.constexpr):
    """The pixels of the groups of ROWS rows of the output from `first` on, as `_whitening` orders them:
    [GROUPS, 32]. Output rows are numbered through all images, and an image has one more row of pixels.
    """
    A_ROW: tl.constexpr = (W + 2) // 4
    groups, values = tl.arange(0, GROUPS), tl.arange(0, 32)
    row, at = groups // A_ROW, groups % A_ROW * 4
    p_x += (first + first // (H - 1)).to(tl.int64) * (3 * W)
    o_groups = (row + (first % (H - 1) + row) // (H - 1)) * (3 * W) + at * 3  # [GROUPS]
    m_rows = row < tl.minimum(rows - first, ROWS)
    m_pixels = m_rows[:, None] & ((values % 16)[None, :] < (3 * W - at * 3)[:, None])
    o_pixels = o_groups[:, None] + (values // 16 * (3 * W) + values % 16)[None, :]
    return tl.load(p_x + o_pixels, mask=m_pixels, other=0.0)


@triton.jit
def _outputs(
    first, rows, columns, W: tl.constexpr, C: tl.constexpr, ROWS: tl.constexpr, GROUPS: tl.constexpr
):
    """Where the groups of these rows lie in the output, from row `first` on, and which are in it:
    [GROUPS, columns] both.
    """
    A_ROW: tl.constexpr = (W + 2) // 4
    groups = tl.arange(0, GROUPS)
    row, at = groups // A_ROW, groups % A_ROW * 4
    m_rows = row < tl.minimum(rows - first, ROWS)
    m_outputs = m_rows[:, None] & (columns[None, :] < (tl.minimum(W - 1 - at, 4) * C)[:, None])
    return ((row * (W - 1) + at) * C)[:, None] + columns[None, :], m_outputs


@triton.jit
def _activation_input(
    b_x,  # [GROUPS, 32]
    b_filters,  # float32 [32, COLS]
    p_bias,  # [C] or None
    columns,  # [COLS]
    C: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """z in float32, [GROUPS, COLS]."""
    b_filters = b_filters.to(b_x.dtype)
    if UPCAST:
        b_x, b_filters = b_x.to(tl.float32), b_filters.to(tl.float32)
    b_z = tl.dot(b_x, b_filters, input_precision="ieee")
    if p_bias is not None:
        b_z += tl.load(p_bias + columns % C).to(tl.float32)[None, :]
    return b_z


@triton.jit
def _stem_fwd(
    p_x,  # [n, H, W, 3]
    p_whiten,  # [K, 12]
    p_project,  # [C, K] or None
    p_bias,  # [C] or None
    p_y,  # [rows, W - 1, C]
    rows,  # n * (H - 1)
    H: tl.constexpr,
    W: tl.constexpr,
    C: tl.constexpr,
    K: tl.constexpr,
    ACTIVATION: tl.constexpr,
    UPCAST: tl.constexpr,
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
    COLS: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    columns = tl.program_id(1) * COLS + tl.arange(0, COLS)  # [COLS]
    b_filters = _filters(p_whiten, p_project, columns, C, K, BLOCK_K, UPCAST)
    start = tl.program_id(0) * ROWS
    for done in tl.range(0, rows - start, tl.num_programs(0) * ROWS):
        first = start + done
        b_x = _pixels(p_x, first, rows, H, W, ROWS, GROUPS)
        b_z = _activation_input(b_x, b_filters, p_bias, columns, C, UPCAST)
        o_y, m_y = _outputs(first, rows, columns, W, C, ROWS, GROUPS)
        p_outputs = p_y + first.to(tl.int64) * ((W - 1) * C) + o_y
        if ACTIVATION is not None:
            b_z = ACTIVATION(b_z)
        tl.store(p_outputs, b_z.to(p_y.dtype.element_ty), mask=m_y)


@triton.jit
def _stem_bwd(
    p_dy,  # [rows, W - 1, C]
    p_x,  # [n, H, W, 3]
    p_whiten,  # [K, 12]
    p_bias,  # [C] or None
    p_partial,  # float32 [4 * programs, C * K + C]: d project, d bias; without either, narrower
    rows,  # n * (H - 1)
    H: tl.constexpr,
    W: tl.constexpr,
    C: tl.constexpr,
    K: tl.constexpr,
    PROJECT: tl.constexpr,
    SLOPE: tl.constexpr,
    UPCAST: tl.constexpr,
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
    COLS: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    columns = tl.program_id(1) * COLS + tl.arange(0, COLS)  # [COLS]
    if SLOPE is not None:
        b_filters = _filters(p_whiten, None, columns, C, K, BLOCK_K, UPCAST)
    b_products = tl.zeros([32, COLS], tl.float32)  # of pixels and dz
    b_dbias = tl.zeros([GROUPS, COLS], tl.float32)
    start = tl.program_id(0) * ROWS
    for done in tl.range(0, rows - start, tl.num_programs(0) * ROWS):
        first = start + done
        o_dy, m_dy = _outputs(first, rows, columns, W, C, ROWS, GROUPS)
        b_dz = tl.load(p_dy + first.to(tl.int64) * ((W - 1) * C) + o_dy, mask=m_dy, other=0.0)
        if PROJECT or SLOPE is not None:
            b_x = _pixels(p_x, first, rows, H, W, ROWS, GROUPS)
        if PROJECT:
            b_left, b_right = tl.trans(b_x), b_dz
            if UPCAST:
                b_left, b_right = b_left.to(tl.float32), b_right.to(tl.float32)
            b_products = tl.dot(b_left, b_right, b_products, input_precision="ieee")
        if p_bias is not None:
            b_dz = b_dz.to(tl.float32)
            if SLOPE is not None:
                b_z = _activation_input(b_x, b_filters, p_bias, columns, C, UPCAST)
                b_dz *= SLOPE(b_z)
            b_dbias += b_dz

    # A row of sums for each of the four outputs of a group.
    WIDTH: tl.constexpr = C * K if PROJECT else 0
    o_rows = (tl.program_id(0) * 4 + columns // C) * (WIDTH + (0 if p_bias is None else C))
    if PROJECT:
        k = tl.arange(0, BLOCK_K)
        b_whiten = _whitening(p_whiten, k, K).to(tl.float32)
        b_dproject = tl.dot(tl.trans(b_whiten), b_products, input_precision="tf32x3")  # [BLOCK_K, COLS]
        o_project = (o_rows + columns % C * K)[None, :] + (k % K)[:, None]
        m_project = ((k // K)[:, None] == (columns // C)[None, :]) & (columns < 4 * C)[None, :]
        tl.store(p_partial + o_project, b_dproject, mask=m_project)
    if p_bias is not None:
        tl.store(p_partial + o_rows + WIDTH + columns % C, tl.sum(b_dbias, axis=0), mask=columns < 4 * C)


FORWARD, BACKWARD = 128, 64  # groups of four outputs in a step: rows of tensor-core tiles, as registers allow
PROGRAMS = 528  # at most: four for each multiprocessor, which step through all rows


def _tiles(n: int, h: int, w: int, c: int, groups: int) -> tuple[tuple[int, int], dict[str, int]]:
    """(grid, blocks). A step has all whole rows of groups that fit, and columns that divide 4 * c evenly."""
    a_row = (w + 2) // 4
    groups, cols = max(groups, power_of_2(a_row)), max(16, min(32, 4 * c & -4 * c))
    rows, sides = groups // a_row, cdiv(4 * c, cols)
    grid = min(cdiv(n * (h - 1), rows), cdiv(PROGRAMS, sides)), sides
    return grid, {"ROWS": rows, "GROUPS": groups, "COLS": cols}


def _constants(x: Tensor, whiten: Tensor) -> dict:
    _, _, h, w = x.shape
    return {
        "H": h,
        "W": w,
        "K": len(whiten),
        "UPCAST": INTERPRETED and x.dtype == torch.bfloat16,
        "BLOCK_K": max(16, power_of_2(4 * len(whiten))),
    }


def _output(x: Tensor, whiten: Tensor, project: Tensor | None) -> Tensor:
    n, _, h, w = x.shape
    shape = n, len(whiten if project is None else project), h - 1, w - 1
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


@register("hlb::stem")
def _forward(
    project: Tensor | None, bias: Tensor | None, x: Tensor, whiten: Tensor, activation: str | None
) -> Tensor:
    y, (n, _, h, w) = _output(x, whiten, project), x.shape
    grid, blocks = _tiles(n, h, w, y.shape[1], FORWARD)
    act = None if activation is None else ACTIVATIONS[activation].forward
    constants = {"C": y.shape[1], "ACTIVATION": act, **_constants(x, whiten), **blocks}
    launch(_stem_fwd, grid, x, whiten, project, bias, y, n * (h - 1), **constants)
    return y


@_forward.register_fake
def _(project, bias, x, whiten, activation):
    return _output(x, whiten, project)


@register("hlb::stem_backward")
def _backward_sums(
    dy: Tensor, project: Tensor | None, bias: Tensor | None, x: Tensor, whiten: Tensor, activation: str | None
) -> tuple[Tensor, Tensor]:
    """(d project, d bias), empty where there is none."""
    (n, _, h, w), c = x.shape, dy.shape[1]
    grid, blocks = _tiles(n, h, w, c, BACKWARD)
    d_project, d_bias = _gradients(project, bias, x)
    partial = torch.empty(
        (4 * grid[0], d_project.numel() + d_bias.numel()), dtype=torch.float32, device=x.device
    )
    slope = None if activation is None else ACTIVATIONS[activation].slope
    constants = {"C": c, "PROJECT": project is not None, "SLOPE": slope, **_constants(x, whiten), **blocks}
    launch(_stem_bwd, grid, dy, x, whiten, bias, partial, n * (h - 1), **constants)
    sum_splits(partial, *(one for one in (d_project, d_bias) if one.numel()))
    return d_project, d_bias


def _gradients(project: Tensor | None, bias: Tensor | None, x: Tensor) -> tuple[Tensor, Tensor]:
    return tuple(x.new_empty(0) if one is None else torch.empty_like(one) for one in (project, bias))


@_backward_sums.register_fake
def _(dy, project, bias, x, whiten, activation):
    return _gradients(project, bias, x)


def _setup(ctx, inputs, output):
    *tensors, ctx.activation = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, dy):
    project, bias, _, _ = ctx.saved_tensors
    dy = dy.contiguous(memory_format=torch.channels_last)  # as a network's is; another caller's may not be
    d_project, d_bias = _backward_sums(dy, *ctx.saved_tensors, ctx.activation)
    return None if project is None else d_project, None if bias is None else d_bias, None, None, None


_forward.register_autograd(_backward, setup_context=_setup)


def op(
    x: Tensor,
    whiten: Tensor,
    *,
    project: Tensor | None = None,
    bias: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """As `reference`, in one launch forward and two backward.

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
    maps = (3 * case.n * case.h * case.w + patch_count(case) * case.c) * dtype.itemsize
    whiten, project, bias = 12 * case.k * dtype.itemsize, case.c * case.k * case.project, case.c * case.bias
    bytes = {"_stem_fwd": maps + whiten + project * dtype.itemsize + 4 * bias}
    if project or bias:
        (programs, _), _ = _tiles(case.n, case.h, case.w, case.c, BACKWARD)
        partial, needs_x = 4 * 4 * programs * (project + bias), case.project or case.activation
        read = maps + whiten if needs_x else patch_count(case) * case.c * dtype.itemsize
        bytes["_stem_bwd"] = read + partial + (4 * bias if case.activation else 0)
        bytes["_sum_splits"] = partial + project * dtype.itemsize + 4 * bias
    return bytes


def _flops(case: Case, dtype: torch.dtype) -> dict[str, int]:
    """Products on whole tiles: z, or that of the pixels and dz; and that of the filters, in each program."""

    def products(groups: int) -> int:
        (programs, sides), blocks = _tiles(case.n, case.h, case.w, case.c, groups)
        steps = cdiv(case.n * (case.h - 1), blocks["ROWS"])
        filters = programs * max(16, power_of_2(4 * case.k)) if case.project else 0
        return 2 * 32 * sides * blocks["COLS"] * (steps * blocks["GROUPS"] + filters)

    backward = products(BACKWARD) if case.project or case.activation else 0
    return {"_stem_fwd": products(FORWARD), "_stem_bwd": backward}


def _case_of(inputs: dict) -> Case:
    whiten, project, bias, activation = map(inputs.get, ("whiten", "project", "bias", "activation"))
    (n, _, h, w), c = inputs["x"].shape, len(whiten if project is None else project)
    flags = {"project": project is not None, "bias": bias is not None}
    return Case(n=n, h=h, w=w, k=len(whiten), c=c, activation=activation, **flags)


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
    case_of=_case_of,
    compiled={"activation": tuple(ACTIVATIONS)},
    part="layer",
    backward=("_stem_bwd", "_sum_splits"),
    valid=lambda case: case.activation is None if case.project else case.c == case.k,
    dtypes=FLOATS,
    differentiable=("project", "bias"),
    reduction=lambda case: 12 + patch_count(case),
    narrow={
        "p_x": "pixels of 3 channels: a group of four begins 12 values behind the one before",
        "p_whiten": _SMALL,
        "p_project": _SMALL,
        "p_bias": _SMALL,
        "p_partial": "a sum for each column, once a program",
        **SUMS,
    },
    shared_reads=("_stem_fwd", "_stem_bwd"),
)
