"""Step 6: the passes of convolutions beside cuDNN, those first that take longest, as `python -m bench tune`
does.

The winners go into measured.json, whose content stands in passes.json as well. At toy size one small block
goes through the interpreter, and measured.json stays as it is.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from kernels.convolution import candidates, selection
from kernels.convolution.tiling import Problem, useful

from ..tune import tune
from ..tune.tune import Job
from .steps import Context

TINY = Problem("forward", 1, 2, 2, 16, 16, 3, True, torch.float16)
TOGETHER = 8  # passes whose candidates are compiled before any of them is timed
COMMAND = ["python", "-m", "bench", "card"]


def jobs(measured: dict) -> list[Job]:
    """The tuner's, in float16 and of 8 bits, without those that are timed already: record94's first, then by
    how much there is to do.
    """

    def worth(job: Job) -> tuple[bool, float]:
        return not any(case.name.startswith("record94") for case in job.cases), -useful(job.problem)

    known = {
        *measured.get("found", ()),
        *(name.replace("forward", tune.UNPOOL) for name in measured.get("unpool", ())),
    }
    wanted = tune.jobs(["float16"]) + tune.jobs(["float8"])
    return sorted((job for job in wanted if job.name not in known), key=worth)


def run(context: Context) -> None:
    file = context.folder.passes
    if not context.toy:
        left, processes = jobs(context.folder.read(file)), len(os.sched_getaffinity(0))
        while left and context.left() > 0:
            tune.run(left[:TOGETHER], COMMAND, str(file), processes, content=context.folder.read(file))
            left = left[TOGETHER:]
        return
    with tempfile.TemporaryDirectory() as folder, candidates.only(rows=16, cols=16, depth=16):
        selection.FILE = Path(folder) / "measured.json"
        selection.forget()
        tiny = [Job(TINY, ()), Job(replace(TINY, kind=tune.UNPOOL), ())]
        tune.run(tiny, COMMAND, str(file), 1, "cpu")
