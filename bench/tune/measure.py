"""Checks and times a pass of a convolution in each candidate configuration, and by cuDNN; and what a pooled
gradient costs beside cuDNN's. For `python -m bench tune`.

Values are compared with PyTorch's in float64; kernels that are incorrect or spill are not timed. Either side
is timed doing all that the next pass needs. The kernel of a forward pass gives u, argmax and the statistics
of its tiles; in its place stand cuDNN's convolution and `norm_passes.statistics`, which pools on its way.
cuDNN's gradients of a pooled block read the gradient of all outputs: its extra write is a time of its own,
`unpool`, since one write serves both gradients. Beside a pass of 8-bit operands, which are there already,
stands cuDNN's of 16 bits; values are compared with PyTorch's of what was rounded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from kernels.base import correctness, timing
from kernels.base.chips import Chip
from kernels.base.launch import INTERPRETED, recording
from kernels.convolution import conv, conv_gradients, conv_passes, float8, model, tiling, window_passes
from kernels.convolution.candidates import candidates
from kernels.convolution.conv import make_filters, make_images
from kernels.convolution.tiling import FLOAT8, Config, Problem
from kernels.norm import norm_gradients, norm_passes

from ..check import check
from ..micro import one_line

SAMPLES = 10
ACTIVATION = "silu"  # of the gradient pass; another changes both sides alike
WORTH, MOST = 2.0, 4  # candidates within so many times the least modelled time, at most so many of a kind


def tensors(problem: Problem, device) -> SimpleNamespace:
    """What a pass reads, at random, and room for what it writes; of 8 bits also `x8` or `dz8`, `filters8`."""
    if problem.dtype != FLOAT8:
        return _tensors(problem, device)
    t = _tensors(replace(problem, dtype=torch.float16), device)
    scale = float8.filter_scale(problem.c, problem.size)
    t.filters8 = float8.stored(t.filters, float8.FILTERS, scale)
    if problem.kind == "forward":
        t.x8 = float8.stored(t.x, float8.ACTIVATIONS)
    else:
        t.largest = torch.full((1,), 3.0, device=device)
        t.dz8 = float8.stored(t.full, float8.GRADIENTS, float8.gradient_scale(t.largest))
        turned = t.filters8.view(torch.int8).flip(2, 3).transpose(0, 1)
        t.filters8 = turned.contiguous(memory_format=torch.channels_last).view(FLOAT8)
    return t


def _tensors(problem: Problem, device) -> SimpleNamespace:
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
    if problem.kind == "forward" and config.order == "windows":
        return partial(_window_forward, problem, config, t)
    if problem.kind == "forward":
        partials = t.x.new_empty((tiling.tiles(problem, config)[0], 2, problem.o), dtype=torch.float32)
        written = {"argmax": t.argmax, "partial": partials}
        operands = (t.x8, t.filters8) if problem.dtype == FLOAT8 else (t.x, t.filters)
        return partial(conv_passes.forward, problem, config, *operands, t.u, **written)
    if problem.dtype == FLOAT8:
        read = t.dz8, None, t.filters8
        return partial(conv_gradients.dgrad, problem, config, *read, t.dx, t.largest)
    if problem.kind == "dgrad":
        return partial(conv_gradients.dgrad, problem, config, t.dz, t.argmax, t.filters, t.dx)
    return partial(conv_gradients.wgrad, problem, config, t.dz, t.argmax, t.x, t.d_filters)


def _window_forward(problem: Problem, config: Config, t: SimpleNamespace) -> Tensor:
    """Writes u and argmax into `t`; their partial statistics."""
    window_passes.forward(problem, config, t.x, t.filters, t.u, t.argmax)
    return norm_passes.statistics(t.u, None, t.u, t.argmax, pool=False)[0]


def torch_call(problem: Problem, t: SimpleNamespace) -> Callable[[], object]:
    """A call of cuDNN for the same pass, with what its result still needs."""
    if problem.kind == "forward":
        return partial(_torch_forward, problem, t)
    return partial(conv.torch_gradient, problem, t.full, t.x, t.filters)


def _torch_forward(problem: Problem, t: SimpleNamespace) -> tuple[Tensor, Tensor]:
    """What is convolved, and its partial statistics; with a pool u and argmax go into `t`."""
    z = F.conv2d(t.x, t.filters, padding=problem.pad)
    return z, norm_passes.statistics(z, None, t.u, t.argmax, pool=problem.pool)[0]


def _places(full: Tensor, oh: int, ow: int) -> list[Tensor]:
    """Views of the four values of each window, in order of argmax."""
    return [full[:, :, y : 2 * oh : 2, x : 2 * ow : 2] for y in (0, 1) for x in (0, 1)]


def expected(problem: Problem, t: SimpleNamespace) -> Tensor:
    """In float64, the convolution before a pool, or the gradient, of what is read."""
    x, filters, dz = t.x.double(), t.filters.double(), None if problem.kind == "forward" else t.full.double()
    if problem.dtype == FLOAT8:
        filters = float8.rounded(filters, float8.FILTERS, float8.filter_scale(problem.c, problem.size))
        if problem.kind == "forward":
            x = float8.rounded(x, float8.ACTIVATIONS)
        else:
            dz = float8.rounded(dz, float8.GRADIENTS, float8.gradient_scale(t.largest))
    if problem.kind == "forward":
        return F.conv2d(x, filters, padding=problem.pad)
    return conv.torch_gradient(problem, dz, x, filters)


def wrong(problem: Problem, t: SimpleNamespace, want: Tensor) -> list[str]:
    """The faults of the values in `t`, beside what is `expected`."""
    if problem.kind != "forward":
        got, wants = {problem.kind: t.dx if problem.kind == "dgrad" else t.d_filters}, {problem.kind: want}
    elif problem.pool:
        places = _places(want, *problem.output)
        at_argmax = sum(torch.where(t.argmax == place, view, 0) for place, view in enumerate(places))
        got = {"u": t.u, "values at argmax": at_argmax.to(t.u.dtype)}
        wants = dict.fromkeys(got, torch.stack(places).amax(0))
    else:
        got, wants = {"u": t.u}, {"u": want}
    length = {
        "forward": problem.c * problem.size**2,
        "dgrad": problem.o * problem.size**2,
        "wgrad": problem.n * prod(problem.kept),
    }
    spec = SimpleNamespace(reduction=length.get, squared=(), narrowed=())
    return correctness.faults(spec, problem.kind, t.x.dtype, got, wants)


def worth(problem: Problem, chip: Chip, every: bool = False) -> list[Config]:
    """The candidates that are timed, best modelled first: all if `every`, else those of at most WORTH times
    the least modelled time, MOST without and MOST with descriptors, and those by windows.
    """
    times = {config: model.seconds(problem, config, chip) for config in candidates(problem, chip)}
    ranked = sorted(times, key=times.get)
    if every:
        return ranked
    windows = [c for c in ranked if c.order == "windows"]
    others = [c for c in ranked if c not in windows]
    kinds = ([c for c in others if c.descriptors == boxed][:MOST] for boxed in (False, True))
    bound = WORTH * times[others[0]]
    few = [c for kind in kinds for c in kind if times[c] <= bound]
    return sorted(few + windows, key=times.get)


def compiled(
    work: dict[Problem, list[Config]], chip: Chip, processes: int, progress: Callable[[int, int], None]
) -> dict[Problem, dict[Config, str]]:
    """Compiles all candidates of all passes in several processes, for Triton's cache; returns, of each pass,
    those that spill or do not compile. Calls progress(done, of all).
    """
    dropped: dict[Problem, dict[Config, str]] = {problem: {} for problem in work}
    if INTERPRETED:
        return dropped
    rows = {}
    with FakeTensorMode():
        for problem, configs in work.items():
            t = tensors(problem, "cpu")
            for config in configs:
                with recording() as recorded:
                    kernel(problem, config, t)()
                rows[problem, config] = check.Row(None, recorded[0], problem.dtype, (chip.cc,), [], 1)
    check.compile_all(list(rows.values()), processes, progress)
    for (problem, config), row in rows.items():
        result = row.results[chip.cc]
        if result.error or result.stack:
            dropped[problem][config] = result.error or f"spills: {result.stack} bytes of stack"
    return dropped


@dataclass
class Tuned:
    """A tuned pass: seconds of the correct candidates, why the others were dropped, cuDNN's time."""

    seconds: dict[Config, float]
    dropped: dict[Config, str]
    cudnn: float

    @property
    def winner(self) -> Config | None:
        return min(self.seconds, key=self.seconds.get, default=None)


def one_pass(problem: Problem, configs: list[Config], dropped: dict[Config, str], device: str) -> Tuned:
    """Tests and times the configurations of a pass, except those in `dropped`."""
    first, dropped = tensors(problem, device), dict(dropped)
    want = expected(problem, first)
    for config in (config for config in configs if config not in dropped):
        for name in ("u", "dx", "d_filters"):
            if hasattr(first, name):
                getattr(first, name).fill_(float("nan"))
        try:
            kernel(problem, config, first)()
            faults = wrong(problem, first, want)
        except Exception as error:  # one candidate fails: the others are still tuned
            faults = [one_line(error)]
        if faults:
            dropped[config] = faults[0]
    del want
    size = sum(t.nbytes for name, t in vars(first).items() if t is not None and name != "full")
    copies = [first, *(tensors(problem, device) for _ in range(timing.sets(size, device) - 1))]

    def seconds(call: Callable) -> float:
        return timing.measure([call(t) for t in copies], device, SAMPLES).median

    timed = {c: seconds(partial(kernel, problem, c)) for c in configs if c not in dropped}
    return Tuned(timed, dropped, seconds(partial(torch_call, problem)))


def unpool(problem: Problem, device: str) -> float:
    """Seconds that batch norm's gradient pass takes longer where it writes the gradient of all outputs, not
    that of the pooled ones; `problem` is the forward pass of a pooled block.
    """
    p = problem

    def inputs() -> SimpleNamespace:
        u, dy = (make_images(p.n, p.o, *p.output, p.dtype, device) for _ in range(2))
        argmax = torch.randint_like(u, 4, dtype=torch.int8)
        stats, sums = torch.ones(2, p.o, device=device), torch.zeros(2, p.o, device=device)
        return SimpleNamespace(u=u, dy=dy, argmax=argmax, stats=stats, sums=sums)

    def call(t: SimpleNamespace, whole: bool) -> Callable[[], object]:
        """Writes the gradient of all outputs, or of the pooled ones."""
        mean, one = t.stats
        argmax, extent = (t.argmax, (p.h, p.w)) if whole else (None, p.output)
        dx = make_images(p.n, p.o, *extent, p.dtype, device)
        nothing = t.sums.new_empty(0)
        norm = t.stats, one, one, mean, t.sums
        return partial(
            norm_gradients.gradient, t.u, None, t.dy, None, argmax, *norm, dx, nothing, activation=ACTIVATION
        )

    first = inputs()
    size = sum(tensor.nbytes for tensor in vars(first).values()) + p.n * p.o * p.h * p.w * p.dtype.itemsize
    copies = [first, *(inputs() for _ in range(timing.sets(size, device) - 1))]
    whole, pooled = (
        timing.measure([call(t, whole) for t in copies], device, SAMPLES).median for whole in (True, False)
    )
    return whole - pooled
