"""What the general kernel tests cannot say of the kernels of batch norm, pool, gate and activation."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_near, channels_last
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from kernels.base import arrival, launch
from kernels.base.correctness import check
from kernels.base.spec import Case
from kernels.norm import norm_act, norm_passes, tiles
from kernels.norm.activations import ACTIVATIONS

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EPS = 1e-12
CASES = (
    Case(n=3, c=5, map=(9, 7), pool=True, gate=True, residual=True, spatial=True),
    Case(n=3, c=5, map=(9, 7), pool=False, gate=False, residual=False, spatial=False),
)

pytestmark = pytest.mark.skipif(
    not launch.runnable(DEVICE), reason="no CUDA device, and triton is not installed or not interpreting"
)


def norm(x, **options):
    """`norm_act.op` in training, with weight 1 and bias 0."""
    c = x.shape[1]
    plain = {
        "weight": torch.ones(c, device=DEVICE),
        "bias": torch.zeros(c, device=DEVICE),
        "running": torch.ones(2, c, device=DEVICE),
        "training": True,
        "eps": EPS,
        "activation": "gelu",
    }
    return norm_act.op(x, **plain | options)


def image(*shape: int, dtype=torch.float32):
    return channels_last(*shape, dtype=dtype).to(DEVICE)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_few_programs_walking_many_tiles_give_the_same(case, offset, monkeypatch):
    monkeypatch.setattr(tiles, "BLOCK", 32)  # 4 rows of 8 channels
    for few in (tiles.STATISTICS, tiles.SUMS, tiles.SUMS_OF_IMAGES):
        monkeypatch.setitem(few, "programs", 3)
    monkeypatch.setattr(tiles, "MANY", 1)
    monkeypatch.setattr(tiles, "MERGED", 2)
    fields = case | {"activation": "gelu", "offset": offset, "training": True}
    assert not check(norm_act.SPEC, Case(**fields), torch.float32, DEVICE)


def test_launches_of_several_shapes_share_counters_and_leave_them_at_0():
    shapes = {"forward and backward": (3, 40, 9, 7), "other columns": (5, 8, 4, 6), "one tile": (1, 3, 2, 1)}
    seen, xs = {}, {name: image(*shape) for name, shape in shapes.items()}
    for name, x in [*xs.items(), *reversed(xs.items()), *xs.items()]:
        leaf = x.clone().requires_grad_()
        y, stats, _ = norm(leaf)
        y.backward(torch.ones_like(y))
        got = (y.detach(), stats, leaf.grad)
        assert all(map(torch.equal, got, seen.setdefault(name, got)))
        assert not arrival.counters(x).any()


@pytest.mark.skipif(DEVICE == "cpu", reason="graphs are captured on a GPU")
def test_replays_of_a_graph_give_the_same_and_leave_the_counters_at_0():
    xs = [image(64, c, 15, 15, dtype=torch.float16).requires_grad_() for c in (64, 24)]

    def both():
        return [torch.autograd.grad(norm(x)[0].square().sum(), x)[0] for x in xs]

    expected, graph = both(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = both()
    for _ in range(3):
        graph.replay()
        assert all(map(torch.equal, found, expected))
        assert not arrival.counters(xs[0]).any()


def test_counters_are_real_where_tensors_are_fake_and_one_set_a_device(monkeypatch):
    monkeypatch.setattr(arrival, "_counters", {})
    with FakeTensorMode():
        first = arrival.counters(torch.empty(1, device=DEVICE))
    assert not isinstance(first, FakeTensor)
    assert first.dtype == torch.int32 and first.numel() == arrival.COUNTERS and not first.any()
    assert arrival.counters(torch.empty(1, device=DEVICE)) is first


def test_counters_made_during_a_capture_are_an_error(monkeypatch):
    monkeypatch.setattr(arrival, "_counters", {})
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="^counters: made during the capture of a graph, run the op once"):
        arrival.counters(SimpleNamespace(device=torch.device("cuda:1"), is_cuda=True))


@pytest.mark.parametrize("mean", [0.5, 100.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_statistics_have_float32_accuracy_in_every_dtype(dtype, mean):
    x = (image(16, 8, 15, 15) + mean).to(dtype)
    stats = norm(x)[1]
    assert_near(stats[0], x.double().mean((0, 2, 3)), 1e-6, "mean")
    assert_near(stats[1], x.double().var((0, 2, 3)), 1e-5, "variance")


@pytest.mark.parametrize("places", [1, 3])
@pytest.mark.parametrize("merged, span, m", [(4, 8, 303), (4, 16, 33), (128, 3, 9), (128, 64, 24)])
@pytest.mark.parametrize("mean", [0.5, 100.0])
def test_merged_statistics_are_those_of_all_rows(mean, merged, span, m, places, monkeypatch):
    monkeypatch.setattr(tiles, "MERGED", merged)
    rows = torch.randn(m, 20, dtype=torch.float64) + mean
    parts = zip(*(place.split(span) for place in rows.tensor_split(places)))  # tile i is of place i % places
    parts = [tile for several in parts for tile in several]
    partial = torch.stack([torch.stack((t.mean(0), (t - t.mean(0)).square().sum(0))) for t in parts])
    stats, rstd = norm_passes.merge(partial.float().to(DEVICE), span, m, EPS, places)
    assert_near(stats[0], rows.mean(0), 1e-6, "mean")
    assert_near(stats[1], rows.var(0), 1e-6 * mean, "variance")
    assert_near(rstd, rows.var(0, correction=0).rsqrt(), 1e-6 * mean, "rstd")


@pytest.mark.parametrize("constant", [0.0, 0.1, 3.0, 1e6, -1e19])
@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])  # rstd is 1e6
def test_constant_channel_has_variance_0_and_finite_results(dtype, pool, constant):
    x = image(3, 3, 11, 5, dtype=dtype)
    x[:, 1] = constant
    x.requires_grad_()
    y, stats, _ = norm(x, pool=pool, bias=torch.full((3,), 0.5, device=DEVICE))
    assert stats[0, 1] == x[0, 1, 0, 0]
    assert stats[1, 1] == 0
    assert_near(
        y[:, 1], F.gelu(torch.full_like(y[:, 1], 0.5).double()), 1e-2 if dtype.itemsize == 2 else 1e-6
    )
    y.backward(torch.randn_like(y))
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_pool_gradient_goes_to_the_first_of_the_largest(dtype):
    x = torch.randint(-1, 2, (3, 8, 7, 5)).to(dtype).to(DEVICE, memory_format=torch.channels_last)
    grads = []
    for v in (x.clone().requires_grad_(), x.double().requires_grad_()):
        op = norm if v.dtype == dtype else lambda v, **o: (F.gelu(F.batch_norm(
            F.max_pool2d(v, 2), None, None, training=True, eps=EPS)),)  # fmt: skip
        y = op(v, pool=True)[0]
        y.backward(torch.arange(y.numel(), dtype=y.dtype, device=DEVICE).view(y.shape) % 7)
        grads.append(v.grad)
    assert torch.equal(grads[0] != 0, grads[1] != 0)
    assert (grads[0][..., 6, :] == 0).all()
    assert (grads[0][..., 4] == 0).all()


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_nan_is_passed_on(training, pool):
    x = image(2, 4, 4, 4)
    x[0, 1, 1, 1] = float("nan")
    y = norm(x, training=training, pool=pool, activation="relu")[0]
    assert y[0, 1].isnan().any()
    assert y[:, 0].isfinite().all()


def test_evaluation_reads_columns_of_a_wider_buffer():
    x, buffer = image(2, 4, 3, 3), torch.rand(2, 11, device=DEVICE) + 0.5
    running = buffer[:, 3:7]
    y, stats, _ = norm(x, running=running, training=False)
    mean, variance = running.double()[..., None, None]
    assert_near(y, F.gelu((x - mean) / variance.sqrt()), 1e-6)
    assert stats is running


def test_training_does_not_read_the_running_statistics():
    y = norm(image(2, 4, 3, 3), running=torch.full((2, 4), float("nan"), device=DEVICE))[0]
    assert y.isfinite().all()


def test_gradient_of_the_spatial_mean_alone():
    x = image(3, 4, 6, 5).requires_grad_()
    double = x.detach().double().requires_grad_()
    upstream = torch.randn(3, 4, device=DEVICE)
    norm(x, spatial_mean=True)[2].backward(upstream)
    F.gelu(F.batch_norm(double, None, None, training=True, eps=EPS)).mean((2, 3)).backward(upstream.double())
    assert_near(x.grad, double.grad, 1e-5)


@pytest.mark.parametrize("shape, pool", [((1, 3, 1, 1), False), ((1, 3, 3, 2), True)])
def test_one_value_per_channel_is_an_error_in_training_only(shape, pool):
    x = image(*shape)
    with pytest.raises(ValueError, match="^x: got one value per channel"):
        norm(x, pool=pool)
    assert norm(x, pool=pool, training=False)[0].isfinite().all()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"activation": "tanh"}, f"^activation: got 'tanh', accepted are {', '.join(ACTIVATIONS)}"),
        ({"pool": True}, r"^x: got shape \[2, 4, 1, 3\]"),
        ({"gate": torch.ones(4, 2)}, r"^gate: got shape \[4, 2\], accepted is \[2, 4\]"),
        ({"residual": torch.ones(2, 4, 1, 3).half()}, "^residual: got torch.float16, accepted are float32"),
    ],
)
def test_a_wrong_argument_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        norm(image(2, 4, 1, 3), **options)
