"""The speed gate: its verdicts, files and exit statuses, on made-up times; no GPU is asked for."""

import json
import math
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

import hlb.cli
from bench import micro
from bench.gate import baseline, cli, endtoend
from bench.gate.endtoend import Record
from hlb import Execution, Result
from hlb.recipes import RECIPES
from hlb.runs.environment import versions
from hlb.train import Run

CALLS = {f"sgd case{i} forward": {"dtype": "float16", "n": 512} for i in range(6)}
CALLS |= {f"muon case{i} forward": {"dtype": "float16", "n": 64} for i in range(6)}


class Chip:
    """Measures repeats: a microsecond a case, with this noise, times its factor, or what its fault says."""

    def __init__(self, noise: float = 0.003):
        self.noise, self.random = noise, np.random.default_rng(0)
        self.factors, self.faults, self.asked = {}, {}, []

    def __call__(self, names: list[str]) -> dict[str, float | str]:
        self.asked.append(list(names))
        found = {}
        for name in names:
            noise = 0.002 if name in baseline.CEILINGS else self.noise
            value = 1e-6 * math.exp(noise * self.random.standard_normal()) * self.factors.get(name, 1.0)
            found[name] = self.faults.get(name, value)
        return found


class Runs:
    """Trains: 2 s a run and 94 %."""

    def __init__(self):
        self.random, self.seconds, self.accuracy, self.asked = np.random.default_rng(0), 2.0, 0.94, []
        self.dataset, self.failed, self.epochs = "cifar10", 0, 8

    def __call__(self, data: str, recipe: str, runs: int, seed: int) -> Record:
        self.asked.append((data, recipe, runs, seed))
        ok = runs - self.failed
        seconds = self.seconds * (1 + 0.002 * self.random.standard_normal(ok))
        accuracy = self.accuracy + 0.0013 * self.random.standard_normal(ok)
        return Record(seconds.tolist(), accuracy.tolist(), self.failed, self.dataset, {"epochs": self.epochs})


@pytest.fixture
def chip(monkeypatch):
    chip = Chip()
    monkeypatch.setattr(cli, "this_gpu", lambda: "NVIDIA H200")
    monkeypatch.setattr(cli, "Repeats", lambda: chip)
    chip.calls = dict(CALLS)
    monkeypatch.setattr(
        cli, "catalogue", lambda ops: {n: c for n, c in chip.calls.items() if not ops or n.split()[0] in ops}
    )
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    return chip


@pytest.fixture
def runs(monkeypatch):
    runs = Runs()
    monkeypatch.setattr(endtoend, "trained", runs)
    return runs


@pytest.fixture
def file(chip, tmp_path):
    """A baseline of every case."""
    path = tmp_path / "baseline.json"
    assert cli.main(["--update", "--baseline", str(path)]) == 0
    chip.asked.clear()
    return path


def found(path, *arguments: str) -> tuple[int, dict]:
    """Exit status and record of a gate."""
    record = path.with_name("record.json")
    status = cli.main(["--baseline", str(path), "--json", str(record), *arguments])
    return status, json.loads(record.read_text()) if record.exists() else {}


def states(record: dict) -> dict[str, str]:
    return {one["name"]: one["state"] for one in record["assessments"] if one["state"] != "ok"}


def test_slowdown_of_ten_percent_is_red_and_named(chip, file, capsys):
    chip.factors["sgd case2 forward"] = 1.10
    status, record = found(file)
    assert status == 1 and states(record) == {"sgd case2 forward": "slow"}
    out = capsys.readouterr().out
    assert "RED sgd case2 forward: slower by at least" in out
    assert out.splitlines()[-1] == "RED: of 12 1 slow"
    (slow,) = [one for one in record["assessments"] if one["state"] == "slow"]
    assert slow["ratio"] == pytest.approx(1.10, abs=0.01) and 1.02 < slow["lower"] < 1.10


