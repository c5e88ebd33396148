"""The ways to do an op that the benchmark times side by side.

    eager            the reference
    compiled         torch.compile of the reference, with the options that training has (calls.py)
    max-autotune     the same, with everything measured that Inductor can measure
    cudnn            the reference's results from library calls alone, where it has a formula of its own: on a
                     GPU cuDNN's, elsewhere the processor's
    triton           the op, in the configurations that it looks up
    triton images    a convolution's kernels with the outputs of a tile from many images
                     (kernels/convolution/tiling.py)
    triton rows      the same, image by image and row by row
    tuned            what `--kernels tuned` takes

What would be timed twice is left out: `cudnn` where eager is that already (`conv` is F.conv2d), a form that
launches what an earlier one launches, and `tuned` where it is the reference.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._functorch import config as functorch

import kernels
from hlb.execution import INDUCTOR
from kernels import conv_bn_act
from kernels.base import chips, correctness, launch
from kernels.base.correctness import leaves
from kernels.base.launch import Launch
from kernels.base.spec import Case, KernelSpec
from kernels.convolution import candidates, conv, selection
from kernels.norm.activations import ACTIVATIONS

from .calls import AUTOTUNED, DIRECTIONS, roots


def compiled(function: Callable, **options) -> Callable:
    """`function` as torch.compile makes it, with options of Inductor's."""
    torch._dynamo.reset()  # each case is compiled for its own shapes, however many came before
    return torch.compile(function, dynamic=False, options=options)


def batch_norm_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running: Tensor,
    *,
    eps: float,
    activation: str,
    pool: bool = False,
    gate: Tensor | None = None,
    residual: Tensor | None = None,
    spatial_mean: bool = False,
    training: bool = True,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """`norm_act.reference` in training, by F.max_pool2d and F.batch_norm."""
    v = F.max_pool2d(x, 2) if pool else x
    if gate is not None:
        v = v * gate[:, :, None, None].to(v.dtype)
    stats = torch.zeros_like(running)  # running statistics of momentum 1 are the batch's
    y = ACTIVATIONS[activation].reference(F.batch_norm(v, *stats, weight, bias, training, 1.0, eps))
    y = y if residual is None else y + residual
    return y, stats, y.mean((2, 3), dtype=running.dtype) if spatial_mean else None


def conv_batch_norm_act(x: Tensor, filters: Tensor, *norm: Tensor, by_kernel: str = "", **options) -> tuple:
    """`conv_bn_act.reference` in training, by F.conv2d and what `batch_norm_act` calls; no pass is a
    kernel.
    """
    return batch_norm_act(conv.reference(x, filters), *norm, **options)


