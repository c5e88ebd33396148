"""`python -m bench ncu` with a made-up `ncu` on PATH, which prints what Nsight Compute prints, and no GPU."""

from __future__ import annotations

import io
import shlex
import sys
import textwrap

import pytest
import torch
from rich.console import Console

from bench.inspect import ncu
from bench.inspect.counters import (
    METRICS,
    READ,
    STALL,
    SUCCESSORS,
    TENSOR,
    TIME,
    parsed,
    quantity,
    scale,
    table,
)
from hlb import UserError
from kernels.base import launch
from kernels.base.launch import INSTALLED, triton
from kernels.base.spec import Case, KernelSpec

pytestmark = pytest.mark.skipif(not INSTALLED, reason="triton is not installed")

HEADER = (
    '"ID","Process ID","Process Name","Host Name","Kernel Name","Context","Stream","Block Size","Grid Size",'
    '"Device","CC","Section Name","Metric Name","Metric Unit","Metric Value"'
)
START = '"0","4711","python3.11","127.0.0.1","_first","1","7","(128, 1, 1)","(16, 1, 1)","0","9.0",'
START += '"Command line profiler metrics",'
VALUES = {
    TIME: ("ns", "12,345"),
    READ: ("byte", "30,000,000"),
    "dram__bytes_write.sum": ("Mbyte", "4.50"),
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": ("%", "65.41"),
    "lts__t_sector_hit_rate.pct": ("%", "40.02"),
    "sm__throughput.avg.pct_of_peak_sustained_elapsed": ("%", "30.50"),
    TENSOR: ("%", "0"),
    "sm__warps_active.avg.pct_of_peak_sustained_active": ("%", "45.11"),
    "sm__maximum_warps_per_active_cycle_pct": ("%", "50"),
    "launch__registers_per_thread": ("register/thread", "128"),
    "l1tex__t_bytes_pipe_lsu_mem_local_op_ld.sum": ("byte", "1,024"),
    "l1tex__t_bytes_pipe_lsu_mem_local_op_st.sum": ("Kbyte", "2.00"),
    "l1tex__data_bank_conflicts_pipe_lsu_mem_shared.sum": ("", "1,234"),
    STALL.format("long_scoreboard"): ("inst", "6.00"),
    STALL.format("barrier"): ("inst", "2.00"),
    STALL.format("short_scoreboard"): ("inst", "1.00"),
    STALL.format("selected"): ("inst", "1.00"),
}


def csv(values: dict[str, tuple[str, str]]) -> str:
    """As ncu prints it, between the lines of its program."""
    rows = [f'{START}"{name}","{unit}","{value}"' for name, (unit, value) in values.items()]
    before = ("a warning of the program", "==PROF== Connected to process 4711 (/usr/bin/python3.11)")
    before += ('==PROF== Profiling "_first" - 0: 0%....50%....100% - 9 passes',)
    return "\n".join((*before, HEADER, *rows, "==PROF== Disconnected from process 4711", ""))


@triton.jit
def _first(p_x):
    pass


@triton.jit
def _second(p_x):
    pass


class Doubled(torch.autograd.Function):
    """2 x: `_first` forward, `_first` twice and `_second` backward."""

    @staticmethod
    def forward(ctx, x):
        launch.launch(_first, (1,), x)
        return 2 * x

    @staticmethod
    def backward(ctx, grad):
        for kernel in (_first, _first, _second):
            launch.launch(kernel, (1,), grad)
        return 2 * grad


SPEC = KernelSpec(
    name="doubled",
    formula="2 x",
    reference=lambda x: 2 * x,
    op=lambda x: Doubled.apply(x),
    ops=(),
    make=lambda case, dtype, device: {"x": torch.ones(case.n)},
    cases=(Case("seed", n=4), Case("other", n=5)),
    space={},
    counted=(),
    bytes=lambda case, dtype: {"_first": 90_000_000, "_second": 20_000_000},
    flops=lambda case, dtype: {"_first": 3_000_000_000},
    differentiable=("x",),
)


