"""The microbenchmark's command line, records and refusals, on the CPU: no GPU is asked for."""

import csv
import dataclasses
import io
import json
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from torch.autograd import DeviceType

import bench.__main__
import bench.report
import kernels
from bench import calls, cli, micro, rows
from bench import conftest as hooks
from bench.check import check
from bench.cli import main
from bench.implementations import IMPLEMENTATIONS
from bench.micro import Work
from bench.rows import Row
from hlb.runs import environment, ledger
from kernels.base import chips, timing
from kernels.base.launch import INSTALLED, launch, triton
from kernels.base.spec import Case, KernelSpec

needs_triton = pytest.mark.skipif(not INSTALLED, reason="triton is not installed")


@triton.jit
def _first(p_x):
    pass


@triton.jit
def _second(p_x):
    pass


class Doubled(torch.autograd.Function):
    """2 x, by a launch of `_first` each way and one of `_second` backward."""

    @staticmethod
    def forward(ctx, x):
        if recorded():
            launch(_first, (1,), x)
        return 2 * x

    @staticmethod
    def backward(ctx, grad):
        if recorded():
            launch(_first, (1,), grad)
            launch(_second, (1,), grad)
        return 2 * grad


def recorded() -> bool:
    return kernels.base.launch._recorded is not None


def made(name: str = "doubled", factor: float = 2.0, gradient: bool = True) -> KernelSpec:
    """A spec of 2 x. Its op is right, and its reference too where `factor` is 2."""
    return KernelSpec(
        name=name,
        formula="2 x",
        reference=lambda x: factor * x,
        op=lambda x: Doubled.apply(x),
        ops=(),
        make=lambda case, dtype, device: {"x": torch.randn(case.n, 8, device=device).to(dtype)},
        cases=(Case("seed", n=512), Case("other", n=64)),
        space={},
        counted=(),
        bytes=lambda case, dtype: {"_first": 1000, "_second": 300},
        flops=lambda case, dtype: {"_second": 7},
        dtypes=(torch.float32, torch.float16),
        differentiable=("x",) if gradient else (),
    )


@pytest.fixture(autouse=True)
def on_a_cpu(monkeypatch):
    monkeypatch.setattr(micro, "timed_on", lambda: ("cpu", "there is no CUDA device"))
    monkeypatch.setattr(kernels, "CATALOGUE", {"doubled": made()})


@pytest.fixture
def with_kernels(monkeypatch):
    """As if the CPU were a device for kernels: the op is checked, timed by the wall clock, and shown."""
    monkeypatch.setattr(micro, "timed_on", lambda: ("cpu", None))


def measured(path) -> list[dict]:
    return json.loads(path.read_text())["rows"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["nothing"], "'nothing', accepted are doubled"),
        (["--case", "nothing"], "'nothing', cases are seed, other"),
        (["--dtype", "int8"], "--dtype"),
        (["--dtype", "bfloat16"], "--dtype: got bfloat16"),
        (["--samples", "0"], "--samples: got '0'"),
        (["--samples", "many"], "--samples"),
        (["--unknown"], "--unknown"),
        (["--json", "."], "--json: cannot write"),
        (["--json", "one.file", "--csv", "./one.file"], "one.file"),
        (["--json", "out/rows.json", "--out", "out"], "--json and --out rows.json: both are out/rows.json"),
        (["--direction", "sideways"], "--direction"),
        (["asm", "machine"], "stage"),
        (["asm", "ptx", "--trace", "t.json"], "--trace is now `python -m bench trace FILE NAME`"),
        (["--ncu"], "--ncu is now `python -m bench ncu NAME`"),
        (["--chip", "9.0"], "unrecognized arguments: --chip"),
        (["asm", "ptx", "--chip", "7.0"], "--chip"),
        (["--repeats", "3"], "unrecognized arguments: --repeats"),
        (["vs", "HEAD", "--repeats", "0"], "--repeats: got '0'"),
        (["--kernel", "_first"], "unrecognized arguments: --kernel"),
        (["trace", "t.json", "--kernel", "_first"], "unrecognized arguments: --kernel"),
        (["asm", "ptx", "--json", "a.json"], "unrecognized arguments: --json"),
        (["vs", "HEAD", "--out", "out"], "unrecognized arguments: --out"),
        (["asm", "ptx", "--all"], "unrecognized arguments: --all"),
        (["trace", "t.json", "--max-autotune"], "unrecognized arguments: --max-autotune"),
        (["trace"], "required: file"),
    ],
)
def test_mistake_is_one_line_and_exit_status_2(capsys, tmp_path, monkeypatch, arguments, named):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    program = f"bench {arguments[0]}" if arguments[0] in cli.MODES else "bench"
    assert out == "" and err.count("\n") == 1 and err.startswith(f"{program}: ") and named in err
    assert list(tmp_path.iterdir()) == []


