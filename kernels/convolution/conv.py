"""Convolution of channels-last images, 3x3 with zero padding 1, or 2x2 or 1x1 without.

    y[n, y, x, o] = sum over r, s, c of x[n, y + r - pad, x + s - pad, c] * filters[o, r, s, c]

x [n, c, h, w] and filters [o, c, size, size], both channels-last, y [n, o, h', w'] of the same dtype;
accumulated in float32. float32 is multiplied in full, or as tf32 where torch.backends.cuda.matmul.allow_tf32.
In the network it is part of a block (kernels/conv_bn_act.py); alone it is measured beside cuDNN's.

Bytes: x, filters and y once; backward x, filters, their gradients once, dy twice, and partial sums of the
filters' gradient. FLOPs: 2 * size^2 * c * o an output, and as many for each gradient; fewer where padding
taps are skipped (tiling.py).
Source: Chetlur et al., arXiv 1410.0759 (implicit matrix product).
"""

from __future__ import annotations

from dataclasses import replace
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from ..base import chips
from ..base.launch import FLOATS, expect, register
from ..base.spec import Case, KernelSpec
from ..base.sums import SUMS
from ..norm import norm_passes
from ..norm.norm_passes import float32_like, image_like
from . import conv_gradients, conv_passes, selection, tiling, window_gradients, window_passes
from .float8 import PASSES
from .tiling import FLOAT8, Config, Problem

SIZES = (1, 2, 3)


