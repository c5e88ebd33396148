"""A pooled block's filters' gradient by its pooling windows, beside float64 and in the plan of a block."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from counting import counting
from helpers import assert_near

from bench.tune import measure
from kernels import conv_bn_act
from kernels.base import launch
from kernels.base.chips import TARGETS
from kernels.base.spec import Case
from kernels.convolution import candidates, model, selection, tiling, window_gradients
from kernels.convolution.tiling import Config, Problem

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
H200 = TARGETS[90]
FIRST = Problem("wgrad", 1536, 31, 31, 24, 64, pool=True)  # of record94
CONFIG = Config("windows", 32, 32, 16, 8, 2, splits=3)

runs = pytest.mark.skipif(
    not launch.runnable(DEVICE), reason="no CUDA device, and triton is not installed or not interpreting"
)


def small(n: int, h: int, w: int, c: int, dtype: torch.dtype = torch.float16) -> Problem:
    return Problem("wgrad", n, h, w, c, 32, pool=True, dtype=dtype)


# wgrad


@runs
@pytest.mark.parametrize(
    "problem, config",
    [
        (small(3, 7, 5, 24), replace(CONFIG, rows=16, cols=64)),  # a piece of 64 values and one of 32
        (small(3, 6, 9, 32, torch.bfloat16), replace(CONFIG, splits=2)),  # an edge that a window reaches over
        (small(5, 5, 4, 16), replace(CONFIG, splits=1000)),  # a step for each program, the last one not full
    ],
    ids=lambda value: selection.key(value) if isinstance(value, Problem) else "",
)
def test_the_gradient_by_windows_is_that_of_float64_and_does_the_work_that_tiling_says(problem, config):
    t = measure.tensors(problem, DEVICE)
    t.d_filters.fill_(float("nan"))
    if launch.INTERPRETED:
        with counting() as counts:
            measure.kernel(problem, config, t)()
        count = counts["_window_wgrad"]
        assert (count.flops, count.programs, count.distinct) == (
            tiling.flops(problem, config),
            tiling.programs(problem, config),
            tiling.bytes(problem, config),
        )
    else:
        measure.kernel(problem, config, t)()
    assert not measure.wrong(problem, t, measure.expected(problem, t))


@runs
def test_sums_by_windows_are_exact_and_the_same_in_any_number_of_shares():
    problem = small(4, 5, 6, 8)
    t = measure.tensors(problem, DEVICE)
    for tensor in (t.x, t.dz):
        tensor.copy_(torch.randint_like(tensor, -2, 3))  # every sum is exact
    one, many = torch.empty_like(t.d_filters), torch.empty_like(t.d_filters)
    for splits, t.d_filters in ((1, one), (4, many)):
        measure.kernel(problem, replace(CONFIG, splits=splits), t)()
    assert torch.equal(one, many)
    for place, view in enumerate(measure._places(t.full, *problem.output)):
        view.copy_(torch.where(t.argmax == place, t.dz, 0))
    assert torch.equal(one.double(), measure.expected(problem, t))


@runs
def test_more_shares_than_are_added_at_once_are_added_up():
    c, o, shares = 8, 2, window_gradients.FOLDED + 3
    partial = torch.randn(shares, 2, o, 3, 4, c, device=DEVICE)
    total = torch.empty(o, 3, 3, c, device=DEVICE)
    extents = {"C": c, "OUT": o, "ROWS": window_gradients.FOLDED, "COLS": 32}
    launch.launch(window_gradients._fold, (3 * o,), partial, total, shares, **extents)
    left, right = partial.double().sum(0)
    assert_near(total, left[:, :, :3] + right[:, :, 1:], 1e-6)


def test_shares_are_even_and_none_is_empty():
    for n, splits in ((1536, 132), (1536, 100), (1000, 66), (1, 132)):
        problem, config = replace(FIRST, n=n), replace(CONFIG, depth=64, splits=splits)
        share, shares = tiling.shares(problem, config)
        steps = -(-n * 15 * 15 // 64)
        assert (shares - 1) * share < steps <= shares * share and shares <= splits


# Which passes have it


def test_a_pooled_wgrad_of_few_channels_goes_by_windows_on_9_0():
    def orders(problem: Problem, cc: int = 90) -> set[str]:
        return {config.order for config in candidates.candidates(problem, TARGETS[cc])}

    assert "windows" in orders(FIRST) and "windows" in orders(replace(FIRST, c=32, o=128))
    for cc in (80, 89, 100):
        assert "windows" not in orders(FIRST, cc)
    others = {"kind": "dgrad"}, {"pool": False}, {"c": 64}, {"c": 12}, {"o": 24}, {"dtype": torch.float32}
    for fields in (*others, {"size": 1}):
        assert "windows" not in orders(replace(FIRST, **fields))


def test_windows_fill_the_chip_once_with_4_3_of_the_useful_work():
    for problem in (FIRST, replace(FIRST, h=23, w=23), replace(FIRST, c=32, o=128, n=512)):
        for config in candidates.by_windows(problem, H200):
            assert 0.95 * H200.multiprocessors < tiling.programs(problem, config) <= H200.multiprocessors
            assert tiling.flops(problem, config) == pytest.approx(4 / 3 * tiling.useful(problem), rel=0.01)
            assert model.shared_bytes(problem, config) <= H200.shared * 1024


@pytest.mark.parametrize("problem", [FIRST, replace(FIRST, c=32, o=128, n=512)], ids=selection.key)
def test_the_model_of_windows_counts_products_instructions_and_bytes(problem):
    config = candidates.by_windows(problem, H200)[0]
    seconds = model.seconds(problem, config, H200)
    assert seconds > tiling.flops(problem, config) / H200.flops[torch.float16]
    assert seconds > tiling.bytes(problem, config) / H200.bandwidth
    for slower in ({"l2_bandwidth": 1e12}, {"bandwidth": 1e11}, {"launch": 1e-4}, {"multiprocessors": 100}):
        assert model.seconds(problem, config, replace(H200, **slower)) > seconds
    more = replace(problem, n=2 * problem.n)
    assert 1.7 * seconds < model.seconds(more, config, H200) < 2 * seconds


# What is chosen


def table(kernel: float, cudnn: float, unpool: float = 0.0, dgrad: tuple = (1.0, 1.0), windows: bool = False):
    """Seconds of FIRST by the kernel and by cuDNN; whether windows were tried then."""
    forward, config = replace(FIRST, kind="forward"), str(Config("rows", 64, 128, 64, 8, 3))
    entries = {
        selection.key(problem): {"config": config, "seconds": seconds, "cudnn": theirs}
        for problem, seconds, theirs in (
            (FIRST, kernel, cudnn),
            (forward, 1.0, 0.5),
            (replace(FIRST, kind="dgrad"), *dgrad),
        )
    }
    entries[selection.key(forward)]["windows"] = True
    if windows:
        entries[selection.key(FIRST)]["windows"] = True
    written = {selection.key(forward): {"seconds": unpool}}
    return {H200.name: {"cc": 90, "multiprocessors": 132, "launches": entries, "unpool": written}}


def modelled() -> float:
    return min(model.seconds(FIRST, config, H200) for config in candidates.by_windows(FIRST, H200))


def test_windows_that_were_never_measured_are_taken_where_they_are_modelled_to_be_faster_by_the_margin(
    launch_table,
):
    least = selection.MARGIN * modelled()
    for kernel, cudnn, unpool, taken in (
        (1.01 * least, 1.01 * least, 0.0, True),
        (0.99 * least, 1.0, 0.0, False),
        (1.0, 0.99 * least, 0.0, False),
        (1.0, 0.99 * least, 0.02 * least, True),  # cuDNN needs the gradient of all outputs
    ):
        launch_table(table(kernel, cudnn, unpool))
        found = selection.estimate(FIRST, H200)
        assert (found.config.order == "windows") == taken == (found.how == "modelled")
        assert selection.choose(FIRST, H200) == found.config
        if taken:
            assert (found.seconds, found.cudnn) == (modelled(), cudnn)
            assert (found.replaced.seconds, found.replaced.how) == (kernel, "measured")
        with selection.as_measured():
            assert selection.estimate(FIRST, H200).seconds == kernel
            assert selection.choose(FIRST, H200).order == "rows"


def test_windows_that_were_tried_are_taken_where_they_were_measured_to_be_the_fastest(launch_table):
    launch_table(table(1.0, 1.0, windows=True))
    assert selection.estimate(FIRST, H200).how == "measured"
    assert selection.choose(FIRST, H200).order == "rows"
    assert selection.estimate(replace(FIRST, n=1000), H200).how == "scaled"
    assert selection.tried([CONFIG]) and not selection.tried([replace(CONFIG, order="rows")])


def test_the_tuner_tries_windows_whatever_their_model_says(monkeypatch):
    seconds = model.seconds
    monkeypatch.setattr(
        model, "seconds", lambda p, c, chip: seconds(p, c, chip) * 9 ** (c.order == "windows")
    )
    found = measure.worth(FIRST, H200)
    assert set(candidates.by_windows(FIRST, H200)) < set(found) and found[0].order != "windows"


@pytest.mark.parametrize(
    "dgrad, wants_dx, chosen",
    [
        ((1.0, 1e-4), False, "wgrad"),
        ((1.0, 1e-4), True, "wgrad"),  # dgrad is cuDNN's, and both gradients are written
        ((1e-5, 1e-4), True, "dgrad wgrad"),  # a kernel's that reads the pooled one
    ],
)
def test_dgrad_beside_windows_is_the_cheaper_of_a_kernels_and_cudnns(launch_table, dgrad, wants_dx, chosen):
    launch_table(table(1.0, 1e-3, 1e-6, dgrad))
    assert selection.by_kernel(replace(FIRST, kind="forward"), H200, wants_dx) == chosen


def test_what_windows_save_must_pay_for_the_second_gradient(launch_table):
    least, again = selection.MARGIN * modelled(), selection._pooled_again(FIRST, H200)
    for saved, chosen in ((0.9 * again, ""), (1.1 * again, "wgrad")):
        launch_table(table(1.0, least + saved, 1e-9, (1.0, 1e-4)))
        assert selection.by_kernel(replace(FIRST, kind="forward"), H200) == chosen


# In the block


@runs
@pytest.mark.parametrize("by_kernel", ["wgrad", "dgrad wgrad"])
def test_the_block_reads_the_pooled_gradient_by_windows_and_that_of_all_outputs_by_cudnn(by_kernel):
    case = Case(n=3, c=8, o=64, map=(5, 6), pool=True, gate=True, residual=False, spatial=False)
    case |= {"activation": "silu", "training": True, "by_kernel": by_kernel}
    inputs = conv_bn_act.SPEC.make(case, torch.float16, DEVICE)
    named = {name: value for name, value in inputs.items() if name not in ("running", "training")}
    _, stats, _, u, argmax, rstd, *_ = conv_bn_act._train(**named)
    dy = torch.randn_like(u)
    saved = (inputs["x"], inputs["filters"], u, stats, rstd, inputs["weight"], inputs["bias"], inputs["gate"])

    def gradients(order: str, kinds: str) -> tuple[tuple, list[str]]:
        arguments = (argmax, dy, None, *saved, "silu", True, kinds)
        with selection.only(order=order):
            with launch.recording() as launched:
                conv_bn_act._train_backward(*arguments)
            return conv_bn_act._train_backward(*arguments), [one.name for one in launched]

    found, names = gradients("windows", by_kernel)
    assert "_window_wgrad" in names and "_conv_wgrad" not in names
    assert names.count("_gradient") == (1 if by_kernel == "dgrad wgrad" else 2)
    for got, want in zip(found[:4], gradients("rows", "")[0]):  # the fifth is of 8 bits
        assert_near(got, want.double(), 2e-3)
