"""`python -m bench card`: its steps and limits, its files, its table; and all of it at toy size, killed on
its way.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from bench.card import (
    cli,
    folder,
    lock,
    machine,
    peers,
    promises,
    runner,
    steps,
    testing,
    trainee,
    trains,
    worker,
)
from bench.card.folder import Folder
from bench.card.steps import STEPS, Context
from hlb import UserError
from hlb.runs import ledger

ROOT = Path(__file__).parents[2]


@pytest.fixture
def out(tmp_path) -> Folder:
    return Folder(tmp_path)


def context(out: Folder, seconds: float = 30.0, **fields) -> Context:
    return Context(str(out.path), time.time() + seconds, **{"toy": True} | fields)


def script(code: str) -> list[str]:
    """A command that takes no time to begin: nothing is imported."""
    return [sys.executable, "-c", code]


# The whole, in processes


def card(out: Path, *arguments: str) -> subprocess.Popen:
    command = [
        sys.executable,
        "-m",
        "bench",
        "card",
        "--toy",
        "--minutes",
        "20",
        "--out",
        str(out),
        *arguments,
    ]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def alive(group_of: str) -> list[str]:
    """Command lines of the processes that mention a word."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if group_of in line and str(os.getpid()) != path.parent.name:
            found.append(line)
    return found


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_a_killed_card_leaves_what_had_ended_and_a_second_goes_on_to_the_end(out):
    first = card(out.path, "--steps", "tests")
    while not out.tests.exists() and first.poll() is None:
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    until = time.time() + 20
    while alive(str(out.path)) and time.time() < until:
        time.sleep(0.1)
    assert alive(str(out.path)) == []
    assert json.loads(out.card.read_text())["steps"]["tests"]["state"] == "running"
    before = json.loads(out.tests.read_text())["tests"]
    assert before and {one["outcome"] for one in before.values()} == {"passed"}

    second = card(out.path, "--peer", """them=echo no JSON; echo '{"accuracy": 0.94}'; echo bye""")
    said, _ = second.communicate()
    assert second.returncode == 0, said
    assert "toy sizes on the CPU through the interpreter" in said
    (found,) = re.findall(r"(\d+) tests collected, (\d+) to run", said)
    assert int(found[0]) - int(found[1]) == len(before)
    there = json.loads(out.card.read_text())
    toys = {step.name: "ended" for step in STEPS if step.toy}
    assert {name: one["state"] for name, one in there["steps"].items()} == toys, said
    assert len(list(out.path.iterdir())) == 6
    runs = [line for line in out.lines() if ledger.is_run(line)]
    assert [run["seed"] for run in runs] == [1] and {run["dataset"] for run in runs} == {"made up"}
    assert [line["said"] for line in out.lines() if "peer" in line] == [{"accuracy": 0.94}]
    assert out.profiles.read_text().startswith("== smoke reference,sgd=triton\nspan ")
    assert json.loads(out.passes.read_text())["table"]
    assert {row["implementation"] for row in json.loads(out.ops.read_text())["rows"]} == {"eager", "triton"}
    shown = said[said.rindex("\nstep ") :]
    right = f"{found[0]} of {found[0]} right"
    assert right in shown and '{"accuracy": 0.94}' in shown and "made-up images" in shown
    assert max(map(len, shown[: shown.index("toy size on a CPU")].splitlines()[:-1])) <= 80
    assert there["promises"][0] == {
        "what": "kernel tests",
        "promised": "all right",
        "measured": f"{right}; 0 not run",
        "wrong": False,
    }


