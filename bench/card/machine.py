"""Step 1: versions and device; and what must be known before any step: the device, and the data."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch

from hlb import UserError
from hlb.data import CIFAR10, FOLDER, found
from hlb.runs import environment
from kernels.base import chips, launch

from .steps import Context, result, say


def found_data(asked: str | None) -> str | None:
    """The folder with CIFAR-10 that --data names, or that lies where `--data auto` looks; None where there is
    none. Nothing is downloaded. Raises UserError for a folder without it.
    """
    if asked is not None:
        root = Path(os.path.expanduser(asked))
        root = root.parent if root.name == FOLDER else root
        if not (root / FOLDER).is_dir():
            raise UserError(
                f"--data: no {FOLDER}/ in {asked!r}; give a folder that holds it, or leave it out"
            )
        return str(root.resolve())
    folder = found(CIFAR10)
    return str(folder.resolve()) if folder else None


def toy() -> str | None:
    """Why only toy sizes can be run here; None where all can."""
    if not torch.cuda.is_available():
        return "no CUDA device"
    return None if launch.INSTALLED and not launch.INTERPRETED else "no Triton that compiles"


def sanitizer() -> str | None:
    """The path of compute-sanitizer, if it is installed."""
    homes = (os.environ.get("CUDA_HOME"), "/usr/local/cuda")
    places = [str(Path(home) / "bin") for home in homes if home]
    return shutil.which("compute-sanitizer") or shutil.which(
        "compute-sanitizer", path=os.pathsep.join(places)
    )


def run(context: Context) -> None:
    device = context.device
    commit, dirty = environment.commit()
    facts = {
        "device_name": environment.device_name(device),
        "versions": environment.versions(),
        "commit": commit,
        "dirty": dirty,
        "cpus": len(os.sched_getaffinity(0)),
        "gpu": environment.gpu_state(device),
        "sanitizer": sanitizer(),
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts["memory"], facts["l2"] = properties.total_memory, properties.L2_cache_size
        facts["chip"] = chips.current(device).name
    versions = facts["versions"]
    known = ", ".join(f"{name} {versions[name]}" for name in ("python", "torch", "triton", "numpy"))
    say(f"{facts['device_name']}, {facts['cpus']} CPUs, {known}")
    result(facts)
