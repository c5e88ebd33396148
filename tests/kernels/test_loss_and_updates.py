from __future__ import annotations

import math

import pytest
import torch
from helpers import DTYPES, TOLERANCE, assert_agrees, assert_near, draw
from torch import Tensor, nn

import kernels
from hlb import recipe
from hlb.averaging import Averaging
from hlb.networks import Network
from hlb.optimizer import Optimizer
from kernels import cross_entropy, muon, sgd
from kernels.base import launch
from kernels.base.spec import Case

# The last is a 16-bit run with master weights.
VALUE_AND_GRAD = [
    (torch.float64, torch.float64),
    (torch.float32, torch.float32),
    (torch.float32, torch.bfloat16),
]
FIRST = torch.zeros(1, dtype=torch.int64)  # the step counter in its first step
STEPS, PER_EPOCH = 13, (4, 4, 4, 4)
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
    value = torch.randn(100).to(value_dtype)
    buffer = torch.zeros_like(value)
    param = nn.Parameter(value.double())
    optimizer = torch.optim.SGD([param], lr=1, nesterov=True, momentum=0.85, weight_decay=0.2)
    for lr in (0.1, 0.3, 0.2, 0.05):
        grad = torch.randn(100).to(grad_dtype)
        param.grad, optimizer.param_groups[0]["lr"] = grad.double(), lr
        optimizer.step()
        rates = torch.tensor([[lr]], dtype=value_dtype)
        sgd.reference(value, grad, buffer, rates, FIRST, [(0, 100, 0, 0.2)], momentum=0.85)
        assert_near(value, param.detach(), TOLERANCE[value_dtype])
        assert not grad.any()


def test_decoupled_weight_decay_acts_on_the_value_alone():
    value, buffer = torch.randn(100).double(), torch.randn(100).double()
    coupled, momentum = (value.clone(), buffer.clone()), (value.clone(), buffer.clone())
    grad = torch.randn(100).double()
    rates = torch.tensor([[0.1]], dtype=torch.float64)
    for (v, b), decay in ((coupled, 0.2), (momentum, 0)):
        sgd.reference(v, grad.clone(), b, rates, FIRST, [(0, 100, 0, decay)], momentum=0.85, decoupled=True)
    assert torch.equal(coupled[1], momentum[1])
    assert_near(coupled[0], momentum[0] - 0.1 * 0.2 * value, 1e-12)


def test_each_segment_has_its_rate_and_decay_and_the_rest_of_the_arena_stays():
    start, grad = torch.randn(100).double(), torch.randn(100).double()
    value, left, buffer = start.clone(), grad.clone(), torch.zeros(100).double()
    rates = torch.tensor([[9, 9], [0.1, 0.01]], dtype=torch.float64)
    segments = [(10, 40, 1, 0.0), (40, 90, 0, 0.5)]
    sgd.reference(value, left, buffer, rates, torch.tensor([1]), segments, momentum=0)
    assert_near(value[10:40], start[10:40] - 0.01 * grad[10:40], 1e-12)
    assert_near(value[40:90], start[40:90] - 0.1 * (grad[40:90] + 0.5 * start[40:90]), 1e-12)
    outside = torch.ones(100, dtype=torch.bool)
    outside[10:90] = False
    assert torch.equal(value[outside], start[outside]) and torch.equal(left[outside], grad[outside])
    assert not left[10:90].any()


@pytest.mark.parametrize(
    "segments", [[(0, 101, 0, 0)], [(5, 5, 0, 0)], [(0, 10, 0, 0), (9, 20, 0, 0)], [(0, 10, 1, 0)]]
)
def test_segments_outside_the_arena_or_its_table_are_refused(segments):
    arena = torch.zeros(3, 100).unbind()
    with pytest.raises(ValueError, match="^segments: got"):
        sgd.reference(*arena, torch.zeros(1, 1), FIRST, segments, momentum=0)


NEEDS_KERNELS = pytest.mark.skipif(not launch.runnable("cpu"), reason="kernels do not run on a CPU here")
ARENAS = {
    "sgd": (sgd, Case(sizes=(70, 30), gap=0, master=False, averaging="ema", momentum=0.9, decoupled=False)),
    "muon": (muon, Case(shapes=((4, 9),), gap=0, steps=1, master=False, averaging="ema", momentum=0.9)),
}


