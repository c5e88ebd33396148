from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers import DTYPES, MEAN, STD, TOLERANCE, assert_near, normalised, pixels

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


def test_unknown_views_are_named():
    with pytest.raises(ValueError, match="^views: got 'mirror', accepted are none, flip"):
        views.reference(pixels(1, 4, 4), "mirror", **NORMALISE, dtype=torch.float32)


@pytest.fixture
def network():
    network = Network(recipe("smoke", {"base_depth": 4, "eval_batch_size": 8}), kernels.backend("reference"))
    network = network.cast(torch.float64)
    network.reset(torch.tensor(0))
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
