from __future__ import annotations

import math

import pytest
import torch
from helpers import DTYPES, TOLERANCE, assert_agrees, assert_near
from torch import Tensor, nn

import kernels
from hlb import recipe
from hlb.averaging import Averaging
from hlb.networks import Network
from hlb.optimizer import Optimizer
from kernels import cross_entropy, muon, sgd

# The last is a 16-bit run with master weights.
VALUE_AND_GRAD = [
    (torch.float64, torch.float64),
    (torch.float32, torch.float32),
    (torch.float32, torch.bfloat16),
]
STEPS, PER_EPOCH = 13, 4
EMA = {"averaging": "ema", "averaging_epochs": 2, "averaging_every": 2, "averaging_decay": 0.9}
LOOKAHEAD = {"averaging": "lookahead", "averaging_every": 3, "averaging_decay": 0.9}


def plain_loss(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    log_p = logits - logits.exp().sum(1, keepdim=True).log()
    right = log_p[torch.arange(len(targets)), targets]
    return -((1 - smoothing) * right + smoothing * log_p.mean(1)).sum()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("smoothing", [0, 0.2, 1])
def test_loss_is_the_label_smoothed_cross_entropy_summed_over_the_batch(smoothing, dtype):
    targets = torch.arange(50) % 10
    assert_agrees(
        lambda logits: cross_entropy.reference(logits, targets, smoothing)[0],
        lambda logits: plain_loss(logits, targets, smoothing),
        {"logits": torch.randn(50, 10).to(dtype)},
        dtype,
    )


def test_loss_of_a_large_batch_does_not_overflow_in_float16():
    logits, targets = torch.zeros(50000, 10).half(), torch.zeros(50000, dtype=torch.int64)
    assert_near(cross_entropy.reference(logits, targets, 0.2)[0], torch.tensor(50000 * math.log(10)), 1e-5)


def test_right_answers_are_counted():
    logits = torch.eye(10)[[3, 1, 4, 1, 5]]
    assert cross_entropy.reference(logits, torch.tensor([3, 1, 0, 1, 0]), 0.2)[1] == 3


@pytest.mark.parametrize("value_dtype, grad_dtype", VALUE_AND_GRAD)
def test_sgd_equals_torch_over_several_steps(value_dtype, grad_dtype):
    settings = {"momentum": 0.85, "weight_decay": 0.2}
    value = torch.randn(100).to(value_dtype)
    buffer = torch.zeros_like(value)
    param = nn.Parameter(value.double())
    optimizer = torch.optim.SGD([param], lr=1, nesterov=True, **settings)
    for lr in (0.1, 0.3, 0.2, 0.05):
        grad = torch.randn(100).to(grad_dtype)
        param.grad, optimizer.param_groups[0]["lr"] = grad.double(), lr
        optimizer.step()
        sgd.reference(value, grad, buffer, torch.tensor(lr, dtype=value_dtype), **settings)
        assert_near(value, param.detach(), TOLERANCE[value_dtype])


@pytest.mark.parametrize("shape", [(12, 40), (40, 12), (16, 16)])
def test_orthogonalise_applies_its_polynomial_to_the_singular_values(shape):
    g = 1e4 * torch.randn(shape).double()  # large, so that the guard against norm 0 does not show
    u, s, vh = torch.linalg.svd(g, full_matrices=False)
    s = s / g.norm()
    for _ in range(3):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    assert_near(muon.orthogonalise(g, 3), u * s @ vh, 1e-10)


def test_orthogonalise_leaves_a_zero_matrix_zero():
    assert torch.equal(muon.orthogonalise(torch.zeros(3, 4), 3), torch.zeros(3, 4))


def plain_muon(value: Tensor, grad: Tensor, buffer: Tensor | int, lr: float) -> tuple[Tensor, Tensor]:
    buffer = 0.6 * buffer + grad
    g = grad + 0.6 * buffer
    x = g / g.norm()
    for _ in range(3):
        x = 3.4445 * x - 4.7750 * x @ x.T @ x + 2.0315 * x @ x.T @ x @ x.T @ x
    return value / value.norm() * math.sqrt(len(value)) - lr * x, buffer


@pytest.mark.parametrize("value_dtype, grad_dtype", VALUE_AND_GRAD)
def test_muon_equals_its_formula_over_several_steps(value_dtype, grad_dtype):
    shapes = [(8, 27), (16, 9)]
    values = [torch.randn(shape).to(value_dtype) for shape in shapes]
    buffers = [torch.zeros_like(value) for value in values]
    expected = [(value.double().clone(), 0) for value in values]
    for lr in (0.24, 0.12, 0.01):
        grads = [1e4 * torch.randn(shape).to(grad_dtype) for shape in shapes]
        muon.reference(values, grads, buffers, torch.tensor(lr, dtype=value_dtype), momentum=0.6, steps=3)
        expected = [
            plain_muon(value, grad.double(), buffer, lr) for (value, buffer), grad in zip(expected, grads)
        ]
        for value, buffer, (plain_value, plain_buffer) in zip(values, buffers, expected):
            assert_near(value, plain_value, max(TOLERANCE[grad_dtype], 1e-10), "value")
            assert_near(buffer, plain_buffer, TOLERANCE[value_dtype], "buffer")


class Averaged:
    """A tiny network with its optimizer and averaging, on a random walk of STEPS steps."""

    def __init__(self, dtype: str = "float32", **settings):
        settings |= {"base_depth": 4, "dtype": dtype, "master_weights": "on"}
        self.network = Network(recipe("smoke", settings), kernels.backend("reference"))
        self.network.cast(getattr(torch, dtype)).reset(torch.tensor(0))
        self.optimizer = Optimizer(self.network, STEPS, PER_EPOCH, channels_last=True)
        self.averaging = Averaging(self.network, self.optimizer, STEPS, PER_EPOCH)

    def reset(self) -> None:
        self.optimizer.reset()
        self.averaging.reset()

    def move(self) -> None:
        for group in self.optimizer.groups:
            group.value += torch.randn_like(group.value)
            group.write()
        self.network.running += torch.rand_like(self.network.running)

    def weights(self) -> Tensor:
        """What the network computes with, float64."""
        trained = [p.detach() for p in self.network.parameters() if p.requires_grad]
        return torch.cat([x.double().flatten() for x in (*trained, self.network.running)])

    def values(self) -> Tensor:
        """What the optimizer updates, float64."""
        return torch.cat([group.value.double() for group in self.optimizer.groups])


def test_ema_averages_every_nth_step_of_the_last_epochs():
    run = Averaged(**EMA)
    for _ in range(2):
        run.reset()
        slow = None
        for step in range(1, STEPS + 1):
            run.move()
            run.averaging.after_step(step)
            if step in (6, 8, 10, 12):
                slow = run.weights() if slow is None else 0.9**2 * slow + (1 - 0.9**2) * run.weights()
        with run.averaging.averaged():
            assert_near(run.weights(), slow, 1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_network_has_its_own_weights_after_a_look_at_the_average(dtype):
    run = Averaged(dtype, **EMA)
    run.reset()
    for step in range(1, STEPS + 1):
        run.move()
        run.averaging.after_step(step)
    own = run.weights(), run.values()
    with run.averaging.averaged():
        assert (run.weights() != own[0]).double().mean() > 0.9
    assert torch.equal(run.weights(), own[0])
    assert torch.equal(run.values(), own[1])


def test_ema_of_a_16_bit_network_averages_the_master_weights():
    run = Averaged("bfloat16", **EMA)
    run.reset()
    seen = []
    for step in (6, 8):
        run.move()
        run.averaging.after_step(step)
        seen.append(run.values())
    with run.averaging.averaged():
        assert_near(run.values(), 0.9**2 * seen[0] + (1 - 0.9**2) * seen[1], 1e-5)
        assert all(torch.equal(g.compute, g.value.to(g.compute.dtype)) for g in run.optimizer.groups)


def test_there_is_no_average_before_the_last_epochs():
    run = Averaged(**EMA)
    run.reset()
    for step in range(1, 6):
        run.averaging.after_step(step)
    assert not run.averaging.active


def test_network_keeps_an_adopted_average():
    run = Averaged(**EMA)
    run.reset()
    for step in (6, 8):
        run.move()
        run.averaging.after_step(step)
    with run.averaging.averaged():
        average = run.weights()
    run.averaging.adopt()
    assert torch.equal(run.weights(), average)
    assert not run.averaging.active


def test_lookahead_pulls_the_network_to_its_slow_weights_every_nth_step():
    run = Averaged(**LOOKAHEAD)
    for _ in range(2):
        run.reset()
        slow = run.weights()
        for step in range(1, STEPS):
            run.move()
            fast = run.weights()
            if step % 3 == 0:
                decay = 0.9**3 * (step / STEPS) ** 3
                fast = slow = decay * slow + (1 - decay) * fast
            run.averaging.after_step(step)
            assert_near(run.weights(), fast, 1e-5, f"step {step}")


def test_lookahead_ends_with_the_slow_weights():
    run = Averaged(**LOOKAHEAD)
    run.reset()
    for step in range(1, STEPS + 1):
        run.move()
        run.averaging.after_step(step)
        if step == STEPS - STEPS % 3:
            slow = run.weights()
    assert torch.equal(run.weights(), slow)


def test_lookahead_has_no_average_apart_from_the_network():
    run = Averaged(**LOOKAHEAD)
    run.reset()
    run.averaging.after_step(3)
    assert not run.averaging.active
