"""Step 7: every op beside what eager PyTorch and torch.compile make of its reference, the first case of
each op, then the second. At toy size some ops, each at its smallest case, through the interpreter.
"""

from __future__ import annotations

import itertools

import torch

import kernels
from hlb.runs import environment, ledger
from kernels.base.spec import Case, KernelSpec

from .. import micro
from .steps import Context, result, say

BESIDE = ("eager", "compiled", "triton")
TOY_OPS = ("scatter_losses", "update_running_stats")
COMMAND = "python -m bench card"


def cases(toy: bool) -> list[tuple[KernelSpec, Case]]:
    """The cases that are timed, in order."""
    if toy:
        return [(spec, least(spec)) for spec in map(kernels.CATALOGUE.get, TOY_OPS)]
    mine = ([(spec, case) for case in micro.few(spec)] for spec in kernels.CATALOGUE.values())
    return [pair for round in itertools.zip_longest(*mine) for pair in round if pair]


def least(spec: KernelSpec) -> Case:
    """The small case that moves the fewest bytes."""
    return min(spec.small(), key=lambda case: sum(spec.bytes(case, spec.dtypes[0]).values()))


def run(context: Context) -> None:
    device, file = context.device, context.folder.ops
    torch.backends.cudnn.benchmark = True
    before = environment.gpu_state(device)
    rows = [micro.Row(**row) for row in context.folder.read(file).get("rows", [])]
    ended = {(row.op, row.case) for row in rows}
    wanted, samples = (torch.float32, 2) if context.toy else (torch.float16, micro.timing.SAMPLES)
    chosen = [name for name in BESIDE if name != "compiled" or not context.toy]
    for spec, case in cases(context.toy):
        if (spec.name, case.name) in ended:
            continue
        if context.left() < 0:
            break
        new = micro.measure(spec, case, spec.dtype(wanted), device, chosen, samples)
        rows += new
        ledger.write(file, micro.as_record(rows, wanted, device, None, before, COMMAND))
        say(f"{spec.name} {case.name}: {told(new)}")
        result({"rows": len(rows), "wrong": sum(row.fault is not None for row in rows)})


def told(rows: list[micro.Row]) -> str:
    """The op's times and speed-ups over compiled, or its faults, in a line."""
    mine = [row for row in rows if row.implementation == "triton"]
    return ", ".join(
        row.fault
        or f"{row.direction} {1e6 * row.median:.1f} us"
        + (f" ({row.speed_up_compiled:.2f} x compiled)" if row.speed_up_compiled else "")
        for row in mine
    )
