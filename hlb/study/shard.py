"""One job shared by all processes that torchrun starts, on one machine or several."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
from collections.abc import Iterator

import torch.distributed as dist

from .. import data as sets
from ..errors import UserError
from ..execution import Execution, available, cpus

# How long a process waits for the others, which may be in a long run. If one exits, the wait ends at once.
PATIENCE = datetime.timedelta(hours=24)
TORCHRUN = "torchrun --nproc-per-node 8 -m hlb sweep ... --shard"
# What torchrun tells each process.
NUMBERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT")
ADDRESS = "MASTER_ADDR"


def started() -> int:
    """How many processes torchrun, or a launcher that numbers them as it does, has started; 1 without one."""
    size = os.environ.get("WORLD_SIZE", "")
    return int(size) if "RANK" in os.environ and size.isdecimal() else 1


def expect_alone() -> None:
    """Raises UserError in one of several processes, which would all train the same seeds."""
    if started() > 1:
        raise UserError(
            f"this is one of {started()} processes (WORLD_SIZE), which would all train the same seeds; start "
            f"one, or share a sweep: {TORCHRUN}"
        )


def local(execution: Execution, sharded: bool) -> Execution:
    """The execution of this process. If `sharded`, with a GPU of its own, or its part of the CPU's threads.

    Raises UserError for `sharded` outside torchrun, for several processes without it, and for a device that
    all of them would take.
    """
    if not sharded:
        if started() > 1:
            raise UserError("--shard: not given, so that every process would run everything; add it")
        return execution
    if not all(os.environ.get(name, "").isdecimal() for name in NUMBERS) or ADDRESS not in os.environ:
        raise UserError(f"--shard: this process was not started by torchrun; take {TORCHRUN}")
    kind, _, index = execution.device.partition(":")
    if index:
        raise UserError(
            f"--device: got {execution.device}; with --shard each process has its own: take {kind}"
        )
    if kind in ("auto", "cuda") and available("cuda"):
        return dataclasses.replace(execution, device=f"cuda:{os.environ['LOCAL_RANK']}")
    part = max(1, cpus() // int(os.environ["LOCAL_WORLD_SIZE"]))
    return dataclasses.replace(execution, threads=execution.threads or part)


@contextlib.contextmanager
def processes(sharded: bool) -> Iterator[tuple[int, int]]:
    """Connects torchrun's processes; gives this one's rank and their number, (0, 1) for a single process."""
    if not sharded:
        yield 0, 1
        return
    dist.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield dist.get_rank(), dist.get_world_size()
    finally:
        dist.destroy_process_group()


def gather(value: object) -> list:
    """Every process's `value`, by rank, once all have called it. Raises UserError if one of them has
    exited.
    """
    if not dist.is_initialized():
        return [value]
    values = [None] * dist.get_world_size()
    try:
        dist.all_gather_object(values, value)
    except RuntimeError:
        raise UserError(
            "--shard: another process has ended; what had finished is in the ledger, and the same command "
            "goes on from there"
        ) from None
    return values


def load(data: str) -> sets.Dataset:
    """The data set that `data` names; a machine's first process downloads it before the others look."""
    first = not dist.is_initialized() or os.environ["LOCAL_RANK"] == "0"
    if not first:
        gather(None)
    dataset = sets.load(data)
    if first:
        gather(None)
    return dataset
