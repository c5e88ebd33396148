"""What a recipe costs, counted: parameters, FLOPs, steps; what the kernels of a training step do and move.

A multiply-add is two FLOPs. `report` counts convolutions and linear layers only, over all the outputs that a
plain convolution computes; `launched` what kernels really do: less where they skip, more where they pad.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from types import SimpleNamespace

import torch
from torch import Tensor

import kernels
from kernels import chips, conv, launches, tiling
from kernels.spec import Case
from kernels.traffic import Traffic, around, traffic

from . import schedule
from .networks import CLASSES, GROUPS, Network
from .optimizer import Optimizer


@dataclass(frozen=True)
class Layer:
    """One convolution or linear layer: FLOPs of a forward pass over one image, and whether x and weight
    need gradients.
    """

    name: str
    flops: int
    weight_grad: bool = True
    input_grad: bool = True


def layers(recipe) -> list[Layer]:
    """The layers of a recipe's network in order, for 32x32 images. The merged stem counts as one 2x2
    convolution.
    """
    side, channels = 31, recipe.width(recipe.stem_width) if recipe.stem_width else 24
    # A projection's gradient costs as much as a weight gradient, and needs the first convolution's input
    # gradient. A stem without one is frozen, but for a bias that trains for some epochs.
    projects = bool(recipe.stem_width)
    stem = Layer("stem", 2 * 12 * channels * side**2, projects, input_grad=False)
    out = [stem]
    for g, (kind, multiple) in enumerate(zip(recipe.groups, recipe.group_widths)):
        width = recipe.width(multiple)
        for i, block in enumerate(GROUPS[kind]):
            out.append(
                Layer(
                    f"group{g + 1}.conv{i + 1}",
                    2 * 9 * channels * width * side**2,
                    input_grad=projects or bool(g or i),
                )
            )
            channels, side = width, side // 2 if block.pool else side
            if i == 0 and any(b.gate for b in GROUPS[kind]):
                out.append(Layer(f"group{g + 1}.se", 4 * width * max(1, width // 16)))
    out.append(Layer("head", 2 * channels * CLASSES))
    return out


def flops_per_image(recipe, stem_bias: bool = False) -> tuple[int, int]:
    """(forward, forward + backward) FLOPs of one image; `stem_bias` while the stem's bias trains."""
    forward = backward = 0
    for layer in layers(recipe):
        forward += layer.flops
        needs_input = layer.input_grad or (stem_bias and layer.name == "group1.conv1")
        backward += layer.flops * (layer.weight_grad + needs_input)
    return forward, forward + backward


def parameters(recipe) -> dict[str, int]:
    """Numbers of trainable and frozen parameters: the latter are whitening filters and batch-norm weights."""
    with torch.device("meta"):
        network = Network(recipe, kernels.backend("reference"))
    counts = {"trainable": 0, "frozen": 0}
    for p in network.parameters():
        counts["trainable" if p.requires_grad else "frozen"] += p.numel()
    return counts


def report(recipe, examples: int = 50000) -> dict:
    """The entry of `hlb recipes --json` for a recipe: parameters, GFLOP per image, TFLOP per run, steps,
    schedule.
    """
    per_epoch, steps = recipe.steps_per_epoch(examples), recipe.steps(examples)
    count = min(recipe.train_examples or examples, examples)
    images = [min(recipe.batch_size, count - (s % per_epoch) * recipe.batch_size) for s in range(steps)]
    bias_steps = schedule.stem_steps(recipe, steps, per_epoch)
    forward, train = flops_per_image(recipe)
    _, train_bias = flops_per_image(recipe, stem_bias=True)
    total = sum(images[:bias_steps]) * train_bias + sum(images[bias_steps:]) * train
    return {
        "parameters": parameters(recipe),
        "gflop_per_image": {"forward": forward / 1e9, "train": train / 1e9},
        "tflop_per_run": total / 1e12,
        "steps": steps,
        "steps_per_epoch": per_epoch,
        "epochs": recipe.epochs,
        "batch_size": recipe.batch_size,
        "views": recipe.views,
        "target": recipe.target,
        "lr_multiplier": [float(m) for m in schedule.multipliers(recipe, steps, per_epoch)],
    }


# A training step, kernel by kernel


