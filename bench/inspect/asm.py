"""The code that a case's kernels compile to, at one of its stages, with or without a GPU.

    python -m bench asm sass cross_entropy --case record94 > record94.sass

It is compiled ahead of time, as a call would have it: for the GPU that is here, without one for 9.0, or for
`--chip`. Before each kernel stand comments of that assembly: what is launched, and what it takes of a
multiprocessor. A kernel that is launched twice alike is printed once. SASS names the Python line of each
instruction.
"""

from __future__ import annotations

import subprocess
import tempfile

import torch
from rich.console import Console

from hlb import UserError
from hlb.errors import expect_known
from kernels.base import chips, launch
from kernels.base.launch import Launch, triton
from kernels.base.spec import Case, KernelSpec

from ..check.aot import Compiled, compile_launch, compiled, identity
from ..check.check import chip as chip_name
from ..check.check import record, tile_options

# stage, in the order of compilation -> what begins a comment there
STAGES = {"ttir": "//", "ttgir": "//", "llir": ";", "ptx": "//", "sass": "//"}
CHIPS = {chip_name(cc): target for cc, target in chips.TARGETS.items()}  # 8.0: ...
NAMED = 31  # cases that an error lists: as many as the op of most has


def only_case(todo: dict[KernelSpec, list[Case]]) -> tuple[KernelSpec, Case]:
    """The one case that was chosen. Raises UserError where there are several."""
    pairs = [(spec, case) for spec, cases in todo.items() for case in cases]
    if len(pairs) == 1:
        return pairs[0]
    names = ", ".join(f"{spec.name} {case.name}" for spec, case in pairs[:NAMED])
    more = f" and {len(pairs) - NAMED} more" if len(pairs) > NAMED else ""
    raise UserError(f"takes one op and one --case, here are {len(pairs)}: {names}{more}")


def run(
    console: Console, todo: dict[KernelSpec, list[Case]], dtype: torch.dtype, stage: str, chip: str | None
) -> int:
    """Prints a stage of STAGES of all that one call of the one case launches, forward and backward, for a
    chip of CHIPS or the one that is here. Returns the exit status, 1 where a kernel does not compile. Raises
    UserError where nothing can be compiled.
    """
    if chip is not None:
        expect_known("--chip", CHIPS, chip)
    if not launch.INSTALLED:
        raise UserError("needs triton, which is not installed here")
    if launch.INTERPRETED:
        raise UserError("TRITON_INTERPRET is set, under which nothing is compiled; unset it")
    spec, case = only_case(todo)
    on = CHIPS[chip] if chip else chips.here()
    with chips.targeting(on):
        launches = record(spec, case, dtype)
    alike: dict[str, list[int]] = {}
    for i, one in enumerate(launches):
        alike.setdefault(identity(one), []).append(i)
    status = 0
    for numbers in alike.values():
        one = launches[numbers[0]]
        result = compile_launch(one, on.cc)
        which = f"launch {' and '.join(str(i + 1) for i in numbers)} of {len(launches)}"
        of = f"{spec.name}, {case.name}, {launch.short(dtype)}, chip {chip_name(on.cc)}, {which}"
        lines = [f"{STAGES[stage]} {line}" for line in (of, *heading(one, result))]
        lines.append("" if result.error else code(one, on.cc, stage))
        status = 1 if result.error else status
        print(*lines, sep="\n", file=console.file, flush=True)  # as it is: rich would expand tabs
    return status


def heading(one: Launch, result: Compiled) -> list[str]:
    """Form and resources of a launch in a line, its constants in another; or why it does not compile."""
    options = f" {words}" if (words := tile_options(one)) else ""
    form = f"{one.name}{options}: grid {'x'.join(map(str, one.grid))}, {one.num_warps} warps"
    form += f", {one.num_stages} stages"
    if result.error:
        return [form, f"does not compile: {result.error}"]
    took = f"{result.registers} registers, {result.stack} B of stack, {result.shared} B of shared memory"
    return [f"{form}; {took}", " ".join(f"{name}={value}" for name, value in one.constants.items())]


def code(one: Launch, cc: int, stage: str) -> str:
    """A stage of a launch's compilation; SASS is disassembled from the cubin."""
    binary = compiled(one, cc)
    return sass(binary.asm["cubin"]) if stage == "sass" else binary.asm[stage]


def sass(cubin: bytes) -> str:
    """Instructions with their addresses, labels and Python lines, by the `nvdisasm` in triton's package."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = (triton.knobs.nvidia.nvdisasm.path, "-c", "-g", "-ndf", file.name)
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
