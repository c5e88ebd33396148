"""Sweeps within a budget: the ready file of arms, the simulation and its record, the step of the card."""

import json
import time
from pathlib import Path

import pytest

from bench.card import promises
from bench.card.folder import Folder
from bench.card.steps import Context
from bench.sweeps import card_step, simulation
from hlb import Execution
from hlb.runs import ledger
from hlb.step import plan
from hlb.study.arms import arms
from hlb.study.halving import BEGUN, FIRST
from hlb.study.trainers import family

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "bench" / "sweeps").glob("*.json"))
IMAGES = 50000
MINUTES = 8


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_arms_of_a_ready_file_can_be_trained_and_all_be_tried_in_eight_minutes(path):
    found = arms(path, [], Execution(device="cpu"))
    assert found[0].values and len(found) >= 10  # the recipe as it is comes first
    for one in found:
        assert len(plan(one.recipe, IMAGES)) > 100
    networks = len({family(one, IMAGES) for one in found})
    building = simulation.BUILD * networks + simulation.SHARED * (len(found) - networks)
    assert building + FIRST * len(found) * 0.65 < BEGUN * 60 * MINUTES


def made_of(one: dict) -> tuple[str, int, str]:
    return one["scenario"], one["budget"], one["method"]


def test_the_record_of_the_simulation_is_what_the_code_says():
    record = json.loads((ROOT / "bench" / "results" / "halving.json").read_text())
    assert set(map(made_of, record["simulated"])) == {
        (scenario, budget, method)
        for scenario in simulation.SCENARIOS
        for budget in simulation.BUDGETS
        for method in simulation.METHODS
    }
    assert all(record["scenarios"][name] == list(means) for name, means in simulation.SCENARIOS.items())
    assert all(getattr(simulation, name.upper()) == value for name, value in record["assumed"].items())
    claims = [one["wrong"] for one in record["simulated"] if one["method"] == "halving"]
    assert max(claims) <= 0.05 + 2 * (0.05 * 0.95 / record["trials"]) ** 0.5
    made = simulation.row("clear", 120, "halving", trials=60)
    (there,) = (one for one in record["simulated"] if made_of(one) == ("clear", 120, "halving"))
    assert made.best == pytest.approx(there["best"], abs=0.2)
    assert made.tried == pytest.approx(there["tried"], abs=0.3)


def test_the_command_prints_the_table_and_writes_the_record(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(simulation, "BUDGETS", (120,))
    path = tmp_path / "out.json"
    assert simulation.main(["--trials", "2", "--json", str(path)]) == 0
    out, record = capsys.readouterr().out, json.loads(path.read_text())
    assert "none, by a hair" in out and "claims one that misses" in out
    assert len(record["simulated"]) == len(simulation.SCENARIOS) * len(simulation.METHODS)
    assert record["command"].startswith("python -m bench halving --trials 2")


def test_the_step_of_the_card_leaves_its_runs_its_result_and_a_promise(tmp_path, capsys, monkeypatch):
    folder = Folder(tmp_path)
    monkeypatch.setattr(card_step, "TOY_SECONDS", 60.0)
    fastest = card_step.fastest

    def some(configurations, budget, **options):  # without the rest of the minute
        assert budget == 60.0
        return fastest(configurations, 4.0, **options)

    monkeypatch.setattr(card_step, "fastest", some)
    assert card_step.run(Context(str(tmp_path), time.time() + 200.0, True)) == 0
    *_, said = (json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{"))
    assert said["sweep"]["recipe"] == "smoke" and said["sweep"]["verdict"]
    assert {run["dataset"] for run in ledger.runs(folder.sweep)} <= {"made up"}  # a machine may be too busy
    accuracy, seconds = {"mean": 0.9405, "n": 60}, {"mean": 0.5123}
    claimed = {"target": 0.94, "claimed": "8.1 epochs", "seconds": 100.0,
               "fresh": {"accuracy": accuracy, "seconds": seconds, "lower_bound": 0.9402}}  # fmt: skip
    for found, measured in (
        (claimed, "0.512: 8.1 epochs (at least 94.02 %, n 60)"),
        (claimed | {"claimed": None, "fresh": None}, "none in 100 s"),
    ):
        (row,) = promises.swept({"steps": {"sweep": {"result": {"sweep": found}}}}, folder)
        assert (row.what, row.measured, row.wrong) == ("fastest shown to reach 94 %, s", measured, False)
    assert promises.swept({}, folder) == []