# The command


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--minutes", "0"], "--minutes: got '0', accepted is a number above 0"),
        (["--minutes", "x"], "--minutes: got 'x'"),
        (["--minutes", "nan"], "--minutes: got 'nan'"),
        (["--minutes", "inf"], "--minutes: got 'inf'"),
        (["--minutes", "-1"], "--minutes: got '-1'"),
        (["--peer", "them"], "--peer: got 'them', accepted is NAME=COMMAND"),
        (["--peer", "=x"], "--peer: got '=x'"),
        (["--peer", "a="], "--peer: got 'a='"),
        (["--peer", "a=x", "--peer", "a=y"], "--peer: got 'a' twice"),
        (["--steps", "tests,nothing"], "--steps: got 'nothing', accepted are environment, compile"),
        (["--steps", "peers"], "--steps: peers needs --peer"),
        (
            ["--configurations", "record94 fast"],
            "--configurations: got 'record94 fast', accepted are record94 t",
        ),
        (["--data", "nowhere"], "--data: no cifar-10-batches-py/ in 'nowhere'"),
        (["--out", "a.file"], "--out: a.file is no folder"),
        (["--out", "a.file/inside"], "--out: cannot write"),
        (["--seconds", "3"], "--seconds"),
        (["more"], "more"),
    ],
)
def test_mistake_is_one_line_and_exit_status_2(capsys, tmp_path, monkeypatch, arguments, named):
    monkeypatch.chdir(tmp_path)
    Path("a.file").touch()
    assert cli.main(arguments) == 2
    shown, err = capsys.readouterr()
    assert shown == "" and err.count("\n") == 1 and err.startswith("bench card: ") and named in err
    assert [path.name for path in tmp_path.iterdir()] == ["a.file"]


