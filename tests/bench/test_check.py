"""The ahead-of-time check: what it reads from compiled kernels, its rules, its command."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from rich.console import Console

from bench.check import check, cli, ptx, sass
from bench.check.aot import (
    SERIAL,
    TYPES,
    Compiled,
    assembler_faults,
    dot_faults,
    identity,
    loops,
    signature,
    wgmma_faults,
)
from bench.gate import snapshot, static
from kernels import CATALOGUE, __main__
from kernels.base import chips, launch
from kernels.base.launch import Launch, box, tl, triton

pytestmark = pytest.mark.skipif(not launch.INSTALLED, reason="triton is not installed")

ROOT = Path(__file__).resolve().parents[2]


# Widths of accesses, from PTX


def accesses(*instructions: str):
    """Of a kernel whose parameters 0 and 1 are in %rd1 and %rd2, the thread's index in %r1."""
    start = (
        "ld.param.b64 %rd1, [k_param_0];",
        "ld.param.b64 %rd2, [k_param_1];",
        "mov.u32 %r1, %tid.x;",
        "mov.u32 %r2, %ctaid.x;",
    )
    return ptx.accesses(
        "\n".join((".visible .entry k(", ")", "{", ".reg .b32 %r<9>;", *start, *instructions, "}"))
    )


@pytest.mark.parametrize(
    "access, width",
    [
        ("ld.global.v4.b32 {%r5, %r6, %r7, %r8}, [%rd3];", 16),
        ("@%p1 ld.global.L1::evict_last.v2.b64 { %rd5, %rd6 }, [ %rd3 + 0 ];", 16),
        ("@!%p1 st.global.v8.b32 [ %rd3 + 32 ], { %r1, %r1, %r1, %r1, %r1, %r1, %r1, %r1 };", 32),
        ("st.global.b16 [%rd3], %rs1;", 2),
        ("ld.global.nc.v2.f32 {%f1, %f2}, [%rd3+8];", 8),
        ("ld.global.u8 %rs1, [%rd3];", 1),
        ("cp.async.cg.shared.global [ %r5 + 0 ], [ %rd3 + 0 ], 0x10, %r6;", 16),
        ("cp.async.ca.shared.global [ %r5 + 0 ], [ %rd3 + 0 ], 4, 4;", 4),
    ],
)
def test_width_of_an_access(access, width):
    assert accesses("mad.wide.s32 %rd3, %r1, 16, %rd1;", access) == ({0: {width}}, set())


def test_an_address_is_followed_through_arithmetic_and_selection():
    found = accesses(
        "shl.b32 %r3, %r1, 4;",
        "cvt.u64.u32 %rd3, %r3;",
        "add.s64 %rd4, %rd2, %rd3;",
        "selp.b64 %rd5, %rd4, %rd2, %p1;",
        "st.global.b32 [%rd5], %r3;",
    )
    assert found == ({1: {4}}, set())


def test_an_address_is_followed_around_a_loop():
    found = accesses(
        "mov.b64 %rd3, %rd1;",
        "$L__BB0_1:",
        "ld.global.b64 %rd9, [%rd3];",
        "mov.b64 %rd3, %rd4;",  # before what it copies is computed, in the text
        "add.s64 %rd4, %rd3, %rd5;",
        "cvt.u64.u32 %rd5, %r1;",
        "@%p1 bra $L__BB0_1;",
    )
    assert found == ({0: {8}}, set())


def test_what_is_loaded_through_a_pointer_does_not_derive_from_it_but_does_differ_between_threads():
    found = accesses(
        "mad.wide.s32 %rd3, %r1, 8, %rd1;",
        "ld.global.v2.b64 {%rd4, %rd5}, [%rd3];",  # indices
        "add.s64 %rd6, %rd2, %rd4;",
        "ld.global.b16 %rs1, [%rd6];",
    )
    assert found == ({0: {16}, 1: {2}}, set())


def test_an_access_of_one_address_a_program_is_kept_apart():
    found = accesses("mad.wide.s32 %rd3, %r2, 4, %rd1;", "@%p1 st.global.b32 [%rd3], %r1;")
    assert found == ({}, {0})


def test_accesses_of_shared_memory_are_none_of_device_memory():
    assert accesses("add.s32 %r3, %r4, %r1;", "ld.shared.b32 %r5, [%r3];", "st.shared.b32 [%r3], %r5;") == (
        {},
        set(),
    )


def test_comments_and_inline_assembly_are_read():
    found = accesses(
        "add.s64 %rd3, %rd1, %rd4; // and; st.global.b8 [%rd3], %r1;",
        "cvt.u64.u32 %rd4, %r1;",
        "// begin inline asm",
        "{ .reg .pred p; mov.u64 %rd7, 0x0;",
        "@%p1 ld.global.v4.b32 { %r5, %r6, %r7, %r8 }, [ %rd3 + 0 ]; }",
        "// end inline asm",
    )
    assert found == ({0: {16}}, set())


