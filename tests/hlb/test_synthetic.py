"""The built-in data set: the same everywhere, balanced, and not to be told apart without learning shapes."""

import pytest
import torch
from torch.nn.functional import one_hot

import hlb
from hlb import synthetic

LINEAR_LIMIT = 0.45  # what a classifier without hidden layers stays below; chance is 0.1


@pytest.fixture(scope="module")
def made():
    """Training images and labels, test images and labels."""
    return synthetic.make()


def _accuracy(train: torch.Tensor, labels: torch.Tensor, test: torch.Tensor, truth: torch.Tensor) -> float:
    """Test accuracy of least squares on the features [n, k], at the ridge that suits the test images best."""
    train, test = (torch.cat((x, torch.ones(len(x), 1)), dim=1) for x in (train, test))
    gram, target = train.T @ train, train.T @ (one_hot(labels, 10).float() - 0.1)
    eye = torch.eye(len(gram))
    weights = [torch.linalg.solve(gram + ridge * eye, target) for ridge in (1, 100, 1e3, 1e4)]
    return max(float(((test @ weight).argmax(1) == truth).float().mean()) for weight in weights)


def test_images_are_32x32_rgb_bytes_with_int64_labels(made):
    images, labels, test_images, test_labels = made
    assert images.shape == (len(labels), 32, 32, 3) and test_images.shape == (len(test_labels), 32, 32, 3)
    assert {tensor.dtype for tensor in (images, test_images)} == {torch.uint8}
    assert {tensor.dtype for tensor in (labels, test_labels)} == {torch.int64}


def test_two_calls_give_the_same_images_whatever_torchs_own_seed():
    torch.manual_seed(1)
    first = synthetic.make(60, 40)
    torch.manual_seed(2)
    assert all(torch.equal(a, b) for a, b in zip(first, synthetic.make(60, 40), strict=True))


@pytest.mark.parametrize("part", [1, 3], ids=["train", "test"])
def test_all_ten_classes_are_equally_frequent(made, part):
    counts = torch.bincount(made[part])
    assert len(counts) == 10 and len(counts.unique()) == 1


def test_no_image_occurs_twice_in_training_and_test_together(made):
    images = torch.cat((made[0], made[2]))
    assert len({image.numpy().tobytes() for image in images}) == len(images)


def test_each_class_has_light_and_dark_and_coloured_images(made):
    images, labels = made[0].float() / 255, made[1]
    for label in range(10):
        mean = images[labels == label].mean((1, 2))
        assert bool((mean.std(0) > 0.1).all()), f"class {label}: mean colours deviate by {mean.std(0)}"


def test_linear_classifier_on_pixels_stays_below_the_limit(made):
    images, labels, test_images, truth = made
    pixels = [x.flatten(1).float() / 255 - 0.5 for x in (images[:3000], test_images)]
    assert _accuracy(pixels[0], labels[:3000], pixels[1], truth) < LINEAR_LIMIT


def test_linear_classifier_on_colour_statistics_stays_below_the_limit(made):
    images, labels, test_images, truth = made
    colours = [torch.cat(torch.std_mean(x.float() / 255, (1, 2)), 1) for x in (images, test_images)]
    assert _accuracy(colours[0], labels, colours[1], truth) < LINEAR_LIMIT


def test_nearest_training_image_is_no_classifier(made):
    images, labels, test_images, truth = made
    distances = torch.cdist(test_images[:500].flatten(1).float(), images.flatten(1).float())
    assert (labels[distances.argmin(1)] == truth[:500]).float().mean() < LINEAR_LIMIT


def test_small_network_learns_what_a_linear_classifier_cannot(made):
    result = hlb.train(
        "smoke",
        data=hlb.Dataset("synthetic", made),
        eval_every=0,
        ledger=None,
        quiet=True,
        settings={"base_depth": 8, "train_examples": 3000, "batch_size": 150, "epochs": 2},
    )
    assert result.accuracy["mean"] > LINEAR_LIMIT + 0.15
