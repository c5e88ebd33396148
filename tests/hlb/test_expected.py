"""The expected time of a run, which the runs that an H200 measured must bear out."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from statistics import fmean

import pytest
from test_docs import FACTS, rows

import hlb
from bench.expect import times
from hlb import settings
from hlb.cli import main
from hlb.cost import expected
from hlb.cost.passes import Pass
from hlb.runs.statistics import distinct
from kernels.base import chips
from kernels.convolution import selection
from kernels.convolution.tiling import FLOAT8, Problem

ROOT = Path(__file__).parents[2]
RECORD = ROOT / "bench" / "results" / "h200"
H200 = chips.AIMED_AT


@cache
def runs(name: str) -> list[dict]:
    return [json.loads(line) for line in (RECORD / f"{name}.jsonl").read_text().splitlines()]


@cache
def expectation(name: str) -> expected.Expectation:
    """Of the recipe and the choice of kernels of a ledger; with references, as they were then."""
    run = runs(name)[0]
    as_then = "reference" in run["execution"]["kernels"]
    with selection.as_measured() if as_then else contextlib.nullcontext():
        return expected.of(settings.from_fields(run["recipe_fields"]), run["execution"]["kernels"], H200)


# Of record94 as it was, of record94 as it is, and of seed; those of kernels as they are now.
@pytest.mark.parametrize(
    "ledger", ("ref-base", "mix", "hard", "seed-ref", "tuned", "float8", "sweep", "seed-tuned")
)
def test_the_measured_runs_are_as_expected_within_7_percent(ledger):
    measured = fmean(run["train_seconds"] + run["eval_seconds"] for run in runs(ledger))
    assert abs(expectation(ledger).seconds / measured - 1) < 0.07


@cache
def tuned(name: str) -> tuple[expected.Expectation, expected.Expectation]:
    """Of a recipe with the tuned kernels: as they were when they were measured, and now."""
    with selection.as_measured():
        then = expected.of(hlb.recipe(name), "tuned", H200)
    return then, expected.of(hlb.recipe(name), "tuned", H200)


def test_record94_is_expected_below_0_58_s_with_the_tuned_kernels_and_below_0_70_as_they_were_measured():
    measured, found = tuned("record94")
    assert found.seconds <= 0.58 and measured.seconds <= 0.70
    assert measured.seconds < 0.85 * expectation("hard").seconds
    assert measured.measured_share > 0.6 and measured.shares["modelled"] < 0.02
    assert found.measured_share > 0.6 and found.shares["modelled"] < 0.1  # forms by windows
    assert sum(found.shares.values()) == pytest.approx(1)


def test_record94_is_expected_to_be_faster_with_8_bit_operands():
    recipe = hlb.recipe("record94", {"conv_dtype": "auto,float8,float8"})
    found, plain = expected.of(recipe, "tuned", H200), tuned("record94")[1]
    assert 0.8 < found.seconds / plain.seconds < 0.98
    assert found.convolutions < 0.95 * plain.convolutions
    assert 0.4 < found.measured_share < plain.measured_share  # passes at 24 and 28 pixels are scaled


def test_8_bit_operands_have_a_rate_of_their_own_and_what_was_measured_beside_others_is_scaled():
    problem = Problem("forward", 1536, 7, 7, 256, 256)
    half, eight = (
        Pass("group2.conv2", "forward", "", 10**12, 0, problem=replace(problem, dtype=dtype), launches=0)
        for dtype in (problem.dtype, FLOAT8)
    )
    assert half.seconds(H200) == 2 * eight.seconds(H200) == 1e12 / H200.flops[problem.dtype]
    recipe = hlb.recipe("record94", {"conv_dtype": "auto,float8,auto"})
    rates = expected._Rates(recipe, "triton", H200)
    with selection.as_measured():
        found = [rates.of(Pass(f"group{i}.conv1", "_normalise", "triton", 0, 1000)) for i in (1, 2, 3)]
    assert [how for _, how in found] == ["measured", "scaled", "measured"]
    assert len({seconds for seconds, _ in found}) == 1


def test_measured_facts_tell_what_runs_are_expected_to_take():
    wanted, ledgers = [], (["tuned"], ["float8", "sweep"], ["seed-tuned"])
    for one, names in zip(json.loads((RECORD / "expected.json").read_text())["expected"], ledgers):
        recipe = hlb.recipe(one["recipe"], one["settings"])
        now = expected.of(recipe, "tuned", H200)
        came = distinct(run for name in names for run in runs(name))
        came = [run for run in came if run["recipe_fields"]["epochs"] == recipe.epochs]
        measured = fmean(run["train_seconds"] + run["eval_seconds"] for run in came)
        seconds = one["seconds"], now.seconds, now.convolutions, now.reachable, measured
        label = ", ".join(f"`{text}`" for text in (recipe.name, *one["settings"]))
        wanted.append([label, *(f"{value:.3f}" for value in seconds)])
        assert sum(phase.least for phase in now.phases) < now.seconds - now.convolutions
    assert rows(FACTS, "expected before") == wanted


def test_a_rewritten_kernel_takes_its_part_of_what_was_measured_and_no_operators_beside_it(monkeypatch):
    recipe = hlb.recipe("smoke")
    shapes = {name: getattr(recipe, name) for name in (*expected.SHAPES, "sizes")}
    rate = {"seconds": 3.0, "bytes": 300, "launches": 1, "factor": 0.5, "beside": 1.0}
    content = {H200.name: {"recipes": {"it": {"shapes": shapes, "passes": {"_sums": rate}}}, "prepare": {}}}
    monkeypatch.setattr(expected, "_times", lambda: content)
    rates, sums = expected._Rates(recipe, "triton", H200), Pass("", "_sums", "triton", 0, 600)
    assert expected._seconds(sums, rates, H200) == (pytest.approx(3.0), "modelled")
    with selection.as_measured():
        assert expected._seconds(sums, rates, H200) == (pytest.approx(8.0), "measured")


def test_the_table_is_what_the_command_makes_of_the_record(monkeypatch, tmp_path, capsys):
    committed = expected.FILE.read_text()
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(expected, "FILE", tmp_path / "times.json")
    assert times.main([]) == 0
    assert (tmp_path / "times.json").read_text() == committed
    assert "NVIDIA H200" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, what",
    [(["nowhere"], "No such file"), (["a", "b"], "unrecognized arguments: b"), (["--x"], "unrecognized")],
)
def test_a_folder_that_holds_no_record_is_one_line(arguments, what, capsys):
    assert times.main(arguments) == 2
    said = capsys.readouterr().err
    assert what in said and said.count("\n") == 1


def test_a_chip_that_was_not_measured_gets_arithmetic_for_all_but_convolutions():
    a100 = chips.TARGETS[80]
    with chips.targeting(a100):
        found = expected.of(hlb.recipe("smoke"), "reference", a100)
        one = Pass("", "_sums", "triton", 0, 2040000)
        assert expected._seconds(one, expected._Rates(hlb.recipe("smoke"), "triton", a100), a100) == (
            pytest.approx(1e-6 + a100.launch),
            "modelled",
        )
    assert found.shares["measured"] == 0 and found.shares["modelled"] > 0.9


def test_a_pass_takes_what_its_bytes_took_and_operators_between_kernels_what_their_launches_took(monkeypatch):
    recipe = hlb.recipe("smoke")
    shapes = {name: getattr(recipe, name) for name in (*expected.SHAPES, "sizes")}
    passes = {
        "_sums": {"seconds": 3.0, "bytes": 300, "launches": 1},
        "between the ops of kernels": {"seconds": 4.0, "bytes": 5, "launches": 8},
    }
    content = {
        H200.name: {"recipes": {"other": {"shapes": shapes, "passes": passes}}, "prepare": {"kernels": 0.5}}
    }
    monkeypatch.setattr(expected, "_times", lambda: content)

    def seconds(one: Pass, **changed) -> tuple[float, str]:
        return expected._seconds(one, expected._Rates(replace(recipe, **changed), "triton", H200), H200)

    sums = Pass("", "_sums", "triton", 0, 500)
    assert seconds(sums) == (pytest.approx(5.0), "measured")
    assert seconds(sums, batch_size=100) == (pytest.approx(5.0), "scaled")
    assert seconds(sums, sizes=(24,)) == (pytest.approx(5.0), "scaled")
    between = Pass("all", "between the ops", "PyTorch", 0, 500, launches=6)
    assert seconds(between) == (pytest.approx(3.0), "measured")
    other = Pass("", "_normalise", "triton", 0, 4300, launches=2)
    assert seconds(other) == (pytest.approx(other.seconds(H200)), "modelled")


def test_a_forward_pass_of_cudnn_leaves_its_statistics_to_the_pass_that_makes_them():
    rates = expected._Rates(hlb.recipe("record94"), "tuned", H200)
    for label, how in (("record94 g1.conv2 at 32", "corrected"), ("record94 g2.conv1 at 32", "corrected")):
        found = json.loads((RECORD / "conv-passes.json").read_text())["found"][f"{label} forward"]
        problem = selection.problem_of(found["key"])
        seconds, known = expected._seconds(Pass("", "forward", "cuDNN", 0, 0, problem=problem), rates, H200)
        total = seconds + rates.statistics(problem)
        assert (total, known) == (pytest.approx(selection.estimate(problem, H200).cudnn), how)
        assert seconds < found["cudnn"] * 1.02  # which has the convolution in it, and an eager pool


def test_recipes_prints_the_expected_time_beside_the_floor(capsys):
    assert main(["recipes", "smoke", "--kernels", "tuned", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)["smoke"]
    found = expected.summary(expected.of(hlb.recipe("smoke"), "tuned", chips.here()))
    assert report["expected"] == found
    assert report["expected_seconds"] == found["expected_seconds"] > report["floor"]["seconds"]
    assert report["measured_share"] == found["measured_share"]
    assert main(["recipes", "smoke", "--kernels", "tuned"]) == 0
    text = capsys.readouterr().out
    assert (
        f"expected on H200: {found['expected_seconds']:.3f} s" in text
        and "no measurement of this run" in text
    )
    for phase in found["phases"]:
        line = next(line for line in text.splitlines() if line.startswith(phase["phase"] + " "))
        assert line.endswith(f"{phase['seconds']:.4f}")
