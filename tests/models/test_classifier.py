"""A trained model from its file: what it predicts, what it refuses, what older files lack."""

import json

import numpy as np
import pytest
import torch
from helpers import draw
from torch.export import Dim

import hlb
import kernels
from hlb import cli, synthetic
from hlb.data.dataset import CLASSES, MEAN, STD
from hlb.networks import Network

TINY = {"base_depth": 4, "train_examples": 120, "batch_size": 40, "eval_batch_size": 60, "epochs": 2.0,
        "whiten_images": 50, "dtype": "float32", "groups": "short", "group_widths": "1"}  # fmt: skip
# Nothing like CIFAR-10's: with those the network sees other images.
COLOURS = {"mean": (0.1, 0.2, 0.7), "std": (0.9, 0.5, 0.1)}


@pytest.fixture(scope="module")
def dataset() -> hlb.Dataset:
    return hlb.Dataset("synthetic", synthetic.make(120, 60), **COLOURS, classes=synthetic.CLASSES)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, dataset):
    """A run's checkpoint and its result."""
    path = tmp_path_factory.mktemp("trained") / "model.pt"
    return path, hlb.train("smoke", settings=TINY, data=dataset, save=path, ledger=None, quiet=True)


@pytest.fixture
def older(trained, tmp_path):
    """A function that writes a checkpoint as it was before it had statistics, of a set of that name."""

    def write(name: str):
        content = torch.load(trained[0], weights_only=True) | {"dataset": name}
        path = tmp_path / "older.pt"
        torch.save({key: content[key] for key in content if key not in ("mean", "std", "classes")}, path)
        return path

    return write


def test_predictions_have_the_accuracy_of_the_run_they_come_from(trained, dataset):
    path, result = trained
    model, (images, labels) = hlb.load(path), dataset.tensors[2:]
    classes = model.predict(images)
    assert classes.dtype == torch.int64 and classes.shape == labels.shape
    assert float((classes == labels).double().mean()) == result.accuracy["mean"]
    assert model.classes == synthetic.CLASSES and (model.mean, model.std) == tuple(COLOURS.values())
    logits = model.predict(images, logits=True)
    assert logits.shape == (60, 10) and logits.dtype == torch.float32
    assert torch.equal(logits.argmax(1), classes)


def test_what_training_returns_predicts_as_its_file_does(trained, dataset):
    path, result = trained
    images = dataset.tensors[2]
    logits = hlb.load(path).predict(images, logits=True)
    assert torch.equal(result.classifier.predict(images, logits=True), logits)
    assert result.network is result.classifier.network and not result.network.training


def test_images_may_be_numpys_or_none_at_all_and_do_not_depend_on_each_other(trained, dataset):
    model, images = hlb.load(trained[0]), dataset.tensors[2]
    logits = model.predict(images, logits=True)
    assert torch.equal(model.predict(images.numpy(), logits=True), logits)
    mirrored = images.numpy()[:, :, ::-1]  # negative strides
    torch.testing.assert_close(
        model.predict(mirrored, logits=True), logits
    )  # its views are both mirror images
    one_by_one = torch.cat([model.predict(image[None], logits=True) for image in images[:5]])
    torch.testing.assert_close(one_by_one, logits[:5])
    assert model.predict(images[:0]).shape == (0,)


@pytest.mark.parametrize("images, names", [
    (torch.zeros(2, 32, 32, 3), "got float32 [2, 32, 32, 3]"),
    (torch.zeros(2, 3, 32, 32, dtype=torch.uint8), "got uint8 [2, 3, 32, 32]"),
    (torch.zeros(32, 32, 3, dtype=torch.uint8), "got uint8 [32, 32, 3]"),
    (np.zeros((2, 28, 28, 3), np.uint8), "got uint8 [2, 28, 28, 3]"),
    (np.zeros((2, 32, 32, 3), np.int64), "got int64"),
    ([np.zeros((32, 32, 3), np.uint8), np.zeros((8, 8, 3), np.uint8)], "got list"),
    (["cat.png"], "got list"), (None, "got NoneType"),
])  # fmt: skip
def test_images_that_are_none_are_refused_by_what_they_are(trained, images, names):
    with pytest.raises(hlb.UserError) as refused:
        hlb.load(trained[0]).predict(images)
    assert names in str(refused.value) and "uint8 [n, 32, 32, 3]" in str(refused.value)


def untrained() -> hlb.Classifier:
    """Of a network with a projected stem, squeeze-and-excite and residuals."""
    small = {"base_depth": 4, "groups": "se_residual", "group_widths": "2", "views": "flip+shift"}
    network = Network(hlb.recipe("seed", small | {"dtype": "float32"}), kernels.backend())
    network.reset(draw)
    return hlb.Classifier(network, *COLOURS.values(), synthetic.CLASSES)


@pytest.mark.parametrize("kind", ["trained", "untrained"])
def test_the_model_can_be_exported_for_batches_of_any_size(trained, dataset, kind):
    model = hlb.load(trained[0]) if kind == "trained" else untrained()
    images = dataset.tensors[2]
    exported = torch.export.export(model, (images[:4],), dynamic_shapes=({0: Dim("n")},))
    torch.testing.assert_close(exported.module()(images), model.predict(images, logits=True))


