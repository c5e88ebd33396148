"""What a part of a run launches, kernel by kernel: FLOPs, bytes, and the time that a chip needs at least.

`launched` is one training step. Kernels count as their SPECs do, with what they skip and what they pad;
PyTorch's operators as kernels/base/traffic.py does, each a launch, as eager PyTorch runs them: torch.compile
fuses some.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import cycle

import torch
from torch import Tensor

import kernels
from kernels.base.chips import Chip
from kernels.base.traffic import Traffic, around, traffic
from kernels.convolution import conv, tiling
from kernels.convolution.tiling import Problem

from ..recipes import Recipe
from ..step import plan
from . import complexity
from .rehearsal import Call, Rehearsal, shown


@dataclass(frozen=True)
class Pass:
    """A kernel, or operators of PyTorch: FLOPs of its products, zero padding included, bytes, and launches.
    `useful` are the FLOPs that a convolution needs, and `problem` which of its passes it is; what is no
    convolution has none.
    """

    layer: str
    name: str
    form: str
    flops: int
    bytes: int
    useful: int | None = None
    launches: int = 1
    problem: Problem | None = None

    def row(self) -> dict:
        """As JSON has it."""
        return {name: value for name, value in vars(self).items() if name != "problem"}

    def work(self, chip: Chip) -> dict[str, float]:
        """Seconds that a chip needs at least for each kind of work."""
        eight = self.problem is not None and self.problem.dtype == tiling.FLOAT8
        return {
            "compute": self.flops / chip.flops[tiling.FLOAT8 if eight else torch.float16],
            "memory": self.bytes / chip.bandwidth,
            "launch": self.launches * chip.launch,
        }

    def seconds(self, chip: Chip) -> float:
        """The longer of its products and its bytes, at the chip's rates, and the launches on top."""
        work = self.work(chip)
        return max(work["compute"], work["memory"]) + work["launch"]

    def bound(self, chip: Chip) -> str:
        """What takes the longest: compute, memory or launch."""
        work = self.work(chip)
        return max(work, key=work.get)


PARTS = {op: spec.part for op, spec in kernels.CATALOGUE.items() if spec.part}
LAYERS = {op for op, part in PARTS.items() if part == "layer"}  # as `complexity.layers` has them
REST = {op: part for op, part in PARTS.items() if op not in LAYERS}


def launched(
    recipe: Recipe, choice: str, dtype: torch.dtype = torch.float16, examples: int = 50000
) -> list[Pass]:
    """What a choice of kernels launches in a training step, in order: the most frequent of those at the last
    size of images. Errors as `kernels.choose`.
    """
    kernels.choose(choice)
    counts = complexity.steps(recipe, examples)
    last = plan(recipe, examples)[-1].size
    variant, averages = max((step for step in counts if step[0].size == last), key=counts.get)
    rehearsal = Rehearsal(recipe, dtype, examples)
    return passes(recipe, choice, *rehearsal.part(lambda: rehearsal.step(variant)), averages)


def passes(
    recipe: Recipe,
    choice: str,
    calls: list[Call],
    between: Traffic,
    averages: str = "none",
    known: dict | None = None,
) -> list[Pass]:
    """What a choice of kernels launches for the calls of a part of a run, and the operators between them.
    `averages` is what a step averages; `known` keeps what was counted, for other parts of the same run.
    """
    chosen, names, out = kernels.choose(choice), cycle(complexity.layers(recipe)), []
    known = {} if known is None else known
    for op, inputs in calls:
        layer = next(names).name if op in LAYERS else REST.get(op) or out[-1].layer
        backend = chosen[op] if op in kernels.CATALOGUE else "reference"
        if backend == "tuned":
            backend, inputs = kernels.CATALOGUE[op].tuned(inputs)
        key = op, backend, averages, *(shown(value) for value in inputs.values())
        if key not in known:
            eager = backend == "reference"
            known[key] = list(_eager(op, inputs) if eager else _kernels(op, inputs, averages))
        out += (replace(p, layer=layer) for p in known[key])
    if count := between.launches.total():
        work = between.flops.total(), between.bytes.total()
        out.append(Pass("all", "between the ops", "PyTorch", *work, launches=count))
    return out


