"""The least time of a run, by arithmetic: what its kernels and operators do and move, at a chip's rates.

    parts = floor.phases(recipe, "triton")
    floor.seconds(parts, chips.here())

A pass takes the longer of its FLOPs, at the half-precision rate or that of 8-bit operands, and its bytes at
the bandwidth of memory, and each launch a time on top; passes follow one another. It is a floor and no
measurement: memory and tensor cores are always busy, and nothing waits for the host. Two things count for
more than they need to cost: bytes that several programs of a kernel read count for each of them, though the
L2 cache may have them (muon's products), and operators between kernels count as eager PyTorch launches them.

A run repeats few different steps, and each is counted once. Left out: the whitening filters, which the host
makes of the covariance, and loading an exponential average before the evaluation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

import kernels
from kernels.base.chips import Chip

from ..recipes import Recipe
from . import rehearsal
from .passes import Pass, passes


@dataclass(frozen=True)
class Phase:
    """A part of a run: how often it takes its steps, and (times, passes) of each different one."""

    name: str
    steps: int
    work: tuple[tuple[int, list[Pass]], ...]

    def total(self, what: str) -> int:
        """Of a field of `Pass`: flops, bytes or launches."""
        return sum(times * sum(getattr(p, what) for p in passes) for times, passes in self.work)

    def seconds(self, chip: Chip) -> float:
        return sum(times * sum(p.seconds(chip) for p in passes) for times, passes in self.work)


def phases(
    recipe: Recipe,
    choice: str,
    dtype: torch.dtype = torch.float16,
    examples: int = 50000,
    tests: int = 10000,
) -> list[Phase]:
    """The phases of a run with a choice of kernels, in order. Errors as `kernels.choose`."""
    kernels.choose(choice)
    work: dict[str, list[tuple[int, list[Pass]]]] = {}
    known: dict = {}
    for part in rehearsal.parts(recipe, dtype, examples, tests):
        there = passes(recipe, choice, part.calls, part.between, part.averages, known)
        work.setdefault(part.phase, []).append((part.times, there))
    return [Phase(name, sum(times for times, _ in these), tuple(these)) for name, these in work.items()]


def seconds(parts: list[Phase], chip: Chip) -> float:
    """Of all phases, one after the other."""
    return sum(phase.seconds(chip) for phase in parts)


def launch_seconds(parts: list[Phase], chip: Chip) -> float:
    """What of `seconds` is launches."""
    return sum(phase.total("launches") for phase in parts) * chip.launch


def summary(parts: list[Phase], chip: Chip) -> dict:
    """As `hlb recipes --json` has it."""
    return {
        "chip": chip.name,
        "seconds": seconds(parts, chip),
        "launch_seconds": launch_seconds(parts, chip),
        "phases": [
            {
                "phase": phase.name,
                "steps": phase.steps,
                "flops": phase.total("flops"),
                "bytes": phase.total("bytes"),
                "launches": phase.total("launches"),
                "seconds": phase.seconds(chip),
            }
            for phase in parts
        ],
    }
