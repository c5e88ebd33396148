"""Which configuration a pass of a convolution is launched with, and which passes a kernel does at all.

    choose(problem, chip)         what was measured on this chip, else on the nearest, else the model's best
    estimate(problem, chip)       its seconds and cuDNN's, and how they are known
    by_kernel(problem, chip)      the passes of a block in which a kernel is faster than cuDNN
    with as_measured(): ...       what these are without a form that was never measured

`python -m bench tune` measures the candidates of the recipes' passes and writes measured.json. cuDNN's time
of a forward pass there is that of the convolution and of the pass over its output that kernels spare (pool,
statistics). Where it is to do the gradients of a pooled block, the pass before writes all of z's gradient
instead of the pooled one, and `unpool` is what that takes longer.

The order `windows` is newer than some measurements. Where it was not among what they tried it takes their
place if it is modelled to be faster by MARGIN than the kernel, and than cuDNN with what cuDNN needs besides.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from pathlib import Path

import torch

from ..base.chips import Chip
from . import model
from .candidates import by_windows, candidates, fits, restricted
from .candidates import only as only  # selection.only
from .model import precision
from .tiling import FLOAT8, ORDERS, PASSES, Config, Problem

FILE = Path(__file__).with_name("measured.json")
ALL = " ".join(PASSES)
HALF = (torch.float16, torch.bfloat16)  # take as long as each other
# How much faster a form that was never measured must be modelled: of 51 passes that an H200 measured, 48 took
# no more than so many times the modelled.
MARGIN = 1.5
ALIKE = 8  # what was measured at up to so many times the work, or that fraction of it, is scaled


@dataclass(frozen=True)
class Entry:
    """A measured pass: the fastest configuration, its seconds, and cuDNN's with what it needs then, which may
    be `corrected`; whether the order `windows` was tried.
    """

    problem: Problem
    config: Config
    seconds: float
    cudnn: float
    corrected: bool
    windows: bool = False


@dataclass(frozen=True)
class Section:
    """What was measured on a chip, by `key`: passes, and of pooled blocks, by that of their forward pass, the
    seconds that the gradient of all outputs takes longer to write than that of the pooled ones.
    """

    cc: int
    multiprocessors: int
    launches: dict[str, Entry] = field(default_factory=dict)
    unpool: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Estimate:
    """Seconds of a pass: the kernel's, and cuDNN's where it is known. `how`: "measured" so, "scaled" from
    another number or size of images or another 16-bit dtype, or "modelled". `corrected`: cuDNN's measurement
    was put right. `replaced`: what is known without this form, which was never measured.
    """

    config: Config
    seconds: float
    cudnn: float | None
    how: str
    corrected: bool = False
    replaced: Estimate | None = None

    @property
    def cautious(self) -> float:
        """Seconds of the kernel that a choice reckons with."""
        return self.seconds * MARGIN if self.replaced else self.seconds


def key(problem: Problem) -> str:
    """forward n=512 31x31 32->128 pool float16"""
    p = problem
    words = [p.kind, f"n={p.n}", f"{p.h}x{p.w}", f"{p.c}->{p.o}"]
    words += [f"{p.size}x{p.size}"] * (p.size != 3) + ["pool"] * p.pool
    return " ".join((*words, precision(p)))


def parsed(text: str) -> Config:
    """The configuration that str() made this of; ValueError where it did not."""
    form = r"(\w+) (\d+)x(\d+)x(\d+), (\d+) warps, (\d+) stages(?:, (\d+) splits)?(, descriptors)?"
    match = re.fullmatch(form, text)
    if not match or match[1] not in ORDERS:
        raise ValueError(f"{text!r} is no configuration")
    return Config(match[1], *map(int, match.groups()[1:6]), bool(match[8]), int(match[7] or 1))


def problem_of(text: str) -> Problem:
    """The pass that `key` named; ValueError where it did not."""
    form = r"(\w+) n=(\d+) (\d+)x(\d+) (\d+)->(\d+)(?: (\d)x\7)?( pool)? (\w+)"
    match = re.fullmatch(form, text)
    if not match or match[1] not in PASSES:
        raise ValueError(f"{text!r} is no pass")
    dtype = {"tf32": torch.float32, "float8": FLOAT8}.get(match[9]) or getattr(torch, match[9])
    return Problem(match[1], *map(int, match.groups()[1:6]), int(match[7] or 3), bool(match[8]), dtype)


@cache
def table() -> dict[str, Section]:
    """measured.json: chip's name -> what was measured on it. ValueError, naming the file, if it is none."""
    if not FILE.exists():
        return {}
    try:
        return {
            name: Section(
                int(entries["cc"]),
                int(entries["multiprocessors"]),
                {
                    key: Entry(
                        problem_of(key),
                        parsed(e["config"]),
                        float(e["seconds"]),
                        float(e["cudnn"]),
                        "measured" in e,
                        "windows" in e,
                    )
                    for key, e in entries.get("launches", {}).items()
                },
                {key: float(e["seconds"]) for key, e in entries.get("unpool", {}).items()},
            )
            for name, entries in json.loads(FILE.read_text()).items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{FILE}: {what}; `python -m bench tune` writes this file") from None


def tried(configs: Iterable[Config]) -> dict[str, bool]:
    """What an entry says of the orders that were tried."""
    return {"windows": True} if any(config.order == "windows" for config in configs) else {}


def forget() -> None:
    """Reads the file anew when next asked."""
    for cached in (table, _estimate):
        cached.cache_clear()


_as_measured = False


@contextlib.contextmanager
def as_measured() -> Iterator[None]:
    """Inside, no form that was never measured takes the place of what was, as in the runs of that time."""
    global _as_measured
    before, _as_measured = _as_measured, True
    try:
        yield
    finally:
        _as_measured = before


def measured_only() -> bool:
    """Whether `as_measured` is in force."""
    return _as_measured


def choose(problem: Problem, chip: Chip) -> Config:
    """The launch configuration of a pass."""
    return best(problem, chip) if restricted() else estimate(problem, chip).config


def best(problem: Problem, chip: Chip) -> Config:
    """The candidate of the least modelled time."""
    return min(candidates(problem, chip), key=lambda config: model.seconds(problem, config, chip))


def implicit(problem: Problem, chip: Chip) -> Config:
    """As `best`, without the order `windows`."""
    others = (config for config in candidates(problem, chip) if config.order != "windows")
    return min(others, key=lambda config: model.seconds(problem, config, chip))


def estimate(problem: Problem, chip: Chip) -> Estimate:
    """What a pass takes: measured, else scaled from the measured pass of the same channels that is nearest in
    its work, the kernel's by its model and cuDNN's by the outputs that it computes; else modelled.
    """
    known = _estimate(problem, chip, precision(problem))
    return known.replaced if _as_measured and known.replaced else known


def unpool(problem: Problem, chip: Chip) -> tuple[float, str]:
    """(seconds that the gradient of all outputs of a pooled block takes longer to write than that of the
    pooled ones, how they are known), of the pass `problem` of it.
    """
    forward = replace(problem, kind="forward")
    extra = _unpooled_bytes(forward)
    for section in _nearest(chip):
        if (seconds := section.unpool.get(key(forward))) is not None:
            return seconds, "measured"
        known = [(_unpooled_bytes(problem_of(text)), seconds) for text, seconds in section.unpool.items()]
        if known:
            return extra * sum(s for _, s in known) / sum(size for size, _ in known), "scaled"
    return extra / chip.bandwidth, "modelled"


def by_kernel(problem: Problem, chip: Chip, wants_dx: bool = True, eight: tuple[str, ...] = ()) -> str:
    """The passes, as in ALL, that kernels do of the block whose forward pass is `problem`: each where it is
    faster than cuDNN, and those with operands of 8 bits (`eight`). What has no likeness that was measured is
    cuDNN's.
    """
    kinds = PASSES if wants_dx else ("forward", "wgrad")
    estimates = {kind: estimate(replace(problem, kind=kind), chip) for kind in kinds}
    gains = {kind: e.cudnn - e.cautious if e.cudnn else -math.inf for kind, e in estimates.items()}
    chosen = {kind for kind in kinds if gains[kind] > 0}
    if problem.pool:
        chosen = chosen & {"forward"} | _pooled_gradients(problem, chip, estimates, gains, "dgrad" in eight)
    chosen |= {kind for kind in eight if kind in kinds}
    return " ".join(kind for kind in kinds if kind in chosen)


def _pooled_gradients(
    problem: Problem, chip: Chip, estimates: dict[str, Estimate], gains: dict[str, float], eight: bool
) -> set[str]:
    """Those of a pooled block's gradients that kernels do. They read the same, that of all outputs if any is
    cuDNN's or of 8 bits, and so go together; but a wgrad by windows reads that of the pooled ones in any
    case, which is then written besides.
    """
    backward = set(estimates) - {"forward"}
    saved = {frozenset(): 0.0}
    if not eight or "dgrad" not in backward:
        saved[frozenset(backward)] = sum(map(gains.get, backward)) + unpool(problem, chip)[0]
    if estimates["wgrad"].config.order == "windows":
        saved.setdefault(frozenset({"wgrad"}), gains["wgrad"] - _pooled_again(problem, chip))
    return set(max(saved, key=saved.get))


def _pooled_again(problem: Problem, chip: Chip) -> float:
    """Seconds that the gradient of the pooled outputs takes to be written, if it is besides that of all."""
    h, w = problem.output
    return 3 * problem.n * problem.o * h * w * problem.dtype.itemsize / chip.bandwidth + chip.launch


def _unpooled_bytes(forward: Problem) -> int:
    """By which z is larger than u."""
    whole, (h, w) = forward.h * forward.w, forward.output
    return forward.n * forward.o * (whole - h * w) * forward.dtype.itemsize


def _nearest(chip: Chip) -> list[Section]:
    """The table's sections, this chip's first."""

    def distance(item: tuple[str, Section]) -> tuple:
        name, there = item
        return name != chip.name, abs(there.cc - chip.cc), abs(there.multiprocessors - chip.multiprocessors)

    return [section for _, section in sorted(table().items(), key=distance)]


def _computed(problem: Problem) -> int:
    """What cuDNN's work grows with: all outputs, kept or not, and the channels."""
    return problem.n * problem.h * problem.w * problem.c * problem.o


def _likeness(problem: Problem, section: Section) -> Entry | None:
    """The measured pass of the same channels and pool whose work is nearest."""

    def distance(entry: Entry) -> float:
        return abs(math.log(_computed(entry.problem) / _computed(problem)))

    dtypes = (FLOAT8,) if problem.dtype == FLOAT8 else HALF
    like = replace(problem, n=0, h=0, w=0, dtype=HALF[0])
    entries = [
        entry
        for entry in section.launches.values()
        if {problem.dtype, entry.problem.dtype} <= set(dtypes)
        and replace(entry.problem, n=0, h=0, w=0, dtype=HALF[0]) == like
        and distance(entry) <= math.log(ALIKE)
    ]
    return min(entries, key=distance, default=None)


# `numbers` is what `precision` says: float32 may be tf32 in one call and not in the next.


@lru_cache(4096)
def _estimate(problem: Problem, chip: Chip, numbers: str) -> Estimate:
    for section in _nearest(chip):
        entry = section.launches.get(key(problem))
        if entry and fits(problem, entry.config, chip):
            known = Estimate(entry.config, entry.seconds, entry.cudnn, "measured", entry.corrected)
            return known if entry.windows else _or_windows(problem, chip, known)
        entry = _likeness(problem, section)
        if entry and fits(problem, entry.config, chip):
            there, here = (model.seconds(p, entry.config, chip) for p in (entry.problem, problem))
            cudnn = entry.cudnn * _computed(problem) / _computed(entry.problem)
            known = Estimate(entry.config, entry.seconds * here / there, cudnn, "scaled", entry.corrected)
            return known if entry.windows else _or_windows(problem, chip, known)
    config = best(problem, chip)
    return Estimate(config, model.seconds(problem, config, chip), None, "modelled")


def _or_windows(problem: Problem, chip: Chip, known: Estimate) -> Estimate:
    """What is known of a pass, or in its place the form by windows."""
    times = {config: model.seconds(problem, config, chip) for config in by_windows(problem, chip)}
    if not times:
        return known
    config = min(times, key=times.get)
    form = Estimate(config, times[config], known.cudnn, "modelled", replaced=known)
    theirs = known.cudnn + (unpool(problem, chip)[0] if problem.kind == "wgrad" else 0.0)
    return form if form.cautious < min(known.seconds, theirs) else known