def _eager(op: str, inputs: dict) -> Iterator[Pass]:
    """The operators of a reference: a block's convolutions by themselves, the rest together."""
    fresh = {
        name: value.detach().requires_grad_(value.requires_grad) if isinstance(value, Tensor) else value
        for name, value in inputs.items()
    }
    forward, backward = traffic(kernels.BACKENDS["reference"][op], fresh)
    if op == "conv_bn_act":
        x, filters = inputs["x"], inputs["filters"]
        problem = conv.problem("forward", x, filters, inputs["pool"])
        work = forward.flops["convolution"], forward.bytes["convolution"]
        for counts in (forward.flops, forward.bytes, forward.launches):
            del counts["convolution"]
        for counts in (backward.flops, backward.bytes, backward.launches):
            del counts["convolution_backward"]
        wanted = {"forward": True, "dgrad": x.requires_grad, "wgrad": filters.requires_grad}
        for kind in tiling.PASSES:  # each has two of x, y and filters to read, and the third to write
            if wanted[kind]:
                yield _cudnn(replace(problem, kind=kind), *work)
        op = "norm_act"
        for suffix, counted in (("", forward), (" backward", backward)):
            name = f"max_pool2d_with_indices{suffix.replace(' ', '_')}"
            if count := counted.launches.pop(name, 0):
                work = counted.flops.pop(name, 0), counted.bytes.pop(name)
                yield Pass("", f"pool{suffix}", "reference", *work, launches=count)
    for suffix, counted in (("", forward), (" backward", backward)):
        if count := counted.launches.total():
            work = counted.flops.total(), counted.bytes.total()
            yield Pass("", op + suffix, "reference", *work, launches=count)


def _cudnn(problem: Problem, flops: int, bytes: int) -> Pass:
    return Pass("", problem.kind, "cuDNN", flops, bytes, tiling.useful(problem), problem=problem)


CUDNN = tiling.Config("rows", 128, 128, 64, 8, 3)  # for bytes alone, which need splits only


def _kernels(op: str, inputs: dict, averages: str) -> Iterator[Pass]:
    """The kernels of an op, as its SPEC counts them, without those of gradients that nothing needs, and with
    the passes of a convolution that are cuDNN's; and the operators between them.
    """
    spec = kernels.CATALOGUE[op]
    case, dtype = spec.case_of(inputs), spec.dtype_of(inputs)
    if inputs.get("slow") is not None:
        case["averaging"] = averages
    needing = [value for value in inputs.values() if isinstance(value, Tensor) and value.requires_grad]
    unneeded = () if needing else spec.backward
    how = {}
    if op == "conv_bn_act":
        wanted = tiling.PASSES if case.training else tiling.PASSES[:1]
        how = conv.passes(case, dtype, wanted)
        if not inputs["x"].requires_grad:
            unneeded += (conv.NAMES["dgrad"],)
            case["wants_dx"] = False
        theirs = [kind for kind in wanted if kind not in case.by_kernel.split()]
        for problem in (how[name][0] for name in how if name not in unneeded and how[name][0].kind in theirs):
            whole = replace(problem, pool=False)
            yield _cudnn(problem, tiling.useful(whole), tiling.bytes(whole, CUDNN))
    moved, done, repeats = spec.bytes(case, dtype), spec.flops(case, dtype), spec.repeats(case)
    for kernel in (name for name in moved if name not in unneeded):
        work = done.get(kernel, 0), moved[kernel]
        if kernel in how:
            problem, config = how[kernel]
            useful = tiling.useful(problem)
            yield Pass("", problem.kind, str(config), *work, useful, problem=problem)
        else:
            yield Pass("", kernel, "triton", *work, launches=repeats.get(kernel, 1))
    both = around(spec.op, inputs)
    for counted in both:
        for counts in (counted.flops, counted.bytes, counted.launches):
            for name in ("conv2d", "convolution", "convolution_backward"):  # cuDNN's, passes of their own
                counts.pop(name, None)
    if count := sum(counted.launches.total() for counted in both):
        work = (sum(counts.total() for counts in pair) for pair in zip(*((c.flops, c.bytes) for c in both)))
        yield Pass("", f"{op}, the rest", "PyTorch", *work, launches=count)