def test_without_a_gpu_references_alone_are_timed_at_a_small_batch_and_a_line_says_so(tmp_path, capsys):
    assert main(["--all", "--samples", "2", "--json", str(tmp_path / "out.json")]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "no kernel is timed" in line]
    assert "no CUDA device" in line and f"n = {micro.CPU_BATCH}" in line
    found = measured(tmp_path / "out.json")
    assert [(row["case"], row["direction"]) for row in found] == [
        (case, direction) for case in ("seed", "other") for direction in ("forward", "backward", "both")
    ]
    assert {(row["implementation"], row["fields"]["n"], row["fault"]) for row in found} == {
        ("eager", 16, None)
    }
    assert all(len(row["samples"]) == 2 and row["median"] > 0 and row["speed_up"] is None for row in found)


def test_cases_of_record94_alone_unless_more_are_asked_for():
    cases = tuple(Case(name, n=4) for name in ("r1", "record94 a", "record94 a at 24", "record94.b"))
    spec = dataclasses.replace(made(), cases=cases)
    assert [case.name for case in micro.few(spec)] == ["record94 a", "record94.b"]
    assert [case.name for case in micro.few(dataclasses.replace(spec, cases=cases[:1]))] == ["r1"]


def test_how_long_it_takes_is_said_first_and_autotuning_takes_being_asked_for(capsys):
    assert micro.implementations("cuda", None, autotune=True) == list(IMPLEMENTATIONS)
    assert set(IMPLEMENTATIONS) - set(micro.implementations("cuda", None)) == {"max-autotune"}
    todo = {made(): [Case(str(i), n=4) for i in range(40)]}
    assert micro.estimate(todo, ["compiled"]) == "40 cases: about 8 min"
    assert micro.estimate(todo, ["compiled", "max-autotune", "cudnn"]) == "40 cases: about 68 min"
    assert main(["--samples", "1"]) == 0
    out = capsys.readouterr().out
    assert "1 case: less than a minute" in out and out.index("minute") < out.index("seed")


@needs_triton
def test_what_the_cases_launch_is_compiled_first_each_launch_for_the_chip_that_is_here(monkeypatch):
    compiled = []
    monkeypatch.setattr(check, "compile_all", lambda rows, jobs, progress: compiled.extend(rows))
    spec = kernels.norm.norm_act.SPEC
    assert micro.compile_ahead({spec: [spec.cases[-1]]}, torch.float16, ["eager", "triton"], 2) == len(
        compiled
    )
    assert {row.launch.name for row in compiled} == set(spec.bytes(spec.cases[-1], torch.float16))
    assert {row.ccs for row in compiled} == {(chips.here().cc,)}


def test_record_names_command_device_versions_and_commit(tmp_path):
    arguments = ["doubled", "--case", "seed", "--samples", "1", "--json", str(tmp_path / "out.json")]
    assert main(arguments) == 0
    record = json.loads((tmp_path / "out.json").read_text())
    assert record["command"].startswith("python -m bench doubled --case seed")
    assert record["device"] == "cpu" and record["versions"]["torch"] == torch.__version__
    assert {"device_name", "commit", "dirty", "gpu_before", "gpu_after"} <= set(record)
    assert record["kernels_timed"] is False and record["time"][:2] == "20"
    assert record["copy_bytes_per_second"] > 0 and record["matmul_flops_per_second"] > 0


def test_csv_has_the_rows_of_the_record(tmp_path):
    assert main(["--samples", "1", "--csv", str(tmp_path / "a.csv"), "--json", str(tmp_path / "a.json")]) == 0
    with open(tmp_path / "a.csv", newline="") as f:
        lines = list(csv.DictReader(f))
    assert [float(line["median"]) for line in lines] == [
        row["median"] for row in measured(tmp_path / "a.json")
    ]
    assert lines[0]["fault"] == "" and "samples" not in lines[0]


