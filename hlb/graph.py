"""CUDA graphs: work that is captured once and replayed as one launch.

A replay does what was captured, at the addresses and with the host's values of that time: whatever changes
from step to step or from run to run must be read from the device. Nothing is executed during the capture.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

MODES = ("auto", "off", "step", "run")


def capture(work: Callable[[], None]) -> Callable[[], None]:
    """A function that does what `work()` does on the current CUDA device. `work` has run before, so that
    nothing is compiled or made for the first time while it is captured.
    """
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay
