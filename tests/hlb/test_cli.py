"""The command line and its Python twin: what they refuse, what they print, what they write."""

import dataclasses
import json
import os
import pickle
import re
import socket
import statistics as stdlib_statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import hlb
from hlb import synthetic
from hlb.cli import main
from hlb.data import FOLDER
from hlb.runs import experiment, ledger, statistics
from hlb.train import Callback, Trainer

ROOT = Path(hlb.__file__).parents[1]
SETTINGS = ("base_depth=4", "train_examples=500", "batch_size=250", "epochs=1", "whiten_images=100")
TINY = ("--recipe", "smoke", "--data", "synthetic", "--set", *SETTINGS)
DIVERGING = ("weight_decay=1000", "epochs=8")  # weights grow a thousandfold with every step
SUMMARY = ("mean", "std", "min", "max", "ci95")


def tiny(*settings: str) -> list[str]:
    """TINY with these settings in place of its own."""
    fields = {setting.partition("=")[0] for setting in settings}
    return [word for word in TINY if word.partition("=")[0] not in fields] + [*settings]


@pytest.fixture(scope="module")
def small():
    """A small synthetic set."""
    return synthetic.make(600, 100)


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch, small):
    """Runs a test in a folder of its own, with an empty cache, the small set and no way to download."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HLB_CACHE", str(tmp_path / "cache"))
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HLB_CIFAR10_URL", f"http://127.0.0.1:{s.getsockname()[1]}/")  # closed by then
    monkeypatch.setattr(synthetic, "make", lambda *_: small)
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, small):
    """A finished run: the checkpoint it saved, and its result."""
    path = tmp_path_factory.mktemp("trained") / "model.pt"
    result = hlb.train(
        "smoke",
        settings=list(SETTINGS),
        data=hlb.Dataset("synthetic", small),
        ledger=None,
        save=path,
        quiet=True,
    )
    return path, result


@pytest.fixture
def files(place, trained):
    """Files and folders that are not what an option wants."""
    (place / "folder").mkdir()
    (place / "text.txt").write_text("a text")
    (place / "pickle.pt").write_bytes(pickle.dumps({"format": "hlb-checkpoint-1"}))
    torch.save({"weights": {"conv": torch.zeros(3)}}, place / "other.pt")
    torch.save([torch.zeros(3)], place / "list.pt")
    content = trained[0].read_bytes()
    (place / "torn.pt").write_bytes(content[: len(content) // 2])
    (place / "flipped.pt").write_bytes(content.replace(b"base_depth", b"base_debth"))
    (place / "corrupt" / FOLDER).mkdir(parents=True)
    (place / "corrupt" / FOLDER / "data_batch_1").write_bytes(b"no batch")
    (place / "model.pt").write_bytes(content)


# -- mistakes ------------------------------------------------------------------------------------------------

HUGE = "99999999999999999999"
MISTAKES = [  # arguments, what the one line names
    # the command line itself
    (["--nonsense"], "--nonsense"),
    (["--runs"], "--runs"),
    (["trian"], "trian"),
    (["train", "extra"], "extra"),
    (["eval"], "model"),
    (["recipes", "--set", "epochs=1"], "--set"),
    (["env", "--runs", "2"], "--runs"),
    # recipes and their fields
    (["--recipe", "rekord94"], "did you mean record94"),
    (["--recipe", ""], "recipe"),
    (["recipes", "NONSENSE"], "NONSENSE"),
    (["recipes", "seed", "--kernels", "nonsense"], "--kernels: got 'nonsense', accepted are"),
    (["recipes", "--kernels", "triton"], "hlb recipes NAME --kernels"),
    (["--set", "batchsize=5"], "did you mean batch_size"),
    (["--set", "xyzzy=5"], "xyzzy"),
    (["--set", "name=mine"], "name"),
    (["--set", "batch_size"], "field=value"),
    (["--set", "batch_size=many"], "batch_size"),
    (["--set", "batch_size=2.5"], "batch_size"),
    (["--set", "batch_size=0"], "batch_size"),
    (["--set", "lr=nan"], "lr"),
    (["--set", "lr=-1"], "lr"),
    (["--set", "drop_last=perhaps"], "drop_last"),
    (["--set", "pad=32"], "pad"),
    (["--set", "bn_eps=0"], "bn_eps"),
    (["--set", "optimizer=adam"], "muon"),
    (["--set", "flip=sideways"], "alternating"),
    (["--set", "group_widths=1,x,4"], "group_widths"),
    (["--set", "group_widths=1,4"], "group_widths"),
    (["--set", "groups=pair,pair,quartet"], "quartet"),
    (["--set", "averaging=ema"], "averaging_epochs"),
    (["--set", "batch_size=600"], "batch_size"),  # more than the 500 images, and the remainder is dropped
    # counts
    *(
        ([flag, value], flag)
        for flag in ("--runs", "--seed", "--eval-every", "--threads")
        for value in ("-1", "1.5", "many", "", HUGE)
    ),
    (["--runs", "0"], "--runs"),
    (["--seed", str(2**63 - 1), "--runs", "2"], "--seed"),
    *((["--epochs", value], "epochs") for value in ("0", "-1", "many", "", "nan", HUGE)),
    # execution
    (["--device", "nonsense"], "nonsense"),
    pytest.param(
        ["--device", "cuda"],
        "cuda",
        marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one"),
    ),
    (["--device", "cuda:99"], "cuda:99"),
    (["--dtype", "nonsense"], "nonsense"),
    (["--device", "cpu", "--dtype", "tf32"], "tf32"),
    (["--set", "dtype=nonsense"], "dtype"),
    (["--kernels", "nonsense"], "--kernels"),
    (["--compile", "nonsense"], "--compile"),
    (["--channels-last", "nonsense"], "--channels-last"),
    # memory
    (["--set", "drop_last=false", f"batch_size={HUGE}"], "batch_size"),
    (["--set", f"eval_batch_size={HUGE}"], "eval_batch_size"),
    # data
    (["--data", "nowhere"], "nowhere"),
    (["--data", ""], "--data"),
    (["--data", "~nobody-of-that-name/data"], "nobody-of-that-name"),
    (["--data", "x" * 300], "x" * 300),
    (["--data", "text.txt"], "text.txt"),
    (["--data", "folder"], "folder"),
    (["--data", "corrupt"], "data_batch_1"),
    (["--data", "cifar10"], "refused"),
    # outputs
    *(
        ([flag, value], flag)
        for flag in ("--json", "--ledger", "--save")
        for value in ("folder", "text.txt/below", "")
    ),
    # checkpoints
    (["eval", "nowhere.pt"], "nowhere.pt"),
    (["eval", "x" * 300], "x" * 300),
    *(
        (["eval", name], name)
        for name in ("folder", "text.txt", "pickle.pt", "other.pt", "list.pt", "torn.pt", "flipped.pt")
    ),
    (["eval", "model.pt", "--views", "nonsense"], "views"),
    (["eval", "model.pt", "--views", ""], "views"),
    (["eval", "model.pt", "--dtype", "nonsense"], "nonsense"),
    (["eval", "model.pt", "--device", "nonsense"], "nonsense"),
    (["eval", "model.pt", "--data", "nowhere"], "nowhere"),
    (["eval", "model.pt", "--json", "folder"], "--json"),
]


def _complete(arguments: list[str]) -> list[str]:
    """The arguments of a training made complete by the tiny settings, so that they hold one mistake."""
    if not arguments[0].startswith("-"):
        return arguments
    fields = {word.partition("=")[0] for word in arguments}  # each is set once
    fields |= {"epochs"} if "--epochs" in arguments else set()
    settings = [f"--set={setting}" for setting in SETTINGS if setting.partition("=")[0] not in fields]
    recipe = [] if "--recipe" in arguments else ["--recipe", "smoke"]
    data = [] if "--data" in arguments else ["--data", "synthetic"]
    return ["train", *recipe, *data, *settings, *arguments]


def _assert_one_line_that_names(names: str, err: str) -> None:
    assert err.startswith("hlb: ") and err.endswith("\n") and err.count("\n") == 1, err
    assert "Traceback" not in err and "Error:" not in err
    assert names in err


@pytest.mark.parametrize(
    ("arguments", "names"),
    MISTAKES,
    ids=lambda value: value[:20] if isinstance(value, str) else " ".join(value)[:40],
)
def test_mistake_is_one_line_that_names_it_and_exit_status_2(files, capsys, arguments, names):
    status = main(_complete(arguments))
    _, err = capsys.readouterr()
    assert status == 2
    _assert_one_line_that_names(names, err)


@pytest.mark.parametrize(
    ("arguments", "names"),
    [(["--recipe", "rekord94"], "did you mean record94"), (["eval", "pickle.pt"], "pickle.pt")],
)
def test_mistake_is_one_line_of_a_real_process(files, place, arguments, names):
    done = subprocess.run(
        [sys.executable, "-m", "hlb", *arguments],
        capture_output=True,
        text=True,
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert (done.returncode, done.stdout) == (2, "")
    _assert_one_line_that_names(names, done.stderr)


def test_network_too_large_for_memory_is_one_line_with_what_was_needed_and_what_lowers_it(capsys):
    if not Path("/proc/self/statm").exists():
        pytest.skip("only Linux tells and limits a process's memory so")
    import resource

    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size + 2**32, hard))  # so that no machine tries
    try:
        status = main(tiny("base_depth=4096", "group_widths=64,64,64"))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    err = capsys.readouterr().err
    assert status == 2 and re.search(r"out of memory: \d", err)
    _assert_one_line_that_names("batch_size", err)


def test_gpu_out_of_memory_is_one_line_with_what_was_needed_and_what_lowers_it(monkeypatch, capsys):
    def trainer(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has\nless")

    monkeypatch.setattr(experiment, "Trainer", trainer)
    assert main([*TINY]) == 2
    err = capsys.readouterr().err
    assert "20.00 GiB" in err
    _assert_one_line_that_names("batch_size", err)


@pytest.mark.parametrize("flags", [("--json", "--ledger"), ("--json", "--save"), ("--ledger", "--save")])
def test_two_outputs_into_one_file_are_refused(capsys, flags):
    assert main([*TINY, flags[0], "one.file", flags[1], "./one.file"]) == 2
    _assert_one_line_that_names("one.file", capsys.readouterr().err)


def test_file_that_is_not_ours_is_left_as_it_was(files, place):
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    for arguments in (["eval", "other.pt"], ["eval", "torn.pt"], _complete(["--data", "corrupt"])):
        main(arguments)
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before


# -- what is shown -------------------------------------------------------------------------------------------


def test_table_and_statistics_are_printed_when_no_terminal_is_there(capsys):
    assert main([*TINY, "--runs", "2"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0] == "building ..." and "will take about" in out.splitlines()[1]
    assert len(re.findall(r"^ +[12] +[01] +0\.\d{4}", out, re.MULTILINE)) == 2  # a row a run, each once
    (row,) = re.findall(r"^ *accuracy .*", out, re.MULTILINE)
    accuracies = [record["accuracy"] for record in ledger.load(ledger.DEFAULT)]
    for value in (sum(accuracies) / 2, min(accuracies), max(accuracies)):
        assert f"{value:.4f}" in row
    assert "…" not in out  # nothing is cut off at 80 columns
    assert "no record claim" in out and "\x1b" not in out


def test_quiet_prints_nothing(capfd):
    assert main([*TINY, "--quiet"]) == 0
    assert capfd.readouterr() == ("", "")


def test_without_cifar10_auto_trains_smoke_on_the_synthetic_set_under_a_banner(capsys):
    assert main(["train", "--set", *SETTINGS]) == 0
    out = capsys.readouterr().out
    assert "SYNTHETIC DATA" in out
    (record,) = ledger.load(ledger.DEFAULT)
    assert (record["dataset"], record["recipe"]) == ("synthetic", "smoke")


def test_recipes_json_has_the_seed_systems_numbers(capsys):
    assert main(["recipes", "--json"]) == 0
    reports = json.loads(capsys.readouterr().out)
    assert set(reports) == set(hlb.RECIPES)
    seed = reports["seed"]
    assert seed["parameters"] == {"trainable": 6_568_136, "frozen": 2352}
    assert seed["gflop_per_image"] == {
        "forward": pytest.approx(0.538, rel=0.01),
        "train": pytest.approx(1.612, rel=0.01),
    }
    assert seed["tflop_per_run"] == pytest.approx(1.612e-3 * 512 * 970, rel=0.01)
    assert seed["steps"] == len(seed["lr_multiplier"]) == 970
    multipliers = [seed["lr_multiplier"][step] for step in (0, 193, 484, 775)]
    assert multipliers == pytest.approx([0, 1, 0.5675, 0.135], abs=1e-3)


def test_recipes_shows_every_recipe_and_a_named_ones_fields(capsys):
    assert main(["recipes"]) == 0
    out = capsys.readouterr().out
    assert all(re.search(rf"^ *{name} ", out, re.MULTILINE) for name in hlb.RECIPES) and "…" not in out
    assert "6,568,136" in out
    assert main(["recipes", "seed"]) == 0
    out = capsys.readouterr().out
    assert all(f"{field.name}=" in out for field in dataclasses.fields(hlb.Recipe) if field.name != "name")


def test_env_names_versions_and_devices(capsys):
    assert main(["env"]) == 0
    out = capsys.readouterr().out
    assert torch.__version__ in out and re.search(r"devices +.*cpu", out)


# -- what is written -----------------------------------------------------------------------------------------


def _strict(text: str) -> object:
    """`text` as JSON, which has no NaN."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_json_on_standard_output_is_alone_there_and_has_the_promised_keys(capsys):
    assert main([*TINY, "--runs", "2", "--seed", "5", "--json", "-"]) == 0
    result = _strict(capsys.readouterr().out)
    assert {type(result[key]) for key in ("recipe", "dataset", "device", "views")} == {str}
    assert (result["recipe"], result["dataset"]) == ("smoke", "synthetic")
    for run, seed in zip(result["runs"], (5, 6), strict=True):
        assert (run["seed"], run["status"], len(run["epochs"])) == (seed, "ok", 1)
        assert {type(run[key]) for key in ("accuracy", "train_seconds", "eval_seconds")} == {float}
        epoch = run["epochs"][0]
        assert {type(epoch[key]) for key in ("train_loss", "val_loss", "train_acc", "val_acc")} == {float}
    for statistic in (result["accuracy"], result["train_seconds"]):
        assert {type(statistic[key]) for key in SUMMARY[:4]} == {float}
        assert statistic["ci95"][0] <= statistic["mean"] <= statistic["ci95"][1]
    assert result["wall_seconds"] > sum(run["train_seconds"] + run["eval_seconds"] for run in result["runs"])


