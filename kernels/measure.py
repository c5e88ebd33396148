"""Right, and how fast: a pass of a convolution in each candidate configuration and by cuDNN, a block with its
kernels and without. For `python -m kernels tune`.

Values are compared with PyTorch's in float64; what is wrong or spills is not timed. cuDNN's time of a pooled
forward pass is that of the convolution and the pool; of a pooled gradient that of the convolution's alone, as
the pass before writes all of it where cuDNN is to read it. The kernels of a block are timed as they are used:
with cuDNN for the passes in which it was faster.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor

from . import check, compare, conv, conv_bn_act, conv_gradients, conv_passes, tiling, timing
from .calls import AUTOTUNED, calls
from .candidates import candidates
from .chips import Chip
from .conv import make_filters, make_images
from .launch import INTERPRETED, recording
from .spec import Case
from .tiling import Config, Problem

SAMPLES = 10


def tensors(problem: Problem, device) -> SimpleNamespace:
    """What a pass reads, at random, and room for what it writes."""
    p = problem
    filters = make_filters(p.o, p.c, p.size, p.dtype, device)
    t = SimpleNamespace(x=make_images(p.n, p.c, p.h, p.w, p.dtype, device), filters=filters)
    if p.kind == "forward":
        t.u = make_images(p.n, p.o, *p.output, p.dtype, device)
        t.argmax = torch.zeros_like(t.u, dtype=torch.int8)
        return t
    t.dz = make_images(p.n, p.o, *p.output, p.dtype, device)
    t.full, t.argmax = t.dz, None  # the gradient of all outputs
    t.dx, t.d_filters = torch.empty_like(t.x), torch.empty_like(t.filters)
    if p.pool:
        t.argmax = torch.randint_like(t.dz, 4, dtype=torch.int8)
        t.full = torch.zeros_like(make_images(p.n, p.o, p.h, p.w, p.dtype, device))
        for place, view in enumerate(_places(t.full, *p.output)):
            view.copy_(torch.where(t.argmax == place, t.dz, 0))
    return t


def kernel(problem: Problem, config: Config, t: SimpleNamespace) -> Callable[[], object]:
    """A call of the kernel, which writes into `t`."""
    if problem.kind == "forward":
        partials = t.x.new_empty((tiling.tiles(problem, config)[0], 2, problem.o), dtype=torch.float32)
        written = {"argmax": t.argmax, "partial": partials}
        return partial(conv_passes.forward, problem, config, t.x, t.filters, t.u, **written)
    if problem.kind == "dgrad":
        return partial(conv_gradients.dgrad, problem, config, t.dz, t.argmax, t.filters, t.dx)
    return partial(conv_gradients.wgrad, problem, config, t.dz, t.argmax, t.x, t.d_filters)


def torch_call(problem: Problem, t: SimpleNamespace) -> Callable[[], object]:
    """A call of PyTorch's for the same."""
    if problem.kind == "forward":
        return partial(_torch_forward, problem, t.x, t.filters)
    return partial(conv.torch_gradient, problem, t.full, t.x, t.filters)


def _torch_forward(problem: Problem, x: Tensor, filters: Tensor) -> Tensor | tuple[Tensor, Tensor]:
    y = F.conv2d(x, filters, padding=problem.pad)
    return F.max_pool2d(y, 2, return_indices=True) if problem.pool else y


def _places(full: Tensor, oh: int, ow: int) -> list[Tensor]:
    """Views of the four values of each window, in order of argmax."""
    return [full[:, :, y : 2 * oh : 2, x : 2 * ow : 2] for y in (0, 1) for x in (0, 1)]


def expected(problem: Problem, t: SimpleNamespace) -> Tensor:
    """In float64, the convolution before a pool, or the gradient."""
    x, filters = t.x.double(), t.filters.double()
    if problem.kind == "forward":
        return F.conv2d(x, filters, padding=problem.pad)
    return conv.torch_gradient(problem, t.full.double(), x, filters)


