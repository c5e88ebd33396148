"""`python -m bench asm`: the code of a case, compiled without a GPU in a process without the interpreter."""

from __future__ import annotations

import dataclasses
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from bench.check.aot import broken
from bench.inspect import asm
from hlb import UserError
from kernels.base import chips, launch
from kernels.base.launch import INSTALLED, triton
from kernels.base.spec import Case, KernelSpec

pytestmark = pytest.mark.skipif(not INSTALLED, reason="triton is not installed")

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import sys, torch
from rich.console import Console
from bench.inspect import asm
from kernels import CATALOGUE

spec = CATALOGUE["cross_entropy"]
for stage, chip in (word.split(":") for word in sys.argv[2:]):
    with open(f"{sys.argv[1]}/{stage}", "w") as file:
        todo = {spec: [case for case in spec.cases if case.name == "record94"]}
        assert asm.run(Console(file=file, width=40), todo, torch.float16, stage, chip) == 0
"""


@triton.jit
def _first(p_x, N):
    pass


@triton.jit
def _second(p_x, N):
    pass


def op(x):
    for kernel, size in ((_first, 16), (_second, 32), (_first, 16)):
        launch.launch(kernel, (3, size), x, size, BLOCK=size, num_warps=8)
    return x


SPEC = KernelSpec(
    name="doubled",
    formula="2 x",
    reference=lambda x: x,
    op=op,
    ops=(),
    make=lambda case, dtype, device: {"x": torch.ones(case.n, dtype=dtype, device=device)},
    cases=tuple(Case(f"case {i}", n=4) for i in range(40)),
    space={},
    counted=(),
    bytes=lambda case, dtype: {},
)


@pytest.fixture(scope="module")
def printed(tmp_path_factory) -> dict[str, str]:
    """What is printed of a real kernel, by stage: of each for one chip."""
    folder = tmp_path_factory.mktemp("printed")
    stages = ("ttir:8.0", "ttgir:8.0", "llir:8.0", "ptx:8.0", "sass:8.0")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = (sys.executable, "-c", PROGRAM, str(folder), *stages)
    subprocess.run(command, check=True, cwd=ROOT, env=environment | {"PYTHONPATH": str(ROOT)})
    return {file.name: file.read_text() for file in folder.iterdir()}


def test_each_stage_is_printed_whole_under_comments_of_its_own_syntax(printed):
    signs = {"ttir": " tt.func public @_cross_entropy", "ttgir": "#ttg.blocked", "llir": "@_cross_entropy",
             "ptx": ".visible .entry _cross_entropy(", "sass": "STG"}  # fmt: skip
    assert printed.keys() == signs.keys() == asm.STAGES.keys()
    for stage, text in printed.items():
        first, second, third, *code = text.splitlines()
        comment = asm.STAGES[stage]
        assert first == f"{comment} cross_entropy, record94, float16, chip 8.0, launch 1 of 1"
        assert second.startswith(f"{comment} _cross_entropy: grid 48, 4 warps, 2 stages; ")
        assert second.endswith(" registers, 0 B of stack, 16 B of shared memory")
        assert third.startswith(f"{comment} CLASSES=10 ")
        assert any(signs[stage] in line for line in code)


def test_printed_ptx_can_be_assembled(printed, tmp_path):
    (tmp_path / "a.ptx").write_text(printed["ptx"])
    command = (triton.knobs.nvidia.ptxas.path, "-arch", "sm_80", "a.ptx", "-o", "a.cubin")
    subprocess.run(command, check=True, cwd=tmp_path)
    registers = printed["ptx"].splitlines()[1].split("; ")[1]
    assert f"REG:{registers.split()[0]} " in subprocess.run(
        (triton.knobs.nvidia.cuobjdump.path, "-res-usage", "a.cubin"),
        check=True, cwd=tmp_path, capture_output=True, text=True,
    ).stdout  # fmt: skip


def test_sass_has_the_python_line_of_an_instruction(printed):
    lines = (ROOT / "kernels" / "cross_entropy.py").read_text().splitlines()
    (number,) = [i for i, text in enumerate(lines, 1) if "tl.load(p_targets" in text]
    pieces = [piece.partition("\n") for piece in printed["sass"].split("//## File ")]
    mine = [code for where, _, code in pieces if where.endswith(f'cross_entropy.py", line {number}')]
    assert any("LDG" in code for code in mine) and not any("STG" in code for code in mine)


@pytest.fixture
def compiler(monkeypatch):
    """A compiler that says what it was given, and nothing for `_second` of chip 8.9."""
    monkeypatch.setattr(launch, "INTERPRETED", False)

    def compile_launch(one, cc):
        found = broken(one, cc, "it breaks" if (one.name, cc) == ("_second", 89) else "")
        return dataclasses.replace(found, registers=cc, stack=8, shared=1024)

    monkeypatch.setattr(asm, "compile_launch", compile_launch)
    monkeypatch.setattr(asm, "code", lambda one, cc, stage: f"\t{stage} of {one.name} for {cc}")


def shown(stage: str = "ptx", chip: str | None = None, cases: int = 1, status: int = 0) -> list[str]:
    out = io.StringIO()
    todo = {SPEC: list(SPEC.cases[:cases])}
    assert asm.run(Console(file=out, width=20), todo, torch.float16, stage, chip) == status
    return out.getvalue().splitlines()


def test_launches_of_the_same_code_are_printed_once_and_no_line_is_broken(compiler):
    assert shown(chip="10.0") == [
        "// doubled, case 0, float16, chip 10.0, launch 1 and 3 of 3",
        "// _first: grid 3x16, 8 warps, 2 stages; 100 registers, 8 B of stack, 1024 B of shared memory",
        "// BLOCK=16",
        "\tptx of _first for 100",
        "// doubled, case 0, float16, chip 10.0, launch 2 of 3",
        "// _second: grid 3x32, 8 warps, 2 stages; 100 registers, 8 B of stack, 1024 B of shared memory",
        "// BLOCK=32",
        "\tptx of _second for 100",
    ]


def test_kernel_that_does_not_compile_is_a_comment_and_exit_status_1(compiler):
    lines = shown("llir", "8.9", status=1)
    assert lines[-2:] == ["; does not compile: it breaks", ""] and "\tllir of _first for 89" in lines


def test_chip_is_the_one_that_is_here_else_9_0(compiler, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "\tptx of _first for 90" in shown()
    monkeypatch.setattr(asm.chips, "here", lambda: chips.TARGETS[80])
    assert "\tptx of _first for 80" in shown()


def test_launches_are_those_of_the_chip_that_is_compiled_for(compiler, monkeypatch):
    asked = []
    monkeypatch.setitem(SPEC.__dict__, "op", lambda x: asked.append(chips.current(x.device).cc) or op(x))
    shown(chip="8.9", status=1)
    assert asked == [89]


def test_mistakes_are_a_line_each(compiler, monkeypatch):
    def refused(**options) -> str:
        with pytest.raises(UserError) as raised:
            shown(**options)
        assert "\n" not in str(raised.value)
        return str(raised.value)

    assert refused(cases=2).endswith("here are 2: doubled case 0, doubled case 1")
    assert refused(cases=40).endswith("doubled case 30 and 9 more")
    assert refused(chip="7.5") == "--chip: got '7.5', accepted are 8.0, 8.9, 9.0, 10.0"
    monkeypatch.setattr(launch, "INTERPRETED", True)
    assert "TRITON_INTERPRET" in refused()
    monkeypatch.setattr(launch, "INSTALLED", False)
    assert "needs triton" in refused()