def test_json_file_says_what_standard_output_says(place, capsys):
    assert main([*TINY, "--json", "out.json"]) == 0
    from_file, shown = _strict((place / "out.json").read_text()), capsys.readouterr().out
    assert f"{from_file['accuracy']['mean']:.4f}" in shown


def test_every_finished_run_is_a_ledger_line_with_the_promised_keys():
    assert main([*TINY, "--runs", "2", "--quiet", "--ledger", "mine.jsonl"]) == 0
    records = ledger.load("mine.jsonl")
    assert [record["seed"] for record in records] == [0, 1]
    for record in records:
        assert {
            "recipe",
            "recipe_fields",
            "execution",
            "dataset",
            "status",
            "seed",
            "accuracy",
            "views",
            "train_seconds",
            "eval_seconds",
            "wall_seconds",
            "epochs",
            "versions",
            "device",
            "commit",
            "dirty",
            "time",
        } <= set(record)
        assert {"python", "torch", "triton", "cuda", "driver"} <= {key.lower() for key in record["versions"]}
        assert set(record["recipe_fields"]) == {field.name for field in dataclasses.fields(hlb.Recipe)}
        resolved = {**record["recipe_fields"], **record["execution"]}
        assert "auto" not in [resolved[key] for key in ("dtype", "master_weights", "device", "compile")]
        assert resolved["threads"] > 0 and resolved["base_depth"] == 4


