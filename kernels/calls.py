"""Calls of an op to be timed: forward, or forward and backward together, each on inputs of its own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from . import timing
from .compare import leaves, upstream
from .spec import Case, KernelSpec

# Options of torch.compile for the fastest that PyTorch has.
AUTOTUNED = {
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
    """The same call on as many copies of its inputs as timing needs."""
    there = sum(value.nbytes for value in inputs.values() if isinstance(value, Tensor))
    touched = min(there, sum(spec.bytes(case, dtype).values()))  # a batch is gathered from a larger set
    copies = [leaves(spec, inputs) for _ in range(timing.sets(touched, device))]
    if direction == "forward":
        return [partial(function, **arguments) for arguments in copies]
    roots = [out for out in tensors(function(**copies[0])) if out.requires_grad]
    gradients = upstream(roots)
    return [
        partial(
            training_call,
            partial(function, **arguments),
            [arguments[name] for name in spec.differentiable if isinstance(arguments[name], Tensor)],
            [gradient.clone() for gradient in gradients],
        )
        for arguments in copies
    ]


def training_call(forward: Callable, wanted: list[Tensor], gradients: list[Tensor]) -> tuple:
    outputs = tensors(forward())
    roots = [out for out in outputs if out.requires_grad]
    return outputs, torch.autograd.grad(roots, wanted, gradients, allow_unused=True)
