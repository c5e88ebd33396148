"""What is printed and written: on narrow terminals, in any encoding, on a full disk, into a closed pipe."""

import contextlib
import copy
import errno
import io
import json
import os
import re
import stat
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest
import torch
from rich.console import Console

import hlb
from bench import __main__ as bench
from bench.check import check
from bench.report import cli as report
from hlb import errors, synthetic
from hlb.cli import main
from hlb.runs import display, experiment, ledger
from hlb.study import compare, sweep
from hlb.train import Run, Trainer
from kernels.base import chips, launch

SETTINGS = ("base_depth=4", "train_examples=200", "batch_size=100", "epochs=1", "whiten_images=50")
TINY = ("train", "--recipe", "smoke", "--data", "synthetic", "--device", "cpu", "--set", *SETTINGS)
FULL = Path("/dev/full")
full_disk = pytest.mark.skipif(not FULL.exists(), reason="no /dev/full")


@pytest.fixture(scope="module")
def small():
    """A small synthetic set."""
    return synthetic.make(200, 60)


class Still(Trainer):
    """A trainer that trains nothing: accuracies follow from the seed."""

    def run(self, seed: int, eval_every: int = 1, callback=None) -> Run:
        run = Run(seed, accuracy=0.1 + seed / 100, views="flip", train_seconds=2.0, eval_seconds=0.5, steps=2)
        run.epochs.append({**ROW, "average_val_acc": None, "val_seconds": None})
        if callback:
            callback.epoch(run, run.epochs[0])
        return run


ROW = {"epoch": 1, "train_loss": 1.2345, "val_loss": 1.1111, "train_acc": 0.5432, "val_acc": 0.5678}
ROW |= {"average_val_acc": 0.6789, "train_seconds": 123.45}


@pytest.fixture(scope="module")
def still(small):
    dataset, console = hlb.Dataset("synthetic", small), Console(quiet=True)
    return Still(*experiment.begin("smoke", [*SETTINGS], dataset, hlb.Execution("cpu"), console))


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch, small, still):
    """Runs a test in a folder of its own, on the small set; nothing is trained."""

    def built(recipe, execution, dataset):
        other = copy.copy(still)
        other.recipe = recipe
        return other

    for module in (experiment, sweep):
        monkeypatch.setattr(module, "Trainer", built)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HLB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(synthetic, "make", lambda *_: small)
    monkeypatch.setattr(bench.signal, "signal", lambda *_: None)
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)


def result(runs: int = 3, **changed) -> experiment.Result:
    """Of made-up runs."""
    made = [
        Run(i, accuracy=0.9411 + i / 1e4, train_seconds=12.345 + i, eval_seconds=1.25, wall_seconds=14 + i)
        for i in range(runs)
    ]
    recipe, execution = hlb.recipe("seed", ["dtype=float16"]), hlb.Execution("cpu")
    known = {"recipe": recipe, "execution": execution, "dataset": "cifar10", "runs": made, "classifier": None}
    known |= {"device_name": "a CPU", "memory": {"host": 2**30}, "wall_seconds": 60.0}
    return experiment.Result(**{**known, **changed})


def terminal(width: int) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, height=50, color_system=None)


