"""Convolutions of 8-bit operands, pass by pass, so that a GPU on which one is wrong says which.

On a CUDA device at the recipes' shapes too:  python -m pytest tests/kernels/test_float8.py
The whole block beside its reference:         python -m pytest tests/kernels/test_kernels.py -k float8
Each candidate of each pass, and its time:    python -m bench tune float8
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bench.tune import measure
from kernels import conv_bn_act
from kernels.base import chips, launch
from kernels.base.chips import AIMED_AT, TARGETS, targeting
from kernels.base.correctness import check, execute
from kernels.base.spec import Case
from kernels.convolution import candidates, conv, float8, float8_passes, selection, tiling
from kernels.convolution.conv import make_filters, make_images
from kernels.convolution.tiling import FLOAT8, Config, Problem
from kernels.norm import norm_gradients

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EPS = 1e-12
FORMS = {
    "images": {"order": "images", "descriptors": False},
    "rows": {"order": "rows", "descriptors": False},
    "descriptors": {"order": "images", "descriptors": True},
}
SMALL = (
    Problem("forward", 17, 2, 3, 32, 40, pool=True, dtype=FLOAT8),
    Problem("forward", 3, 2, 2, 64, 16, dtype=FLOAT8),
    Problem("forward", 3, 4, 2, 24, 16, pool=True, dtype=FLOAT8),  # a flat axis of taps and channels
    Problem("dgrad", 17, 3, 2, 40, 32, pool=True, dtype=FLOAT8),
    Problem("dgrad", 3, 2, 2, 16, 64, dtype=FLOAT8),
    Problem("dgrad", 3, 2, 3, 16, 24, dtype=FLOAT8),
)
RECIPES = tuple(
    Problem(kind, case.n, *case.map, case.c, case.o, 3, case.pool, FLOAT8)
    for case in conv_bn_act.FLOAT8_SPEC.cases
    for kind in ("forward", "dgrad")
)

pytestmark = [
    pytest.mark.skipif(
        not launch.runnable(DEVICE), reason="no CUDA device, and triton is not installed or not interpreting"
    ),
    pytest.mark.skipif(not chips.current(DEVICE).float8, reason="this GPU has no float8"),
]
on_a_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="takes a CUDA device")


def bits(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous().view(torch.uint8)


def every_float16() -> torch.Tensor:
    """All 65,536, as channels-last images."""
    values = torch.arange(1 << 16, device=DEVICE).to(torch.int16).view(torch.float16)
    return values.view(4, 16, 16, 64).permute(0, 3, 1, 2)


def test_images_are_rounded_to_the_nearest_and_saturate():
    x = every_float16()
    got, want = float8_passes.images(x).float(), float8.stored(x, float8.ACTIVATIONS).float()
    assert torch.equal(got.isnan(), x.isnan())
    assert torch.equal(got.nan_to_num(), want.nan_to_num())


@pytest.mark.parametrize("o, c", [(40, 24), (64, 128), (3, 256)])
def test_filters_are_rounded_and_turned(o, c):
    filters = 2 * make_filters(o, c, 3, torch.float16, DEVICE)
    rounded, turned = float8_passes.filters(filters, True)
    want = float8.stored(filters, float8.FILTERS, float8.filter_scale(c))
    assert torch.equal(bits(rounded), bits(want))
    assert torch.equal(bits(turned), bits(want.view(torch.int8).flip(2, 3).transpose(0, 1)))
    assert not float8_passes.filters(filters, False)[1].numel()


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("largest", [0.0, 2.5e-6, 0.75, 3.0, 1e5, torch.inf, torch.nan])
def test_gradients_are_scaled_by_the_last_step_and_the_largest_is_kept(largest, pool):
    n, o, h, w = 3, 40, 5, 7
    u, dy = (make_images(n, o, h // (1 + pool), w // (1 + pool), torch.float16, DEVICE) for _ in range(2))
    argmax = torch.randint_like(u, 4, dtype=torch.int8) if pool else None
    dx = make_images(n, o, h, w, torch.float16, DEVICE) if pool else torch.empty_like(u)
    dx8, now = torch.empty_like(dx, dtype=torch.float8_e5m2), torch.full((1,), 7.0, device=DEVICE)
    last, ones = torch.full((1,), largest, device=DEVICE), torch.ones(o, device=DEVICE)
    stats, nothing = torch.ones(2, o, device=DEVICE), ones.new_empty(0)
    saved, norm = (u, None, dy, None), (stats, ones, ones, ones)
    both = norm_gradients.sums(*saved, *norm, activation="silu", now=now)
    assert now.item() == 0
    written = {"dx8": dx8, "largest": last, "now": now}
    norm_gradients.gradient(*saved, argmax, *norm, both, dx, nothing, activation="silu", **written)
    assert now.item() == dx.abs().max().item() > 1
    assert torch.equal(bits(dx8), bits(float8.stored(dx, float8.GRADIENTS, float8.gradient_scale(last))))


def values_of(problem: Problem, config: Config) -> list[str]:
    """What is wrong with those of a pass, beside the float64 ones of the same rounded operands."""
    t = measure.tensors(problem, DEVICE)
    measure.kernel(problem, config, t)()
    return measure.wrong(problem, t, measure.expected(problem, t))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("problem", SMALL, ids=selection.key)
def test_a_pass_has_the_values_of_rounded_operands_in_every_form(problem, form):
    tile = {"rows": 16, "cols": 32, "depth": 32} if DEVICE == "cpu" else {}
    with selection.only(**tile, **FORMS[form]):
        assert not values_of(problem, selection.choose(problem, chips.current(DEVICE)))


@on_a_gpu
@pytest.mark.parametrize("problem", RECIPES, ids=selection.key)
def test_a_recipe_pass_has_the_values_of_rounded_operands(problem):
    assert not values_of(problem, selection.choose(problem, chips.current(DEVICE)))


@pytest.mark.parametrize("c, side", [(32, 2)] if DEVICE == "cpu" else [(64, 15), (256, 7)])
def test_adding_up_in_tensor_cores_loses_far_less_than_rounding(c, side, capsys):
    problem = Problem("forward", 128 if DEVICE == "cuda" else 16, side, side, c, c, dtype=FLOAT8)
    t = measure.tensors(problem, DEVICE)
    t.x = torch.nn.functional.silu(t.x)  # of one sign, mostly
    t.x8 = float8.stored(t.x, float8.ACTIVATIONS)
    measure.kernel(problem, selection.choose(problem, chips.current(DEVICE)), t)()
    rounded = measure.expected(problem, t)
    whole = torch.nn.functional.conv2d(t.x.double(), t.filters.double(), padding=1)
    of_sums, of_rounding = (
        ((got.double() - want).norm() / want.norm()).item()
        for got, want in ((t.u, rounded), (rounded, whole))
    )
    with capsys.disabled():
        if DEVICE == "cuda":
            print(f"\n{9 * c} products: sums are {of_sums:.1e} off, operands' rounding {of_rounding:.1e}")
    assert of_sums < of_rounding / 8


def as_hopper_adds(products: np.ndarray) -> np.ndarray:
    """Sums of products [sums, count]: 32 and the sum so far are cut off 13 places below the largest."""
    sums = np.zeros((len(products), 1))
    for some in np.split(products, products.shape[1] // 32, axis=1):
        terms = np.hstack((sums, some))
        place = np.exp2(np.floor(np.log2(np.abs(terms).max(1, keepdims=True))) - 13)
        sums = (np.trunc(terms / place) * place).sum(1, keepdims=True)
    return sums[:, 0]


def test_what_hopper_keeps_of_sums_is_far_more_than_rounding_leaves():
    products, x, w = 9 * 256, *torch.randn(2, 500, 9 * 256, dtype=torch.float64)
    x, w = torch.nn.functional.silu(x), w / products**0.5
    scale = float8.filter_scale(256)
    narrow = float8.rounded(x, float8.ACTIVATIONS), float8.rounded(w, float8.FILTERS, scale)
    exact, rounded = (a.mul(b).sum(1).numpy() for a, b in ((x, w), narrow))
    added = as_hopper_adds(narrow[0].mul(narrow[1]).numpy())
    of_sums, of_rounding = (
        np.linalg.norm(got - want) / np.linalg.norm(want)
        for got, want in ((added, rounded), (rounded, exact))
    )
    assert of_sums == pytest.approx(1.0e-3, rel=0.3) and of_rounding == pytest.approx(3.8e-2, rel=0.2)


def block(x, filters, **options):
    """The op in training, on the weights of a fresh network."""
    o = len(filters)
    norm = torch.ones(o, device=DEVICE), torch.zeros(o, device=DEVICE), torch.ones(2, o, device=DEVICE)
    fields = {"training": True, "eps": EPS, "activation": "silu", "conv_dtype": "float8"} | options
    return conv_bn_act.op(x, filters, *norm, **fields)


def operands(dtype=torch.float16, pool_of: int = 4):
    return make_images(2, 32, pool_of, pool_of, dtype, DEVICE), make_filters(32, 32, 3, dtype, DEVICE)


def test_the_gradient_of_the_largest_is_the_largest_gradient_now():
    x, filters = operands()
    largest = torch.zeros(1, device=DEVICE, requires_grad=True)
    y, *_ = block(x, filters.requires_grad_(), largest=largest)  # a first block, whose x needs no gradient
    y.backward(torch.ones_like(y))
    with_reference = torch.zeros(1, device=DEVICE, requires_grad=True)
    norm = torch.ones(32, device=DEVICE), torch.zeros(32, device=DEVICE), torch.ones(2, 32, device=DEVICE)
    plain = {"training": True, "eps": EPS, "activation": "silu", "conv_dtype": "float8"}
    want, *_ = conv_bn_act.reference(x, filters, *norm, **plain, largest=with_reference)
    want.backward(torch.ones_like(want))
    assert largest.grad.item() == pytest.approx(with_reference.grad.item(), rel=2e-2)


@pytest.mark.parametrize("pool", [False, True])
def test_evaluation_has_the_operands_of_training(pool):
    """With the statistics of the batch, both give one y."""
    x, filters = operands(pool_of=5)
    y, stats, _ = block(x, filters, pool=pool)
    count = y.numel() // y.shape[1]
    norm = torch.ones(32, device=DEVICE), torch.zeros(32, device=DEVICE)
    running = torch.stack((stats[0], stats[1] * ((count - 1) / count)))
    fields = {"training": False, "eps": EPS, "activation": "silu", "pool": pool, "conv_dtype": "float8"}
    evaluated, *_ = conv_bn_act.op(x, filters, *norm, running, **fields)
    assert ((evaluated - y).float().norm() / y.float().norm()).item() < 2e-3


def test_a_wgrad_by_windows_reads_pooled_gradients_beside_a_dgrad_of_8_bits():
    block = {"gate": False, "residual": False, "spatial": False, "activation": "silu", "pool": True}
    case = Case(n=2, c=32, o=64, map=(5, 4), **block, conv_dtype="float8", training=True)
    with selection.only(order="windows"), launch.recording() as launches:
        execute(conv_bn_act.FLOAT8_SPEC, conv_bn_act.op, conv_bn_act._make(case, torch.float16, DEVICE))
    assert {"_window_wgrad", "_conv_dgrad"} <= {one.name for one in launches}
    with selection.only(order="windows"):
        assert not check(conv_bn_act.FLOAT8_SPEC, case, torch.float16, DEVICE)


@on_a_gpu
def test_a_captured_step_is_the_step():
    x, filters = operands(pool_of=7)
    x, filters = x.requires_grad_(), filters.requires_grad_()
    largest = torch.zeros(1, device=DEVICE, requires_grad=True)

    def step():
        y, *_ = block(x, filters, pool=True, largest=largest)
        gradients = torch.autograd.grad(y.sum(), (x, filters, largest))
        with torch.no_grad():
            largest.copy_(gradients[2])
        return gradients

    plain = [[gradient.clone() for gradient in step()] for _ in range(3)]
    with torch.no_grad():
        largest.zero_()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for want in plain:
        graph.replay()
        assert all(torch.equal(got, expected) for got, expected in zip(captured, want))


def test_what_cannot_be_multiplied_is_named():
    with pytest.raises(ValueError, match=r"^x: got torch.float32, accepted are float16 and bfloat16"):
        block(*operands(torch.float32))
    with pytest.raises(ValueError, match=r"^conv_dtype: got 'float4', accepted are auto, float8"):
        block(*operands(), conv_dtype="float4")
    with pytest.raises(ValueError, match=r"^largest: got shape \[2\], accepted is \[1\]"):
        block(*operands(), largest=torch.zeros(2, device=DEVICE))
    with targeting(TARGETS[80]), pytest.raises(ValueError, match="float8.*from compute capability 8.9 on"):
        block(*operands())


@pytest.mark.parametrize("chip, dtype", [(TARGETS[80], torch.float16), (AIMED_AT, torch.float32)])
def test_what_cannot_be_multiplied_tuned_rounds_as_the_reference(chip, dtype, monkeypatch):
    monkeypatch.setattr(conv_bn_act, "reference", lambda *_, **options: options["conv_dtype"])
    x, filters = operands(dtype)
    with targeting(chip):
        assert conv_bn_act.measured(x, filters, *[None] * 3, conv_dtype="float8") == "float8"


def test_tuned_blocks_have_kernels_for_their_8_bit_passes():
    for case in conv_bn_act.FLOAT8_SPEC.cases:
        problem = Problem("forward", case.n, *case.map, case.c, case.o, 3, case.pool)
        for name, passes in float8.PASSES.items():
            chosen = selection.by_kernel(problem, AIMED_AT, True, passes).split()
            assert set(passes) <= set(chosen), name
            assert not (case.pool and "dgrad" in passes and "wgrad" in chosen)  # it would read all of dz


def test_candidates_step_by_whole_products_of_8_bits():
    for problem in (*SMALL, *RECIPES):
        for chip in (TARGETS[89], TARGETS[90], TARGETS[100]):
            for config in candidates.candidates(problem, chip):
                assert config.depth % 32 == 0
                assert problem.dtype == FLOAT8 and tiling.flops(problem, config) > 0


def test_a_pass_is_named_and_scaled_from_its_own_dtype(launch_table):
    problem = RECIPES[0]
    assert selection.problem_of(selection.key(problem)) == problem
    config = Config("images", 128, 128, 64, 8, 3, descriptors=True)
    half = selection.key(Problem(**vars(problem) | {"dtype": torch.float16}))
    entry = {"config": str(config), "seconds": 1e-4, "cudnn": 2e-4, "run": "now"}
    section = {"cc": 90, "multiprocessors": 132, "unpool": {}}
    launch_table({AIMED_AT.name: section | {"launches": {half: entry}}})
    assert selection.estimate(problem, AIMED_AT).how == "modelled"
    launch_table({AIMED_AT.name: section | {"launches": {selection.key(problem): entry}}})
    assert selection.estimate(problem, AIMED_AT).how == "measured"
    other = Problem(**vars(problem) | {"n": problem.n // 2})
    assert selection.estimate(other, AIMED_AT).how == "scaled"


def test_problems_of_a_call_have_the_dtype_of_what_is_multiplied():
    x, filters = operands()
    assert conv.problem("dgrad", x, filters, dtype=FLOAT8).dtype == FLOAT8
    assert conv.problem("wgrad", x, filters).dtype == torch.float16
