"""The environment of a result: versions, device, commit, memory, and a GPU's power limit, clocks and
throttling.
"""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
import sys
from pathlib import Path

import torch

try:
    import resource
except ImportError:  # not on Windows
    resource = None


def _output(*command: str) -> str | None:
    """A command's standard output, or None where it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str | None]:
    """Versions of python, torch, torchvision, triton, CUDA and the driver; None where not installed."""
    driver = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": _version("torchvision"),
        "triton": _version("triton"),
        "cuda": torch.version.cuda,
        "driver": driver and driver.splitlines()[0],
        "numpy": _version("numpy"),
        "hlb": _version("hlb"),
        "platform": platform.platform(),
    }


def device_name(device: str) -> str:
    """The device's own name: the GPU's, or the processor's with the number of threads used."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    model = ""
    try:
        with open("/proc/cpuinfo") as f:
            model = next((line.split(":")[1].strip() for line in f if line.startswith("model name")), "")
    except OSError:
        pass
    name = model or platform.processor() or platform.machine()
    return f"{device}: {name}" if device == "mps" else f"{name}, {torch.get_num_threads()} threads"


def commit() -> tuple[str | None, bool | None]:
    """The commit of this code and whether tracked files were changed; (None, None) outside a git checkout."""
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return None, None
    head = _output("git", "-C", str(here), "rev-parse", "HEAD")
    changes = _output("git", "-C", str(here), "status", "--porcelain", "--untracked-files=no")
    return head, None if changes is None else bool(changes)


def gpu_state(device: str) -> dict[str, str] | None:
    """Power limit and draw, clocks, temperature and active throttle reasons as nvidia-smi reports them; None
    without a GPU.
    """
    if torch.device(device).type != "cuda":
        return None
    fields = (
        "power.limit",
        "power.draw",
        "clocks.sm",
        "clocks.mem",
        "clocks.max.sm",
        "temperature.gpu",
        "clocks_throttle_reasons.active",
    )
    index = torch.device(device).index or 0
    row = _output("nvidia-smi", f"--id={index}", f"--query-gpu={','.join(fields)}", "--format=csv,noheader")
    return dict(zip(fields, (value.strip() for value in row.split(",")))) if row else None


def reset_peak_memory(device: str) -> None:
    """Resets the device's peak, so that `peak_memory` is of what follows."""
    if torch.device(device).type == "cuda":
        torch.cuda.init()  # before it, a device named with its number has no statistics
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: str) -> dict[str, int | None]:
    """Peak bytes: allocated and reserved on a GPU (None elsewhere), resident of the whole process on the
    host (None on Windows).
    """
    cuda = torch.device(device).type == "cuda"
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "allocated": torch.cuda.max_memory_allocated(device) if cuda else None,
        "reserved": torch.cuda.max_memory_reserved(device) if cuda else None,
        "resident": resource and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
    }