def test_clocks_of_training_and_evaluation_fit_in_the_wall_clock():
    assert main([*TINY, "--quiet"]) == 0
    (record,) = ledger.load(ledger.DEFAULT)
    assert record["train_seconds"] > 0 and record["eval_seconds"] > 0
    assert record["train_seconds"] + record["eval_seconds"] < record["wall_seconds"]


@pytest.mark.parametrize("flag", ["--json", "--ledger", "--save"])
def test_output_may_go_to_a_device(place, flag):
    (place / "null").symlink_to(os.devnull)
    assert main([*TINY, "--quiet", flag, "null"]) == 0
    assert (place / "null").is_symlink()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_saved_model_evaluates_to_the_accuracy_of_its_run(capsys, dtype):
    assert main([*TINY, "--dtype", dtype, "--save", "model.pt", "--quiet"]) == 0
    (record,) = ledger.load(ledger.DEFAULT)
    assert main(["eval", "model.pt", "--json", "-"]) == 0
    result = _strict(capsys.readouterr().out)
    assert (result["accuracy"], result["views"]) == (record["accuracy"], record["views"])
    assert result["dtype"] == dtype


def test_saved_model_is_evaluated_under_its_views_for_the_images_that_they_were_for(capsys):
    assert main([*TINY, "views=flip", "views_fraction=0.5", "--save", "model.pt"]) == 0
    assert "test-time views: flip for the least sure 50 %" in capsys.readouterr().out
    losses = {}
    for views in (None, "none", "flip"):
        options = [] if views is None else ["--views", views]
        assert main(["eval", "model.pt", "--json", "-", *options]) == 0
        result = json.loads(capsys.readouterr().out)
        losses[result["views"], result["views_fraction"]] = result["loss"]
    assert losses.keys() == {("flip", 0.5), ("none", 1.0), ("flip", 1.0)}
    assert len(set(losses.values())) == 3