# Instructions, from SASS

SASS = """
\t.headerflags\t@"EF_CUDA_SM89"
.text._kernel:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
        /*0010*/              @!P0 LDG.E.128 R4, [R2.64] ;
        /*0020*/              @UP0 UIADD3 UR4, UR4, 0x1, URZ ;
        /*0030*/               @P0 EXIT ;
.L_x_0:
        /*0040*/                   BRA `(.L_x_0);
        /*0050*/                   NOP;
"""


def test_instructions_are_named_without_predicates_and_modifiers():
    assert sass.names(SASS) == ["MOV", "LDG", "UIADD3", "EXIT", "BRA", "NOP"]


@pytest.mark.parametrize(
    "group, own, others",
    [
        ("all", "MOV EXIT HMMA LDS", "NOP"),
        ("tensor", "HMMA IMMA HGMMA UTCHMMA", "FFMA HFMA2 WARPGROUP UTCBAR"),
        ("async", "LDGSTS UBLKCP UTMALDG", "LDG STS LDGDEPBAR"),
        ("global", "LDG STG LD ST ATOMG RED", "LDGSTS LDC LDS STL LDGDEPBAR"),
        ("shared", "LDS STS LDSM STSM ATOMS", "LDG LDL LDGSTS"),
        ("local", "LDL STL", "LDS STG LD"),
        ("barrier", "BAR SYNCS UTCBAR", "WARPSYNC LDGDEPBAR BRA"),
    ],
)
def test_groups_of_instructions(group, own, others):
    own, others = own.split(), others.split()
    found = sass.grouped(Counter({name: 10**i for i, name in enumerate(own)} | dict.fromkeys(others, 10**9)))
    assert found[group] == int("1" * len(own))


def coded(*lines: str) -> sass.Code:
    """A function for 9.0: names of instructions, some with @P0 before it or a place to go to behind it."""
    found = []
    for i, line in enumerate(lines):
        sometimes, name, to = re.fullmatch(r"(@P0 )?(\w+) ?(\d+)?", line).groups()
        step = (int(to or 0) - i - 1) * sass.SIZE // 4 % 2**56
        low = 0x947 | (0 if sometimes else 7) << 12 | (step & 0xFF) << 16 | step >> 8 << 34
        found.append(sass.Instruction(name, low % 2**64, step >> 38 | 7 << 23))
    return [found]


@pytest.mark.parametrize(
    "lines, instructions",
    [
        ("MOV LDG EXIT BRA@3", 0),  # what is never reached is no loop
        ("MOV LDG IADD @BRA@1 EXIT", 3),
        ("MOV LDG NOP @BRA@1 EXIT", 2),
        ("MOV IADD @BRA@1 EXIT", 2),  # without memory too
        ("MOV LDG LDG @BRA@1 HMMA @BRA@4 EXIT", 2),  # the one with a product
        ("MOV LDG LDG @BRA@1 LDG @BRA@4 EXIT", 3),  # else the longer one
        ("MOV LDG HMMA @BRA@2 STG STG @BRA@1 EXIT", 2),  # the inner one
        # One that tries a barrier again, behind the end, is part of the loop that may go there.
        ("MOV SYNCS @BRA@7 HMMA LDS @BRA@1 EXIT SYNCS @BRA@7 BRA@3", 8),
        ("MOV @BRA@5 LDG @BRA@2 EXIT LDG LDG BRA@2", 2),  # a way into it, from behind it, is not
    ],
)
def test_instructions_of_the_hottest_loop(lines, instructions):
    words = (line.replace("@BRA", "@P0 BRA").replace("BRA@", "BRA ") for line in lines.split())
    assert sass.counts(coded(*words), 90)["loop"] == instructions


@pytest.mark.parametrize(
    "asked, asked_waits, done, waits, faults",
    [
        ({}, 0, {}, 0, []),
        ({64: 4}, 1, {64: 4}, 1, []),
        ({64: 4}, 1, {64: 4}, 4, [SERIAL]),
        ({64: 2, 32: 2}, 1, {64: 2, 32: 2}, 5, [SERIAL]),
        ({64: 4}, 1, {64: 28}, 7, []),  # a loop is written seven times
        ({64: 4}, 1, {64: 28}, 28, [SERIAL]),
        ({64: 1}, 1, {64: 1}, 1, []),  # each was to be waited for
        ({64: 4}, 1, {64: 3}, 1, ["the assembler leaves out 1 of 4 wgmmas of 64 columns"]),
        ({64: 4, 32: 4}, 1, {64: 8}, 1, ["the assembler leaves out 4 of 4 wgmmas of 32 columns"]),
        ({64: 4}, 1, {}, 0, ["the assembler leaves out 4 of 4 wgmmas of 64 columns"]),
    ],
)
def test_the_assembler_keeps_products_and_lets_them_overlap(asked, asked_waits, done, waits, faults):
    assert assembler_faults(Counter(asked), asked_waits, Counter(done), waits) == faults


