"""Sweeps: their runs and ledger, what a stopped one goes on from, its processes, and mistakes."""

import contextlib
import errno
import gc
import json
import os
import re
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

import hlb
from hlb import synthetic
from hlb.cli import main
from hlb.runs import ledger
from hlb.study import grid, shard, sweep, trainers
from hlb.train import Run

ROOT = Path(hlb.__file__).parents[1]
SETTINGS = (
    "base_depth=4",
    "train_examples=100",
    "batch_size=50",
    "epochs=1",
    "whiten_images=50",
    "dtype=float32",
)
TINY = (
    "sweep",
    "--recipe",
    "smoke",
    "--data",
    "synthetic",
    "--device",
    "cpu",
    "--threads",
    "1",
    "--set",
    *SETTINGS,
)
RATES = ("lr=0.1,0.2,0.3",)
ARMS = grid.READY["record94"].settings
SMALL = [setting for setting in SETTINGS if not setting.startswith("epochs")]
# The command line over a small synthetic set, for processes of their own.
PROGRAM = """\
import os, sys
from hlb import synthetic
small = synthetic.make(100, 50)
synthetic.make = lambda *_: small
from hlb.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def small():
    return synthetic.make(100, 50)


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch, small):
    """Runs a test in a folder of its own, with a small set."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(synthetic, "make", lambda *_: small)
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)


class Instant:
    """A trainer that trains nothing: accuracies follow from the rate and the seed, times from the seed."""

    built: list  # weak references to all of them
    alive: list[int]  # how many there were at each construction
    ran: list  # dataset of each run
    build_seconds = compile_seconds = first_step_seconds = 0.0

    def __init__(self, recipe, execution, dataset):
        self.recipe, self.execution, self.dataset = recipe, execution, dataset
        self.held = self.run  # as a real one is, by its own functions
        self.built.append(weakref.ref(self))
        self.alive.append(sum(one() is not None for one in self.built))

    def estimate_seconds(self, eval_every: int) -> float:
        return 100.0 * self.recipe.epochs

    def run(self, seed: int, eval_every: int = 1) -> Run:
        self.ran.append(self.dataset)
        accuracy = self.recipe.lr + (seed % 3 - 1) / 100
        return Run(seed, "ok", accuracy, "flip", train_seconds=2 + seed % 3 / 10, eval_seconds=1.0)


@pytest.fixture
def instant(monkeypatch):
    Instant.built, Instant.alive, Instant.ran = [], [], []
    monkeypatch.setattr(trainers, "Trainer", Instant)
    return Instant


def start(*arguments: str) -> int:
    return main([*TINY, *RATES, "--ledger", "runs.jsonl", *arguments])


def finished(path="runs.jsonl") -> list[tuple[float, int]]:
    return [(record["recipe_fields"]["lr"], record["seed"]) for record in ledger.load(path)]


# -- mistakes ------------------------------------------------------------------------------------------------

MANY = ",".join(map(str, range(1, 200)))


