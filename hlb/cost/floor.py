"""The least time of a run, by arithmetic: what its kernels and operators do and move, at a chip's rates.

    parts = floor.phases(recipe, "triton")
    floor.seconds(parts, chips.here())

A pass takes the longer of its FLOPs at the half-precision rate and its bytes at the bandwidth of memory, and
each launch a time on top; passes follow one another. It is a floor and no measurement: memory and tensor
cores are always busy, and nothing waits for the host. Two things count for more than they need to cost: bytes
that several programs of a kernel read count for each of them, though the L2 cache may have them (muon's
products), and operators between kernels count as eager PyTorch launches them.

A run repeats few different steps, and each is counted once. Left out: the whitening filters, which the host
makes of the covariance, and loading an exponential average before the evaluation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch

import kernels
from kernels.base.chips import Chip

from ..recipes import Recipe
from ..step import rounds
from . import complexity
from .passes import Pass, passes
from .rehearsal import Rehearsal


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
    known: dict = {}
    run = Rehearsal(recipe, dtype, examples, tests)

    def once(name: str, work: Callable[[], None]) -> Phase:
        return Phase(name, 1, ((1, passes(recipe, choice, *run.part(work), known=known)),))

    steps = complexity.steps(recipe, examples)
    orders = Counter(images for _, images in rounds(recipe, examples))
    work = tuple(
        (times, passes(recipe, choice, *run.part(lambda n=images: run.step.shuffle(n)), known=known))
        for images, times in orders.items()
    )
    parts = [once("prepare", run.prepare), Phase("shuffle", orders.total(), work)]
    for size in dict.fromkeys(variant.size for variant, _ in steps):
        these = {step: times for step, times in steps.items() if step[0].size == size}
        work = tuple(
            (times, passes(recipe, choice, *run.part(lambda v=variant: run.step(v)), averages, known))
            for (variant, averages), times in these.items()
        )
        parts.append(Phase(f"train at {size}", sum(these.values()), work))
    return [*parts, once("evaluation", run.evaluate)]


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
