"""What a launch of a pass of a convolution is modelled to take, and what it needs of a multiprocessor.

    seconds(problem, config, chip)        of the pass
    residents(problem, config, chip)      programs that it holds at once, by registers and shared_bytes

By arithmetic from tiling.py's counts and a chip's rates; `Constants` are what was fitted to measurements.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import hypot, prod

import torch

from ..base.chips import Chip
from ..base.launch import cdiv, short
from . import tiling
from .tiling import Config, Problem


@dataclass(frozen=True)
class Constants:
    """What the model takes from measurements."""

    reuse: float  # times that tiles come faster than L2's bandwidth says: several programs load the same
    issue: float  # instructions a second of a scheduler, of which a multiprocessor has four
    gather: float  # instructions, of a load of 16 bytes whose taps and channels are one axis
    wait: float  # seconds, for one of the products of depth 16 that are waited for one by one
    output: float  # seconds, of an output of a forward tile: it is rounded, stored, and in its statistics
    start: float  # seconds, of programs that begin together
    sums: float  # seconds, of the launch that adds up wgrad's splits
    partial: float  # bytes a second of these


# By `python -m bench tune --fit bench/results/h200/conv-passes.json`.
FITTED = Constants(
    reuse=2.59,
    issue=1.04e9,
    gather=25.3,
    wait=6.22e-8,
    output=9.75e-11,
    start=8.19e-7,
    sums=1.45e-5,
    partial=2.8e12,
)


def seconds(
    problem: Problem, config: Config, chip: Chip, constants: Constants = FITTED, serial: bool = False
) -> float:
    """Seconds of a pass by arithmetic: its programs' steps on the busiest multiprocessor, or the bytes that
    device memory moves, and the launches; by windows as `_by_windows` says. `serial`: each product is
    waited for before the next.

    Programs that are resident together share tensor cores, L2 and issue slots, and the root of the summed
    squares of what a step takes of these is its time; but no step takes less than one alone, in which
    products follow instructions. The multiprocessor has programs / multiprocessors, rounded up, to do, as
    many at once as it holds. A step loads its tiles from L2, those of a pooled gradient with a byte of argmax
    beside each value; device memory moves each tensor once, the partial sums of wgrad twice.
    """
    if config.order == "windows":
        return _by_windows(problem, config, chip)
    programs = tiling.programs(problem, config)
    itemsize = problem.dtype.itemsize
    rate = chip.flops["tf32" if precision(problem) == "tf32" else problem.dtype]
    flops = 2 * config.rows * config.cols * config.depth  # of a step
    steps = tiling.flops(problem, config) / (flops * programs)
    loaded = config.depth * (config.rows * (itemsize + problem.expanded) + config.cols * itemsize)
    products = flops * chip.multiprocessors / rate
    loads = loaded * chip.multiprocessors / (chip.l2_bandwidth * constants.reuse)
    issued = instructions(problem, config, constants.gather) * config.warps / (4 * constants.issue)
    shared = hypot(products, loads, issued)
    alone = products + issued + serial * constants.wait * config.depth / 16
    forward = problem.kind == "forward"
    outputs = forward * config.rows * config.cols * (4 if problem.pool else 1) * constants.output

    def together(count: int) -> float:
        return steps * max(count * shared, alone) + count * outputs + constants.start if count else 0.0

    rounds = cdiv(programs, chip.multiprocessors)
    full, rest = divmod(rounds, most := min(rounds, residents(problem, config, chip)))
    work = full * together(most) + together(rest)
    total = max(work, tiling.bytes(problem, config) / chip.bandwidth) + chip.launch
    if problem.kind == "wgrad":
        partial = 2 * 4 * config.splits * problem.o * problem.columns
        total += constants.sums + partial / constants.partial
    return total


def _by_windows(problem: Problem, config: Config, chip: Chip) -> float:
    """Of order `windows`: tensor cores, instruction slots and L2, half of whose rest the longest hides, and
    what is another launch: of wgrad, whose partial sums are written at the end and read again, and of forward
    (`apart`).

    The 4096 FLOPs a clock of the tensor cores of a 9.0 multiprocessor make the clock of their rate.
    """
    rate, forward = chip.flops[problem.dtype], problem.kind == "forward"
    programs = tiling.programs(problem, config)
    waves = cdiv(programs, chip.multiprocessors) * chip.multiprocessors / programs
    tensor = tiling.flops(problem, config) * waves / rate
    blocks = problem.o // (config.cols if forward else config.rows)
    turns = blocks * (tiling.turns if forward else tiling.steps)(problem, config)
    slots = turns * waves * config.warps / 4 * _instructions(problem, config) * 4096 / rate
    loaded = turns * (config.rows if forward else config.depth) * _window_bytes(problem, config)
    parts = tensor, slots, loaded / chip.l2_bandwidth
    work = max((max(parts) + sum(parts)) / 2, tiling.bytes(problem, config) / chip.bandwidth)
    if forward:
        return work + chip.launch + apart(problem, chip)
    return work + 2 * 4 * tiling.partials(problem, config) / chip.bandwidth + 2 * chip.launch


def apart(problem: Problem, chip: Chip) -> float:
    """Seconds of the pass over u that makes the statistics for a forward pass by windows."""
    values = problem.n * problem.o * prod(problem.output)
    return values * problem.dtype.itemsize / chip.bandwidth + chip.launch


def _window_bytes(problem: Problem, config: Config) -> int:
    """Loaded of a window, by order `windows`: 8 pixels; 16, the gradient and argmax."""
    if problem.kind == "forward":
        return 8 * problem.c * problem.dtype.itemsize
    return 16 * problem.c * problem.dtype.itemsize + config.rows * (problem.dtype.itemsize + 1)


def _instructions(problem: Problem, config: Config) -> float:
    """Of a warp, in a step of order `windows`, about, as compiled for 9.0: forward 703 with 24 channels;
    wgrad 526 of 64 windows and 331 of 32 (345 with 32 channels).
    """
    return 703 if problem.kind == "forward" else 140 + 6 * config.depth


def instructions(problem: Problem, config: Config, gather: float = FITTED.gather) -> float:
    """Of a warp in a step of depth, about, as the compiler was seen to make them for 9.0; `gather` is fitted,
    for what it takes of them depends on how they were unrolled.
    """
    threads = 32 * config.warps
    loads = (config.rows + config.cols) * config.depth * problem.dtype.itemsize / (16 * threads)
    count = 120 + (0 if config.descriptors else 2 * loads)
    count += gather * loads if tiling.flat(problem, config) else 0
    return count + (7 * config.rows * config.depth / threads if problem.expanded else 0)


def residents(problem: Problem, config: Config, chip: Chip) -> int:
    """Programs that a multiprocessor holds at once: by registers, shared memory and warps."""
    by_registers = 65536 // (cdiv(registers(problem, config, chip), 8) * 8 * 32 * config.warps)
    by_shared = (chip.shared + 1) // (shared_bytes(problem, config) / 1024 + 1)  # 1 KiB each is the system's
    return int(max(1, min(by_registers, by_shared, 48 // config.warps)))


def registers(problem: Problem, config: Config, chip: Chip) -> int:
    """Of a thread, about, from its sums: as the compiler was seen to need, more where it also holds operands
    (below 9.0). Not from the ahead-of-time code: that follows from what is chosen.
    """
    sums = config.rows * config.cols / (32 * config.warps)
    if config.order == "windows":  # forward two rows of z, wgrad a program's share of all sums
        sums = config.rows * (4 * config.cols if problem.kind == "forward" else 24 * problem.c)
        return min(255, round(100 + sums / (32 * config.warps)))
    if problem.kind != "forward":
        return min(255, round(40 + (1.2 if chip.cc >= 90 else 1.8) * sums))
    return min(255, round(50 + 3 * sums if problem.pool else 30 + 2.5 * sums))


def shared_bytes(problem: Problem, config: Config) -> int:
    """Shared memory of a program, at most: the tiles of all stages, those of argmax for all but one where a
    pooled gradient is expanded, barriers. By windows, pixels, gradients and argmax of all stages, and what
    stays.
    """
    if config.order == "windows" and problem.kind == "forward":  # two rows of x a stage, and the filters
        tiles = config.stages * 2 * config.rows + 3 * 2 * config.cols
        return tiles * 4 * problem.c * problem.dtype.itemsize + 4352
    if config.order == "windows":
        return (config.stages * _window_bytes(problem, config) + config.rows) * config.depth + 256
    tiles = config.stages * (config.rows + config.cols) * config.depth * problem.dtype.itemsize
    expanded = (config.stages - 1) * config.depth * config.rows if problem.expanded else 0
    return tiles + expanded + 256


def precision(problem: Problem) -> str:
    """The dtype, where float32 is tf32 if torch is told so, as in the kernels; float8 is both of 8 bits."""
    if problem.dtype == tiling.FLOAT8:
        return "float8"
    tf32 = problem.dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32
    return "tf32" if tf32 else short(problem.dtype)
