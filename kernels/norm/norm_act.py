"""Batch normalisation and what surrounds it in a block: [pool] -> [x gate] -> BN -> activation [+ residual].

    u = maxpool2x2(x)                 optional; drops an odd last row and column
    v = u * gate                      optional
    z = (v - mean) * rstd * weight + bias,     rstd = 1 / sqrt(max(var, 0) + eps)
    y = act(z) + residual             residual optional, added after the activation

x [n, c, h, w] channels-last, gate [n, c], residual as y. In training mean and var are the batch's (var
biased); in evaluation they are the running ones. Statistics, weight, bias and running buffers are float32
in every dtype; only a float64 network computes its batch statistics in float64.

With m = n * h' * w' values per channel and xhat = (v - mean) * rstd, the gradients are

    dz = (dy + d_mean / (h' * w')) * act'(z)               d_mean that of the spatial mean of y
    d bias = sum of dz,   d weight = sum of dz * xhat      per channel
    dv = rstd * weight * (dz - d bias / m - xhat * d weight / m)
    du = dv * gate,       d gate = sum of dv * u           per image and channel
    d x = du at the first of the largest of its window, else 0

The Triton version runs as the passes A and B of norm_passes.py, C and D of norm_gradients.py.

Bytes, training: x read twice and y written once forward; x and dy read twice and dx written once backward;
with a pool x read once, u written once and read once in place of x, and u in its place backward.
Sources: Ioffe and Szegedy, arXiv 1502.03167; Chan, Golub, LeVeque (1983).
"""

from __future__ import annotations

from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from ..base.launch import cdiv, expect, register
from ..base.spec import EVALUATED, Case, KernelSpec
from .activations import ACTIVATIONS
from .norm_gradients import gradient, sums
from .norm_passes import float32_like, image_like, merge, normalise, shrunk, statistics
from .tiles import STATISTICS, SUMS, SUMS_OF_IMAGES, groups_of, spans, tiles_of

TILE = 1 << 19  # values whose float32 copy stays in a CPU's cache


