from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers import DTYPES, assert_agrees, assert_near, channels_last
from torch import Tensor

from kernels import stem
from kernels.base import launch


@pytest.mark.parametrize("dtype", DTYPES)
def test_merged_projection_equals_two_convolutions(dtype):
    whiten = torch.randn(12, 3, 2, 2).to(dtype)
    inputs = {"x": channels_last(4, 3, 9, 8, dtype=dtype), "project": torch.randn(6, 12, 1, 1).to(dtype)}
    assert_agrees(
        lambda x, project: stem.reference(x, whiten, project=project),
        lambda x, project: F.conv2d(F.conv2d(x, whiten.double()), project),
        inputs,
        dtype,
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_bias_stem_equals_a_convolution_with_bias(dtype):
    whiten = torch.randn(24, 3, 2, 2).to(dtype)
    inputs = {"x": channels_last(4, 3, 9, 8, dtype=dtype), "bias": torch.randn(24).to(dtype)}
    assert_agrees(
        lambda x, bias: stem.reference(x, whiten, bias=bias),
        lambda x, bias: F.conv2d(x, whiten.double(), bias),
        inputs,
        dtype,
    )


def stem_inputs(**options) -> dict:
    inputs = {"x": channels_last(3, 3, 9, 8, dtype=torch.float32), "whiten": torch.randn(6, 3, 2, 2)}
    return inputs | {"bias": torch.randn(6)} | options


@pytest.mark.parametrize("name", ["x", "whiten"])
def test_kernel_refuses_an_input_that_it_has_no_gradient_for(name):
    inputs = stem_inputs()
    inputs[name].requires_grad_()
    with pytest.raises(ValueError, match=f"^{name}: got a tensor that requires a gradient"):
        stem.op(**inputs)


@pytest.mark.parametrize("function", [stem.reference, stem.op])
@pytest.mark.parametrize(
    "options", [{"activation": "tanh"}, {"activation": "gelu", "project": torch.ones(6, 6, 1, 1)}]
)
def test_unknown_activation_and_one_after_a_projection_are_errors(function, options):
    with pytest.raises(ValueError, match="^activation: got"):
        function(**stem_inputs(**options))


@pytest.mark.skipif(not launch.runnable("cpu"), reason="needs Triton's interpreter")
@pytest.mark.parametrize("trained, activation", [("bias", "silu"), ("project", None)])
def test_results_are_whole_where_a_program_steps_through_many_images(trained, activation, monkeypatch):
    monkeypatch.setattr(stem, "PROGRAMS", 2)
    x, whiten = channels_last(9, 3, 5, 21, dtype=torch.float32), torch.randn(6, 3, 2, 2)
    weight = torch.randn(6) if trained == "bias" else torch.randn(6, 6, 1, 1)
    found = []
    for function, cast in ((stem.op, Tensor.float), (stem.reference, Tensor.double)):
        leaf = cast(weight).detach().requires_grad_()
        y = function(cast(x), cast(whiten), activation=activation, **{trained: leaf})
        y.square().sum().backward()
        found.append((y.detach(), leaf.grad))
    for got, expected, what in zip(*found, ("y", f"d {trained}"), strict=True):
        assert_near(got, expected, 1e-5, what)
