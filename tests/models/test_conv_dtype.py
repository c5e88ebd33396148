"""Convolutions with 8-bit operands: what they round, what gradients pass, and what a run makes of it."""

from __future__ import annotations

import contextlib
import dataclasses

import pytest
import tape
import torch
from torch import Tensor

import hlb
import kernels
from hlb import execution, synthetic
from hlb.networks import Network
from hlb.runs import checkpoint
from hlb.train import Trainer
from kernels import conv_bn_act
from kernels.base import chips, narrow
from kernels.convolution import float8
from kernels.convolution.float8 import E4M3, E5M2, filter_scale, gradient_scale, rounded, stored
from kernels.norm import norm_act

MIXED = "auto,float8,float8_forward"
TINY = {"base_depth": 4, "train_examples": 40, "batch_size": 20, "eval_batch_size": 20, "epochs": 2.0,
        "sizes": "12", "views": "none", "whiten_images": 20, "dtype": "float32",
        "conv_dtype": MIXED}  # fmt: skip


# What a format holds


@pytest.mark.parametrize("form, value, expected", [
    (E4M3, 1.0625, 1.0), (E4M3, 1.1875, 1.25), (E4M3, -1.19, -1.25),  # eighths; halfway, to the even one
    (E4M3, 464.0, 448.0), (E4M3, 500.0, 448.0), (E4M3, -1e9, -448.0), (E4M3, float("inf"), 448.0),
    (E4M3, 2.0**-10, 0.0), (E4M3, 3 * 2.0**-10, 2.0**-8), (E4M3, 2.0**-9, 2.0**-9),  # steps of 2^-9
    (E5M2, 1.125, 1.0), (E5M2, 1.375, 1.5), (E5M2, 6e4, 57344.0), (E5M2, 1e9, 57344.0),
    (E5M2, 2.0**-17, 0.0), (E5M2, 3 * 2.0**-17, 2.0**-15),
])  # fmt: skip
def test_values_round_to_the_nearest_that_a_format_holds_and_saturate(form, value, expected):
    assert rounded(torch.tensor([value]), form).item() == expected


@pytest.mark.parametrize("form", (E4M3, E5M2))
@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
@pytest.mark.parametrize("scale", (1.0, 128.0))
def test_every_16_bit_value_rounds_as_the_8_bit_dtype_does_and_is_exact_with_its_scale_undone(
    form, dtype, scale
):
    values = torch.arange(1 << 16).to(torch.int16).view(dtype)
    ours, theirs = rounded(values, form, scale), stored(values, form, scale)
    there = ~values.isnan()
    assert theirs.dtype == form.dtype and ours.dtype == dtype and ours.isnan().equal(~there)
    assert ours.float()[there].equal((theirs.float() / scale)[there])


def test_rounding_is_the_same_in_every_layout_and_has_no_gradient():
    x = torch.randn(3, 8, 5, 4).to(memory_format=torch.channels_last).requires_grad_()
    ours = rounded(x, E4M3)
    assert ours.stride() == x.stride() and not ours.requires_grad
    assert ours.equal(rounded(x.detach().contiguous(), E4M3)) and not ours.equal(x)


# Scales


def test_filters_of_256_channels_are_scaled_by_128_and_others_by_a_power_of_two_near_their_middle():
    assert filter_scale(256) == 128.0
    for c in (1, 24, 64, 512):
        rms = (9 * c) ** -0.5
        assert 2**0.5 <= rms * filter_scale(c) <= 2 * 2**0.5


@pytest.mark.parametrize("largest, exponent", [
    (1.0, 12), (1.99, 12), (2.0, 11), (0.03, 18), (5e4, -3), (1e-40, float8.FIRST),
    (0.0, float8.FIRST), (float("inf"), float8.FIRST), (float("nan"), float8.FIRST), (1e-37, 127),
])  # fmt: skip
def test_gradients_are_scaled_by_the_power_of_two_that_the_largest_of_the_last_step_asks_for(
    largest, exponent
):
    assert gradient_scale(torch.tensor([largest])).tolist() == [2.0**exponent]


def test_kernels_and_reference_aim_at_the_same_scales():
    assert (narrow._AIM.value, narrow._FIRST.value) == (float8.AIM, float8.FIRST)


# The reference


def one_pixel(conv_dtype: str) -> tuple[float, ...]:
    """z and the gradients of x, filter and `largest`, of x = 1.0625, a filter of 0.3 and dz = 0.1."""
    x, filters, largest = (torch.tensor([v], requires_grad=True) for v in (1.0625, 0.3, 0.1))
    z = float8.reference(x.view(1, 1, 1, 1), filters.view(1, 1, 1, 1), conv_dtype, largest)
    given = x, filters, largest
    d = torch.autograd.grad(z, given, torch.full_like(z, 0.1), allow_unused=True)
    return tuple(value if value is None else value.item() for value in (z, *d))


