"""The microbenchmark's command line, records and refusals, on the CPU: no GPU is asked for."""

import csv
import dataclasses
import json

import pytest
import torch

import kernels
from bench import micro
from bench.micro import Row, Work, main
from kernels import calls
from kernels.launch import INSTALLED, launch, triton
from kernels.spec import Case, KernelSpec

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
    return kernels.launch._recorded is not None


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


def rows(path) -> list[dict]:
    return json.loads(path.read_text())["rows"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["nothing"], "'nothing', accepted are doubled"),
        (["--case", "nothing"], "'nothing', cases are seed, other"),
        (["--dtype", "int8"], "--dtype"),
        (["--dtype", "bfloat16"], "--dtype: got bfloat16"),
        (["--samples", "0"], "--samples: got 0"),
        (["--samples", "many"], "--samples"),
        (["--unknown"], "--unknown"),
        (["--json", "."], "--json: cannot write"),
        (["--json", "one.file", "--csv", "./one.file"], "one.file"),
    ],
)
def test_mistake_is_one_line_and_exit_status_2(capsys, tmp_path, monkeypatch, arguments, named):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("bench: ") and named in err
    assert list(tmp_path.iterdir()) == []


def test_without_a_gpu_references_alone_are_timed_at_a_small_batch_and_a_line_says_so(tmp_path, capsys):
    assert main(["--samples", "2", "--json", str(tmp_path / "out.json")]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "no kernel is timed" in line]
    assert "no CUDA device" in line and f"n = {micro.CPU_BATCH}" in line
    found = rows(tmp_path / "out.json")
    assert [(row["case"], row["direction"]) for row in found] == [
        (case, direction) for case in ("seed", "other") for direction in ("forward", "training")
    ]
    assert {(row["implementation"], row["fields"]["n"], row["fault"]) for row in found} == {
        ("eager", 16, None)
    }
    assert all(len(row["samples"]) == 2 and row["median"] > 0 and row["speed_up"] is None for row in found)


def test_record_names_command_device_versions_and_commit(tmp_path):
    arguments = ["doubled", "--case", "seed", "--samples", "1", "--json", str(tmp_path / "out.json")]
    assert main(arguments) == 0
    record = json.loads((tmp_path / "out.json").read_text())
    assert record["command"].startswith("python -m bench doubled --case seed")
    assert record["device"] == "cpu" and record["versions"]["torch"] == torch.__version__
    assert {"device_name", "commit", "dirty", "gpu_before", "gpu_after"} <= set(record)
    assert record["kernels_timed"] is False


def test_csv_has_the_rows_of_the_record(tmp_path):
    assert main(["--samples", "1", "--csv", str(tmp_path / "a.csv"), "--json", str(tmp_path / "a.json")]) == 0
    with open(tmp_path / "a.csv", newline="") as f:
        lines = list(csv.DictReader(f))
    assert [float(line["median"]) for line in lines] == [row["median"] for row in rows(tmp_path / "a.json")]
    assert lines[0]["fault"] == "" and "samples" not in lines[0]


def test_op_without_a_gradient_has_no_training_row(tmp_path, monkeypatch):
    monkeypatch.setattr(kernels, "CATALOGUE", {"doubled": made(gradient=False)})
    assert main(["--samples", "1", "--json", str(tmp_path / "out.json")]) == 0
    assert {row["direction"] for row in rows(tmp_path / "out.json")} == {"forward"}


@needs_triton
def test_right_op_gets_times_launches_and_a_speed_up_over_the_reference(with_kernels, tmp_path, capsys):
    path = tmp_path / "out.json"
    assert main(["--case", "seed", "--samples", "2", "--json", str(path)]) == 0
    eager, op, *training = rows(path)
    assert (eager["implementation"], op["implementation"]) == ("eager", "triton")
    assert op["speed_up"] == pytest.approx(eager["median"] / op["median"])
    assert (op["launches"], training[1]["launches"], eager["launches"]) == (1, 3, None)
    assert op["percent_of_copy"] > 0 and training[1]["percent_of_matmul"] > 0
    assert "speed-up" in capsys.readouterr().out


def test_wrong_op_is_not_timed_and_exit_status_is_1(with_kernels, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(kernels, "CATALOGUE", {"doubled": made(), "wrong": made("wrong", factor=2.001)})
    assert main(["--case", "seed", "--samples", "1", "--json", str(tmp_path / "out.json")]) == 1
    shown = capsys.readouterr().out
    assert "FAILED wrong seed training triton: wrong: output 0: relative error" in shown
    for row in rows(tmp_path / "out.json"):
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
    for row in rows(tmp_path / "out.json"):
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
    assert found == {"forward": Work(500, 0, 1), "training": Work(1300, 7, 3)}


def test_rates_follow_from_time_and_declared_work(monkeypatch):
    monkeypatch.setattr(micro, "copy_seconds", lambda size, device: size / 4e12)
    monkeypatch.setattr(micro, "matmul_rate", lambda dtype, device: 800e12)
    row = Row("op", "case", "float16", "forward", "triton", {}, median=1e-5)
    micro.rates(row, Work(bytes=20_000_000, flops=1_000_000_000, launches=2), torch.float16, "cuda")
    assert row.bytes_per_second == pytest.approx(2e12) and row.percent_of_copy == pytest.approx(50)
    assert row.flops_per_second == pytest.approx(1e14) and row.percent_of_matmul == pytest.approx(12.5)
    assert row.launches == 2


def test_training_call_gives_outputs_and_gradients():
    x = torch.ones(3, requires_grad=True)
    outputs, (gradient,) = calls.training_call(
        lambda: (3 * x, None, x.detach()), [x], [torch.full((3,), 5.0)]
    )
    assert len(outputs) == 2 and torch.equal(gradient, torch.full((3,), 15.0))


@needs_triton
def test_every_op_of_the_catalogue_is_recorded_at_its_first_case(monkeypatch):
    monkeypatch.undo()
    for spec in kernels.CATALOGUE.values():
        case = micro.on_cpu(spec.cases[0])
        found = micro.work(spec, case, spec.dtypes[0], spec.make(case, spec.dtypes[0], "cpu"))
        assert found["training"].launches >= found["forward"].launches > 0, spec.name
        assert found["training"].bytes >= found["forward"].bytes > 0, spec.name