def taken(inputs: dict) -> dict:
    """The argmax of a library's pool: which value 0..3 of each window."""
    if not inputs["pool"]:
        return {}
    z = conv.reference(inputs["x"], inputs["filters"]) if "filters" in inputs else inputs["x"]
    place = F.max_pool2d(z, 2, return_indices=True)[1]
    return {"argmax": place // z.shape[3] % 2 * 2 + place % z.shape[3] % 2}


# Ops whose reference has a formula of its own -> the same by library calls.
LIBRARY: dict[str, Callable] = {"conv_bn_act": conv_batch_norm_act, "norm_act": batch_norm_act}

FORMS = {"triton images": "images", "triton rows": "rows"}  # -> the order that is forced

# How an op is done -> its function.
IMPLEMENTATIONS: dict[str, Callable[[KernelSpec], Callable]] = {
    "eager": lambda spec: spec.reference,
    "compiled": lambda spec: compiled(spec.reference, **INDUCTOR),
    "max-autotune": lambda spec: compiled(spec.reference, **AUTOTUNED),
    "cudnn": lambda spec: LIBRARY[spec.name],
    "triton": lambda spec: spec.op,
    **dict.fromkeys(FORMS, lambda spec: spec.op),
    "tuned": lambda spec: tuned(spec),
}
REFERENCES = ("eager", "compiled", "max-autotune", "cudnn")  # what the op is to beat
KERNELS = tuple(name for name in IMPLEMENTATIONS if name not in REFERENCES)


def tuned(spec: KernelSpec) -> Callable:
    """What `--kernels tuned` takes for an op. Which passes of a block kernels do, it chooses itself."""
    name = next((name for name, op in kernels.BACKENDS["triton"].items() if op is spec.op), None)
    function = getattr(kernels.backend("tuned"), name) if name else spec.reference
    if function is not conv_bn_act.measured:
        return function
    return lambda by_kernel, **inputs: function(**inputs)


def by_kernel(inputs: dict) -> dict:
    """What `tuned` chooses so, of the inputs of a block; nothing of those of another op."""
    if "by_kernel" not in inputs:
        return {}
    problem = conv.problem("forward", inputs["x"], inputs["filters"], inputs["pool"])
    return {"by_kernel": selection.by_kernel(problem, chips.current(inputs["x"].device))}


@contextlib.contextmanager
def scope(implementation: str, direction: str = "forward") -> Iterator[None]:
    """Where calls of an implementation are made and called: an op looks its configurations up when called;
    what is compiled for the backward alone keeps what the next call of it needs.
    """
    with contextlib.ExitStack() as stack:
        if implementation in FORMS:
            stack.enter_context(candidates.only(order=FORMS[implementation]))
        if direction == "backward":
            stack.enter_context(functorch.patch(donated_buffer=False))
        yield


def launches_of(spec: KernelSpec, function: Callable, inputs: dict) -> tuple[list[Launch], list[Launch]]:
    """What a call launches: forward, and forward and backward together. No kernel runs."""
    with launch.recording() as launches:
        outputs = roots(function(**leaves(spec, inputs)))
        forward = list(launches)
        if outputs:
            torch.autograd.backward(outputs, [torch.empty_like(out) for out in outputs])
    return forward, launches


def known(spec: KernelSpec, chosen: Sequence[str]) -> list[str]:
    """The `chosen` implementations that an op has."""
    return [name for name in chosen if name != "cudnn" or spec.name in LIBRARY]


def distinct(spec: KernelSpec, inputs: dict, chosen: Sequence[str]) -> dict[str, dict[str, int | None]]:
    """implementation -> direction -> kernels of the op that it launches, None where others are launched as
    well: without the directions in which a form launches what one before it launches. The op itself is there
    also where it cannot be called; its forms are then not.
    """
    counts = {}
    seen = {direction: [[]] for direction in DIRECTIONS}
    for name in known(spec, chosen):
        if name not in KERNELS or name == "triton":
            counts[name] = dict.fromkeys(DIRECTIONS)
        if name not in KERNELS:
            continue
        try:
            with scope(name):
                forward, both = launches_of(spec, IMPLEMENTATIONS[name](spec), inputs)
        except Exception:  # shown where the op is timed
            continue
        ways = dict(zip(DIRECTIONS, (forward, both[len(forward) :], both)))
        ways = {direction: [_what(one) for one in these] for direction, these in ways.items()}
        if name == "triton":
            counts[name] = {direction: len(these) for direction, these in ways.items()}
        elif new := [direction for direction, these in ways.items() if these not in seen[direction]]:
            counts[name] = {direction: None if name == "tuned" else len(ways[direction]) for direction in new}
        for direction, these in ways.items():
            seen[direction].append(these)
    return counts


def _what(one: Launch) -> tuple:
    """Identifies a launch, whatever its tensors hold."""
    arguments = [a if isinstance(a, int) else type(a) for a in one.arguments]
    return one.name, one.grid, arguments, one.constants, one.num_warps, one.num_stages


def faults(spec: KernelSpec, implementation: str, case: Case, dtype: torch.dtype, device: str) -> list[str]:
    """The faults of an implementation's results. Those of the op are compared with the reference in
    float64; a library rounds between its calls as the reference does in `dtype`, which it is compared with.
    """
    if implementation == "cudnn":
        inputs = spec.make(case, dtype, device)
        got = correctness.execute(spec, LIBRARY[spec.name], inputs)
        expected = correctness.execute(spec, spec.reference, inputs | taken(inputs))
        expected = {name: correctness.widened(value) for name, value in expected.items()}
        return correctness.faults(spec, case, dtype, got, expected)
    if implementation not in KERNELS:
        return []
    if implementation == "tuned":
        given = spec.given
        told = dataclasses.replace(spec, given=lambda inputs: given(inputs | by_kernel(inputs)))
        spec = dataclasses.replace(told, op=tuned(spec))
    with scope(implementation):
        return correctness.check(spec, case, dtype, device)
