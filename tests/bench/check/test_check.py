"""The ahead-of-time check: the launches that it compiles, its rules, its command."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from bench.check import aot, check, cli
from bench.check.aot import (
    RACE,
    TYPES,
    Compiled,
    identity,
    signature,
)
from bench.gate import snapshot, static
from hlb import UserError
from kernels import CATALOGUE, __main__
from kernels.base import chips, launch
from kernels.base.launch import Launch, box, tl, triton
from kernels.norm.activations import ACTIVATIONS

pytestmark = pytest.mark.skipif(not launch.INSTALLED, reason="triton is not installed")

ROOT = Path(__file__).resolve().parents[3]


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


@pytest.mark.parametrize("op", ["norm_act", "stem", "conv_bn_act_eval"])
def test_plan_takes_every_activation_for_one_chip_at_least(op):
    spec = dataclasses.replace(CATALOGUE[op], cases=CATALOGUE[op].cases[:3])
    rows, faults = check.collect([spec])
    others = {case.name for case in spec.others()}
    assert faults == [] and others
    added = [row for row in rows if others & {*row.cases}]
    assert all(row.ccs == (90,) and len(row.cases) == 1 for row in added)
    functions = {value for row in rows for value in row.launch.constants.values()}
    needed = [act.forward for act in ACTIVATIONS.values()]
    needed += [act.slope for act in ACTIVATIONS.values()] if spec.differentiable else []
    assert {*needed} <= functions
    assert {case for _, case, _ in check.work(rows)} >= others


def test_an_activation_that_is_added_is_compiled(monkeypatch):
    monkeypatch.setitem(ACTIVATIONS, "new", ACTIVATIONS["relu"]._replace(forward=_kernel))
    spec = CATALOGUE["norm_act"]
    spec = dataclasses.replace(
        spec, cases=spec.cases[:1], dtypes=(torch.float16,), compiled={"activation": ("new",)}
    )
    rows, _ = check.collect([spec])
    assert [row.cases for row in rows if _kernel in row.launch.constants.values()] == [["stem new"]]


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


def test_where_nothing_can_be_compiled_no_launch_is_at_fault(monkeypatch):
    def compile(*_):
        raise PermissionError(13, "Permission denied", "/cache/KEY")

    monkeypatch.setenv("TRITON_CACHE_DIR", "/cache")
    monkeypatch.setattr(aot, "compiled", compile)
    with pytest.raises(UserError, match="^nothing can be compiled here: /cache/KEY: Permission denied"):
        check.compile_all([row("one")], 1, lambda done, of: None)


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
import dataclasses, json, os, re, subprocess, tempfile, torch
from collections import Counter
from bench.check import sass
from bench.check.aot import compile_launch
from bench.check.check import collect, violations
from kernels.base.launch import launch, recording, tl, triton
from kernels.norm.activations import ACTIVATIONS
from kernels.norm.norm_act import EVAL_SPEC

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
def _racing(p_x, p_y, n, BLOCK: tl.constexpr, STEP: tl.constexpr):
    o = tl.arange(0, BLOCK)
    k = tl.arange(0, STEP)
    acc = tl.zeros((BLOCK, BLOCK), tl.float32)
    tl.assume(n > 0)  # the same, but that there is no way around the loop
    for i in range(0, n, STEP):
        a = tl.load(p_x + o[:, None] * n + (i + k)[None, :])
        b = tl.load(p_x + o[None, :] * n + (i + k)[:, None])
        acc = tl.dot(tl.where(a > 0, a, 0.0).to(tl.float16), b, acc)
    tl.store(p_y + o[:, None] * BLOCK + o[None, :], acc)

@triton.jit
def _wrong(p_x, p_y, n, BLOCK: tl.constexpr):
    tl.store(p_y + tl.arange(0, BLOCK), tl.zeros((2 * BLOCK,), tl.float32))

@triton.jit
def _tanh(z):
    return tl.tanh(z)  # which there is not

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
    for kernel in (_dot, _serial, _racing):
        launch(kernel, (4,), half, x, 512, BLOCK=64, STEP=64, num_stages=3)
for name, one in zip(("overlapping", "serial", "racing"), wide):
    found[name] = violations(one, compile_launch(one, 90))

ACTIVATIONS["tanh"] = ACTIVATIONS["silu"]._replace(forward=_tanh)
options = {"dtypes": (torch.float16,), "compiled": {"activation": ("tanh",)}}
rows, _ = collect([dataclasses.replace(EVAL_SPEC, cases=EVAL_SPEC.cases[:1], **options)])
found["activation"] = violations(rows[-1].launch, compile_launch(rows[-1].launch, 90))

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
    waits = [text.count("WARPGROUP.DEPBAR.LE gsb0, 0x0"), len(re.findall("DEPBAR.LE gsb0, 0x[^0]", text))]
    code = read(cubin, cc)
    products[cc] = sass.wgmmas(code), (Counter(map(int, re.findall(r"HGMMA\.64x(\d+)x", text))), *waits)
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
        ("activation", "does not compile: "),
        ("racing", RACE),
    ],
)
def test_a_kernel_that_breaks_a_rule_fails(faults, kernel, message):
    assert any(fault.startswith(message) for fault in faults[kernel]), faults[kernel]


@pytest.mark.parametrize("kernel", ["good", "dot", "overlapping", "serial"])
def test_a_kernel_that_breaks_none_passes(faults, kernel):
    assert faults[kernel] == []


def test_instructions_counted_by_opcode_are_those_of_the_whole_disassembly(faults):
    assert faults["counted"].keys() == {"80", "90", "100"}
    assert faults["counted"] == faults["disassembled"]
    decoded, read = faults["products"]
    assert decoded == read == [{"64": 4}, 4, 0]


@pytest.mark.parametrize("cc", ["80", "90", "100"])
def test_a_pipelined_dot_is_counted_as_one_on_every_chip(faults, cc):
    found = faults["counted"][cc]
    assert found["tensor"] and found["async"] and found["barrier"] and not found["local"]
    assert found["all"] > found["tensor"] + found["async"] + found["global"] + found["shared"]


def test_a_launch_finds_in_the_cache_what_was_compiled_ahead_of_time(faults):
    assert faults["new in the cache"] == []
