"""What the general tests cannot say of convolutions and the block: forms of launch, pools, statistics."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from counting import counting
from helpers import assert_near

from bench.tune import measure
from kernels import conv_bn_act
from kernels.base import chips, launch
from kernels.base.chips import AIMED_AT
from kernels.base.correctness import check, execute
from kernels.base.launch import cdiv
from kernels.base.spec import Case
from kernels.convolution import conv, conv_gradients, selection, tiling
from kernels.convolution.conv import make_filters, make_images
from kernels.convolution.selection import ALL
from kernels.convolution.tiling import Config, Problem

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EPS = 1e-12
TILE = {"rows": 16, "cols": 32, "depth": 32, "splits": 3}
FORMS = {
    "images": {"order": "images", "descriptors": False},
    "rows": {"order": "rows", "descriptors": False},
    "descriptors": {"order": "images", "descriptors": True},
}
BLOCK = {
    "pool": False,
    "gate": False,
    "residual": False,
    "spatial": False,
    "activation": "silu",
    "training": True,
}
CASES = (
    Case("pool", n=17, c=32, o=32, map=(3, 5), **BLOCK | {"pool": True, "gate": True}),
    Case("no pool", n=18, c=32, o=32, map=(2, 2), **BLOCK | {"residual": True}),
    Case("flat", n=3, c=24, o=16, map=(4, 4), **BLOCK | {"pool": True, "spatial": True}),
    Case("outputs beyond a box", n=17, c=32, o=24, map=(3, 2), **BLOCK),
)
BOXES = Case("several boxes of channels", n=16, c=64, o=64, map=(2, 2), **BLOCK)

pytestmark = pytest.mark.skipif(
    not launch.runnable(DEVICE), reason="no CUDA device, and triton is not installed or not interpreting"
)


def block(x, filters, **options):
    """The raw op in training: (y, statistics, spatial mean, u, argmax, rstd)."""
    o = len(filters)
    plain = {
        "weight": torch.ones(o, device=DEVICE),
        "bias": torch.zeros(o, device=DEVICE),
        "gate": None,
        "residual": None,
        "eps": EPS,
        "activation": "gelu",
        "pool": False,
        "spatial_mean": False,
        "by_kernel": ALL,
    }
    return conv_bn_act._train(x, filters, *(plain | options).values())


def tensors(n: int, c: int, o: int, h: int, w: int, dtype: torch.dtype = torch.float32):
    """x and filters."""
    return make_images(n, c, h, w, dtype, DEVICE), make_filters(o, c, 3, dtype, DEVICE)


def integers(n: int, c: int, h: int, w: int, dtype: torch.dtype, device=DEVICE):
    return torch.randint(-2, 3, (n, h, w, c), device=device).to(dtype).permute(0, 3, 1, 2)


@pytest.mark.parametrize(
    "case, dtype, form",
    [(case, torch.float32, form) for case in CASES for form in FORMS]
    + [(CASES[0], torch.float16, "descriptors"), (BOXES, torch.float32, "descriptors")],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_every_form_of_launch_gives_the_results_and_gradients_of_the_reference(case, form, dtype):
    with selection.only(**TILE, **FORMS[form]):
        assert not check(conv_bn_act.SPEC, case, dtype, DEVICE)
        evaluated = Case(case.name, **{**case, "training": False})
        assert not check(conv_bn_act.EVAL_SPEC, evaluated, dtype, DEVICE)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", conv.SIZES)
def test_every_form_of_launch_has_every_size_of_filter(size, form):
    with selection.only(**TILE, **FORMS[form]):
        assert not check(conv.SPEC, Case(n=17, c=32, o=32, map=(3, 2), size=size), torch.float32, DEVICE)


@pytest.mark.skipif(not launch.INTERPRETED, reason="work is counted in the interpreter")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("c, map, pool", [(32, (5, 3), True), (64, (2, 3), False), (24, (3, 3), True)])
def test_the_forms_do_the_work_that_tiling_says(c, map, pool, form):
    x, filters = tensors(18, c, 24, *map)
    x.requires_grad_(), filters.requires_grad_()
    problems = [conv.problem(kind, x, filters, pool) for kind in tiling.PASSES]
    with selection.only(**TILE, **FORMS[form]):
        configs = [selection.choose(problem, AIMED_AT) for problem in problems]
        with counting() as counts:
            y = block(x, filters, pool=pool)[0]
            y.sum().backward()
    for problem, config in zip(problems, configs):
        count = counts[conv.NAMES[problem.kind]]
        assert count.flops == tiling.flops(problem, config)
        assert count.programs == tiling.programs(problem, config)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("form", FORMS)
def test_pool_takes_the_first_of_the_largest_as_stored(form, dtype):
    x, filters = integers(3, 32, 7, 5, dtype), integers(16, 32, 3, 3, dtype)
    z = F.conv2d(x.double(), filters.double(), padding=1)  # every sum is exact, and many are equal
    with selection.only(**TILE, **FORMS[form]):
        u, argmax = block(x, filters, pool=True)[3:5]
    pooled, flat = F.max_pool2d(z.to(dtype).double(), 2, return_indices=True)
    assert torch.equal(u.double(), pooled)
    assert torch.equal(argmax.long(), flat // 5 % 2 * 2 + flat % 5 % 2)


def test_pool_takes_the_largest_wherever_rounding_does_not_decide():
    x, filters = (
        make_images(4, 32, 9, 8, torch.float16, DEVICE),
        make_filters(24, 32, 3, torch.float16, DEVICE),
    )
    argmax = block(x, filters, pool=True)[4]
    z = F.conv2d(x.double(), filters.double(), padding=1)
    windows = F.unfold(z.flatten(0, 1)[:, None], 2, stride=2).view(4, 24, 4, 4, 4)  # [n, o, place, h, w]
    largest, places = windows.topk(2, dim=2)
    clear = largest[:, :, 0] - largest[:, :, 1] > 2e-3 * largest[:, :, 0].abs()
    assert clear.double().mean() > 0.9
    assert torch.equal(argmax.long()[clear], places[:, :, 0][clear])


@pytest.mark.parametrize("form", FORMS)
def test_what_a_pool_drops_gets_no_gradient(form):
    x = make_images(2, 16, 5, 7, torch.float32, DEVICE).requires_grad_()
    filters = torch.zeros(16, 16, 3, 3, device=DEVICE).contiguous(memory_format=torch.channels_last)
    filters[:, :, 1, 1] = torch.eye(16)  # z is x, so only what the pool reads has a gradient
    with selection.only(**TILE, **FORMS[form]):
        block(x, filters, pool=True)[0].square().sum().backward()
    assert (x.grad[:, :, 4] == 0).all() and (x.grad[:, :, :, 6] == 0).all()
    kept = x.grad[:, :, :4, :6].unflatten(3, (3, 2)).unflatten(2, (2, 2))
    assert ((kept != 0).sum((3, 5)) == 1).all()  # one of each window


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mean", [0.5, 100.0])
def test_statistics_are_those_of_the_stored_values_to_1e_6(form, mean):
    x = make_images(40, 32, 6, 2, torch.float32, DEVICE)
    filters = make_filters(24, 32, 3, torch.float32, DEVICE)
    x[:, 0] = mean / 3
    filters[:, 0] = 0
    filters[:, 0, 1, 1] = 3  # adds the mean to every output
    with selection.only(**TILE, **FORMS[form]):
        stats, u = (block(x, filters, pool=True)[i] for i in (1, 3))
    assert u.double().mean() / u.double().std() > mean / 4
    assert_near(stats[0], u.double().mean((0, 2, 3)), 1e-6, "mean")
    assert_near(stats[1], u.double().var((0, 2, 3)), 1e-6, "variance")


@pytest.mark.parametrize("constant", [0.0, 3.0])
@pytest.mark.parametrize("pool", [False, True])
def test_constant_channel_has_variance_0_and_finite_results(pool, constant):
    x = make_images(5, 16, 5, 4, torch.float32, DEVICE)
    filters = make_filters(16, 16, 3, torch.float32, DEVICE)
    x[:, 0], filters[:, 0], filters[3] = constant, 0, 0
    filters[3, 0, 1, 1] = 1
    x.requires_grad_()
    y, stats, *_ = block(x, filters, pool=pool, bias=torch.full((16,), 0.5, device=DEVICE))
    assert stats[0, 3] == constant and stats[1, 3] == 0
    assert_near(y[:, 3], F.gelu(torch.full_like(y[:, 3], 0.5).double()), 1e-6)
    y.square().sum().backward()
    assert x.grad.isfinite().all()


def test_a_tensor_that_begins_anywhere_needs_no_descriptor():
    x, filters = tensors(16, 32, 32, 2, 3)
    moved = torch.empty(x.numel() + 1, device=DEVICE)[1:].view(16, 2, 3, 32).permute(0, 3, 1, 2).copy_(x)
    with selection.only(**TILE, **FORMS["descriptors"]):
        assert conv.configured("forward", x, filters)[1].descriptors
        assert not conv.configured("forward", moved, filters)[1].descriptors
        assert_near(conv.op(moved, filters), conv.op(x, filters).double(), 1e-6)


def test_spatial_mean_is_float32_in_evaluation_too():
    case = Case(n=2, c=16, o=16, map=(3, 2), **BLOCK | {"spatial": True, "training": False})
    mean = conv_bn_act.op(**conv_bn_act.EVAL_SPEC.make(case, torch.float16, DEVICE))[2]
    assert mean.dtype == torch.float32


def test_relu_has_its_gradient():
    case = Case(n=4, c=16, o=24, map=(7, 6), **BLOCK | {"pool": True, "activation": "relu"})
    assert not check(conv_bn_act.SPEC, case, torch.float32, DEVICE)


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_nan_is_passed_on(training, pool):
    x, filters = (
        make_images(2, 16, 4, 4, torch.float32, DEVICE),
        make_filters(16, 16, 3, torch.float32, DEVICE),
    )
    x[0, 3, 1, 1] = float("nan")
    ones = torch.ones(16, device=DEVICE)
    options = {"training": training, "eps": EPS, "activation": "relu", "pool": pool}
    y = conv_bn_act.op(x, filters, ones, ones, torch.ones(2, 16, device=DEVICE), **options)[0]
    assert y[0].isnan().any()
    assert y[1].isnan().all() if training else y[1].isfinite().all()


def measured(case: Case, kernels: tuple[str, ...]) -> dict:
    """A table of launches: kernels are faster than cuDNN in these passes."""
    extents = {"n": case.n, "h": case.map[0], "w": case.map[1], "c": case.c, "o": case.o, "pool": case.pool}
    entries = {}
    for kind in tiling.PASSES:
        problem = Problem(kind, **extents, dtype=torch.float32)
        entry = {"config": str(selection.best(problem, AIMED_AT)), "seconds": 1.0}
        entries[selection.key(problem)] = entry | {"cudnn": 2.0 if kind in kernels else 0.5}
    return {AIMED_AT.name: {"cc": 90, "multiprocessors": 132, "launches": entries}}


@pytest.fixture
def table(launch_table):
    """As `launch_table`, which the chip of `measured` asks."""
    with chips.targeting(AIMED_AT):
        yield launch_table


TUNED = Case(n=4, c=16, o=24, map=(7, 6), **BLOCK | {"pool": True, "gate": True, "spatial": True})
WRITTEN = {  # passes that kernels do -> extents of the gradient that D writes, of z's or u's
    ALL: (3, 3),
    "dgrad wgrad": (3, 3),
    "forward wgrad": (7, 6),
    "dgrad": (7, 6),
    "": (7, 6),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("by_kernel", WRITTEN)
def test_passes_are_done_by_those_that_are_named_and_stay_right(by_kernel, training):
    case = Case("mixed", **{**TUNED, "training": training, "by_kernel": by_kernel})
    spec = replace(
        conv_bn_act.SPEC if training else conv_bn_act.EVAL_SPEC,
        given=lambda inputs: {},  # float32 rounds too little to move an argmax here
    )
    with launch.recording() as launched:
        execute(spec, spec.op, spec.make(case, torch.float32, DEVICE))
    kernels = [one.name for one in launched]
    wanted = {conv.NAMES[kind] for kind in by_kernel.split() if training or kind == "forward"}
    assert {name for name in kernels if name.startswith("_conv")} == wanted
    assert ("_tile_statistics" in kernels) == (training and "forward" not in by_kernel)
    if training:
        written = next(one for one in launched if one.name == "_gradient")
        assert (written.constants["H"], written.constants["W"]) == WRITTEN[by_kernel]
    assert not check(spec, case, torch.float32, DEVICE)


def test_tuned_takes_for_each_pass_what_was_measured_to_be_faster(table):
    inputs = conv_bn_act.SPEC.make(Case(**{**TUNED, "pool": False}), torch.float32, DEVICE)
    inputs["x"].requires_grad_(), inputs["filters"].requires_grad_(), inputs.pop("by_kernel")
    for kernels in ((), ("forward",), ("dgrad",), ("wgrad", "forward")):
        table(measured(Case(**{**TUNED, "pool": False}), kernels))
        with launch.recording() as launched:
            conv_bn_act.measured(**inputs)[0].sum().backward()
        assert {one.name for one in launched if one.name.startswith("_conv")} == {
            conv.NAMES[kind] for kind in kernels
        }


def test_tuned_is_the_reference_where_no_kernel_can_run():
    inputs = conv_bn_act.SPEC.make(TUNED, torch.float32, DEVICE)
    wide = {
        k: v.double() if isinstance(v, torch.Tensor) else v for k, v in inputs.items() if k != "by_kernel"
    }
    with launch.recording() as launched:
        conv_bn_act.measured(**wide)
    assert not launched


def test_tuned_compiles_to_one_graph(table):
    table(measured(TUNED, ("forward",)))
    inputs = conv_bn_act.SPEC.make(TUNED, torch.float32, DEVICE)
    del inputs["by_kernel"]
    torch._dynamo.reset()
    compiled = torch.compile(conv_bn_act.measured, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(**inputs)[0], conv_bn_act.op(**inputs, by_kernel="forward")[0])


@pytest.mark.parametrize("wants_dx", [False, True])
def test_what_is_traced_plans_for_the_gradients_that_are_wanted(table, monkeypatch, wants_dx):
    told = []
    monkeypatch.setattr(selection, "by_kernel", lambda problem, chip, wanted, *_: told.append(wanted) or "")
    inputs = conv_bn_act.SPEC.make(TUNED, torch.float32, DEVICE)
    x, scale = inputs.pop("x"), torch.ones((), device=DEVICE, requires_grad=wants_dx)
    del inputs["by_kernel"]
    inputs["filters"].requires_grad_()
    torch._dynamo.reset()
    block = torch.compile(
        lambda scale: conv_bn_act.measured(x * scale, **inputs)[0], fullgraph=True, backend="aot_eager"
    )
    block(scale).sum().backward()
    assert set(told) == {wants_dx}
    assert (scale.grad is not None) == wants_dx


def test_an_unknown_pass_is_named():
    inputs = conv_bn_act.SPEC.make(TUNED, torch.float32, DEVICE)
    with pytest.raises(ValueError, match="^by_kernel: got backward, accepted are forward, dgrad, wgrad"):
        conv_bn_act.op(**inputs | {"by_kernel": "forward backward"})


def test_descriptors_are_of_matrices():
    x, filters = tensors(17, 32, 32, 3, 2)
    with selection.only(**TILE, **FORMS["descriptors"]), launch.recording() as launched:
        conv.op(x, filters.requires_grad_()).sum().backward()
    boxes = [a for one in launched for a in one.arguments if isinstance(a, launch.TensorDescriptor)]
    assert [one.block_shape for one in boxes] == [[16, 32], [32, 32], [32, 16], [32, 32]]
    assert {tuple(one.shape) for one in boxes} == {(17, 3 * 2 * 32), (32, 9 * 32)}


@pytest.mark.parametrize(
    "problem, splits",
    [
        (Problem("dgrad", 2, 3, 3, 16, 16, size=1, pool=True), 1),  # the last pixels are in no window
        (Problem("wgrad", 2, 1, 1, 16, 16), 1),  # eight taps of nine have no output
        (Problem("wgrad", 2, 2, 2, 16, 16), 3),  # more programs than some taps have outputs
    ],
)
def test_a_tile_may_have_nothing_to_add_up(problem, splits):
    problem = replace(problem, dtype=torch.float32)
    t = measure.tensors(problem, DEVICE)
    measure.kernel(problem, Config("images", 16, 16, 16, 1, 2, splits=splits), t)()
    assert not measure.wrong(problem, t, measure.expected(problem, t))


@pytest.mark.parametrize("extents, size", [((4, 7), 3), ((1, 3), 3), ((5, 6), 2), ((3, 3), 1)])
@pytest.mark.parametrize("pool", [False, True])
def test_the_fewest_steps_are_those_of_the_tap_of_the_fewest_outputs(extents, size, pool):
    problem = Problem("wgrad", 40, *extents, 32, 16, size, pool and min(extents) > 1)
    (h, w), (oh, ow), pad = extents, problem.kept, problem.pad
    outputs = [
        sum(0 <= y + r - pad < h and 0 <= x + s - pad < w for y in range(oh) for x in range(ow))
        for r in range(size)
        for s in range(size)
    ]
    config = Config("images", 16, 16, 16, 1, 2)
    fewest = conv_gradients.fewest_steps
    assert fewest(problem, config) == 3 * min(outputs)
    assert fewest(replace(problem, c=24), config) == 3 * oh * ow  # of taps together nothing is skipped
    assert fewest(problem, replace(config, order="rows")) == cdiv(40 * oh * ow, 16)


def test_no_gradient_of_x_is_computed_where_none_is_wanted():
    x, filters = (
        make_images(3, 16, 5, 4, torch.float32, DEVICE),
        make_filters(16, 16, 3, torch.float32, DEVICE),
    )
    with launch.recording() as launched:
        block(x, filters.requires_grad_(), pool=True)[0].sum().backward()
    assert "_conv_wgrad" in (names := {one.name for one in launched})
    assert "_conv_dgrad" not in names


@pytest.mark.parametrize(
    "filters, message",
    [
        ((8, 4, 4, 4), "^filters: got 4x4, accepted are 1x1, 2x2 and 3x3"),
        ((8, 4, 3, 2), r"^filters: got shape \[8, 4, 3, 2\]"),
        ((8, 5, 3, 3), r"^filters: got shape \[8, 5, 3, 3\], accepted is \[any, 4, 3, 3\]"),
        ((8, 4, 2, 2), r"^x: got shape \[2, 4, 1, 3\], accepted is one with an output"),
    ],
)
def test_filters_that_do_not_fit_are_named(filters, message):
    x = make_images(2, 4, 1, 3, torch.float32, DEVICE)
    o, c, h, w = filters
    with pytest.raises(ValueError, match=message):
        conv.op(x, make_images(o, c, h, w, torch.float32, DEVICE))


def test_one_value_per_channel_is_an_error_in_training_only():
    x, filters = tensors(1, 4, 8, 3, 2)
    vectors = (torch.ones(8, device=DEVICE),) * 2, torch.ones(2, 8, device=DEVICE)
    options = {"eps": EPS, "activation": "gelu", "pool": True}
    with pytest.raises(ValueError, match="^x: got one value per channel"):
        conv_bn_act.op(x, filters, *vectors[0], vectors[1], training=True, **options)
    y = conv_bn_act.op(x, filters, *vectors[0], vectors[1], training=False, **options)[0]
    assert y.shape == (1, 8, 1, 1) and y.isfinite().all()
