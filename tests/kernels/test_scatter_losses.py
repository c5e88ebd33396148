"""What the general kernel tests cannot say of an image's loss: infinite logits, what is no class or no id."""

from __future__ import annotations

import math

import pytest
import torch

from kernels import scatter_losses
from kernels.base import launch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NEEDS_KERNELS = pytest.mark.skipif(not launch.runnable(DEVICE), reason="kernels do not run here")
EXAMPLES, MARGIN = 60, 20


def inputs(n: int = 40):
    """Losses, with 7 in and around them, of ids 0 to n - 1."""
    around = torch.full((EXAMPLES + 2 * MARGIN,), 7.0, device=DEVICE)
    ids, logits = torch.arange(n, device=DEVICE), torch.randn(n, 10, device=DEVICE)
    return around, around[MARGIN:-MARGIN], ids, logits, ids % 10


@NEEDS_KERNELS
@pytest.mark.parametrize(
    "outside", [-1, -MARGIN, -EXAMPLES, EXAMPLES, EXAMPLES + MARGIN - 1, 2**32, -(2**40)]
)
def test_an_id_outside_writes_nothing_and_nowhere(outside):
    around, losses, ids, logits, targets = inputs()
    expected = losses.clone()
    scatter_losses.op(expected, ids, logits, targets)
    ids[33], expected[33] = outside, 7.0
    scatter_losses.op(losses, ids, logits, targets)
    assert torch.equal(losses, expected)
    assert (around[:MARGIN] == 7).all() and (around[-MARGIN:] == 7).all()


@pytest.mark.parametrize("outside", [-1, EXAMPLES, 2**32])
def test_the_reference_refuses_an_id_outside(outside):
    ids = torch.tensor([3, outside])
    with pytest.raises(IndexError, match="out of bounds"):
        scatter_losses.reference(torch.zeros(EXAMPLES), ids, torch.zeros(2, 10), torch.zeros(2, dtype=int))


@NEEDS_KERNELS
@pytest.mark.parametrize("target", [10, -1, -100, 2**32 + 5])
def test_the_loss_of_a_target_that_is_no_class_is_nan(target):
    _, losses, ids, logits, targets = inputs()
    expected = losses.clone()
    scatter_losses.op(expected, ids, logits, targets)
    targets[33], expected[33] = target, math.nan
    scatter_losses.op(losses, ids, logits, targets)
    torch.testing.assert_close(losses, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("target", [10, -100])
def test_the_reference_refuses_a_target_that_is_no_class(target):
    with pytest.raises(IndexError, match=f"Target {target} is out of bounds"):
        scatter_losses.reference(
            torch.zeros(9), torch.tensor([3]), torch.zeros(1, 10), torch.tensor([target])
        )


@NEEDS_KERNELS
def test_an_impossible_class_is_infinitely_wrong_and_adds_nothing_where_it_is_not_the_target():
    _, losses, ids, logits, targets = inputs()
    logits[0, 5] = logits[35, 5] = -math.inf  # row 35 is of class 5
    expected = losses.double()
    scatter_losses.reference(expected, ids, logits.double(), targets)
    scatter_losses.op(losses, ids, logits, targets)
    assert losses[35] == math.inf and losses[0].isfinite()
    torch.testing.assert_close(losses.double(), expected, rtol=1e-5, atol=1e-6)