def test_help_fits_80_columns_and_names_every_step(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    text = capsys.readouterr().out
    assert all(len(line) <= 80 for line in text.splitlines())
    assert all(f"  {step.name} " in text for step in STEPS)


@pytest.fixture
def faked(monkeypatch):
    """Steps take no time; `runner.step` calls what is put under their name, with their context."""
    works = {}

    def step(name, context, show):
        works.get(name, lambda context: None)(context)
        return {
            "state": "ended",
            "status": 0,
            "seconds": 1.0,
            "limit": 2.0,
            "lines": ["done"],
            "result": None,
        }

    monkeypatch.setattr(runner, "step", step)
    monkeypatch.setattr(promises, "MEASURED", Path("nowhere"))
    return works


def failing(context: Context) -> None:
    found = {"outcome": "failed", "why": "d x: 3 values are not finite", "seconds": 1.0}
    ledger.write(context.folder.tests, {"collected": 2, "tests": {"test_kernels.py::test_it[sgd]": found}})


def test_a_wrong_kernel_is_exit_status_1_and_is_named(out, faked, capsys):
    faked["tests"] = failing
    assert cli.main(["--out", str(out.path), "--toy"]) == 1
    shown = capsys.readouterr().out
    assert "0 of 1 right; 1 not run" in " ".join(shown.split()) and "WRONG" in shown
    assert "FAILED test_kernels.py::test_it[sgd]: d x: 3 values are not finite" in shown


def test_an_interrupted_card_shows_what_had_ended_and_ends_with_130(out, faked, capsys):
    def interrupted(context):
        raise KeyboardInterrupt

    faked["tests"], faked["runs"] = (lambda context: failing(context)), interrupted
    assert cli.main(["--out", str(out.path), "--toy"]) == 130
    shown, err = capsys.readouterr()
    assert "0 of 1 right" in shown and err == "bench card: interrupted\n"
    states = {name: one["state"] for name, one in json.loads(out.card.read_text())["steps"].items()}
    assert states["runs"] == "interrupted" and "ops" not in states


def test_chosen_steps_alone_are_run_in_their_order_and_those_that_ended_once(out, faked):
    done = []
    for step in STEPS:
        faked[step.name] = lambda context, name=step.name: done.append(name)
    arguments = ["--out", str(out.path), "--toy", "--steps"]
    assert cli.main([*arguments, "ops,tests"]) == 0 and done == ["tests", "ops"]
    assert cli.main([*arguments, "ops,environment"]) == 0 and done == ["tests", "ops", "environment"]


@pytest.mark.parametrize(
    "field, value", [("commit", "0" * 40), ("toy", False), ("device_name", "NVIDIA H100")]
)
def test_a_card_of_something_else_is_not_gone_on_with(out, faked, field, value, capsys):
    assert cli.main(["--out", str(out.path), "--toy", "--steps", "ops"]) == 0
    ledger.write(out.card, json.loads(out.card.read_text()) | {field: value})
    assert cli.main(["--out", str(out.path), "--toy", "--steps", "ops"]) == 2
    assert f"holds a card of {field} {value!r}" in capsys.readouterr().err


def test_a_broken_card_is_a_mistake(out):
    out.card.write_text("{")
    with pytest.raises(UserError, match="^--out: .*card.json cannot be read"):
        folder.opened(out, {})


def test_time_is_divided_by_shares_of_what_is_left_and_none_starves():
    whole = [steps.limit(step, STEPS, 1000.0) for step in STEPS]
    assert whole[-1] == 1000.0  # whoever is last has all that is left
    first, second = STEPS[1:3]
    assert steps.limit(first, (first, second), 1000.0) == pytest.approx(
        1000 * first.share / (first.share + second.share)
    )
    assert steps.limit(STEPS[0], STEPS, 30.0) == 15.0 and steps.limit(STEPS[0], STEPS, 400.0) == steps.LEAST


# A step as a process


def test_a_step_at_its_limit_is_ended_with_all_that_it_started(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "GRACE", 0.5)
    child = f"import time, pathlib; time.sleep(4); pathlib.Path({str(tmp_path / 'alive')!r}).touch()"
    code = f"""
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen([sys.executable, "-c", {child!r}])
print("begun", flush=True)
print('{{"found": 1}}', flush=True)
time.sleep(60)
"""
    shown = []
    began = time.time()
    process = runner.Process(script(code), shown.append, dict(os.environ))
    assert process.wait(1.5) is None
    assert time.time() - began < 1.5 + 4 * runner.GRACE
    assert shown == ["begun"] and process.result == {"found": 1}
    time.sleep(max(0.0, began + 4.5 - time.time()))
    assert not (tmp_path / "alive").exists()


def test_results_of_a_step_are_joined_and_its_last_lines_kept():
    code = """print(*range(50), '{"a": 1, "b": 1}', '{"b": 2}', "{no", sep="\\n")"""
    process = runner.Process(script(code), lambda line: None, dict(os.environ))
    assert process.wait(20) == 0
    assert process.result == {"a": 1, "b": 2}
    assert process.lines[-2:] == ["49", "{no"] and len(process.lines) == runner.KEPT


def test_a_context_goes_through_a_command_line(out):
    one = context(out, data="/somewhere", peers=(("a", "b 'c'"),))
    assert Context.parsed(one.json()) == one


# Peers, and the lock


def test_a_peers_last_json_line_is_kept_with_its_status():
    command = """echo '{"a": 1}'; echo '{"a": 2}'; echo words; exit 3"""
    found = peers.ran(command, 20.0)
    assert (found["said"], found["status"]) == ({"a": 2}, 3)


def test_a_peer_that_takes_too_long_is_stopped_with_what_it_said():
    found = peers.ran("""echo '{"a": 1}'; exec sleep 30""", 1.0)
    assert found["status"] == "stopped" and found["said"] == {"a": 1} and found["seconds"] < 10


def test_timed_parts_wait_for_each_other(monkeypatch, tmp_path):
    monkeypatch.setattr(lock, "path", lambda: tmp_path / "lock")
    order = []

    def other():
        with lock.alone():
            order.append("second")

    with lock.alone():
        thread = threading.Thread(target=other)
        thread.start()
        time.sleep(0.2)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


# Kernel tests


@pytest.mark.parametrize("file", (*testing.FILES, *testing.TOY_FILES))
def test_the_files_with_kernel_tests_are_there(file):
    assert (ROOT / file).is_file()


def test_the_recipes_shapes_in_float16_come_first_of_each_op_one_and_the_rest_by_chance_alike():
    shape = f"tests/kernels/test_kernels.py::{testing.SHAPES}"
    tests = [f"tests/kernels/test_kernels.py::test_small[{i}]" for i in range(20)] + [
        f"{shape}sgd-seed-bfloat16]",
        f"{shape}sgd-seed-float16]",
        f"{shape}sgd-record94-float16]",
        f"{shape}muon-record94-float16]",
        "tests/hlb/test_graph.py::test_captured",
    ]
    found = testing.ordered(tests)
    assert [test.removeprefix(shape) for test in found[:3]] == [
        "sgd-seed-float16]",
        "muon-record94-float16]",
        "sgd-record94-float16]",
    ]
    assert set(found[3:5]) == {tests[20], tests[24]}
    assert sorted(found) == sorted(tests) and found[5:] != tests[:20] and found == testing.ordered(tests)


FAKE_WORKER = """
import json, sys, time
print(json.dumps({"collected": ["good", "bad", "fatal", "slow", "lost", "last"]}), flush=True)
for line in sys.stdin:
    name = json.loads(line)["run"]
    if name == "fatal":
        sys.exit(7)
    if name == "slow":
        time.sleep(60)
    outcome = {"outcome": "failed", "why": "CUDA error: illegal memory access"} if name == "lost" else (
        {"outcome": "failed", "why": "no"} if name == "bad" else {"outcome": "passed"})
    print(json.dumps(outcome), flush=True)
"""


def test_a_test_that_kills_hangs_or_loses_the_device_takes_no_other_with_it(out, monkeypatch):
    monkeypatch.setattr(testing.Worker, "command", lambda self, files: script(FAKE_WORKER))
    monkeypatch.setattr(testing, "TEST_SECONDS", 1.0)
    monkeypatch.setattr(testing, "ordered", lambda tests: tests)
    testing.Pool(context(out), ("file",), 1).run()
    found = json.loads(out.tests.read_text())
    assert {name: one["outcome"] for name, one in found["tests"].items()} == {
        "good": "passed",
        "bad": "failed",
        "fatal": "died",
        "slow": "hung",
        "lost": "failed",
        "last": "passed",
    }
    assert found["tests"]["fatal"]["why"] == "its process ended with status 7"
    monkeypatch.setattr(testing.Worker, "run", lambda *_: pytest.fail("it had ended"))
    testing.Pool(context(out), ("file",), 1).run()


def test_tests_are_collected_and_run_where_hypothesis_is_not_installed(monkeypatch):
    for name in ("hypothesis", "hypothesis.strategies"):
        monkeypatch.setitem(sys.modules, name, None)
    worker.without_hypothesis()
    from hypothesis import HealthCheck, given, settings
    from hypothesis import strategies as st

    @settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.integers(1, 1 << 32).map(abs))
    def test_it(n):
        raise AssertionError

    settings.register_profile("hlb", deadline=None)
    assert test_it.__name__ == "test_it" and test_it.pytestmark[0].name == "skip"