@pytest.mark.parametrize("seed", range(5))
def test_noise_of_two_percent_is_green(chip, tmp_path, seed):
    chip.noise, chip.random = 0.02, np.random.default_rng(seed)
    path = tmp_path / "noisy.json"
    assert cli.main(["--update", "--baseline", str(path)]) == 0
    assert found(path)[0] == 0


def test_only_what_looks_slower_or_faster_is_measured_again_beside_the_ceilings(chip, file):
    chip.factors |= {"sgd case2 forward": 1.10, "muon case0 forward": 0.8}
    found(file, "--first", "2", "--repeats", "5")
    everything, again = [*baseline.CEILINGS, *CALLS], {"sgd case2 forward", "muon case0 forward"}
    assert [len(names) for names in chip.asked] == [len(everything)] * 2 + [len(again) + 2] * 5
    assert all(set(names) == again | set(baseline.CEILINGS) for names in chip.asked[2:])


def test_allowed_slowdown_is_an_option(chip, file):
    chip.factors["sgd case2 forward"] = 1.10
    assert found(file, "--max-slowdown", "1.2")[0] == 0
    assert found(file, "--max-slowdown", "1.05")[0] == 1


def test_kernel_that_is_gone_is_red(chip, file):
    del chip.calls["muon case5 forward"]
    status, record = found(file)
    assert status == 1 and states(record) == {"muon case5 forward": "missing"}
    assert found(file, "sgd")[0] == 0  # not asked for


def test_new_kernel_is_a_note(chip, file, capsys):
    chip.calls["sgd case9 forward"] = {"dtype": "float16"}
    status, record = found(file)
    assert status == 0 and states(record) == {"sgd case9 forward": "new"}
    out = capsys.readouterr().out
    assert "not in the baseline; --update takes it in" in out and out.splitlines()[-1].endswith("1 new")


def test_case_of_another_shape_is_not_compared(chip, file, capsys):
    chip.calls["sgd case1 forward"] = {"dtype": "float16", "n": 1}
    status, record = found(file)
    assert status == 1 and states(record) == {"sgd case1 forward": "changed"}
    assert "n was 512, is 1" in capsys.readouterr().out


@pytest.mark.parametrize("new", [False, True])
def test_wrong_kernel_is_red_however_fast_and_is_not_measured_again(chip, file, new):
    name = "sgd case9 forward" if new else "sgd case1 forward"
    chip.calls[name] = CALLS["sgd case1 forward"]
    chip.faults[name] = "wrong values: output 0: 3 values are not finite"
    status, record = found(file)
    assert status == 1 and states(record) == {name: "wrong"}
    assert sum(name in names for names in chip.asked) == 1


def test_faster_kernel_is_a_note_that_suggests_update(chip, file, capsys):
    chip.factors["muon case0 forward"] = 0.9
    status, record = found(file)
    assert status == 0 and states(record) == {"muon case0 forward": "faster"}
    assert "--update keeps that" in capsys.readouterr().out


@pytest.mark.parametrize("factor", [0.95, 1.05])
@pytest.mark.parametrize("ceiling", baseline.CEILINGS)
def test_machine_that_is_not_as_it_was_has_its_own_status_and_blames_no_kernel(
    chip, file, capsys, ceiling, factor
):
    chip.factors = dict.fromkeys(CALLS, factor) | {ceiling: factor}
    status, record = found(file)
    assert status == 3 and set(states(record).values()) == {"unjudged"}
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("the machine is not as it was: ") and f"{ceiling} takes {factor}"[:-1] in last


def test_machine_disturbed_in_the_first_repeats_alone_is_judged(chip, file):
    chip.factors["copy"] = 1.05

    def calm(names, measure=chip.__call__):
        if len(chip.asked) == 3:
            chip.factors.clear()
        return measure(names)

    chip.__class__ = type("Calm", (Chip,), {"__call__": lambda self, names: calm(names)})
    status, record = found(file)
    assert status == 0 and record["machine"] == ""


