from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers import DTYPES, MEAN, STD, TOLERANCE, assert_near, draw, normalised, pixels, wide

import kernels
from hlb import recipe
from hlb.evaluate import evaluate
from hlb.networks import Network
from kernels import views

NORMALISE = {"mean": MEAN, "std": STD}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", views.VIEWS)
def test_view_equals_padding_slicing_and_flipping(name, dtype):
    images, pad = pixels(5, 9, 12), 1
    padded = F.pad(normalised(images).permute(0, 3, 1, 2), (pad,) * 4, mode="reflect").permute(0, 2, 3, 1)
    expected = []
    for dy, dx, mirrored, _ in views.VIEWS[name]:
        view = padded[:, pad + dy : pad + dy + 9, pad + dx : pad + dx + 12]
        expected.append(view.flip(2) if mirrored else view)
    out = views.reference(images, name, **NORMALISE, dtype=dtype)
    assert out.dtype == dtype
    for i, view in enumerate(expected):
        assert_near(out[i], view, TOLERANCE[dtype], f"view {i}")


@pytest.mark.parametrize(
    "name, shifts",
    [
        ("none", {(0, 0): [1.0]}),
        ("flip", {(0, 0): [0.5, 0.5]}),
        ("flip+shift", {(0, 0): [0.25, 0.25], (-1, -1): [0.125, 0.125], (1, 1): [0.125, 0.125]}),
    ],
)
def test_both_mirror_images_of_a_shift_weigh_the_same(name, shifts):
    found = {}
    for dy, dx, mirrored, weight in views.VIEWS[name]:
        found.setdefault((dy, dx), {})[mirrored] = weight
    assert {shift: list(weights.values()) for shift, weights in found.items()} == shifts


@pytest.mark.parametrize("name", views.VIEWS)
def test_weights_sum_to_one(name):
    assert sum(weight for *_, weight in views.VIEWS[name]) == 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", views.VIEWS)
def test_weighted_mean_adds_up_in_float32_at_least(name, dtype):
    logits = torch.randn(len(views.VIEWS[name]), 30, 10).to(dtype)
    expected = torch.zeros(30, 10, dtype=torch.float64)
    for view, (*_, weight) in zip(logits, views.VIEWS[name]):
        expected += weight * view.double()
    mean = views.weighted_mean(logits, name)
    assert mean.dtype == wide(dtype)
    assert_near(mean, expected, TOLERANCE[mean.dtype])


@pytest.mark.parametrize("function", [views.reference, views.op])
def test_unknown_views_are_named(function):
    with pytest.raises(ValueError, match="^views: got 'mirror', accepted are none, flip"):
        function(pixels(1, 4, 4), "mirror", **NORMALISE, dtype=torch.float32)


@pytest.mark.parametrize("function", [views.weighted_mean, views.weigh])
def test_logits_of_unknown_or_too_many_views_are_named(function):
    with pytest.raises(ValueError, match="^views: got 'mirror', accepted are none, flip"):
        function(torch.zeros(2, 4, 10), "mirror")
    with pytest.raises(ValueError, match="^logits: got 3 views, accepted are the 2 of flip"):
        function(torch.zeros(3, 4, 10), "flip")


def test_kernel_takes_no_image_that_a_shift_cannot_reflect_and_no_other_dtype():
    with pytest.raises(ValueError, match="^images: got 1 x 4, accepted is 2 x 2 or larger"):
        views.op(pixels(1, 1, 4), "flip+shift", **NORMALISE, dtype=torch.float32)
    with pytest.raises(ValueError, match="^dtype: got torch.float64, accepted are float32"):
        views.op(pixels(1, 4, 4), "flip", **NORMALISE, dtype=torch.float64)


@pytest.fixture
def network():
    network = Network(recipe("smoke", {"base_depth": 4, "eval_batch_size": 8}), kernels.backend("reference"))
    network = network.cast(torch.float64)
    network.reset(draw)
    network.stem.whiten.normal_()
    return network


@pytest.mark.parametrize("name", views.VIEWS)
def test_evaluation_weighs_the_logits_of_the_views(network, name):
    images, labels = pixels(20, 32, 32), torch.arange(20) % 10
    network.eval()
    x = views.reference(images, name, **NORMALISE, dtype=torch.float64).permute(0, 1, 4, 2, 3)
    logits = sum(view[-1] * network(x[i])[0] for i, view in enumerate(views.VIEWS[name]))
    loss = F.cross_entropy(logits, labels, label_smoothing=network.recipe.label_smoothing)
    result = evaluate(network.train(), images, labels, name, **NORMALISE)
    assert float(result[0]) == pytest.approx(float((logits.argmax(1) == labels).double().mean()))
    assert result[1] == pytest.approx(loss.item(), rel=1e-12)


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_leaves_the_network_in_its_mode(network, training):
    network.train(training)
    evaluate(network, pixels(4, 32, 32), torch.arange(4), "none", **NORMALISE)
    assert network.training == training


@pytest.mark.parametrize("name", ["flip", "flip+shift"])
def test_views_of_an_image_are_evaluated_together_in_batches_of_the_recipes_rows(network, name):
    sizes = []

    def forward(x: torch.Tensor):
        sizes.append(len(x))
        return network(x)

    network.recipe = recipe("smoke", {"base_depth": 4, "eval_batch_size": 11})
    images, labels = pixels(20, 32, 32), torch.arange(20) % 10
    evaluate(network, images, labels, name, **NORMALISE, fraction=0.5, forward=forward)
    others = {"flip": [10], "flip+shift": [10] * 5}[name]
    assert sizes == [11, 9, *others]
    network.recipe = recipe("smoke", {"base_depth": 4, "eval_batch_size": 3})
    sizes.clear()
    evaluate(network, images, labels, "flip+shift", **NORMALISE, fraction=0.1, forward=forward)
    assert sizes == [3] * 6 + [2] + [5] * 2  # an image's views are never parted


def test_the_smallest_fractions_of_images_get_views_one_and_none(network):
    images, labels = pixels(20, 32, 32), torch.arange(20) % 10
    losses = {}
    for name, fraction in (("none", 1.0), ("flip", 0.0), ("flip", 0.02), ("flip", 0.05), ("flip", 1.0)):
        options = NORMALISE | {"fraction": fraction}
        losses[name, fraction] = evaluate(network, images, labels, name, **options)[1]
    plain = losses.pop(("none", 1.0))
    assert losses["flip", 0.0] == losses["flip", 0.02] == plain  # 0.4 of an image is none
    assert len({plain, losses["flip", 0.05], losses["flip", 1.0]}) == 3
