"""What a kernel really does, counted while Triton's interpreter runs it.

    with counting() as counts:
        op(...)
    counts["_kernel"].bytes, counts["_kernel"].flops, counts["_kernel"].programs

Bytes are those of unmasked elements of loads and stores, each address once per program and direction, in
`distinct` once per launch and direction; FLOPs are 2 * m * n * k of each `tl.dot`, zero padding included.
Works by wrapping the interpreter's builder.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod

import numpy as np

from kernels.base import launch


@dataclass
class Count:
    """Of one kernel: bytes loaded and stored, FLOPs of dots, programs and launches."""

    bytes: int = 0
    distinct: int = 0
    flops: int = 0
    programs: int = 0
    launches: int = 0
    # (direction, size of an element) -> addresses, of a program and of a launch
    _touched: dict[tuple, list[np.ndarray]] = field(default_factory=lambda: defaultdict(list))
    _different: dict[tuple, list[np.ndarray]] = field(default_factory=lambda: defaultdict(list))

    def touch(self, direction: str, addresses: np.ndarray, itemsize: int) -> None:
        self._touched[direction, itemsize].append(addresses)

    def end_program(self) -> None:
        self.bytes += _merge(self._touched, self._different)

    def end_launch(self) -> None:
        self.end_program()
        self.distinct += _merge(self._different)


def _merge(addresses: dict[tuple, list[np.ndarray]], into: dict[tuple, list] | None = None) -> int:
    """Bytes of the different addresses, which go `into` another such table; empties this one."""
    total = 0
    for key, arrays in addresses.items():
        different = np.unique(np.concatenate(arrays))
        total += len(different) * key[1]
        if into is not None:
            into[key].append(different)
    addresses.clear()
    return total


@contextlib.contextmanager
def counting() -> Iterator[dict[str, Count]]:
    """Inside, counts by kernel name what every launch does. RuntimeError without the interpreter."""
    if not launch.INTERPRETED:
        raise RuntimeError("counting needs the interpreter: set TRITON_INTERPRET=1 before importing kernels")
    from triton.runtime.interpreter import GridExecutor
    from triton.runtime.interpreter import interpreter_builder as builder

    counts: dict[str, Count] = defaultdict(Count)
    current = Count()
    load, store, dot = builder.create_masked_load, builder.create_masked_store, builder.create_dot
    set_grid_idx, execute = builder.set_grid_idx, GridExecutor.__call__

    def addresses(pointers, mask):
        itemsize = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        mask = mask if isinstance(mask, np.ndarray) else mask.data  # an array where a descriptor made it
        return pointers.data[mask.astype(bool)], itemsize

    def counted_load(pointers, mask, *rest, **options):
        current.touch("loaded", *addresses(pointers, mask))
        return load(pointers, mask, *rest, **options)

    def counted_store(pointers, value, mask, *rest):
        current.touch("stored", *addresses(pointers, mask))
        return store(pointers, value, mask, *rest)

    def counted_dot(a, b, *rest):
        current.flops += 2 * prod(a.data.shape) * b.data.shape[-1]
        return dot(a, b, *rest)

    def counted_program(x, y, z):
        current.end_program()
        current.programs += 1
        set_grid_idx(x, y, z)

    def counted_launch(self, *args, **kwargs):
        nonlocal current
        current = counts[self.fn.__name__]
        current.launches += 1
        execute(self, *args, **kwargs)
        current.end_launch()

    builder.create_masked_load, builder.create_masked_store = counted_load, counted_store
    builder.create_dot, builder.set_grid_idx = counted_dot, counted_program
    GridExecutor.__call__ = counted_launch
    try:
        yield counts
    finally:
        for name in ("create_masked_load", "create_masked_store", "create_dot", "set_grid_idx"):
            delattr(builder, name)  # the class's own again
        GridExecutor.__call__ = execute