def test_what_ptx_asks_of_wgmma():
    waits = "wgmma.wait_group.sync.aligned 1;\nwgmma.wait_group.sync.aligned 0;"
    assert ptx.wgmmas(f"{MMA}\n{MMA}\n{MMA.replace('n16', 'n256')}\n{waits}") == ({16: 2, 256: 1}, 1)


# Dots and loops, from Triton's IR

HALF = "%d = tt.dot %a, %b, %c : tensor<16x32xf16> * tensor<32x16xf16> -> tensor<16x16xf32>"
TF32 = "%d = tt.dot %a, %b, %c, inputPrecision = tf32 : tensor<16x32xf32> * tensor<32x16xf32>"
FULL = "%d = tt.dot %a, %b, %c : tensor<16x32xf32> * tensor<32x16xf32> -> tensor<16x16xf32>"
SCALAR = "%d = tt.dot %a, %b, %c : tensor<16x32xf32, #ttg.dot_op<{opIdx = 0, parent = #blocked}>>"
MMA = "wgmma.mma_async.sync.aligned.m64n16k16.f32.f16.f16 {%r1}, %rd1, %rd2, 1, 1, 1, 0, 1;"
WITHOUT = ["a dot runs without tensor cores"]


@pytest.mark.parametrize(
    "ttir, ttgir, code, faults",
    [
        (HALF, "", MMA, []),
        (HALF, "", "fma.rn.f32 %f1, %f2, %f3, %f4;", WITHOUT),
        (HALF, SCALAR, MMA, WITHOUT),  # one of several
        (TF32, "", "fma.rn.f32 %f1, %f2, %f3, %f4;", WITHOUT),
        (TF32, "", MMA, []),
        (FULL, SCALAR, "fma.rn.f32 %f1, %f2, %f3, %f4;", []),
        (HALF + "\n" + FULL, SCALAR, MMA, []),
    ],
)
def test_dots_that_tensor_cores_can_do_are_done_by_them(ttir, ttgir, code, faults):
    indented = "\n".join(f"  {line}" for line in ttir.splitlines())
    assert dot_faults(indented, f"  {ttgir}", code, num_stages=1) == faults


@pytest.mark.parametrize(
    "dot, types, rows, wrong",
    [
        ("tt.dot", "f16", 64, True),
        ("tt.dot", "bf16", 128, True),
        ("tt.dot", "bf16", 32, False),
        ("tt.dot", "f32", 64, False),
        ("ttng.warp_group_dot", "f16", 64, False),
    ],
)
def test_dots_of_16_bits_and_64_rows_take_the_instruction_of_9_0(dot, types, rows, wrong):
    operands = f"tensor<{rows}x32x{types}, #op> * tensor<32x16x{types}, #op> -> tensor<{rows}x16xf32, #mma>"
    assert bool(wgmma_faults(f"  %d = {dot} %a, %b, %c : {operands}\n")) == wrong


LOOP = """\
  %x = tt.load %p : tensor<16x32x!tt.ptr<f16>>
  %acc:2 = scf.for %i = %0 to %n step %1 iter_args(%c = %z) -> (tensor<16x16xf32>) : i32 {{
    {copy}
    %w = tt.load %q : tensor<32x16x!tt.ptr<f16>>
    %d = ttng.warp_group_dot %a, %b, %c : tensor<16x32xf16> * tensor<32x16xf16> -> tensor<16x16xf32>
  }} loc(#loc)
  tt.store %o, %acc
"""


@pytest.mark.parametrize(
    "copy, num_stages, wrong",
    [
        ("", 3, True),
        ("", 1, False),
        ("%t = ttg.async_copy_global_to_local %p, %s", 3, False),
        ("ttng.async_tma_copy_global_to_local %desc[%i] %s", 3, False),
    ],
)
def test_a_pipelined_loop_around_a_dot_copies_asynchronously(copy, num_stages, wrong):
    faults = dot_faults("", LOOP.format(copy=copy), "", num_stages)
    assert len(faults) == wrong and all("asynchronous" in fault for fault in faults)


def test_a_loop_around_a_dot_of_what_is_loaded_before_copies_nothing():
    loop = LOOP.format(copy="").replace("%w = tt.load", "%w = tt.trans")
    assert dot_faults("", loop, "", num_stages=3) == []


def test_the_body_of_a_loop_ends_where_the_loop_does():
    (body,) = loops(LOOP.format(copy=""))
    assert "%w = " in body and "%x = " not in body and "tt.store" not in body


# A launch