def test_machine_that_changes_after_the_first_repeats_blames_no_kernel(chip, file):
    def changes(names, measure=chip.__call__):
        if len(chip.asked) == 3:
            chip.factors = dict.fromkeys([*CALLS, *baseline.CEILINGS], 1.1)
        return measure(names)

    chip.factors["sgd case1 forward"] = 1.1
    chip.__class__ = type("Changes", (Chip,), {"__call__": lambda self, names: changes(names)})
    status, record = found(file)
    assert status == 3 and set(states(record).values()) == {"unjudged"}


def test_machine_is_compared_with_the_sessions_of_the_cases_that_are_judged(chip, file):
    chip.factors["copy"] = 1.1
    assert cli.main(["sgd", "--update", "--baseline", str(file)]) == 0
    assert (found(file, "sgd")[0], found(file, "muon")[0], found(file)[0]) == (0, 3, 3)
    chip.factors.clear()
    assert (found(file, "sgd")[0], found(file, "muon")[0]) == (3, 0)


def test_wrong_kernel_is_red_on_another_machine_too(chip, file, capsys):
    chip.factors["matmul"] = 1.2
    chip.faults["sgd case1 forward"] = "wrong values"
    assert found(file)[0] == 1
    assert "the machine is not as it was" in capsys.readouterr().out.splitlines()[-1]


def test_update_keeps_every_repeat_of_every_case_and_where_it_is_from(chip, file):
    content = baseline.load(file, "NVIDIA H200")
    assert content.cases.keys() == CALLS.keys()
    assert {len(case.seconds) for case in content.cases.values()} == {16}
    assert {name: case.call for name, case in content.cases.items()} == CALLS
    (session,) = content.sessions
    assert set(session.ceilings) == {"copy", "matmul"} and len(session.ceilings["copy"]) == 16
    assert session.provenance["command"] == f"python -m bench gate --update --baseline {file}"
    assert session.provenance["versions"]["torch"] == torch.__version__
    assert {"time", "commit", "dirty", "device_name", "gpu_before", "gpu_after"} <= set(session.provenance)
    copy = file.with_name("copy.json")
    baseline.save(copy, content)
    assert copy.read_text() == file.read_text()


def test_update_of_an_op_leaves_the_others_and_their_session(chip, file):
    before = baseline.load(file, "NVIDIA H200")
    chip.factors = dict.fromkeys(CALLS, 2.0)
    del chip.calls["sgd case5 forward"]
    assert cli.main(["sgd", "--update", "--baseline", str(file), "--repeats", "4"]) == 0
    after = baseline.load(file, "NVIDIA H200")
    assert after.cases.keys() == CALLS.keys() - {"sgd case5 forward"}
    for name, case in after.cases.items():
        assert (case.seconds == before.cases[name].seconds) == name.startswith("muon")
        assert len(after.sessions[case.session].ceilings["copy"]) == (16 if name.startswith("muon") else 4)
    assert cli.main(["--update", "--baseline", str(file)]) == 0
    assert len(baseline.load(file, "NVIDIA H200").sessions) == 1  # that no case is left of goes


def test_update_with_a_wrong_kernel_writes_nothing(chip, file, capsys):
    before = file.read_bytes()
    chip.faults["sgd case1 forward"] = "wrong values"
    assert cli.main(["--update", "--baseline", str(file)]) == 1
    assert file.read_bytes() == before and "is as it was" in capsys.readouterr().out


def test_update_names_cases_too_noisy_to_catch_five_percent(chip, tmp_path, capsys):
    chip.noise = 0.02
    assert cli.main(["--update", "--baseline", str(tmp_path / "noisy.json")]) == 0
    assert "sgd case0 forward: too noisy: nothing below 1." in capsys.readouterr().out


