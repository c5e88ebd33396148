"""The last of a launch's programs, which finishes what the others began: no second launch for a few sums.

    if last(p_arrived, programs):  # everything that all programs stored before is there to be loaded
        ...

Each program leaves its partial results in memory, then adds 1 to a counter. The one that finds the others
counted is the last; it loads the partial results in an order that does not depend on who came when, so the
same input gives the same bits. It also sets the counter back to 0 for the next launch.

A device has one set of counters for all launches, so launches that use them must not overlap: they belong on
one stream, or into graphs that are replayed one after another. Launches of other kernels may overlap them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from .launch import tl, triton

COUNTERS = 65535  # as many as a grid's second extent may have, so that each of its rows has one of its own

_counters: dict[torch.device, Tensor] = {}


@triton.jit
def last(p_arrived, programs):
    """Whether so many programs have come here with this one. Then what each stored before can be loaded, with
    cache_modifier=".cg", past the cache that multiprocessors do not share.
    """
    tl.debug_barrier()  # every thread has stored before the program counts itself
    is_last = tl.atomic_add(p_arrived, 1, sem="acq_rel", scope="gpu") == programs - 1
    if is_last:
        tl.store(p_arrived, 0)
    return is_last


def counters(like: Tensor) -> Tensor:
    """int32 [COUNTERS], the `p_arrived` of launches on the device of `like`; 0 between launches.

    The first call on a device makes them. RuntimeError if a graph is being captured then: it would zero them
    at each replay only, and free them with its other memory.
    """
    if like.device not in _counters:
        if like.is_cuda and torch.cuda.is_current_stream_capturing():
            raise RuntimeError("counters: made during the capture of a graph, run the op once before it")
        with _disable_current_modes():  # real ones even where tensors are fake, and no mode sees them made
            _counters[like.device] = torch.zeros(COUNTERS, dtype=torch.int32, device=like.device)
    return _counters[like.device]