def test_evaluation_normalises_as_training_did(trained, dataset, monkeypatch, capsys):
    path, result = trained
    others = hlb.Dataset(
        "synthetic", dataset.tensors, classes=synthetic.CLASSES
    )  # with CIFAR-10's statistics
    monkeypatch.setattr(cli, "load", lambda _: others)
    assert cli.main(["eval", str(path), "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == result.accuracy["mean"]


def test_a_set_of_other_classes_is_refused_before_it_is_evaluated(trained, dataset, monkeypatch, capsys):
    few = [tensor[dataset.tensors[i | 1] < 3] for i, tensor in enumerate(dataset.tensors)]
    monkeypatch.setattr(cli, "load", lambda _: hlb.Dataset("few", few))
    assert cli.main(["eval", str(trained[0]), "--data", "few"]) == 2
    assert "few has 3 classes, the model has 10" in capsys.readouterr().err


def test_a_set_of_other_names_is_refused_but_numbers_are_no_names(trained, dataset, monkeypatch, capsys):
    for classes, status in ((CLASSES, 2), (tuple("0123456789"), 0), (synthetic.CLASSES, 0)):
        monkeypatch.setattr(
            cli, "load", lambda _, c=classes: hlb.Dataset("other", dataset.tensors, classes=c)
        )
        assert cli.main(["eval", str(trained[0]), "--data", "other"]) == status
    assert "other has the class 'airplane', with which the model was not trained" in capsys.readouterr().err


@pytest.mark.parametrize("name, classes", [("cifar10", CLASSES), ("synthetic", synthetic.CLASSES)])
def test_an_older_file_of_a_known_set_has_its_statistics_and_classes(older, name, classes):
    model = hlb.load(older(name))
    assert model.classes == classes
    assert (model.mean, model.std) == (MEAN, STD)


def test_an_older_file_of_another_set_says_why_it_cannot_predict_and_is_evaluated(
    older, dataset, monkeypatch, capsys
):
    path = older("mine")
    with pytest.raises(hlb.UserError, match="older version, without the statistics of its data set mine"):
        hlb.load(path)
    assert hlb.load_checkpoint(path)[2]["dataset"] == "mine"
    monkeypatch.setattr(cli, "load", lambda _: dataset)
    assert cli.main(["eval", str(path), "--quiet"]) == 0


@pytest.mark.parametrize("changes", [
    {"mean": None}, {"mean": (0.5, 0.5)}, {"mean": (0.5, 0.5, float("nan"))}, {"mean": ("r", "g", "b")},
    {"std": (0.5, 0.0, 0.5)}, {"std": 1.0}, {"classes": ("cat", "dog")}, {"classes": tuple(range(10))},
    {"dataset": 10}, {"dataset": ["cifar10"]}, {"weights": torch.zeros(3)}, {"weights": {}}, {"recipe": {}},
], ids=str)  # fmt: skip
def test_a_file_that_says_what_cannot_be_is_refused_and_stays_as_it_was(trained, tmp_path, changes):
    path = tmp_path / "wrong.pt"
    torch.save(torch.load(trained[0], weights_only=True) | changes, path)
    before = path.read_bytes()
    with pytest.raises(hlb.UserError, match="wrong.pt is not a checkpoint of this program, or is damaged"):
        hlb.load(path)
    assert path.read_bytes() == before


WEIGHTS = {
    "whole numbers": lambda weight: weight.int(),
    "complex": lambda weight: weight.to(torch.complex64),
    "sparse": torch.Tensor.to_sparse,
    "without memory": lambda weight: weight.to("meta"),
    "of another shape": lambda weight: weight[:, 1:],
    "none": lambda weight: None,
}


@pytest.mark.parametrize("kind", WEIGHTS)
def test_weights_of_another_kind_are_refused(trained, tmp_path, kind):
    content = torch.load(trained[0], weights_only=True)
    content["weights"]["head.weight"] = WEIGHTS[kind](content["weights"]["head.weight"])
    torch.save(content, tmp_path / "wrong.pt")
    with pytest.raises(hlb.UserError, match="wrong.pt is not a checkpoint of this program, or is damaged"):
        hlb.load(tmp_path / "wrong.pt")


@pytest.mark.parametrize("option, wrong", [("device", "gpu"), ("dtype", "float8")])
def test_a_device_or_dtype_that_there_is_not_is_told_as_such(trained, option, wrong):
    with pytest.raises(hlb.UserError, match=f"{option}.*{wrong}"):
        hlb.load(trained[0], **{option: wrong})


def test_a_model_of_other_classes_and_dtype_comes_back_as_it_was(dataset, tmp_path):
    kept = [tensor[dataset.tensors[i | 1] < 3] for i, tensor in enumerate(dataset.tensors)]
    three = hlb.Dataset("three", kept, classes=("disk", "ring", "square"))
    changes = {
        "dtype": "bfloat16",
        "train_examples": 30,
        "batch_size": 10,
        "epochs": 1.0,
        "views": "flip+shift",
    }
    path = tmp_path / "three.pt"
    result = hlb.train("smoke", settings=TINY | changes, data=three, save=path, ledger=None, quiet=True)
    model = hlb.load(path)
    assert model.classes == three.classes and model.network.head.weight.dtype == torch.bfloat16
    logits = model.predict(three.tensors[2], logits=True)
    assert logits.shape[1] == 3 and torch.equal(
        result.classifier.predict(three.tensors[2], logits=True), logits
    )
