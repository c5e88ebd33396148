"""Every activation of the table: what kernels compute, against autograd in float64."""

from __future__ import annotations

import pytest
import torch

from kernels.base import launch
from kernels.base.launch import tl, triton
from kernels.norm.activations import ACTIVATIONS

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

pytestmark = pytest.mark.skipif(
    not launch.runnable(DEVICE), reason="no CUDA device, and triton is not installed or not interpreting"
)


@triton.jit
def _activate(p_z, p_y, p_slope, FORWARD: tl.constexpr, SLOPE: tl.constexpr, BLOCK: tl.constexpr):
    o_all = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    b_z = tl.load(p_z + o_all)
    tl.store(p_y + o_all, FORWARD(b_z))
    tl.store(p_slope + o_all, SLOPE(b_z))


def activated(name: str, z):
    """act(z) and act'(z), by a kernel and by autograd in float64: 4 tensors."""
    act, y, slope = ACTIVATIONS[name], torch.empty_like(z), torch.empty_like(z)
    launch.launch(_activate, (1,), z, y, slope, FORWARD=act.forward, SLOPE=act.slope, BLOCK=len(z))
    double = z.double().requires_grad_()
    expected = act.reference(double)
    expected.sum().backward()
    return y, slope, expected.detach(), double.grad


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_values_and_slopes_are_within_their_bounds(name):
    near, far = torch.linspace(-20, 20, 1 << 16), torch.logspace(-30, 30, 1 << 15)
    z = torch.cat((near, far, -far)).to(DEVICE)
    y, slope, *expected = activated(name, z)
    for got, want, bound in zip((y, slope), expected, ACTIVATIONS[name].bounds, strict=True):
        near_enough = (got - want).abs() <= bound * want.abs().clamp(min=1)
        assert (near_enough | (got == want.float())).all()  # infinite where float32 is


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_of_what_is_not_finite_and_of_0_they_are_those_of_torch(name):
    z = torch.tensor([-torch.inf, torch.inf, torch.nan, 0.0], device=DEVICE)
    y, slope, want_y, want_slope = activated(name, z)
    torch.testing.assert_close(y.double(), want_y, rtol=0, atol=1e-7, equal_nan=True)
    torch.testing.assert_close(slope[3].double(), want_slope[3], rtol=0, atol=1e-6)
    assert slope[2].isnan() or name == "relu"
