"""The baselines of GPUs that are committed: the gate takes them, and their runs are those of the ledgers."""

import json
from pathlib import Path

import pytest

from bench.gate import baseline, judge
from bench.report.records import RESULTS
from hlb import UserError
from hlb.runs import ledger

ROOT = Path(__file__).parents[3]
H200 = "NVIDIA H200"
PATH = baseline.FOLDER / f"{baseline.slug(H200)}.json"


@pytest.mark.parametrize("recipe, name", [("record94", "hard.jsonl"), ("seed", "seed-ref.jsonl")])
def test_the_h200s_runs_are_those_of_a_ledger_that_its_session_names(recipe, name):
    base, runs = baseline.load(PATH, H200), ledger.load(ROOT / RESULTS / "h200" / name)
    found = base.recipes[recipe]
    assert found.seconds == tuple(run["train_seconds"] + run["eval_seconds"] for run in runs)
    assert found.accuracy == tuple(run["accuracy"] for run in runs)
    assert found.fields == runs[0]["recipe_fields"]
    of = base.sessions[found.session].provenance
    assert name in of["command"] and runs[0]["execution"]["kernels"] in of["note"]
    assert all(of[field] == runs[0][field] for field in ("commit", "dirty", "versions"))


def test_a_baseline_of_runs_alone_calls_every_case_new_and_the_machine_as_it_was():
    found = judge.judge(
        baseline.load(PATH, H200),
        {"sgd seed forward": {}},
        lambda names: dict.fromkeys(names, 1e-3),
        judge.Criteria(),
    )
    assert [assessment.state for assessment in found.assessments] == ["new"] and not found.machine


def test_a_session_that_has_cases_needs_its_ceilings(tmp_path):
    content = {
        "gpu": H200,
        "sessions": [{"ceilings": {"copy": [1e-3]}}],
        "cases": {"sgd seed forward": {"seconds": [1e-3] * 16, "call": {}, "session": 0}},
        "recipes": {},
    }
    path = tmp_path / "baseline.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="session 0 has cases, and no ceiling matmul"):
        baseline.load(path, H200)
    content["sessions"][0]["ceilings"]["matmul"] = [2e-3]
    path.write_text(json.dumps(content))
    assert baseline.load(path, H200).sessions[0].ceilings == {"copy": (1e-3,), "matmul": (2e-3,)}