def test_interrupt_leaves_no_files_and_the_baseline_as_it_was(chip, file, capsys):
    before = file.read_bytes()

    def interrupted(self, names):
        raise KeyboardInterrupt

    chip.__class__ = type("Interrupted", (Chip,), {"__call__": interrupted})
    for arguments in (["--update"], ["--junit", str(file.with_name("out.xml"))]):
        assert cli.main(["--baseline", str(file), *arguments]) == 130
    assert file.read_bytes() == before and list(file.parent.iterdir()) == [file]
    assert capsys.readouterr().err.startswith("bench gate: interrupted")


def test_baseline_of_another_gpu_is_refused_and_is_not_overwritten(chip, file, monkeypatch, capsys):
    before = file.read_bytes()
    monkeypatch.setattr(cli, "this_gpu", lambda: "NVIDIA A100")
    for more in ([], ["--update", "sgd"]):
        assert cli.main(["--baseline", str(file), *more]) == 2
        assert "is of NVIDIA H200, and this is NVIDIA A100" in capsys.readouterr().err
    assert file.read_bytes() == before and chip.asked == []


def test_other_versions_are_a_note(chip, file, monkeypatch, capsys):
    monkeypatch.setattr(cli.environment, "versions", lambda: versions() | {"torch": "9.9"})
    assert found(file)[0] == 0
    assert f"note: the baseline was made with torch {torch.__version__}, now 9.9" in capsys.readouterr().out


def test_missing_baseline_is_one_line_that_names_the_gpu_and_the_way_to_one(
    chip, monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(baseline, "FOLDER", tmp_path)
    assert cli.main([]) == 2
    said = "bench gate: no baseline for NVIDIA H200 in bench/baselines; --update makes one\n"
    assert capsys.readouterr().err == said
    assert cli.main(["--update"]) == 0 and [path.name for path in tmp_path.iterdir()] == ["nvidia-h200.json"]
    assert cli.main([]) == 0


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '{"gpu": "NVIDIA H200"}',
        '{"gpu": "x", "sessions": [], "cases": {"a": 1}, "recipes": {}}',
    ],
)
def test_file_that_is_no_baseline_is_one_line(chip, tmp_path, capsys, content):
    path = tmp_path / "bad.json"
    path.write_text(content)
    assert cli.main(["--baseline", str(path)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "is no baseline" in err


@pytest.mark.parametrize("seconds", [[1e-6] * 3, [1e-6] * 15 + [0.0], [1e-6] * 15 + ["fast"]])
def test_baseline_without_proper_times_is_one_line(chip, file, capsys, seconds):
    content = json.loads(file.read_text())
    content["cases"]["sgd case0 forward"]["seconds"] = seconds
    file.write_text(json.dumps(content))
    assert cli.main(["--baseline", str(file)]) == 2
    assert "is no baseline" in capsys.readouterr().err


def test_junit_counts_the_failures_and_the_summary_is_appended(chip, file, tmp_path, monkeypatch):
    chip.factors["sgd case2 forward"] = 1.10
    junit, summary = tmp_path / "out.xml", tmp_path / "summary.md"
    summary.write_text("earlier\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    assert found(file, "--junit", str(junit))[0] == 1
    suite = ElementTree.parse(junit).find("testsuite")
    assert (suite.get("tests"), suite.get("failures")) == ("12", "1")
    assert suite.find(".//failure/..").get("name") == "sgd case2 forward"
    assert summary.read_text().startswith("earlier\n## Speed gate, NVIDIA H200\n\nRED: of 12 1 slow")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["nothing"], "'nothing', accepted are"),
        (["--max-slowdown", "0.98"], "--max-slowdown: got 0.98"),
        (["--max-slowdown", "nan"], "--max-slowdown: got nan"),
        (["--repeats", "3"], "--repeats: got 3, accepted is 4 or more"),
        (["--first", "0"], "--first: got 0"),
        (["--recipe", "nothing"], "--recipe: got 'nothing'"),
        (["--recipe", "seed", "--runs", "1"], "--runs: got 1"),
        (["--max-loss", "-1"], "--max-loss: got -1"),
        (["--from", "record.json"], "--from: only with --static"),
        (["--static", "--recipe", "seed"], "--recipe: not with --static"),
        (["--static", "--json", "out.json"], "--json: not with --static"),
        (["--junit", "."], "--junit: cannot write"),
        (["--junit", "a", "--json", "./a"], "--junit and --json: two of them are one file"),
        (["--update", "--baseline", "."], "--baseline: cannot write"),
    ],
)
def test_mistake_is_one_line_and_exit_status_2(chip, capsys, tmp_path, monkeypatch, arguments, named):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("bench gate: ") and named in err
    assert list(tmp_path.iterdir()) == [] and chip.asked == []


