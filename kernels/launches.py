"""Which configuration a pass of a convolution is launched with.

    choose(problem, chip)          what was measured on this chip, else on the nearest, else the model's best
    choose_tuned(problem, chip)    what was measured so, where it is faster than cuDNN; else None
    block_winner(problem, chip)    "triton" where the whole block was measured to be faster, else "reference"

`python -m kernels tune` measures the candidates of the recipes' passes and writes launches.json. What was
measured on another chip is taken only where this one can launch it.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path

from .candidates import candidates, fits, model, precision, restricted
from .candidates import only as only  # launches.only
from .chips import Chip
from .tiling import ORDERS, Config, Problem

FILE = Path(__file__).with_name("launches.json")


@dataclass(frozen=True)
class Section:
    """What was measured on a chip, by `key`: (configuration, its seconds, cuDNN's) of passes, seconds of each
    implementation of blocks.
    """

    cc: int
    multiprocessors: int
    launches: dict[str, tuple[Config, float, float]] = field(default_factory=dict)
    blocks: dict[str, dict[str, float]] = field(default_factory=dict)


def key(problem: Problem, kind: str | None = None) -> str:
    """forward n=512 31x31 32->128 pool float16"""
    p = problem
    words = [kind or p.kind, f"n={p.n}", f"{p.h}x{p.w}", f"{p.c}->{p.o}"]
    words += [f"{p.size}x{p.size}"] * (p.size != 3) + ["pool"] * p.pool
    return " ".join((*words, precision(p)))


def parsed(text: str) -> Config:
    """The configuration that str() made this of; ValueError where it did not."""
    form = r"(\w+) (\d+)x(\d+)x(\d+), (\d+) warps, (\d+) stages(?:, (\d+) splits)?(, descriptors)?"
    found = re.fullmatch(form, text)
    if not found or found[1] not in ORDERS:
        raise ValueError(f"{text!r} is no configuration")
    return Config(found[1], *map(int, found.groups()[1:6]), bool(found[8]), int(found[7] or 1))


@cache
def table() -> dict[str, Section]:
    """launches.json: chip's name -> what was measured on it. ValueError, naming the file, if it is none."""
    if not FILE.exists():
        return {}
    try:
        return {
            name: Section(
                int(entries["cc"]),
                int(entries["multiprocessors"]),
                {
                    key: (parsed(e["config"]), float(e["seconds"]), float(e["cudnn"]))
                    for key, e in entries.get("launches", {}).items()
                },
                {
                    key: {name: float(e[name]) for name in ("reference", "compiled", "triton")}
                    for key, e in entries.get("blocks", {}).items()
                },
            )
            for name, entries in json.loads(FILE.read_text()).items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{FILE}: {what}; `python -m kernels tune` writes this file") from None


def forget() -> None:
    """Reads the file anew when next asked."""
    for cached in (table, _measured, _best):
        cached.cache_clear()


def choose(problem: Problem, chip: Chip) -> Config:
    """The launch configuration of a pass."""
    if restricted():
        return best(problem, chip)
    found = _measured(problem, chip, precision(problem))
    return found[0] if found else _best(problem, chip, precision(problem))


def best(problem: Problem, chip: Chip) -> Config:
    """The candidate of the least modelled time."""
    return min(candidates(problem, chip), key=lambda config: model(problem, config, chip))


def choose_tuned(problem: Problem, chip: Chip) -> Config | None:
    """The launch configuration of a pass that was measured to be faster than cuDNN; None where none was."""
    if restricted():
        return choose(problem, chip)
    config, seconds, cudnn = _measured(problem, chip, precision(problem)) or (None, 1, 0)
    return config if seconds < cudnn else None


def block_winner(problem: Problem, chip: Chip) -> str:
    """The faster implementation of a block, forward and backward, whose forward pass is `problem`."""
    for section in _nearest(chip):
        if seconds := section.blocks.get(key(problem, "block")):
            return "triton" if min(seconds, key=seconds.get) == "triton" else "reference"
    return "reference"


def _nearest(chip: Chip) -> list[Section]:
    """The table's sections, this chip's first."""

    def distance(item: tuple[str, Section]) -> tuple:
        name, there = item
        return name != chip.name, abs(there.cc - chip.cc), abs(there.multiprocessors - chip.multiprocessors)

    return [section for _, section in sorted(table().items(), key=distance)]


# `numbers` is what `precision` says: float32 may be tf32 in one call and not in the next.


@lru_cache(4096)
def _measured(problem: Problem, chip: Chip, numbers: str) -> tuple[Config, float, float] | None:
    entries = (section.launches.get(key(problem)) for section in _nearest(chip))
    return next((entry for entry in entries if entry and fits(problem, entry[0], chip)), None)


@lru_cache(4096)
def _best(problem: Problem, chip: Chip, numbers: str) -> Config:
    return best(problem, chip)
