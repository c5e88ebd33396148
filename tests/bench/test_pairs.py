"""Pairs of training steps: their settings, their turns, torch's switches, the record, mistakes."""

import json
from pathlib import Path

import pytest
import torch

from bench import pairs

TINY = "base_depth=4,batch_size=20,whiten_images=20,dtype=float32,threads=1"


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """Runs a test in a folder of its own; sets the number of threads back."""
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


class Stepper:
    """Stands in for a trainer: its steps take `seconds`, and it notes which switches were set when."""

    def __init__(self, name, seconds, threads, seen):
        self.recipe, self.execution = pairs.resolve(
            pairs.recipe("smoke"), pairs.Execution(threads=threads, device="cpu")
        )
        self.name, self.seconds, self.seen = name, seconds, seen

    def timed_step(self):
        self.seen.append((self.name, torch.get_num_threads()))
        return self.seconds


def test_turns_alternate_and_each_step_has_the_switches_of_its_own_execution():
    seen = []
    a, b = Stepper("a", 2.0, 1, seen), Stepper("b", 4.0, 2, seen)
    assert pairs.measure(a, b, 3) == [(2.0, 4.0)] * 3
    assert seen == [("a", 1), ("b", 2), ("b", 2), ("a", 1), ("a", 1), ("b", 2)]


@pytest.mark.parametrize(
    ("text", "fields", "execution"),
    [
        ("", {}, {}),
        ("lr=1,dtype=float32", {"lr": "1", "dtype": "float32"}, {}),
        ("sizes=24,28,32,lr=1", {"sizes": "24,28,32", "lr": "1"}, {}),
        ("kernels=triton,sgd=reference,threads=2", {}, {"kernels": "triton,sgd=reference", "threads": 2}),
        ("channels_last=off,batch_size=20", {"batch_size": "20"}, {"channels_last": False}),
    ],
)
def test_settings_are_fields_of_recipe_and_execution_and_values_may_hold_commas(text, fields, execution):
    assert pairs.settings_of(text) == (fields, execution)


def test_record_has_every_pair_and_the_medians_of_what_was_printed(capsys):
    options = ["--recipe", "smoke", "--pairs", "2", "--json", "out.json"]
    assert pairs.main([f"{TINY},activation=gelu", f"{TINY},activation=silu", *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    record = json.loads(Path("out.json").read_text())
    ratios = [a / b for a, b in record["seconds"]]
    assert len(ratios) == 2 and record["median_ratio"] == pytest.approx(sum(ratios) / 2)
    assert record["command"].startswith("python -m bench pairs base_depth=4,")
    assert len(lines) == 3 and f"ratio, median of 2 pairs: {record['median_ratio']:.3f}" in lines[-1]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "required: a, b"),
        (["lr=x", "lr=1"], "lr: got 'x'"),
        (["silu", "activation=silu"], "settings: got 'silu', accepted is field=value"),
        (["bogus=1", "lr=1"], "no field 'bogus'"),
        (["threads=x", "threads=1"], "threads: got 'x'"),
        (["channels_last=maybe", "lr=1"], "channels_last: got 'maybe'"),
        (["lr=1", "lr=2", "--recipe", "bogus"], "no recipe 'bogus'"),
        (["lr=1", "lr=2", "--pairs", "0"], "--pairs: got '0'"),
        (["lr=1", "lr=2", "--json", "."], "--json: cannot write"),
        (["lr=1", "lr=2", "--bogus"], "--bogus"),
    ],
)
def test_mistake_is_one_line_and_exit_status_2(capsys, tmp_path, arguments, named):
    assert pairs.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("bench pairs: ") and named in err
    assert list(tmp_path.iterdir()) == []


def test_interrupted_measurement_writes_nothing(monkeypatch, capsys, tmp_path):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(pairs, "trainer", lambda *_: None)
    monkeypatch.setattr(pairs, "measure", stopped)
    assert pairs.main(["lr=1", "lr=2", "--json", "out.json"]) == 130
    assert "interrupted" in capsys.readouterr().err and list(tmp_path.iterdir()) == []
