"""What the kernels are launched on: capability, multiprocessors, memory and peak rates of a GPU.

current(x.device)          the chip that tensors lie on; without a GPU the one that kernels are written for
with targeting(chip): ...  as if that chip were there: launches can be recorded and compiled for it
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache

import torch


@dataclass(frozen=True)
class Chip:
    """A GPU: what CUDA calls it, its compute capability (90 for 9.0), KiB of shared memory that a program
    may have, bytes a second from device memory and from L2, FLOP/s by dtype, seconds that a launch takes
    beside its work. FLOP/s are dense, of tensor cores that accumulate in float32; of float32 they are fused
    multiply-adds, and "tf32" stands beside it. float8 is there from capability 8.9 on.
    """

    name: str
    cc: int
    multiprocessors: int
    shared: int
    bandwidth: float
    l2_bandwidth: float
    flops: dict[torch.dtype | str, float] = field(hash=False)
    launch: float = 1.5e-6

    @property
    def float8(self) -> bool:
        """Whether tensor cores multiply float8."""
        return self.cc >= 89


def _rates(
    half: float, tf32: float, float32: float, float8: float | None = None
) -> dict[torch.dtype | str, float]:
    rates = {torch.float16: half, torch.bfloat16: half, "tf32": tf32, torch.float32: float32}
    return rates | ({torch.float8_e4m3fn: float8, torch.float8_e5m2: float8} if float8 else {})


# From data sheets, but for H200's copy and half-precision rates, which were measured. Its rate of float8 was
# not, and is taken for as large a part of the sheet's 1979e12: twice that of half precision, as there. No
# sheet has the bandwidth of L2: for A100 5,120 bytes a clock are taken, for H200, and H100's same die, 30
# bytes a clock and multiprocessor, for B200's two dies more than twice that. A launch is taken for 1.5 µs.
CHIPS = (
    Chip("NVIDIA A100-SXM4-80GB", 80, 108, 163, 2.04e12, 7.2e12, _rates(312e12, 156e12, 19.5e12)),
    Chip("NVIDIA GeForce RTX 4090", 89, 128, 99, 1.01e12, 5.2e12, _rates(165e12, 82.6e12, 82.6e12, 330e12)),
    Chip("NVIDIA H200", 90, 132, 227, 4.3e12, 7.0e12, _rates(790e12, 395e12, 67e12, 1580e12)),
    Chip("NVIDIA H100 80GB HBM3", 90, 132, 227, 3.35e12, 7.0e12, _rates(989e12, 495e12, 67e12, 1979e12)),
    Chip("NVIDIA B200", 100, 148, 227, 8.0e12, 18e12, _rates(2250e12, 1100e12, 80e12, 4500e12)),
)
AIMED_AT = CHIPS[2]
# What launches are compiled for ahead of time: compute capability -> chip.
TARGETS = {chip.cc: chip for chip in CHIPS if chip.name != "NVIDIA H100 80GB HBM3"}

_target: Chip | None = None


@contextlib.contextmanager
def targeting(chip: Chip) -> Iterator[None]:
    """Inside, `current` is this chip, whatever the device."""
    global _target
    before, _target = _target, chip
    try:
        yield
    finally:
        _target = before


def current(device: str | torch.device) -> Chip:
    """The chip of a CUDA device; of any other the one that the kernels are written for."""
    if _target is not None:
        return _target
    device = torch.device(device)
    if device.type != "cuda":
        return AIMED_AT
    return _present(torch.cuda.current_device() if device.index is None else device.index)


def here() -> Chip:
    """The chip of this machine's first CUDA device; without one as `current`."""
    return current("cuda" if torch.cuda.is_available() else "cpu")


@cache
def _present(index: int) -> Chip:
    properties = torch.cuda.get_device_properties(index)
    return described(
        properties.name,
        10 * properties.major + properties.minor,
        properties.multi_processor_count,
        properties.shared_memory_per_block_optin // 1024,
    )


def described(name: str, cc: int, multiprocessors: int, shared: int) -> Chip:
    """A chip of these properties, with the rates of its entry in CHIPS, or of the nearest one."""
    like = min(
        CHIPS,
        key=lambda chip: (chip.name != name, abs(chip.cc - cc), abs(chip.multiprocessors - multiprocessors)),
    )
    return dataclasses.replace(like, name=name, cc=cc, multiprocessors=multiprocessors, shared=shared)