def reference(x: Tensor, filters: Tensor) -> Tensor:
    """x [n, c, h, w], filters [o, c, size, size] -> [n, o, h', w']; any dtype, layout and device."""
    return F.conv2d(x, filters, padding=filters.shape[2] // 3)


def problem(
    kind: str, x: Tensor, filters: Tensor, pool: bool = False, dtype: torch.dtype | None = None
) -> Problem:
    """The pass `kind` of a convolution; x and filters give extents, and the dtype if it is not told."""
    (n, c, h, w), (o, _, size, _) = x.shape, filters.shape
    return Problem(kind, n, h, w, c, o, size, pool, dtype or x.dtype)


def configured(
    kind: str,
    x: Tensor,
    filters: Tensor,
    pool: bool = False,
    by_kernel: str = selection.ALL,
    dtype: torch.dtype | None = None,
) -> tuple[Problem, Config | None]:
    """The pass and its launch configuration on the device of x; None where `by_kernel` leaves it to cuDNN."""
    this = problem(kind, x, filters, pool, dtype)
    if kind not in by_kernel.split():
        return this, None
    config = selection.choose(this, chips.current(x.device))
    if config.descriptors and not (_aligned(x) and _aligned(filters)):
        if config.order == "windows":  # a forward pass that has no other form
            config = selection.implicit(this, chips.current(x.device))
        config = replace(config, descriptors=False)
    return this, config


def _aligned(tensor: Tensor) -> bool:
    """Whether a descriptor can begin where the tensor does; storages themselves begin well."""
    return tensor.storage_offset() * tensor.itemsize % 16 == 0


def fused(how: tuple[Problem, Config | None]) -> bool:
    """Whether a kernel does the forward pass whose epilogue does what follows in a block."""
    _, config = how
    return config is not None and config.order != "windows"


def apart(
    how: tuple[Problem, Config | None], x: Tensor, filters: Tensor, argmax: Tensor | None = None
) -> tuple[Tensor, bool]:
    """Of a pass that is not fused: z of cuDNN or u by windows, and whether it remains to be pooled."""
    problem, config = how
    if config is None:
        return reference(x, filters), problem.pool
    u = _unwritten(problem, x)
    window_passes.forward(problem, config, x, filters, u, argmax)
    return u, False


def forward(
    how: tuple[Problem, Config | None],
    x: Tensor,
    filters: Tensor,
    gate: Tensor | None,
    argmax: Tensor,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, int, int]:
    """(u of `dtype`, statistics of u * gate by tile, rows of a tile, places) as `norm_passes.merge` takes
    them; writes `argmax` where the pass pools.
    """
    problem, config = how
    if fused(how):
        u, (tiles, places) = _unwritten(problem, x, dtype), tiling.tiles(problem, config)
        partial = float32_like(x, tiles, 2, problem.o)
        conv_passes.forward(problem, config, x, filters, u, gate=gate, argmax=argmax, partial=partial)
        return u, partial, config.rows, places
    v, pools = apart(how, x, filters, argmax)
    u = _unwritten(problem, x) if pools else v
    return u, *norm_passes.statistics(v, gate, u, argmax, pool=pools), 1


def _unwritten(problem: Problem, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Of the extents and layout of the pass's outputs."""
    return image_like(x, *problem.output, dtype, channels=problem.o)


def gradient(
    how: tuple[Problem, Config | None],
    dy: Tensor,
    argmax: Tensor | None,
    x: Tensor,
    filters: Tensor,
    largest: Tensor | None = None,
) -> Tensor:
    """d x or d filters, as the pass is; without a configuration by cuDNN. dy is the gradient of all outputs,
    or with `argmax` of pooled ones, which cuDNN does not take. Of 8 bits as `conv_gradients.dgrad` says.
    """
    problem, config = how
    if config is None:
        return torch_gradient(problem, dy, x, filters).contiguous(memory_format=torch.channels_last)
    if problem.kind == "dgrad":
        dx = torch.empty_like(x)
        conv_gradients.dgrad(problem, config, dy, argmax, filters, dx, largest)
        return dx
    d_filters = torch.empty_like(filters)
    conv_gradients.wgrad(problem, config, dy, argmax, x, d_filters)
    return d_filters


def torch_gradient(problem: Problem, dy: Tensor, x: Tensor, filters: Tensor) -> Tensor:
    """d x or d filters from the gradient of all outputs, by PyTorch's operator."""
    which, pad = problem.kind == "wgrad", [problem.pad] * 2
    options = [1, 1], pad, [1, 1], False, [0, 0], 1, [not which, which, False]
    return torch.ops.aten.convolution_backward(dy, x, filters, None, *options)[which]


@register("hlb::conv")
def _forward(x: Tensor, filters: Tensor) -> Tensor:
    y = _output(x, filters)
    conv_passes.forward(*configured("forward", x, filters), x, filters, y)
    return y


@_forward.register_fake
def _output(x, filters):
    return image_like(x, *problem("forward", x, filters).output, channels=len(filters))


@register("hlb::conv_dgrad")
def _dgrad(dy: Tensor, x: Tensor, filters: Tensor) -> Tensor:
    return gradient(configured("dgrad", x, filters), dy, None, x, filters)


@_dgrad.register_fake
def _(dy, x, filters):
    return torch.empty_like(x)


@register("hlb::conv_wgrad")
def _wgrad(dy: Tensor, x: Tensor, filters: Tensor) -> Tensor:
    return gradient(configured("wgrad", x, filters), dy, None, x, filters)


@_wgrad.register_fake
def _(dy, x, filters):
    return torch.empty_like(filters)


def _setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, dy):
    dy = dy.contiguous(memory_format=torch.channels_last)
    wants_x, wants_filters = ctx.needs_input_grad
    return (
        _dgrad(dy, *ctx.saved_tensors) if wants_x else None,
        _wgrad(dy, *ctx.saved_tensors) if wants_filters else None,
    )


_forward.register_autograd(_backward, setup_context=_setup)


def expect_conv(x: Tensor, filters: Tensor) -> None:
    """ValueError, naming the argument, unless the kernels can convolve x with filters."""
    expect("x", x, None, None, None, None, channels_last=True)
    size = filters.shape[-1] if filters.dim() == 4 else 3
    narrow = {"dtypes": (x.dtype,), "device": x.device, "channels_last": True}
    expect("filters", filters, None, x.shape[1], size, size, **narrow)
    if size not in SIZES:
        raise ValueError(f"filters: got {size}x{size}, accepted are 1x1, 2x2 and 3x3")
    if not (x.numel() and filters.numel()) or min(problem("forward", x, filters).output) < 1:
        raise ValueError(f"x: got shape {list(x.shape)}, accepted is one with an output")


def op(x: Tensor, filters: Tensor) -> Tensor:
    """As `reference`, in one launch; backward one launch for each gradient and a sum of partial ones.

    Raises ValueError for a wrong shape, dtype, layout or device, naming the argument.
    """
    expect_conv(x, filters)
    return _forward(x, filters)


def make_images(n: int, c: int, h: int, w: int, dtype: torch.dtype, device) -> Tensor:
    """Channels-last values at random, with mean 0 and variance 1."""
    return torch.randn(n, h, w, c, device=device).to(dtype).permute(0, 3, 1, 2)


def make_filters(o: int, c: int, size: int, dtype: torch.dtype, device) -> Tensor:
    """Such that outputs of images as above have variance 1."""
    return (make_images(o, c, size, size, torch.float32, device) / (c * size**2) ** 0.5).to(dtype)


def _make(case: Case, dtype: torch.dtype, device) -> dict:
    return {
        "x": make_images(case.n, case.c, *case.map, dtype, device),
        "filters": make_filters(case.o, case.c, case.size, dtype, device),
    }


def passes(case: Case, dtype: torch.dtype, kinds: tuple[str, ...]) -> dict[str, tuple[Problem, Config]]:
    """kernel -> pass and configuration of a case on this machine's chip, or the one that is aimed at."""
    chip, eight = chips.here(), PASSES[case.get("conv_dtype", "auto")]
    extents = {"n": case.n, "h": case.map[0], "w": case.map[1], "c": case.c, "o": case.o}
    extents |= {"size": case.get("size", 3), "pool": case.get("pool", False)}
    hows = {}
    for kind in kinds:
        this = Problem(kind, **extents, dtype=FLOAT8 if kind in eight else dtype)
        config = selection.choose(this, chip)
        hows[(WINDOWS if config.order == "windows" else NAMES)[kind]] = this, config
    return hows


NAMES = {"forward": "_conv_fwd", "dgrad": "_conv_dgrad", "wgrad": "_conv_wgrad"}
WINDOWS = {"forward": "_window_fwd", "wgrad": "_window_wgrad"}  # in that order


def declared(case: Case, dtype: torch.dtype, kinds: tuple[str, ...]) -> dict[str, int]:
    """Bytes of the passes of a case, and of the sum of wgrad's splits."""
    hows = passes(case, dtype, kinds)
    counts = {name: tiling.bytes(*how) for name, how in hows.items()}
    if "_conv_wgrad" in hows:
        problem, config = hows["_conv_wgrad"]
        counts["_sum_splits"] = problem.o * problem.columns * (4 * config.splits + dtype.itemsize)
    if "_window_wgrad" in hows:
        counts["_fold"] = window_gradients.fold_bytes(*hows["_window_wgrad"])
    return counts


def _bytes(case: Case, dtype: torch.dtype) -> dict[str, int]:
    return declared(case, dtype, tiling.PASSES)


def _flops(case: Case, dtype: torch.dtype) -> dict[str, int]:
    return {name: tiling.flops(*how) for name, how in passes(case, dtype, tiling.PASSES).items()}


def _case_of(inputs: dict) -> Case:
    (n, c, *map), (o, _, size, _) = inputs["x"].shape, inputs["filters"].shape
    return Case(n=n, c=c, o=o, map=tuple(map), size=size)


def _network() -> tuple[Case, ...]:
    """Every 3x3 convolution without a pool of the recipes."""
    rows = (
        ("r1.conv2", 512, 128, 15),
        ("r3.conv2", 512, 512, 3),
        ("record94 g1.conv2", 1536, 64, 15),
        ("record94 g2.conv2", 1536, 256, 7),
        ("record94 g3.conv2", 1536, 256, 3),
    )
    return tuple(Case(label, n=n, c=c, o=c, map=(side, side), size=3) for label, n, c, side in rows)


SHARED_READS = (*NAMES.values(), *WINDOWS.values())

SPEC = KernelSpec(
    name="conv",
    formula="y = conv(x, filters)",
    fuses="nothing; drops the outputs that floor pooling drops, skips padding",
    reference=reference,
    op=op,
    ops=("hlb::conv", "hlb::conv_dgrad", "hlb::conv_wgrad"),
    make=_make,
    cases=_network(),
    space={
        "n": (1, 3, 20),
        "c": (3, 24, 32, 64),
        "o": (12, 40),
        "map": ((17, 21), (13, 11), (7, 6), (3, 2)),
        "size": SIZES,
    },
    counted=(
        Case("flat", n=2, c=24, o=16, map=(7, 5), size=3),
        Case("rows", n=3, c=32, o=32, map=(7, 5), size=3),
        Case("images", n=64, c=32, o=32, map=(3, 3), size=3),
    ),
    bytes=_bytes,
    flops=_flops,
    case_of=_case_of,
    valid=lambda case: case.n * prod(case.map) * max(case.c, case.o) <= 1 << 14,
    dtypes=FLOATS,
    differentiable=("x", "filters"),
    reduction=lambda case: max(case.c * case.size**2, case.n * prod(case.map)),
    narrow=SUMS,
    shared_reads=SHARED_READS,
)
