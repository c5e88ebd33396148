"""Calls of an op to be timed, each on inputs of its own: forward, backward, or both together."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from hlb.execution import INDUCTOR
from kernels.base import timing
from kernels.base.correctness import leaves, upstream
from kernels.base.spec import Case, KernelSpec

DIRECTIONS = ("forward", "backward", "both")

# Options of torch.compile for the fastest that PyTorch has.
AUTOTUNED = INDUCTOR | {
    "max_autotune": True,
    "coordinate_descent_tuning": True,
    "max_autotune_conv_backends": "ATEN",  # Inductor's own convolution is wrong with 8 warps in torch 2.11
}


def tensors(outputs) -> list[Tensor]:
    outputs = outputs if isinstance(outputs, tuple | list) else (outputs,)
    return [out for out in outputs if out is not None]


def calls(
    spec: KernelSpec,
    case: Case,
    dtype: torch.dtype,
    function: Callable,
    inputs: dict,
    direction: str,
    device: str,
) -> list[timing.Call]:
    """The same call on as many copies of its inputs as timing needs; `direction` is one of DIRECTIONS.

    `forward` saves what a backward needs. The graphs of `backward` are made here, and are kept by its calls.
    What torch.compile compiled does that only with torch._functorch.config.donated_buffer off.
    """
    there = sum(value.nbytes for value in inputs.values() if isinstance(value, Tensor))
    touched = min(there, sum(spec.bytes(case, dtype).values()))  # a batch is gathered from a larger set
    copies = [leaves(spec, inputs) for _ in range(timing.sets(touched, device))]
    forwards = [partial(function, **arguments) for arguments in copies]
    if direction == "forward":
        return forwards
    call = {"backward": backward, "both": both}[direction]
    with timing.aside(device):
        graphs = [roots(forward()) for forward in (forwards if call is backward else forwards[:1])]
    gradients = upstream(graphs[0])
    return [
        partial(
            call,
            start,
            [arguments[name] for name in spec.differentiable if isinstance(arguments[name], Tensor)],
            [gradient.clone() for gradient in gradients],
        )
        for start, arguments in zip(graphs if call is backward else forwards, copies)
    ]


def roots(outputs) -> list[Tensor]:
    """The outputs that a gradient can begin at."""
    return [out for out in tensors(outputs) if out.requires_grad]


def backward(outputs: list[Tensor], wanted: list[Tensor], gradients: list[Tensor]) -> tuple:
    """The gradients of what is wanted, from those of the outputs, whose graph is kept."""
    return torch.autograd.grad(outputs, wanted, gradients, retain_graph=True, allow_unused=True)


def both(forward: Callable, wanted: list[Tensor], gradients: list[Tensor]) -> tuple:
    """Outputs of a forward call, and the gradients of what is wanted."""
    outputs = tensors(forward())
    return outputs, torch.autograd.grad(roots(outputs), wanted, gradients, allow_unused=True)
