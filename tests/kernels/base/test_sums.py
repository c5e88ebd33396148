from __future__ import annotations

import pytest
import torch
from helpers import assert_near

from kernels.base import launch, sums
from kernels.base.chips import AIMED_AT

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

pytestmark = pytest.mark.skipif(not launch.runnable(DEVICE), reason="kernels do not run here")


@pytest.mark.parametrize("splits, size", [(1, 700), (3, 5), (7, 1029), (130, 33), (1029, 13)])
def test_parts_of_any_number_and_size_are_added_up(splits, size):
    partial = torch.randn(splits, size, device=DEVICE)
    total = torch.full((size,), torch.nan, device=DEVICE)
    sums.sum_splits(partial, total)
    assert_near(total, partial.double().sum(0), 1e-6)


def test_one_launch_writes_sums_of_two_dtypes():
    partial = torch.randn(9, 3 * 5 + 7, device=DEVICE)
    first, rest = torch.full((3, 5), torch.nan).half().to(DEVICE), torch.full((7,), torch.nan, device=DEVICE)
    sums.sum_splits(partial, first, rest)
    expected = partial.double().sum(0)
    assert_near(first.flatten(), expected[:15], 1e-3)
    assert_near(rest, expected[15:], 1e-6)


@pytest.mark.parametrize("splits", [4, 16, 120, 512])
@pytest.mark.parametrize("columns", [24 * 64 * 9, 256 * 256 * 9])
def test_no_program_waits_twice_and_all_of_a_gpu_takes_part(splits, columns):
    with launch.recording() as launched:
        sums.sum_splits(torch.empty(splits, columns, device="meta"), torch.empty(columns, device="meta"))
    (one,) = launched
    assert one.constants["ROWS"] >= splits
    assert one.grid[0] > 0.8 * AIMED_AT.multiprocessors
    assert one.constants["ROWS"] * one.constants["COLS"] <= sums.MOST
