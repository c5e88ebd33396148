"""A pooled block's forward pass down columns of its pooling windows, and a block with both its passes so."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import pytest
import torch
import torch.nn.functional as F
from counting import counting
from torch._subclasses.fake_tensor import FakeTensorMode

from bench.tune import measure
from kernels import conv_bn_act
from kernels.base import launch
from kernels.base.chips import TARGETS
from kernels.base.correctness import check, execute
from kernels.base.spec import Case
from kernels.convolution import conv, selection, tiling
from kernels.convolution.tiling import Config, Problem

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
H200 = TARGETS[90]
FIRST = Problem("forward", 1536, 31, 31, 24, 64, pool=True)  # of record94
CONFIG = Config("windows", 64 if DEVICE == "cuda" else 16, 32, 32, 4, 2, descriptors=True, splits=3)
BLOCK = {"pool": True, "residual": True, "activation": "silu", "training": True, "spatial": True}

runs = pytest.mark.skipif(
    not launch.runnable(DEVICE), reason="no CUDA device, and triton is not installed or not interpreting"
)


def small(n: int, h: int, w: int, c: int, dtype: torch.dtype = torch.float16) -> Problem:
    return Problem("forward", n, h, w, c, 32, pool=True, dtype=dtype)


@runs
@pytest.mark.parametrize(
    "problem, config",
    [
        (
            small(19, 7, 5, 24),
            replace(CONFIG, depth=64),
        ),  # pieces of 64 and 32 values, a tile that is not full
        (
            small(3, 6, 6, 16, torch.bfloat16),
            replace(CONFIG, cols=16, splits=2),
        ),  # edges that windows reach over
        (small(3, 9, 3, 8), replace(CONFIG, splits=100)),  # a window for each program
    ],
    ids=lambda value: selection.key(value) if isinstance(value, Problem) else "",
)
def test_the_forward_by_windows_is_that_of_float64_and_does_the_work_that_tiling_says(problem, config):
    t = measure.tensors(problem, DEVICE)
    t.u.fill_(float("nan")), t.argmax.fill_(77)
    if launch.INTERPRETED:
        with counting() as counts:
            measure.kernel(problem, config, t)()
        count = counts["_window_fwd"]
        assert (count.flops, count.programs, count.distinct - t.argmax.numel()) == (
            tiling.flops(problem, config),
            tiling.programs(problem, config),
            tiling.bytes(problem, config),
        )
    else:
        measure.kernel(problem, config, t)()
    assert not measure.wrong(problem, t, measure.expected(problem, t))


@runs
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_pool_takes_the_first_of_the_largest_as_stored_in_any_number_of_shares(dtype):
    problem = small(3, 7, 5, 8, dtype)
    t, found = measure.tensors(problem, DEVICE), []
    for tensor in (t.x, t.filters):
        tensor.copy_(torch.randint_like(tensor, -2, 3))  # every sum is exact, and many are equal
    if dtype == torch.float16:  # the interpreter cuts what it stores as bfloat16
        t.x[0] += 40  # sums that are not stored exactly
    for splits in (1, 4):
        measure.kernel(problem, replace(CONFIG, splits=splits), t)()
        found.append((t.u.clone(), t.argmax.clone()))
    z = F.conv2d(t.x.double(), t.filters.double(), padding=1).to(dtype).double()
    pooled, flat = F.max_pool2d(z, 2, return_indices=True)
    for u, argmax in found:
        assert torch.equal(u.double(), pooled)
        assert torch.equal(argmax.long(), flat // 5 % 2 * 2 + flat % 5 % 2)


@runs
def test_nan_is_passed_on_from_each_place_of_a_window():
    problem = small(4, 2, 2, 8)
    t = measure.tensors(problem, DEVICE)
    t.filters[:, :, 0], t.filters[:, :, 2], t.filters[..., 0], t.filters[..., 2] = 0, 0, 0, 0
    for place in range(4):
        t.x[place, :, place // 2, place % 2] = float("nan")
    measure.kernel(problem, CONFIG, t)()
    assert t.u.isnan().all()


def test_turns_are_the_windows_and_one_more_wherever_a_column_begins():
    for n, splits in ((1536, 132), (1000, 7), (64, 1), (64, 1000)):
        problem, config = replace(FIRST, n=n), replace(CONFIG, rows=64, splits=splits)
        share, shares = tiling.shares(problem, config)
        steps, turns = tiling.steps(problem, config), 0
        for begin in range(0, share * shares, share):
            end = min(begin + share, steps)
            assert begin < end
            turns += end - begin + len({step // 15 for step in range(begin, end)})
        assert tiling.turns(problem, config) == turns


def test_a_forward_pass_by_windows_fills_the_chip_with_two_programs_on_each_multiprocessor():
    with selection.only(order="windows"):
        config = selection.choose(FIRST, H200)
    assert config.descriptors
    assert tiling.programs(FIRST, config) == 2 * H200.multiprocessors
    assert tiling.flops(FIRST, config) < 1.5 * tiling.useful(FIRST)


def test_a_forward_pass_has_another_form_where_no_descriptor_can_begin():
    filters = torch.empty(64, 3, 3, 24, dtype=torch.float16).permute(0, 3, 1, 2)
    extents = FIRST.n, FIRST.h, FIRST.w, FIRST.c
    with FakeTensorMode(allow_non_fake_inputs=True):
        x = torch.empty(prod(extents) + 8, dtype=torch.float16)
        for offset, windows in ((0, True), (8, True), (1, False)):
            images = x[offset : prod(extents) + offset].view(extents).permute(0, 3, 1, 2)
            config = conv.configured("forward", images, filters, pool=True)[1]
            assert (config.order == "windows") == config.descriptors == windows


# The block


@runs
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("gate", [True, False])
def test_a_block_by_windows_is_that_of_float64_and_does_what_its_spec_declares(training, gate):
    case = Case("windows", n=3, c=24, o=64, map=(5, 6), gate=gate, **BLOCK | {"training": training})
    spec = conv_bn_act.SPEC if training else conv_bn_act.EVAL_SPEC
    with selection.only(order="windows", rows=16, cols=32, depth=32):
        assert not check(spec, case, torch.float16, DEVICE)
        if not launch.INTERPRETED or gate:
            return
        declared = spec.bytes(case, torch.float16)
        assert {"_window_fwd"} | ({"_window_wgrad", "_fold"} if training else set()) < declared.keys()
        with counting() as counts:
            execute(spec, spec.op, spec.make(case, torch.float16, DEVICE))
        work = spec.flops(case, torch.float16)
    assert counts.keys() == declared.keys()
    for name, count in counts.items():
        bytes = count.distinct if name in spec.shared_reads else count.bytes
        assert bytes == pytest.approx(declared[name], rel=0.05), name
        assert count.flops == work.get(name, 0), name
