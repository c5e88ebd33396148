"""Step 8: a small case of every op under compute-sanitizer's memcheck, in one process, once.

    python -m bench.card.sanitizers        runs the cases; what the tool runs

It tells of reads and writes outside of tensors that happen to hit memory which is there. Where the tool is
missing or refuses, the card says what it said.
"""

from __future__ import annotations

import os
import subprocess
import sys

import torch

import kernels
from kernels.base.correctness import execute

from .machine import sanitizer
from .ops import least
from .steps import Context, result, say

ERRORS = "ERROR SUMMARY:"
DONE = "case of "


def run(context: Context) -> None:
    tool = sanitizer()
    if tool is None:
        say("compute-sanitizer is not here")
        result({"said": "it is not here"})
        return
    command = [tool, "--tool", "memcheck", sys.executable, "-m", f"{__package__}.sanitizers"]
    environment = {
        **os.environ,
        "PYTORCH_NO_CUDA_MEMORY_CACHING": "1",
    }  # each tensor an allocation of its own
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )
    summary = {"ops": [], "errors": None, "said": ""}
    for line in child.stdout:
        line = line.strip()
        if line.startswith(DONE):
            summary["ops"].append(line.removeprefix(DONE))
        elif line.startswith("========="):
            if ERRORS in line:
                summary["errors"] = int(line.split(ERRORS)[1].split()[0])
            summary["said"] = line.strip("= ")
            say(line)
        result(summary)
    child.wait()


def cases() -> None:
    """Every op at its smallest case, forward and backward."""
    for spec in kernels.CATALOGUE.values():
        execute(spec, spec.op, spec.make(least(spec), spec.dtype(), "cuda"))
        torch.cuda.synchronize()
        say(f"{DONE}{spec.name}")


if __name__ == "__main__":
    cases()
