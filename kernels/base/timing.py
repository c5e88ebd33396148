"""How long a call takes on its device: seconds per call, in samples.

    copies = [make_inputs() for _ in range(sets(bytes_of_one, device))]
    timing = measure([partial(op, **inputs) for inputs in copies], device)
    timing.median, timing.spread                seconds per call; the distance between the quartiles

On CUDA many calls are captured in one graph, and its replays are timed by events: neither Python nor launch
gaps are in the number. On a CPU the clock is the wall clock, and there is one set of inputs.

Rotation keeps the L2 cache cold, and no time goes into flushing it: calls go round several sets of inputs,
whose bytes together exceed twice the cache, and outputs are kept until their set's next turn. So by the time
a set is read again, the others have pushed it out, and nothing is found in the cache that the call itself
did not put there. At most SETS sets are made. Inputs below 2 * L2 / SETS bytes, 0.8 MB on a chip with 50 MB
of L2, therefore stay in it: logits, gates, statistics. Such a call takes a few microseconds, most of them
latency, and in training it finds its inputs in L2 as well, where another op has just written them; but its
bytes per second may exceed what device memory can do.

`copy` and `matmul` are the ceilings of the chip, timed the same way in the same process; `copy_rate` is
that of a copy much larger than L2. On CUDA a copy is a kernel's, 16 bytes a thread and access: the memcpy
node that a graph holds for `Tensor.copy_` reached 2.7 TB/s on an H200, where a kernel copies at 4.3.
`copier` says which it is.
"""

from __future__ import annotations

import contextlib
import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor

from .launch import INTERPRETED, cdiv, launch, runnable, tl, triton

Call = Callable[[], object]
Device = str | torch.device

SAMPLES = 20
SETS = 128  # at most so many copies of a call's inputs
CALLS = 4096  # in one graph, at most
# A sample is at least so long, as far as CALLS allow: what is between two replays takes microseconds.
SAMPLE_SECONDS = {"cuda": 2e-3, "cpu": 1e-2}
SIDE = {"cuda": 8192, "cpu": 1024}  # of the square matrices of `matmul`
COPIED = {"cuda": 1 << 30, "cpu": 1 << 27}  # bytes that `copy_rate` moves
WORDS = 16  # of eight bytes, that a copy moves at least: so many have full accesses
BLOCK = 2048  # words of a program of the copy


@dataclass(frozen=True)
class Timing:
    """Samples of seconds per call."""

    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def spread(self) -> float:
        """The distance between the quartiles, 0 for a single sample."""
        if len(self.samples) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.samples, n=4, method="inclusive")
        return high - low


def measure(calls: Sequence[Call], device: Device, samples: int = SAMPLES) -> Timing:
    """Times calls that do the same on different memory. On CUDA they must not wait for the device, so that a
    graph can hold them; RuntimeError where they do.
    """
    take = sampler(calls, device)
    return Timing(tuple(take() for _ in range(samples)))


def sampler(calls: Sequence[Call], device: Device) -> Callable[[], float]:
    """A function that takes one sample: seconds per call. `calls` are warmed up, and captured on CUDA."""
    device = torch.device(device)
    return _device_sampler(calls, device) if device.type == "cuda" else _wall_sampler(calls)


def about(seconds: float) -> str:
    """A rough duration in words."""
    return "less than a minute" if seconds < 60 else f"about {seconds / 60:.0f} min"


def repeats(seconds: float, calls: int, kind: str) -> int:
    """How often to go round `calls` calls that take `seconds` together, for one sample."""
    return max(1, min(math.ceil(SAMPLE_SECONDS[kind] / max(seconds, 1e-9)), CALLS // calls))


def sets(nbytes: int, device: Device) -> int:
    """How many sets of inputs of `nbytes` a device needs: see `rotation`; 1 on a CPU."""
    device = torch.device(device)
    if device.type != "cuda":
        return 1
    return rotation(nbytes, torch.cuda.get_device_properties(device).L2_cache_size)


def rotation(nbytes: int, cache: int) -> int:
    """The least count, 2 to SETS, of sets of `nbytes` that together exceed twice `cache` bytes."""
    return min(max(2, 2 * cache // max(1, nbytes) + 1), SETS)


@triton.jit
def _copy(
    p_source,  # int64 [n]
    p_target,  # int64 [n]
    n,
    BLOCK: tl.constexpr,
):
    o_words = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    m_words = o_words < n
    tl.store(p_target + o_words, tl.load(p_source + o_words, mask=m_words, other=0), mask=m_words)


def copy_by_kernel(target: Tensor, source: Tensor) -> None:
    """target = source, int64 [n] each."""
    n = source.numel()
    launch(_copy, (cdiv(n, BLOCK),), source, target, n, num_warps=8, BLOCK=BLOCK)


def copier(device: Device) -> str:
    """What `copy` times: "kernel", or without CUDA or triton "copy_", which is PyTorch's."""
    return "kernel" if runnable(device) and not INTERPRETED else "copy_"


def copy(size: int, device: Device, samples: int = SAMPLES) -> Timing:
    """Time to move `size` bytes, rounded up to 256, by copying: half of them read, half written."""
    words = max(1, cdiv(size, 16 * WORDS)) * WORDS
    function = copy_by_kernel if copier(device) == "kernel" else Tensor.copy_

    def one() -> Call:
        source, target = (torch.empty(words, dtype=torch.int64, device=device).random_() for _ in range(2))
        return partial(function, target, source)

    return measure([one() for _ in range(sets(size, device))], device, samples)


def copy_rate(device: Device, samples: int = SAMPLES) -> float:
    """Bytes per second of a large copy."""
    size = COPIED[torch.device(device).type]
    return size / copy(size, device, samples).median


def matmul(dtype: torch.dtype, device: Device, samples: int = SAMPLES) -> float:
    """FLOP/s of a large square matrix product in `dtype`, float32 under torch's current precision setting."""
    side = SIDE[torch.device(device).type]
    pairs = [
        [torch.randn(side, side, device=device).to(dtype) for _ in range(2)]
        for _ in range(sets(2 * side * side * dtype.itemsize, device))
    ]
    return 2 * side**3 / measure([partial(torch.mm, a, b) for a, b in pairs], device, samples).median


@contextlib.contextmanager
def aside(device: Device) -> Iterator[None]:
    """Inside, work is queued on the stream on which `measure` captures calls. Autograd runs a backward on the
    stream of its forward, so a forward whose backward alone is to be captured belongs in here.
    """
    device = torch.device(device)
    if device.type != "cuda":
        yield
        return
    with torch.cuda.device(device):
        stream = _stream(device)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            yield
        torch.cuda.current_stream().wait_stream(stream)


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def _wall_sampler(calls: Sequence[Call]) -> Callable[[], float]:
    def seconds(rounds: int) -> float:
        start = time.perf_counter()
        for _ in range(rounds):
            for call in calls:
                call()
        return time.perf_counter() - start

    seconds(1)  # warm-up
    rounds = repeats(seconds(1), len(calls), "cpu")
    return lambda: seconds(rounds) / (rounds * len(calls))


def _device_sampler(calls: Sequence[Call], device: torch.device) -> Callable[[], float]:
    with aside(device):
        for call in calls[:3]:  # compiles, loads modules, creates handles: no capture may
            call()
    with torch.cuda.device(device):
        torch.cuda.synchronize()
        once = _seconds(_capture(calls, 1, _stream(device)))
        rounds = repeats(once, len(calls), "cuda")
        graph = _capture(calls, rounds, _stream(device))

    def take() -> float:
        with torch.cuda.device(device):
            return _seconds(graph) / (rounds * len(calls))

    return take


def _capture(calls: Sequence[Call], rounds: int, stream: torch.cuda.Stream) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    kept: list = [None] * len(calls)  # a set's outputs, so that the next set's go elsewhere
    with no_collection(), torch.cuda.graph(graph, stream=stream):
        for _ in range(rounds):
            for i, call in enumerate(calls):
                kept[i] = call()
    return graph


def _seconds(graph: torch.cuda.CUDAGraph) -> float:
    """Of one replay. The replay before it keeps the device busy while the host queues events and replay."""
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    graph.replay()
    start.record()
    graph.replay()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop) / 1e3


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """A collection during a capture could unload a module, which ends the capture with an error."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
