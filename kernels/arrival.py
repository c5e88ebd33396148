"""The last program of a launch to arrive, which alone may read what all of them have written: a sum over
programs then needs no launch of its own.

    kernel      every program writes its part, then asks `last(p_arrived, programs)`; the one that hears yes
                reads all parts, past the first-level cache (`cache_modifier=".cg"`), in a fixed order
    launcher    passes `counters(like)`, zeros that each launch leaves as it found them

Which program is the last differs from run to run, what it computes does not: results repeat bit for bit.

All launches on a device share the counters, so no two that count may run at the same time: they belong to one
stream, as everything of a training step does, or to streams that wait for each other.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from .launch import tl, triton


@triton.jit
def last(p_arrived, programs):
    """Whether this is the last of so many programs to come here. It sees what the others wrote before."""
    tl.debug_barrier()  # all threads of a program have written before it is counted
    is_last = tl.atomic_add(p_arrived, 1, sem="acq_rel", scope="gpu") == programs - 1
    if is_last:
        tl.store(p_arrived, 0)  # for the next launch
    return is_last


COUNTERS = 1024  # of a launch at most, one for each group of programs with a last of its own

_counters: dict[torch.device, Tensor] = {}


def counters(like: Tensor) -> Tensor:
    """int32 [COUNTERS] zeros on the device of `like`, in which the programs of a launch count themselves."""
    if isinstance(like, FakeTensor) or like.is_cuda and torch.cuda.is_current_stream_capturing():
        return like.new_zeros(COUNTERS, dtype=torch.int32)  # of one recording, or of one graph
    if like.device not in _counters:
        _counters[like.device] = like.new_zeros(COUNTERS, dtype=torch.int32)
    return _counters[like.device]