@pytest.mark.parametrize(
    "arguments, names",
    [
        (["--set", "lrr=0.1,0.2"], "did you mean lr"),
        (["--set", "bias_lr"], "got 'bias_lr', accepted is field=value,value"),
        (["--set", "bias_lr=1,,2"], "bias_lr: got ''"),
        (["--set", "bias_lr=1,many"], "bias_lr: got 'many'"),
        (["--set", "bias_lr=1,1.0"], "lr=0.1 bias_lr=1 and lr=0.1 bias_lr=1.0 are the same"),
        (["--set", "lr=0.4"], "got lr twice"),
        (["--set", "target=0.94,0.95"], "lr=0.1 target=0.94 and lr=0.1 target=0.95 are the same"),
        (["--dtype", "float64"], "got dtype twice"),
        (["--set", "sizes=32/7"], "sizes: got 7"),
        (["--set", f"bias_lr={MANY}", f"linear_lr={MANY}"], "--random"),
        (["--random", "0"], "--random: got 0, accepted is 1 to 3"),
        (["--random", "4"], "--random: got 4, accepted is 1 to 3"),
        (["--random", "few"], "--random"),
        (["--grid", "nonsense"], "--grid: got 'nonsense', accepted are record94"),
        (["--grid", "record94"], "--recipe: the configurations are those of --grid record94; leave it out"),
        (["--runs", "0"], "--runs"),
        (["--runs", "1000000"], "--runs: got 1,000,000 of 3, accepted are 1,000,000 runs in all"),
        (["--seed", "-1"], "--seed"),
        (["--eval-every", "-1"], "--eval-every"),
        (["--device", "nonsense"], "nonsense"),
        (["--kernels", "nonsense"], "--kernels"),
        (["--save", "model.pt"], "--save"),
        (["--ledger", "."], "--ledger"),
        (["--json", "."], "--json"),
        (["--json", "runs.jsonl"], "names one file twice"),
        (["--shard"], "--shard: this process was not started by torchrun; take torchrun --nproc-per-node"),
    ],
    ids=lambda value: " ".join(value)[:30] if isinstance(value, list) else "",
)
def test_mistake_is_one_line_before_any_data_is_looked_for(monkeypatch, capsys, arguments, names):
    monkeypatch.setattr(shard.sets, "load", lambda data: pytest.fail("data was looked for"))
    assert start(*arguments) == 2
    out, err = capsys.readouterr()
    assert err.startswith("hlb: ") and err.count("\n") == 1 and names in err and out == ""


def test_json_that_would_overwrite_the_default_ledger_is_refused(capsys):
    assert main([*TINY, "--json", "results/sweep-smoke.jsonl"]) == 2
    assert "names one file twice" in capsys.readouterr().err


def test_batch_that_the_data_never_fill_is_told_before_the_first_run(instant, capsys):
    settings = [setting for setting in SETTINGS if "batch_size" not in setting]
    arguments = ["--set", *settings, "batch_size=50,200", "--runs", "2"]
    assert main([*TINY[: -len(SETTINGS) - 1], *arguments]) == 2
    assert "batch_size: got 200 with 100 training images" in capsys.readouterr().err
    assert not instant.ran


def test_out_of_memory_is_one_line_that_names_the_configuration(monkeypatch, instant, capsys):
    def run(self, seed, eval_every):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(Instant, "run", run)
    assert start() == 2
    err = capsys.readouterr().err
    assert err.startswith("hlb: lr=0.1: out of memory: 20.00 GiB") and err.count("\n") == 1


# -- runs and their ledger -----------------------------------------------------------------------------------


def test_record_of_a_run_is_that_of_training_and_the_swept_settings():
    assert start("--runs", "1", "--quiet") == 0
    train = ["train", *TINY[1:], "lr=0.1", "--quiet", "--eval-every", "0", "--ledger", "train.jsonl"]
    assert main(train) == 0
    (trained,), swept = ledger.load("train.jsonl"), ledger.load("runs.jsonl")
    assert [record.pop("sweep") for record in swept] == [{"lr": 0.1}, {"lr": 0.2}, {"lr": 0.3}]
    assert set(swept[0]) == set(trained)
    for field in (
        "recipe",
        "recipe_fields",
        "execution",
        "dataset",
        "device_name",
        "seed",
        "accuracy",
        "views",
    ):
        assert swept[0][field] == trained[field]


def test_runs_are_interleaved_and_kept_in_the_ledger_of_the_recipe(instant):
    assert main([*TINY, *RATES, "--runs", "2", "--seed", "4", "--quiet"]) == 0
    expected = [(0.1, 4), (0.2, 4), (0.3, 4), (0.3, 5), (0.2, 5), (0.1, 5)]
    assert finished("results/sweep-smoke.jsonl") == expected


def test_runs_that_are_there_are_not_repeated_and_are_in_the_table(instant, capsys):
    assert start("--runs", "2") == 0
    assert "runs.jsonl already: 0   to do: 6" in capsys.readouterr().out
    assert start("--runs", "3") == 0
    out = capsys.readouterr().out
    assert "runs.jsonl already: 6   to do: 3" in out and "warning" not in out
    assert len(set(finished())) == len(finished()) == 9
    assert len(re.findall(r"^lr=0.\d +3 +0 ", out, re.MULTILINE)) == 3


