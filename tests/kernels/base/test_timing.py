"""The timer: its arithmetic anywhere, the wall clock on a CPU, graphs and events where there is a GPU."""

import os
import subprocess
import sys
import time
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels.base import timing
from kernels.base.chips import TARGETS
from kernels.base.launch import INTERPRETED
from kernels.base.timing import Timing

MEGABYTE = 1 << 20


def test_median_and_spread_of_known_samples():
    known = Timing((5.0, 1.0, 2.0, 4.0, 3.0))
    assert (known.median, known.spread) == (3.0, 2.0)  # quartiles 2 and 4


def test_one_sample_has_no_spread():
    assert Timing((2.0,)).spread == 0.0


@given(st.integers(1, 1 << 32), st.integers(1, 1 << 28))
def test_rotated_sets_exceed_twice_the_cache_with_the_fewest_sets_or_reach_the_cap(nbytes, cache):
    count = timing.rotation(nbytes, cache)
    assert 2 <= count <= timing.SETS
    assert count * nbytes > 2 * cache or count == timing.SETS
    assert (count - 1) * nbytes <= 2 * cache or count == 2


def test_rotation_of_known_sizes():
    cache = 50 * MEGABYTE
    assert timing.rotation(0, cache) == timing.rotation(1000, cache) == timing.SETS
    assert timing.rotation(30 * MEGABYTE, cache) == 4
    assert timing.rotation(50 * MEGABYTE, cache) == 3  # two are no more than twice the cache
    assert timing.rotation(500 * MEGABYTE, cache) == 2


def test_a_cpu_needs_one_set():
    assert timing.sets(1, "cpu") == 1


@pytest.mark.parametrize("kind", timing.SAMPLE_SECONDS)
def test_a_sample_goes_round_until_it_is_long_enough(kind):
    wanted = timing.SAMPLE_SECONDS[kind]
    assert timing.repeats(wanted / 10, 4, kind) in (10, 11)
    assert timing.repeats(10 * wanted, 4, kind) == 1
    assert timing.repeats(0.0, 4, kind) * 4 == timing.CALLS
    assert timing.repeats(0.0, 10 * timing.CALLS, kind) == 1


def test_wall_clock_gives_seconds_per_call_of_as_many_samples_as_asked_for():
    pause = 0.02
    result = timing.measure([partial(time.sleep, pause)] * 4, "cpu", samples=3)
    assert len(result.samples) == 3
    assert pause <= min(result.samples) < 3 * pause


def test_every_set_is_called_equally_often():
    called = [0, 0, 0]

    def call(i):
        called[i] += 1

    timing.measure([partial(call, i) for i in range(3)], "cpu", samples=2)
    assert called[0] == called[1] == called[2] > 2


def test_copy_moves_half_of_the_bytes_each_way(monkeypatch):
    copied = []

    def note(calls, device, samples):
        for call in calls:
            target, source = call.args
            assert not torch.equal(target, source)
            call()
            assert torch.equal(target, source)
            copied.append(source.nbytes)
        return Timing((1.0,))

    monkeypatch.setattr(timing, "measure", note)
    for size in (4096, 4097, 0):
        timing.copy(size, "cpu")
    assert copied == [2048, 2176, 128]  # in whole words, of which a kernel copies two at a time


@pytest.mark.skipif(not INTERPRETED, reason="runs a kernel through the interpreter")
def test_a_kernel_copies_every_word_and_none_beside_them():
    n = timing.BLOCK + timing.WORDS
    source, target = torch.arange(n), torch.full((2 * n,), -1)
    timing.copy_by_kernel(target[:n], source)
    assert torch.equal(target[:n], source) and (target[n:] == -1).all()


@pytest.mark.skipif(not INTERPRETED, reason="records a kernel")
def test_the_copying_kernel_has_16_byte_accesses_on_every_chip(tmp_path):
    code = (
        "import torch\nfrom bench.check import aot\nfrom kernels.base import launch, timing\n"
        "from kernels.base.chips import TARGETS\n"
        "with launch.recording() as found:\n"
        "    timing.copy_by_kernel(*torch.zeros(2, 1 << 20, dtype=torch.int64))\n"
        "print([set(aot.compile_launch(found[0], cc).widths.values()) for cc in TARGETS])"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert found.stdout.strip() == str([{(16, 16)}] * len(TARGETS)), found.stderr


def test_a_copy_is_pytorchs_where_no_kernel_runs_at_speed():
    assert timing.copier("cpu") == "copy_"


def test_matmul_rate_counts_a_multiplication_and_an_addition_a_term(monkeypatch):
    monkeypatch.setattr(timing, "SIDE", {"cpu": 8})
    monkeypatch.setattr(timing, "measure", lambda *_: Timing((0.5,)))
    assert timing.matmul(torch.float32, "cpu") == 2 * 8**3 / 0.5


def test_copy_rate_is_bytes_read_and_written_by_a_second(monkeypatch):
    asked = []
    monkeypatch.setattr(timing, "copy", lambda *given: asked.append(given) or Timing((0.5,)))
    assert timing.copy_rate("cpu", samples=3) == 2 * timing.COPIED["cpu"]
    assert asked == [(timing.COPIED["cpu"], "cpu", 3)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_device_time_of_a_copy_grows_with_its_bytes_and_stays_below_the_memory_bandwidth():
    # Others on the card only slow a copy down, the longer one more: the least of samples taken in turn is
    # nearest to the card's own time, and there is no bound from above.
    sizes = 256 * MEGABYTE, 1024 * MEGABYTE
    turns = [[min(timing.copy(size, "cuda", samples=1).samples) for size in sizes] for _ in range(5)]
    small, large = map(min, zip(*turns))
    assert large > 2 * small
    assert 1024 * MEGABYTE / large < 10e12  # bytes/s: no chip has that, the L2 cache would


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_forward_and_backward_can_be_captured():
    x = torch.randn(1 << 20, device="cuda", requires_grad=True)

    def both():
        return torch.autograd.grad(x.sin().square().sum(), x)

    result = timing.measure([both, both], "cuda", samples=3)
    assert len(result.samples) == 3 and 0 < min(result.samples) < 1e-2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_backward_of_a_graph_made_before_can_be_captured():
    leaves = [torch.randn(1 << 20, device="cuda", requires_grad=True) for _ in range(2)]
    with timing.aside("cuda"):
        sums = [x.sin().square().sum() for x in leaves]
    backward = [partial(torch.autograd.grad, y, x, retain_graph=True) for y, x in zip(sums, leaves)]
    forward = [partial(torch.sin, x) for x in leaves]
    (gradient,) = backward[0]()
    assert torch.allclose(gradient, (2 * leaves[0]).sin(), atol=1e-6)
    both, one = (timing.measure(calls, "cuda", samples=3).median for calls in (backward, forward))
    assert 0 < one < both < 1e-2