@pytest.mark.parametrize("name", ARENAS)
@pytest.mark.parametrize("mix, take", sgd.AVERAGES.values())
def test_a_pass_that_averages_is_the_update_and_then_the_average(name, mix, take):
    module, case = ARENAS[name]
    one = module.SPEC.make(case, torch.float32, "cpu") | {
        "averages": torch.tensor([[9, 9], [mix, take], [9, 9]])
    }
    two = {key: x.clone() if isinstance(x, Tensor) else x for key, x in one.items()}
    module.reference(**one)
    slow, _ = two.pop("slow"), two.pop("averages")
    module.reference(**two)
    slow += mix * (two["value"] - slow)
    assert_near(one["slow"], slow.double(), 1e-6)
    assert_near(one["value"], (slow if take else two["value"]).double(), 1e-6)


@NEEDS_KERNELS
@pytest.mark.parametrize("name", ARENAS)
def test_kernel_copies_over_an_average_that_is_not_a_number(name):
    module, case = ARENAS[name]
    arguments = module.SPEC.make(case, torch.float32, "cpu") | {
        "averages": torch.tensor([[9.0, 9], [1, 0], [9, 9]])
    }
    arguments["slow"].fill_(math.nan)
    module.op(**arguments)
    assert torch.equal(arguments["slow"], arguments["value"])


@pytest.mark.parametrize(
    "change, argument",
    [
        ({"matrices": ((0, 4, 9), (35, 1, 1))}, "matrices"),
        ({"matrices": ((1, 4, 9),)}, "matrices"),
        ({"column": 2}, "column"),
        ({"steps": 0}, "steps"),
    ],
)
def test_muon_refuses_what_is_not_in_its_arena_or_table(change, argument):
    module, case = ARENAS["muon"]
    with pytest.raises(ValueError, match=f"^{argument}: got"):
        module.reference(**module.SPEC.make(case, torch.float32, "cpu") | change)


@pytest.mark.parametrize("garbage", [3.0, math.nan])
def test_a_mix_of_one_is_a_copy_and_none_leaves_the_average(garbage):
    value, slow = torch.randn(100), torch.full((100,), garbage)
    sgd.average(value, slow, torch.tensor([[1.0, 0.0]]), FIRST)
    assert torch.equal(slow, value)
    sgd.average(torch.randn(100), slow, torch.tensor([[0.0, 0.0]]), FIRST)
    assert torch.equal(slow, value)


@pytest.mark.parametrize("mix, take", sgd.AVERAGES.values())
def test_average_compiles_to_one_graph(mix, take):
    torch._dynamo.reset()
    compiled = torch.compile(sgd.average, fullgraph=True, backend="eager")
    table, ours = torch.tensor([[mix, take]]), torch.randn(2, 100)
    theirs = ours.clone()
    sgd.average(*ours, table, FIRST)
    compiled(*theirs, table, FIRST)
    assert torch.equal(ours, theirs)


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
    matrices = [(0, 8, 27), (256, 16, 9)]

    def parts(flat: Tensor) -> list[Tensor]:
        return [flat[at : at + m * k].view(m, k) for at, m, k in matrices]

    value = torch.randn(400).to(value_dtype)
    buffer = torch.zeros_like(value)
    expected = [(part.double().clone(), 0) for part in parts(value)]
    for lr in (0.24, 0.12, 0.01):
        grad = 1e4 * torch.randn(400).to(grad_dtype)
        expected = [plain_muon(v, g.double(), b, lr) for (v, b), g in zip(expected, parts(grad))]
        rates = torch.tensor([[9, lr]], dtype=value_dtype)
        muon.reference(value, grad, buffer, rates, FIRST, matrices, column=1, momentum=0.6, steps=3)
        for v, b, g, (plain_value, plain_buffer) in zip(*map(parts, (value, buffer, grad)), expected):
            assert_near(v, plain_value, max(TOLERANCE[grad_dtype], 1e-10), "value")
            assert_near(b, plain_buffer, TOLERANCE[value_dtype], "buffer")
            assert not g.any()


class Averaged:
    """A tiny network with its optimizer and averaging, on a random walk of STEPS steps: the rates are 0, so
    that nothing else moves it.
    """

    def __init__(self, dtype: str = "float32", **settings):
        settings |= {"base_depth": 4, "dtype": dtype, "master_weights": "on", "optimizer": "sgd"}
        self.network = Network(recipe("smoke", settings), kernels.backend("reference"))
        self.network.cast(getattr(torch, dtype)).reset(draw)
        self.optimizer = Optimizer(self.network, STEPS, PER_EPOCH, channels_last=True)
        self.optimizer.rates.zero_()
        self.averaging = Averaging(self.network, self.optimizer, STEPS, PER_EPOCH)

    def reset(self) -> None:
        self.optimizer.reset()
        self.averaging.reset()

    def step(self) -> None:
        self.averaging.average_running()
        self.optimizer.step(self.averaging.averages)

    def move(self) -> None:
        for arena in self.optimizer.arenas:
            arena.load(arena.value + torch.randn_like(arena.value))
        self.network.running += torch.rand_like(self.network.running)

    def weights(self) -> Tensor:
        """What the network computes with, float64."""
        trained = [p.detach() for p in self.network.parameters() if p.requires_grad]
        return torch.cat([x.double().flatten() for x in (*trained, self.network.running)])

    def values(self) -> Tensor:
        """What the optimizer updates, float64."""
        return torch.cat([arena.value.double() for arena in self.optimizer.arenas])