@dataclass(frozen=True)
class Pass:
    """A kernel of a training step, or operators of PyTorch: FLOPs of its products, zero padding included, and
    bytes. `useful` are the FLOPs that a convolution needs; what is no convolution has none.
    """

    layer: str
    name: str
    form: str
    flops: int
    bytes: int
    useful: int | None = None


LAYERS = ("stem", "conv_bn_act", "se_gate", "pool_head")  # ops that are a layer, as `layers` has them
REST = {"augment": "images", "cross_entropy": "loss", "update_running_stats": "statistics"}
REST |= dict.fromkeys(("sgd", "muon"), "weights")


def calls(recipe, dtype: torch.dtype, examples: int = 50000) -> list[tuple[str, str, dict]]:
    """(layer, op, arguments) of each call in a training step, on tensors without memory. The stem's bias is
    frozen, and no weights are averaged.
    """
    noted, names = [], iter(layers(recipe))

    def noting(op: str, function: Callable) -> Callable:
        def call(*args, **kwargs):
            inputs = inspect.signature(function).bind(*args, **kwargs).arguments
            inputs |= inputs.pop("options", {})
            layer = next(names).name if op in LAYERS else REST.get(op) or noted[-1][0]
            noted.append((layer, op, inputs))
            return function(*args, **kwargs)

        return call

    ops = {op: noting(op, function) for op, function in kernels.BACKENDS["reference"].items()}
    with torch.device("meta"), Traffic():  # for the layouts that it gives
        network = Network(recipe, SimpleNamespace(**ops)).cast(dtype)
        steps, per_epoch = recipe.steps(examples), recipe.steps_per_epoch(examples)
        optimizer = Optimizer(network, steps, per_epoch, channels_last=True)
        pixels = torch.empty(examples, 32, 32, 3, dtype=torch.uint8)
        ids, number = torch.empty(recipe.batch_size, dtype=torch.int64), torch.empty((), dtype=torch.int64)
        changes = {
            name: getattr(recipe, name) for name in ("pad", "flip", "cutout", "brightness", "contrast")
        }
        colours = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
        images = network.ops.augment(pixels, ids, number, number, **changes, **colours, dtype=dtype)
        logits, stats = network(network.layout(images), train_stem=False)
        network.ops.cross_entropy(logits, ids, recipe.label_smoothing)
        network.ops.update_running_stats(network.running, stats, recipe.bn_momentum)
        optimizer.step()
    return noted


def _norm_case(x, *, activation, training, pool=False, gate=None, residual=None, spatial_mean=False, **_):
    n, c, *map = x.shape
    flags = {"pool": pool, "gate": gate is not None, "residual": residual is not None}
    flags |= {"spatial": spatial_mean, "training": training}
    return {"n": n, "c": c, "map": tuple(map), "activation": activation, **flags}


def _stem_case(x, whiten, project=None, bias=None, activation=None):
    (n, _, h, w), k = x.shape, len(whiten)
    c = k if project is None else len(project)
    flags = {"project": project is not None, "bias": bias is not None}
    return {"n": n, "h": h, "w": w, "k": k, "c": c, "activation": activation, **flags}


def _sized(**extents: tuple[str, int]) -> Callable[..., dict]:
    """A case of extents of arguments: n=("x", 0) is x.shape[0]."""
    return lambda **inputs: {name: inputs[of].shape[axis] for name, (of, axis) in extents.items()}


def _updated(compute=None, **_) -> dict:
    return {"master": compute is not None, "averaging": "none"}


# op -> the fields of its Case that bytes and FLOPs depend on, from its arguments.
FIELDS: dict[str, Callable[..., dict]] = {
    "augment": lambda images, ids, size=0, **_: {
        "n": len(ids),
        "map": tuple(images.shape[1:3]),
        "size": size,
    },
    "stem": _stem_case,
    "norm_act": _norm_case,
    "conv_bn_act": lambda filters, **inputs: _norm_case(**inputs) | {"o": len(filters)},
    "se_gate": _sized(n=("s", 0), c=("s", 1), r=("weight1", 0)),
    "pool_head": _sized(n=("x", 0), c=("x", 1), h=("x", 2), w=("x", 3), classes=("weight", 0)),
    "cross_entropy": _sized(n=("logits", 0), classes=("logits", 1)),
    "update_running_stats": _sized(channels=("running", 1)),
    "muon": lambda matrices, steps, **inputs: (
        _updated(**inputs) | {"shapes": tuple(shape for _, *shape in matrices), "steps": steps}
    ),
    "sgd": lambda segments, **inputs: (
        _updated(**inputs) | {"sizes": tuple(end - start for start, end, *_ in segments)}
    ),
}


