"""Short last batches: which leave batch norm enough values, known before anything is built."""

import pytest

import hlb
from hlb import synthetic
from hlb.cli import main
from hlb.execution import resolve
from hlb.step import plan
from hlb.train import Trainer

TINY = {"base_depth": 4, "train_examples": 220, "batch_size": 50, "eval_batch_size": 40, "epochs": 2.0,
        "whiten_images": 50, "sizes": "20", "dtype": "float32"}  # fmt: skip
FOUR = {"groups": "short,short,short,short", "group_widths": "1,1,1,1", "sizes": "32", "drop_last": False}


@pytest.fixture(scope="module")
def data() -> hlb.Dataset:
    return hlb.Dataset("synthetic", synthetic.make(220, 100))


@pytest.mark.parametrize(
    "settings",
    [
        {**FOUR, "train_examples": 201},  # the last of each epoch
        {**FOUR, "batch_size": 1, "train_examples": 3, "drop_last": True},
        {"sizes": "9", "drop_last": False, "train_examples": 201},  # 8 -> 4 -> 2 -> 1
        {"sizes": "32,9", "drop_last": False, "train_examples": 201},  # in the second epoch
    ],
    ids=["four groups", "batches of one", "small images", "small images later"],
)
def test_batch_of_one_value_per_channel_is_known_before_anything_is_built(data, monkeypatch, settings):
    monkeypatch.setitem(Trainer.__init__.__globals__, "build", None)
    recipe = hlb.recipe("smoke", {**TINY, **settings})
    with pytest.raises(hlb.UserError, match="one value per channel") as raised:
        Trainer(*resolve(recipe, hlb.Execution()), data)
    assert "\n" not in str(raised.value)


def test_batch_of_one_value_per_channel_is_known_before_a_sweeps_first_run(
    data, monkeypatch, tmp_path, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(synthetic, "make", lambda *_: data.tensors)
    fields = {**TINY, **FOUR, "train_examples": "202,201"}  # of two configurations, one cannot be trained
    settings = ["--runs", "1", "--set", *(f"{field}={value}" for field, value in fields.items())]
    assert main(["sweep", "--recipe", "smoke", "--data", "synthetic", *settings]) == 2
    err = capsys.readouterr().err
    assert "one value per channel" in err and err.count("\n") == 1
    assert not list(tmp_path.rglob("*.jsonl"))


@pytest.mark.parametrize(
    "settings",
    [
        {**FOUR, "train_examples": 202},  # two images
        {**FOUR, "train_examples": 201, "drop_last": True},
        {"sizes": "32", "drop_last": False, "train_examples": 201},  # 3 x 3 values
        {**FOUR, "train_examples": 201, "epochs": 0.5},  # the last batch is never reached
    ],
    ids=["two images", "dropped", "larger map", "not reached"],
)
def test_short_last_batch_with_values_enough_is_accepted(settings):
    recipe = hlb.recipe("smoke", {**TINY, **settings})
    assert min(variant.count for variant in plan(recipe, 220)) in (1, 2, 50)