def test_without_a_gpu_a_line_says_what_is_needed(monkeypatch, capsys):
    monkeypatch.setattr(micro, "timed_on", lambda: ("cpu", "there is no CUDA device"))
    assert cli.main([]) == 2
    said = "the gate times kernels on a CUDA device, and there is no CUDA device; `--static` needs none"
    assert capsys.readouterr().err == f"bench gate: {said}\n"


def test_static_gate_gets_what_was_asked_for(monkeypatch, tmp_path):
    asked = []
    static = type(sys)("bench.gate.static")
    static.run = lambda console, *rest: asked.append(rest) or 1
    monkeypatch.setitem(sys.modules, "bench.gate.static", static)
    monkeypatch.setattr(sys.modules["bench.gate"], "static", static, raising=False)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    base, record, xml = (tmp_path / name for name in ("base.json", "record.json", "out.xml"))
    paths = ["--baseline", str(base), "--from", str(record)]
    assert cli.main(["sgd", "--static", "--update", *paths]) == 1
    assert cli.main(["--static", *paths, "--junit", str(xml)]) == 1
    assert cli.main(["--static"]) == 1
    assert asked == [
        (["sgd"], base, record, True, None, None),
        ([], base, record, False, xml, None),
        ([], None, None, False, None, None),
    ]


def recipe_findings(capsys) -> list[str]:
    return [line for line in capsys.readouterr().out.splitlines() if "record94 " in line and ": " in line]


def test_recipe_as_it_was_is_green_and_says_what_loss_would_have_shown(chip, runs, file, capsys):
    common = ["--recipe", "record94", "--runs", "8", "--data", "cifar10"]
    assert cli.main(["--update", "--baseline", str(file), *common]) == 0
    capsys.readouterr()
    assert found(file, *common)[0] == 0
    time, accuracy = recipe_findings(capsys)
    assert "of the baseline's, with confidence 99.50%" in time
    assert "in 8 runs against 8 a loss of 0." in accuracy and "would have shown 4 times out of 5" in accuracy
    assert runs.asked == [("cifar10", "record94", 8, 0)] * 2
    assert baseline.load(file, "NVIDIA H200").cases.keys() == CALLS.keys()  # a recipe is beside the kernels


@pytest.fixture
def recipe(chip, runs, file, capsys):
    assert cli.main(["--update", "--baseline", str(file), "--recipe", "record94"]) == 0
    runs.asked.clear()
    capsys.readouterr()
    return lambda *more: found(file, "--recipe", "record94", *more)[0]


def test_slower_recipe_is_red_on_fresh_runs_of_other_seeds(recipe, runs, capsys):
    runs.seconds = 2.1
    assert recipe() == 1
    assert runs.asked == [("auto", "record94", 10, 0), ("auto", "record94", 10, 10)]
    time, _ = recipe_findings(capsys)
    assert time.startswith("RED record94 time: slower by at least 4.")


