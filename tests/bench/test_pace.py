"""What rewritten kernels should take, from two records of the ahead-of-time check."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from bench.expect import pace
from kernels.base.chips import AIMED_AT

RECORD = Path(__file__).parents[2] / "bench" / "results" / "h200" / "rewritten.json"
CASE = "record94 g1.conv1"


def launch(**changed) -> dict:
    """`_sums` as the check writes it: 132 programs of 8 warps, four on a multiprocessor, 10 steps each."""
    code = {"registers": 64, "shared": 1024, "occupancy": 0.5, "instructions": {"all": 150, "loop": 50}}
    constants = {"SPAN": "320", "ROWS": "32", "COLS": "64", "ACTIVATION": "silu"}
    one = {"op": "norm_act", "kernel": "_sums", "cases": [CASE], "dtype": "float16", "grid": [132, 1]}
    return one | {"warps": 8, "constants": constants, "chips": {"9.0": code | changed}}


def record(*launches: dict, bytes: int = 4_300_000) -> dict:
    moved = {"9.0": {"_sums": {"bytes": bytes, "flops": 0}}}
    work = [{"op": "norm_act", "case": CASE, "dtype": "float16", "chips": moved}]
    return {"names": ["norm_act"], "versions": {}, "launches": list(launches), "work": work}


def modelled(*launches: dict, bytes: int = 4_300_000) -> dict:
    (found,) = pace.by_case(record(*launches, bytes=bytes))["_sums", "norm_act", CASE]
    return found


def test_instructions_are_those_of_the_loop_as_often_as_it_runs_and_the_others_once():
    assert modelled(launch())["instructions"] == pytest.approx(132 * 8 * 600 * 32 / (4_300_000 / 16))


def test_a_launch_takes_its_bytes_and_what_it_issues_or_what_its_warps_wait():
    issued = 132 * 8 * 600 / (4 * 132 * pace.CLOCK)
    few = modelled(launch())["modelled"] - AIMED_AT.launch
    assert few == pytest.approx(600 * pace.LATENCY)  # two warps on a scheduler
    many = modelled(launch(), bytes=43_000_000)["modelled"] - AIMED_AT.launch
    assert many == pytest.approx(pace.OVERLAP * (1e-5 + issued))


def test_programs_that_are_left_over_take_a_whole_round():
    whole, more = launch(occupancy=0.125), launch(occupancy=0.125)  # one program on a multiprocessor
    more["grid"] = [133, 1]
    first, second = (modelled(one, bytes=43_000_000)["modelled"] - AIMED_AT.launch for one in (whole, more))
    assert second == pytest.approx(2 * first, rel=0.05)


def test_a_kernel_of_the_same_code_is_no_row_and_one_of_fewer_instructions_has_its_factor():
    before = record(launch(), bytes=43_000_000)
    assert pace.rewritten(before, copy.deepcopy(before)) == []
    after = record(launch(registers=80, instructions={"all": 120, "loop": 20}), bytes=43_000_000)
    (row,) = pace.rewritten(before, after)
    assert (row["recipe"], row["kernel"]) == ("record94", "_sums")
    assert row["factor"] == row["after"]["modelled"] / row["before"]["modelled"] < 1
    (cells,) = pace.table([row])
    assert cells[:4] == ["record94", "_sums", "64 → 80", "1 → 1"]
    measured, expected = map(float, cells[-2:])
    assert expected == pytest.approx(measured * row["factor"], abs=0.06)


def test_cases_of_one_record_alone_are_not_compared():
    other = launch()
    other["cases"] = ["record94 g1.conv2"]
    after = record(other)
    after["work"][0]["case"] = "record94 g1.conv2"
    assert pace.rewritten(record(launch()), after) == []


@pytest.mark.parametrize(
    ("case", "recipe"),
    [
        ("record94 g1.conv1 at 24", "record94"),
        ("r1.conv1", "seed"),
        ("seed.3", "seed"),
        ("seed eval", None),
        ("record94 eval at 2000", None),
        ("smoke", None),
        ("airbench94 g1.conv1", None),
        ("evaluation", None),
    ],
)
def test_a_case_is_of_the_recipe_that_trains_with_it(case, recipe):
    assert pace.recipe_of(case) == recipe


def test_the_command_writes_its_table_and_a_record(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("a.json").write_text(json.dumps(record(launch())))
    Path("b.json").write_text(json.dumps(record(launch(instructions={"all": 120, "loop": 20}))))
    assert pace.main(["a.json", "b.json", "--out", "c.json"]) == 0
    said = capsys.readouterr().out
    assert "_sums" in said and "1 kernels of other code" in said and "no measurement" in said
    written = json.loads(Path("c.json").read_text())
    assert written["command"] == "python -m bench pace a.json b.json --out c.json"
    assert written["rows"][0].keys() == json.loads(RECORD.read_text())["rows"][0].keys()


@pytest.mark.parametrize(
    "arguments, what",
    [
        ([], "required: before, after"),
        (["a.json"], "required: after"),
        (["a.json", "b.json", "c.json"], "unrecognized arguments: c.json"),
        (["a.json", "b.json", "--out"], "--out: expected one argument"),
        (["a.json", "--nonsense"], "required: after"),
        (["none.json", "a.json"], "none.json: No such file"),
        (["other.json", "a.json"], "other.json is not what"),
        (["a.json", "a.json", "--out", "a.json/c.json"], "a.json"),
    ],
)
def test_a_mistake_is_one_line(arguments, what, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("a.json").write_text(json.dumps(record(launch())))
    Path("other.json").write_text("[]")
    assert pace.main(arguments) == 2
    said = capsys.readouterr().err
    assert what in said and said.count("\n") == 1
