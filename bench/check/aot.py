"""Ahead-of-time compilation of a recorded launch, and what can be read from the result without a GPU.

    compile_launch(launch, cc=90) -> registers, stack, shared memory, instructions, widths of accesses, faults

The compiler is triton's own; registers and stack come from the `cuobjdump` in its package, the names of
instructions from the `nvdisasm`.
"""

from __future__ import annotations

import inspect
import math
import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hlb import UserError
from kernels.base.compilers import missing
from kernels.base.launch import Launch, TensorDescriptor, triton

from . import ptx, sass

TYPES = {
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.float8_e4m3fn: "fp8e4nv",
    torch.float8_e5m2: "fp8e5",
    torch.uint8: "u8",
    torch.int8: "i8",
    torch.int16: "i16",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.bool: "u1",
}


@dataclass(frozen=True)
class Compiled:
    """A launch on one chip. `widths` maps a pointer argument to the bytes of its narrowest and widest access,
    of those whose address differs between threads; `uniform` names the arguments of all other accesses.
    `instructions` has as many of each group, and in the hottest loop, as `sass.counts` finds.
    """

    cc: int
    registers: int
    stack: int
    shared: int
    num_warps: int
    widths: dict[str, tuple[int, int]]
    uniform: tuple[str, ...] = ()
    instructions: dict[str, int] = field(default_factory=dict)
    faults: tuple[str, ...] = ()  # of dots and loops
    error: str = ""  # why it does not compile

    @property
    def occupancy(self) -> float:
        """Resident warps of 64 that registers and shared memory of a 9.0 chip allow."""
        a_warp = max(1, math.ceil(self.registers / 8)) * 8 * 32
        by_registers = 65536 // (a_warp * self.num_warps)
        by_shared = 228 * 1024 // (self.shared + 1024)  # 1 KiB of each program is the system's
        return min(by_registers, by_shared, 32, 64 // self.num_warps) * self.num_warps / 64


def signature(launch: Launch) -> tuple[dict[str, str], dict[str, object], dict[tuple[int], list]]:
    """(types, constants, attributes) as triton's ASTSource takes them, specialised as a call would be.

    A tensor's start and an int may be known to be multiples of 16; an int that is 1 is a constant. Raises
    ValueError for an argument of another kind: a float must be a tl.constexpr.
    """
    parameters = inspect.signature(launch.kernel.fn).parameters
    types = dict.fromkeys(parameters, "constexpr")
    constants = {name: p.default for name, p in parameters.items() if p.default is not p.empty}
    constants |= launch.constants
    attributes = {}
    for i, (name, value) in enumerate(zip(parameters, launch.arguments)):
        if value is None or (type(value) is int and value == 1):
            constants[name] = value
            continue
        if isinstance(value, Tensor):
            types[name] = f"*{TYPES[value.dtype]}"
            aligned = value.storage_offset() * value.itemsize % 16 == 0
        elif TensorDescriptor is not None and isinstance(value, TensorDescriptor):
            types[name] = f"tensordesc<{TYPES[value.base.dtype]}[{', '.join(map(str, value.block_shape))}]>"
            aligned = False
        elif type(value) is int:
            types[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            aligned = value % 16 == 0
        else:
            raise ValueError(f"{name}: got {value!r}, accepted are tensors, ints and None")
        if aligned:
            attributes[(i,)] = [["tt.divisibility", 16]]
    return types, {name: constants[name] for name, kind in types.items() if kind == "constexpr"}, attributes


def identity(launch: Launch) -> str:
    """The same for launches that compile to the same code."""
    function = launch.kernel.fn
    return repr((function.__module__, launch.name, launch.num_warps, launch.num_stages, *signature(launch)))


def compiled(launch: Launch, cc: int):
    """triton's CompiledKernel of a launch for a compute capability such as 90: `asm` holds its stages by name
    (ttir, ttgir, llir, ptx, cubin). Raises what the compiler raises.
    """
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types, constants, known = signature(launch)
    # As a call would have it, to the letter, so that it finds in triton's cache what is compiled here.
    attributes = {
        (i,): known.get((i,), [])
        for i, (name, kind) in enumerate(types.items())
        if kind[0] in "*i" or isinstance(constants.get(name), str)
    }
    return triton.compile(
        ASTSource(launch.kernel, types, constants, attributes),
        target=GPUTarget("cuda", cc, 32),
        options={"num_warps": launch.num_warps, "num_stages": launch.num_stages},
    )


def compile_launch(launch: Launch, cc: int) -> Compiled:
    """Compiles a launch for a compute capability such as 90. What is wrong with it is in `Compiled.error`;
    raises UserError where nothing can be compiled.
    """
    try:
        binary, types = compiled(launch, cc), signature(launch)[0]
    except Exception as error:  # whatever the compiler raises is reported
        if why := missing(error):
            raise UserError(f"nothing can be compiled here: {why}") from None
        lines = [line.strip() for line in str(error).splitlines() if line.strip(" \n^")]
        return broken(launch, cc, f"{type(error).__name__}: {' ... '.join(lines[:1] + lines[1:][-2:])}"[:400])
    registers, stack = _resources(binary.asm["cubin"])
    code = sass.read(binary.asm["cubin"], cc)
    arguments = [name for name, kind in types.items() if kind != "constexpr"]
    pointers = {i: name for i, name in enumerate(arguments) if types[name].startswith("*")}
    by_thread, uniform = ptx.accesses(binary.asm["ptx"])
    return Compiled(
        cc=cc,
        registers=registers,
        stack=stack,
        shared=binary.metadata.shared,
        num_warps=launch.num_warps,
        widths={pointers[i]: (min(w), max(w)) for i, w in sorted(by_thread.items()) if i in pointers},
        uniform=tuple(pointers[i] for i in sorted(uniform) if i in pointers),
        instructions=sass.counts(code, cc),
        faults=tuple(
            dot_faults(binary.asm["ttir"], binary.asm["ttgir"], binary.asm["ptx"], launch.num_stages)
            + (wgmma_faults(binary.asm["ttgir"]) if cc == 90 and launch.num_warps >= 4 else [])
            + assembler_faults(
                *ptx.wgmmas(binary.asm["ptx"]), *sass.wgmmas(code), ptx.from_registers(binary.asm["ptx"])
            )
        ),
    )


def versions() -> dict[str, str]:
    """Versions that the code depends on: triton, and its assemblers, the second for 10.0 and above."""
    nvidia = triton.knobs.nvidia
    assemblers = {"ptxas": nvidia.ptxas.version, "ptxas-blackwell": nvidia.ptxas_blackwell.version}
    return {"triton": triton.__version__} | assemblers


def broken(launch: Launch, cc: int, why: str) -> Compiled:
    """The result of a launch that does not compile."""
    return Compiled(cc, 0, 0, 0, launch.num_warps, {}, error=why)


def _resources(cubin: bytes) -> tuple[int, int]:
    """(registers of a thread, bytes of its stack)"""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = (triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name)
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    match = re.search(r"REG:(\d+) STACK:(\d+)", text)
    return int(match[1]), int(match[2])


_ANY_DOT = re.compile(r"\b(?:tt\.dot|ttng\.warp_group_dot|ttng\.tc_gen5_mma)\b")
_MMA = re.compile(r"\b(?:mma\.sync|wgmma\.mma_async|tcgen05\.mma)\b")
_FOR_TENSOR_CORES = re.compile(
    r"\dx(?:f16|bf16|f8E\w+)\b|inputPrecision = (?:tf32|bf16)"
)  # or full-precision float32


def dot_faults(ttir: str, ttgir: str, ptx_text: str, num_stages: int) -> list[str]:
    """The faults of a kernel's dots and the loops around them, from three stages of its compilation."""
    dots = [bool(_FOR_TENSOR_CORES.search(line)) for line in ttir.splitlines() if " tt.dot " in line]
    scalar = [line for line in ttgir.splitlines() if " tt.dot " in line and "parent = #blocked" in line]
    faults = []
    if any(dots) and (
        not _MMA.search(ptx_text)
        or any(_FOR_TENSOR_CORES.search(line) for line in scalar)
        or (all(dots) and scalar)
    ):
        faults.append("a dot runs without tensor cores")
    if num_stages > 1 and any(
        _ANY_DOT.search(loop) and " tt.load " in loop and not re.search(r"\basync_\w*copy", loop)
        for loop in loops(ttgir)
    ):
        faults.append(
            "a loop around a dot loads without asynchronous copies; launch it with num_stages=1 if it must"
        )
    return faults


_SMALL_DOT = re.compile(r" tt\.dot .*x(?:f16|bf16|f8E\w+)\b.*-> tensor<(\d+)x")


def wgmma_faults(ttgir: str) -> list[str]:
    """The faults of a kernel's dots on 9.0, whose own instruction takes 4 warps and 64 rows or more."""
    dots = _SMALL_DOT.finditer(ttgir)  # what is left of them for the instruction of 8.0
    return (
        ["a dot of 16 or 8 bits and 64 rows runs without wgmma"]
        if any(int(dot[1]) >= 64 for dot in dots)
        else []
    )


SERIAL = "the assembler lets every wgmma end before the next"
RACE = "a wgmma is under way while the next step writes the registers that it reads"


def assembler_faults(
    asked: Counter[int],
    asked_waits: int,
    done: Counter[int],
    waits: int,
    partial: int = 0,
    registers: bool = False,
) -> list[str]:
    """What the assembler has made of the products of 9.0, by their columns, and of waits for all of them.

    Where it cannot tell that nothing touches the sums of a product under way, it waits after each, in the
    whole kernel (its warnings C7514, C7515); and its 12.8 and 12.9 were seen to leave products out. It may
    write code twice, products and waits alike: more products than were asked for are none too few, and a
    wait for each of them is one for each of those asked for.

    A product whose first operand is in `registers` must not be under way (`partial` waits) when the next step
    of the loop computes its own: the assembler gives both the same registers. On an H200, tiles of 128x256
    came out wrong by a fifth.
    """
    faults = [RACE] if registers and partial else []
    if not registers and sum(asked.values()) > asked_waits and 0 < sum(done.values()) <= waits:
        faults.append(SERIAL)
    return faults + [
        f"the assembler leaves out {number - done[columns]} of {number} wgmmas of {columns} columns"
        for columns, number in sorted(asked.items())
        if done[columns] < number
    ]


def loops(ir: str) -> list[str]:
    """The bodies of all loops of a kernel in MLIR's text form, nested ones included."""
    lines, bodies = ir.splitlines(), []
    for start, line in enumerate(lines):
        if re.match(r"\s*(?:%[\w:, %]+ = )?scf\.(?:for|while)\b", line):
            indent = line[: len(line) - len(line.lstrip())]
            end = next(i for i in range(start + 1, len(lines)) if lines[i].startswith(f"{indent}}}"))
            bodies.append("\n".join(lines[start + 1 : end]))
    return bodies
