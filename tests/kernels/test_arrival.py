"""The last of a launch's programs, and the counters that launches share."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kernels import cross_entropy
from kernels.base import arrival, launch
from kernels.base.launch import tl, triton

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

pytestmark = pytest.mark.skipif(not launch.runnable(DEVICE), reason="kernels do not run here")


@triton.jit
def _ask(p_arrived, p_parts, p_said, p_seen, PROGRAMS: tl.constexpr):
    """Writes a part, asks whether it is the last, notes the answer and how many parts it then sees."""
    program = tl.program_id(0)
    tl.store(p_parts + program, 1)
    if arrival.last(p_arrived, tl.num_programs(0)):
        tl.store(p_said + program, 1)
        b_parts = tl.load(p_parts + tl.arange(0, PROGRAMS), cache_modifier=".cg")
        tl.store(p_seen, tl.sum(b_parts, axis=0))


@pytest.mark.parametrize("programs", [1, 8])
def test_one_program_of_each_launch_is_the_last_and_sees_all_parts(programs):
    counters = arrival.counters(torch.empty(0, device=DEVICE))
    for _ in range(3):
        parts, said, seen = torch.zeros(3, programs, dtype=torch.int32, device=DEVICE).unbind()
        launch.launch(_ask, (programs,), counters, parts, said, seen, PROGRAMS=programs)
        assert said.sum() == 1 and seen[0] == programs
        assert not counters.any()


def loss(n: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(n)
    logits = torch.randn(n, 10, generator=generator).to(DEVICE).requires_grad_()
    targets = torch.randint(0, 10, (n,), generator=generator).to(DEVICE)
    total, correct = cross_entropy.op(logits, targets, 0.2)
    total.backward()
    return total.detach(), correct, logits.grad


def test_launches_of_several_sizes_one_after_the_other_repeat_bit_for_bit():
    first = {n: loss(n) for n in (100, 1, 33, 256)}
    for n in (33, 33, 256, 1, 100, 33):
        assert all(map(torch.equal, loss(n), first[n]))
    assert not arrival.counters(first[1][0]).any()


@pytest.mark.skipif(DEVICE == "cpu", reason="graphs are captured on a CUDA device")
def test_captured_launches_repeat_between_uncaptured_ones_bit_for_bit():
    logits, targets = torch.randn(100, 10, device=DEVICE), torch.arange(100, device=DEVICE) % 10
    expected = [one.clone() for one in cross_entropy.op(logits, targets, 0.2)]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = [cross_entropy.op(logits, targets, 0.2) for _ in range(3)]
    for _ in range(3):
        graph.replay()
        between = cross_entropy.op(logits, targets, 0.2)
        for found in (between, *captured):
            assert all(map(torch.equal, found, expected))
