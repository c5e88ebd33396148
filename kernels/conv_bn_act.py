"""The block: conv -> [pool] -> [x gate] -> BN -> activation [+ residual], as one op.

    z[n, y, x, o] = sum over r, s, c of x[n, y + r - 1, x + s - 1, c] * filters[o, r, s, c]       zero padding
    u = maxpool2x2(z)                 optional; drops an odd last row and column
    v = u * gate                      optional
    y = act((v - mean) * rstd * weight + bias) + residual,     rstd = 1 / sqrt(max(var, 0) + eps)

x [n, c, h, w], filters [o, c, 3, 3], y and residual [n, o, h', w'], all channels-last and of one dtype; gate
[n, o], weight and bias [o], running [2, o] float32. Convolutions accumulate in float32, statistics are those
of v in float32, u as rounded to its dtype. In training mean and var are the batch's, in evaluation running.

    forward   A  the convolution, pool and tile statistics (convolution/conv_passes.py); their merge
              B  y from u, and its spatial mean (norm/norm_passes.py; C and D: norm/norm_gradients.py)
    backward  C  the sums of dz = dy * act'(...), which are d bias and d weight
              D  du, and d gate
              E  d x and F  d filters (convolution/conv_passes.py), expanding a pooled du as they load it
    eval         one kernel; the spatial mean is another pass over y

A, E and F may each be cuDNN's (`by_kernel`). Then z is stored, and a pass over it makes u, argmax and
statistics; and where u was pooled, D writes the gradient of all of z, once, since cuDNN reads no pooled one.
With `conv_dtype` A, and E where it says so, multiply operands of 8 bits (convolution/float8.py), which a pass
over x and one over the filters round; D then writes all of z's gradient, in 8 bits for E beside 16 for F, and
its largest value.
An A by windows (convolution/window_passes.py) leaves the statistics to a pass over u, and in evaluation the
rest to the one that B is; an F by windows (convolution/window_gradients.py) reads du in any case: beside a
dgrad of cuDNN's D writes both gradients, one after the other.

Saved for backward: x, u, and of a pool a byte of argmax each; gate, mean and rstd in float32. A gradient goes
to the first of the largest of its window, as stored; where two are equal but for rounding, an op in another
precision may choose otherwise.

Bytes: x, filters and u, and in B u and y, once forward; C and D read u and dy and write du; E and F read du,
x and filters and write dx and d filters. FLOPs: 2 * 9 * c * o for each output that is kept, and as many for
each gradient, without the taps that convolution/tiling.py skips.
Sources: those of convolution/conv_passes.py and norm/norm_act.py.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import chips, launch
from .base.launch import FLOATS, register
from .base.spec import EVALUATED, Case, KernelSpec
from .convolution import conv, conv_passes, float8, float8_passes, selection, tiling
from .convolution.selection import ALL, HALF
from .convolution.tiling import FLOAT8, Problem
from .norm import norm_act, norm_gradients, norm_passes
from .norm.activations import ACTIVATIONS
from .norm.norm_passes import float32_like, image_like

LARGE = 6  # maps above it are convolved without what the pool drops, on a CPU


def reference(
    x: Tensor,
    filters: Tensor,
    weight: Tensor,
    bias: Tensor,
    running: Tensor,
    by_kernel: str = ALL,
    conv_dtype: str = "auto",
    largest: Tensor | None = None,
    **options,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Returns y [n, o, h', w'], statistics [2, o], spatial mean or None; arguments, `options` and errors are
    those of `norm_act.reference`. `by_kernel` is for `op`. `conv_dtype` says which passes of the convolution
    have 8-bit operands (convolution/float8.py); then `largest` float32 [1] is the largest |dz| of the step
    before, and its gradient this step's.
    """
    h, w = x.shape[2:]
    if x.device.type == "cpu" and options.get("pool") and (h % 2 or w % 2) and min(h, w) > LARGE:
        # What floor pooling drops is not computed; on small maps the padded copy costs more than that.
        pad = filters.shape[2] // 3
        x, padding = F.pad(x, (pad, pad - w % 2, pad, pad - h % 2)), 0
    else:
        padding = filters.shape[2] // 3
    if conv_dtype == "auto":
        z = F.conv2d(x, filters, padding=padding)
    else:
        z = float8.reference(x, filters, conv_dtype, largest, padding)
    return norm_act.reference(z, weight, bias, running, **options)