def test_saved_model_of_an_averaging_recipe_is_the_averaged_one(capsys):
    ema = ("averaging=ema", "averaging_epochs=1", "averaging_every=1", "averaging_decay=0.99", "views=none")
    assert main([*tiny(*ema, "epochs=2"), "--save", "model.pt", "--quiet"]) == 0
    (record,) = ledger.load(ledger.DEFAULT)
    assert main(["eval", "model.pt", "--json", "-"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["accuracy"] == record["accuracy"] == record["epochs"][-1]["average_val_acc"]
    assert result["loss"] != record["epochs"][-1]["val_loss"]  # which is the network's own


# -- runs that diverge ---------------------------------------------------------------------------------------


def test_diverging_runs_are_recorded_as_failed_and_all_failing_is_exit_status_1(capsys):
    assert main([*tiny(*DIVERGING), "--runs", "2", "--json", "-"]) == 1
    result = _strict(capsys.readouterr().out)
    assert [(run["status"], run["accuracy"]) for run in result["runs"]] == [("failed", None)] * 2
    assert result["accuracy"] == {**dict.fromkeys(SUMMARY), "n": 0}
    assert [record["status"] for record in ledger.load(ledger.DEFAULT)] == ["failed"] * 2


class Poison(Callback):
    """Puts NaN into whatever training changes in a network, after a step."""

    def __init__(self, network, after):
        self.network, self.after = network, after

    def step(self, run, step):
        trained = (p for p in self.network.parameters() if p.requires_grad)
        for tensor in (*trained, *self.network.buffers()):
            if step == self.after:
                tensor.data.fill_(float("nan"))


@pytest.mark.parametrize("after", [1, 2], ids=["in training", "in the final evaluation"])
def test_run_that_diverges_is_counted_and_leaves_the_others_as_they_were(monkeypatch, capsys, after):
    class Poisoned(Trainer):
        def run(self, seed, eval_every=1, callback=None):
            return super().run(seed, eval_every, Poison(self.network, after) if seed == 1 else callback)

    assert main([*TINY, "--runs", "3", "--quiet", "--ledger", "clean.jsonl"]) == 0
    monkeypatch.setattr(experiment, "Trainer", Poisoned)
    assert main([*TINY, "--runs", "3", "--ledger", "poisoned.jsonl"]) == 0
    clean, poisoned = ledger.load("clean.jsonl"), ledger.load("poisoned.jsonl")
    assert [record["status"] for record in poisoned] == ["ok", "failed", "ok"]
    assert [record["accuracy"] for record in poisoned] == [clean[0]["accuracy"], None, clean[2]["accuracy"]]
    assert "1 of 3 runs failed" in capsys.readouterr().out


# -- from Python ---------------------------------------------------------------------------------------------


def test_train_returns_network_runs_and_statistics(trained, small):
    _, result = trained
    (run,) = result.runs
    assert result.accuracy["mean"] == run.accuracy and result.accuracy["n"] == 1
    with torch.no_grad():
        images = torch.zeros(2, 3, 32, 32, dtype=getattr(torch, result.recipe.dtype))
        logits = result.network.eval()(images)[0]
    assert logits.shape == (2, 10)
    assert result.recipe.base_depth == 4 and result.execution.device in ("cpu", "cuda", "mps")


def test_train_takes_settings_as_a_dict_and_writes_no_ledger_for_none(place, small):
    settings = {"base_depth": 4, "batch_size": 250, "train_examples": 500, "epochs": 0.5}
    result = hlb.train(
        "smoke", settings=settings, data=hlb.Dataset("mine", small), ledger=None, quiet=True, eval_every=0
    )
    assert (result.dataset, result.runs[0].steps) == ("mine", 1)
    assert list(place.iterdir()) == []


def test_mistakes_from_python_are_user_errors(small):
    with pytest.raises(hlb.UserError, match="did you mean smoke"):
        hlb.train("smoek", data=hlb.Dataset("synthetic", small), ledger=None)


# -- statistics ----------------------------------------------------------------------------------------------


def test_summary_of_known_numbers():
    values = [0.940, 0.941, 0.939, 0.942, 0.938]
    half = 2.776445 * stdlib_statistics.stdev(values) / 5**0.5  # Student's t, 97.5 %, 4 degrees of freedom
    assert statistics.summary(values) == {
        "mean": pytest.approx(0.94),
        "std": pytest.approx(stdlib_statistics.stdev(values)),
        "min": 0.938,
        "max": 0.942,
        "ci95": pytest.approx([0.94 - half, 0.94 + half]),
        "n": 5,
    }


@pytest.mark.parametrize(
    ("values", "expected"),
    [([], dict.fromkeys(SUMMARY)), ([0.5], {"mean": 0.5, "std": None, "min": 0.5, "max": 0.5, "ci95": None})],
)
def test_summary_of_too_few_numbers_has_no_spread(values, expected):
    assert statistics.summary(values) == {**expected, "n": len(values)}


def test_lower_bound_is_students_one_sided_95_percent():
    values = [0.94 + 0.001 * (-1) ** i for i in range(100)]
    deviation = stdlib_statistics.stdev(values)
    assert statistics.lower_bound(values) == pytest.approx(0.94 - 1.660391 * deviation / 10)  # t, 99 degrees


def _accuracies(bound: float, n: int = 100) -> list[float]:
    """`n` accuracies with a standard deviation of 0.13 points whose lower bound is `bound`."""
    values = [0.0013 * (-1) ** i for i in range(n)]
    return [value + bound - statistics.lower_bound(values) for value in values]


@pytest.mark.parametrize(
    ("target", "margin", "claimed"),
    [(0.94, 1e-6, True), (0.94, -1e-6, False), (0.95, 1e-6, True), (0.95, -1e-6, False), (0.96, 1e-6, True)],
)
def test_record_claim_turns_at_a_lower_bound_of_the_target(target, margin, claimed):
    assert statistics.record_claim(_accuracies(target + margin), 0, "cifar10", target)[0] is claimed


@pytest.mark.parametrize(
    ("accuracies", "failed", "dataset", "target", "says"),
    [
        (_accuracies(0.95, 99), 0, "cifar10", 0.94, "99 of the 100 runs"),
        (_accuracies(0.95, 100), 1, "cifar10", 0.94, "1 of 101 runs failed"),
        (_accuracies(0.95, 100), 0, "synthetic", 0.94, "synthetic"),
        (_accuracies(0.95, 100), 0, "cifar10", 0.0, "aims at none"),
        ([], 3, "cifar10", 0.94, "3 of 3 runs failed"),
    ],
    ids=["few", "failed", "synthetic", "smoke", "all failed"],
)
def test_record_claim_needs_100_good_runs_on_cifar10_and_a_target(accuracies, failed, dataset, target, says):
    claimed, why = statistics.record_claim(accuracies, failed, dataset, target)
    assert not claimed and why.startswith("no record claim") and says in why
