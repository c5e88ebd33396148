"""Launch configurations that are worth a try for a pass of a convolution, and what each is modelled to take.

    candidates(problem, chip), model(problem, config, chip)
    with only(order="rows", rows=16): ...

What is chosen among them is selection.py's; inside `only` it is one with these fields, for tests.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from math import hypot, prod

import torch

from ..base.chips import TARGETS, Chip
from ..base.launch import cdiv, power_of_2, short
from . import tiling
from .tiling import Config, Problem

# Tiles worth a try: (rows, cols, depth, warps, stages). One is cut down to a pass that is smaller.
TILES: dict[str, tuple[tuple[int, ...], ...]] = {
    "pooled forward": (
        (128, 128, 64, 8, 3),
        (128, 128, 32, 8, 4),
        (128, 64, 64, 8, 3),
        (128, 64, 64, 4, 3),
        (64, 128, 64, 8, 3),
        (64, 128, 64, 4, 3),
        (64, 64, 64, 4, 3),
        (64, 256, 64, 8, 3),
        (256, 64, 64, 8, 3),
    ),
    "pooled forward by rows": (
        (128, 64, 64, 8, 3),
        (128, 64, 32, 8, 4),
        (64, 128, 64, 8, 3),
        (64, 64, 64, 4, 3),
    ),
    "forward": (
        (128, 128, 64, 8, 3),
        (128, 128, 32, 8, 4),
        (128, 64, 64, 8, 3),
        (128, 64, 64, 4, 3),
        (64, 128, 64, 4, 3),
        (64, 64, 64, 4, 3),
        (64, 256, 64, 8, 3),
        (256, 128, 64, 8, 3),
    ),
    "gradient": (
        (128, 128, 64, 8, 3),
        (128, 128, 64, 4, 3),
        (128, 128, 64, 8, 2),
        (128, 128, 32, 8, 4),
        (128, 64, 64, 8, 3),
        (128, 64, 64, 4, 3),
        (64, 128, 64, 4, 3),
        (64, 64, 64, 4, 3),
        (64, 256, 64, 8, 3),
        (128, 256, 64, 8, 3),
        (256, 128, 64, 8, 3),
        (256, 64, 64, 8, 3),
    ),
    "windows forward": ((64, 32, 64, 4, 3), (64, 32, 64, 4, 2)),
    "windows": ((64, 64, 64, 8, 3), (64, 64, 64, 8, 2)),
    "windows of 32 channels": ((64, 128, 32, 8, 3),),  # with 64 windows a step it spills
    "tf32": ((128, 64, 32, 8, 3), (64, 128, 32, 8, 3), (64, 64, 32, 4, 3)),
    "float32": ((64, 64, 16, 8, 3), (64, 64, 16, 8, 2), (32, 32, 16, 4, 3)),
}
# Tiles that spill registers, and for which capabilities: those that would be chosen. The others that do are
# dropped when they are measured, and what is chosen is checked ahead of time.
SPILLING: dict[tuple[str, tuple[int, ...]], tuple[int, ...]] = {
    ("pooled forward", (128, 64, 64, 8, 3)): (80, 89),
    ("pooled forward", (128, 64, 64, 4, 3)): (80, 89),
    ("pooled forward", (64, 64, 64, 8, 3)): (80,),
    ("pooled forward", (64, 64, 64, 4, 3)): (89,),
    ("pooled forward", (256, 64, 64, 8, 3)): (89,),
    ("pooled forward", (256, 64, 16, 4, 3)): (80, 90, 100),
    ("pooled forward by rows", (128, 64, 32, 8, 3)): (89, 100),
    ("pooled forward by rows", (128, 64, 32, 8, 4)): (100,),
    ("pooled forward by rows", (64, 64, 64, 4, 3)): (89,),
    ("forward", (64, 64, 64, 8, 3)): (89,),
    ("forward", (256, 128, 64, 8, 3)): (80, 90, 100),  # on 9.0 with a gate
    ("gradient", (256, 128, 64, 8, 3)): (80, 89),
    ("gradient", (128, 128, 64, 4, 3)): (89,),
    ("gradient", (64, 16, 64, 2, 3)): (100,),
    ("gradient", (128, 32, 64, 8, 3)): (80, 89),
    ("tf32", (128, 64, 32, 8, 3)): (89,),
    ("float32", (64, 64, 16, 8, 3)): (80, 89),
    ("float32", (32, 32, 16, 4, 3)): (90,),
    ("float32", (32, 16, 16, 2, 3)): (100,),
}
# A step of depth along a flat axis of taps and channels is at most so long, for the last one wastes its rest.
FLAT = 32
# The work that a pass may do, in multiples of what is useful, wherever some candidate does no more.
WORK = {"forward": 1.05, "dgrad": 1.10, "wgrad": 1.20}


def precision(problem: Problem) -> str:
    """The dtype, where float32 is tf32 if torch is told so, as in the kernels."""
    tf32 = problem.dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32
    return "tf32" if tf32 else short(problem.dtype)


# Candidates

_only: dict = {}


@contextlib.contextmanager
def only(**having) -> Iterator[None]:
    """Inside, only configurations that have these fields are taken, and the table is not asked. Where no
    candidate has them they are forced on all, but descriptors and the order `windows` only where there can be
    any: only(rows=16, cols=16, depth=16) is for the interpreter. `splits` means wgrad alone.
    """
    global _only
    if unknown := having.keys() - {field.name for field in fields(Config)}:
        raise ValueError(f"only: got {', '.join(sorted(unknown))}, accepted are fields of Config")
    before, _only = _only, having
    try:
        yield
    finally:
        _only = before


def restricted() -> bool:
    """Whether `only` is in force."""
    return bool(_only)


def candidates(problem: Problem, chip: Chip) -> list[Config]:
    """Configurations that the chip can launch, each doing at most the work of WORK if one can."""
    found: dict[Config, int] = {}
    for order in ("images", "rows"):
        for tile in dict.fromkeys(_cut(problem, *tile) for tile in TILES[_family(problem, order)]):
            for config in _variants(problem, Config(order, *tile), chip):
                found[config] = tiling.flops(problem, config)
    bound = max(WORK[problem.kind] * tiling.useful(problem), 1.05 * min(found.values()))
    few = [config for config, work in found.items() if work <= bound]
    return _having(problem, few + by_windows(problem, chip), chip)


def by_windows(problem: Problem, chip: Chip) -> list[Config]:
    """Those of order `windows`, whose work is 4/3 of the useful; as many splits as fill the chip once."""
    if not tiling.windowed(problem):
        return []
    found = {}
    for tile in TILES[_family(problem, "windows")]:
        rows, cols, depth, warps, stages = tile
        forward, piece = problem.kind == "forward", power_of_2(4 * problem.c + 1) // 2
        if forward:
            depth = min(depth, piece)
        else:
            cols = min(cols, piece)
        config = Config("windows", rows, cols, depth, warps, stages, forward)
        if fits(problem, config, chip):
            slots = chip.multiprocessors * residents(problem, config, chip)
            config = replace(config, splits=max(1, slots // (problem.o // (cols if forward else rows))))
            found[replace(config, splits=tiling.shares(problem, config)[1])] = None
    return list(found)


def _family(problem: Problem, order: str) -> str:
    if order == "windows":
        return order + " forward" * (problem.kind == "forward") + " of 32 channels" * (problem.c > 24)
    if problem.dtype.itemsize > 2:
        return precision(problem)
    if problem.kind != "forward":
        return "gradient"
    return "pooled forward" + " by rows" * (order == "rows") if problem.pool else "forward"


def _cut(problem: Problem, rows: int, cols: int, depth: int, warps: int, stages: int) -> tuple[int, ...]:
    """A tile no larger than the pass, whose step of channels divides them or else is one of a flat axis. Each
    thread keeps 16 sums (8 without tensor cores), and above 4 warps it loads 16 bytes of both operands.
    """

    def within(tile: int, extent: int) -> int:
        return min(tile, max(16, power_of_2(extent)))

    def step(tile: int, channels: int, flat: int) -> int:
        divisor = channels & -channels  # the largest power of two that divides them
        return min(tile, divisor) if divisor >= 16 else within(min(tile, flat), problem.size**2 * channels)

    if problem.kind == "wgrad":  # whose columns waste less than they spare of dz, read again for each tile
        rows, cols = within(rows, problem.o), step(cols, problem.c, cols)
    else:
        cols = within(cols, problem.columns)
        depth = step(depth, problem.c if problem.kind == "forward" else problem.o, FLAT)
    loads = min(rows, cols) * depth * problem.dtype.itemsize // (16 * 32)
    sums = rows * cols // ((8 if precision(problem) == "float32" else 16) * 32)
    return rows, cols, depth, max(1, min(warps, max(4, loads), sums)), stages


def _variants(problem: Problem, config: Config, chip: Chip) -> Iterator[Config]:
    """With and without descriptors, more or less split, where the chip can; a flat axis by rows alone. Of
    equal modelled times the first is taken: on an H200 156 of 172 pairs are faster with descriptors.
    """
    if config.order == "images" and tiling.flat(problem, config):
        return
    for descriptors in (True, False):
        for splits in _splits(problem, config, chip) if problem.kind == "wgrad" else (1,):
            variant = replace(config, descriptors=descriptors, splits=splits)
            if fits(problem, variant, chip):
                yield variant


def _splits(problem: Problem, config: Config, chip: Chip) -> list[int]:
    """1, and what fills the chip once and twice, with 8 steps of depth or more to each."""
    slots = chip.multiprocessors * residents(problem, config, chip)
    tiles = tiling.programs(problem, config)
    steps = tiling.flops(problem, config) // (2 * config.rows * config.cols * config.depth * tiles)
    return sorted({max(1, min(slots * times // tiles, steps // 8)) for times in (0, 1, 2)})


def boxes(problem: Problem, config: Config, chip: Chip) -> bool:
    """Whether tiles can come through descriptors: 9.0 on, strides of 16 bytes, boxes of at most 256."""
    item = problem.dtype.itemsize
    strides = [problem.c * item] if problem.kind == "forward" else [problem.c * item, problem.o * item]
    if problem.pool and problem.kind != "forward":
        strides.append(problem.o)  # of argmax
    return (
        chip.cc >= 90
        and config.order == "images"
        and not tiling.flat(problem, config)
        and all(stride % 16 == 0 for stride in strides)
        and max(config.rows, config.cols, config.depth) <= 256
    )


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
    expanded = (config.stages - 1) * config.depth * config.rows if _expanded(problem) else 0
    return tiles + expanded + 256


def fits(problem: Problem, config: Config, chip: Chip) -> bool:
    """Whether the chip can launch a configuration, and is not known to spill then."""
    if config.order == "windows":
        if chip.cc // 10 != 9:  # its registers are known there
            return False
    elif config.descriptors and not boxes(problem, config, chip):
        return False
    return shared_bytes(problem, config) <= chip.shared * 1024 and not spills(problem, config, chip)


def spills(problem: Problem, config: Config, chip: Chip) -> bool:
    """Whether SPILLING says so."""
    tile = config.rows, config.cols, config.depth, config.warps, config.stages
    like = min(TARGETS, key=lambda cc: abs(cc - chip.cc))
    return like in SPILLING.get((_family(problem, config.order), tile), ())


def _having(problem: Problem, found: list[Config], chip: Chip) -> list[Config]:
    wanted = {name: value for name, value in _only.items() if name != "splits" or problem.kind == "wgrad"}
    if wanted.get("order") == "windows" and not by_windows(problem, chip):
        del wanted["order"]
    if having := [c for c in found if all(getattr(c, name) == value for name, value in wanted.items())]:
        return having
    forced = [replace(config, **wanted) for config in found]
    return list(
        dict.fromkeys(replace(c, descriptors=c.descriptors and boxes(problem, c, chip)) for c in forced)
    )


# The model


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


def model(
    problem: Problem, config: Config, chip: Chip, constants: Constants = FITTED, serial: bool = False
) -> float:
    """Seconds of a pass by arithmetic: its programs' steps on the busiest multiprocessor, or the bytes that
    device memory moves, and the launches; by windows as `_windows_model` says. `serial`: each product is
    waited for before the next.

    Programs that are resident together share tensor cores, L2 and issue slots, and the root of the summed
    squares of what a step takes of these is its time; but no step takes less than one alone, in which
    products follow instructions. The multiprocessor has programs / multiprocessors, rounded up, to do, as
    many at once as it holds. A step loads its tiles from L2, those of a pooled gradient with a byte of argmax
    beside each value; device memory moves each tensor once, the partial sums of wgrad twice.
    """
    if config.order == "windows":
        return _windows_model(problem, config, chip)
    programs = tiling.programs(problem, config)
    itemsize = problem.dtype.itemsize
    rate = chip.flops["tf32" if precision(problem) == "tf32" else problem.dtype]
    flops = 2 * config.rows * config.cols * config.depth  # of a step
    steps = tiling.flops(problem, config) / (flops * programs)
    loaded = config.depth * (config.rows * (itemsize + _expanded(problem)) + config.cols * itemsize)
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
    seconds = max(work, tiling.bytes(problem, config) / chip.bandwidth) + chip.launch
    if problem.kind == "wgrad":
        partial = 2 * 4 * config.splits * problem.o * problem.columns
        seconds += constants.sums + partial / constants.partial
    return seconds


def _windows_model(problem: Problem, config: Config, chip: Chip) -> float:
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


def _expanded(problem: Problem) -> bool:
    """Whether values are expanded as they are loaded."""
    return problem.pool and problem.kind != "forward"


def instructions(problem: Problem, config: Config, gather: float = FITTED.gather) -> float:
    """Of a warp in a step of depth, about, as the compiler was seen to make them for 9.0; `gather` is fitted,
    for what it takes of them depends on how they were unrolled.
    """
    threads = 32 * config.warps
    loads = (config.rows + config.cols) * config.depth * problem.dtype.itemsize / (16 * threads)
    found = 120 + (0 if config.descriptors else 2 * loads)
    found += gather * loads if tiling.flat(problem, config) else 0
    return found + (7 * config.rows * config.depth / threads if _expanded(problem) else 0)


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
