"""`python -m kernels tune`, with a made-up clock: what it measures, drops and writes."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from kernels import __main__, chips, conv_bn_act, launch, launches, measure, timing, tune
from kernels.spec import Case
from kernels.tiling import PASSES, Config, Problem

pytestmark = pytest.mark.skipif(not launch.INTERPRETED, reason="runs kernels through the interpreter")

H200 = chips.TARGETS[90]
FLAGS = {"gate": False, "residual": False, "spatial": False, "activation": "gelu", "training": True}
CASE = Case("tiny g1.conv1", n=2, c=16, o=16, map=(5, 4), pool=True, **FLAGS)


def config_of(call) -> Config | None:
    return next((a for a in getattr(call, "args", ()) if isinstance(a, Config)), None)


@pytest.fixture
def clock(monkeypatch):
    """A call of a kernel takes 1 s for each stage of its configuration, any other 2.5 s."""

    def measured(calls, device, samples):
        for call in calls[:1]:
            call()
        config = config_of(calls[0])
        return timing.Timing((float(config.stages) if config else 2.5,))

    monkeypatch.setattr(timing, "measure", measured)


@pytest.fixture
def recipes(monkeypatch, launch_table):
    """One small block in float16 is all that the recipes have; the table is elsewhere."""
    specs = SimpleNamespace(
        SPEC=replace(conv_bn_act.SPEC, cases=(CASE,)), EVAL_SPEC=replace(conv_bn_act.EVAL_SPEC, cases=())
    )
    monkeypatch.setattr(tune, "conv_bn_act", specs)
    monkeypatch.setattr(tune, "DTYPES", (torch.float16,))
    with launches.only(rows=16, cols=16, depth=16):
        yield


def few(problem: Problem, chip) -> list[Config]:
    """Three configurations that differ in stages."""
    return [Config("rows", 16, 16, 16, 1, stages) for stages in (3, 1, 2)]


def problem(kind: str) -> Problem:
    return Problem(kind, 2, 5, 4, 16, 16, 3, True)


def run(names: list[str], file: str | None = None) -> int:
    return tune.run(tune.jobs(names), ["tune", *names], file, 1, "cpu")


def test_the_fastest_that_is_right_is_written_and_then_chosen(clock, recipes, monkeypatch, capsys):
    monkeypatch.setattr(measure, "candidates", few)
    right = measure.kernel

    def lying(problem, config, t):
        """With one stage the gradients stay unwritten."""
        return right(problem, config, t) if config.stages > 1 or problem.kind == "forward" else lambda: None

    monkeypatch.setattr(measure, "kernel", lying)
    assert run(["tiny", "forward", "5x4"]) == 0
    assert run(["dgrad"]) == 1
    out = capsys.readouterr().out
    assert "dropped rows 16x16x16, 1 warps, 1 stages: dgrad: 640 values are not finite" in out
    launches.forget()
    with launches.only():  # as without a restriction
        assert launches.choose(problem("forward"), H200).stages == 1
        assert launches.choose_tuned(problem("forward"), H200).stages == 1
        assert launches.choose_tuned(problem("dgrad"), H200).stages == 2
        assert launches.choose_tuned(problem("wgrad"), H200) is None


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("kind", PASSES)
def test_a_wrong_value_is_noticed(kind, pool):
    this = replace(problem(kind), pool=pool)
    t = measure.tensors(this, "cpu")
    want = measure.expected(this, t)
    with launches.only(rows=16, cols=16, depth=16):
        measure.kernel(this, launches.choose(this, H200), t)()
    assert not measure.wrong(this, t, want)
    if kind == "forward":
        wrong = [(t.u, 1.5)] + [(t.argmax, 3)] * pool
    else:
        wrong = [(t.dx if kind == "dgrad" else t.d_filters, 1.5)]
    for tensor, factor in wrong:
        kept = tensor.clone()
        tensor[0].mul_(factor).add_(tensor.dtype == torch.int8).remainder_(
            4 if tensor.dtype == torch.int8 else 99
        )
        assert measure.wrong(this, t, want)
        tensor.copy_(kept)


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("kind", PASSES)
def test_pytorch_is_timed_doing_the_same(kind, pool):
    this = replace(problem(kind), pool=pool, dtype=torch.float32)
    t = measure.tensors(this, "cpu")
    want = measure.expected(this, t)
    found = measure.torch_call(this, t)()
    if kind == "forward" and pool:
        found, want = found[0], torch.nn.functional.max_pool2d(want, 2)
    assert torch.allclose(found.double(), want, atol=1e-4)


def test_a_block_is_timed_whole_and_the_winner_written(clock, recipes, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    assert run(["block"]) == 0
    data = json.loads(launches.FILE.read_text())
    assert data[H200.name]["blocks"].keys() == {"block n=2 5x4 16->16 pool float16"}
    assert launches.block_winner(problem("forward"), H200) == "reference"  # all take as long


def test_a_wrong_block_is_not_written(clock, recipes, monkeypatch):
    monkeypatch.setattr(measure.compare, "check", lambda *_: ["output 0: no"])
    assert run(["block"]) == 1
    assert not launches.FILE.exists()


def test_a_second_run_replaces_what_it_measures_and_says_where_all_is_from(clock, recipes, monkeypatch):
    monkeypatch.setattr(measure, "candidates", few)
    dates = iter(("1", "2", "3"))
    monkeypatch.setattr(
        tune, "provenance", lambda command, device: {"command": " ".join(command), "date": next(dates)}
    )
    for names in (["forward"], ["dgrad"], ["forward"]):
        run(names)
    found = json.loads(launches.FILE.read_text())[H200.name]
    assert {key.split()[0]: entry["run"] for key, entry in found["launches"].items()} == {
        "forward": "3",
        "dgrad": "2",
    }
    assert found["runs"] == {
        date: {"command": name, "date": date} for date, name in (("2", "tune dgrad"), ("3", "tune forward"))
    }


def test_provenance_says_on_what_and_when():
    found = tune.provenance(["python", "-m", "kernels", "tune"], "cpu")
    assert found.keys() >= {"command", "date", "device", "driver", "torch", "triton", "commit"}
    assert found["command"] == "python -m kernels tune" and found["torch"] == torch.__version__


def test_jobs_are_the_recipes_passes_and_blocks_by_name():
    every = tune.jobs([])
    assert len({job.name for job in every}) == len(every)
    shared = tune.jobs(["r1.conv2", "block", "float16"])
    assert [job.name for job in shared] == ["block n=512 15x15 128->128 float16"]
    assert [case.name for case in shared[0].cases] == ["r1.conv2", "r1.conv3"]
    kinds = [job.problem.kind for job in tune.jobs(["record94", "g1.conv1", "31x31", "n=1536", "bfloat16"])]
    assert kinds == [*PASSES, "block"]


# The command


def test_a_dry_run_shows_candidates_with_modelled_times(capsys):
    assert __main__.main(["tune", "--dry-run", "g1.conv1", "record94", "float16"]) == 0
    out = capsys.readouterr().out
    assert "wgrad n=1536 31x31 24->64 pool float16" in out and "NVIDIA H200" in out
    assert __main__.main(["tune", "--dry-run", "r3.conv2", "forward", "bfloat16", "--json", "-"]) == 0
    (modelled,) = [v for k, v in json.loads(capsys.readouterr().out)["modelled"].items() if "n=512" in k]
    times = list(modelled.values())
    assert times == sorted(times) and all(1e-6 < each < 1e-2 for each in times)


@pytest.mark.parametrize(
    "arguments", [["tune"], ["tune", "no_such"], ["tune", "--json", "/no/where"], ["tune", "--jobs", "0"]]
)
def test_a_mistake_is_one_line_and_exit_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        __main__.main(arguments)
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and out == "" and err.count("\n") == 1 and err.startswith("kernels: ")


def test_a_broken_table_is_one_line(recipes, capsys, monkeypatch):
    launches.FILE.write_text("{")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(launch, "INTERPRETED", False)
    with pytest.raises(SystemExit) as stop:
        __main__.main(["tune", "tiny"])
    assert stop.value.code == 2 and "launches.json" in capsys.readouterr().err