# Runs

FAKE_TRAINEE = """
import json, sys
asked = json.loads(sys.argv[1])
if asked["kernels"] == "broken":
    print("no such thing")
    sys.exit(1)
print(json.dumps({"built": 1.0}), flush=True)
for line in sys.stdin:
    wanted = json.loads(line)
    if "profile" in wanted:
        print(json.dumps({"profile": "span"}), flush=True)
    elif asked["kernels"] == "fragile" and wanted["run"] == 2:
        sys.exit("out of memory")
    else:
        print(json.dumps({"record": {
            "recipe": asked["recipe"], "recipe_fields": {}, "execution": {"kernels": asked["kernels"]},
            "seed": wanted["run"], "status": "ok", "accuracy": 0.9, "train_seconds": 1.0, "eval_seconds": 0.1,
            "dataset": "made up"}}), flush=True)
"""


def test_runs_take_turns_each_a_line_and_whoever_fails_stops_alone(out, monkeypatch, capsys):
    these = tuple(trains.Configuration("record94", name) for name in ("good", "broken", "fragile"))
    others = (trains.Configuration("seed", "good"),)
    monkeypatch.setattr(trains, "CONFIGURATIONS", these + others)
    monkeypatch.setattr(trains, "MOST", 6)
    real = trains.command
    monkeypatch.setattr(trains, "command", lambda *a: [*script(FAKE_TRAINEE), real(*a)[-1]])
    assert trains.run(context(out, toy=False)) == 0
    ran = [(run["recipe"], run["execution"]["kernels"], run["seed"]) for run in out.lines()]
    assert ran[:4] == [
        ("record94", "good", 1),
        ("record94", "fragile", 1),
        ("seed", "good", 1),
        ("record94", "good", 2),
    ]
    assert [seed for recipe, _, seed in ran if recipe == "seed"] == [1, 2]  # in every fourth round
    assert [seed for _, kernels, seed in ran if kernels == "fragile"] == [1]
    shown = capsys.readouterr().out
    assert "record94 broken: not run: no such thing" in shown and "record94 fragile: out of memory" in shown
    assert out.profiles.read_text().count("== ") == 3
    for foreign in ({"recipe": None}, {"execution": {}}, {"recipe_fields": "x"}, {"seed": "x"}):
        ledger.append(out.runs, out.lines()[0] | foreign)
    trains.run(context(out, toy=False))
    assert len(promises.own(out)["record94", "good"]) == 12
    only = dataclasses.replace(context(out, toy=False), configurations=("seed good",))
    assert [one.name for one in trains.wanted(only)] == ["seed good"]
    assert Context.parsed(only.json()) == only
    again = [
        run["seed"]
        for run in out.trained()
        if (run["recipe"], run["execution"]["kernels"]) == ("seed", "good")
    ]
    assert again == [1, 2, 3, 4]  # a second card goes on with the next seed