def test_ema_averages_every_nth_step_of_the_last_epochs():
    run = Averaged(**EMA)
    for _ in range(2):
        run.reset()
        slow = None
        for step in range(1, STEPS + 1):
            run.move()
            moved = run.weights()
            run.step()
            assert torch.equal(run.weights(), moved)
            if step in (6, 8, 10, 12):
                slow = run.weights() if slow is None else 0.9**2 * slow + (1 - 0.9**2) * run.weights()
        with run.averaging.averaged():
            assert_near(run.weights(), slow, 1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_network_has_its_own_weights_after_a_look_at_the_average(dtype):
    run = Averaged(dtype, **EMA)
    run.reset()
    for _ in range(STEPS):
        run.move()
        run.step()
    own = run.weights(), run.values()
    with run.averaging.averaged():
        assert (run.weights() != own[0]).double().mean() > 0.9
    assert torch.equal(run.weights(), own[0])
    assert torch.equal(run.values(), own[1])


def test_ema_of_a_16_bit_network_averages_the_master_weights():
    run = Averaged("bfloat16", **EMA)
    run.reset()
    seen = []
    for step in range(1, 10):
        run.move()
        run.step()
        if step in (6, 8):
            seen.append(run.values())
    with run.averaging.averaged():
        assert_near(run.values(), 0.9**2 * seen[0] + (1 - 0.9**2) * seen[1], 1e-5)
        assert all(torch.equal(a.compute, a.value.to(a.compute.dtype)) for a in run.optimizer.arenas)


def test_there_is_no_average_before_the_last_epochs():
    run = Averaged(**EMA)
    run.reset()
    for _ in range(5):
        run.step()
    assert not run.averaging.active
    run.step()
    assert run.averaging.active
    run.reset()
    assert not run.averaging.active


def test_network_keeps_an_adopted_average():
    run = Averaged(**EMA)
    run.reset()
    for _ in range(9):
        run.move()
        run.step()
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
            run.step()
            assert_near(run.weights(), fast, 1e-5, f"step {step}")


def test_lookahead_ends_with_the_slow_weights():
    run = Averaged(**LOOKAHEAD)
    run.reset()
    for step in range(1, STEPS + 1):
        run.move()
        run.step()
        if step == STEPS - STEPS % 3:
            slow = run.weights()
    assert torch.equal(run.weights(), slow)


def test_lookahead_has_no_average_apart_from_the_network():
    run = Averaged(**LOOKAHEAD)
    run.reset()
    run.step()
    assert not run.averaging.active


@NEEDS_KERNELS
@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_kernels_train_the_network_as_the_references_do(optimizer, dtype):
    settings = {"base_depth": 2, "dtype": dtype, "master_weights": "on", "optimizer": optimizer, **LOOKAHEAD}
    results = []
    for backend in ("reference", "triton"):
        network = Network(recipe("smoke", settings | {"averaging_every": 2}), kernels.backend(backend))
        network.cast(getattr(torch, dtype))
        trained = Optimizer(network, 2, (1, 1), channels_last=True)
        averaging = Averaging(network, trained, 2, (1, 1))
        network.reset(draw)
        trained.reset()
        averaging.reset()
        generator = torch.Generator().manual_seed(1)
        for _ in range(2):
            for p in (p for arena in trained.arenas for p in arena.params):
                p.grad.copy_(torch.randn(p.shape, generator=generator))
            averaging.average_running()
            trained.step(averaging.averages)
            assert not any(arena.grad.any() for arena in trained.arenas)
        results.append([*(arena.value for arena in trained.arenas), *averaging.slow])
        assert all(torch.equal(a.compute, a.value.to(a.compute.dtype)) for a in trained.arenas)
    newton_schulz = torch.bfloat16 if optimizer == "muon" and dtype == "float16" else getattr(torch, dtype)
    for expected, result in zip(*results):
        assert_near(result, expected.double(), TOLERANCE[newton_schulz])
