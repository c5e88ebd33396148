"""CUDA graphs: work that is captured once and replayed as one launch.

A replay does what was captured, at the addresses and with the host's values of that time: whatever changes
from step to step or from run to run must be read from the device. Nothing is executed during the capture.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from kernels.timing import no_collection

MODES = ("auto", "off", "step", "run")


def capture(*works: Callable[[], None]) -> list[Callable[[], None]]:
    """Functions that do what each `work()` does on the current CUDA device, to be called one at a time. They
    share their memory, since nothing that is made in one is read in another. Each has run before, so that
    nothing is made for the first time while it is captured; what would be compiled then is an error.
    """
    torch.cuda.synchronize()
    torch.cuda.empty_cache()  # what the warm-up held; a graph's memory is its own
    pool, replays = torch.cuda.graph_pool_handle(), []
    with no_collection(), torch.compiler.set_stance("fail_on_recompile"):
        for work in works:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                work()
            replays.append(graph.replay)
    return replays
