"""`python -m bench trace`: ranges and table of a Chrome trace, on a CPU; CUDA's events are made up."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from bench import micro
from bench.inspect import trace
from bench.inspect.trace import CALLS, PYTHON, own, spent, table
from hlb import UserError
from kernels.base.spec import Case, KernelSpec

SPEC = KernelSpec(
    name="doubled",
    formula="2 sin x",
    reference=lambda x: 2 * x.sin(),
    op=lambda x: 2.01 * x.sin(),
    ops=(),
    make=lambda case, dtype, device: {"x": torch.ones(case.n, 3).to(dtype)},
    cases=(Case("seed", n=512), Case("other", n=4)),
    space={},
    counted=(),
    bytes=lambda case, dtype: {},
    differentiable=("x",),
)


def traced(path: Path, cases=SPEC.cases, device: str = "cpu", status: int = 0, width: int = 80) -> list[str]:
    out = io.StringIO()
    console = Console(file=out, width=width)
    assert trace.run(console, {SPEC: list(cases)}, torch.float32, device, path) == status
    return out.getvalue().splitlines()


def test_ranges_name_op_case_implementation_and_direction(tmp_path):
    shown = traced(tmp_path / "new" / "t.json")
    events = json.loads((tmp_path / "new" / "t.json").read_text())["traceEvents"]
    names = [event["name"] for event in events if event.get("cat") == "user_annotation"]
    for case in ("seed", "other"):
        for direction in ("forward", "backward"):
            name = f"doubled {case} eager {direction}"
            assert names.count(name) == CALLS and any(line.startswith(f"{name} ") for line in shown)
    assert "ui.perfetto.dev" in shown[-1] and "t.json" in shown[-1]
    assert [file.name for file in tmp_path.rglob("*") if file.is_file()] == ["t.json"]


def test_on_a_cpu_the_reference_alone_is_called_at_a_small_batch(tmp_path, monkeypatch):
    sizes = []
    make = SPEC.make
    monkeypatch.setitem(SPEC.__dict__, "make", lambda case, *a: sizes.append(case.n) or make(case, *a))
    monkeypatch.setitem(SPEC.__dict__, "op", None)
    shown = traced(tmp_path / "t.json")
    assert set(sizes) == {micro.CPU_BATCH, 4} and any("references alone, at n = 16" in line for line in shown)


def test_operators_of_a_range_add_up_to_it(tmp_path):
    traced(tmp_path / "t.json", SPEC.cases[:1])
    trace_ = json.loads((tmp_path / "t.json").read_text())
    events = [event for event in trace_["traceEvents"] if event.get("ph") == "X"]
    name = "doubled seed eager forward"
    (found,) = spent(events, {name}, on_device=False).values()
    whole = sum(e["dur"] for e in events if e["name"] == name and e["cat"] == "user_annotation") / 1e6
    assert sum(map(sum, found.values())) == pytest.approx(whole, abs=1e-8)
    assert [len(found[name]) for name in ("aten::sin", "aten::mul", PYTHON)] == [CALLS] * 3
    assert min(map(min, found.values())) >= 0 and "aten::cos" not in found


def event(category: str, name: str, start: float, micros: float, thread: int = 1) -> dict:
    return {"ph": "X", "cat": category, "name": name, "pid": 7, "tid": thread, "ts": start, "dur": micros}


def test_operators_time_is_without_that_of_those_it_calls():
    events = [
        event("cpu_op", "outer", 0, 10),
        event("cpu_op", "inner", 2, 5),
        event("cpu_op", "innermost", 3, 1),
        event("cpu_op", "inner", 7, 2),  # begins where the other ends
        event("cpu_op", "elsewhere", 4, 3, thread=2),
        event("python_function", "of no interest", 0, 10),
    ]
    assert [(e["name"], micros) for e, micros in own(events)] == [
        ("outer", 3), ("inner", 4), ("innermost", 1), ("inner", 2), ("elsewhere", 3),
    ]  # fmt: skip


def test_on_a_gpu_a_range_has_the_kernels_that_run_within_it():
    events = [
        event("user_annotation", "a forward", 10, 20),
        event("user_annotation", "a backward", 40, 20),
        event("gpu_user_annotation", "a forward", 12, 9, thread=99),
        event("cpu_op", "aten::mm", 11, 5),
        event("kernel", "gemm", 12, 8, thread=99),
        event("gpu_memset", "fill", 21, 1, thread=99),
        event("kernel", "gemm", 45, 6, thread=99),
        event("kernel", "between", 32, 6, thread=99),
    ]
    found = spent(events, {"a forward", "a backward"}, on_device=True)
    micros = {
        name: {what: [1e6 * s for s in many] for what, many in parts.items()} for name, parts in found.items()
    }
    assert micros["a forward"] == {"gemm": [pytest.approx(8)], "fill": [pytest.approx(1)]}
    assert micros["a backward"] == {"gemm": [pytest.approx(6)]}


def test_table_has_what_takes_most_first_and_sums_up_the_rest():
    parts = {f"kernel {i}": [i * 1e-6 * CALLS] for i in range(1, 9)} | {"long " * 30: [50e-6 * CALLS]}
    (whole, first, *_, rest) = table({"a call": parts})
    assert whole == ("a call", "", "86.0", "")
    assert first == ("  " + ("long " * 30)[:60], f"{1 / CALLS:g}", "50.0", "58%")
    assert rest == ("  4 more", f"{4 / CALLS:g}", "10.0", "12%")
    assert table({"nothing": {}}) == [("nothing", "", "0.0", "")]


without_cuda = pytest.mark.filterwarnings("ignore:CUDA is not available")


@pytest.fixture
def gpu(monkeypatch):
    """As if the CPU were a GPU, of which the profiler sees nothing."""
    monkeypatch.setattr(trace.launch, "INSTALLED", True)
    monkeypatch.setattr(trace.launch, "INTERPRETED", False)
    monkeypatch.setattr(trace, "device_name", lambda device: "a GPU")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)


@without_cuda
def test_wrong_op_is_not_traced_beside_its_reference_and_exit_status_is_1(gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(trace, "check", lambda *_: ["output 0: relative error 5e-03, allowed 1e-05"])
    monkeypatch.setattr(trace, "WORK", ("cpu_op",))
    shown = traced(tmp_path / "t.json", SPEC.cases[1:], "cuda", status=1, width=120)
    assert "WRONG doubled other, not traced: output 0: relative error 5e-03, allowed 1e-05" in shown
    assert not any("triton" in line for line in shown)
    monkeypatch.setattr(trace, "check", lambda *_: [])
    shown = traced(tmp_path / "t.json", SPEC.cases[1:], "cuda")
    assert any(line.startswith("doubled other triton forward") for line in shown)


@without_cuda
def test_profiler_without_kernels_is_a_line_and_leaves_no_file(gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(trace, "check", lambda *_: [])
    with pytest.raises(UserError, match="the profiler sees no kernels here"):
        traced(tmp_path / "t.json", SPEC.cases[1:], "cuda")
    assert list(tmp_path.iterdir()) == []


def test_path_that_cannot_be_written_is_refused_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setitem(SPEC.__dict__, "make", None)
    with pytest.raises(UserError, match="FILE: cannot write"):
        traced(tmp_path)
