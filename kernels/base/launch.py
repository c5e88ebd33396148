"""From a launcher to a device: what stands between a kernel module and Triton.

`launch` runs a kernel on a CUDA device, or through Triton's interpreter where TRITON_INTERPRET=1 was set
before triton was imported. Inside `recording()` nothing runs: every launch is noted with its arguments, which
is how the ahead-of-time check and the benchmark learn what an op launches. Where triton cannot be
imported, kernel modules still can: their references work, and `launch` raises.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections import namedtuple
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, library

try:
    import triton
    import triton.language as tl
    from triton.tools.tensor_descriptor import TensorDescriptor
except ImportError:  # macOS, Windows
    triton = None

INSTALLED = triton is not None
INTERPRETED = INSTALLED and os.environ.get("TRITON_INTERPRET") == "1"

if INTERPRETED:  # integers wrap as on a GPU; checking that none does takes three quarters of the time
    from triton.runtime.interpreter import interpreter_builder

    interpreter_builder.options = dataclasses.replace(interpreter_builder.options, sanitize_overflow=False)
    _converted = triton.runtime.interpreter._convert_float

    def _rounded(values, given, wanted, rounding):
        """To 8-bit floats as a GPU rounds: to the nearest, ties to even. Of its own the interpreter rounds
        halves up, and carries no digit into the exponent.
        """
        form = {"fp8e4nv": torch.float8_e4m3fn, "fp8e5": torch.float8_e5m2}.get(wanted.name)
        if form is None:
            return _converted(values, given, wanted, rounding)
        return torch.from_numpy(values.copy()).to(form).view(torch.uint8).numpy()

    triton.runtime.interpreter._convert_float = _rounded

if not INSTALLED:  # enough for kernel modules to be imported
    triton = SimpleNamespace(jit=lambda function: function)
    tl = SimpleNamespace(constexpr=lambda value: value)
    TensorDescriptor = namedtuple("TensorDescriptor", "base shape strides block_shape")  # to be recorded


@dataclass(frozen=True)
class Launch:
    """One launch: the kernel, its grid, run-time and compile-time arguments, warps and pipeline stages."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple
    constants: dict[str, Any]
    num_warps: int
    num_stages: int

    @property
    def name(self) -> str:
        return name(self.kernel)


_recorded: list[Launch] | None = None


def name(kernel) -> str:
    """The name of a kernel: of the function that `@triton.jit` decorates."""
    return kernel.fn.__name__


def interpreter_fault() -> str | None:
    """Why Triton's interpreter, where kernels are to run through it, runs none; None where it does. Up to 3.6
    it takes arrays of one element as numbers, which NumPy refuses from 2.4 on.
    """
    if not INTERPRETED or not _before(triton.__version__, 3, 7) or _before(np.__version__, 2, 4):
        return None
    return (
        f"the interpreter of triton {triton.__version__} does not work with numpy {np.__version__}: "
        "pip install 'numpy<2.4'"
    )


def _before(version: str, major: int, minor: int) -> bool:
    return tuple(map(int, version.split(".")[:2])) < (major, minor)


def runnable(device: str | torch.device) -> bool:
    """Whether kernels can run on tensors of this device: CUDA, or any through the interpreter."""
    return INTERPRETED or INSTALLED and torch.device(device).type == "cuda"


@contextlib.contextmanager
def recording() -> Iterator[list[Launch]]:
    """Inside, launches are appended to the list that this yields, and not run; outputs stay unwritten."""
    global _recorded
    before, _recorded = _recorded, []
    try:
        yield _recorded
    finally:
        _recorded = before


def launch(kernel, grid: tuple[int, ...], *arguments, num_warps: int = 4, num_stages: int = 2, **constants):
    """`kernel[grid](*arguments, **constants)` with so many warps a program and pipeline stages.

    `arguments` are the run-time ones, in the kernel's order: tensors and ints; `constants` the constexpr
    ones. Raises ValueError where a kernel cannot run on the device of its first tensor, or be interpreted.
    """
    if _recorded is not None:
        _recorded.append(Launch(kernel, grid, arguments, constants, num_warps, num_stages))
        return
    device = next(a.device for a in arguments if isinstance(a, Tensor))
    if not runnable(device):
        raise ValueError(
            f"device: got {device}, accepted is a CUDA device, or any with TRITON_INTERPRET=1 set"
            if INSTALLED
            else "device: got none that a kernel runs on, triton is not installed; take the reference"
        )
    if fault := interpreter_fault():
        raise ValueError(f"device: {fault}")
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        kernel[grid](*arguments, num_warps=num_warps, num_stages=num_stages, **constants)


def register(name: str, mutates: tuple[str, ...] = ()):
    """The decorator that makes a PyTorch op of a launcher: on CUDA, and through the interpreter on a CPU.
    `mutates` names the arguments that it writes.
    """
    return library.custom_op(name, mutates_args=mutates, device_types=("cuda", "cpu"))


def cdiv(a: int, b: int) -> int:
    """a / b rounded up."""
    return -(-a // b)


def box(tensor: Tensor, *extents: int):
    """A descriptor of `tensor` [any rank, last dimension contiguous] that loads boxes of these extents; what
    lies outside the tensor is 0.
    """
    return TensorDescriptor(tensor, list(tensor.shape), list(tensor.stride()), list(extents))


def power_of_2(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << (n - 1).bit_length()


def short(dtype: torch.dtype) -> str:
    """torch.float16 -> float16"""
    return str(dtype).removeprefix("torch.")


FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def expect(
    argument: str,
    tensor: Tensor,
    *shape: int | None,
    dtypes: tuple[torch.dtype, ...] = FLOATS,
    device: torch.device | None = None,
    channels_last: bool = False,
) -> None:
    """Raises ValueError naming `argument` unless the tensor has this shape (None: any extent), one of these
    dtypes, dense memory in row-major (or channels-last) order, and lies on `device`, if given.
    """
    if tensor.dim() != len(shape) or any(want not in (None, got) for want, got in zip(shape, tensor.shape)):
        wanted = ", ".join("any" if extent is None else str(extent) for extent in shape)
        raise ValueError(f"{argument}: got shape {list(tensor.shape)}, accepted is [{wanted}]")
    if tensor.dtype not in dtypes:
        accepted = ", ".join(map(short, dtypes))
        raise ValueError(f"{argument}: got {tensor.dtype}, accepted are {accepted}")
    if device is not None and tensor.device != device:
        raise ValueError(f"{argument}: got a tensor on {tensor.device}, accepted is {device}")
    if tensor.device.type == "meta":
        raise ValueError(f"{argument}: got a tensor on meta, accepted is one that has memory")
    layout = torch.channels_last if channels_last else torch.contiguous_format
    if not tensor.is_contiguous(memory_format=layout):
        order = "channels-last" if channels_last else "contiguous"
        raise ValueError(f"{argument}: got strides {list(tensor.stride())}, accepted is a {order} tensor")