@pytest.fixture
def gpu(monkeypatch):
    """As if this machine had one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(launch, "INTERPRETED", False)
    monkeypatch.setattr(ncu, "DEVICE", "cpu")


@pytest.fixture
def fake(monkeypatch, tmp_path, gpu):
    """A function that puts an `ncu` on PATH, with `body` as its Python, and gives the file of its calls, a
    line each. The body has `metrics`, those asked for.
    """

    def put(body: str):
        calls, tool = tmp_path / "calls", tmp_path / "ncu"
        tool.write_text(
            f"#!{sys.executable} -S\nimport sys\nprint(*sys.argv[1:], file=open({str(calls)!r}, 'a'))\n"
            'metrics = sys.argv[sys.argv.index("--metrics") + 1].split(",")\n' + textwrap.dedent(body)
        )
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        return calls

    return put


def profiled(kernel: str | None = None, direction: str | None = None, cases=SPEC.cases[:1]) -> str:
    out = io.StringIO()
    todo = {SPEC: list(cases)}
    assert ncu.run(Console(file=out, width=160), todo, torch.float16, direction, kernel) == 0
    return out.getvalue()


def test_ten_counters_are_put_in_words_beside_what_is_declared(fake):
    fake(f"print({csv(VALUES)!r})")
    shown = profiled()
    cells = {line.split("  ")[0]: " ".join(line.split()) for line in shown.splitlines()}
    assert cells["time"] == "time 12.3 us 2.43 TB/s of the 30 MB declared, 81 TFLOP/s of the 1 GFLOP declared"
    assert cells["DRAM traffic"].startswith(
        "DRAM traffic 34.5 MB 1.15 of the 30 MB declared: 30 MB read, 4.5 MB"
    )
    assert cells["registers"] == "registers 128 a thread; 3.02 KB is spilled to local memory"
    assert "60 % of its time a warp waits for data from L2" in cells["stalls"]
    assert "then 20 % for other warps, at a barrier" in cells["stalls"]
    assert "45.1 % of the warps that fit an SM; the launch allows 50.0 %" in cells["occupancy"]
    assert cells["bank conflicts"].startswith("bank conflicts 1,234 ")
    assert len(table(parsed(csv(VALUES)), 1, 1)) == 10 and "not available" not in shown


def test_exactly_one_launch_is_profiled_within_the_range_that_the_program_marks(fake):
    calls = fake(f"print({csv(VALUES)!r})")
    profiled(direction="backward")
    (call,) = calls.read_text().splitlines()
    for options in ("--csv", "--kernel-name _first", "--launch-count 1", "--profile-from-start off",
                    "--target-processes all", f"--metrics {','.join(METRICS)}"):  # fmt: skip
        assert f" {options} " in f" {call} "
    assert call.endswith(f"{sys.executable} -m bench.inspect.ncu doubled seed float16 backward")


def test_kernel_that_declares_most_bytes_a_launch_is_profiled_and_the_others_are_named(fake):
    calls = fake(f"print({csv(VALUES)!r})")
    shown = profiled()
    assert "_first, first of 3 launches, in doubled seed forward and backward" in shown
    assert "also launched, for --kernel: _second" in shown
    assert "--kernel" not in profiled(direction="forward")
    assert "2.43 TB/s" not in profiled("_second") and "no dot is declared" in profiled("_second")
    assert "--kernel-name _second" in calls.read_text().splitlines()[-1]
    with pytest.raises(UserError, match="--kernel: got '_third', launched are _first, _second"):
        profiled("_third")
    with pytest.raises(UserError, match="--kernel: got '_second', launched are _first$"):
        profiled("_second", "forward")


def test_counter_that_this_chip_does_not_have_is_not_available(fake):
    gone = {TENSOR: ("", "n/a"), STALL.format("gmma"): ("", "n/a")}
    fake(f"print({csv(VALUES | gone)!r})")
    (row,) = [line for line in profiled().splitlines() if "not available" in line]
    assert row.startswith("tensor cores")


@pytest.mark.parametrize("how", ["Failed to find metric regex:^dram__bytes_read\\.(sum|avg)$", "n/a"])
def test_metric_that_ncu_does_not_know_is_asked_for_by_its_newer_name(fake, how):
    newer = {SUCCESSORS.get(name, name): value for name, value in VALUES.items()}
    absent = csv(VALUES | {READ: ("", "n/a")}) if how == "n/a" else f"==ERROR== {how}"
    calls = fake(f"print({absent!r} if {READ!r} in metrics else {csv(VALUES | newer)!r})")
    assert "DRAM traffic" in (shown := profiled()) and "not available" not in shown
    assert [READ in call for call in calls.read_text().splitlines()] == [True, False]


def test_metric_of_which_neither_name_is_known_is_left_out(fake):
    names = (READ, SUCCESSORS[READ])
    without = {name: value for name, value in VALUES.items() if name not in names}
    calls = fake(f"""
        for name in {names!r}:
            if name in metrics:
                sys.exit(print("==ERROR== Failed to find metric", name))
        print({csv(without)!r})
    """)
    assert "DRAM traffic" in [line.split("  ")[0] for line in profiled().splitlines() if "not avail" in line]
    assert len(calls.read_text().splitlines()) == 3


def test_metric_without_a_newer_name_is_left_out(fake):
    without = {name: value for name, value in VALUES.items() if name != TENSOR}
    fake(f"""
        if {TENSOR!r} in metrics:
            sys.exit(print("==ERROR== Failed to find metric {TENSOR}"))
        print({csv(without)!r})
    """)
    assert "tensor cores" in [line.split("  ")[0] for line in profiled().splitlines() if "not avail" in line]


def test_metrics_that_ncu_never_finds_end_in_one_line(fake):
    calls = fake('print("==ERROR== Failed to find metric", metrics[0])')
    with pytest.raises(UserError, match="ncu fails: Failed to find metric"):
        profiled()
    assert len(calls.read_text().splitlines()) <= len(METRICS) + len(SUCCESSORS) + 1


@pytest.mark.parametrize(
    "says, status, told",
    [
        (
            "==ERROR== ERR_NVGPUCTRPERM - The user does not have permission to access NVIDIA GPU Performance "
            "Counters on the target device 0.\n==WARNING== No kernels were profiled.",
            1,
            ("does not have permission", "NVreg_RestrictProfilingToAdminUsers=0"),
        ),
        (
            "==ERROR== Profiling failed because a driver resource was unavailable. Ensure that no other tool "
            "(like DCGM) is concurrently collecting profiling data.",
            1,
            ("driver resource", "dcgmi profile --pause"),
        ),
        ("==PROF== Connected to process 1\n==WARNING== No kernels were profiled.", 0, ("No kernels were",)),
        (
            "Traceback (most recent call last):\ntorch.OutOfMemoryError: CUDA out of memory.\n"
            "==ERROR== The application returned an error code (1).\n==WARNING== No kernels were profiled.",
            1,
            ("torch.OutOfMemoryError: CUDA out of memory.",),
        ),
        ("", 9, ("exit status 9",)),
    ],
)
def test_failure_of_ncu_is_a_line_with_the_reason_and_what_helps(fake, says, status, told):
    fake(f"print({says!r}); sys.exit({status})")
    with pytest.raises(UserError) as raised:
        profiled()
    message = str(raised.value)
    assert message.startswith("ncu fails: ") and "\n" not in message
    assert all(words in message for words in told)


def test_all_that_is_missing_is_named_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(ncu, "TOOLKIT", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError) as raised:
        profiled()
    message = str(raised.value)
    assert message.startswith("needs ") and "\n" not in message
    assert all(words in message for words in ("CUDA device", "install Nsight Compute", "CUDA toolkit"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(launch, "INTERPRETED", False)
    with pytest.raises(UserError, match="^needs `ncu`"):
        profiled()


def test_ncu_of_the_toolkit_is_found_without_a_path(monkeypatch, tmp_path, gpu):
    tool = tmp_path / "ncu"
    tool.write_text(f"#!/bin/sh\nprintf %s {shlex.quote(csv(VALUES))}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    monkeypatch.setattr(ncu, "TOOLKIT", str(tmp_path))
    assert "34.5 MB" in profiled()


def test_several_cases_are_refused_with_their_names(fake):
    fake("")
    with pytest.raises(UserError, match="takes one .* here are 2: doubled seed, doubled other"):
        profiled(cases=SPEC.cases)


def test_program_that_ncu_runs_marks_the_second_call_in_the_directions_asked_for(monkeypatch):
    said = []

    class Range:
        def __enter__(self):
            said.append("start")

        def __exit__(self, *_):
            said.append("stop")

    def op(x):
        said.append("forward")
        out = 2 * x
        out.register_hook(lambda grad: said.append("backward"))
        return out

    spec = KernelSpec(**{**vars(SPEC), "op": op})
    monkeypatch.setattr(ncu.kernels, "CATALOGUE", {"doubled": spec})
    monkeypatch.setattr(torch.cuda.profiler, "profile", Range)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(ncu, "DEVICE", "cpu")
    once = ["forward", "backward"]
    for ways, expected in {
        ("forward",): ["start", "forward", "stop", "backward"],
        ("backward",): ["forward", "start", "backward", "stop"],
        ("forward", "backward"): ["start", "forward", "stop", "start", "backward", "stop"],
    }.items():
        said.clear()
        ncu.main("doubled", "seed", "float16", *ways)
        assert said == once + expected


@pytest.mark.parametrize(
    "unit, factor",
    [("ns", 1e-9), ("nsecond", 1e-9), ("us", 1e-6), ("usecond", 1e-6), ("ms", 1e-3), ("s", 1), ("byte", 1),
     ("Kbyte", 1e3), ("Mbyte", 1e6), ("Gbyte", 1e9), ("%", 1), ("register/thread", 1), ("inst", 1), ("", 1)],
)  # fmt: skip
def test_unit(unit, factor):
    assert scale(unit) == factor


@pytest.mark.parametrize(
    "value, text",
    [(1.23e-5, "12.3 us"), (999.6e-9, "1 us"), (4e-10, "0.4 ns"), (0, "0 s"), (1, "1 s"), (34.5e6, "34.5 Ms"),
     (999.9, "1 Ks"), (5e15, "5e+03 Ts")],
)  # fmt: skip
def test_quantity_has_three_digits_and_a_prefix(value, text):
    assert quantity(value, "s") == text
