"""The instructions of a compiled kernel, counted by what they do, from its cubin.

    code = read(cubin, cc=90)
    counts(code, 90) -> {"all": 1034, "tensor": 64, "async": 24, "global": 12, ..., "loop": 118}
    wgmmas(code) -> ({128: 4}, 1)

Counted is the code as it stands: the body of a loop once, however often it runs. "loop" is the body of the
hottest loop: of those in which there is no other, the one with the most products, and of these the longest.

From compute capability 7.0 on an instruction takes 16 bytes, and its low 12 bits are the opcode. The names
are known to the `nvdisasm` in triton's package; as it takes a quarter of a second to start, it is asked once
for each opcode that a process comes across, not for each kernel. What else is read of an instruction, where
a branch goes, the columns of a wgmma, how many groups of them a wait leaves, stands in bits that are decoded
here, and that tests compare with what nvdisasm prints.
"""

from __future__ import annotations

import re
import struct
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from kernels.base.launch import triton

# group -> the names of its instructions, modifiers apart
GROUPS = {
    "all": r"(?!NOP$)\w+",  # NOP fills the code up to its alignment
    "tensor": r"[A-Z]*MMA",  # products on tensor cores: HMMA, HGMMA of 9.0 (of 8 bits QGMMA), UTCHMMA of 10.0
    "async": r"LDGSTS|UBLKCP|UTMALDG|UTMASTG",  # copies between device and shared memory
    "global": r"LDG?|STG?|ATOMG?|REDG?",
    "shared": r"LDSM?|STSM?|ATOMS",
    "local": r"LDL|STL",  # of the stack
    "barrier": r"BAR|SYNCS|MEMBAR|UTCBAR|UCGABAR_\w+",
}
COUNTED = (*GROUPS, "loop")
WAITS = re.compile(r"SYNCS|NANOSLEEP")  # a loop with these and none of WORKS tries a barrier again
WORKS = re.compile("|".join(GROUPS[group] for group in ("tensor", "async", "global", "shared", "local")))
SIZE = 16  # bytes of an instruction
_names: dict[tuple[int, int], str] = {}  # (compute capability, opcode) -> name


class Instruction(NamedTuple):
    name: str
    low: int  # 64 bits, as the next
    high: int


Code = list[list[Instruction]]  # by function


def read(cubin: bytes, cc: int) -> Code:
    """The instructions of a cubin for compute capability `cc`."""
    functions = [list(struct.iter_unpack("<QQ", code)) for code in _sections(cubin)]
    new = {
        low & 0xFFF: (low, high)
        for code in functions
        for low, high in code
        if (cc, low & 0xFFF) not in _names
    }
    if new:
        names = _named((struct.pack("<QQ", *words) for words in new.values()), cc)
        _names.update(zip(((cc, opcode) for opcode in new), names, strict=True))
    return [[Instruction(_names[cc, low & 0xFFF], low, high) for low, high in code] for code in functions]


def counts(code: Code, cc: int) -> dict[str, int]:
    """The number of instructions of each of COUNTED."""
    hottest = max((_heat(body) for function in code for body in _innermost(function, cc)), default=(0, 0))
    return grouped(Counter(one.name for function in code for one in function)) | {"loop": hottest[1]}


def grouped(by_name: Counter[str]) -> dict[str, int]:
    """group -> number of instructions, from the number of each name."""
    return {
        group: sum(count for name, count in by_name.items() if re.fullmatch(pattern, name))
        for group, pattern in GROUPS.items()
    }


def wgmmas(code: Code) -> tuple[Counter[int], int, int]:
    """(number of products of 9.0 by their columns, number of waits until all of them are done, and of those
    that leave some under way)
    """
    columns, waits, partial = Counter(), 0, 0
    for name, low, high in (one for function in code for one in function):
        if name in ("HGMMA", "QGMMA"):
            columns[8 * ((low >> 53 & 0x1F) + 1)] += 1
        elif name == "WARPGROUP":  # which waits for all groups but so many, where bit 47 is set
            left = high >> 8 & 0xFF
            waits += low >> 47 & 1 and not left
            partial += low >> 47 & 1 and left > 0
    return columns, waits, partial


# Loops


def _heat(body: list[str]) -> tuple[int, int]:
    """(products, instructions) of a loop."""
    groups = grouped(Counter(body))
    return groups["tensor"], groups["all"]