def _statistics(rows: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Mean and biased variance [c] of rows [m, c], in `dtype`.

    Each tile of rows has a mean and an M2, the sum of squared deviations from it; tiles merge as in Chan,
    Golub, LeVeque (1983). Both are taken of what the rows differ from the first: of a constant channel that
    is 0, and the mean is exact. PyTorch's own training kernel adds a channel up term by term on a CPU, which
    at a quarter of a million values is wrong by 5e-5, differently for each thread count. Off a CPU, or
    compiled, all rows are one tile.
    """
    whole = not rows.is_cpu or torch.compiler.is_compiling()
    first, mean, m2, seen = rows[0].to(dtype), None, None, 0
    for tile in rows.split(len(rows) if whole else max(1, TILE // rows.shape[1])):
        differences, count = tile - first, len(tile)  # in `dtype`
        tile_mean = differences.mean(0)
        tile_m2 = differences.sub_(tile_mean).square_().sum(0)
        seen += count
        if mean is None:  # nothing to merge with
            mean, m2 = tile_mean, tile_m2
        else:
            delta = tile_mean - mean
            m2 = m2 + tile_m2 + delta.square() * (count * (seen - count) / seen)
            mean = mean + delta * (count / seen)
    return first + mean, m2 / seen


def _normalised(
    v: Tensor, mean: Tensor, variance: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> Tensor:
    """(v - mean) * rstd * weight + bias by channel, in the dtype of v.

    PyTorch's own takes a multiple of v and adds a constant on a CPU. Both are large where rstd is, which is a
    million for a constant channel, and leave their rounding.
    """
    if not v.is_cpu or torch.compiler.is_compiling():
        return F.batch_norm(v, mean, variance, weight, bias, False, 0.0, eps)
    scale = weight * (variance + eps).rsqrt()
    mean, scale, bias = (values[:, None, None] for values in (mean, scale, bias))
    z = v - mean  # as wide as the mean
    return torch.addcmul(bias, z, scale, out=None if torch.is_grad_enabled() else z).to(v.dtype)


class _Normalise(torch.autograd.Function):
    """Batch norm over the batch, and its mean and biased variance [c], which carry no gradient."""

    @staticmethod
    def forward(ctx, v: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        rows = v.permute(0, 2, 3, 1).flatten(0, 2)  # [n * h * w, c], a view where v is channels-last
        mean, variance = _statistics(rows, weight.dtype)
        ctx.save_for_backward(v, weight, mean, (variance + eps).rsqrt())
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance)
        return _normalised(v, mean, variance, weight, bias, eps), mean, variance

    @staticmethod
    def backward(ctx, dz: Tensor, *_) -> tuple[Tensor | None, ...]:
        v, weight, mean, rstd = ctx.saved_tensors
        grads = torch.ops.aten.native_batch_norm_backward(
            dz, v, weight, None, None, mean, rstd, True, ctx.eps, [True, True, True]
        )
        return *grads, None


def _taken(x: Tensor, argmax: Tensor) -> Tensor:
    """The values of 2x2 windows of x that argmax names by their place 0..3."""
    h, w = (extent // 2 * 2 for extent in x.shape[2:])
    windows = x[:, :, :h, :w].unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).transpose(3, 4).flatten(4)
    return windows.gather(4, argmax.long()[..., None])[..., 0]


def reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running: Tensor,
    *,
    training: bool,
    eps: float,
    activation: str,
    pool: bool = False,
    gate: Tensor | None = None,
    residual: Tensor | None = None,
    spatial_mean: bool = False,
    argmax: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Returns y, the batch's statistics [2, c] (mean and unbiased variance; in evaluation `running`
    itself), and with `spatial_mean` the mean of y over h and w, [n, c] in float32 or wider, else None.

    `running` [2, c] holds mean and variance; it is read in evaluation and never written here (see
    `running_stats`). `argmax` [n, c, h // 2, w // 2], if given, says which value 0..3 of a window the pool
    takes, whichever is the largest. Raises ValueError when training with one value per channel.
    """
    v = x
    if pool:
        v = F.max_pool2d(x, 2) if argmax is None else _taken(x, argmax)
    if gate is not None:
        v = v * gate[:, :, None, None].to(v.dtype)
    wide = torch.promote_types(v.dtype, torch.float32)
    weight, bias = weight.to(wide), bias.to(wide)
    if training:
        count = v.numel() // v.shape[1]
        if count < 2:
            raise ValueError(
                f"x: got one value per channel (shape {tuple(v.shape)}), training needs two or more"
            )
        z, mean, variance = _Normalise.apply(v, weight, bias, eps)
        stats = torch.stack((mean, variance * (count / (count - 1)))).to(running.dtype)
    else:
        mean, variance = running.to(wide)
        z = _normalised(v, mean, variance, weight, bias, eps)
        stats = running
    y = ACTIVATIONS[activation].reference(z)
    y = y if residual is None else y + residual
    if not spatial_mean:
        return y, stats, None
    return y, stats, y.permute(0, 2, 3, 1).sum((1, 2), dtype=wide) / (y.shape[2] * y.shape[3])


def _outputs(x: Tensor, pool: bool, spatial_mean: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Unwritten y, u, argmax and spatial mean; empty where there is none, since an op cannot return None."""
    n, c = x.shape[:2]
    oh, ow = shrunk(x, pool)
    nothing = (0,) * 4
    return (
        image_like(x, oh, ow),
        image_like(x, oh, ow) if pool else x.new_empty(nothing),
        image_like(x, oh, ow, torch.int8) if pool else x.new_empty(nothing, dtype=torch.int8),
        float32_like(x, n, c) if spatial_mean else float32_like(x, 0, 0),
    )


@register("hlb::norm_act")
def _train(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    gate: Tensor | None,
    residual: Tensor | None,
    eps: float,
    activation: str,
    pool: bool,
    spatial_mean: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(y, statistics, spatial mean, u, argmax, rstd)"""
    y, u, argmax, spatial = _outputs(x, pool, spatial_mean)
    partial, span = statistics(x, gate, u, argmax, pool=pool)
    stats, rstd = merge(partial, span, y.numel() // y.shape[1], eps)
    kept = u if pool else x
    normalise(kept, gate, stats, rstd, weight, bias, residual, y, spatial, activation=activation)
    return y, stats, spatial, u, argmax, rstd


@_train.register_fake
def _(x, weight, bias, gate, residual, eps, activation, pool, spatial_mean):
    y, u, argmax, spatial = _outputs(x, pool, spatial_mean)
    c = x.shape[1]
    return y, float32_like(x, 2, c), spatial, u, argmax, float32_like(x, c)


@register("hlb::norm_act_backward")
def _train_backward(
    argmax: Tensor,
    dy: Tensor,
    d_mean: Tensor | None,
    u: Tensor,
    stats: Tensor,
    rstd: Tensor,
    weight: Tensor,
    bias: Tensor,
    gate: Tensor | None,
    h: int,
    w: int,
    activation: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """(d x [n, c, h, w], (d bias, d weight) [2, c], d gate)"""
    dx, d_gate = _gradients(u, gate, h, w)
    saved = (u, gate, dy, d_mean)
    both = sums(*saved, stats, rstd, weight, bias, activation=activation)
    places = argmax if argmax.numel() else None
    gradient(*saved, places, stats, rstd, weight, bias, both, dx, d_gate, activation=activation)
    return dx, both, d_gate


def _gradients(u: Tensor, gate: Tensor | None, h: int, w: int) -> tuple[Tensor, Tensor]:
    """Unwritten d x and d gate."""
    return image_like(u, h, w), float32_like(u, 0, 0) if gate is None else torch.empty_like(gate)


@_train_backward.register_fake
def _(argmax, dy, d_mean, u, stats, rstd, weight, bias, gate, h, w, activation):
    dx, d_gate = _gradients(u, gate, h, w)
    return dx, float32_like(u, 2, u.shape[1]), d_gate


def _setup(ctx, inputs, output):
    x, weight, bias, gate, residual, _, activation, pool, spatial_mean = inputs
    y, stats, spatial, u, argmax, rstd = output
    ctx.save_for_backward(u if pool else x, argmax, stats, rstd, weight, bias, gate)
    ctx.map, ctx.activation, ctx.residual = x.shape[2:], activation, residual is not None
    ctx.mark_non_differentiable(stats, u, argmax, rstd, *(() if spatial_mean else (spatial,)))
    ctx.set_materialize_grads(False)


def upstream(
    u: Tensor, dy: Tensor | None, d_mean: Tensor | None, residual: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The gradients of y and of its spatial mean as the passes take them, and that of the residual."""
    dy = torch.zeros_like(u) if dy is None else dy.contiguous(memory_format=torch.channels_last)
    if d_mean is None:
        return dy, None, dy if residual else None
    d_residual = None
    if residual:
        pixels = u.shape[2] * u.shape[3]
        d_residual = (dy + d_mean[:, :, None, None] / pixels).to(dy.dtype)
    return dy, d_mean.contiguous(), d_residual


def _backward(ctx, dy, d_stats, d_mean, *_):
    u, argmax, stats, rstd, weight, bias, gate = ctx.saved_tensors
    dy, d_mean, d_residual = upstream(u, dy, d_mean, ctx.residual)
    dx, (d_bias, d_weight), d_gate = _train_backward(
        argmax, dy, d_mean, u, stats, rstd, weight, bias, gate, *ctx.map, ctx.activation
    )
    return dx, d_weight, d_bias, None if gate is None else d_gate, d_residual, None, None, None, None


_train.register_autograd(_backward, setup_context=_setup)


@register("hlb::norm_act_eval")
def _evaluate(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running: Tensor,
    gate: Tensor | None,
    residual: Tensor | None,
    eps: float,
    activation: str,
    pool: bool,
    spatial_mean: bool,
) -> tuple[Tensor, Tensor]:
    """(y, spatial mean)"""
    y, _, _, spatial = _outputs(x, pool, spatial_mean)
    mean, variance = running
    normalise(
        x,
        gate,
        mean,
        variance,
        weight,
        bias,
        residual,
        y,
        spatial,
        activation=activation,
        pool=pool,
        running=True,
        eps=eps,
    )
    return y, spatial


@_evaluate.register_fake
def _(x, weight, bias, running, gate, residual, eps, activation, pool, spatial_mean):
    y, _, _, spatial = _outputs(x, pool, spatial_mean)
    return y, spatial


def expect_norm(
    x: Tensor,
    outputs: tuple[int, ...],  # the shape of y
    weight: Tensor,
    bias: Tensor,
    running: Tensor,
    gate: Tensor | None,
    residual: Tensor | None,
    activation: str,
    training: bool,
) -> None:
    """ValueError, naming the argument, unless the passes can normalise values of this shape."""
    n, c, oh, ow = outputs
    narrow = {"dtypes": (torch.float32,), "device": x.device}
    expect("weight", weight, c, **narrow)
    expect("bias", bias, c, **narrow)
    for row in running if running.dim() == 2 and len(running) == 2 else ():
        expect("running", row, c, **narrow)
    if running.dim() != 2 or len(running) != 2:
        expect("running", running, 2, c, **narrow)
    if gate is not None:
        expect("gate", gate, n, c, **narrow)
    if residual is not None:
        expect("residual", residual, *outputs, dtypes=(x.dtype,), device=x.device, channels_last=True)
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation: got {activation!r}, accepted are {', '.join(ACTIVATIONS)}")
    if n * oh * ow == 0 or c == 0:
        raise ValueError(f"x: got shape {list(x.shape)}, accepted is one with an output")
    if training and n * oh * ow < 2:
        raise ValueError(f"x: got one value per channel (shape {outputs}), training needs two or more")


def op(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running: Tensor,
    *,
    training: bool,
    eps: float,
    activation: str,
    pool: bool = False,
    gate: Tensor | None = None,
    residual: Tensor | None = None,
    spatial_mean: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """As `reference`, for x channels-last, and float32 weight, bias, running and gate; without gradient in
    evaluation.

    `running` may be columns of a wider buffer. Raises ValueError for a wrong shape, dtype, layout or device,
    or an unknown activation, naming the argument.
    """
    expect("x", x, None, None, None, None, channels_last=True)
    outputs = *x.shape[:2], *shrunk(x, pool)
    expect_norm(x, outputs, weight, bias, running, gate, residual, activation, training)
    if not training:
        y, spatial = _evaluate(x, weight, bias, running, gate, residual, eps, activation, pool, spatial_mean)
        return y, running, spatial if spatial_mean else None
    y, stats, spatial, *_ = _train(x, weight, bias, gate, residual, eps, activation, pool, spatial_mean)
    return y, stats, spatial if spatial_mean else None


def _make(case: Case, dtype: torch.dtype, device) -> dict:
    def image(h: int, w: int) -> Tensor:
        values = torch.randn(case.n, h, w, case.c, device=device) + case.offset
        return values.to(dtype).permute(0, 3, 1, 2)

    x = image(*case.map)
    return {
        "x": x,
        "weight": torch.rand(case.c, device=device) + 0.5,
        "bias": torch.randn(case.c, device=device),
        "running": torch.rand(2, case.c, device=device) + 0.5,
        "training": case.training,
        "eps": 1e-12,
        "activation": case.activation,
        "pool": case.pool,
        "gate": torch.rand(case.n, case.c, device=device) if case.gate else None,
        "residual": image(*shrunk(x, case.pool)) if case.residual else None,
        "spatial_mean": case.spatial,
    }


def _count(case: Case) -> int:
    """Values per channel of y."""
    h, w = case.map
    return case.n * ((h // 2) * (w // 2) if case.pool else h * w)


def _images(case: Case, span: int) -> int:
    """How many images each program of so many rows touches, added up."""
    m = _count(case)
    image = m // case.n
    return sum((min(first + span, m) - 1) // image - first // image + 1 for first in range(0, m, span))


def merge_bytes(tiles: int, c: int) -> int:
    """Of `norm_passes.merge`: tiles, groups written and read, and the result."""
    groups = cdiv(tiles, groups_of(tiles, c)["TILES"])
    return (2 * tiles + 2 * 3 * groups + 3) * 4 * c


def _bytes(case: Case, dtype: torch.dtype) -> dict[str, int]:
    m, c = _count(case), case.c
    values, channels = m * c * dtype.itemsize, 4 * c  # bytes of y, of a float32 a channel
    image = m // case.n
    window = 4 if case.pool else 1
    of_statistics = spans(m, c, **STATISTICS)["SPAN"]
    of_sums = spans(m, c, **(SUMS_OF_IMAGES if case.gate or case.spatial else SUMS))["SPAN"]
    forward = tiles_of(m, c, image if case.spatial else 0)["SPAN"]
    backward = tiles_of(m, c, image if case.gate else 0)["SPAN"]

    def parameters(span: int, rows: int, images: int) -> int:
        return (cdiv(m, span) * rows + _images(case, span) * images) * channels

    counts = {
        "_normalise": ((1 if case.training else window) + case.residual + 1) * values
        + parameters(forward, 4, case.gate)
        + case.spatial * case.n * channels
    }
    if not case.training:
        return counts
    return counts | {
        "_tile_statistics": (window + case.pool) * values
        + case.pool * m * c
        + parameters(of_statistics, 2, case.gate),
        "_merge_statistics": merge_bytes(cdiv(m, of_statistics), c),
        # what each program leaves is read again, once
        "_sums": 2 * values + parameters(of_sums, 4 + 2 + 2, case.gate + case.spatial) + 3 * channels,
        "_gradient": 2 * values
        + case.pool * m * c
        + case.n * prod(case.map) * c * dtype.itemsize
        + parameters(backward, 6, case.gate + case.spatial)
        + case.gate * case.n * channels,
    }


def _case(
    label: str,
    n: int,
    c: int,
    map: tuple[int, int],
    options: str,
    training: bool = True,
    activation: str = "gelu",
) -> Case:
    flags = {name: name in options.split() for name in ("pool", "gate", "residual", "spatial")}
    return Case(label, n=n, c=c, map=map, **flags, activation=activation, offset=0.0, training=training)


def case_of(inputs: dict) -> Case:
    """The case of a call, of this op and of those that end in it."""
    n, c, *map = inputs["x"].shape
    flags = {name: inputs.get(name) is not None for name in ("gate", "residual")}
    flags |= {"pool": inputs.get("pool", False), "spatial": inputs.get("spatial_mean", False)}
    chosen = {name: inputs[name] for name in ("activation", "training")}
    return Case(n=n, c=c, map=tuple(map), **flags, **chosen)


def _network(training: bool) -> tuple[Case, ...]:
    """Every norm of the recipes `seed` and `record94`."""
    n, batch = (512, 1536) if training else (1000, EVALUATED[0])
    rows = (
        ("stem", n, 32, 31, ""),
        ("r1.conv1", n, 128, 31, "pool spatial"),
        ("r1.conv2", n, 128, 15, ""),
        ("r1.conv3", n, 128, 15, "gate residual"),
        ("r2.conv1", n, 256, 15, "pool"),
        ("r3.conv1", n, 512, 7, "pool spatial"),
        ("r3.conv2", n, 512, 3, ""),
        ("r3.conv3", n, 512, 3, "gate residual"),
        ("record94 g1.conv1", batch, 64, 31, "pool"),
        ("record94 g1.conv2", batch, 64, 15, ""),
        ("record94 g2.conv1", batch, 256, 15, "pool"),
        ("record94 g2.conv2", batch, 256, 7, ""),
        ("record94 g3.conv1", batch, 256, 7, "pool"),
        ("record94 g3.conv2", batch, 256, 3, ""),
    )
    activations = {True: "silu", False: "gelu"}
    return tuple(
        _case(
            label if training else f"{label} eval",
            *(images, c, (side, side), options, training, activations[label.startswith("record94")]),
        )
        for label, images, c, side, options in rows
    )


SPACE = {
    "n": (1, 3),
    "c": (3, 12, 32, 40, 72),
    "map": ((21, 17), (15, 23), (13, 11), (7, 6), (5, 3), (3, 2), (2, 7)),
    "pool": (False, True),
    "gate": (False, True),
    "residual": (False, True),
    "spatial": (False, True),
    "activation": tuple(ACTIVATIONS),
    "offset": (0.0, 100.0),  # mean / std
}
NARROW = {
    "p_argmax": "one byte beside each value of u: 8 bytes beside its 16",
    "p_rstd": "one number a channel",
    "p_stats": "two numbers a channel",
    "p_partial": "two numbers a program and channel",
    "p_groups": "three numbers a program and channel",
    "p_sums": "two numbers a channel",
    "p_spatial": "one number an image and channel",
    "p_dgate": "one number an image and channel",
}


def _small(case: Case) -> bool:
    """Whether the interpreter has it done in a second."""
    return case.n * case.c * prod(case.map) <= 1 << 16


def _well_conditioned(case: Case) -> bool:
    """Whether relative errors mean something. Batch norm takes out what is constant and what scales v, so d x
    of two values and d gate of a single image are 0, and of a few are mostly cancellation; at
    mean / std = 100 the mean's last bit is 1e-5 of the deviation, which only many values average out.
    """
    return _count(case) >= (256 if case.offset else 5) and (case.n > 1 or not case.gate)


SPEC = KernelSpec(
    name="norm_act",
    formula="y = act((v - mean) * rstd * weight + bias) + residual, v = maxpool(x) * gate, statistics of v",
    fuses="max pool, gate, batch norm, activation, residual, spatial mean",
    reference=reference,
    op=op,
    ops=("hlb::norm_act", "hlb::norm_act_backward"),
    make=_make,
    cases=_network(training=True),
    space=SPACE | {"training": (True,)},
    counted=(
        _case("pooled", 3, 32, (15, 13), "pool spatial residual"),
        _case("gated", 3, 64, (9, 11), "gate residual"),
    ),
    bytes=_bytes,
    case_of=case_of,
    compiled={"activation": tuple(ACTIVATIONS)},
    valid=lambda case: _small(case) and _well_conditioned(case),
    differentiable=("x", "weight", "bias", "gate", "residual"),
    reduction=_count,
    narrow=NARROW,
)

EVAL_SPEC = KernelSpec(
    name="norm_act_eval",
    formula="y = act((v - mean) * rstd * weight + bias) + residual, v = maxpool(x) * gate, fixed statistics",
    fuses="the same with fixed statistics, in one kernel",
    reference=reference,
    op=op,
    ops=("hlb::norm_act_eval",),
    make=_make,
    cases=_network(training=False),
    space=SPACE | {"c": (3, 32, 72), "training": (False,)},
    counted=(_case("pooled", 3, 32, (15, 13), "pool gate spatial residual", training=False),),
    bytes=_bytes,
    case_of=case_of,
    valid=lambda case: _small(case) and _count(case) > 0,
    narrow={"p_spatial": NARROW["p_spatial"]},
)
