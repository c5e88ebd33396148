"""`Dataset`: what is converted, what is refused and by which name, and that any number of classes trains."""

import numpy as np
import pytest
import torch
from helpers import assert_agrees, channels_last

import hlb
import kernels
from hlb import Dataset, UserError, synthetic
from hlb.cost import profiling
from hlb.data.dataset import CLASSES, MEAN, STD, statistics
from hlb.execution import resolve
from hlb.step import plan
from hlb.train import Trainer
from kernels.base import chips

IMAGES, LABELS, TESTS, TRUTH = MADE = synthetic.make(120, 60)
TINY = {"base_depth": 4, "batch_size": 40, "epochs": 1, "whiten_images": 40}


def _with(**parts) -> tuple:
    """The made set, with parts of it replaced."""
    names = ("images", "labels", "tests", "truth")
    return tuple(parts.get(name, tensor) for name, tensor in zip(names, MADE, strict=True))


def test_good_tensors_are_taken_as_they_are():
    dataset = Dataset("mine", MADE)
    assert all(ours is theirs for ours, theirs in zip(dataset.tensors, MADE, strict=True))
    assert (dataset.mean, dataset.std) == (MEAN, STD)


CONVERTED = {
    "NumPy arrays": [tensor.numpy() for tensor in MADE],
    "int32 labels": _with(labels=LABELS.int(), truth=TRUTH.int()),
    "byte labels": _with(labels=LABELS.byte(), truth=TRUTH.to(torch.uint16)),
    "NumPy labels of a foreign byte order": _with(labels=LABELS.numpy().astype(">i4")),
    "a reversed view": _with(tests=TESTS.flip(0).numpy()[::-1], labels=LABELS.numpy()),
    "a view of planar images": _with(images=IMAGES.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)),
}


@pytest.mark.parametrize("tensors", CONVERTED.values(), ids=CONVERTED)
def test_what_means_the_same_is_converted(tensors):
    dataset = Dataset("mine", tensors)
    for ours, theirs in zip(dataset.tensors, MADE, strict=True):
        assert ours.dtype == theirs.dtype and ours.is_contiguous() and torch.equal(ours, theirs)


def test_read_only_arrays_are_copied():
    images = IMAGES.numpy().copy()
    images.flags.writeable = False
    (ours, *_) = Dataset("mine", _with(images=images)).tensors
    ours[0] = 0
    assert images[0].any()


ONE_HOT = torch.nn.functional.one_hot(LABELS)
REFUSED = {
    "floats": (_with(images=IMAGES / 255), "training images: got float32"),
    "floats of the test": (_with(tests=TESTS.double()), "test images: got float64"),
    "signed bytes": (_with(images=IMAGES.view(torch.int8)), "training images: got int8"),
    "grey": (_with(images=IMAGES[..., 0]), "training images: got shape [120, 32, 32]"),
    "grey with a channel": (_with(tests=TESTS[..., :1]), "test images: got shape [60, 32, 32, 1]"),
    "planar": (_with(images=IMAGES.permute(0, 3, 1, 2)), "give images.permute(0, 2, 3, 1)"),
    "another extent": (_with(tests=TESTS[:, :28, :28]), "test images: got shape [60, 28, 28, 3]"),
    "no test image": (_with(tests=TESTS[:0], truth=TRUTH[:0]), "test images: got none"),
    "no training image": (_with(images=IMAGES[:0], labels=LABELS[:0]), "training images: got none"),
    "more labels": (_with(labels=LABELS.repeat(2)), "training labels: got shape [240], accepted is [120]"),
    "fewer labels": (_with(truth=TRUTH[:50]), "test labels: got shape [50], accepted is [60]"),
    "a column": (_with(labels=LABELS[:, None]), "training labels: got shape [120, 1]"),
    "one-hot": (_with(labels=ONE_HOT), "labels.argmax(1)"),
    "float labels": (_with(labels=LABELS.float()), "training labels: got float32"),
    "truth values": (_with(labels=LABELS > 4), "training labels: got bool"),
    "a negative label": (_with(labels=LABELS - 1), "training labels: got -1"),
    "counted from 1": (_with(labels=LABELS + 1, truth=TRUTH + 1), "training labels: none of them is 0"),
    "a gap": (_with(labels=LABELS * 2), "training labels: none of them is 1, the largest is 18"),
    "one class": (_with(labels=LABELS * 0), "training labels: all are 0"),
    "a test label beyond": (_with(truth=TRUTH + 5), "test labels: got 14, accepted is 0 to 9"),
    "2**32": (_with(truth=TRUTH + 2**32), "test labels: got 4294967305"),
    "lists": (_with(images=[[0]]), "training images: got list"),
    "objects": (_with(images=np.array([None])), "training images: got a NumPy array of object"),
    "two tensors": (MADE[:2], "accepted are four"),
    "no tuple": (IMAGES, "accepted are four"),
}


