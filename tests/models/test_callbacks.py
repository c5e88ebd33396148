"""Callbacks: when they are called, in which order, what they may not be; TensorBoard."""

import sys
from types import SimpleNamespace

import pytest

import hlb
from hlb import synthetic

TINY = {"base_depth": 4, "train_examples": 120, "batch_size": 40, "eval_batch_size": 60, "epochs": 2.0,
        "whiten_images": 50, "dtype": "float32", "groups": "short", "group_widths": "1"}  # fmt: skip


@pytest.fixture(scope="module")
def dataset() -> hlb.Dataset:
    return hlb.Dataset("synthetic", synthetic.make(120, 60))


def train(dataset, callbacks, **options) -> hlb.Result:
    options = {"ledger": None, "quiet": True} | options
    return hlb.train("smoke", settings=TINY, data=dataset, callbacks=callbacks, **options)


class Noting(hlb.Callback):
    """Notes every call, with its name in front."""

    def __init__(self, name: str, notes: list):
        self.name, self.notes = name, notes

    def note(self, *what) -> None:
        self.notes.append((self.name, *what))

    def __enter__(self) -> hlb.Callback:
        self.note("enter")
        return self

    def __exit__(self, *_) -> None:
        self.note("exit")

    def started(self, trainer, runs, eval_every) -> None:
        self.note("started", trainer.steps, runs, eval_every)

    def step(self, run, step) -> None:
        self.note("step", run.seed, step)

    def epoch(self, run, row) -> None:
        self.note("epoch", run.seed, row["epoch"])

    def finished(self, run) -> None:
        self.note("finished", run.seed, run.accuracy is not None)


def test_several_callbacks_are_called_in_order_and_left_in_reverse(dataset, capsys):
    notes = []
    train(dataset, [Noting("a", notes), Noting("b", notes)], runs=2, seed=5, eval_every=0, quiet=False)
    of_a, of_b = ([note[1:] for note in notes if note[0] == name] for name in "ab")
    steps = [[("step", seed, step) for step in range(1, 7)] for seed in (5, 6)]
    runs = [[*steps[i][:3], ("epoch", seed, 1), *steps[i][3:], ("epoch", seed, 2), ("finished", seed, True)]
            for i, seed in enumerate((5, 6))]  # fmt: skip
    assert of_a == of_b == [("enter",), ("started", 6, 2, 0), *runs[0], *runs[1], ("exit",)]
    assert [name for name, *what in notes if what[0] != "exit"][:4] == ["a", "b", "a", "b"]
    assert [name for name, *what in notes if what == ["exit"]] == ["b", "a"]
    assert "accuracy" in capsys.readouterr().out  # the table is still shown


def test_a_callback_that_fails_ends_training_and_all_are_left(dataset):
    class Failing(hlb.Callback):
        def epoch(self, run, row):
            raise ZeroDivisionError

    notes = []
    with pytest.raises(ZeroDivisionError):
        train(dataset, [Noting("a", notes), Failing()])
    assert notes[-1] == ("a", "exit")


def test_where_a_callback_cannot_begin_those_before_it_are_left(dataset):
    class Refusing(hlb.Callback):
        def __enter__(self):
            raise ZeroDivisionError

    notes = []
    with pytest.raises(ZeroDivisionError):
        train(dataset, [Noting("a", notes), Refusing()])
    assert notes == [("a", "enter"), ("a", "exit")]


def test_callbacks_change_no_bit_of_training(dataset):
    quiet, watched = train(dataset, []), train(dataset, [Noting("a", [])])
    assert [row["train_loss"] for row in watched.runs[0].epochs] == [
        row["train_loss"] for row in quiet.runs[0].epochs
    ]


@pytest.mark.parametrize(
    "wrong", [hlb.Callback(), hlb.Callback, [hlb.Callback], [print], [None], None, "all"]
)
def test_what_is_no_callback_is_refused_before_anything_is_built(wrong):
    with pytest.raises(hlb.UserError, match="callbacks: got .*hlb.Callback"):
        hlb.train("smoke", data="nowhere", callbacks=wrong)


class Writer:
    """Of TensorBoard, as far as it is used."""

    made: list["Writer"] = []

    def __init__(self, folder: str):
        self.folder, self.scalars, self.open = folder, [], True
        self.made.append(self)

    def add_scalar(self, *scalar) -> None:
        assert self.open
        self.scalars.append(scalar)

    def close(self) -> None:
        self.open = False


def test_tensorboard_has_a_folder_for_each_run_with_its_epochs_and_its_end(dataset, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Writer))
    monkeypatch.setattr(Writer, "made", [])
    result = train(dataset, [hlb.TensorBoard(tmp_path / "tb")], runs=2)
    assert [writer.folder for writer in Writer.made] == [str(tmp_path / "tb" / f"seed-{i}") for i in (0, 1)]
    for writer, run in zip(Writer.made, result.runs, strict=True):
        assert not writer.open
        for row in run.epochs:
            assert ("train_loss", row["train_loss"], row["epoch"]) in writer.scalars
            assert ("val_acc", row["val_acc"], row["epoch"]) in writer.scalars
        assert ("final/accuracy", run.accuracy, 2) in writer.scalars
        assert not any(value is None for _, value, _ in writer.scalars)


def test_without_tensorboard_the_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(hlb.UserError, match="pip install tensorboard"):
        hlb.TensorBoard()