@triton.jit
def _kernel(p_x, p_y, n, m, BLOCK: tl.constexpr, UNUSED: tl.constexpr = 7):
    pass


def launched(*arguments, num_warps: int = 4, grid=(1,), **constants) -> Launch:
    return Launch(_kernel, grid, arguments, constants, num_warps, 2)


X = torch.zeros(64, dtype=torch.float16)
SIXTEEN = [["tt.divisibility", 16]]


def test_signature_of_a_launch():
    types, constants, attributes = signature(launched(X, None, 48, 1, BLOCK=32))
    assert types == {"p_x": "*fp16", "p_y": "constexpr", "n": "i32", "m": "constexpr"} | dict.fromkeys(
        ("BLOCK", "UNUSED"), "constexpr"
    )
    assert constants == {"p_y": None, "m": 1, "BLOCK": 32, "UNUSED": 7}
    assert attributes == {(0,): SIXTEEN, (2,): SIXTEEN}


@pytest.mark.parametrize(
    "value",
    [torch.zeros(2, dtype=dtype) for dtype in TYPES] + [0, 1, 2, 16, 100, -16, 2**31 - 1, 2**31, 2**40],
    ids=lambda value: str(getattr(value, "dtype", value)),
)
def test_an_argument_is_specialised_as_triton_does_at_a_call(value):
    from triton._C.libtriton import native_specialize_impl
    from triton.backends.nvidia.compiler import CUDABackend

    kind, what = native_specialize_impl(CUDABackend, value, False, True, True)
    types, constants, attributes = signature(launched(X, X, value, 3, BLOCK=32))
    assert types["n"] == kind
    assert constants.get("n") == (what if kind == "constexpr" else None)
    assert ((2,) in attributes) == (what == "D")


def test_a_view_that_starts_off_16_bytes_is_known_to_be_no_multiple():
    assert (0,) not in signature(launched(X[1:], X, 2, 2, BLOCK=1))[2]
    assert (0,) in signature(launched(X[8:], X, 2, 2, BLOCK=1))[2]


def test_a_float_at_run_time_is_an_error():
    with pytest.raises(ValueError, match="^n: got 0.5"):
        signature(launched(X, X, 0.5, 2, BLOCK=1))


def test_launches_that_compile_alike_share_an_identity():
    base = identity(launched(X, X, 32, 2, BLOCK=32))
    assert identity(launched(X[8:], X, 48, 3, BLOCK=32)) == base
    others = (
        launched(X, X, 33, 2, BLOCK=32),
        launched(X.float(), X, 32, 2, BLOCK=32),
        launched(X, X, 32, 2, BLOCK=64),
        launched(X, X, 32, 2, BLOCK=32, num_warps=8),
    )
    assert len({identity(other) for other in others} | {base}) == 5


# The rules

GOOD = Compiled(cc=90, registers=32, stack=0, shared=1024, num_warps=4, widths={"p_x": (16, 16)})


def broken_rules(narrow=(), x=X, grid=(1,), **changes) -> list[str]:
    return check.violations(
        launched(x, X, 32, 2, grid=grid, BLOCK=32), dataclasses.replace(GOOD, **changes), narrow
    )


def test_rules_of_one_launch():
    assert broken_rules() == []
    assert broken_rules(stack=8) == ["spills: 8 bytes of stack"]
    assert broken_rules(shared=99 * 1024, cc=89) == []
    assert broken_rules(shared=99 * 1024 + 1, cc=89) != []
    assert broken_rules(shared=163 * 1024 + 1, cc=90) == []
    assert broken_rules(faults=("a dot",)) == ["a dot"]
    assert broken_rules(error="no") == ["does not compile: no"]
    assert broken_rules(grid=(70000, 65535)) == []
    assert broken_rules(grid=(1, 70000)) != []


def test_narrow_accesses_need_an_excuse_or_rows_of_no_multiple_of_16_bytes():
    (fault,) = broken_rules(widths={"p_x": (4, 16)})
    assert fault.startswith("p_x: 4 bytes")
    assert broken_rules(widths={"p_x": (4, 16)}, narrow=("p_x",)) == []
    assert broken_rules(widths={"p_x": (4, 4)}, x=torch.zeros(8, 10, dtype=torch.float16)) == []
    assert broken_rules(widths={"p_x": (4, 4)}, x=torch.zeros(10, 8, dtype=torch.float16)) != []


def test_a_row_is_what_lies_contiguous():
    assert check.row_bytes(torch.zeros(2, 24, 5, 5).to(memory_format=torch.channels_last)) == 96
    assert check.row_bytes(torch.zeros(2, 24, 1, 1, dtype=torch.float16)) == 48
    assert check.row_bytes(torch.zeros(7)) == 28
    assert check.row_bytes(torch.zeros(1)) == 4