@pytest.mark.parametrize(
    "change",
    [
        {"dataset": "cifar10"},
        {"device_name": "other"},
        {"seed": 7},
        {"recipe_fields": {"lr": 0.1}},
        {"execution": None},
        {"status": None},
    ],
    ids=lambda change: next(iter(change)),
)
def test_run_of_something_else_does_not_count_as_there(instant, change):
    assert start("--quiet") == 0
    lines = [{**ledger.load("runs.jsonl")[0], **change}, *ledger.load("runs.jsonl")[1:]]
    Path("runs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert start("--quiet") == 0
    assert len(ledger.load("runs.jsonl")) == 4 and len(instant.ran) == 4


def test_run_that_was_cut_short_in_the_ledger_is_run_again(instant):
    assert start("--quiet") == 0
    content = Path("runs.jsonl").read_bytes()
    Path("runs.jsonl").write_bytes(content[:-30])
    assert start("--quiet") == 0
    assert finished() == [(0.1, 0), (0.2, 0), (0.3, 0)]


def test_run_that_is_twice_in_the_ledger_counts_once(instant, capsys):
    assert start("--runs", "2", "--quiet") == 0
    ledger.append("runs.jsonl", ledger.load("runs.jsonl")[0])
    assert start("--runs", "2") == 0
    assert re.search(r"^lr=0.1 +2 +0 ", capsys.readouterr().out, re.MULTILINE)


def test_a_hundred_lines_of_one_seed_are_one_run_of_a_sweep(instant, capsys):
    assert start("--runs", "2", "--quiet") == 0
    line = ledger.load("runs.jsonl")[0]
    fields = line["recipe_fields"] | {"name": "renamed", "epochs": 1}  # 1.0 epochs
    for i in range(100):
        ledger.append("runs.jsonl", line | {"time": str(i), "recipe_fields": fields})
    assert start("--runs", "2") == 0
    out = capsys.readouterr().out
    assert "already: 6   to do: 0" in out and re.search(r"^lr=0.1 +2 +0 ", out, re.MULTILINE)


def test_lines_that_are_skipped_are_told_before_the_runs_begin(instant, capsys):
    Path("runs.jsonl").write_bytes("größer\n".encode("latin-1") + b"[" * 5000 + b'\n{"accuracy": NaN}\n')
    assert start() == 0
    told = "warning: runs.jsonl: 3 lines skipped: 1 not in UTF-8, 1 nested too deeply, 1 no runs\n"
    assert told in capsys.readouterr().out and len(ledger.runs("runs.jsonl")) == 3


def test_a_disk_that_is_full_while_a_run_is_recorded_costs_no_statistics(instant, monkeypatch, capsys):
    append, left = ledger.append, [4]

    def full(path, record):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        append(path, record)

    monkeypatch.setattr(ledger, "append", full)
    assert start("--runs", "2", "--json", "out.json") == 2
    out, err = capsys.readouterr()
    assert (
        err.startswith("hlb: --ledger: cannot write runs.jsonl: No space left on device")
        and err.count("\n") == 1
    )
    assert len(re.findall(r"^lr=0.\d +2 +0 ", out, re.MULTILINE)) == 3 and len(finished()) == 4
    assert [one["n"] for one in json.loads(Path("out.json").read_text())["configurations"]] == [2, 2, 2]


def test_runs_that_are_there_from_other_code_or_another_execution_are_warned_of(instant, capsys):
    assert start("--runs", "2", "--quiet") == 0
    assert start("--runs", "2", "--channels-last", "off") == 0
    out = capsys.readouterr().out
    assert "to do: 0" in out and "warning: 6 of those" in out


def test_no_more_than_four_trainers_are_kept_and_the_ones_used_last(instant):
    gc.collect()
    settings = "lr=0.1,0.2,0.3,0.4,0.5,0.6"
    assert main([*TINY, settings, "--runs", "3", "--quiet", "--ledger", "runs.jsonl"]) == 0
    assert max(instant.alive) == 4
    assert len(instant.built) == 6 + 2 + 2  # back and forth, each turn finds four


def test_trainers_on_a_gpu_are_kept_as_long_as_half_of_its_memory_is_free(monkeypatch):
    for free, count, full in ((80, 40, False), (60, 2, True), (1, 0, False)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 141))
        assert trainers.full("cuda:0", count) is full