def test_gradients_go_straight_through_the_rounding_and_dgrad_has_8_bit_operands():
    z, dx, d_filter, largest = one_pixel("float8")
    # The filter, times 2, is 0.625 in sixteenths; dz, times 2^16, is 6144 in steps of 1024.
    assert z == 1.0 * 0.3125 and dx == pytest.approx(0.09375 * 0.3125, rel=1e-6)
    assert d_filter == pytest.approx(0.1 * 1.0625, rel=1e-6)  # of x and dz as they are
    assert largest == pytest.approx(0.1)


def test_float8_forward_leaves_both_gradients_to_the_networks_dtype():
    z, dx, d_filter, largest = one_pixel("float8_forward")
    assert z == 1.0 * 0.3125 and largest is None
    assert (dx, d_filter) == (pytest.approx(0.1 * 0.3), pytest.approx(0.1 * 1.0625))


@pytest.mark.parametrize("dtype", (torch.float64, torch.bfloat16, torch.float16))
def test_the_reference_multiplies_what_the_formats_hold(dtype):
    x, filters = torch.randn(2, 8, 5, 5).to(dtype), (torch.randn(6, 8, 3, 3) / 8).to(dtype)
    scale = filter_scale(8)
    exact = torch.nn.functional.conv2d(
        stored(x, E4M3).double(), stored(filters, E4M3, scale).double() / scale, padding=1
    )
    ours = float8.reference(x, filters, "float8").double()
    torch.testing.assert_close(
        ours, exact, rtol=2 * torch.finfo(dtype).eps, atol=1e-2 * torch.finfo(dtype).eps
    )


def block(conv_dtype: str, side: int) -> tuple[Tensor, list[Tensor]]:
    """y of a pooled block and the gradients of x, filters and `largest`, by the reference."""
    torch.manual_seed(0)
    x, filters = torch.randn(3, 8, side, side).double(), torch.randn(6, 8, 3, 3).double() / 8
    given = [x.requires_grad_(), filters.requires_grad_(), torch.full((1,), 3.0, requires_grad=True)]
    ones, running = torch.ones(6), torch.ones(2, 6)
    options = {"training": True, "eps": 1e-5, "activation": "silu", "pool": True}
    if conv_dtype == "plainly":
        z = float8.reference(x, filters, "float8", given[2])
        y = norm_act.reference(z, ones, 0 * ones, running, **options)[0]
    else:
        options |= {"conv_dtype": conv_dtype, "largest": given[2]}
        y = conv_bn_act.reference(x, filters, ones, 0 * ones, running, **options)[0]
    return y, torch.autograd.grad((y * torch.arange(6.0)[:, None, None]).sum(), given, allow_unused=True)


@pytest.mark.parametrize("side", (5, 9))  # at 9 what the pool drops is not computed
def test_a_block_rounds_the_same_whether_dropped_pixels_are_computed_or_not(side):
    (y, ours), (expected, theirs) = block("float8", side), block("plainly", side)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(ours, theirs)
    plain, gradients = block("auto", side)
    assert 0.001 < (plain - y).norm() / plain.norm() < 0.1 and gradients[2] is None
    assert 0.001 < (gradients[0] - ours[0]).norm() / ours[0].norm() < 0.3


# Recipes


def resolved(conv_dtype: str, **settings) -> hlb.Recipe:
    recipe = hlb.recipe("smoke", {"conv_dtype": conv_dtype, "dtype": "float32"} | settings)
    return execution.resolve(recipe, hlb.Execution(device="cpu"))[0]


@pytest.mark.parametrize("text, kept", [
    ("auto", ("auto",)), ("float32", ("auto",)), ("auto,float32,auto", ("auto",)), ("float8", ("float8",)),
    ("float32,float8,float8", ("auto", "float8", "float8")),
])  # fmt: skip
def test_the_networks_dtype_may_be_named_and_records_have_one_form_of_it(text, kept):
    assert resolved(text).conv_dtype == kept


@pytest.mark.parametrize("conv_dtype, message", [
    ("float9", "conv_dtype: got 'float9', accepted are auto, float64, "),
    ("auto,float8", "conv_dtype: got 2 for 3 groups, accepted is one for all, or one each"),
    ("float16,float8,float8", "conv_dtype: got float16 in a network of float32; take auto for that, "),
])  # fmt: skip
def test_a_dtype_that_convolutions_do_not_take_is_a_users_error(conv_dtype, message):
    with pytest.raises(hlb.UserError, match=message):
        resolved(conv_dtype)


def test_kernels_for_convolutions_take_8_bit_operands_in_16_bit_networks_of_a_chip_that_has_them(monkeypatch):
    how, half = hlb.Execution(device="cpu", kernels="triton"), hlb.recipe("smoke", {"dtype": "bfloat16"})
    for cc, kernels_of, recipe, taken in (
        (90, "triton", half, True), (89, "triton", half, True), (80, "triton", half, False),
        (80, "tuned", half, True), (80, "triton,conv_bn_act=reference", half, True),
        (90, "triton", hlb.recipe("smoke", {"dtype": "float32"}), False),
    ):  # fmt: skip
        monkeypatch.setattr(execution.chips, "current", lambda device, cc=cc: chips.TARGETS[cc])
        eight = dataclasses.replace(recipe, conv_dtype=("float8",))
        given = dataclasses.replace(how, kernels=kernels_of)
        with (
            contextlib.nullcontext() if taken else pytest.raises(hlb.UserError, match="take --kernels tuned")
        ):
            execution.resolve(eight, given)
        execution.resolve(recipe, given)


