"""The tolerance of tf32, against operands that lose their lower bits as tensor cores drop them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import conv_bn_act
from kernels.base import correctness
from kernels.base.correctness import execute, faults
from kernels.base.spec import Case

LOSS = 2**-11 / (2 * torch.tensor(2.0).log().item())  # of an operand, on average
PLAIN = dict.fromkeys(("pool", "gate", "residual", "spatial"), False)
CASE = Case("block", n=64, c=64, o=64, map=(7, 7), activation="silu", training=True, **PLAIN)


def truncated(x: Tensor) -> Tensor:
    """Without the lower 13 bits of float32, in float64."""
    return (x.float().view(torch.int32) & ~0x1FFF).view(torch.float32).double()


@pytest.fixture
def block(tf32) -> tuple[dict, dict]:
    """Results of a block in float64: of truncated images and filters, and of whole ones."""
    inputs = {
        name: correctness.widened(value)
        for name, value in conv_bn_act.SPEC.make(CASE, torch.float32, "cpu").items()
    }
    dropped = inputs | {name: truncated(inputs[name]) for name in ("x", "filters")}
    return tuple(
        execute(conv_bn_act.SPEC, conv_bn_act.reference, given, gradients=False)
        for given in (dropped, inputs)
    )


@pytest.mark.parametrize("scale", [0.3, 0.5, 0.7, 1.0])
def test_dropped_bits_take_the_mean_of_2_to_the_minus_11_by_the_mantissa(scale):
    x = scale * torch.randn(1 << 20)
    assert 1 - (truncated(x) @ x.double()) / x.double().square().sum() == pytest.approx(LOSS, rel=0.03)


def test_a_sum_of_products_loses_as_two_operands_and_its_variance_as_four():
    x, filters = torch.randn(64, 64, 7, 7), torch.randn(64, 64, 3, 3)
    whole = F.conv2d(x.double(), filters.double(), padding=1)
    found = F.conv2d(truncated(x), truncated(filters), padding=1)
    assert 1 - (found * whole).sum() / whole.square().sum() == pytest.approx(2 * LOSS, rel=0.03)
    assert (found - whole).norm() / whole.norm() < correctness.TF32
    lost = 1 - found.var((0, 2, 3)) / whole.var((0, 2, 3))
    assert lost.mean().item() == pytest.approx(4 * LOSS, rel=0.03)


def test_a_variance_of_truncated_products_is_right_only_by_the_tolerance_of_a_square(block):
    assert not faults(conv_bn_act.SPEC, CASE, torch.float32, *block)
    (fault,) = faults(replace(conv_bn_act.SPEC, squared=()), CASE, torch.float32, *block)
    assert fault.startswith("output 1: relative error 1.4")


def test_a_square_may_be_off_by_more_in_tf32_alone():
    for dtype in correctness.TOLERANCE:
        assert correctness.limits(dtype, squared=True) == correctness.limits(dtype)