def test_an_excuse_that_nothing_needs_is_reported():
    narrow = dict.fromkeys(("p_x", "p_y", "p_z", "p_w", "p_y tf32", "p_y float16"), "reasons")
    results = [
        ("tf32", dataclasses.replace(GOOD, widths={"p_x": (16, 16), "p_y": (16, 16)}, uniform=("p_z",))),
        ("float16", dataclasses.replace(GOOD, widths={"p_y": (8, 16)})),
    ]
    assert check.stale(narrow, results) == ["p_w", "p_x", "p_y tf32"]
    assert check.stale(narrow, [*results, ("tf32", dataclasses.replace(GOOD, error="no"))]) == []


def test_an_excuse_may_hold_for_one_precision():
    narrow = dataclasses.replace(GOOD, widths={"p_x": (4, 16)})
    faults = {}
    for dtype in (torch.float16, torch.float32):
        spec = dataclasses.replace(SPEC, narrow={"p_x float16": "why"})
        one = launched(X, X, 32, 2, BLOCK=32)
        row = check.Row(spec, one, dtype, (90,), ["case"], 1, results={90: narrow})
        check.judge([row])
        faults[dtype] = list(row.faults)
    assert faults[torch.float16] == [] and len(faults[torch.float32]) == 1


def test_occupancy_is_that_of_the_scarcer_resource():
    assert GOOD.occupancy == 1
    assert dataclasses.replace(GOOD, registers=128).occupancy == 0.25
    assert dataclasses.replace(GOOD, registers=33).occupancy == 0.75  # as 40
    assert dataclasses.replace(GOOD, shared=100 * 1024).occupancy == 2 * 4 / 64
    assert dataclasses.replace(GOOD, num_warps=1).occupancy == 0.5  # 32 programs


# The plan

SPEC = CATALOGUE["cross_entropy"]


def test_plan_takes_float16_everywhere_and_other_dtypes_once():
    rows, faults = check.collect([SPEC])
    assert faults == []
    assert [(check.short(row.dtype), row.ccs) for row in rows] == [
        *[("float16", (80, 89, 90, 100))] * 3,  # which differ in how many programs there are
        ("float32", (90,)),
        ("bfloat16", (90,)),
    ]
    names = [case.name for case in SPEC.cases]
    assert sorted(name for row in rows[:3] for name in row.cases) == sorted(names)
    assert rows[0].launch.arguments[-1] == SPEC.cases[0].n  # the recipe's own size
    everything, _ = check.collect([SPEC], everything=True)
    assert all(row.ccs == (80, 89, 90, 100) for row in everything)
    assert sorted(name for row in everything for name in row.cases) == sorted(3 * names)


def test_plan_reports_an_undeclared_kernel_and_an_op_that_raises():
    def refuses(**inputs):
        raise RuntimeError("nothing works")

    _, faults = check.collect([dataclasses.replace(SPEC, bytes=lambda case, dtype: {"_other": 1})])
    assert any("_cross_entropy, _other" in fault for fault in faults)
    rows, faults = check.collect([dataclasses.replace(SPEC, op=refuses), SPEC])
    assert len(rows) == 5 and any("nothing works" in fault for fault in faults)


@triton.jit
def _tiled(p_x, n, ROWS: tl.constexpr, COLS: tl.constexpr, DEPTH: tl.constexpr, IMAGES: tl.constexpr):
    pass


def test_plan_takes_what_each_chip_launches():
    """One kernel, in two tiles by chip, whose integer is a multiple of 16 on one chip only."""

    def op(logits, **rest):
        cc = chips.current(logits.device).cc
        tile = {"ROWS": 32 if cc == 89 else 64, "COLS": 16, "DEPTH": 16, "IMAGES": cc != 89}
        launch.launch(_tiled, (1,), logits, 32 if cc == 100 else 33, **tile)
        return logits.sum(1)

    fields = {"dtypes": (torch.float16,), "bytes": lambda case, dtype: {"_tiled": 1}, "cases": SPEC.cases[:2]}
    rows, faults = check.collect([dataclasses.replace(SPEC, op=op, **fields)])
    assert faults == []
    assert [row.ccs for row in rows] == [(80, 90), (89,), (100,)]
    assert all(len(row.cases) == 2 and row.number == 1 for row in rows)
    ends = [row.key.partition("stages ")[2] for row in rows]
    assert ends == ["64x16x16 images", "32x16x16", "64x16x16 images"]


def test_plan_takes_tf32_where_it_makes_a_difference():
    def op(logits, **rest):
        tf32 = torch.backends.cuda.matmul.allow_tf32
        launch.launch(_kernel, (1,), logits, logits, 32, 2, BLOCK=32, UNUSED=tf32)
        return logits.sum(1)

    fields = {"dtypes": (torch.float32,), "bytes": lambda case, dtype: {"_kernel": 1}}
    dots = dataclasses.replace(SPEC, op=op, flops=lambda case, dtype: {"_kernel": 1}, **fields)
    rows, _ = check.collect([dots], everything=True)
    assert [row.precision for row in rows] == ["float32", "tf32"]
    assert all(row.cases == [case.name for case in SPEC.cases] for row in rows)
    assert not torch.backends.cuda.matmul.allow_tf32
    (row,), _ = check.collect([dataclasses.replace(SPEC, op=op, **fields)])  # without a dot
    assert row.precision == "float32"