def _like_y(x: Tensor, filters: Tensor, pool: bool, dtype: torch.dtype | None = None) -> Tensor:
    """Unwritten, of the extents and layout of y."""
    return image_like(x, *conv.problem("forward", x, filters, pool).output, dtype, channels=len(filters))


def _outputs(x: Tensor, filters: Tensor, pool: bool, spatial_mean: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Unwritten y, spatial mean and argmax; empty where there is none."""
    argmax = _like_y(x, filters, pool, torch.int8) if pool else x.new_empty((0,) * 4, dtype=torch.int8)
    extents = (len(x), len(filters)) if spatial_mean else (0, 0)
    return _like_y(x, filters, pool), float32_like(x, *extents), argmax


@register("hlb::conv_bn_act")
def _train(
    x: Tensor,
    filters: Tensor,
    weight: Tensor,
    bias: Tensor,
    gate: Tensor | None,
    residual: Tensor | None,
    eps: float,
    activation: str,
    pool: bool,
    spatial_mean: bool,
    by_kernel: str,
    conv_dtype: str = "auto",
    largest: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(y, statistics, spatial mean, u, argmax, rstd, turned filters of 8 bits)"""
    *operands, turned = _operands(x, filters, conv_dtype, largest is not None)
    how = conv.configured("forward", *operands, pool, by_kernel)
    y, spatial, argmax = _outputs(x, filters, pool, spatial_mean)
    u, partial, span, places = conv.forward(how, *operands, gate, argmax, x.dtype)
    stats, rstd = norm_passes.merge(partial, span, u.numel() // len(filters), eps, places)
    norm_passes.normalise(u, gate, stats, rstd, weight, bias, residual, y, spatial, activation=activation)
    return y, stats, spatial, u, argmax, rstd, turned


def _operands(x: Tensor, filters: Tensor, conv_dtype: str, turned: bool) -> tuple[Tensor, Tensor, Tensor]:
    """What the forward pass multiplies, x and filters or those of 8 bits, and if `turned` what its dgrad does
    then.
    """
    if conv_dtype == "auto":
        return x, filters, x.new_empty((0,) * 4, dtype=torch.int8)
    return float8_passes.images(x), *float8_passes.filters(filters, turned)


@_train.register_fake
def _(
    x,
    filters,
    weight,
    bias,
    gate,
    residual,
    eps,
    activation,
    pool,
    spatial_mean,
    by_kernel,
    conv_dtype="auto",
    largest=None,
):
    y, spatial, argmax = _outputs(x, filters, pool, spatial_mean)
    o, turned = len(filters), float8_passes.unwritten(filters, largest is not None)
    return y, float32_like(x, 2, o), spatial, torch.empty_like(y), argmax, float32_like(x, o), turned


@register("hlb::conv_bn_act_backward")
def _train_backward(
    argmax: Tensor,
    dy: Tensor,
    d_mean: Tensor | None,
    x: Tensor,
    filters: Tensor,
    u: Tensor,
    stats: Tensor,
    rstd: Tensor,
    weight: Tensor,
    bias: Tensor,
    gate: Tensor | None,
    activation: str,
    wants_dx: bool,
    by_kernel: str,
    turned: Tensor | None = None,
    largest: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(d x, d filters, (d bias, d weight) [2, o], d gate, the largest gradient); d x empty where it is not
    wanted. `largest` says that d x has operands of 8 bits; then the filters' are `turned`.
    """
    places = argmax if argmax.numel() else None
    narrow = None if largest is None else FLOAT8  # the dtype of what dgrad multiplies, if not the network's
    dtypes = {"wgrad": None} | ({"dgrad": narrow} if wants_dx else {})
    hows = [conv.configured(kind, x, filters, places is not None, by_kernel, dtypes[kind]) for kind in dtypes]
    together, d_gate = places is None or _reads_pooled(dtypes, by_kernel), _gate_gradient(u, gate)
    of_u = [together or (config is not None and config.order == "windows") for _, config in hows]
    saved, norm = (u, gate, dy, d_mean), (stats, rstd, weight, bias)
    now = float32_like(u, int(largest is not None))
    options = {"activation": activation, "now": now if narrow else None}
    both = norm_gradients.sums(*saved, *norm, **options)
    read, dz8 = {}, None  # the gradient of u, or of z, and argmax if a gradient of the convolution needs it
    for pooled in sorted(set(of_u)):
        dz = torch.empty_like(u) if pooled else _like_y(x, filters, pool=False)
        expanded, read[pooled] = (None, (dz, places)) if pooled else (places, (dz, None))
        dx8 = None
        if dtypes.get("dgrad") and pooled == of_u[1]:
            dx8 = dz8 = torch.empty_like(dz, dtype=torch.float8_e5m2)
        written = {"dx8": dx8, "largest": largest}
        norm_gradients.gradient(*saved, expanded, *norm, both, dz, d_gate, **options, **written)
    d_filters = conv.gradient(hows[0], *read[of_u[0]], x, filters)
    dx = x.new_empty((0,) * 4)
    if dz8 is not None:
        dx = conv.gradient(hows[1], dz8, None, x, turned.view(FLOAT8), largest)
    elif wants_dx:
        dx = conv.gradient(hows[1], *read[of_u[1]], x, filters)
    return dx, d_filters, both, d_gate, now


def _reads_pooled(dtypes: dict[str, torch.dtype | None], by_kernel: str) -> bool:
    """Whether kernels do all these gradients, of 16 bits or more, and so read that of u: cuDNN, and dgrad of
    8 bits, take that of all of z.
    """
    return dtypes.keys() <= set(by_kernel.split()) and not any(dtypes.values())


def _gate_gradient(u: Tensor, gate: Tensor | None) -> Tensor:
    """Unwritten; empty without a gate."""
    return float32_like(u, 0, 0) if gate is None else torch.empty_like(gate)


@_train_backward.register_fake
def _(
    argmax,
    dy,
    d_mean,
    x,
    filters,
    u,
    stats,
    rstd,
    weight,
    bias,
    gate,
    activation,
    wants_dx,
    by_kernel,
    turned=None,
    largest=None,
):
    dx = torch.empty_like(x) if wants_dx else x.new_empty((0,) * 4)
    now = float32_like(u, int(largest is not None))
    return dx, torch.empty_like(filters), float32_like(u, 2, u.shape[1]), _gate_gradient(u, gate), now


def _setup(ctx, inputs, output):
    x, filters, weight, bias, gate, residual, _, activation, _, spatial_mean, by_kernel, _, largest = inputs
    y, stats, spatial, u, argmax, rstd, turned = output
    ctx.save_for_backward(x, filters, u, argmax, stats, rstd, weight, bias, gate, turned, largest)
    ctx.activation, ctx.residual, ctx.by_kernel = activation, residual is not None, by_kernel
    ctx.mark_non_differentiable(stats, u, argmax, rstd, turned, *(() if spatial_mean else (spatial,)))
    ctx.set_materialize_grads(False)


def _backward(ctx, dy, d_stats, d_mean, *_):
    x, filters, u, argmax, stats, rstd, weight, bias, gate, turned, largest = ctx.saved_tensors
    dy, d_mean, d_residual = norm_act.upstream(u, dy, d_mean, ctx.residual)
    saved = (x, filters, u, stats, rstd, weight, bias, gate)
    dx, d_filters, (d_bias, d_weight), d_gate, now = _train_backward(
        argmax, dy, d_mean, *saved, ctx.activation, ctx.needs_input_grad[0], ctx.by_kernel, turned, largest
    )
    return (
        dx if ctx.needs_input_grad[0] else None,
        d_filters,
        d_weight,
        d_bias,
        None if gate is None else d_gate,
        d_residual,
        *(None,) * 6,
        None if largest is None else now,
    )


_train.register_autograd(_backward, setup_context=_setup)


@register("hlb::conv_bn_act_eval")
def _evaluate(
    x: Tensor,
    filters: Tensor,
    weight: Tensor,
    bias: Tensor,
    running: Tensor,
    gate: Tensor | None,
    residual: Tensor | None,
    eps: float,
    activation: str,
    pool: bool,
    by_kernel: str,
    conv_dtype: str = "auto",
) -> Tensor:
    y, norm = _like_y(x, filters, pool), (*running, weight, bias)
    x, filters, _ = _operands(x, filters, conv_dtype, False)
    how = conv.configured("forward", x, filters, pool, by_kernel)
    options = {"eps": eps, "activation": activation}
    if conv.fused(how):
        conv_passes.forward(*how, x, filters, y, gate=gate, norm=norm, residual=residual, **options)
        return y
    v, pools = conv.apart(how, x, filters)
    nothing = float32_like(x, 0, 0)
    norm_passes.normalise(v, gate, *norm, residual, y, nothing, pool=pools, running=True, **options)
    return y


@_evaluate.register_fake
def _(x, filters, weight, bias, running, gate, residual, eps, activation, pool, by_kernel, conv_dtype="auto"):
    return _like_y(x, filters, pool)


def op(
    x: Tensor,
    filters: Tensor,
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
    by_kernel: str = ALL,
    conv_dtype: str = "auto",
    largest: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """As `reference`, for x and filters channels-last, and float32 weight, bias, running and gate; without
    gradient in evaluation. `by_kernel` names the passes of the convolution that kernels do, of "forward dgrad
    wgrad"; cuDNN does the others, but none with operands of 8 bits.

    Raises ValueError for a wrong shape, dtype, layout or device, an unknown activation, pass or `conv_dtype`,
    or one that the device does not multiply, naming the argument.
    """
    conv.expect_conv(x, filters)
    if unknown := set(by_kernel.split()) - set(tiling.PASSES):
        raise ValueError(
            f"by_kernel: got {', '.join(sorted(unknown))}, accepted are {', '.join(tiling.PASSES)}"
        )
    eight = _eight(x, conv_dtype, largest)
    by_kernel = _with(eight, by_kernel)
    outputs = len(x), len(filters), *conv.problem("forward", x, filters, pool).output
    norm_act.expect_norm(x, outputs, weight, bias, running, gate, residual, activation, training)
    inputs = (gate, residual, eps, activation, pool)
    if training:
        if "dgrad" in eight:
            largest = x.new_zeros(1, dtype=torch.float32) if largest is None else largest
        else:
            largest = None
        inputs = (*inputs, spatial_mean, by_kernel, conv_dtype, largest)
        y, stats, spatial, *_ = _train(x, filters, weight, bias, *inputs)
        return y, stats, spatial if spatial_mean else None
    y = _evaluate(x, filters, weight, bias, running, *inputs, by_kernel, conv_dtype)
    return y, running, y.mean((2, 3), dtype=torch.float32) if spatial_mean else None


def _with(eight: tuple[str, ...], by_kernel: str) -> str:
    """The passes that kernels do, and those of 8 bits."""
    return " ".join(kind for kind in tiling.PASSES if kind in (*by_kernel.split(), *eight))


def _eight(x: Tensor, conv_dtype: str, largest: Tensor | None) -> tuple[str, ...]:
    """The passes whose operands have 8 bits; ValueError as `op` says."""
    if conv_dtype not in float8.PASSES:
        raise ValueError(f"conv_dtype: got {conv_dtype!r}, accepted are {', '.join(float8.PASSES)}")
    if conv_dtype == "auto":
        return ()
    if x.dtype not in HALF:
        raise ValueError(f"x: got {x.dtype}, accepted are float16 and bfloat16 where conv_dtype={conv_dtype}")
    if chip := _without_float8(x.device):
        raise ValueError(
            f"conv_dtype: got {conv_dtype!r} on {chip}, accepted is auto: float8 is multiplied from compute "
            "capability 8.9 on"
        )
    if largest is not None:
        launch.expect("largest", largest, 1, dtypes=(torch.float32,), device=x.device)
    return float8.PASSES[conv_dtype]


def measured(
    x: Tensor, filters: Tensor, weight: Tensor, bias: Tensor, running: Tensor, **options
) -> tuple[Tensor, Tensor, Tensor | None]:
    """`op`, whose passes kernels do where they were measured to be faster than cuDNN, on this chip or else on
    the nearest; `reference` where no kernel can run.
    """
    conv_dtype = options.get("conv_dtype", "auto")
    takes = FLOATS if conv_dtype == "auto" else () if _without_float8(x.device) else HALF
    if not launch.runnable(x.device) or x.dtype not in takes:
        return reference(x, filters, weight, bias, running, **options)
    extents = (*x.shape, *filters.shape[::3], options.get("pool", False), x.dtype)
    chosen = _by_kernel(extents, x.device, x.requires_grad, conv_dtype)
    return op(x, filters, weight, bias, running, **options, by_kernel=chosen)


def _by_kernel(extents: tuple, device: torch.device, wants_dx: bool, conv_dtype: str) -> str:
    """For x [n, c, h, w] and filters [o, c, size, size]."""
    n, c, h, w, o, size, pool, dtype = extents
    problem = Problem("forward", n, h, w, c, o, size, pool, dtype)
    return selection.by_kernel(problem, chips.current(device), wants_dx, float8.PASSES[conv_dtype])


def _without_float8(device: torch.device) -> str:
    """The chip of a device, if it does not multiply float8."""
    chip = chips.current(device)
    return "" if chip.float8 else chip.name


# As torch.compiler.assume_constant_result does; that imports all of torch._dynamo, whether anything is ever
# compiled or not, and so half of what `import hlb` would take.
_by_kernel._dynamo_marked_constant = _without_float8._dynamo_marked_constant = True


def _make(case: Case, dtype: torch.dtype, device) -> dict:
    filters = conv.make_filters(case.o, case.c, 3, dtype, device)
    x = conv.make_images(case.n, case.c, *case.map, dtype, device)
    oh, ow = conv.problem("forward", x, filters, case.pool).output
    narrow = {}
    if "conv_dtype" in case:
        scales = case.training and "dgrad" in _eight_of(case)
        largest = torch.full((1,), 3.0, device=device) if scales else None
        narrow = {"conv_dtype": case.conv_dtype, "largest": largest}
    return narrow | {
        "x": x,
        "filters": filters,
        "weight": torch.rand(case.o, device=device) + 0.5,
        "bias": torch.randn(case.o, device=device),
        "running": torch.rand(2, case.o, device=device) + 0.5,
        "training": case.training,
        "eps": 1e-12,
        "activation": case.activation,
        "pool": case.pool,
        "gate": torch.rand(case.n, case.o, device=device) if case.gate else None,
        "residual": conv.make_images(case.n, case.o, oh, ow, dtype, device) if case.residual else None,
        "spatial_mean": case.spatial,
        "by_kernel": case.get("by_kernel", ALL),
    }


def _given(inputs: dict) -> dict:
    """The argmax that the op takes, where it pools and trains."""
    if not (inputs["pool"] and inputs["training"]):
        return {}
    named = {name: value for name, value in inputs.items() if name not in ("running", "training")}
    named["by_kernel"] = _with(_eight_of(named), named.get("by_kernel", ALL))
    return {"argmax": _train(**named)[4]}


def _eight_of(case: Case | dict) -> tuple[str, ...]:
    """The convolution's passes whose operands have 8 bits, of a case or of arguments."""
    return float8.PASSES[case.get("conv_dtype", "auto")]


def _kinds(case: Case) -> tuple[str, ...]:
    """The convolution's passes that kernels do."""
    wanted = _with(_eight_of(case), case.get("by_kernel", ALL)).split()
    return tuple(kind for kind in tiling.PASSES[: 3 if case.training else 1] if kind in wanted)


def _norm_bytes(case: Case, dtype: torch.dtype, whole: bool) -> dict[str, int]:
    """Of `norm_act` on z, or on u, which is left of the block after its convolution and pool."""
    ((problem, _),) = conv.passes(case, dtype, ("forward",)).values()
    map = case.map if whole else problem.output
    fields = {"c": case.o, "map": map, "pool": case.pool and whole, "spatial": case.spatial and case.training}
    return norm_act.SPEC.bytes(Case(case.name, **{**case, **fields}), dtype)


def _bytes(case: Case, dtype: torch.dtype) -> dict[str, int]:
    kinds, item, eight = _kinds(case), dtype.itemsize, _eight_of(case)
    wants_dx = case.get("wants_dx", True)
    counts = conv.declared(case, dtype, kinds)
    ((problem, config),) = conv.passes(case, dtype, ("forward",)).values()
    values, fused = case.n * case.o * prod(problem.output), "_conv_fwd" in counts
    of_u, of_z = (_norm_bytes(case, dtype, whole) for whole in (False, True))
    apart = of_u if "_window_fwd" in counts else of_z  # what a pass of its own makes statistics of, or y
    if fused:
        counts["_conv_fwd"] += 4 * case.n * case.o * case.gate
    if eight:
        pixels, taps = case.n * case.c * prod(case.map), 9 * case.c * case.o
        counts["_round_images"] = pixels * (item + 1)
        counts["_round_filters"] = taps * (item + 1 + (case.training and "dgrad" in eight))
    if not case.training:
        if not fused:
            return counts | {"_normalise": apart["_normalise"]}
        counts["_conv_fwd"] += values * item * case.residual + 4 * 4 * case.o
        return counts
    if fused:
        tiles, _ = tiling.tiles(problem, config)
        counts["_conv_fwd"] += values * case.pool + 2 * 4 * tiles * case.o
        counts["_merge_statistics"] = norm_act.merge_bytes(tiles, case.o)
    else:
        counts |= {name: apart[name] for name in ("_tile_statistics", "_merge_statistics")}
    if "_window_fwd" in counts:
        counts["_window_fwd"] += values
    wanted = {kind: kind in eight for kind in tiling.PASSES[1:] if wants_dx or kind == "wgrad"}
    pooled = not case.pool or _reads_pooled(wanted, " ".join(kinds))
    gradient = (of_u if pooled else of_z)["_gradient"]
    if not pooled:  # E or F, if a kernel, reads what the pool keeps of z's gradient, and no argmax
        for kind in set(wanted) - set(eight):
            if (name := conv.NAMES[kind]) in counts:
                counts[name] += case.n * case.o * prod(problem.kept) * item - values * (item + 1)
        if "_window_wgrad" in counts:
            gradient += of_u["_gradient"]
    if wanted.get("dgrad"):
        gradient += case.n * case.o * prod(case.map if case.pool else problem.output)
    return counts | {"_normalise": of_u["_normalise"], "_sums": of_u["_sums"], "_gradient": gradient}


def _flops(case: Case, dtype: torch.dtype) -> dict[str, int]:
    return {name: tiling.flops(*how) for name, how in conv.passes(case, dtype, _kinds(case)).items()}


def _case_of(inputs: dict) -> Case:
    extents = {"o": len(inputs["filters"]), "by_kernel": inputs.get("by_kernel", ALL)}
    if (conv_dtype := inputs.get("conv_dtype", "auto")) != "auto":
        extents["conv_dtype"] = conv_dtype
    return Case(**norm_act.case_of(inputs), **extents)


def _tuned(inputs: dict) -> tuple[str, dict]:
    """As `measured` chooses, on this machine's chip, or the one that is aimed at."""
    problem = conv.problem("forward", inputs["x"], inputs["filters"], inputs["pool"])
    eight, chip = _eight_of(inputs), chips.here()
    if eight and not chip.float8:
        return "reference", inputs
    chosen = selection.by_kernel(problem, chip, inputs["x"].requires_grad, eight)
    return "triton", inputs | {"by_kernel": chosen}


def _case(
    label: str, n: int, c: int, o: int, side: int, options: str, training: bool, activation: str = "gelu"
) -> Case:
    flags = {name: name in options.split() for name in ("pool", "gate", "residual", "spatial")}
    return Case(label, n=n, c=c, o=o, map=(side, side), **flags, activation=activation, training=training)


def _pairs(recipe: str, suffix: str, n: int, size: int, options: dict, widths=(64, 256, 256)) -> list[Case]:
    """The blocks of a network of three pairs, for n images of this size."""
    cases, side, c = [], size - 1, 24
    for group, o in enumerate(widths, 1):
        cases.append(_case(f"{recipe} g{group}.conv1{suffix}", n, c, o, side, "pool", **options))
        side, c = side // 2, o
        cases.append(_case(f"{recipe} g{group}.conv2{suffix}", n, c, o, side, "", **options))
    return cases


def _network(training: bool) -> tuple[Case, ...]:
    """Every block of the recipes."""
    n, small, end = (512, 500, "") if training else (1000, 1000, " eval")
    rows = (
        ("r1.conv1", n, 32, 128, 31, "pool spatial"),
        ("r1.conv2", n, 128, 128, 15, ""),
        ("r1.conv3", n, 128, 128, 15, "gate residual"),
        ("r2.conv1", n, 128, 256, 15, "pool"),
        ("r3.conv1", n, 256, 512, 7, "pool spatial"),
        ("r3.conv2", n, 512, 512, 3, ""),
        ("r3.conv3", n, 512, 512, 3, "gate residual"),
    )
    cases = [_case(label + end, *extents, training) for label, *extents in rows]
    gelu, silu = ({"training": training, "activation": name} for name in ("gelu", "silu"))
    cases += _pairs("airbench94", end, 2000, 32, gelu)
    if training:  # record94 begins with smaller images
        for at, size in (("", 32), (" at 24", 24), (" at 28", 28)):
            cases += _pairs("record94", at, 1536, size, silu)
    else:
        for images in EVALUATED:
            at = "" if images == EVALUATED[0] else f" at {images}"
            cases += _pairs("record94", end + at, images, 32, silu)
    return (*cases, *_pairs("smoke", end, small, 32, gelu, (16, 64, 64)))


SPACE = {
    "n": (1, 3, 20),
    "c": (3, 12, 24, 32, 40, 64),
    "o": (3, 16, 24, 40),
    "map": ((21, 17), (15, 23), (13, 11), (7, 6), (5, 3), (3, 2)),
    "pool": (False, True),
    "gate": (False, True),
    "residual": (False, True),
    "spatial": (False, True),
    # In training none whose slope jumps, such as relu: rounding moves a value past 0. norm_act has them.
    "activation": tuple(name for name, act in ACTIVATIONS.items() if not act.jumps),
    "by_kernel": (ALL, "", "forward wgrad", "dgrad"),
}
_FEW = "filters of 16 channels fill less than 16 bytes for each thread"
NARROW = {
    name: norm_act.NARROW[name]
    for name in ("p_rstd", "p_stats", "p_partial", "p_groups", "p_sums", "p_spatial", "p_dgate")
} | {
    "p_filters": _FEW,
    "p_argmax": "one byte beside each value of u",
    **conv.SUMS,
}


def _wide(case: Case) -> bool:
    """Whether it is of the groups of record94 that 8 bits are meant for."""
    return case.label.startswith(("record94 g2", "record94 g3"))


def _narrow(case: Case, **fields) -> Case:
    """The same with operands of 8 bits."""
    return Case(case.label, **case | {"conv_dtype": "float8"} | fields)


def _outputs_of(case: Case) -> int:
    """Values per channel of y."""
    h, w = case.map
    return case.n * ((h // 2) * (w // 2) if case.pool else h * w)


def _small(case: Case) -> bool:
    """Whether the interpreter has it done in seconds."""
    h, w = case.map
    return case.n * h * w * max(case.c, case.o) <= 1 << 13


SPEC = KernelSpec(
    name="conv_bn_act",
    formula="y = act(norm(gate * maxpool(conv(x)))) + residual, statistics of the batch",
    fuses="convolution, max pool, gate, batch norm, activation, residual, spatial mean",
    reference=reference,
    op=op,
    ops=("hlb::conv_bn_act", "hlb::conv_bn_act_backward"),
    make=_make,
    cases=_network(training=True),
    space=SPACE | {"training": (True,)},
    counted=(
        _case("gated", 3, 24, 16, 5, "gate residual", True),  # a flat axis of taps and channels
        _case("pooled", 3, 32, 32, 7, "pool spatial residual", True),
        _case("images", 64, 32, 32, 3, "pool", True),
        Case("cuDNN", **_case("", 3, 32, 32, 9, "pool spatial gate", True) | {"by_kernel": ""}),
        Case("cuDNN, not pooled", **_case("", 3, 32, 32, 8, "residual", True) | {"by_kernel": "wgrad"}),
        Case("cuDNN's dgrad", **_case("", 3, 32, 32, 9, "pool", True) | {"by_kernel": "forward wgrad"}),
    ),
    bytes=_bytes,
    flops=_flops,
    case_of=_case_of,
    part="layer",
    tuned=_tuned,
    # As of norm_act: of a few values, gradients are what cancellation leaves, here also of u's rounding.
    valid=lambda case: _small(case) and _outputs_of(case) >= 24 and (case.n > 1 or not case.gate),
    differentiable=("x", "filters", "weight", "bias", "gate", "residual"),
    reduction=lambda case: max(9 * case.c, _outputs_of(case)),
    squared=("output 1",),  # the variance
    narrow=NARROW,
    shared_reads=conv.SHARED_READS,
    given=_given,
)

FLOAT8_SPEC = replace(
    SPEC,
    name="conv_bn_act_float8",
    formula="the same of e4m3 x and filters, and d x of e5m2 gradients",
    fuses="the same, and rounding to 8 bits",
    cases=tuple(_narrow(case, by_kernel="forward dgrad") for case in SPEC.cases if _wide(case)),
    space={
        "n": (1, 3, 20),
        "c": (3, 24, 32, 64),
        "o": (3, 24, 40),
        "map": ((13, 11), (7, 6), (3, 2)),
        "pool": (False, True),
        "gate": (False, True),
        "residual": (False, True),
        "spatial": (False, True),
        "activation": ("silu",),
        "by_kernel": (ALL, ""),
        "conv_dtype": tuple(float8.PASSES)[1:],
        "training": (True,),
    },
    counted=tuple(_narrow(case) for case in SPEC.counted[:5]),
    dtypes=HALF,
    differentiable=(*SPEC.differentiable, "largest"),
    narrowed=("d x",),
    narrow={
        name: NARROW[name] for name in ("p_rstd", "p_stats", "p_partial", "p_groups", "p_sums", "p_argmax")
    }
    | {"p_dx8": "one byte beside each value of dx"},
    since=89,
)

EVAL_SPEC = KernelSpec(
    name="conv_bn_act_eval",
    formula="y = act(norm(gate * maxpool(conv(x)))) + residual, fixed statistics",
    fuses="the same with fixed statistics, in one kernel",
    reference=reference,
    op=op,
    ops=("hlb::conv_bn_act_eval",),
    make=_make,
    cases=_network(training=False),
    space=SPACE
    | {"c": (3, 24, 40, 64), "activation": ("gelu", "relu"), "by_kernel": (ALL, ""), "training": (False,)},
    counted=(
        _case("pooled", 3, 32, 32, 7, "pool gate spatial residual", False),
        Case("cuDNN", **_case("", 3, 32, 32, 7, "pool residual", False) | {"by_kernel": ""}),
    ),
    bytes=_bytes,
    flops=_flops,
    case_of=_case_of,
    compiled={"activation": tuple(ACTIVATIONS)},
    valid=lambda case: _small(case) and _outputs_of(case) > 0,
    reduction=lambda case: 9 * case.c,
    narrow={"p_filters": _FEW}
    | dict.fromkeys(("p_mean", "p_variance", "p_weight", "p_bias"), "one number a channel"),
    shared_reads=conv.SHARED_READS,
)

FLOAT8_EVAL_SPEC = replace(
    EVAL_SPEC,
    name="conv_bn_act_float8_eval",
    formula="the same of e4m3 x and filters",
    fuses="the same with fixed statistics, in one kernel",
    cases=tuple(_narrow(case) for case in EVAL_SPEC.cases if case.n == EVALUATED[0] and _wide(case)),
    space=FLOAT8_SPEC.space | {"conv_dtype": ("float8",), "by_kernel": (ALL,), "training": (False,)},
    counted=tuple(_narrow(case) for case in EVAL_SPEC.counted[:1]),
    compiled={},
    dtypes=HALF,
    narrow={name: why for name, why in EVAL_SPEC.narrow.items() if name != "p_filters"},
    since=89,
)