def launched(recipe, choice: str, dtype: torch.dtype = torch.float16) -> list[Pass]:
    """What the ops of a choice launch in one training step, in order. Errors as `kernels.choose`."""
    chosen = kernels.choose(choice)
    found = []
    for layer, op, inputs in calls(recipe, dtype):
        backend = chosen[op]
        if backend == "tuned":
            problem = conv.problem("forward", inputs["x"], inputs["filters"], inputs["pool"])
            backend = "tuned" if launches.block_winner(problem, chips.here()) == "triton" else "reference"
        passes = _eager(op, inputs) if backend == "reference" else _kernels(op, inputs, backend == "tuned")
        found += (Pass(layer, *fields) for fields in passes)
    return found


def _eager(op: str, inputs: dict) -> Iterator[tuple]:
    """The operators of a reference: a block's convolutions by themselves, the rest together."""
    fresh = {
        name: value.detach().requires_grad_(value.requires_grad) if isinstance(value, Tensor) else value
        for name, value in inputs.items()
    }
    forward, backward = traffic(kernels.BACKENDS["reference"][op], fresh)
    if op == "conv_bn_act":
        useful = tiling.useful(conv.problem("forward", inputs["x"], inputs["filters"], inputs["pool"]))
        work = forward.flops.pop("convolution"), forward.bytes.pop("convolution")
        del backward.flops["convolution_backward"], backward.bytes["convolution_backward"]
        for kind in tiling.PASSES:  # each has two of x, y and filters to read, and the third to write
            if kind != "dgrad" or inputs["x"].requires_grad:
                yield kind, "cuDNN", *work, useful
        op = "norm_act"
    for suffix, counted in (("", forward), (" backward", backward)):
        if counted.bytes.total():
            yield op + suffix, "reference", counted.flops.total(), counted.bytes.total()


KINDS = {kernel: kind for kind, kernel in conv.NAMES.items()}


def _kernels(op: str, inputs: dict, tuned: bool) -> Iterator[tuple]:
    """The kernels of an op, as its SPEC counts them, without those of gradients that nothing needs; and the
    operators between them. If `tuned`, cuDNN where no kernel was measured to be faster.
    """
    spec, case, dtype = kernels.CATALOGUE[op], Case(**FIELDS[op](**inputs)), dtype_of(inputs)
    moved, done = spec.bytes(case, dtype), spec.flops(case, dtype)
    how = conv.passes(case, dtype, tiling.PASSES) if op == "conv_bn_act" else {}
    needing = [value for value in inputs.values() if isinstance(value, Tensor) and value.requires_grad]
    unneeded = () if needing else ("_stem_bwd",)
    if "x" in inputs and not inputs["x"].requires_grad:
        unneeded += (conv.NAMES["dgrad"],)
    for kernel in (name for name in moved if name not in unneeded):
        work = done.get(kernel, 0), moved[kernel]
        if kernel in how:
            problem, config = how[kernel]
            if tuned and launches.choose_tuned(problem, chips.here()) is None:
                whole = replace(problem, pool=False)
                work = tiling.useful(whole), tiling.bytes(whole, replace(config, splits=1))
                yield KINDS[kernel], "cuDNN", *work, tiling.useful(problem)
            else:
                yield KINDS[kernel], str(config), *work, tiling.useful(problem)
        else:
            yield kernel, "triton", *work
    both = around(spec.op, inputs)
    if rest := sum(counted.bytes.total() for counted in both):
        yield f"{op}, the rest", "PyTorch", sum(counted.flops.total() for counted in both), rest


def dtype_of(inputs: dict) -> torch.dtype:
    """Of a call as its SPEC has it: of what the op reads most of."""
    named = ("x", "grad", "weight1", "logits", "running")
    return inputs.get("dtype") or next(inputs[name].dtype for name in named if name in inputs)