def test_descriptors_tell_configurations_apart():
    tile = {"ROWS": 16, "COLS": 16, "DEPTH": 16}
    plain, boxed = launched(X, X, 32, 2, **tile), launched(X, box(X, 16), 32, 2, **tile)
    assert [check.tile_options(each) for each in (plain, boxed)] == ["16x16x16", "16x16x16 descriptors"]
    assert check.tile_options(launched(X, X, 32, 2, BLOCK=32)) == ""


def row(case: str) -> check.Row:
    return check.Row(
        spec=SPEC,
        launch=launched(X, X, 32, 2, BLOCK=32),
        dtype=torch.float16,
        ccs=(90,),
        cases=[case],
        number=1,
    )


def test_work_is_that_of_each_chip_and_precision():
    spec = dataclasses.replace(
        SPEC,
        bytes=lambda case, dtype: {"_kernel": case.n * dtype.itemsize, "_other": chips.current("cpu").cc},
        flops=lambda case, dtype: {"_kernel": 2 + torch.backends.cuda.matmul.allow_tf32},
    )
    first, last = spec.cases[0], spec.cases[-1]
    rows = [row(first.name), row(last.name), row(first.name)]
    for each, dtype, ccs, tf32 in zip(
        rows, (torch.float16, torch.float16, torch.float32), ((80, 90), (90,), (90,)), (0, 0, 1)
    ):
        each.spec, each.dtype, each.ccs, each.tf32 = spec, dtype, ccs, bool(tf32)
    name = spec.name
    assert check.work(rows) == {
        (name, first.name, "float16"): {
            cc: {"_kernel": (2 * first.n, 2), "_other": (cc, 0)} for cc in (80, 90)
        },
        (name, last.name, "float16"): {90: {"_kernel": (2 * last.n, 2), "_other": (90, 0)}},
        (name, first.name, "tf32"): {90: {"_kernel": (4 * first.n, 3), "_other": (90, 0)}},
    }


def test_a_compiler_that_aborts_takes_no_other_launch_with_it(monkeypatch):
    def compiler(launch, cc):
        if launch.num_warps == 8:
            os._exit(1)
        return GOOD

    monkeypatch.setattr(check, "compile_launch", compiler)
    rows = [row("one"), row("two"), row("three")]
    for i, each in enumerate(rows):
        each.launch = launched(X, X, 32, 2, BLOCK=32, num_warps=(4, 8, 2)[i])
    check.compile_all(rows, 2, lambda done, of: None)
    assert [each.results[90].error for each in rows] == ["", "the compiler aborts", ""]


# The command


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["no_such_op"], "NAME: got 'no_such_op', accepted are augment, "),
        (["--jobs", "0"], "--jobs: got '0'"),
        (["--json", "/proc/no/where"], "--json: cannot write"),
    ],
)
def test_a_mistake_is_one_line_and_exit_status_2(arguments, named, capsys):
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("bench check: ") and named in err


@pytest.mark.parametrize("arguments", [["bogus"], ["--bogus"]])
def test_a_mistake_in_the_catalogues_options_is_one_line_and_exit_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        __main__.main(arguments)
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and out == "" and err.count("\n") == 1 and err.startswith("kernels: ")


def test_the_catalogue_is_listed_within_100_columns(capsys):
    assert __main__.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == list(CATALOGUE)


