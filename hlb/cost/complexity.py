"""What a recipe costs by counting: parameters, FLOPs, steps.

A multiply-add is two FLOPs. Counted are convolutions and linear layers, over all the outputs that a plain
convolution computes; passes.py has what kernels really do.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch

import kernels

from .. import averaging, schedule
from ..data.dataset import CLASSES
from ..networks import GROUPS, Network
from ..recipes import Recipe
from ..step import Variant, plan


@dataclass(frozen=True)
class Layer:
    """One convolution or linear layer: FLOPs of a forward pass over one image, and whether x and weight
    need gradients.
    """

    name: str
    flops: int
    weight_grad: bool = True
    input_grad: bool = True


def layers(recipe: Recipe, size: int = 32) -> list[Layer]:
    """The layers of a recipe's network in order, for images of size x size. The merged stem counts as one 2x2
    convolution.
    """
    side, channels = size - 1, recipe.width(recipe.stem_width) if recipe.stem_width else 24
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
    out.append(Layer("head", 2 * channels * len(CLASSES)))  # of CIFAR-10
    return out


def flops_per_image(recipe: Recipe, stem_bias: bool = False, size: int = 32) -> tuple[int, int]:
    """(forward, forward + backward) FLOPs of an image of size x size; `stem_bias` while the stem's bias
    trains.
    """
    forward = backward = 0
    for layer in layers(recipe, size):
        forward += layer.flops
        needs_input = layer.input_grad or (stem_bias and layer.name == "group1.conv1")
        backward += layer.flops * (layer.weight_grad + needs_input)
    return forward, forward + backward


def parameters(recipe: Recipe) -> dict[str, int]:
    """Numbers of trainable and frozen parameters: the latter are whitening filters and batch-norm weights."""
    with torch.device("meta"):
        network = Network(recipe, kernels.backend("reference"))
    counts = {"trainable": 0, "frozen": 0}
    for p in network.parameters():
        counts["trainable" if p.requires_grad else "frozen"] += p.numel()
    return counts


def report(recipe: Recipe, examples: int = 50000) -> dict:
    """The entry of `hlb recipes --json` for a recipe: parameters, GFLOP per image of 32x32, TFLOP of all
    training steps, steps, schedule.
    """
    per_epoch, steps = recipe.steps_by_epoch(examples), recipe.steps(examples)
    forward, train = flops_per_image(recipe)
    total = sum(
        times * variant.count * flops_per_image(recipe, variant.train_stem, variant.size)[1]
        for variant, times in Counter(plan(recipe, examples)).items()
    )
    return {
        "parameters": parameters(recipe),
        "gflop_per_image": {"forward": forward / 1e9, "train": train / 1e9},
        "tflop_per_run": total / 1e12,
        "steps": steps,
        "steps_per_epoch": per_epoch if len(recipe.batch_sizes) > 1 else per_epoch[0],
        "epochs": recipe.epochs,
        "batch_size": recipe.batch_size,
        "views": recipe.views,
        "target": recipe.target,
        "lr_multiplier": [float(m) for m in schedule.multipliers(recipe, steps, per_epoch)],
    }


def steps(recipe: Recipe, examples: int = 50000) -> Counter[tuple[Variant, str]]:
    """How often a run takes each step: (variant, what it averages, as `kernels.sgd.AVERAGES` names it)."""
    variants = plan(recipe, examples)
    kinds = ["none"] * len(variants)
    if recipe.averaging != "none":
        rows = averaging.table(recipe, len(variants), recipe.steps_by_epoch(examples))
        kinds = [_averages(*row) for row in rows.tolist()]
    return Counter(zip(variants, kinds))


def _averages(mix: float, take: float) -> str:
    """The name of a row of `averaging.table`, by what it moves."""
    if mix in (0, 1):
        return "copy" if mix else "end" if take else "none"
    return "lookahead" if take else "ema"