def test_op_without_a_gradient_has_forward_rows_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(kernels, "CATALOGUE", {"doubled": made(gradient=False)})
    assert main(["--samples", "1", "--json", str(tmp_path / "out.json")]) == 0
    assert {row["direction"] for row in measured(tmp_path / "out.json")} == {"forward"}
    assert main(["--direction", "both"]) == 2
    assert "--direction: got both, none of these ops has a gradient" in capsys.readouterr().err


@pytest.mark.parametrize("direction", ["forward", "backward", "both"])
def test_one_direction_can_be_chosen(tmp_path, direction):
    path = tmp_path / "out.json"
    assert main(["doubled", "--direction", direction, "--samples", "1", "--json", str(path)]) == 0
    assert [row["direction"] for row in measured(path)] == [direction] * 2


def test_an_op_that_does_not_have_the_usual_dtype_takes_its_own(tmp_path, monkeypatch):
    narrow = dataclasses.replace(made("narrow"), dtypes=(torch.float16,))
    monkeypatch.setattr(kernels, "CATALOGUE", {"doubled": made(), "narrow": narrow})
    path = tmp_path / "out.json"
    assert main(["--case", "seed", "--direction", "forward", "--samples", "1", "--json", str(path)]) == 0
    assert [row["dtype"] for row in measured(path)] == ["float32", "float16"]
    assert main(["--dtype", "float32", "--case", "seed", "--samples", "1", "--json", str(path)]) == 0
    assert {row["op"] for row in measured(path)} == {"doubled"}


@needs_triton
def test_right_op_gets_times_launches_and_a_speed_up_over_the_reference(with_kernels, tmp_path, capsys):
    path = tmp_path / "out.json"
    assert main(["--case", "seed", "--samples", "2", "--json", str(path)]) == 0
    eager, op, _, backward, _, both = measured(path)
    assert (eager["implementation"], op["implementation"]) == ("eager", "triton")
    assert op["speed_up"] == op["speed_up_eager"] == pytest.approx(eager["median"] / op["median"])
    assert op["speed_up_compiled"] is None and eager["speed_up_eager"] is None
    assert [row["launches"] for row in (op, backward, both, eager)] == [1, 2, 3, None]
    assert op["percent_of_copy"] > 0 and both["percent_of_matmul"] > 0
    assert "speed-up" in capsys.readouterr().out


