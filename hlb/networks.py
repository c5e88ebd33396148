"""The network: a frozen whitening stem, groups of blocks, a max-pooled linear head.

    images [n, 3, 32, 32] -> stem 31 x 31 -> groups 15 x 15, 7 x 7, 3 x 3 -> logits [n, classes]

A group is a row of `GROUPS`; its first block pools. Modules hold parameters and say how they are
initialised; the arithmetic is in the ops they call, so a network reads as its table. Parameters of
convolutions and linear layers are in the training dtype; batch-norm parameters, biases and running
statistics in float32 in every dtype (biases and batch-norm parameters in float64 for float64).
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from kernels.convolution import float8

if TYPE_CHECKING:
    from .recipes import Recipe

FILTER_INITS = ("default", "dirac")
HEAD_INITS = ("default", "unit_std")

Draw = Callable[[Tensor, float], None]  # fills a tensor with uniform values in [-bound, bound)


class Block(NamedTuple):
    """conv -> [pool] -> [x gate] -> BN -> activation [+ residual]."""

    pool: bool = False
    gate: bool = False  # by squeeze-and-excite of the group's first block's output
    residual: bool = False  # adds the group's first block's output, after the activation


GROUPS: dict[str, tuple[Block, ...]] = {
    "short": (Block(pool=True),),
    "pair": (Block(pool=True), Block()),
    "residual": (Block(pool=True), Block(), Block(residual=True)),
    "se_residual": (Block(pool=True), Block(), Block(gate=True, residual=True)),
}


class Norm(nn.Module):
    """Batch-norm parameters: a frozen weight of 1 and a trained bias, [c]. The network sets `channels`, the
    norm's place in the network's running statistics.
    """

    channels: slice

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(channels))

    def reset(self, draw: Draw) -> None:
        self.weight.data.fill_(1)
        self.bias.data.zero_()


class Conv(nn.Module):
    """3x3 filters [out, in, 3, 3]: uniform in 1 / sqrt(fan in), with `dirac` the first `in` of them the
    identity. `dtype` is that of its operands, a key of `float8.PASSES`; where it asks for it, training has
    `largest` (`Network.track_gradients`).
    """

    largest: Tensor | None = None

    def __init__(self, inputs: int, outputs: int, init: str, dtype: str):
        super().__init__()
        self.filters = nn.Parameter(torch.empty(outputs, inputs, 3, 3))
        self.norm = Norm(outputs)
        self.init, self.dtype = init, dtype

    def reset(self, draw: Draw) -> None:
        outputs, inputs = self.filters.shape[:2]
        draw(self.filters.data, (9 * inputs) ** -0.5)
        if self.init == "dirac":
            identity = torch.eye(min(inputs, outputs), inputs, device=self.filters.device)
            self.filters.data[:inputs].zero_()
            self.filters.data[:inputs, :, 1, 1] = identity.to(self.filters.dtype)


class SqueezeExcite(nn.Module):
    """Two linear layers, c -> c / 16 -> c, that make a gate per image and channel."""

    def __init__(self, channels: int):
        super().__init__()
        hidden = max(1, channels // 16)
        self.weight1 = nn.Parameter(torch.empty(hidden, channels))
        self.bias1 = nn.Parameter(torch.empty(hidden))
        self.weight2 = nn.Parameter(torch.empty(channels, hidden))
        self.bias2 = nn.Parameter(torch.empty(channels))

    def reset(self, draw: Draw) -> None:
        for weight, bias in ((self.weight1, self.bias1), (self.weight2, self.bias2)):
            draw(weight.data, weight.shape[1] ** -0.5)
            draw(bias.data, weight.shape[1] ** -0.5)


class Group(nn.Module):
    """The blocks of one row of `GROUPS`, the first of which changes the width and halves the map."""

    def __init__(self, kind: str, inputs: int, outputs: int, filter_init: str, conv_dtype: str):
        super().__init__()
        self.blocks = GROUPS[kind]
        self.convs = nn.ModuleList(
            Conv(inputs if i == 0 else outputs, outputs, filter_init, conv_dtype)
            for i in range(len(self.blocks))
        )
        self.se = SqueezeExcite(outputs) if any(block.gate for block in self.blocks) else None


class Stem(nn.Module):
    """Whitening filters [12 or 24, 3, 2, 2], frozen, then a 1x1 projection with batch norm, or a bias; and an
    activation.
    """

    def __init__(self, width: int):
        super().__init__()
        self.whiten = nn.Parameter(torch.zeros(12 if width else 24, 3, 2, 2), requires_grad=False)
        self.project = nn.Parameter(torch.empty(width, 12, 1, 1)) if width else None
        self.norm = Norm(width) if width else None
        self.bias = None if width else nn.Parameter(torch.empty(24))

    def reset(self, draw: Draw) -> None:
        draw((self.bias if self.project is None else self.project).data, 12**-0.5)


class Head(nn.Module):
    """weight [classes, c]: uniform in 1 / sqrt(c), with `unit_std` in sqrt(3), a standard deviation of 1."""

    def __init__(self, inputs: int, classes: int, init: str):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(classes, inputs))
        self.init = init

    def reset(self, draw: Draw) -> None:
        draw(self.weight.data, 3**0.5 if self.init == "unit_std" else self.weight.shape[1] ** -0.5)


class Network(nn.Module):
    """The network of a recipe, calling the ops of one backend.

    `forward` takes images [n, 3, h, w] and returns (logits float32 [n, classes], batch statistics
    [2, channels]). In training the caller passes the latter to `update_running_stats(network.running, ...)`,
    once a step for all layers.
    """

    def __init__(
        self, recipe: Recipe, ops: SimpleNamespace, channels_last: bool = True, *, classes: int = 10
    ):
        super().__init__()
        self.recipe, self.ops, self.channels_last = recipe, ops, channels_last
        stem_width = recipe.width(recipe.stem_width) if recipe.stem_width else 0
        widths = [stem_width or 24, *(recipe.width(multiple) for multiple in recipe.group_widths)]
        self.stem = Stem(stem_width)
        self.groups = nn.ModuleList(
            Group(kind, *pair, recipe.filter_init, dtype)
            for kind, pair, dtype in zip(recipe.groups, zip(widths, widths[1:]), recipe.conv_dtypes)
        )
        self.head = Head(widths[-1], classes, recipe.head_init)
        seen = 0
        for norm in self.modules():
            if isinstance(norm, Norm):
                norm.channels = slice(seen, seen := seen + norm.bias.numel())
        self.register_buffer("running", torch.stack((torch.zeros(seen), torch.ones(seen))).float())

    def forward(self, x: Tensor, train_stem: bool = True) -> tuple[Tensor, Tensor]:
        ops, stem, stats = self.ops, self.stem, []
        if stem.project is not None:
            x = ops.stem(x, stem.whiten, project=stem.project)
            x, _ = self._normalised(ops.norm_act, (x,), stem.norm, stats)
        else:
            bias = stem.bias if train_stem else stem.bias.detach()
            x = ops.stem(x, stem.whiten, bias=bias, activation=self.recipe.stem_activation)
        for group in self.groups:
            x = self._group(group, x, stats)
        return ops.pool_head(x, self.head.weight, self.recipe.logit_scale), torch.cat(stats, dim=1)

    def _group(self, group: Group, x: Tensor, stats: list[Tensor]) -> Tensor:
        first = gate = None
        for block, conv in zip(group.blocks, group.convs):
            squeeze = first is None and group.se is not None
            float8 = {} if conv.dtype == "auto" else {"conv_dtype": conv.dtype, "largest": conv.largest}
            x, mean = self._normalised(
                self.ops.conv_bn_act,
                (x, conv.filters),
                conv.norm,
                stats,
                pool=block.pool,
                gate=gate if block.gate else None,
                residual=first if block.residual else None,
                spatial_mean=squeeze,
                **float8,
            )
            first = x if first is None else first
            gate = self.ops.se_gate(mean, *group.se.parameters()) if squeeze else gate
        return x

    def _normalised(
        self, op: Callable, inputs: tuple[Tensor, ...], norm: Norm, stats: list[Tensor], **options
    ) -> tuple[Tensor, Tensor | None]:
        """An op that ends in batch norm and activation: returns (y, spatial mean or None), adds to
        `stats`.
        """
        y, batch, mean = op(
            *inputs,
            norm.weight,
            norm.bias,
            self.running[:, norm.channels],
            training=self.training,
            eps=self.recipe.bn_eps,
            activation=self.recipe.activation,
            **options,
        )
        stats.append(batch)
        return y, mean

    def track_gradients(self) -> list[Tensor]:
        """For training: a float32 [1] for each convolution whose gradients have 8 bits, the largest of them
        in the step before, 0 at first. They are inputs whose gradients are to take their place after a step
        (kernels/convolution/float8.py), and no weights.
        """
        convs = [conv for group in self.groups for conv in group.convs]
        convs = [conv for conv in convs if "dgrad" in float8.PASSES[conv.dtype]]
        for conv in convs:
            conv.largest = self.running.new_zeros(1).requires_grad_()
        return [conv.largest for conv in convs]

    def layout(self, images: Tensor) -> Tensor:
        """A batch [n, h, w, 3] as the network takes it: [n, 3, h, w], channels-last (a view) or
        contiguous.
        """
        x = images.permute(0, 3, 1, 2)
        return x if self.channels_last else x.contiguous()

    def cast(self, dtype: torch.dtype) -> Network:
        """Weights to `dtype`; batch-norm parameters and biases stay float32 (float64 for float64), as
        `running` does.
        """
        wide = torch.promote_types(dtype, torch.float32)
        for name, p in self.named_parameters():
            p.data = p.data.to(wide if "bias" in name or "norm" in name else dtype)
        return self

    @torch.no_grad()
    def reset(self, draw: Draw) -> None:
        """Initial weights, each random tensor by `draw`, in place."""
        for module in self.modules():
            if module is not self and hasattr(module, "reset"):
                module.reset(draw)