def test_recipe_slow_in_its_first_process_alone_is_green(recipe, runs, monkeypatch):
    def settles(*arguments):
        runs.seconds = 2.1 if not runs.asked else 2.0
        return runs(*arguments)

    monkeypatch.setattr(endtoend, "trained", settles)
    assert recipe() == 0 and len(runs.asked) == 2


def test_lost_accuracy_is_red_where_it_is_sure_to_exceed_what_is_tolerated(recipe, runs, capsys):
    runs.accuracy = 0.937
    assert recipe() == 1
    assert recipe_findings(capsys)[1].startswith("RED record94 accuracy: changed by -0.")
    assert recipe("--max-loss", "0.5") == 0


def test_loss_of_more_than_is_tolerated_but_within_the_noise_is_green(recipe, runs, capsys):
    runs.accuracy = 0.9385
    assert recipe() == 0
    (said,) = [line for line in recipe_findings(capsys) if "accuracy" in line]
    assert float(said.split("changed by ")[1].split()[0]) < -0.05


def test_diverged_run_is_red(recipe, runs, capsys):
    runs.failed = 1
    assert recipe() == 1
    assert "1 of 10 runs diverged" in recipe_findings(capsys)[0]


def test_synthetic_runs_are_not_compared_with_cifar10_which_is_said_first(recipe, runs, chip, capsys):
    runs.dataset = "synthetic"
    chip.asked.clear()
    assert recipe() == 2 and chip.asked == []
    assert "the baseline of record94 is of cifar10, these runs are of synthetic" in capsys.readouterr().err


def test_time_of_a_recipe_is_not_judged_on_another_machine_but_its_accuracy_is(recipe, runs, chip, capsys):
    chip.factors["copy"], runs.seconds = 1.1, 2.5
    assert recipe() == 3 and len(runs.asked) == 1
    runs.accuracy = 0.90
    assert recipe() == 1


def test_baseline_and_findings_of_synthetic_runs_say_so(chip, runs, file, capsys):
    runs.dataset = "synthetic"
    assert cli.main(["--update", "--baseline", str(file), "--recipe", "record94"]) == 0
    assert baseline.load(file, "NVIDIA H200").recipes["record94"].dataset == "synthetic"
    assert found(file, "--recipe", "record94")[0] == 0
    assert "record94 (synthetic) accuracy: " in capsys.readouterr().out


def test_recipe_that_is_not_in_the_baseline_is_a_note(chip, runs, file, capsys):
    assert found(file, "--recipe", "record94")[0] == 0
    assert "record94 time: not in the baseline" in capsys.readouterr().out


def test_changed_recipe_is_named(recipe, runs, capsys):
    runs.epochs = 9
    assert recipe() == 0
    assert "epochs was 8, is 9" in recipe_findings(capsys)[1]


def test_update_with_a_diverged_run_writes_nothing(chip, runs, file):
    before, runs.failed = file.read_bytes(), 2
    assert cli.main(["--update", "--baseline", str(file), "--recipe", "record94"]) == 1
    assert file.read_bytes() == before


def test_record_of_runs_is_read_from_what_hlb_train_writes(monkeypatch):
    ok, failed = Run(0, accuracy=0.94, train_seconds=2.0, eval_seconds=0.5), Run(1, status="failed")
    written = Result(RECIPES["smoke"], Execution(), "synthetic", [ok, failed], None, "a CPU", {}, 3.0).json()

    def train(command, **_):
        options = hlb.cli.parser().parse_args(command[3:])
        assert (options.recipe, options.runs, options.seed, options.data) == ("smoke", 2, 7, "synthetic")
        with open(options.json, "w") as f:
            json.dump(written, f)
        return type("Done", (), {"returncode": 1})

    monkeypatch.setattr(endtoend.subprocess, "run", train)
    record = endtoend.trained("synthetic", "smoke", 2, 7)
    assert (record.seconds, record.accuracy, record.failed, record.dataset) == ([2.5], [0.94], 1, "synthetic")
    assert record.fields["name"] == "smoke"
