"""Launch configurations that are worth a try for a pass of a convolution.

    candidates(problem, chip)
    with only(order="rows", rows=16): ...

What each is modelled to take is model.py's, what is chosen among them selection.py's; inside `only` it is one
with these fields, for tests.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import fields, replace

from ..base.chips import TARGETS, Chip
from ..base.launch import power_of_2
from . import tiling
from .model import precision, residents, shared_bytes
from .tiling import FLOAT8, Config, Problem

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
    # Of 8 bits a step of 128 channels is as many bytes as one of 64 with 16.
    "float8 pooled forward": (
        (128, 128, 128, 8, 3),
        (128, 128, 64, 8, 4),
        (128, 64, 128, 8, 3),
        (128, 64, 128, 4, 3),
        (64, 128, 128, 4, 3),
        (64, 256, 128, 8, 3),
        (256, 64, 128, 8, 3),
        (64, 64, 128, 4, 3),
    ),
    "float8 forward": (
        (128, 128, 128, 8, 3),
        (128, 128, 128, 8, 4),
        (128, 128, 64, 8, 4),
        (256, 128, 128, 8, 3),
        (128, 64, 128, 4, 3),
        (64, 128, 128, 4, 3),
        (64, 256, 128, 8, 3),
        (64, 64, 128, 4, 3),
    ),
    "float8 gradient": (
        (128, 256, 128, 8, 3),
        (256, 128, 128, 8, 3),
        (128, 128, 128, 8, 3),
        (128, 128, 128, 8, 4),
        (128, 128, 128, 4, 3),
        (128, 64, 128, 4, 3),
        (64, 256, 128, 8, 3),
        (64, 128, 128, 4, 3),
        (64, 64, 128, 4, 3),
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
    ("gradient", (128, 32, 64, 4, 3)): (80,),
    ("float8 pooled forward", (128, 64, 64, 4, 3)): (89,),
    ("float8 pooled forward", (64, 128, 64, 4, 3)): (89,),
    ("float8 pooled forward", (256, 64, 32, 4, 3)): (89, 90, 100),
    ("float8 forward", (256, 128, 128, 8, 3)): (100,),
    ("float8 gradient", (128, 128, 128, 4, 3)): (89,),
    ("tf32", (128, 64, 32, 8, 3)): (89,),
    ("float32", (64, 64, 16, 8, 3)): (80, 89),
    ("float32", (32, 32, 16, 4, 3)): (90,),
    ("float32", (32, 16, 16, 2, 3)): (100,),
}
# A step of depth along a flat axis of taps and channels is at most so long, for the last one wastes its rest.
FLAT = 32
# The work that a pass may do, in multiples of what is useful, wherever some candidate does no more.
WORK = {"forward": 1.05, "dgrad": 1.10, "wgrad": 1.20}


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
    work: dict[Config, int] = {}
    for order in ("images", "rows"):
        for tile in dict.fromkeys(_cut(problem, *tile) for tile in TILES[_family(problem, order)]):
            for config in _variants(problem, Config(order, *tile), chip):
                work[config] = tiling.flops(problem, config)
    bound = max(WORK[problem.kind] * tiling.useful(problem), 1.05 * min(work.values()))
    few = [config for config, flops in work.items() if flops <= bound]
    return _having(problem, few + by_windows(problem, chip), chip)


def by_windows(problem: Problem, chip: Chip) -> list[Config]:
    """Those of order `windows`, whose work is 4/3 of the useful; as many splits as fill the chip once."""
    if not tiling.windowed(problem):
        return []
    configs = {}
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
            configs[replace(config, splits=tiling.shares(problem, config)[1])] = None
    return list(configs)


def _family(problem: Problem, order: str) -> str:
    if order == "windows":
        return order + " forward" * (problem.kind == "forward") + " of 32 channels" * (problem.c > 24)
    if problem.dtype.itemsize > 2:
        return precision(problem)
    if problem.dtype == FLOAT8:
        kind = "gradient" if problem.kind != "forward" else "pooled forward" if problem.pool else "forward"
        return f"float8 {kind}"
    if problem.kind != "forward":
        return "gradient"
    return "pooled forward" + " by rows" * (order == "rows") if problem.pool else "forward"


def _cut(problem: Problem, rows: int, cols: int, depth: int, warps: int, stages: int) -> tuple[int, ...]:
    """A tile no larger than the pass, whose step of channels divides them or else is one of a flat axis. Each
    thread keeps 16 sums (8 without tensor cores), and above 4 warps it loads 16 bytes of both operands.
    """

    least = 32 if problem.dtype == FLOAT8 else 16  # channels of a product

    def within(tile: int, extent: int) -> int:
        return min(tile, max(16, power_of_2(extent)))

    def step(tile: int, channels: int, flat: int) -> int:
        divisor = channels & -channels  # the largest power of two that divides them
        return min(tile, divisor) if divisor >= least else within(min(tile, flat), problem.size**2 * channels)

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


def _having(problem: Problem, configs: list[Config], chip: Chip) -> list[Config]:
    wanted = {name: value for name, value in _only.items() if name != "splits" or problem.kind == "wgrad"}
    if wanted.get("order") == "windows" and not by_windows(problem, chip):
        del wanted["order"]
    if having := [c for c in configs if all(getattr(c, name) == value for name, value in wanted.items())]:
        return having
    forced = [replace(config, **wanted) for config in configs]
    return list(
        dict.fromkeys(replace(c, descriptors=c.descriptors and boxes(problem, c, chip)) for c in forced)
    )
