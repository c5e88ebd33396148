"""`hlb.train` as Python calls it: NumPy's numbers, torch's defaults, values of another kind."""

import contextlib
import json

import numpy as np
import pytest
import torch

import hlb
from hlb import synthetic
from hlb.execution import device_of
from hlb.runs import ledger

TINY = {"base_depth": 4, "train_examples": 120, "batch_size": 40, "eval_batch_size": 60, "epochs": 1.0,
        "whiten_images": 50, "dtype": "float32", "groups": "short", "group_widths": "1"}  # fmt: skip


@pytest.fixture(scope="module")
def dataset() -> hlb.Dataset:
    return hlb.Dataset("synthetic", synthetic.make(120, 60))


def train(dataset, settings=TINY, **options) -> hlb.Result:
    return hlb.train("smoke", settings=settings, data=dataset, quiet=True, **{"ledger": None} | options)


def losses(result: hlb.Result) -> list[float]:
    return [row["train_loss"] for run in result.runs for row in run.epochs]


@pytest.fixture(scope="module")
def expected(dataset) -> list[float]:
    return losses(train(dataset))


@contextlib.contextmanager
def float64():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def elsewhere():
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


@pytest.mark.parametrize(
    "defaults", [float64, elsewhere, lambda: torch.device("meta"), torch.no_grad, torch.inference_mode]
)
def test_what_a_caller_set_for_torch_changes_no_bit_and_is_as_it_was_afterwards(
    dataset, expected, defaults, tmp_path
):
    with defaults():
        before = torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled()
        result = train(dataset, save=tmp_path / "model.pt")
        images = dataset.tensors[2]
        logits = hlb.load(tmp_path / "model.pt").predict(images, logits=True)
        assert (torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled()) == before
    assert losses(result) == expected
    assert torch.equal(logits, result.classifier.predict(images, logits=True))


def test_numbers_of_numpy_and_torch_are_those_of_python_also_in_the_ledger(dataset, expected, tmp_path):
    settings = TINY | {"base_depth": np.int64(4), "batch_size": np.int32(40), "epochs": np.float32(1),
                       "drop_last": np.bool_(True), "eval_batch_size": torch.tensor(60),
                       "group_widths": np.array([1])}  # fmt: skip
    counts = {"runs": np.int64(1), "seed": np.int32(0), "eval_every": np.uint8(1)}
    execution = hlb.Execution(device=torch.device("cpu"))
    path = tmp_path / "ledger.jsonl"
    assert losses(train(dataset, settings, **counts, execution=execution, ledger=path)) == expected
    record = json.loads(path.read_text())
    assert (record["recipe_fields"]["base_depth"], record["seed"], record["device"]) == (4, 0, "cpu")


def test_a_recipe_that_was_made_of_numpys_numbers_reaches_the_ledger(dataset, expected, tmp_path):
    tiny = vars(hlb.recipe("smoke", TINY))
    recipe = hlb.Recipe(**tiny | {"base_depth": np.int64(4), "group_widths": [1]})
    path = tmp_path / "ledger.jsonl"
    result = hlb.train(recipe, data=dataset, ledger=path, quiet=True)
    assert losses(result) == expected and len(ledger.load(path)) == 1


@pytest.mark.parametrize("option", ["runs", "seed", "eval_every"])
@pytest.mark.parametrize("value", ["2", 2.0, None, True, [1], -1, np.float64(1)])
def test_a_count_that_is_none_is_refused_by_name(option, value):
    with pytest.raises(hlb.UserError, match=f"--{option.replace('_', '-')}: got .*a whole number"):
        hlb.train("smoke", data="nowhere", **{option: value})


@pytest.mark.parametrize("settings", [None, 3, [3], {"epochs": None}, {"epochs": np.array([1, 2])}])
def test_settings_that_are_none_are_refused(settings):
    with pytest.raises(hlb.UserError, match="settings|--set|epochs"):
        hlb.train("smoke", data="nowhere", settings=settings)


def test_a_device_of_torch_is_one_by_its_name():
    assert device_of(hlb.Execution(device=torch.device("cpu"))) == "cpu"