@pytest.mark.parametrize(("tensors", "says"), REFUSED.values(), ids=REFUSED)
def test_anything_else_is_refused_by_name_in_one_line(tensors, says):
    with pytest.raises(UserError) as raised:
        Dataset("mine", tensors)
    text = str(raised.value)
    assert says in text and "'mine'" in text and "\n" not in text and len(text) < 250


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("std", (0.25, 0.0, 0.25), "std: got (0.25, 0.0, 0.25)"),
        ("std", (0.25, float("nan"), 0.25), "std: got"),
        ("std", (63.0, 62.0, 66.7), "std: got"),
        ("mean", (125.3, 123.0, 113.9), "pixels count 0 to 1"),
        ("mean", (0.5, 0.5), "a number a channel"),
        ("mean", 0.5, "mean: got 0.5"),
        ("mean", ("a", "b", "c"), "mean: got"),
        ("classes", ("cat", "dog"), "training labels: got 9, accepted is 0 to 1"),
        ("classes", "cat", "classes: got 'cat'"),
        ("classes", ("cat",), "two or more"),
        ("classes", ("cat",) * 10, "occurs twice"),
        ("classes", range(10), "classes: got range(0, 10)"),
        ("name", 5, "name 5"),
    ],
)
def test_wrong_statistics_and_classes_are_refused(field, value, says):
    with pytest.raises(UserError) as raised:
        Dataset(**{"name": "mine", "tensors": MADE, field: value})
    assert says in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor], ids=["list", "array", "tensor"])
def test_statistics_of_any_kind_of_sequence_are_a_tuple_of_numbers(kind):
    dataset = Dataset("mine", MADE, mean=kind([0.25, 0.5, 0.75]), std=kind([0.25, 0.5, 0.25]))
    assert (dataset.mean, dataset.std) == ((0.25, 0.5, 0.75), (0.25, 0.5, 0.25))
    assert {type(value) for value in (*dataset.mean, *dataset.std)} == {float}


def test_classes_without_names_are_called_by_their_numbers():
    assert Dataset("mine", MADE).classes == tuple("0123456789")
    assert Dataset("mine", _with(labels=LABELS % 3, truth=TRUTH % 3)).classes == ("0", "1", "2")
    few = Dataset("mine", _with(labels=LABELS % 3), classes=list(CLASSES))  # named, so they need not occur
    assert few.classes == CLASSES


def test_statistics_are_those_of_the_pixels():
    values = IMAGES.double() / 255
    mean, std = statistics(IMAGES)
    assert mean == pytest.approx(values.mean((0, 1, 2)).tolist(), abs=1e-12)
    assert std == pytest.approx(values.std((0, 1, 2), correction=0).tolist(), abs=1e-12)


# -- any number of classes -----------------------------------------------------------------------------------


def _of_classes(count: int) -> Dataset:
    images = IMAGES.repeat(2, 1, 1, 1)
    labels = torch.arange(len(images)) % count
    return Dataset(f"{count} classes", (images, labels, TESTS, labels[: len(TESTS)]))


@pytest.mark.parametrize("count", [2, 100])
def test_a_network_has_an_output_for_each_class(count):
    result = hlb.train("smoke", settings=TINY, data=_of_classes(count), ledger=None, quiet=True)
    assert result.network.head.weight.shape[0] == count
    loss = result.runs[0].epochs[0]["train_loss"]
    assert abs(loss - np.log(count)) < 0.2  # of an untrained network


def test_labels_of_the_warm_up_are_of_the_classes_that_there_are(monkeypatch):
    made_up, seen = Trainer._made_up, []

    def noted(trainer: Trainer, count: int) -> tuple:
        seen.append(made_up(trainer, count))
        return seen[-1]

    monkeypatch.setattr(Trainer, "_made_up", noted)
    Trainer(*resolve(hlb.recipe("smoke", TINY), hlb.Execution()), _of_classes(3))
    assert seen and all(labels.unique().tolist() == [0, 1, 2] for _, labels in seen)


def test_costs_of_a_profiled_step_are_those_of_its_classes():
    recipe, chip = hlb.recipe("smoke", {"dtype": "float32"}), chips.AIMED_AT
    variant = plan(recipe, 500)[0]
    ten, hundred = (
        profiling.floors(recipe, "reference", variant, "none", chip, 500, classes) for classes in (10, 100)
    )
    differ = {part for part in ten if ten[part] != hundred[part]}
    assert {"head", "cross_entropy"} <= differ and all(hundred[part] > ten[part] for part in differ)
    assert "group1.conv1" not in differ


def test_kernels_of_head_and_loss_hold_for_100_classes():
    head, loss = kernels.CATALOGUE["pool_head"], kernels.CATALOGUE["cross_entropy"]
    inputs = {"x": channels_last(5, 24, 3, 3, dtype=torch.float32), "weight": torch.randn(100, 24)}

    def with_op(op):
        return lambda x, weight: op(x, weight, 0.1)

    assert_agrees(with_op(head.op), with_op(head.reference), inputs, torch.float32)
    logits, targets = torch.randn(5, 100), torch.tensor([0, 99, 41, 7, 64])
    for op in (loss.op, loss.reference):
        (summed, right), expected = op(logits, targets, 0.2), loss.reference(logits.double(), targets, 0.2)
        assert abs(float(summed) - float(expected[0])) < 1e-4 and int(right) == int(expected[1])
    labels = {"logits": logits}
    assert_agrees(
        lambda logits: loss.op(logits, targets, 0.2)[0],
        lambda logits: loss.reference(logits, targets, 0.2)[0],
        labels,
        torch.float32,
    )


def test_default_dtype_of_torch_changes_no_number():
    def losses() -> list[float]:
        data = Dataset("synthetic", synthetic.make(40, 20))
        result = hlb.train("record94", settings=settings, data=data, ledger=None, quiet=True)
        return [result.runs[0].epochs[-1][key] for key in ("train_loss", "val_loss")]

    settings = TINY | {"batch_size": 20, "sizes": "16,20", "hard_from": 1, "epochs": 2}
    narrow = losses()
    torch.set_default_dtype(torch.float64)
    try:
        assert losses() == narrow
    finally:
        torch.set_default_dtype(torch.float32)