def called(conv_dtype: str) -> list[dict]:
    """What a network without memory tells each of its blocks of 8-bit operands."""
    seen, ops = [], kernels.backend("reference")

    def noted(*args, **options):
        seen.append({name: options[name] for name in ("conv_dtype", "largest") if name in options})
        return conv_bn_act.reference(*args, **options)

    ops.conv_bn_act = noted
    with torch.device("meta"):
        network = Network(hlb.recipe("smoke", {"base_depth": 4, "conv_dtype": conv_dtype}), ops)
        network.track_gradients()
        network(torch.empty(8, 3, 32, 32))
    return seen


def test_each_group_has_the_operands_that_the_recipe_says_and_by_default_nothing_is_said_of_them():
    assert called("auto") == called("float16") == [{}] * 6
    seen = called(MIXED)
    assert [one.get("conv_dtype") for one in seen] == [None] * 2 + ["float8"] * 2 + ["float8_forward"] * 2
    assert [one.get("largest") is not None for one in seen] == [False] * 2 + [True] * 2 + [False] * 2


# Runs


@pytest.fixture(scope="module")
def data() -> hlb.Dataset:
    return hlb.Dataset("synthetic", synthetic.make(40, 20))


def trainer(data: hlb.Dataset, graph: str = "off", **settings) -> Trainer:
    recipe, how = execution.resolve(
        hlb.recipe("smoke", TINY | settings), hlb.Execution(device="cpu", deterministic=True)
    )
    return Trainer(recipe, dataclasses.replace(how, graph=graph), data)


def losses(ours: Trainer, seed: int) -> list[float]:
    return [row["train_loss"] for row in ours.run(seed, eval_every=0).epochs]


def test_each_convolution_scales_by_the_largest_gradient_of_its_own_last_step(data, monkeypatch):
    ours, given, found = trainer(data), [], []

    def noted(x, filters, conv_dtype, largest, padding=None):
        z = reference(x, filters, conv_dtype, largest, padding)
        if conv_dtype == "float8" and z.requires_grad:
            given.append(largest.item())
            z.register_hook(lambda dz: found.append(dz.abs().max().item()))
        return z

    reference = float8.reference
    monkeypatch.setattr(float8, "reference", noted)
    ours.step.reset(0)
    for _ in range(3):
        ours.timed_step()
    assert len(given) == len(found) == 6 and given[:2] == [0.0, 0.0]
    backwards = [found[i : i + 2][::-1] for i in (0, 2, 4)]  # the last convolution's comes first
    assert [given[2:4], given[4:]] == backwards[:2] and backwards[0][0] != backwards[0][1]
    assert [one.item() for one in ours.step.largest] == backwards[2]


def test_neither_the_warm_up_nor_a_run_before_nor_an_evaluation_leaves_its_trace_in_the_scales(data):
    ours = trainer(data)
    first = losses(ours, 3)
    left = [one.clone() for one in ours.step.largest]
    ours.evaluations[ours.final]()
    assert all(map(torch.equal, left, ours.step.largest)) and all(one > 0 for one in left)
    assert losses(ours, 4) != first == losses(ours, 3)
    ours._prepare(3, ours.train_images)
    assert [one.item() for one in ours.step.largest] == [0.0, 0.0]


def test_rounding_changes_a_runs_losses_a_little_and_naming_the_networks_dtype_not_at_all(data):
    plain, ours, named = (losses(trainer(data, conv_dtype=one), 0) for one in ("auto", "float8", "float32"))
    assert plain == named and plain != ours
    assert ours == pytest.approx(plain, rel=0.1)


def test_captured_steps_carry_the_scales_from_one_to_the_next(data, monkeypatch):
    monkeypatch.setattr(execution, "capture", tape.capture)
    plain, ours = (trainer(data, how) for how in ("off", "run"))
    for seed in (3, 4):
        expected, found = (one.run(seed, eval_every=0) for one in (plain, ours))
        assert found.epochs[-1]["train_loss"] == expected.epochs[-1]["train_loss"]
        assert all(map(torch.equal, plain.step.largest, ours.step.largest))
    state = plain.network.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in ours.network.state_dict().items())


def test_a_saved_network_has_no_scales_and_predicts_with_the_operands_it_was_trained_with(data, tmp_path):
    ours = trainer(data)
    run = ours.run(0, eval_every=0)
    checkpoint.save(tmp_path / "model.pt", ours, run)
    assert not [name for name in ours.network.state_dict() if "largest" in name]
    model = hlb.load(tmp_path / "model.pt")
    assert [c.dtype for g in model.network.groups for c in g.convs] == ["auto"] * 2 + ["float8"] * 2 + [
        "float8_forward"
    ] * 2
    images, labels = data.tensors[2:]
    assert float((model.predict(images) == labels).double().mean()) == run.accuracy