def test_a_profile_sums_calls_by_name_the_longest_first():
    text = trainee.summed([("a", 0.0, 10.0), ("b", 20.0, 500.0), ("a", 600.0, 30.0)])
    first, *lines = text.splitlines()
    assert first == "span 0.6 ms, busy 0.5 ms, kernels 3"
    assert [line.split() for line in lines] == [
        ["0.50", "ms", "1", "x", "500.0", "us", "b"],
        ["0.04", "ms", "2", "x", "20.0", "us", "a"],
    ]


# Promises


def run(kernels: str, accuracy: float, seconds: float = 1.0, dataset: str = "cifar10", **fields) -> dict:
    return {
        "recipe": "record94",
        "recipe_fields": promises.intended("record94", kernels)["recipe_fields"] | fields,
        "execution": {"kernels": kernels, "graph": "run"},
        "dataset": dataset,
        "status": "ok",
        "accuracy": accuracy,
        "train_seconds": seconds,
        "eval_seconds": 0.5,
    }


@pytest.fixture
def measured(tmp_path, monkeypatch) -> Path:
    """Records of runs before: two of each choice of kernels, 94.0 % give or take."""
    path = tmp_path / "measured"
    path.mkdir()
    monkeypatch.setattr(promises, "MEASURED", path)
    for kernels in ("triton", "reference"):
        for accuracy in (0.939, 0.941, 0.940):
            ledger.append(path / "runs.jsonl", run(kernels, accuracy, seconds=1.0 + (kernels == "reference")))
    return path


def rows(found: list[promises.Promise]) -> dict[str, tuple[str, str, bool]]:
    return {one.what: (one.promised, one.measured, one.wrong) for one in found}


@pytest.mark.parametrize("accuracy, low", [(0.9390, False), (0.9350, True), (0.9450, False)])
def test_an_accuracy_is_wrong_below_what_chance_gives(out, measured, accuracy, low):
    for seed in range(2):
        ledger.append(out.runs, run("triton", accuracy) | {"seed": seed})
    found = rows(promises.runs({}, out))
    promised, now, wrong = found["record94 triton, accuracy in %"]
    assert (
        promised == "94.000 (std 0.089, n 6)" and now.startswith(f"{100 * accuracy:.3f} (") and wrong == low
    )
    assert found["record94 triton, s"] == ("1.500 (std 0.000, n 3) measured", "1.500 (std 0.000, n 2)", False)