def shown(console: Console) -> str:
    """What a terminal was sent, without its control sequences."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue()).replace("\r", "\n")


# -- narrow terminals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [20, 30, 40, 60, 80, 120])
def test_the_closing_table_has_whole_numbers_in_any_terminal(width):
    console = terminal(width)
    display.summarise(console, result(), 3)
    table = re.search(r"\n *mean.*?\n(accuracy.*?)\n\n", shown(console), re.DOTALL)
    assert "0.9412" in table[1] and "13.35" in table[1] and "…" not in shown(console)
    assert max(map(len, table[0].split("\n"))) <= width
    assert (" .. 0.9414" in table[1]) == (width >= 40) and ("0.9413 " in table[1]) == (width >= 60)


def fake(averaging: str = "ema") -> SimpleNamespace:
    """A built trainer, as far as a display looks at it."""
    return SimpleNamespace(
        recipe=hlb.recipe("seed", [f"averaging={averaging}"]),
        execution=hlb.Execution("cpu"),
        dataset=SimpleNamespace(name="cifar10"),
        steps=20,
        starts=[0, 10, 20],
        build_seconds=1.0,
        estimate_seconds=lambda eval_every: 100.0,
    )


@pytest.mark.parametrize("width", [20, 30, 45, 60, 80])
def test_the_live_table_has_whole_numbers_in_any_terminal(width):
    console = terminal(width)
    with display.Display(console) as watcher:
        watcher.started(fake(), 1, 1)
        watcher.epoch(Run(0), ROW)
    table = shown(console)[shown(console).rindex("val_acc") - 5 :]
    assert "0.5678" in table and "…" not in table
    assert ("123.45" in table) == (width >= 30) and ("0.6789" in table) == (width >= 60)
    lines = shown(console).split("\n")
    assert max(len(line) for line in lines if re.fullmatch(r"[\s\d.]+", line)) <= width


def test_at_80_columns_the_live_table_of_an_averaging_recipe_has_all_columns():
    console = terminal(80)
    with display.Display(console) as watcher:
        watcher.started(fake("ema"), 1, 1)
        watcher.epoch(Run(0), ROW)
    heading = next(line for line in shown(console).split("\n") if "train_loss" in line)
    assert heading.split() == list(display.EPOCH_COLUMNS)


def test_recipes_have_whole_numbers_in_a_narrow_terminal(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "50")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    assert main(["recipes"]) == 0
    out = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert "6,568,136" in out and "970" in out and max(len(line.rstrip()) for line in out.split("\n")) <= 50


def test_an_expendable_column_goes_only_where_there_is_no_room():
    assert display.fitting([5, 5, 5], [1, 0], 19) == [0, 1, 2]
    assert display.fitting([5, 5, 5], [1, 0], 18) == [0, 2]
    assert display.fitting([5, 5, 5], [1, 0, 2], 1) == [2]  # one is left


# -- progress ------------------------------------------------------------------------------------------------


def test_after_the_last_step_it_says_evaluating_and_not_100_percent():
    console = terminal(100)
    with display.Display(console) as watcher:
        watcher.started(fake(), 1, 1)
        run = Run(0)
        watcher.step(run, 10)
        assert "validating ..." in shown(console)
        run.epochs.append(ROW)
        watcher.step(run, 20)
        assert "evaluating ..." in shown(console) and "100%" not in shown(console)
        watcher.finished(run)


def test_something_is_printed_before_the_data_are_loaded_and_the_network_is_built(monkeypatch, capsys):
    def load(what):
        raise hlb.UserError("no data")

    monkeypatch.setattr(experiment, "load", load)
    assert main([*TINY]) == 2
    assert capsys.readouterr() == ("building ...\n", "hlb: no data\n")


def test_a_run_is_forecast_from_several_steps(small):
    seconds = iter([5.0, 3.0, 0.2, 9.0])  # a first step, one that happens to be slow, one as they are

    class Timed(Trainer):
        def timed_step(self, *_):
            return next(seconds)

    recipe, execution, dataset = experiment.begin(
        "smoke",
        [*SETTINGS[:2], "batch_size=2", "epochs=2", SETTINGS[-1]],
        hlb.Dataset("synthetic", small),
        hlb.Execution("cpu"),
        Console(quiet=True),
    )
    trainer = Timed(recipe, execution, dataset)
    assert trainer.step_seconds == 0.2 and trainer.steps == 200


def test_at_the_end_it_says_what_was_written_where(capsys):
    assert main([*TINY, "--ledger", "mine.jsonl", "--save", "model.pt", "--json", "out.json"]) == 0
    assert capsys.readouterr().out.split("\n")[-4:] == [
        "ledger: mine.jsonl",
        "model: model.pt",
        "JSON: out.json",
        "",
    ]


def test_no_interval_of_seconds_goes_below_0(capsys):
    wide = result(runs=2)
    for i, run in enumerate(wide.runs):
        run.train_seconds = 0.1 + 3 * i
    assert wide.train_seconds["ci95"][0] == 0 < wide.train_seconds["ci95"][1]
    assert wide.json()["train_seconds"]["ci95"][0] == 0
    display.summarise(Console(width=100), wide, 2)
    assert re.search(r"^train s .* 0\.000 \.\. \d", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.skipif(not launch.INTERPRETED, reason="kernels are compiled here")
def test_the_interpreter_says_what_a_step_takes_before_it_begins(capsys):
    small = [*(setting.replace("=100", "=10") for setting in TINY), "sizes=16"]
    assert main([*small, "--kernels", "triton"]) == 0
    first, second, *_ = capsys.readouterr().out.split("\n")
    assert first.startswith("TRITON_INTERPRET=1: a step of 10 images of 16x16") and " takes about " in first
    assert second == "building ..."
    assert main([*TINY, "--kernels", "reference"]) == 0
    assert "TRITON_INTERPRET" not in capsys.readouterr().out


def test_no_interval_of_a_comparison_or_a_report_goes_below_0():
    runs = [
        {"status": "ok", "accuracy": 0.01 + 0.5 * i, "train_seconds": 0.1 + 3 * i, "eval_seconds": 0.0}
        for i in range(2)
    ]
    sample = compare.Sample("a", runs).json()
    assert sample["seconds"]["ci95"][0] == sample["accuracy"]["ci95"][0] == 0
    group = SimpleNamespace(accuracies=[0.1, 0.9], seconds=[0.1, 3.0], system="a", execution="")
    group.hardware, group.dataset, group.untimed, group.record = "x", "x", "", SimpleNamespace(n=2, failed=0)
    assert "-" not in report._statistics(group)[-1]


# -- encodings -----------------------------------------------------------------------------------------------

PRINTED = (  # of all that a command prints, also what ASCII lacks
    ["recipes"],
    ["recipes", "smoke", "--kernels", "triton"],
    ["env"],
    ["audit", *TINY[1:]],
    ["compare", "µ.jsonl:seed=0", "µ.jsonl:seed=1"],
    ["sweep", *TINY[1:], "lr=0.1,0.2", "--ledger", "→.jsonl"],
    ["eval", "µ.pt"],
)


@contextlib.contextmanager
def output(stream):
    """Standard output is the stream."""
    before, sys.stdout = sys.stdout, stream
    try:
        yield stream
    finally:
        sys.stdout = before


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_every_command_prints_in_any_encoding(encoding):
    def printed(arguments: list[str]) -> str:
        with output(io.TextIOWrapper(io.BytesIO(), encoding=encoding)) as stream:
            assert main(arguments) == 0, arguments
            stream.flush()
            return stream.buffer.getvalue().decode(encoding)

    said = printed([*TINY, "--runs", "2", "--ledger", "µ.jsonl", "--save", "µ.pt", "--json", "→.json"])
    assert "JSON: ->.json" in said and f"model: {'u' if encoding == 'ascii' else 'µ'}.pt" in said
    for arguments in PRINTED if encoding == "ascii" else PRINTED[:1]:
        assert printed(arguments), arguments
    assert {"µ.jsonl", "µ.pt", "→.json"} <= set(os.listdir())


def test_what_an_encoding_lacks_is_written_plainly_by_every_program():
    with output(io.TextIOWrapper(io.BytesIO(), encoding="ascii")) as stream:
        assert errors.exit_status("bench pace", lambda: print("µs 1 → 2 … ±") or 0) == 0
        stream.flush()
    assert stream.buffer.getvalue().decode().strip() == "us 1 -> 2 ... ?"


def test_a_file_name_that_is_no_unicode_is_printed_as_far_as_can_be():
    name = os.fsdecode(b"\xff.json")
    with output(io.TextIOWrapper(io.BytesIO(), encoding="utf-8")) as stream:
        assert main([*TINY, "--json", name]) == 0
        stream.flush()
    assert b"JSON: ?.json" in stream.buffer.getvalue() and Path(name).exists()


@pytest.mark.parametrize("name", [":smile:.json", "[bold]x.json", "[red]:+1:.json"])
def test_a_path_is_printed_as_it_is(capsys, name):
    assert main([*TINY, "--json", name]) == 0
    assert f"JSON: {name}\n" in capsys.readouterr().out


def test_a_cell_of_a_table_is_printed_as_it_is(capsys):
    display.print_table(Console(), ["a", "b"], [["[b]x[/b]", ":smile:"]], words={0})
    assert "[b]x[/b]  :smile:" in capsys.readouterr().out


# -- full disks ----------------------------------------------------------------------------------------------


@full_disk
@pytest.mark.parametrize("option", ["--ledger", "--save", "--json"])
def test_a_full_disk_costs_a_line_and_no_statistics(option, capsys):
    assert main([*TINY, "--runs", "2", option, str(FULL)]) == 2
    out, err = capsys.readouterr()
    assert err.count("\n") == 1 and str(FULL) in err and "No space left on device" in err
    assert re.search(r"^accuracy +0\.\d{4}", out, re.MULTILINE) and "wall clock of the process" in out
    assert (f"{option[2:]}: {FULL}" in out.lower()) is False


@full_disk
def test_a_full_disk_under_a_profile_costs_a_line_and_not_the_table_which_is_printed_in_ascii(
    capsys, monkeypatch
):
    monkeypatch.setattr(hlb.cli.profiling, "STEPS", 1)
    monkeypatch.setattr(hlb.cli.profiling, "_chip", lambda *_: chips.AIMED_AT)
    with output(io.TextIOWrapper(io.BytesIO(), encoding="ascii")) as stream:
        assert main([*TINY, "--profile", str(FULL)]) == 2
        out = stream.buffer.getvalue().decode("ascii")
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "No space left on device" in err
    assert "a step" in out and " us a launch" in out and "every call" not in out


@full_disk
@pytest.mark.parametrize("arguments", [["recipes"], ["env"], ["recipes", "--json"], [*TINY]])
def test_a_full_standard_output_is_a_line_and_the_rest_on_standard_error(arguments, capsys):
    with output(open(FULL, "w")):  # noqa: SIM115
        assert main(arguments) == 2
    out, err = capsys.readouterr()
    said = "hlb: standard output: No space left on device; the rest goes here\n"
    assert out == "" and err.startswith(said) and err.count(said) == 1
    if "train" in arguments:
        assert re.search(r"^accuracy +0\.\d{4}", err, re.MULTILINE)


def test_a_disk_that_fills_under_any_command_is_a_line(capsys, monkeypatch):
    def no_room(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "out/report.html")

    assert errors.exit_status("bench report", no_room) == 2
    said = "bench report: cannot write out/report.html: No space left on device; make room for it\n"
    assert capsys.readouterr().err == said


def test_a_fault_of_the_program_is_no_full_disk():
    def fault():
        raise FileNotFoundError(errno.ENOENT, "No such file", "x")

    with pytest.raises(FileNotFoundError):
        errors.exit_status("hlb", fault)


# -- closed pipes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        (main, [*TINY]),
        (main, ["recipes"]),
        (main, ["recipes", "--json"]),
        (main, ["env"]),
        (main, ["--help"]),
        (bench.main, ["--help"]),
        (bench.main, ["tune", "--dry-run", "r3.conv2", "forward"]),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else value.__module__,
)
def test_a_reader_that_has_left_ends_every_command_with_141(call, arguments, capsys):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream, output(stream):
        assert call(arguments) == 141
    assert capsys.readouterr().err == ""


# -- files ---------------------------------------------------------------------------------------------------


def test_json_and_model_follow_a_link_and_keep_the_mode_of_what_was_there(place):
    (place / "kept").mkdir()
    for name in ("out.json", "model.pt"):
        (place / "kept" / name).write_text("older")
        (place / "kept" / name).chmod(0o600)
        (place / name).symlink_to(Path("kept") / name)
    assert main([*TINY, "--quiet", "--json", "out.json", "--save", "model.pt"]) == 0
    for name in ("out.json", "model.pt"):
        assert (place / name).is_symlink() and not (place / "kept" / name).is_symlink()
        assert stat.S_IMODE((place / "kept" / name).stat().st_mode) == 0o600
    assert json.loads((place / "kept" / "out.json").read_text())["recipe"] == "smoke"
    assert hlb.load_checkpoint(place / "kept" / "model.pt")[1].name == "smoke"
    assert sorted(os.listdir("kept")) == ["model.pt", "out.json"]


@pytest.mark.parametrize("write", [lambda path: ledger.write(path, {}), lambda path: check.write(path, "{}")])
def test_a_link_to_a_device_stays_one_under_every_record(place, write):
    link = place / ("x" * 250)
    link.symlink_to(os.devnull)
    write(link)
    assert link.is_symlink() and os.listdir() == [link.name]


def test_a_link_to_a_file_that_is_not_there_yet_makes_it(place):
    (place / "link.json").symlink_to("real.json")
    ledger.write("link.json", {"a": 1})
    assert (place / "link.json").is_symlink() and (place / "real.json").read_text()


def test_a_new_file_has_the_mode_that_the_umask_leaves(place):
    before = os.umask(0o027)
    try:
        ledger.write("new.json", {"a": 1})
    finally:
        os.umask(before)
    assert stat.S_IMODE((place / "new.json").stat().st_mode) == 0o640


@pytest.mark.parametrize("name", ["x" * 250, "é" * 127])
def test_a_file_name_as_long_as_a_folder_takes_is_written(name, capsys):
    assert main(["env", "--json", name]) == 0
    assert json.loads(Path(name).read_text())["python"] and os.listdir() == [name]


# -- from Python ---------------------------------------------------------------------------------------------

WRONG = (  # arguments of hlb.train, and what the error names
    ({"runs": "2"}, "--runs: got '2'"),
    ({"runs": 2.0}, "--runs: got 2.0"),
    ({"runs": None}, "--runs: got None"),
    ({"seed": "1"}, "--seed: got '1'"),
    ({"eval_every": 0.5}, "--eval-every: got 0.5"),
    ({"recipe": 94}, "no recipe 94"),
    ({"recipe": ["seed"]}, "no recipe"),
    ({"settings": 3}, "settings: got 3"),
    ({"settings": None}, "settings: got None"),
    ({"settings": [("lr", 1)]}, "accepted is field=value"),
    ({"settings": {"lr": "much"}}, "lr: got 'much'"),
    ({"settings": {"batch_size": 10**400}}, "batch_size"),
    ({"settings": {"sizes": 32}}, "sizes: got 32"),
    ({"settings": {"groups": None}}, "groups: got None"),
    ({"settings": {3: 4}}, "no field 3"),
    ({"execution": "cuda"}, "execution: got 'cuda'"),
    ({"data": 5}, "data: got int"),
    ({"ledger": 5}, "--ledger: cannot write 5"),
    ({"save": "a\0b"}, "--save: cannot write"),
)


@pytest.mark.parametrize(("arguments", "named"), WRONG, ids=lambda value: str(value)[:40])
def test_a_wrong_argument_in_python_is_one_line(arguments, named, small):
    known = {"recipe": "smoke", "data": hlb.Dataset("synthetic", small), "ledger": None, "quiet": True}
    with pytest.raises(hlb.UserError) as error:
        hlb.train(**{**known, **arguments})
    assert named in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: hlb.Recipe("mine", batch_size="many"), "batch_size: got 'many'"),
        (lambda: hlb.Recipe("mine", sizes=None), "sizes: got None"),
        (lambda: hlb.Execution(threads="two"), "threads: got 'two'"),
        (lambda: hlb.Execution(compile=True), "compile: got True"),
    ],
)
def test_a_field_of_another_type_is_one_line(make, named):
    with pytest.raises(hlb.UserError, match=named):
        make()


def test_numbers_of_numpy_and_torch_are_numbers(small):
    settings = {"batch_size": numpy.int64(100), "lr": numpy.float32(0.25), "sizes": numpy.array([24, 32])}
    settings |= {"drop_last": numpy.bool_(False), "epochs": torch.tensor(2)}
    changed = hlb.recipe("smoke", settings)
    assert (changed.batch_size, changed.lr, changed.sizes) == (100, 0.25, (24, 32))
    assert changed.drop_last is False and changed.epochs == 2.0
    json.dumps(hlb.settings.fields(changed))
    assert hlb.Recipe("mine", batch_size=numpy.int64(7)) == hlb.Recipe("mine", batch_size="7")
    assert hlb.recipe("smoke", "lr=0.25").lr == 0.25
