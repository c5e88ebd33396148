"""How wide a kernel's accesses to device memory are, read from its PTX, and what it asks of wgmma.

A small data-flow analysis: which parameters each register is computed from, and whether it differs between
threads. PTX names its registers afresh, so the order of instructions does not matter: one set for each
register, grown until nothing changes, is exact enough.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator

THREAD = "thread"  # stands for the thread's index among the things that a register depends on

_PARAMETER = re.compile(r"\[\s*[\w$]+_param_(\d+)")
_REGISTER = re.compile(r"%[a-z]+\d+|%tid|%laneid")
_STATEMENT = re.compile(r"(?:@!?(%\w+)\s+)?([a-z][\w.:]*)\s*(.*)", re.DOTALL)
_NO_RESULT = (
    "st",
    "red",
    "cp",
    "bar",
    "bra",
    "prefetch",
    "fence",
    "membar",
    "mbarrier",
    "ret",
    "call",
    "trap",
)
_RESULT = re.compile(r"\s*(\{[^}]*\}|[^,{\[]+)")  # a register, or several in braces
_VECTOR = re.compile(r"\.v(\d)\b")
_BITS = re.compile(r"\.[a-z]+(8|16|32|64|128)(?=\.|$)")


def statements(ptx: str) -> Iterator[tuple[str | None, str, str]]:
    """(predicate register or None, opcode, operands) of each instruction, inline assembly included."""
    body = re.sub(r"//.*", "", ptx.partition(".entry")[2].partition("{")[2])
    body = re.sub(r"^\s*(?:[\w$]+:|\..*)\s*$", "", body, flags=re.MULTILINE)  # labels, directives
    for text in body.split(";"):
        text = re.sub(r"^[\s{}]*(?:[\w$]+:\s*)*", "", text)
        if match := _STATEMENT.fullmatch(text.strip()):
            yield match.groups()


def _bytes(opcode: str, operands: str) -> int:
    """Of one access by one thread; a bulk copy counts as 16."""
    if opcode.startswith("cp.async.bulk"):
        return 16
    if opcode.startswith("cp.async"):  # [shared], [global], bytes, ...
        return int(re.findall(r",\s*(0x[0-9a-f]+|\d+)", operands)[0], 0)
    vector = _VECTOR.search(opcode)
    return int(_BITS.findall(opcode)[-1]) * (int(vector[1]) if vector else 1) // 8


def accesses(ptx: str) -> tuple[dict[int, set[int]], set[int]]:
    """({parameter's index: widths in bytes}, parameters) of loads, stores and asynchronous copies through
    parameters: of those whose address differs between threads, and of those with one address a program.
    """
    sources: dict[str, set] = defaultdict(set)  # register -> parameters, and THREAD
    sources["%tid"] = sources["%laneid"] = {THREAD}
    steps = []  # (results, inputs, whether parameters pass through)
    touched = []  # (address registers, width, whether each thread has its own)
    for predicate, opcode, operands in statements(ptx):
        kind = opcode.split(".")[0]
        memory = [_REGISTER.findall(inside) for inside in re.findall(r"\[([^\]]*)\]", operands)]
        if kind in ("ld", "st", "atom", "red") and ".global" in opcode:
            touched.append((memory[0], _bytes(opcode, operands), False))
        elif opcode.startswith(("cp.async.ca", "cp.async.cg")):
            touched.append((memory[1], _bytes(opcode, operands), False))
        elif opcode.startswith("cp.async.bulk") and ".global" in opcode:
            touched.append((sum(memory, []), _bytes(opcode, operands), True))
        result = _RESULT.match(operands)
        if kind in _NO_RESULT or not result:
            continue
        results = _REGISTER.findall(result[0])
        if opcode.startswith("ld.param") and (parameter := _PARAMETER.search(operands)):
            sources[results[0]] = {int(parameter[1])}
        else:
            inputs = _REGISTER.findall(operands[result.end() :]) + [predicate] * bool(predicate)
            steps.append((results, inputs, kind not in ("ld", "atom")))

    before = -1
    while before != (now := sum(map(len, sources.values()))):
        before = now
        for results, inputs, passes in steps:
            origins = set().union(*(sources[register] for register in inputs))
            for register in results:
                sources[register] |= origins if passes else origins & {THREAD}

    widths: dict[int, set[int]] = defaultdict(set)
    uniform = set()
    for address, width, spread in touched:
        origins = set().union(*(sources[register] for register in address))
        for parameter in origins - {THREAD}:
            if spread or THREAD in origins:
                widths[parameter].add(width)
            else:
                uniform.add(parameter)
    return dict(widths), uniform


def from_registers(ptx: str) -> bool:
    """Whether a product of 9.0 reads its first operand from registers, as one that was computed is."""
    return bool(re.search(r"wgmma\.mma_async\.[^;]*\},\s*\{%", ptx))


def wgmmas(ptx: str) -> tuple[Counter[int], int]:
    """(number of products of 9.0 by their columns, number of waits until all of them are done)"""
    columns = re.findall(r"wgmma\.mma_async\.\S*\.m64n(\d+)k", ptx)
    return Counter(map(int, columns)), len(re.findall(r"wgmma\.wait_group\.\S*\s+0;", ptx))
