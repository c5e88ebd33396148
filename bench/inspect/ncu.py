"""One launch of one kernel under Nsight Compute: ten counters, in words, beside what the SPEC declares.

    python -m bench ncu conv_bn_act --case r1.conv1 --kernel _conv_fwd

The call is made in a process of its own: once to compile, then between `cudaProfilerStart` and `Stop`, where
`ncu` collects the first launch of the kernel. It runs that launch several times, each time with empty caches,
at whatever clock a run would have: the time is near that of the benchmark, and no substitute for it.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from rich.console import Console

import kernels
from hlb import UserError
from hlb.runs.display import line, print_table
from hlb.runs.environment import device_name
from kernels.base import launch
from kernels.base.correctness import leaves
from kernels.base.spec import Case, KernelSpec

from ..implementations import launches_of
from .asm import only_case
from .counters import METRICS, SUCCESSORS, parsed, table
from .trace import passes

DEVICE = "cuda"
ROOT = Path(__file__).resolve().parents[2]
TOOLKIT = "/usr/local/cuda/bin"  # where CUDA's toolkit has ncu, on PATH or not
OPTIONS = ("--csv", "--print-units", "base", "--target-processes", "all", "--profile-from-start", "off",
           "--clock-control", "none", "--launch-count", "1")  # fmt: skip
UNKNOWN = re.compile(r"Failed to find metric (?:regex:\^?)?(\w[\w\\.]*)")
# what ncu says -> what helps
REMEDIES = {
    "ERR_NVGPUCTRPERM": "run as root, in a container with --cap-add=SYS_ADMIN, or load the driver with "
    "NVreg_RestrictProfilingToAdminUsers=0 (https://developer.nvidia.com/ERR_NVGPUCTRPERM)",
    "driver resource was unavailable": "stop what else reads counters, DCGM by `dcgmi profile --pause`",
    "not supported": "install the Nsight Compute of a CUDA toolkit that knows this GPU",
    "not compatible": "install the Nsight Compute of the driver's version of CUDA",
}


def run(
    console: Console,
    todo: dict[KernelSpec, list[Case]],
    dtype: torch.dtype,
    direction: str | None,
    kernel: str | None,
) -> int:
    """Profiles `kernel`, or the one that declares most bytes a launch, of the one case in a direction
    (forward, backward; anything else is both) and prints its counters. Returns the exit status; raises
    UserError.
    """
    executable = tool()
    spec, case = only_case(todo)
    found = launches_of(spec, spec.op, spec.make(case, dtype, DEVICE))
    forward, both = (Counter(one.name for one in launches) for launches in found)
    counts = {way: count for way, count in (("forward", forward), ("backward", both - forward)) if count}
    ways = [direction] if direction in ("forward", "backward") else list(counts)
    there = sum((counts.get(way, Counter()) for way in ways), Counter())
    if not there:
        raise UserError(f"{spec.name} {case.name} launches nothing {' and '.join(ways)}")
    if kernel not in (None, *there):
        raise UserError(f"--kernel: got {kernel!r}, launched are {', '.join(there)}")

    every = sum(counts.values(), Counter())  # declared is what all launches of a kernel do
    moved, done = (
        {name: declared.get(name, 0) / every[name] for name in there}
        for declared in (spec.bytes(case, dtype), spec.flops(case, dtype))
    )
    chosen = kernel or max(there, key=moved.get)
    child = (sys.executable, "-m", "bench.inspect.ncu", spec.name, case.name, launch.short(dtype), *ways)
    values = collected(executable, chosen, child)
    first = f", first of {there[chosen]} launches" if there[chosen] > 1 else ""
    what = f"{chosen}{first}, in {spec.name} {case.name} {' and '.join(ways)}"
    line(console, f"{device_name(DEVICE)}, {launch.short(dtype)}: {what}\n")
    print_table(
        console, ("", "measured", "that is"), table(values, moved[chosen], done[chosen]), words=(0, 2)
    )
    if others := [name for name in there if name != chosen]:
        line(console, f"\nalso launched, for --kernel: {', '.join(others)}")
    return 0


def tool() -> str:
    """The path of ncu. UserError that names all that is missing."""
    missing = []
    if not torch.cuda.is_available():
        missing.append("a CUDA device, and there is none")
    if not launch.INSTALLED or launch.INTERPRETED:
        missing.append("triton, and TRITON_INTERPRET unset")
    found = shutil.which("ncu") or shutil.which("ncu", path=TOOLKIT)
    if not found:
        missing.append(
            f"`ncu`, which is neither on PATH nor in {TOOLKIT}: install Nsight Compute, with the CUDA "
            "toolkit or from https://developer.nvidia.com/nsight-compute"
        )
    if missing:
        raise UserError(f"needs {'; needs '.join(missing)}")
    return found


def collected(executable: str, kernel: str, child: Sequence[str]) -> dict[str, float]:
    """metric -> value of the kernel's first launch while `child` is profiled. Where ncu does not know a
    metric (which ends it) or has no value, it is run again, with the metric's successor if there is one.
    UserError where it fails.
    """
    wanted = {metric: metric for metric in METRICS}  # metric -> what ncu is asked for
    while True:
        metrics = "--metrics", ",".join(wanted.values())
        command = (executable, *OPTIONS, "--kernel-name", kernel, *metrics, *child)
        c_numbers = os.environ | {"LC_ALL": "C"}
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=c_numbers)
        said, values = done.stdout + done.stderr, parsed(done.stdout)
        unknown = tuple(name.replace("\\", "").rstrip(".") for name in UNKNOWN.findall(said))
        missing = {
            metric: SUCCESSORS.get(metric, "") if name == metric else ""
            for metric, name in wanted.items()
            if name.startswith(unknown) or (values and name == metric in SUCCESSORS and name not in values)
        }
        again = {metric: name for metric, name in (wanted | missing).items() if name}
        if again == wanted:
            break
        wanted = again
    if not values:
        raise UserError(failure(said, done.returncode))
    return {metric: values[name] for metric, name in wanted.items() if name in values}


def failure(said: str, status: int) -> str:
    """In a line, why ncu has no counters, and what helps."""
    errors, warnings = (re.findall(rf"^=={kind}== (.*)", said, re.M) for kind in ("ERROR", "WARNING"))
    its_own = [error for error in errors if "application returned" not in error]
    program = [text for text in said.splitlines() if text.strip() and not text.startswith("==")][-1:]
    why = (its_own + program * (status != 0) + warnings + [f"exit status {status}"])[0].strip()
    helps = [f"; {remedy}" for sign, remedy in REMEDIES.items() if sign in said]
    return f"ncu fails: {why}{helps[0] if helps else ''}"


def main(op: str, name: str, dtype: str, *ways: str) -> None:
    """What ncu runs: a call of an op's case twice, the second time profiled in these directions."""
    spec = kernels.CATALOGUE[op]
    case = next(case for case in spec.cases if case.name == name)
    arguments = leaves(spec, spec.make(case, getattr(torch, dtype), DEVICE))

    @contextlib.contextmanager
    def within(direction: str) -> Iterator[None]:
        torch.cuda.synchronize()
        with torch.cuda.profiler.profile() if direction in ways else contextlib.nullcontext():
            yield
            torch.cuda.synchronize()

    passes(spec, spec.op, arguments, lambda _: contextlib.nullcontext())
    passes(spec, spec.op, arguments, within)


if __name__ == "__main__":
    main(*sys.argv[1:])
