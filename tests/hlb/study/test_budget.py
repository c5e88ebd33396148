"""`hlb sweep --budget`: its runs, its ledger, its seconds, what it goes on from, what it says; and mistakes.

The trainers are made up, and take no time but that of a clock which they turn themselves.
"""

import json
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from hlb import UserError, cli, synthetic
from hlb.cli import main
from hlb.execution import Execution
from hlb.runs import ledger
from hlb.study import arms, budget, lab, shard, trainers
from hlb.study.lab import FRESH
from hlb.train import Run

TINY = (
    "base_depth=4",
    "train_examples=100",
    "batch_size=50",
    "whiten_images=50",
    "dtype=float32",
    "target=0.94",
)
# Epochs of an arm are a hundred times its seconds; the true means are below.
MEANS = {40: 0.9300, 50: 0.9425, 60: 0.9440, 70: 0.9450}
ARMS = {"recipe": "smoke", "arms": {f"{epochs} epochs": {"epochs": epochs} for epochs in reversed(MEANS)}}
BUILD = 5.0


@pytest.fixture(scope="module")
def small():
    return synthetic.make(100, 50)


class Clock:
    """What the seconds are; `alarms` are called at every run."""

    def __init__(self):
        self.now, self.alarms, self.runs = cli.STARTED, [], []

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def clock(tmp_path, monkeypatch, small):
    """A folder with a file of arms, a small data set, and a clock that only trainers turn."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(synthetic, "make", lambda *_: small)
    monkeypatch.setattr(lab.ledgers.os, "fsync", lambda file: None)  # a disk takes its time
    Path("arms.json").write_text(json.dumps(ARMS))
    clock = Clock()
    for module in (lab, budget):
        monkeypatch.setattr(module, "time", clock)

    class MadeUp:
        """Accuracies follow from epochs and seed, times from epochs."""

        build_seconds = compile_seconds = first_step_seconds = 0.0

        def __init__(self, recipe, execution, dataset, like=None, rows=0):
            self.recipe, self.execution, self.dataset = recipe, execution, dataset
            clock.now += BUILD
            self.build_seconds = BUILD + clock.now * 1e-9  # no two are alike

        def estimate_seconds(self, eval_every):
            return self.recipe.epochs / 100

        def run(self, seed, eval_every=1):
            for alarm in clock.alarms:
                alarm(self.recipe, seed)
            seconds = self.recipe.epochs / 100
            clock.now += seconds
            clock.runs.append((round(self.recipe.epochs), seed))
            noise = 0.0014 * ((seed * 0.618) % 1 - 0.5) * 3.46  # uniform, of that spread
            accuracy = MEANS[round(self.recipe.epochs)] + noise
            return Run(seed, "ok", accuracy, "flip", 0.0, seconds - 0.01, 0.01, wall_seconds=seconds)

    monkeypatch.setattr(trainers, "Trainer", MadeUp)

    def provenance(trainer):  # the real one looks for the commit, which takes its time, too
        known = {
            "execution": vars(trainer.execution),
            "device": "cpu",
            "build_seconds": trainer.build_seconds,
        }
        fields = lab.fields(trainer.recipe)
        name = lab.environment.device_name("cpu")
        return known | {
            "recipe": trainer.recipe.name,
            "recipe_fields": fields,
            "dataset": "synthetic",
            "device_name": name,
        }

    monkeypatch.setattr(lab.ledgers, "provenance", provenance)
    threads = torch.get_num_threads()
    yield clock
    torch.set_num_threads(threads)


def start(*arguments: str, seconds: float = 150.0) -> int:
    words = [
        "sweep",
        "--arms",
        "arms.json",
        "--budget",
        str(seconds),
        "--data",
        "synthetic",
        "--device",
        "cpu",
    ]
    return main([*words, "--threads", "1", "--ledger", "runs.jsonl", "--set", *TINY, *arguments])


def finished() -> list[tuple[int, int]]:
    return [(round(run["recipe_fields"]["epochs"]), run["seed"]) for run in ledger.runs("runs.jsonl")]


# -- what it finds -------------------------------------------------------------------------------------------


def test_the_fastest_arm_that_reaches_the_target_is_claimed_by_fresh_runs(clock, capsys):
    assert start("--json", "out.json") == 0
    out = capsys.readouterr().out
    found = json.loads(Path("out.json").read_text(), parse_constant=pytest.fail)
    assert (found["claimed"], found["target"], found["interrupted"]) == ("50 epochs", 0.94, False)
    assert f"\n{found['verdict']}\n" in out
    said = "50 epochs is the fastest arm that is shown to reach 94 %: the mean of "
    assert found["verdict"].startswith(said)
    by_name = {arm["name"]: arm for arm in found["arms"]}
    assert by_name["50 epochs"]["fresh"]["lower_bound"] >= 0.94 and by_name["50 epochs"]["fate"] == "shown"
    assert by_name["40 epochs"]["fate"] == "left in rung 1" and by_name["40 epochs"]["n"] == 10
    assert found["rungs"][0]["runs"] == 10 and found["rungs"][0]["kept"] == ["50 epochs"]
    seeds = [seed for _, seed in clock.runs if seed >= FRESH]
    assert seeds == [*range(FRESH, FRESH + len(seeds))] and len(seeds) == by_name["50 epochs"]["fresh"]["n"]
    assert 0 <= found["budget"] - found["seconds"] < 0.7


def test_arms_of_a_rung_take_turns_forwards_and_backwards(clock):
    assert start("--quiet") == 0
    first, *others = reversed(MEANS)
    assert clock.runs[0] == (first, 0)  # which tells what a run takes
    forwards = [(first, 1), *((epochs, 0) for epochs in others)]
    backwards = [*((epochs, 1) for epochs in reversed(others)), (first, 2)]
    assert clock.runs[1:9] == [*forwards, *backwards]


def test_a_forecast_of_steps_that_are_not_captured_leaves_no_arm_out(clock, monkeypatch):
    made = trainers.Trainer
    monkeypatch.setattr(made, "estimate_seconds", lambda self, eval_every: 100.0)
    assert start("--quiet") == 0
    assert {epochs for epochs, _ in clock.runs} == set(MEANS)


def test_progress_has_a_line_for_each_run_and_each_rung(capsys):
    assert start() == 0
    out = capsys.readouterr().out
    assert re.search(r"^50 epochs, seed 3: 94.\d\d% in 0.500 s; n 4, mean 94.\d\d\d%; \d+ s left$", out, re.M)
    assert "rung 1, 10 runs each:\n" in out and re.search(r"^    40 epochs: n 10, .*, leaves$", out, re.M)


def test_nothing_is_claimed_where_no_arm_reaches_the_target(capsys):
    assert start("--set", "epochs=1") == 2  # of the file's
    assert "of which --arms arms.json has values" in capsys.readouterr().err
    Path("arms.json").write_text(json.dumps(ARMS | {"arms": {"40 epochs": {"epochs": 40}}}))
    assert start("--json", "out.json") == 0
    found = json.loads(Path("out.json").read_text())
    assert found["claimed"] is None
    assert found["verdict"].startswith("No arm is shown to reach 94 %. Not shown of 40 epochs: the mean of ")


@pytest.mark.parametrize("seconds", [1, 5.2, 7, 12, 22, 45, 80])
def test_a_budget_is_kept_but_for_a_first_build_and_less_than_a_run(clock, capsys, seconds):
    assert start(seconds=seconds) == 0
    used = clock.now - cli.STARTED
    assert used <= max(seconds, BUILD) + 0.7
    if seconds < 5:
        assert "No arm has a run: 1 seconds were too few for one." in capsys.readouterr().out
    elif seconds < 45:
        assert "Not tried, for lack of time: " in capsys.readouterr().out


# -- what it goes on from ------------------------------------------------------------------------------------


class Killed(BaseException):
    """As nothing that a program catches."""


@pytest.mark.parametrize("after", [3, 25, 41, 60])
def test_a_killed_sweep_goes_on_and_makes_every_run_once(clock, after, capsys):
    assert start("--json", "whole.json", "--quiet") == 0
    whole = Counter(clock.runs)
    Path("runs.jsonl").unlink()
    clock.now, clock.runs = cli.STARTED, []

    def kill(recipe, seed):
        if len(clock.runs) == after:
            raise Killed

    clock.alarms = [kill]
    with pytest.raises(Killed):
        start("--quiet")
    with open("runs.jsonl", "ab") as file:
        file.write(b'{"recipe": "smo')  # a line that was cut short
    used = clock.now - cli.STARTED
    unknown = BUILD * (len(MEANS) - len({epochs for epochs, _ in clock.runs}))  # builds without a run
    clock.now, clock.alarms = cli.STARTED, []
    assert start("--json", "resumed.json") == 0
    out = capsys.readouterr().out
    assert f"{after} runs are in runs.jsonl already" in out
    known = int(re.search(r"budget: 150 s, (\d+) s of it used", out)[1])
    assert used - unknown - 1 < known <= used - min(unknown, BUILD) + 1
    assert max(Counter(clock.runs).values()) == 1 and sorted(clock.runs) == sorted(finished())
    # What it built again is time that it has not for runs.
    assert not Counter(clock.runs) - whole and len(whole) - len(clock.runs) <= 4 * BUILD / 0.4
    one, other = (json.loads(Path(name).read_text()) for name in ("whole.json", "resumed.json"))
    assert one["claimed"] == other["claimed"] and one["rungs"] == other["rungs"]


def test_a_sweep_that_has_ended_says_the_same_again_and_trains_nothing(clock, capsys):
    assert start("--json", "one.json", "--quiet") == 0
    count, clock.now = len(clock.runs), cli.STARTED
    assert start("--json", "two.json", "--quiet") == 0
    assert len(clock.runs) == count
    one, two = (json.loads(Path(name).read_text())["verdict"] for name in ("one.json", "two.json"))
    assert one == two


def test_an_interrupt_says_what_is_known(clock, capsys):
    def interrupt(recipe, seed):
        if len(clock.runs) == 50:
            raise KeyboardInterrupt

    clock.alarms = [interrupt]
    assert start("--json", "out.json") == 130
    found = json.loads(Path("out.json").read_text())
    assert found["interrupted"] and len(finished()) == 50
    assert found["verdict"].startswith(
        "Interrupted after 47 of 150 seconds. No arm is shown to reach 94 %. 50 epochs was being tested: the "
        "mean of 10 runs of fresh seeds is 94.241%, at least 94.152% with 95 % confidence, in "
    )
    assert found["verdict"].endswith("; 216 were planned.")
    assert found["verdict"] in capsys.readouterr().out


# -- arms that fail ------------------------------------------------------------------------------------------


def failing(error: Exception):
    def fail(recipe, seed):
        if recipe.epochs == 60 and seed == 4:
            raise error

    return fail


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (RuntimeError("an illegal\nmemory access"), "RuntimeError: an illegal memory access"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
            "out of memory: 20.00 GiB was",
        ),
        (ValueError(), "ValueError: ValueError"),
    ],
    ids=["raises", "memory", "says nothing"],
)
def test_an_arm_that_raises_is_recorded_and_dropped_with_its_reason_and_not_tried_again(
    clock, capsys, error, why
):
    clock.alarms = [failing(error)]
    assert start("--json", "out.json") == 0
    found = json.loads(Path("out.json").read_text())
    assert found["claimed"] == "50 epochs" and f"60 epochs was dropped: {why}" in found["verdict"]
    assert [run["seed"] for run in ledger.runs("runs.jsonl") if run["status"] == "failed"] == [4]
    clock.now, clock.alarms, clock.runs = cli.STARTED, [], []
    assert start(seconds=155) == 0
    assert f"60 epochs: dropped before: {why}" in capsys.readouterr().out
    assert 60 not in [epochs for epochs, _ in clock.runs]


def test_an_arm_that_cannot_be_built_is_dropped(clock, monkeypatch, capsys):
    made_up = trainers.Trainer

    def build(recipe, *arguments, **options):
        if recipe.epochs == 70:
            raise UserError("no such thing")
        return made_up(recipe, *arguments, **options)

    monkeypatch.setattr(trainers, "Trainer", build)
    assert start() == 0
    assert "70 epochs was dropped: no such thing." in capsys.readouterr().out


def test_an_arm_that_diverges_is_dropped(clock, monkeypatch, capsys):
    run = trainers.Trainer.run

    def diverging(self, seed, eval_every=1):
        return Run(seed, "failed") if (self.recipe.epochs, seed) == (50, 2) else run(self, seed)

    monkeypatch.setattr(trainers.Trainer, "run", diverging)
    assert start("--json", "out.json") == 0
    found = json.loads(Path("out.json").read_text())
    assert found["claimed"] == "60 epochs" and "50 epochs was dropped: seed 2 diverged." in found["verdict"]


def test_where_every_arm_fails_the_status_is_1(clock):
    def fail(recipe, seed):
        raise RuntimeError("no")

    clock.alarms = [fail]
    assert start("--quiet") == 1


def test_a_device_that_answers_no_more_ends_the_sweep_and_the_next_process_goes_on(
    clock, monkeypatch, capsys
):
    def lost():
        raise RuntimeError("CUDA error: an illegal memory access")

    monkeypatch.setattr(lab, "on_gpu", lambda device: True)
    monkeypatch.setattr(lab.torch.cuda, "synchronize", lost)
    clock.alarms = [failing(RuntimeError("an illegal memory access"))]
    assert start() == 0
    assert "The device answers no more (CUDA error: an illegal memory access)" in capsys.readouterr().out
    before = len(finished())
    clock.now, clock.alarms = cli.STARTED, []
    assert start() == 0
    out = capsys.readouterr().out
    assert "50 epochs is the fastest arm" in out and len(finished()) > before


# -- mistakes ------------------------------------------------------------------------------------------------

ONE = {"recipe": "smoke", "arms": {"a": {}}}


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--runs", "5"], "--runs: with --budget the time decides how many; leave --runs out"),
        (["--shard"], "--shard: a budget is spent by one process; leave --shard out"),
        (["--grid", "record94"], "--grid: the configurations are those of --arms arms.json; leave it out"),
        (["--recipe", "seed"], "--recipe: the configurations are those of --arms arms.json; leave it out"),
        (["--random", "2"], "--random: the configurations are those of --arms arms.json; leave it out"),
        (["--budget", "0"], "--budget: got '0', accepted is a number above 0"),
        (["--budget", "nan"], "--budget: got 'nan'"),
        (["--budget", "soon"], "--budget: got 'soon'"),
        (["--seed", "9223372036854775000"], "--seed"),
        (["--json", "runs.jsonl"], "names one file twice"),
        (["--arms", "none.json"], "--arms: cannot read 'none.json': No such file"),
        (["--arms", "."], "--arms: cannot read '.'"),
        (["--set", "lr=0.1,0.2"], "got lr=0.1,0.2, of which one value is accepted"),
        (["--set", "lrr=0.1"], "no field 'lrr'; did you mean lr"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistake_is_one_line_before_any_data_is_looked_for(monkeypatch, capsys, arguments, names):
    monkeypatch.setattr(shard.sets, "load", lambda data: pytest.fail("data was looked for"))
    assert start(*arguments) == 2
    out, err = capsys.readouterr()
    assert err.startswith("hlb: ") and err.count("\n") == 1 and names in err and out == ""


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ("{", "no JSON"),
        ("[" * 100000, "nested too deeply"),
        ([], 'accepted is {"recipe": "record94"'),
        ({"arms": {"a": {}}}, 'accepted is {"recipe": "record94"'),
        (ONE | {"recipe": 3}, 'accepted is {"recipe": "record94"'),
        (ONE | {"recipe": "sm0ke"}, "a: no recipe 'sm0ke'; did you mean smoke?"),
        (ONE | {"arm": {}}, "got 'arm', accepted are recipe, arms, about"),
        (ONE | {"arms": {}}, "arms: accepted is"),
        (ONE | {"arms": {"a": 3}}, "arms: accepted is"),
        (ONE | {"arms": {"a": {"lrr": 1}}}, "a: no field 'lrr'; did you mean lr?"),
        (ONE | {"arms": {"a": {"lr": "much"}}}, "a: lr: got 'much', accepted is a number"),
        (ONE | {"arms": {"a": {"sizes": [32, 7]}}}, "a: sizes: got 7"),
        (ONE | {"arms": {"a": {}, "b": {"lr": 0.24}}}, "a and b are the same; leave one of them out"),
        (ONE | {"arms": {"a\n": {}}}, "got the name 'a\\n'"),
        ('{"recipe": "smoke", "arms": {"a": {}, "a": {"lr": 1}}}', "'a' is there twice"),
        (ONE | {"arms": {"a": {}, "b": {"target": 0.9}}}, "are the same"),
        (
            ONE | {"arms": {"a": {"target": 0.9}, "b": {"target": 0.8, "lr": 0.1}}},
            "the arms have several targets",
        ),
    ],
    ids=str,
)
def test_mistake_in_a_file_of_arms_is_one_line_that_names_the_arm(monkeypatch, capsys, content, names):
    monkeypatch.setattr(shard.sets, "load", lambda data: pytest.fail("data was looked for"))
    Path("arms.json").write_text(content if isinstance(content, str) else json.dumps(content))
    words = ["sweep", "--arms", "arms.json", "--budget", "5", "--device", "cpu", "--data", "synthetic"]
    assert main(words) == 2
    err = capsys.readouterr().err
    assert err.startswith("hlb: ") and err.count("\n") == 1 and names in err


def test_a_recipe_that_aims_at_nothing_is_refused(capsys):
    Path("arms.json").write_text(json.dumps(ONE))
    assert main(["sweep", "--arms", "arms.json", "--budget", "5", "--device", "cpu"]) == 2
    assert "--budget: smoke aims at no accuracy; give one, as --set target=0.94" in capsys.readouterr().err


# -- files of arms -------------------------------------------------------------------------------------------


def test_arms_have_their_names_settings_and_what_is_set_for_all():
    Path("arms.json").write_text(
        json.dumps(ONE | {"arms": {"as it is": {}, "sizes": {"sizes": [16, 32], "lr": "0.1"}}})
    )
    one, other = arms.arms("arms.json", ["batch_size=100"], Execution("cpu"))
    assert (one.name, one.recipe.batch_size, one.values) == ("as it is", 100, {"sizes": (32,), "lr": 0.24})
    assert (other.name, other.recipe.sizes, other.recipe.lr) == ("sizes", (16, 32), 0.1)


def test_arms_of_a_file_can_have_a_fixed_number_of_runs_each(clock, capsys):
    words = ["sweep", "--arms", "arms.json", "--runs", "2", "--data", "synthetic", "--device", "cpu"]
    assert main([*words, "--threads", "1", "--set", *TINY]) == 0
    assert len(ledger.runs("results/sweep-smoke.jsonl")) == 2 * len(MEANS)
    assert len(re.findall(r"^\d0 epochs +2 +0 ", capsys.readouterr().out, re.M)) == len(MEANS)


def test_a_grid_of_settings_has_a_budget_as_well(clock):
    words = ["sweep", "--recipe", "smoke", "--budget", "60", "--data", "synthetic", "--device", "cpu"]
    assert main([*words, "--threads", "1", "--quiet", "--set", "epochs=50,60", *TINY]) == 0
    made = ledger.runs("results/sweep-smoke.jsonl")
    assert {run["arm"] for run in made} == {"epochs=50", "epochs=60"}
    assert SimpleNamespace(**made[0]).sweep == {"epochs": 50.0}