def test_trainers_share_one_copy_of_the_data(instant):
    assert start("--runs", "2", "--quiet") == 0
    assert len({id(dataset) for dataset in instant.ran}) == 1


def test_every_run_has_its_own_configurations_switches(instant, monkeypatch):
    applied, ran = [], []
    monkeypatch.setattr(trainers, "apply", lambda recipe, execution: applied.append(recipe.lr))
    run = Instant.run
    monkeypatch.setattr(
        Instant, "run", lambda self, *a: (ran.append((applied[-1], self.recipe.lr)), run(self, *a))[1]
    )
    assert start("--runs", "2", "--quiet") == 0
    assert len(ran) == 6 and all(one == other for one, other in ran)


def test_ready_grid_is_started_by_its_name_and_goes_on_where_it_was(instant, monkeypatch, capsys):
    monkeypatch.setattr(
        trainers.gc, "collect", lambda: None
    )  # after each of dozens of trainers that hold nothing
    toy = ["sweep", "--grid", "record94", "--data", "synthetic", "--device", "cpu", "--set", *SMALL]
    assert main([*toy, "--runs", "1"]) == 0
    out = capsys.readouterr().out
    assert f"configurations: {len(ARMS)}   runs of each: 1 " in out and f"to do: {len(ARMS)}" in out
    # A run of 8.4 epochs is said to take 840 s, the others of the grid much the same; a build takes nothing.
    (said,) = re.findall(r"^about (.*) for all: (\d+) to build in 0.0 s each, a run in 1\d min$", out, re.M)
    assert said[1] == str(len(ARMS)) and said[0].startswith(("2 h", "3 h"))
    ran = [(record["recipe"], record["seed"]) for record in ledger.load("results/sweep-record94.jsonl")]
    assert ran == [("record94", 0)] * len(ARMS)
    assert main([*toy, "--quiet", "--runs", "2"]) == 0
    assert len(ledger.load("results/sweep-record94.jsonl")) == 2 * len(ARMS)
    assert grid.READY["record94"].runs == 50  # without --runs


def in_python(**options) -> sweep.SweepResult:
    common = {"data": "synthetic", "ledger": "runs.jsonl", "console": Console(quiet=True)}
    return sweep.sweep(
        "smoke", [*SETTINGS, *RATES], execution=hlb.Execution("cpu", threads=1), **common, **options
    )


def test_counts_of_numpy_are_counts_in_the_ledger_too(instant):
    in_python(runs=np.int64(2), seed=np.int64(4), draw=np.int64(1))
    (first, second) = ledger.runs("runs.jsonl")
    assert (first["seed"], second["seed"]) == (4, 5)


@pytest.mark.parametrize("option", ["runs", "seed", "draw", "eval_every"])
@pytest.mark.parametrize("value", ["2", 2.5, [2]], ids=str)
def test_a_count_that_is_no_whole_number_is_refused(instant, option, value):
    with pytest.raises(hlb.UserError, match="^--(runs|seed|random|eval-every): got "):
        in_python(**{option: value})


# -- what is printed -----------------------------------------------------------------------------------------


def test_json_is_alone_on_standard_output_and_has_the_promised_keys(instant, capsys):
    assert start("--runs", "3", "--json", "-") == 0
    content = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    first, *others = content["configurations"]
    assert (content["recipe"], content["dataset"], content["ledger"]) == ("smoke", "synthetic", "runs.jsonl")
    assert (first["name"], first["sweep"], first["n"], first["failed"]) == ("lr=0.1", {"lr": 0.1}, 3, 0)
    assert first["accuracy"]["mean"] == pytest.approx(0.1) and first["against_first"] is None
    assert [one["against_first"]["accuracy"]["difference"] for one in others] == pytest.approx([0.1, 0.2])
    assert "lr=0.3 is more accurate by 20.000 points" in content["verdict"]


