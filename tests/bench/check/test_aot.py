"""What is read from code that was compiled ahead of time: accesses, instructions, dots and loops."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from bench.check import ptx, sass
from bench.check.aot import (
    RACE,
    SERIAL,
    assembler_faults,
    dot_faults,
    loops,
    wgmma_faults,
)
from kernels.base import launch

pytestmark = pytest.mark.skipif(not launch.INSTALLED, reason="triton is not installed")

ROOT = Path(__file__).resolve().parents[3]


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
        ("tensor", "HMMA IMMA HGMMA QGMMA UTCHMMA", "FFMA HFMA2 WARPGROUP UTCBAR"),
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


def test_products_from_registers_end_before_the_next_step():
    assert assembler_faults({64: 4}, 1, {64: 4}, 1, partial=4, registers=True) == [RACE]
    assert assembler_faults({64: 4}, 1, {64: 4}, 1, partial=4) == []
    assert assembler_faults({64: 4}, 1, {64: 4}, 5, registers=True) == []
    assert ptx.from_registers(MMA.replace("%rd1", "{%r2,%r3,%r4,%r5}"))
    assert not ptx.from_registers(f"{MMA}\nst.global {{%r1}}, {{%r2}};")


def test_what_ptx_asks_of_wgmma():
    waits = "wgmma.wait_group.sync.aligned 1;\nwgmma.wait_group.sync.aligned 0;"
    assert ptx.wgmmas(f"{MMA}\n{MMA}\n{MMA.replace('n16', 'n256')}\n{waits}") == ({16: 2, 256: 1}, 1)


# Dots and loops, from Triton's IR

HALF = "%d = tt.dot %a, %b, %c : tensor<16x32xf16> * tensor<32x16xf16> -> tensor<16x16xf32>"
EIGHT = HALF.replace("f16", "f8E4M3FN", 1).replace("f16", "f8E5M2", 1)
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
        (EIGHT, "", MMA, []),
        (EIGHT, "", "fma.rn.f32 %f1, %f2, %f3, %f4;", WITHOUT),
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
        ("tt.dot", "f8E4M3FN", 64, True),
        ("tt.dot", "bf16", 32, False),
        ("tt.dot", "f32", 64, False),
        ("ttng.warp_group_dot", "f16", 64, False),
    ],
)
def test_dots_of_16_or_8_bits_and_64_rows_take_the_instruction_of_9_0(dot, types, rows, wrong):
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