def test_a_seed_that_was_run_again_is_no_second_run(out, measured):
    for seconds in (1.0, 9.0):
        ledger.append(out.runs, run("triton", 0.94, seconds) | {"seed": 0})
    assert rows(promises.runs({}, out))["record94 triton, s"][1] == "1.500 (n 1)"


def test_another_recipe_and_made_up_images_promise_nothing(out, measured):
    ledger.append(out.runs, run("triton", 0.1, dataset="made up"))
    found = rows(promises.runs({}, out))
    assert "record94 triton, accuracy in %" not in found
    (measured / "runs.jsonl").write_text("")
    for _ in range(2):
        ledger.append(measured / "runs.jsonl", run("triton", 0.94, lr=0.4))
    ledger.append(out.runs, run("triton", 0.1))
    found = rows(promises.runs({}, out))
    assert found["record94 triton, accuracy in %"] == ("", "10.000 (n 1)", False)


def test_seconds_are_promised_by_what_was_expected_and_never_wrong(out, measured):
    expected = {"record94 tuned": {"seconds": 0.7, "measured_share": 0.9}}
    card = {"steps": {"compile": {"result": {"expected": expected}}}}
    assert rows(promises.runs(card, out))["record94 tuned, s"] == ("0.700 expected", "not run", False)
    assert rows(promises.runs(card, out))["record94 triton, s"][0] == "1.500 (std 0.000, n 3) measured"
    ledger.write(measured / "notes.json", {"runs.jsonl": {"untimed": "the card was shared"}})
    assert "record94 triton, s" not in rows(promises.runs(card, out))
    ledger.append(out.runs, run("tuned", 0.94, seconds=9.0))
    assert rows(promises.runs(card, out))["record94 tuned, s"] == ("0.700 expected", "9.500 (n 1)", False)


def row(op: str, speed_up: float | None, direction: str = "both", fault: str | None = None) -> dict:
    fields = {"op": op, "case": "seed", "direction": direction, "implementation": "triton"}
    return fields | {"speed_up_compiled": speed_up, "fault": fault}


def test_an_op_is_beside_compiled_over_its_cases_and_a_wrong_one_is_wrong(out, measured):
    ledger.write(
        measured / "ops.json", {"rows": [row("sgd", 2.0), row("sgd", 9.0, "forward"), row("views", 3.0)]}
    )
    ledger.write(
        out.ops, {"rows": [row("sgd", 4.0), row("sgd", 1.0), row("muon", None, fault="wrong: output 0")]}
    )
    assert rows(promises.ops({}, out)) == {
        "sgd, times compiled": ("2.00", "2.00", False),
        "views, times compiled": ("3.00", "not run", False),
        "muon, times compiled": ("", "wrong: wrong: output 0", True),
    }


@pytest.mark.parametrize(
    "why, wrong", [("spills: 8 bytes of stack", False), ("dgrad: 3 values are off", True)]
)
def test_a_candidate_that_is_wrong_is_wrong_and_one_that_spills_is_not(out, measured, why, wrong):
    one = {"cudnn": 2.0, "seconds": {"rows": 1.0}, "dropped": {"images": why}}
    ledger.write(out.passes, {"found": {"forward": one}})
    (found,) = promises.passes({}, out)
    assert found.wrong == wrong and found.measured.startswith("1 of 1 faster than cuDNN")


def test_errors_that_a_sanitizer_finds_are_wrong(out):
    for errors, wrong in ((0, False), (2, True), (None, False)):
        found = {"ops": ["sgd"], "errors": errors, "said": "Device not supported"}
        card = {"steps": {"sanitizers": {"result": found}}}
        (one,) = promises.sanitizers(card, out)
        assert one.wrong == wrong and one.measured == (
            "Device not supported" if errors is None else f"{errors} errors in 1 ops"
        )


def test_data_is_where_it_is_said_to_be(tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    assert machine.found_data(str(tmp_path)) == machine.found_data(str(tmp_path / "cifar-10-batches-py"))
    assert machine.found_data(str(tmp_path)) == str(tmp_path)