def test_quiet_prints_nothing(instant, capfd):
    assert start("--quiet") == 0
    assert capfd.readouterr() == ("", "")


def test_sweep_whose_runs_all_fail_is_exit_status_1_and_is_not_repeated(instant, monkeypatch, capsys):
    monkeypatch.setattr(Instant, "run", lambda self, seed, eval_every: Run(seed, "failed", train_seconds=1.0))
    assert start("--runs", "2") == 1
    assert "failed: the loss became NaN or infinite" in capsys.readouterr().out
    assert start("--runs", "2", "--quiet") == 1
    assert len(finished()) == 6


def test_interrupt_prints_what_has_finished_and_is_exit_status_130(instant, monkeypatch, capsys):
    run = Instant.run

    def interrupted(self, seed, eval_every):
        if len(self.ran) == 4:
            raise KeyboardInterrupt
        return run(self, seed, eval_every)

    monkeypatch.setattr(Instant, "run", interrupted)
    assert start("--runs", "2", "--json", "out.json") == 130
    out = capsys.readouterr().out
    assert "interrupted: 4 of 6 runs have finished" in out and re.search(r"^lr=0.3 +2 +0 ", out, re.MULTILINE)
    assert json.loads(Path("out.json").read_text())["interrupted"] is True


# -- processes -----------------------------------------------------------------------------------------------


@pytest.fixture
def program(place):
    """Starts a command over the small set in a process of its own; ends it with the test."""
    if os.name != "posix":
        pytest.skip("Windows has no signal that kills")
    (place / "program.py").write_text(PROGRAM)
    started = []

    def start(*command: str) -> subprocess.Popen:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen([sys.executable, *command], cwd=place, env=environment, **pipes))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
            process.communicate()


def test_after_a_kill_every_run_is_made_exactly_once(program, place, capsys):
    path = place / "runs.jsonl"
    longer = [*TINY, *RATES, "--runs", "2", "--ledger", str(path)]
    longer[longer.index("epochs=1")] = "epochs=15"
    killed = program("program.py", *longer)
    deadline = time.monotonic() + 300
    while not path.exists() or path.read_bytes().count(b"\n") < 2:
        assert killed.poll() is None, killed.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    before = finished()
    assert 2 <= len(before) < 6
    assert main(longer) == 0
    assert f"already: {len(before)}   to do: {6 - len(before)}" in capsys.readouterr().out
    assert finished()[: len(before)] == before
    assert sorted(finished()) == [(lr, seed) for lr in (0.1, 0.2, 0.3) for seed in (0, 1)]


def test_two_processes_of_torchrun_make_every_run_exactly_once_and_the_first_one_prints(program):
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "program.py"]
    arguments = ["--runs", "2", "--ledger", "runs.jsonl", "--json", "-", "--shard"]
    process = program(*launch, *TINY, *RATES, *arguments)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert sorted(finished()) == [(lr, seed) for lr in (0.1, 0.2, 0.3) for seed in (0, 1)]
    assert (
        len({record["build_seconds"] for record in ledger.load("runs.jsonl")}) == 6
    )  # three trainers of each
    assert [one["n"] for one in json.loads(out)["configurations"]] == [2, 2, 2]
    assert "to do: 6   processes: 2" in err
    assert len(re.findall(r"^\d of 3 ", err, re.MULTILINE)) == 3  # of its own share
    assert len(re.findall(r"^lr=0.\d +2 +0 ", err, re.MULTILINE)) == 3 and err.count("against lr=0.1") == 1


def pair(monkeypatch, *answers) -> None:
    """Has this process be the first of two; the second one's answers are these, or (...) the same."""
    left = iter(answers)

    def gather(value):
        answer = next(left)
        return [value, value if answer is ... else answer]

    monkeypatch.setattr(shard, "local", lambda execution, sharded: execution)
    monkeypatch.setattr(shard, "processes", lambda sharded: contextlib.nullcontext((0, 2)))
    monkeypatch.setattr(shard, "gather", gather)


