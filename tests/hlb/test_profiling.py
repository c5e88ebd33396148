"""The profile of a training step: which op each moment belongs to, the table, the trace, mistakes."""

import dataclasses
import io
import json

import pytest
import torch
from rich.console import Console
from torch.profiler import record_function

import hlb
from bench.report import benches
from hlb import synthetic
from hlb.cli import main
from hlb.cost import complexity, passes, profiling
from hlb.cost.profiling import BETWEEN, NODE, STEP
from hlb.cost.rehearsal import Rehearsal
from hlb.execution import resolve
from hlb.train import Trainer
from kernels.base import chips

SETTINGS = {"base_depth": 4, "train_examples": 200, "batch_size": 100, "eval_batch_size": 100, "epochs": 3.0,
            "whiten_images": 50, "dtype": "float32"}  # fmt: skip
TINY = ("--data", "synthetic", "--threads", "1", "--set", *(f"{k}={v}" for k, v in SETTINGS.items()))
ONCE = ("augment", "pool_head", "cross_entropy", "update_running_stats")  # ops of every step


@pytest.fixture(scope="module")
def data() -> hlb.Dataset:
    return hlb.Dataset("synthetic", synthetic.make(220, 100))


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch, data):
    """Runs a test in a folder of its own with the small set; sets the number of threads back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(synthetic, "make", lambda *_: data.tensors)
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=["smoke", "seed"])
def profiled(request, data, tmp_path_factory):
    """A profile with its trace, asked for as if compiled."""
    threads, path = torch.get_num_threads(), tmp_path_factory.mktemp("profiled") / "trace.json"
    how = hlb.Execution(device="cpu", compile="on", threads=1)
    result = profiling.profile(path, request.param, settings=SETTINGS, data=data, execution=how)
    torch.set_num_threads(threads)
    return result, json.loads(path.read_text())


def layers(recipe) -> list[str]:
    return [layer.name for layer in complexity.layers(recipe)]


# -- which op a moment belongs to ----------------------------------------------------------------------------


def test_a_node_belongs_to_the_op_whose_range_made_it(tmp_path):
    x = torch.ones(3, requires_grad=True)
    with torch.profiler.profile(acc_events=True) as profiler:
        with record_function("a"):
            y = x.exp()
            (x.detach() * 2).sum()  # make no node, and show the number of the next one, of b
        with record_function("b"):
            y = y.sin()
        y.cos().sum().backward()
    profiler.export_chrome_trace(str(tmp_path / "t.json"))
    events = [e for e in json.loads((tmp_path / "t.json").read_text())["traceEvents"] if e.get("ph") == "X"]
    names = {event["ts"]: event["name"].removeprefix(NODE) for event in events if "args" in event}
    found = profiling.pieces(events, ("a", "b"))
    assert [piece.op for piece in found if not piece.backward] == ["a", "b"]
    owners = {names[piece.start]: piece.op for piece in found if piece.backward}
    assert owners["ExpBackward0"] == "a" and owners["SinBackward0"] == "b"
    assert owners["CosBackward0"] == owners["SumBackward0"] == BETWEEN


def _event(category: str, name: str, start: float, micros: float, thread: int = 1, **detail) -> dict:
    place = {"pid": 7, "tid": thread, "ts": start, "dur": micros}
    return {"ph": "X", "cat": category, "name": name, **place, "args": detail}


def test_a_kernel_counts_for_the_op_that_launched_it_whenever_it_ran():
    node = {"Sequence number": 5, "Fwd thread id": 1}
    events = [
        _event("user_annotation", STEP, 0, 100),
        _event("user_annotation", "a", 10, 10),
        _event("cpu_op", "aten::mm", 12, 5, **{"External id": 1, "Sequence number": 5, "Fwd thread id": 0}),
        _event("cpu_op", "aten::add_", 30, 5, **{"External id": 2}),
        _event("cpu_op", f"{NODE}MmBackward0", 40, 20, thread=2, **node),
        _event("cpu_op", "aten::mm", 45, 5, thread=2, **{"External id": 3}),
        _event("kernel", "gemm", 200, 30, thread=99, **{"External id": 1}),
        _event("kernel", "gemm", 240, 50, thread=99, **{"External id": 3}),
        _event("gpu_memcpy", "copy", 290, 4, thread=99, **{"External id": 2}),
        _event("gpu_user_annotation", "a", 200, 30, thread=99, **{"External id": 9}),
    ]
    (spent,) = profiling.times(events, profiling.pieces(events, ("a",)), on_device=True)
    micros = {which: seconds * 1e6 for which, seconds in spent.items()}
    assert micros == pytest.approx({("a", False): 30, ("a", True): 50, (BETWEEN, False): 4})


# -- the profile ---------------------------------------------------------------------------------------------


def test_table_has_every_op_of_the_step_and_every_layer(profiled):
    result, _ = profiled
    ops = [row.op for row in result.rows]
    named = {op for row in ops for op in row.split(" + ")}
    wanted = {f"conv_bn_act {name}" for name in layers(result.recipe) if ".conv" in name}
    wanted |= {f"se_gate {name}" for name in layers(result.recipe) if name.endswith(".se")}
    wanted |= {*ONCE, "stem", "sgd", {"sgd": "norm_act", "muon": "muon"}[result.recipe.optimizer], BETWEEN}
    assert named == wanted and len(ops) == len(set(ops))
    calls = {row.op: row.calls for row in result.rows}
    assert all(calls[op] == 1 for op in (*ONCE, "conv_bn_act group1.conv1"))


def test_times_add_up_to_the_steps(profiled):
    result, trace = profiled
    events = [event for event in trace["traceEvents"] if event.get("ph") == "X"]
    ops = {op for row in result.rows for op in row.op.split(" + ")} - {BETWEEN}
    steps = profiling.times(events, profiling.pieces(events, ops), on_device=False)
    micros = [e["dur"] for e in events if e["name"] == STEP and e["cat"] == "user_annotation"]
    assert len(steps) == profiling.STEPS
    assert sorted(step.total() * 1e6 for step in steps) == pytest.approx(sorted(micros))
    assert min(min(step.values()) for step in steps) >= 0
    assert sum(row.seconds / result.step.seconds for row in result.rows) == pytest.approx(1)


def test_backward_time_is_that_of_the_ops_that_have_one(profiled):
    result, _ = profiled
    rows = {row.op: row for row in result.rows}
    forward_only = {"augment", "update_running_stats", "sgd", "muon"}
    if result.recipe.name == "smoke":
        forward_only.add("stem")  # whose bias is frozen in most steps
    for op, row in rows.items():
        assert row.forward > 0
        if op != BETWEEN:
            assert (row.backward > 0) == (op not in forward_only), op
    assert rows[BETWEEN].backward < 0.05 * result.step.backward  # nodes that are no op's are few


def test_floors_are_those_of_the_whole_steps_passes(profiled):
    result, _ = profiled
    variant, averages = max(
        complexity.steps(result.recipe, 220), key=complexity.steps(result.recipe, 220).get
    )
    assert variant == result.variant
    rehearsal = Rehearsal(result.recipe, torch.float32, 220)
    part = rehearsal.part(lambda: rehearsal.step(variant))
    whole = passes.passes(result.recipe, "reference", *part, averages)
    assert result.step.floor == pytest.approx(sum(p.seconds(result.chip) for p in whole))
    assert all(row.floor > 0 for row in result.rows)


def test_floors_of_a_gpu_are_by_its_kernels(data):
    recipe, _ = resolve(hlb.recipe("seed", {**SETTINGS, "dtype": "float16"}), hlb.Execution(device="cpu"))
    counts = complexity.steps(recipe, 220)
    (variant, averages), chip = max(counts, key=counts.get), chips.CHIPS[0]
    reference, triton = (
        profiling.floors(recipe, choice, variant, averages, chip, 220) for choice in ("reference", "triton")
    )
    assert set(triton) == set(reference)
    assert triton["group1.conv2"] < reference["group1.conv2"] and triton[BETWEEN] == reference[BETWEEN]


def test_trace_names_the_ops_over_both_passes(profiled):
    _, trace = profiled
    names = [e["name"] for e in trace["traceEvents"] if e.get("cat") == "user_annotation"]
    for op in ("conv_bn_act group1.conv1", "conv_bn_act group1.conv1 backward", STEP):
        assert names.count(op) >= profiling.STEPS
    assert trace["traceName"] == "trace.json"


def test_what_is_printed_says_that_the_profiled_steps_were_not_compiled(profiled):
    result, _ = profiled
    for how, said in (({}, "without torch.compile,"), ({"compile": "off"}, "")):
        out = io.StringIO()
        execution = dataclasses.replace(result.execution, **how)
        profiling.show(Console(file=out, width=80), dataclasses.replace(result, execution=execution))
        assert said in out.getvalue() and ("without" in out.getvalue()) == bool(said)
        assert "100.0%" in out.getvalue() and "…" not in out.getvalue()


# -- the command ---------------------------------------------------------------------------------------------


def test_profile_prints_a_table_writes_trace_and_record_and_trains_nothing(place, monkeypatch, capsys):
    monkeypatch.setattr(Trainer, "run", None)
    files = ("--profile", "new/trace.json", "--json", "new/record.json")
    assert main(["--recipe", "smoke", *TINY, *files]) == 0
    out, err = capsys.readouterr()
    assert all(f"\n{op} " in out for op in (*ONCE, "muon", "sgd", "between the ops", "a step"))
    assert "new/trace.json" in out and err == ""
    assert {path.name for path in place.rglob("*") if path.is_file()} == {"trace.json", "record.json"}
    record = benches.load("new/record.json", "profile")
    assert {row["op"] for row in record["rows"]} >= {*ONCE, "between the ops"}
    assert benches.about_profile(record).startswith("smoke on synthetic, ")
    assert json.loads((place / "new" / "trace.json").read_text())["traceEvents"]


@pytest.mark.parametrize(
    "path, says", [("folder", "folder"), ("text.txt/below", "text.txt"), ("", "--profile")]
)
def test_path_that_cannot_be_written_is_one_line_before_any_work(place, monkeypatch, capsys, path, says):
    (place / "folder").mkdir()
    (place / "text.txt").write_text("a text")
    monkeypatch.setattr(profiling, "Trainer", None)
    _refused(capsys, ["--profile", path], "--profile", says)


def test_a_model_is_refused_beside_a_profile(capsys):
    _refused(capsys, ["--profile", "trace.json", "--save", "out"], "--save", "leave")


def test_one_file_for_trace_and_ledger_is_refused(capsys):
    _refused(capsys, ["--profile", "one.file", "--ledger", "./one.file"], "one.file", "twice")


def test_a_graph_of_the_whole_run_is_refused(capsys):
    _refused(capsys, ["--profile", "trace.json", "--graph", "run"], "--graph run", "leave it out")


def _refused(capsys, arguments: list[str], *says: str) -> None:
    assert main(["--recipe", "smoke", *TINY, *arguments]) == 2
    err = capsys.readouterr().err
    assert err.startswith("hlb: ") and err.count("\n") == 1 and "Traceback" not in err
    assert all(text in err for text in says)


def test_a_profile_that_fails_leaves_the_file_as_it_was(place, monkeypatch, data):
    (place / "trace.json").write_text("an older trace")

    def fails(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(profiling.json, "dumps", fails)
    with pytest.raises(KeyboardInterrupt):
        profiling.profile("trace.json", "smoke", settings=SETTINGS, data=data)
    assert [path.read_text() for path in place.iterdir()] == ["an older trace"]
