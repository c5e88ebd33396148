from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from helpers import DTYPES, TOLERANCE, assert_agrees, assert_near, channels_last, wide
from torch import Tensor, nn

import kernels
from hlb import recipe
from hlb.networks import GROUPS, Network
from kernels import conv_bn_act, pool_head, se_gate
from kernels.norm import norm_act, running_stats

EPS = 1e-12
ACTIVATIONS = {
    "gelu": lambda z: z * (1 + torch.erf(z / math.sqrt(2))) / 2,
    "silu": lambda z: z / (1 + torch.exp(-z)),
    "relu": lambda z: torch.where(z > 0, z, 0),
    "celu": lambda z: torch.where(z > 0, z, 0.3 * (torch.exp(z.clamp(max=0) / 0.3) - 1)),
}
OPTIONS = [(), ("pool",), ("gate",), ("residual",), ("pool", "gate", "residual")]


def pooled(x: Tensor) -> Tensor:
    """The largest of each 2x2 window, the first where several are; an odd last row and column are dropped."""
    n, c, h, w = x.shape
    windows = x[:, :, : h // 2 * 2, : w // 2 * 2].reshape(n, c, h // 2, 2, w // 2, 2)
    return windows.transpose(3, 4).flatten(4).max(-1).values


def standard(v: Tensor) -> Tensor:
    """Of mean 0 and variance 1, by channel."""
    return normalised(v, *(torch.full((v.shape[1],), value, dtype=v.dtype) for value in (1.0, 0.0)))


def normalised(v: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    center = v - v.mean((0, 2, 3), keepdim=True)
    z = center / (center.square().mean((0, 2, 3), keepdim=True) + EPS).sqrt()
    return z * weight[:, None, None] + bias[:, None, None]


def plain(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    activation: str,
    filters: Tensor | None = None,
    pool: bool = False,
    gate: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    v = x if filters is None else F.conv2d(x, filters, padding=1)
    v = pooled(v) if pool else v
    v = v if gate is None else v * gate[:, :, None, None]
    y = ACTIVATIONS[activation](normalised(v, weight, bias))
    return y if residual is None else y + residual


def block_inputs(dtype: torch.dtype, options: tuple[str, ...], h: int = 7, w: int = 5) -> dict[str, Tensor]:
    """Tensors of `norm_act`, of 8 images and 32 channels: enough for roundings to average out."""
    side = (h // 2, w // 2) if "pool" in options else (h, w)
    inputs = {
        "x": channels_last(8, 32, h, w, dtype=dtype),
        "weight": torch.randn(32).to(wide(dtype)),
        "bias": torch.randn(32).to(wide(dtype)),
    }
    if "gate" in options:
        inputs["gate"] = torch.rand(8, 32).to(wide(dtype))
    if "residual" in options:
        inputs["residual"] = channels_last(8, 32, *side, dtype=dtype)
    return inputs


def conv_inputs(dtype: torch.dtype, options: tuple[str, ...]) -> dict[str, Tensor]:
    """Tensors of `conv_bn_act`; in 16 bits small integers, for exact sums and so the same argmax."""
    x, filters = channels_last(8, 3, 7, 5), channels_last(32, 3, 3, 3)
    if dtype.itemsize == 2:
        x, filters = x.round(), filters.round()
    return block_inputs(dtype, options) | {"x": x.to(dtype), "filters": filters.to(dtype)}


def defaults(c: int, dtype: torch.dtype) -> dict[str, object]:
    """The arguments of `norm_act` that most tests do not vary, for `c` channels in training."""
    return {
        "weight": torch.ones(c, dtype=wide(dtype)),
        "bias": torch.zeros(c, dtype=wide(dtype)),
        "running": torch.stack((torch.zeros(c), torch.ones(c))),
        "training": True,
        "eps": EPS,
        "activation": "gelu",
    }


def norm(x: Tensor, **options):
    return norm_act.reference(x, **defaults(x.shape[1], x.dtype) | options)


def conv(x: Tensor, filters: Tensor, **options):
    return conv_bn_act.reference(x, filters, **defaults(len(filters), x.dtype) | options)


def edgeless_conv(x: Tensor, **options):
    """A conv whose last row and column of x only those outputs read that floor pooling drops."""
    filters = torch.randn(6, 3, 3, 3, generator=torch.Generator().manual_seed(1)).to(x.dtype)
    filters[..., -1, :], filters[..., -1] = 0, 0
    return conv(x, filters, **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_norm_act_equals_its_formula(options, dtype):
    pool = "pool" in options
    assert_agrees(
        lambda **inputs: norm(**inputs, pool=pool)[0],
        lambda **inputs: plain(**inputs, pool=pool, activation="gelu"),
        block_inputs(dtype, options),
        dtype,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation_equals_its_formula(activation, dtype):
    assert_agrees(
        lambda **inputs: norm(**inputs, activation=activation)[0],
        lambda **inputs: plain(**inputs, activation=activation),
        block_inputs(dtype, ()),
        dtype,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_conv_bn_act_equals_its_formula(options, dtype):
    pool = "pool" in options
    assert_agrees(
        lambda **inputs: conv(**inputs, pool=pool)[0],
        lambda **inputs: plain(**inputs, pool=pool, activation="gelu"),
        conv_inputs(dtype, options),
        dtype,
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_spatial_mean_is_that_of_the_output(dtype):
    options = ("pool", "residual")
    assert_agrees(
        lambda **inputs: norm(**inputs, pool=True, spatial_mean=True)[2],
        lambda **inputs: plain(**inputs, pool=True, activation="gelu").mean((2, 3)),
        block_inputs(dtype, options),
        dtype,
    )


def test_spatial_mean_is_float32_in_a_16_bit_run():
    assert norm(channels_last(2, 3, 4, 4, dtype=torch.bfloat16), spatial_mean=True)[2].dtype == torch.float32


@pytest.mark.parametrize("op", [norm, edgeless_conv])
def test_pooled_output_ignores_the_row_and_column_that_floor_pooling_drops(op):
    x = channels_last(4, 3, 7, 5)
    y, stats, _ = op(x, pool=True)
    x[..., -1, :], x[..., -1] = 100, -100
    y2, stats2, _ = op(x, pool=True)
    assert torch.equal(y, y2)
    assert torch.equal(stats, stats2)


@pytest.mark.parametrize("op", [norm, edgeless_conv])
def test_no_gradient_reaches_the_row_and_column_that_floor_pooling_drops(op):
    x = channels_last(4, 3, 7, 5).requires_grad_()
    y = op(x, pool=True)[0]
    y.backward(torch.randn_like(y))
    assert (x.grad[..., :-1, :-1] != 0).any()
    assert (x.grad[..., -1, :] == 0).all()
    assert (x.grad[..., -1] == 0).all()


def test_training_equals_batch_norm_of_torch_over_several_steps():
    module = nn.BatchNorm2d(4, eps=EPS, momentum=0.8).double()
    running = torch.stack((torch.zeros(4), torch.ones(4)))
    for step in range(5):
        x = (step + 1) * channels_last(3, 4, 6, 6) + step
        y, stats, _ = norm(x, running=running, activation="relu")
        assert_near(y, module(x).relu(), 1e-12)
        running_stats.reference(running, stats, 0.8)
        assert_near(running, torch.stack((module.running_mean, module.running_var)), 1e-6)


@pytest.mark.parametrize("function", [running_stats.reference, running_stats.op])
@pytest.mark.parametrize("momentum", [-0.1, 1.5, math.nan])
def test_a_momentum_that_is_no_weight_is_refused(function, momentum):
    with pytest.raises(ValueError, match=f"^momentum: got {momentum}, accepted is 0 to 1"):
        function(torch.zeros(2, 3), torch.ones(2, 3), momentum)


def test_evaluation_uses_the_running_statistics():
    x, bias = channels_last(3, 4, 6, 6), torch.randn(4).double()
    running = torch.stack((torch.randn(4), torch.rand(4) + 0.5))
    mean, variance = running.double()[..., None, None]
    y, stats, _ = norm(x, bias=bias, running=running, training=False)
    assert_near(y, ACTIVATIONS["gelu"]((x - mean) / (variance + EPS).sqrt() + bias[:, None, None]), 1e-12)
    assert stats is running


@pytest.mark.parametrize("training", [True, False])
def test_running_statistics_are_never_written(training):
    running = torch.rand(2, 3)
    before = running.clone()
    norm(channels_last(2, 3, 4, 4), running=running, training=training)
    assert torch.equal(running, before)


@pytest.mark.parametrize("format", [torch.channels_last, torch.contiguous_format], ids=str)
@pytest.mark.parametrize("mean", [0.5, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_statistics_have_float32_accuracy_in_every_dtype(dtype, mean, format):
    x = (torch.randn(64, 8, 15, 15) + mean).to(dtype).to(memory_format=format)
    stats = norm(x)[1]
    assert stats.dtype == torch.float32
    # A float32 reduction of K terms; sums of x and x^2 would be wrong by 5e-4 at mean / std = 100.
    tolerance = 10 * torch.finfo(torch.float32).eps * (x.numel() / x.shape[1]) ** 0.5
    assert_near(stats[0], x.double().mean((0, 2, 3)), 1e-6, "mean")
    assert_near(stats[1], x.double().var((0, 2, 3)), tolerance, "variance")


@pytest.mark.parametrize("rows", [1, 7, 64, 4 * 36])
def test_tiles_of_statistics_merge_to_those_of_the_whole(rows, monkeypatch):
    monkeypatch.setattr(norm_act, "TILE", rows * 3)
    x = channels_last(4, 3, 6, 6) + torch.arange(4).view(4, 1, 1, 1)  # tiles differ in their mean
    stats = norm(x)[1]
    assert_near(stats[0], x.double().mean((0, 2, 3)), 1e-6, "mean")
    assert_near(stats[1], x.double().var((0, 2, 3)), 1e-6, "variance")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("constant", [0, 3])
def test_constant_channel_has_variance_0_and_a_finite_output(constant, dtype):
    x = channels_last(4, 3, 6, 6, dtype=dtype)
    x[:, 1] = constant
    y, stats, _ = norm(x)
    assert stats[1, 1] == 0
    assert y.isfinite().all()


@pytest.mark.parametrize("format", [torch.channels_last, torch.contiguous_format], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("constant", [3.3, 1e6, -1e19])
def test_constant_channel_is_0_before_its_bias_whatever_the_constant(constant, dtype, format, monkeypatch):
    monkeypatch.setattr(norm_act, "TILE", 7 * 3 * 36)  # tiles are merged, and normalised
    x = torch.full((16, 3, 6, 6), constant).to(dtype).to(memory_format=format)
    x[:, 2] = torch.randn(16, 6, 6)
    y, stats, _ = norm(x, bias=torch.full((3,), 0.5), activation="relu")
    assert (y[:, :2] == 0.5).all() and y.is_contiguous(memory_format=format)
    assert (stats[0, :2] == x[0, 0, 0, 0]).all() and (stats[1, :2] == 0).all()
    assert_near(y[:, 2], (0.5 + standard(x[:, 2:].double())[:, 0]).relu(), TOLERANCE[dtype])


def test_a_channel_far_from_0_is_as_exact_as_its_mean():
    x = (torch.randn(64, 8, 31, 31) + 1000).to(memory_format=torch.channels_last)
    y = norm(x, activation="relu")[0]
    # The mean is rounded to a multiple of 2^-14, by 1.8e-5 in norm if all roundings had the same chance.
    assert_near(y, standard(x.double()).relu(), 2.5e-5)


def test_evaluation_takes_the_mean_away_before_it_scales():
    running = torch.stack((torch.full((3,), 3.3), torch.zeros(3)))
    x = running[0, 0] + torch.arange(36).float().mul(2.0**-22).view(1, 1, 6, 6).expand(4, 3, 6, 6)
    y = norm(x, running=running, training=False, activation="relu")[0]
    assert_near(y, (x.double() - running[0, 0].double()) * 1e6, 1e-6)
    x = x.clone().requires_grad_()
    norm(x, running=running, training=False, activation="relu")[0].sum().backward()
    assert_near(x.grad[..., 1:], torch.full_like(x[..., 1:], 1e6).double(), 1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])  # rstd is 1e6
def test_constant_channel_has_a_finite_gradient(dtype):
    x = channels_last(4, 3, 6, 6, dtype=dtype)
    x[:, 1] = 3
    x.requires_grad_()
    y, _, _ = norm(x)
    y.backward(torch.randn_like(y))
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("shape, pool", [((1, 3, 1, 1), False), ((1, 3, 3, 2), True)])
def test_one_value_per_channel_is_an_error_in_training(shape, pool):
    with pytest.raises(ValueError, match="^x: got one value per channel"):
        norm(torch.randn(shape), pool=pool)


def test_one_value_per_channel_is_fine_in_evaluation():
    assert norm(torch.ones(1, 3, 1, 1), training=False, activation="relu")[0].flatten().tolist() == [1, 1, 1]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_se_gate_equals_its_formula(dtype):
    shapes = {"s": (6, 32), "weight1": (2, 32), "bias1": (2,), "weight2": (32, 2), "bias2": (32,)}
    assert_agrees(
        se_gate.reference,
        lambda s, weight1, bias1, weight2, bias2: (
            1 / (1 + torch.exp(-(ACTIVATIONS["gelu"](s @ weight1.T + bias1) @ weight2.T + bias2)))
        ),
        {name: torch.randn(shape).to(dtype) for name, shape in shapes.items()},
        dtype,
    )


def test_gate_is_as_wide_as_the_mean_it_is_made_of():
    weights = [torch.randn(shape).bfloat16() for shape in ((2, 32), (2,), (32, 2), (32,))]
    s = torch.randn(6, 32)
    assert_near(se_gate.reference(s, *weights), se_gate.reference(s.double(), *weights), 1e-5)


def distinct(n: int, c: int, h: int, w: int) -> Tensor:
    """Values of which no two of a map are equal in any dtype."""
    return torch.rand(n, c, h * w).argsort(-1).view(n, c, h, w) / 4 - 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_pool_head_equals_its_formula(dtype):
    assert_agrees(
        lambda x, weight: pool_head.reference(x, weight, 0.1),
        lambda x, weight: 0.1 * x.flatten(2).max(-1).values @ weight.T,
        {"x": distinct(6, 8, 3, 3).to(dtype), "weight": torch.randn(10, 8).to(dtype)},
        dtype,
    )


def test_pool_head_shares_the_gradient_among_equal_maxima():
    x = torch.tensor([[1.0, 3.0], [3.0, 2.0]]).view(1, 1, 2, 2).requires_grad_()
    pool_head.reference(x, torch.ones(1, 1), 4.0).backward()
    assert x.grad.flatten().tolist() == [0, 2, 2, 0]


def test_logits_are_float32_in_a_16_bit_run():
    x, weight = channels_last(2, 8, 3, 3, dtype=torch.float16), torch.randn(10, 8).half()
    assert_near(pool_head.reference(x, weight, 0.1), pool_head.reference(x.double(), weight, 0.1), 1e-5)


def plain_group(x: Tensor, group: nn.Module, kind: str) -> Tensor:
    def v(x, i):
        return F.conv2d(x, group.convs[i].filters, padding=1)

    def normed(v, i):
        return ACTIVATIONS["gelu"](normalised(v, group.convs[i].norm.weight, group.convs[i].norm.bias))

    first = normed(pooled(v(x, 0)), 0)
    if kind == "short":
        return first
    second = normed(v(first, 1), 1)
    if kind == "pair":
        return second
    third = v(second, 2)
    if kind == "se_residual":
        se = group.se
        hidden = ACTIVATIONS["gelu"](first.mean((2, 3)) @ se.weight1.T + se.bias1)
        third = third * torch.sigmoid(hidden @ se.weight2.T + se.bias2)[:, :, None, None]
    return normed(third, 2) + first


def plain_network(x: Tensor, network: nn.Module, kind: str) -> Tensor:
    stem = network.stem
    x = F.conv2d(x, stem.whiten)
    if stem.project is None:
        x = ACTIVATIONS["gelu"](x + stem.bias[:, None, None])
    else:
        x = ACTIVATIONS["gelu"](normalised(F.conv2d(x, stem.project), stem.norm.weight, stem.norm.bias))
    x = plain_group(x, network.groups[0], kind)
    return network.recipe.logit_scale * x.flatten(2).max(-1).values @ network.head.weight.T


def one_group(name: str, kind: str) -> Network:
    """A network in float64 of one group, every parameter random."""
    settings = {"base_depth": 16, "groups": (kind,), "group_widths": (2.0,)}
    network = Network(recipe(name, settings), kernels.backend("reference"))
    for p in network.parameters():
        p.data.normal_(std=0.5)
    return network.cast(torch.float64)


@pytest.mark.parametrize("kind", GROUPS)
@pytest.mark.parametrize("name", ["seed", "airbench94"])
def test_network_equals_its_formula(name, kind):
    network = one_group(name, kind)
    twin = copy.deepcopy(network)
    x, upstream = channels_last(6, 3, 12, 12), torch.randn(6, 10)
    logits, expected = network(x)[0], plain_network(x, twin, kind)
    logits.backward(upstream)
    expected.backward(upstream)
    assert_near(logits, expected, 1e-12)
    for (which, p), q in zip(network.named_parameters(), twin.parameters()):
        if p.requires_grad:
            assert_near(p.grad, q.grad, 1e-10, which)  # the gate's gradient is mostly cancellation


@pytest.mark.parametrize("format", [torch.channels_last, torch.contiguous_format], ids=str)
def test_network_lays_a_batch_out_in_its_memory_format(format):
    network = Network(recipe("smoke"), kernels.backend("reference"), format == torch.channels_last)
    images = torch.randn(2, 8, 8, 3)
    x = network.layout(images)
    assert torch.equal(x[:, 1], images[..., 1])
    assert x.is_contiguous(memory_format=format)


def test_frozen_stem_bias_gets_no_gradient():
    network = one_group("airbench94", "short")
    network(channels_last(2, 3, 12, 12), train_stem=False)[0].sum().backward()
    assert network.stem.bias.grad is None


def test_whitening_filters_and_norm_weights_are_frozen():
    network = one_group("seed", "se_residual")
    frozen = {name for name, p in network.named_parameters() if not p.requires_grad}
    norms = (f"groups.0.convs.{i}.norm.weight" for i in range(3))
    assert frozen == {"stem.whiten", "stem.norm.weight", *norms}