def wrong(problem: Problem, t: SimpleNamespace, want: Tensor) -> list[str]:
    """What of the values in `t` is not as `expected`."""
    if problem.kind != "forward":
        got, wants = {problem.kind: t.dx if problem.kind == "dgrad" else t.d_filters}, {problem.kind: want}
    elif problem.pool:
        places = _places(want, *problem.output)
        at_argmax = sum(torch.where(t.argmax == place, view, 0) for place, view in enumerate(places))
        got = {"u": t.u, "values at argmax": at_argmax.to(problem.dtype)}
        wants = dict.fromkeys(got, torch.stack(places).amax(0))
    else:
        got, wants = {"u": t.u}, {"u": want}
    length = {
        "forward": problem.c * problem.size**2,
        "dgrad": problem.o * problem.size**2,
        "wgrad": problem.n * prod(problem.kept),
    }
    spec = SimpleNamespace(reduction=length.get, squared=())
    return compare.faults(spec, problem.kind, problem.dtype, got, wants)


def spilling(
    problem: Problem, configs: list[Config], t: SimpleNamespace, chip: Chip, processes: int
) -> dict[Config, str]:
    """The configurations that spill or do not compile. What is compiled here need not be at the launch."""
    if INTERPRETED:
        return {}
    rows = []
    for config in configs:
        with recording() as recorded:
            kernel(problem, config, t)()
        rows.append(check.Row(None, recorded[0], problem.dtype, (chip.cc,), [], 1))
    check.compile_all(rows, processes, lambda done, of: None)
    found = {}
    for config, row in zip(configs, rows):
        result = row.results[chip.cc]
        if result.error or result.stack:
            found[config] = result.error or f"spills: {result.stack} bytes of stack"
    return found


@dataclass
class Found:
    """A tuned pass: seconds of the candidates that are right, what is wrong with the others, cuDNN's time."""

    seconds: dict[Config, float]
    dropped: dict[Config, str]
    cudnn: float

    @property
    def winner(self) -> Config | None:
        return min(self.seconds, key=self.seconds.get, default=None)


def one_pass(problem: Problem, chip: Chip, device: str, processes: int) -> Found:
    """Compiles, tests and times the candidates of a pass."""
    configs = candidates(problem, chip)
    first = tensors(problem, device)
    dropped = spilling(problem, configs, first, chip, processes)
    want = expected(problem, first)
    for config in (config for config in configs if config not in dropped):
        for name in ("u", "dx", "d_filters"):
            if hasattr(first, name):
                getattr(first, name).fill_(float("nan"))
        try:
            kernel(problem, config, first)()
            faults = wrong(problem, first, want)
        except Exception as error:  # of one candidate: the others are still tuned
            faults = [f"{type(error).__name__}: {error}"]
        if faults:
            dropped[config] = faults[0]
    del want
    size = sum(t.nbytes for name, t in vars(first).items() if t is not None and name != "full")
    copies = [first, *(tensors(problem, device) for _ in range(timing.sets(size, device) - 1))]

    def seconds(call: Callable) -> float:
        return timing.measure([call(t) for t in copies], device, SAMPLES).median

    timed = {c: seconds(partial(kernel, problem, c)) for c in configs if c not in dropped}
    return Found(timed, dropped, seconds(partial(torch_call, problem)))


def block(case: Case, dtype: torch.dtype, device: str) -> tuple[dict[str, float], list[str]]:
    """Seconds of each implementation of a block, forward and backward; what is wrong with the kernels'."""
    spec = conv_bn_act.SPEC
    if faults := compare.check(spec, case, dtype, device):
        return {}, faults
    inputs = spec.make(case, dtype, device)
    torch._dynamo.reset()
    implementations = {
        "reference": spec.reference,
        "compiled": torch.compile(spec.reference, dynamic=False, options=AUTOTUNED),
        "triton": partial(spec.op, tuned=True),
    }
    found = {}
    for name, function in implementations.items():
        prepared = calls(spec, case, dtype, function, inputs, "both", device)
        found[name] = timing.measure(prepared, device, SAMPLES).median
    return found, []