def test_first_process_adds_the_runs_of_machines_that_have_their_own_ledger(instant, monkeypatch, capsys):
    assert start("--runs", "2", "--quiet") == 0
    everything = {(r["recipe_fields"]["lr"], r["seed"]): r for r in ledger.load("runs.jsonl")}
    left = [(0.2, 0), (0.3, 0), (0.3, 1), (0.2, 1), (0.1, 1)]
    Path("runs.jsonl").unlink()
    had, made = (
        {grid.key(everything[run]): everything[run] for run in runs} for runs in ([(0.1, 0)], left[1::2])
    )
    pair(monkeypatch, ..., ..., had, made)
    assert start("--runs", "2", "--shard") == 0
    assert sorted(finished()) == sorted(everything)
    assert [run for run in finished() if run not in (left[1], left[3], (0.1, 0))] == [
        left[0],
        left[2],
        left[4],
    ]
    out = capsys.readouterr().out
    assert (
        "already: 1   to do: 5   processes: 2" in out and len(re.findall(r"^lr=0.\d +2 +0 ", out, re.M)) == 3
    )


def test_processes_with_different_data_are_refused(instant, monkeypatch, capsys):
    pair(monkeypatch, ..., ("cifar10", "chip"))
    assert start("--shard") == 2
    assert "--data: got cifar10 and synthetic" in capsys.readouterr().err and not instant.ran


def test_process_that_waits_for_one_that_ended_says_so(monkeypatch):
    def gather(*_):
        raise RuntimeError("Connection closed by peer")

    monkeypatch.setattr(shard.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(shard.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(shard.dist, "all_gather_object", gather)
    with pytest.raises(hlb.UserError, match="another process has ended"):
        shard.gather(1)


@pytest.fixture
def torchrun(monkeypatch):
    """The environment of the fourth of four processes on a machine."""
    variables = {"LOCAL_RANK": "3", "RANK": "3", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4"}
    variables |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    for name, value in {**variables, "TORCHELASTIC_RUN_ID": "none"}.items():
        monkeypatch.setenv(name, value)


def test_each_process_has_a_gpu_of_its_own(torchrun, monkeypatch):
    monkeypatch.setattr(shard, "available", lambda device: True)
    for device in ("auto", "cuda"):
        assert shard.local(hlb.Execution(device), True).device == "cuda:3"
    with pytest.raises(hlb.UserError, match="--device: got cuda:1.*take cuda"):
        shard.local(hlb.Execution("cuda:1"), True)


@pytest.mark.parametrize("asked, got", [(0, 4), (3, 3)])
def test_processes_on_a_cpu_divide_its_threads(torchrun, monkeypatch, asked, got):
    monkeypatch.setattr(shard.os, "sched_getaffinity", lambda _: range(16), raising=False)
    assert shard.local(hlb.Execution("cpu", threads=asked), True).threads == got


def test_several_processes_that_would_each_run_everything_are_refused(torchrun, capsys):
    assert start() == 2
    assert "--shard: not given" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["train", "audit"])
@pytest.mark.parametrize("launcher", ["torchrun", "another"])
def test_several_processes_that_would_train_the_same_seeds_are_refused(
    torchrun, monkeypatch, capsys, command, launcher
):
    if launcher == "another":
        monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    assert main([command, *TINY[1:]]) == 2
    err = capsys.readouterr().err
    assert (
        "one of 4 processes (WORLD_SIZE), which would all train the same seeds" in err
        and err.count("\n") == 1
    )


@pytest.mark.parametrize(
    "unset", [["RANK"], ["WORLD_SIZE"], ["MASTER_ADDR"], ["LOCAL_WORLD_SIZE", "LOCAL_RANK"]]
)
def test_a_process_that_has_not_all_of_torchruns_variables_was_not_started_by_it(
    torchrun, monkeypatch, capsys, unset
):
    for name in unset:
        monkeypatch.delenv(name)
    assert start("--shard") == 2
    assert "--shard: this process was not started by torchrun" in capsys.readouterr().err


def test_a_single_process_of_a_launcher_trains(torchrun, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    shard.expect_alone()
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.delenv("RANK")  # somebody's own variable
    shard.expect_alone()
