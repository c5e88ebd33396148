"""`python -m bench tune`, with a made-up clock: what it measures, drops and writes."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from bench.check import check
from bench.tune import cli, measure, tune
from kernels import conv_bn_act
from kernels.base import chips, launch, timing
from kernels.base.spec import Case
from kernels.convolution import model, selection
from kernels.convolution.tiling import PASSES, Config, Problem
from kernels.norm import norm_passes, tiles

pytestmark = pytest.mark.skipif(not launch.INTERPRETED, reason="runs kernels through the interpreter")

H200 = chips.TARGETS[90]
FLAGS = {"gate": False, "residual": False, "spatial": False, "activation": "gelu", "training": True}
CASE = Case("tiny g1.conv1", n=2, c=16, o=16, map=(5, 4), pool=True, **FLAGS)


def config_of(call) -> Config | None:
    return next((a for a in getattr(call, "args", ()) if isinstance(a, Config)), None)


@pytest.fixture
def clock(monkeypatch):
    """A call of a kernel takes 1 s for each stage of its configuration, any other 3.5 s."""

    def measured(calls, device, samples):
        for call in calls[:1]:
            call()
        config = config_of(calls[0])
        return timing.Timing((float(config.stages) if config else 3.5,))

    monkeypatch.setattr(timing, "measure", measured)


@pytest.fixture
def recipes(monkeypatch, launch_table):
    """One small block in float16 is all that the recipes have; the table is elsewhere."""
    specs = SimpleNamespace(
        SPEC=replace(conv_bn_act.SPEC, cases=(CASE,)),
        EVAL_SPEC=replace(conv_bn_act.EVAL_SPEC, cases=()),
        FLOAT8_SPEC=replace(conv_bn_act.FLOAT8_SPEC, cases=()),
        FLOAT8_EVAL_SPEC=replace(conv_bn_act.FLOAT8_EVAL_SPEC, cases=()),
    )
    monkeypatch.setattr(tune, "conv_bn_act", specs)
    monkeypatch.setattr(tune, "DTYPES", (torch.float16,))
    with selection.only(rows=16, cols=16, depth=16):
        yield


def few(problem: Problem, chip) -> list[Config]:
    """Three configurations that differ in stages."""
    return [Config("rows", 16, 16, 16, 1, stages) for stages in (4, 2, 3)]


def problem(kind: str) -> Problem:
    return Problem(kind, 2, 5, 4, 16, 16, 3, True)


def run(names: list[str], file: str | None = None) -> int:
    return tune.run(tune.jobs(names), ["tune", *names], file, 1, "cpu", every=True)


def test_the_fastest_that_is_right_is_written_and_then_chosen(clock, recipes, monkeypatch, capsys):
    monkeypatch.setattr(measure, "candidates", few)
    right = measure.kernel

    def lying(problem, config, t):
        """With two stages the gradients stay unwritten."""
        return right(problem, config, t) if config.stages > 2 or problem.kind == "forward" else lambda: None

    monkeypatch.setattr(measure, "kernel", lying)
    assert run(["tiny", "forward", "5x4"]) == 0
    assert run(["dgrad"]) == 1
    out = capsys.readouterr().out
    assert "dropped rows 16x16x16, 1 warps, 2 stages: dgrad: 640 values are not finite" in out
    selection.forget()
    with selection.only():  # as without a restriction
        assert selection.choose(problem("forward"), H200).stages == 2
        assert selection.choose(problem("dgrad"), H200).stages == 3
        known = {kind: selection.estimate(problem(kind), H200).how for kind in PASSES}
    assert known == {"forward": "measured", "dgrad": "measured", "wgrad": "modelled"}


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("kind", PASSES)
def test_a_wrong_value_is_noticed(kind, pool):
    this = replace(problem(kind), pool=pool)
    t = measure.tensors(this, "cpu")
    want = measure.expected(this, t)
    with selection.only(rows=16, cols=16, depth=16):
        measure.kernel(this, selection.choose(this, H200), t)()
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
def test_cudnn_is_timed_with_all_that_the_kernel_gives(kind, pool):
    this = replace(problem(kind), pool=pool, dtype=torch.float32)
    t = measure.tensors(this, "cpu")
    want = measure.expected(this, t)
    found = measure.torch_call(this, t)()
    if kind == "forward":
        found, partials = found
        rows = (t.u if pool else found).permute(1, 0, 2, 3).flatten(1)
        m = rows.shape[1]
        span = tiles.spans(m, 16, **tiles.STATISTICS)["SPAN"]
        stats, _ = norm_passes.merge(partials, span, m, 0.0)
        assert torch.allclose(stats, torch.stack((rows.mean(1), rows.var(1))), atol=1e-5)
        if pool:
            u, places = torch.nn.functional.max_pool2d(want, 2, return_indices=True)
            assert torch.allclose(t.u.double(), u, atol=1e-4)
            assert torch.equal(t.argmax, (places // 4 % 2 * 2 + places % 4 % 2).to(torch.int8))
    assert torch.allclose(found.double(), want, atol=1e-4)


def test_what_cudnns_gradients_cost_beside_is_the_larger_write_less_the_smaller(monkeypatch):
    written = []

    def measured(calls, device, samples):
        for call in calls:
            dx = call.args[10]
            dx.fill_(float("nan"))
            call()
            assert dx.isfinite().all()
        written.append(tuple(dx.shape))
        return timing.Timing((float(dx[0, 0].numel()),))

    monkeypatch.setattr(timing, "measure", measured)
    assert measure.unpool(problem("forward"), "cpu") == 20 - 4
    assert written == [(2, 16, 5, 4), (2, 16, 2, 2)]


def test_the_extra_write_of_a_pooled_block_is_kept_under_the_name_of_its_forward_pass(clock, recipes):
    assert run(["unpool"]) == 0
    section = json.loads(selection.FILE.read_text())[H200.name]
    (run_date,) = section["runs"]
    key = "forward n=2 5x4 16->16 pool float16"
    assert section["unpool"] == {key: {"seconds": 0.0, "run": run_date}}  # both took 3.5 s
    assert selection.table()[H200.name].unpool == {key: 0.0}


def test_few_candidates_are_timed_unless_all_are_asked_for():
    this = Problem("dgrad", 1536, 7, 7, 256, 256, pool=True)
    every, some = (measure.worth(this, H200, every) for every in (True, False))
    times = [model.seconds(this, config, H200) for config in every]
    assert times == sorted(times) and times[-1] > measure.WORTH * times[0]
    assert set(some) < set(every) and every[0] in some
    assert max(model.seconds(this, config, H200) for config in some) <= measure.WORTH * times[0]
    assert {sum(config.descriptors == boxed for config in some) for boxed in (False, True)} == {measure.MOST}


def test_what_was_found_is_in_the_file_after_each_pass(clock, recipes, monkeypatch, tmp_path):
    monkeypatch.setattr(measure, "candidates", few)
    monkeypatch.setattr(
        measure, "one_pass", lambda _, configs, *__: measure.Tuned({configs[0]: 1.0}, {}, 2.0)
    )
    seen, file = [], tmp_path / "found.json"

    def stopped(*_):
        seen.append(json.loads(file.read_text()))
        raise KeyboardInterrupt

    monkeypatch.setattr(measure, "unpool", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(["tiny"], str(file))
    assert [name.split()[0] for name in seen[0]["found"]] == list(PASSES)
    assert seen[0]["table"][H200.name]["launches"].keys() == seen[0]["found"].keys()


def test_everything_is_compiled_before_anything_is_timed(recipes, monkeypatch, capsys):
    done = []

    def compiled(work, *_):
        done.extend(problem.kind for problem in work)
        return dict.fromkeys(work, {})

    monkeypatch.setattr(measure, "candidates", few)
    monkeypatch.setattr(measure, "compiled", compiled)
    monkeypatch.setattr(measure, "one_pass", lambda *_: done.append("timed") or measure.Tuned({}, {}, 1.0))
    monkeypatch.setattr(measure, "unpool", lambda *_: done.append("timed") or 1.0)
    monkeypatch.setattr(tune, "record", lambda *_: None)
    assert run(["tiny"]) == 0
    assert done == [*PASSES, *["timed"] * 4]
    assert capsys.readouterr().out.startswith("3 passes, 9 candidates: less than a minute on 1 CPUs")


def test_a_second_run_replaces_what_it_measures_and_says_where_all_is_from(recipes, monkeypatch):
    monkeypatch.setattr(measure, "candidates", few)
    tuned = measure.Tuned({few(None, None)[0]: 1.0}, {}, 2.0)
    monkeypatch.setattr(measure, "one_pass", lambda *_: tuned)
    dates = iter(("1", "2", "3"))
    monkeypatch.setattr(
        tune, "provenance", lambda command, device: {"command": " ".join(command), "date": next(dates)}
    )
    for names in (["forward"], ["dgrad"], ["forward"]):
        run(names)
    found = json.loads(selection.FILE.read_text())[H200.name]
    assert {key.split()[0]: entry["run"] for key, entry in found["launches"].items()} == {
        "forward": "3",
        "dgrad": "2",
    }
    assert found["runs"] == {
        date: {"command": name, "date": date} for date, name in (("2", "tune dgrad"), ("3", "tune forward"))
    }


def test_an_interrupted_compilation_ends_without_compiling_what_waits(monkeypatch):
    monkeypatch.setattr(check, "identity", str)
    monkeypatch.setattr(check, "compile_launch", lambda launch, cc: time.sleep(0.3))
    rows = [check.Row(None, number, torch.float16, (90,), [], 1) for number in range(40)]

    def interrupted(done, of):
        raise KeyboardInterrupt

    began = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        check.compile_all(rows, 1, interrupted)
    assert time.perf_counter() - began < 40 * 0.3 / 2


def test_provenance_says_on_what_and_when():
    found = tune.provenance(["python", "-m", "bench", "tune"], "cpu")
    assert found.keys() >= {"command", "date", "device", "driver", "torch", "triton", "commit"}
    assert found["command"] == "python -m bench tune" and found["torch"] == torch.__version__


def test_jobs_are_the_recipes_passes_by_name():
    every = tune.jobs([])
    assert len({job.name for job in every}) == len(every)
    shared = tune.jobs(["r1.conv2", "dgrad", "float16"])
    assert [job.name for job in shared] == ["dgrad n=512 15x15 128->128 float16"]
    assert [case.name for case in shared[0].cases] == ["r1.conv2", "r1.conv3"]
    kinds = [job.problem.kind for job in tune.jobs(["record94", "g1.conv1", "31x31", "n=1536", "bfloat16"])]
    assert kinds == [*PASSES, "unpool"]


# The command


def test_a_dry_run_shows_candidates_with_modelled_times(capsys):
    assert cli.main(["--dry-run", "g1.conv1", "record94", "float16"]) == 0
    out = capsys.readouterr().out
    assert "wgrad n=1536 31x31 24->64 pool float16" in out and "NVIDIA H200" in out
    assert cli.main(["--dry-run", "r3.conv2", "forward", "bfloat16", "--json", "-"]) == 0
    (modelled,) = [v for k, v in json.loads(capsys.readouterr().out)["modelled"].items() if "n=512" in k]
    times = list(modelled.values())
    assert times == sorted(times) and all(1e-6 < each < 1e-2 for each in times)
    assert cli.main(["--dry-run", "r3.conv2", "forward", "bfloat16", "--json", "-", "--all"]) == 0
    (every,) = [v for k, v in json.loads(capsys.readouterr().out)["modelled"].items() if "n=512" in k]
    assert modelled.items() < every.items()
    assert cli.main(["--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "float16" in out and "bfloat16" not in out and "candidates: about" in out and "min on" in out


@pytest.mark.parametrize("arguments", [[], ["no_such"], ["--json", "/proc/no/where"], ["--jobs", "0"]])
def test_a_mistake_is_one_line_and_exit_status_2(arguments, capsys):
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("bench tune: ")


def test_a_broken_table_is_one_line(recipes, capsys, monkeypatch):
    selection.FILE.write_text("{")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(launch, "INTERPRETED", False)
    assert cli.main(["tiny"]) == 2 and "measured.json" in capsys.readouterr().err