def test_wrong_op_is_not_timed_and_exit_status_is_1(with_kernels, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(kernels, "CATALOGUE", {"doubled": made(), "wrong": made("wrong", factor=2.001)})
    assert main(["--case", "seed", "--samples", "1", "--json", str(tmp_path / "out.json")]) == 1
    shown = capsys.readouterr().out
    assert "FAILED wrong seed backward triton: wrong: output 0: relative error" in shown
    for row in measured(tmp_path / "out.json"):
        failed = row["op"] == "wrong" and row["implementation"] == "triton"
        assert (row["fault"] is not None) == failed
        assert (row["median"] is None) == failed
        assert (row["speed_up"] is not None) == (row["implementation"] == "triton" and not failed)


@pytest.mark.parametrize("when_recorded", [False, True])
def test_op_that_raises_is_a_failed_row_and_the_references_are_timed(
    with_kernels, monkeypatch, tmp_path, when_recorded
):
    def broken(x):
        if recorded() and not when_recorded:
            return x
        raise RuntimeError("out of resource: shared memory\nmore")

    monkeypatch.setattr(kernels, "CATALOGUE", {"doubled": dataclasses.replace(made(), op=broken)})
    assert main(["--case", "seed", "--samples", "1", "--json", str(tmp_path / "out.json")]) == 1
    for row in measured(tmp_path / "out.json"):
        if row["implementation"] == "triton":
            assert row["fault"] == "RuntimeError: out of resource: shared memory"
        else:
            assert row["median"] > 0


@needs_triton
def test_work_of_a_direction_is_of_the_kernels_it_launches():
    spec = made()
    case, dtype = spec.cases[0], torch.float32
    found = micro.work(spec, case, dtype, spec.make(case, dtype, "cpu"))
    # `_first` is launched once forward and once backward: half of its bytes are the forward's
    assert found == {"forward": Work(500, 0, 1), "backward": Work(800, 7, 2), "both": Work(1300, 7, 3)}


def test_rates_follow_from_time_and_declared_work(monkeypatch):
    monkeypatch.setattr(micro, "copy_seconds", lambda size, device: size / 4e12)
    monkeypatch.setattr(micro, "matmul_rate", lambda dtype, device: 800e12)
    row = Row("op", "case", "float16", "forward", "triton", {}, median=1e-5)
    micro.rates(row, Work(bytes=20_000_000, flops=1_000_000_000, launches=2), torch.float16, "cuda")
    assert row.bytes_per_second == pytest.approx(2e12) and row.percent_of_copy == pytest.approx(50)
    assert row.flops_per_second == pytest.approx(1e14) and row.percent_of_matmul == pytest.approx(12.5)


def test_speed_ups_are_over_the_fastest_reference_over_eager_and_over_compiled():
    medians = {"eager": 8.0, "compiled": 4.0, "cudnn": 3.0, "triton": 2.0, "tuned": 1.0}
    group = [Row("op", "case", "float16", "both", name, {}, median=t) for name, t in medians.items()]
    failed = Row("op", "case", "float16", "both", "max-autotune", {}, fault="wrong")
    rows.speed_ups([failed, *group])
    found = [(row.speed_up, row.speed_up_eager, row.speed_up_compiled) for row in (failed, *group)]
    assert found == [(None, None, None)] * 4 + [(1.5, 4.0, 2.0), (3.0, 8.0, 4.0)]


def test_both_gives_outputs_and_gradients():
    x = torch.ones(3, requires_grad=True)
    outputs, (gradient,) = calls.both(lambda: (3 * x, None, x.detach()), [x], [torch.full((3,), 5.0)])
    assert len(outputs) == 2 and torch.equal(gradient, torch.full((3,), 15.0))


def test_backward_gives_the_gradients_of_both_again_and_again_and_calls_nothing_forward(monkeypatch):
    monkeypatch.setattr(timing, "sets", lambda nbytes, device: 3)
    spec, called = made(), []

    def function(x):
        called.append(x)
        return x * x

    inputs = spec.make(spec.cases[0], torch.float32, "cpu")
    given = (spec, spec.cases[0], torch.float32, function, inputs)
    both, backward = (calls.calls(*given, direction, "cpu") for direction in ("both", "backward"))
    _, (expected,) = both[0]()
    called.clear()
    assert len(both) == len(backward) == 3
    for call in backward * 2:
        assert torch.equal(call()[0], expected)
    assert called == []
    assert len({call.args[1][0].data_ptr() for call in backward}) == 3  # of each its own inputs


@needs_triton
def test_every_op_of_the_catalogue_is_recorded_at_its_first_case(monkeypatch):
    monkeypatch.undo()
    for spec in kernels.CATALOGUE.values():
        case = micro.on_cpu(spec.cases[0])
        found = micro.work(spec, case, spec.dtypes[0], spec.make(case, spec.dtypes[0], "cpu"))
        assert found["both"].launches >= found["forward"].launches > 0, spec.name
        assert found["both"].bytes >= found["forward"].bytes > 0, spec.name
        backward = (
            bool(spec.differentiable) and spec.name != "cross_entropy"
        )  # whose forward has the gradient
        assert (found["backward"].launches > 0) == backward, spec.name


def test_launches_are_kernels_copies_and_fills_of_the_device_and_no_named_ranges():
    events = [
        SimpleNamespace(device_type=kind, is_user_annotation=named)
        for kind, named in [
            (DeviceType.CPU, False),
            (DeviceType.CUDA, False),
            (DeviceType.CUDA, True),
            (DeviceType.CUDA, False),
        ]
    ]
    assert micro.on_device(events) == 2
    assert micro.launches(lambda: None, "cpu") is None


def shown(width: int) -> list[str]:
    """The lines of a table of two directions by two implementations, and the one above it."""
    fields = {"n": 512, "map": (3, 2), "gate": False, "pool": True}
    found = [
        Row(
            "doubled", "seed", "float16", way, by, fields, 1e-5, 1e-7, (), 10**6, 1e11, 50.0, peak_bytes=2**20
        )
        for way in ("forward", "both")
        for by in ("eager", "max-autotune")
    ]
    console = Console(file=io.StringIO(), width=width)
    rows.show(console, made(), found)
    return console.file.getvalue().splitlines()[2:]


def test_a_case_and_a_direction_are_named_where_they_begin():
    first = [line.split()[:3] for line in shown(160)[2:]]
    assert first == [
        ["seed", "forward", "eager"],
        ["max-autotune", "10.00", "0.10"],
        ["both", "eager", "10.00"],
        ["max-autotune", "10.00", "0.10"],
    ]


def test_a_case_that_is_alone_is_shown_with_its_fields():
    assert shown(160)[0] == "n 512, map (3, 2), pool"


def test_columns_give_way_to_a_narrow_terminal():
    assert {"spread", "GB/s", "peak"} <= set(shown(160)[1].split())
    _, heading, *lines = shown(52)
    assert heading.split() == ["case", "direction", "by", "us", "%", "of", "copy"]
    assert lines[1].split() == ["max-autotune", "10.00", "50"]


def test_out_is_a_folder_with_the_record_its_rows_and_the_plots(monkeypatch, tmp_path, capsys):
    drawn = {}
    plots = SimpleNamespace(
        roofline=lambda record, *paths: drawn.update({path.name: record for path in paths}),
        speed_up=lambda record, *paths: drawn.update({path.name: record for path in paths}),
    )
    monkeypatch.setitem(sys.modules, "bench.report.plots", plots)
    monkeypatch.setattr(bench.report, "plots", plots, raising=False)
    out = tmp_path / "new" / "out"
    assert main(["--case", "seed", "--samples", "1", "--out", str(out)]) == 0
    assert set(drawn) == {"roofline.png", "roofline.svg", "speedup.png", "speedup.svg"}
    record = json.loads((out / "rows.json").read_text())
    assert all(one["rows"][0]["median"] == record["rows"][0]["median"] for one in drawn.values())
    assert len((out / "rows.csv").read_text().splitlines()) == 1 + len(record["rows"])
    assert str(out) in capsys.readouterr().out


def test_without_matplotlib_out_says_how_to_get_it_before_anything_is_measured(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["--out", str(tmp_path / "out")]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "pip install matplotlib" in err
    assert not list(tmp_path.iterdir())


def test_out_that_is_a_file_is_refused(tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="without it that is said first")
    (tmp_path / "file").touch()
    assert main(["--out", str(tmp_path / "file")]) == 2
    assert "is no folder" in capsys.readouterr().err


def test_interrupted_run_is_one_line_and_status_130_and_leaves_no_file(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["bench", "--samples", "1", "--json", str(tmp_path / "out.json")])
    monkeypatch.setattr(micro, "measure", interrupt)
    assert bench.__main__.main() == 130
    assert capsys.readouterr().err == "bench: interrupted\n"
    monkeypatch.undo()
    monkeypatch.setattr(ledger, "finite", interrupt)
    with pytest.raises(KeyboardInterrupt):
        ledger.write(tmp_path / "out.json", {})
    assert list(tmp_path.iterdir()) == []


def interrupt(*_):
    raise KeyboardInterrupt


def test_a_kill_interrupts(monkeypatch):
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    monkeypatch.setattr(cli, "parsed", lambda _: signal.raise_signal(signal.SIGTERM))
    monkeypatch.setattr(sys, "argv", ["bench"])
    try:
        assert bench.__main__.main() == 130
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.fixture
def others(monkeypatch) -> list[tuple]:
    """What the tools beside the benchmark are called with."""
    called = []
    for name, entry in (
        ("asm", "run"),
        ("trace", "run"),
        ("ncu", "run"),
        ("versus", "run"),
        ("gate", "main"),
    ):
        tool = SimpleNamespace(**{entry: lambda *given, name=name: called.append((name, *given)) or 3})
        package = "gate.cli" if name == "gate" else f"inspect.{name}"
        monkeypatch.setitem(sys.modules, f"bench.{package}", tool)
        monkeypatch.setattr(bench.inspect, name, tool, raising=False)
    return called


def test_gate_has_the_other_words(monkeypatch, others):
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["bench", "gate", "--baseline", "b.json"])
    assert bench.__main__.main() == 3
    assert others == [("gate", ["--baseline", "b.json"])]


@pytest.mark.parametrize(
    ("arguments", "name", "given"),
    [
        (["asm", "ptx"], "asm", (torch.float16, "ptx", None)),
        (["asm", "sass", "--chip", "8.9", "--dtype", "float32"], "asm", (torch.float32, "sass", "8.9")),
        (["trace", "t.json"], "trace", (torch.float32, "cpu", Path("t.json"))),
        (["ncu"], "ncu", (torch.float32, None, None)),
        (["ncu", "--kernel", "_first", "--direction", "both"], "ncu", (torch.float32, "both", "_first")),
    ],
)
def test_tools_get_the_cases_and_their_options(monkeypatch, tmp_path, others, arguments, name, given):
    monkeypatch.chdir(tmp_path)
    assert main([*arguments, "doubled", "--case", "seed"]) == 3
    ((called, console, todo, *rest),) = others
    assert (called, tuple(rest)) == (name, given) and isinstance(console, Console)
    assert {spec.name: [case.n for case in cases] for spec, cases in todo.items()} == {"doubled": [512]}


def test_tools_take_the_dtype_that_an_op_has(monkeypatch, tmp_path, others):
    narrow = dataclasses.replace(made("narrow"), dtypes=(torch.float16,))
    monkeypatch.setattr(kernels, "CATALOGUE", {"doubled": made(), "narrow": narrow})
    assert main(["trace", str(tmp_path / "t.json"), "narrow"]) == 3
    assert main(["trace", str(tmp_path / "t.json")]) == 3
    found = [([spec.name for spec in todo], dtype) for _, _, todo, dtype, *_ in others]
    assert found == [(["narrow"], torch.float16), (["doubled"], torch.float32)]


def test_vs_gets_what_was_asked_for(tmp_path, others):
    path = str(tmp_path / "vs.json")
    asked = ["doubled", "--case", "seed", "--direction", "both"]
    assert main(["vs", "HEAD~1", *asked, "--samples", "7", "--repeats", "3", "--json", path]) == 3
    assert main(["vs", "main"]) == 3
    first, second = ([name, *given] for name, _, *given in others)
    assert first == ["versus", "HEAD~1", ["doubled"], "seed", "float32", "both", 7, 3, path]
    assert second == ["versus", "main", [], "", "float32", None, timing.SAMPLES, cli.REPEATS, None]


def test_help_names_every_option_and_fits_80_columns(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert all(len(line) <= 80 for line in text.splitlines())
    assert all(f"--{option.replace('_', '-')} " in text for option in (*cli.MODES[""], "case", "dtype"))
    assert all(f"\n  {command}" in text for command in (*cli.MODES, *bench.__main__.COMMANDS) if command)


@pytest.mark.parametrize("command", [mode for mode in cli.MODES if mode])
def test_help_of_a_command_names_its_options_and_fits_80_columns(capsys, command):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    text = capsys.readouterr().out
    assert all(len(line) <= 80 for line in text.splitlines())
    assert all(f"--{option.replace('_', '-')} " in text for option in (*cli.MODES[command], "case", "dtype"))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_pytest_benchmark_is_told_of_machine_and_state(monkeypatch, device):
    monkeypatch.setattr(micro, "timed_on", lambda: (device, None))
    monkeypatch.setattr(environment, "device_name", lambda device: f"a {device}")
    monkeypatch.setattr(environment, "gpu_state", lambda device: {"clocks.sm": "1 MHz"})
    monkeypatch.setattr(micro, "copy_rate", lambda device: 1e12)
    monkeypatch.setattr(micro, "matmul_rate", lambda dtype, device: 1e15)
    machine, output = {"node": "here"}, {}
    hooks.pytest_benchmark_update_machine_info(None, machine)
    hooks.pytest_benchmark_update_json(None, [], output)
    assert machine["device"] == f"a {device}" and machine["versions"]["torch"] == torch.__version__
    ceilings = {"copy_bytes_per_second": 1e12, "matmul_flops_per_second": 1e15} if device == "cuda" else {}
    assert output == {"machine_state": {"gpu": {"clocks.sm": "1 MHz"}} | ceilings}