def test_the_catalogue_as_json(capsys):
    assert __main__.main(["--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed.keys() == CATALOGUE.keys()
    case = listed["cross_entropy"]["cases"][0]
    assert case == {
        "name": SPEC.cases[0].name,
        "bytes": sum(SPEC.bytes(SPEC.cases[0], torch.float16).values()),
        "flops": 0,
    }
    assert listed["cross_entropy"]["ops"] == list(SPEC.ops)


def in_a_process(*command: str, cache: Path) -> subprocess.CompletedProcess:
    environment = os.environ | {"TRITON_CACHE_DIR": str(cache), "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, cwd=ROOT
    )


@pytest.fixture(scope="module")
def checked(tmp_path_factory):
    """The record of a check of one op, from an environment in which triton interprets."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        cache = tmp_path_factory.mktemp("cache")
        found = in_a_process("-m", "bench", "check", "cross_entropy", "--json", "-", cache=cache)
    assert found.returncode == 0, found.stdout + found.stderr
    return json.loads(found.stdout)


def test_the_check_passes_a_good_kernel_even_from_an_interpreting_environment(checked):
    assert checked["faults"] == [] and len(checked["launches"]) == 5
    chips = checked["launches"][0]["chips"]
    assert list(chips) == ["8.0", "8.9", "9.0", "10.0"]
    assert all(10 < one["registers"] < 100 and one["stack"] == 0 for one in chips.values())
    assert all(100 < one["instructions"]["all"] < 1000 for one in chips.values())


def test_a_record_holds_the_work_of_each_case(checked):
    first = checked["work"][0]
    assert (first["op"], first["case"], first["dtype"]) == (SPEC.name, SPEC.cases[0].name, "float16")
    declared = SPEC.bytes(SPEC.cases[0], torch.float16)
    assert first["chips"]["9.0"] == {name: {"bytes": moved, "flops": 0} for name, moved in declared.items()}
    assert [one["dtype"] for one in checked["work"]] == [
        *["float16"] * len(SPEC.cases),
        *("float32", "bfloat16"),
    ]


def test_the_static_gate_finds_the_committed_baseline_in_a_cold_compilation(checked, tmp_path):
    known = snapshot.read(static.BASELINE)
    if known["versions"] != checked["versions"]:
        pytest.skip(f"the baseline is of {known['versions']}, here is {checked['versions']}")
    file = tmp_path / "check.json"
    file.write_text(json.dumps(checked))
    summary = tmp_path / "summary.md"
    assert static.run(Console(quiet=True), ["cross_entropy"], None, file, False, None, summary) == 0


BAD_KERNELS = r"""
import json, os, re, subprocess, tempfile, torch
from collections import Counter
from bench.check import sass
from bench.check.aot import compile_launch
from bench.check.check import violations
from kernels.base.launch import launch, recording, tl, triton

@triton.jit
def _good(p_x, p_y, n, BLOCK: tl.constexpr):
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(p_x + o, mask=o < n, other=0.0)
    tl.store(p_y + o, x - tl.sum(x, axis=0), mask=o < n)  # holds the whole block

@triton.jit
def _strided(p_x, p_y, n, BLOCK: tl.constexpr):
    o = tl.arange(0, BLOCK)
    tl.store(p_y + o, tl.load(p_x + 2 * o))

@triton.jit
def _dot(p_x, p_y, n, BLOCK: tl.constexpr, STEP: tl.constexpr):
    o = tl.arange(0, BLOCK)
    k = tl.arange(0, STEP)
    acc = tl.zeros((BLOCK, BLOCK), tl.float32)
    for i in range(0, n, STEP):
        a = tl.load(p_x + o[:, None] * n + (i + k)[None, :])
        b = tl.load(p_x + o[None, :] * n + (i + k)[:, None])
        acc = tl.dot(a.to(tl.float16), b.to(tl.float16), acc)
    tl.store(p_y + o[:, None] * BLOCK + o[None, :], acc)

@triton.jit
def _serial(p_x, p_y, n, BLOCK: tl.constexpr, STEP: tl.constexpr):
    o = tl.arange(0, BLOCK)
    k = tl.arange(0, STEP)
    acc = tl.zeros((BLOCK, BLOCK), tl.float32)
    for i in range(0, n, STEP):
        a = tl.load(p_x + o[:, None] * n + (i + k)[None, :])
        b = tl.load(p_x + o[None, :] * n + (i + k)[:, None])
        acc = tl.dot(tl.where(a > 0, a, 0.0).to(tl.float16), b, acc)  # of values in registers
    tl.store(p_y + o[:, None] * BLOCK + o[None, :], acc)

@triton.jit
def _wrong(p_x, p_y, n, BLOCK: tl.constexpr):
    tl.store(p_y + tl.arange(0, BLOCK), tl.zeros((2 * BLOCK,), tl.float32))

x, half, byte = torch.zeros(65536), torch.zeros(65536).half(), torch.zeros(65536, dtype=torch.uint8)
with recording() as launches:
    launch(_good, (4,), x, x, 65536, BLOCK=1024)
    launch(_good, (4,), x, x, 65536, BLOCK=16384, num_warps=1)
    launch(_strided, (4,), x, x, 65536, BLOCK=1024)
    launch(_dot, (4,), half, x, 512, BLOCK=64, STEP=32, num_stages=3)
    launch(_dot, (4,), half, x, 512, BLOCK=64, STEP=256, num_stages=6)
    launch(_dot, (4,), byte, x, 511, BLOCK=64, STEP=32, num_stages=3)
    launch(_wrong, (4,), x, x, 65536, BLOCK=1024)
names = ("good", "spilling", "strided", "dot", "large", "bytes", "wrong")
found = {name: violations(one, compile_launch(one, 80)) for name, one in zip(names, launches)}
with recording() as wide:
    for kernel in (_dot, _serial):
        launch(kernel, (4,), half, x, 512, BLOCK=64, STEP=64, num_stages=3)
for name, one in zip(("overlapping", "serial"), wide):
    found[name] = violations(one, compile_launch(one, 90))

class Driver:  # of a GPU that is not there
    get_current_device = get_current_stream = lambda self, device=0: 0
    get_current_target = lambda self: triton.backends.compiler.GPUTarget("cuda", 80, 32)

triton.runtime.driver.set_active(Driver())
cached = set(os.listdir(os.environ["TRITON_CACHE_DIR"]))
for one in launches[:6]:
    options = {"num_warps": one.num_warps, "num_stages": one.num_stages, "grid": one.grid}
    one.kernel.warmup(*one.arguments, **options, **one.constants)
found["new in the cache"] = sorted(set(os.listdir(os.environ["TRITON_CACHE_DIR"])) - cached)

read, whole, products = sass.read, {}, {}

def loop(text):
    # Instructions of the loop with a product, and of what it passes through behind it.
    found = re.findall(r"^(?:(\.L\w+):|\s+/\*([0-9a-f]{4,})\*/\s+(.*?) *;)", text, re.M)
    labels, lines = {}, []
    for label, _, line in found:
        labels |= {label: len(lines)} if label else {}
        lines += [line] * (not label)
    to = [re.search(r"BRA.*`\((\.L\w+)\)", line) for line in lines]
    goes = {i: labels[label[1]] for i, label in enumerate(to) if label}
    spans = [range(to, i + 1) for i, to in goes.items() if any("MMA" in line for line in lines[to : i + 1])]
    (span,) = (span for span in spans if span.start < span.stop - 1)
    inside = set(span)
    for i in span:
        there = goes.get(i, 0)
        end = next(k for k in range(there, len(lines)) if lines[k].startswith(("BRA", "EXIT")))
        if there > span.stop and goes.get(end) in span:
            inside |= set(range(there, end + 1))
    return len([i for i in inside if not lines[i].startswith("NOP")])

def disassembled(cubin, cc):  # all of it, which takes longer
    with tempfile.NamedTemporaryFile() as file:
        file.write(cubin)
        file.flush()
        command = (triton.knobs.nvidia.nvdisasm.path, "-ndf", "-c", file.name)
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    whole[cc] = sass.grouped(Counter(sass.names(text))) | {"loop": loop(text)}
    waits = text.count("WARPGROUP.DEPBAR.LE gsb0, 0x0")
    code = read(cubin, cc)
    products[cc] = sass.wgmmas(code), (Counter(map(int, re.findall(r"HGMMA\.64x(\d+)x", text))), waits)
    return code

sass.read = disassembled
compile_launch(wide[1], 90)
serial = products[90]
counted = {cc: compile_launch(launches[3], cc).instructions for cc in (80, 90, 100)}
print(json.dumps(found | {"counted": counted, "disassembled": whole, "products": serial}))
"""


@pytest.fixture(scope="module")
def faults(tmp_path_factory):
    """What the check finds wrong with each of these kernels, in a process that does not interpret."""
    folder = tmp_path_factory.mktemp("kernels")
    script = folder / "bad_kernels.py"
    script.write_text(BAD_KERNELS)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TRITON_INTERPRET", raising=False)
        found = in_a_process(str(script), cache=folder / "cache")
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout)


@pytest.mark.parametrize(
    "kernel, message",
    [
        ("spilling", "spills: "),
        ("strided", "p_x: 4 bytes an access"),
        ("large", "shared memory: "),
        ("bytes", "a loop around a dot loads without asynchronous copies"),
        ("wrong", "does not compile: "),
        ("serial", SERIAL),
    ],
)
def test_a_kernel_that_breaks_a_rule_fails(faults, kernel, message):
    assert any(fault.startswith(message) for fault in faults[kernel]), faults[kernel]


@pytest.mark.parametrize("kernel", ["good", "dot", "overlapping"])
def test_a_kernel_that_breaks_none_passes(faults, kernel):
    assert faults[kernel] == []


def test_instructions_counted_by_opcode_are_those_of_the_whole_disassembly(faults):
    assert faults["counted"].keys() == {"80", "90", "100"}
    assert faults["counted"] == faults["disassembled"]
    decoded, read = faults["products"]
    assert decoded == read == [{"64": 4}, 4]


@pytest.mark.parametrize("cc", ["80", "90", "100"])
def test_a_pipelined_dot_is_counted_as_one_on_every_chip(faults, cc):
    found = faults["counted"][cc]
    assert found["tensor"] and found["async"] and found["barrier"] and not found["local"]
    assert found["all"] > found["tensor"] + found["async"] + found["global"] + found["shared"]


def test_a_launch_finds_in_the_cache_what_was_compiled_ahead_of_time(faults):
    assert faults["new in the cache"] == []
