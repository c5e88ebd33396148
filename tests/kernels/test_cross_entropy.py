"""What the general kernel tests cannot say of the loss: infinite logits, and what is no class or option."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from kernels import cross_entropy
from kernels.base import launch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NEEDS_KERNELS = pytest.mark.skipif(not launch.runnable(DEVICE), reason="kernels do not run here")
BOTH = pytest.mark.parametrize("function", [cross_entropy.reference, pytest.param(cross_entropy.op,
                               marks=NEEDS_KERNELS)], ids=["reference", "kernel"])  # fmt: skip


def loss_and_gradient(function, logits, targets, smoothing=0.0, **options):
    logits = logits.clone().requires_grad_()
    loss, correct = function(logits, targets, smoothing, **options)
    loss.backward()
    return loss.detach(), logits.grad, correct


def batch(n: int = 40, classes: int = 10):
    return torch.randn(n, classes, device=DEVICE), torch.arange(n, device=DEVICE) % classes


@BOTH
@pytest.mark.parametrize("classes", [2, 10])
def test_an_impossible_class_adds_nothing_where_another_is_right(function, classes):
    logits, targets = batch(classes=classes)
    logits[0, 1] = logits[35, 1 - classes] = -math.inf  # row 0 is of class 0, row 35 of another than this
    targets[35] = 0
    loss, grad, _ = loss_and_gradient(function, logits, targets)
    expected = F.cross_entropy(logits.double(), targets, reduction="sum")
    assert expected.isfinite() and loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert grad.isfinite().all() and grad[0, 1] == 0


@BOTH
@pytest.mark.parametrize(("smoothing", "impossible"), [(0.0, 3), (0.2, 3), (0.2, 4)])
def test_an_impossible_class_of_the_target_distribution_makes_the_loss_infinite(
    function, smoothing, impossible
):
    logits = torch.zeros(3, 10, device=DEVICE)
    logits[1, impossible] = -math.inf
    targets = torch.full((3,), 3, device=DEVICE)
    loss, grad, _ = loss_and_gradient(function, logits, targets, smoothing)
    assert loss == math.inf
    assert grad.isfinite().all()


@NEEDS_KERNELS
@pytest.mark.parametrize("target", [10, -1, -100, 2**32, 2**32 + 5, -(2**32) + 5, 2**63 - 1, -(2**63)])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_a_target_that_is_no_class_makes_the_loss_and_its_row_of_the_gradient_nan(target, smoothing):
    logits, targets = batch()
    logits[33, (target & 0xFFFFFFFF) % 10] = 9.0  # not right, whatever is left of the target in 32 bits
    others = torch.arange(40, device=DEVICE) != 33
    right = (logits.argmax(1) == targets)[others].sum()
    _, expected, _ = loss_and_gradient(cross_entropy.op, logits, targets, smoothing)
    targets[33] = target
    loss, grad, correct = loss_and_gradient(cross_entropy.op, logits, targets, smoothing)
    assert loss.isnan() and grad[33].isnan().all() and correct == right
    assert torch.equal(grad[others], expected[others])


@pytest.mark.parametrize("target", [10, -1, -100, 2**32])
def test_the_reference_skips_no_target_that_is_no_class(target):
    logits, targets = torch.zeros(3, 10), torch.tensor([1, target, 2])
    with pytest.raises(IndexError, match=f"Target {target} is out of bounds"):
        cross_entropy.reference(logits, targets, 0.2)


@BOTH
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_smoothing": 1.5}, "^label_smoothing: got 1.5, accepted is 0 to 1"),
        ({"label_smoothing": -0.1}, "^label_smoothing: got -0.1"),
        ({"label_smoothing": math.nan}, "^label_smoothing: got nan"),
        ({"scale": 0.0}, "^scale: got 0.0, accepted is a number above 0"),
        ({"scale": -1.0}, "^scale: got -1.0"),
        ({"scale": math.inf}, "^scale: got inf"),
        ({"scale": math.nan}, "^scale: got nan"),
        ({"reduction": "none"}, "^reduction: got 'none', accepted are sum, mean"),
    ],
)
def test_an_option_that_has_no_loss_is_named(function, options, message):
    with pytest.raises(ValueError, match=message):
        function(*batch(), **{"label_smoothing": 0.2} | options)


@BOTH
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("shape", [(0, 10), (3, 0)])
def test_logits_without_a_row_or_a_class_are_refused(function, shape, reduction):
    logits, targets = torch.zeros(shape, device=DEVICE), torch.zeros(shape[0], dtype=int, device=DEVICE)
    with pytest.raises(ValueError, match="^logits: got shape .*, accepted is one with a row and a class"):
        function(logits, targets, 0.0, reduction=reduction)
