"""The instructions of a compiled kernel, counted by what they do, from its cubin.

    counts(cubin, cc=90) -> {"all": 1034, "tensor": 64, "async": 24, "global": 12, ...}

Counted is the code as it stands: the body of a loop once, however often it runs.

From compute capability 7.0 on an instruction takes 16 bytes, and its low 12 bits are the opcode. The names
are known to the `nvdisasm` in triton's package; as it takes a quarter of a second to start, it is asked once
for each opcode that a process comes across, not for each kernel.
"""

from __future__ import annotations

import re
import struct
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator

from .launch import triton

# group -> the names of its instructions, modifiers apart
GROUPS = {
    "all": r"(?!NOP$)\w+",  # NOP fills the code up to its alignment
    "tensor": r"[A-Z]*MMA",  # products on tensor cores: HMMA, HGMMA of 9.0, UTCHMMA of 10.0
    "async": r"LDGSTS|UBLKCP|UTMALDG|UTMASTG",  # copies between device and shared memory
    "global": r"LDG?|STG?|ATOMG?|REDG?",
    "shared": r"LDSM?|STSM?|ATOMS",
    "local": r"LDL|STL",  # of the stack
    "barrier": r"BAR|SYNCS|MEMBAR|UTCBAR|UCGABAR_\w+",
}
SIZE = 16  # bytes of an instruction
_names: dict[tuple[int, int], str] = {}  # (compute capability, opcode) -> name


def counts(cubin: bytes, cc: int) -> dict[str, int]:
    """group -> number of instructions in all functions of a cubin for compute capability `cc`."""
    code = b"".join(_code(cubin))
    opcodes = [low & 0xFFF for low, _ in struct.iter_unpack("<QQ", code)]
    new = {opcode: SIZE * opcodes.index(opcode) for opcode in set(opcodes) if (cc, opcode) not in _names}
    if new:
        found = _named((code[i : i + SIZE] for i in new.values()), cc)
        _names.update(zip(((cc, opcode) for opcode in new), found, strict=True))
    by_name = Counter()
    for opcode, count in Counter(opcodes).items():
        by_name[_names[cc, opcode]] += count
    return grouped(by_name)


def grouped(by_name: Counter[str]) -> dict[str, int]:
    """group -> number of instructions, from the number of each name."""
    return {
        group: sum(count for name, count in by_name.items() if re.fullmatch(pattern, name))
        for group, pattern in GROUPS.items()
    }


def _code(cubin: bytes) -> Iterator[bytes]:
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