def _innermost(function: list[Instruction], cc: int) -> Iterator[list[str]]:
    """The names of the instructions of each loop in which there is no other; loops that wait do not count."""
    names = [one.name for one in function]
    candidates = []
    for places in loops(function, cc):
        body = [names[i] for i in places]
        if any(map(WORKS.fullmatch, body)) or not any(map(WAITS.fullmatch, body)):
            candidates.append((places, body))
    for places, body in candidates:
        if not any(inside < places for inside, _ in candidates):
            yield body


def loops(function: list[Instruction], cc: int) -> list[set[int]]:
    """The places of the instructions of each loop: what is passed between a branch that goes back to where
    it came through, and the place that it goes to. Into a loop one place leads, as compilers make them.
    """
    jumps = {i: _next(i, one, cc) for i, one in enumerate(function) if one.name in ("BRA", "EXIT", "RET")}
    starts = sorted({0, *(place for to in jumps.values() for place in to), *(i + 1 for i in jumps)})
    blocks = {start: range(start, end) for start, end in zip(starts, (*starts[1:], len(function)))}
    after = {start: jumps.get(block[-1], [block.stop]) for start, block in blocks.items() if block}
    after = {start: [place for place in to if place in after] for start, to in after.items()}
    back, before = _walked(after)
    bodies: dict[int, set[int]] = {}
    for source, head in back:
        body, todo = bodies.setdefault(head, {head}), [source]
        while todo:
            if (block := todo.pop()) not in body:
                body.add(block)
                todo += before[block]
    return [{i for block in body for i in blocks[block]} for body in bodies.values()]


def _walked(after: dict[int, list[int]]) -> tuple[list[tuple[int, int]], dict[int, list[int]]]:
    """(steps back to a block on the way to where they start, the blocks before each), of what is reached."""
    back, before = [], {0: []}
    way = {0: iter(after[0])}  # from the first block to this one, and where each goes on
    while way:
        here = next(reversed(way))
        there = next(way[here], None)
        if there is None:
            del way[here]
            continue
        if there in way:
            back.append((here, there))
        elif there not in before:
            way[there] = iter(after[there])
        before.setdefault(there, []).append(here)
    return back, before


def _next(place: int, one: Instruction, cc: int) -> list[int]:
    """Where a program may go on after a branch or an end."""
    always = one.low >> 12 & 0xF == 7  # its predicate is "true"
    if one.name != "BRA":
        return [] if always else [place + 1]
    offset = (one.low >> 34 | (one.high & 0x3FFFF) << 30) - (one.high >> 17 & 1) * (1 << 48)
    if cc >= 90:  # its last bits lie apart
        offset = offset << 8 | one.low >> 16 & 0xFF
    to = place + 1 + offset * 4 // SIZE
    # A second predicate may be an operand; that of a warp as a whole has an opcode of its own.
    always &= one.high >> 23 & 0xF == 7 and one.low & 0xFFF == 0x947
    return [to] if always else [to, place + 1]


# The file


def _sections(cubin: bytes) -> Iterator[bytes]:
    """The sections of an ELF file that hold instructions."""
    (table,) = struct.unpack_from("<Q", cubin, 0x28)
    size, number, strings = struct.unpack_from("<3H", cubin, 0x3A)
    # name, type, flags, address, offset, size
    sections = [struct.unpack_from("<IIQQQQ", cubin, table + i * size) for i in range(number)]
    for name, _, _, _, start, length in sections:
        if cubin.startswith(b".text.", sections[strings][4] + name):
            yield cubin[start : start + length]


def _named(instructions: Iterable[bytes], cc: int) -> list[str]:
    with tempfile.NamedTemporaryFile(suffix=".bin") as file:
        file.write(b"".join(instructions))
        file.flush()
        chip = f"SM{cc}{'a' * (cc >= 90)}"  # "a", for the instructions of this chip alone, as triton compiles
        command = (triton.knobs.nvidia.nvdisasm.path, "-ndf", "--binary", chip, file.name)
        return names(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def names(text: str) -> list[str]:
    """Of the instructions in what `nvdisasm` prints, without predicates and modifiers."""
    return re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+ +)?(\w+)", text, re.MULTILINE)
