from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers import MEAN, STD, assert_near, normalised, pixels
from torch import Tensor

import kernels
from hlb import recipe, whitening
from hlb.networks import Network
from kernels import patch_covariance
from kernels.base.correctness import widened


def correlated_images(n: int) -> Tensor:
    """uint8 [n, 20, 20, 3]: smooth, with channels that share most of their signal, and not centred."""
    signal = F.avg_pool2d(torch.randn(n, 1, 24, 24), 5, stride=1)
    own = torch.randn(n, 3, 20, 20) * torch.tensor([0.05, 0.1, 0.15])[:, None, None]
    image = torch.tensor([0.45, 0.5, 0.6])[:, None, None] + 0.5 * signal + own
    return (image.permute(0, 2, 3, 1) * 255).round().clamp(0, 255).to(torch.uint8)


def unfolded(images: Tensor, mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD) -> Tensor:
    """Every 2x2 patch of the normalised images as a column, float64 [12, patches], in order (c, dy, dx)."""
    x = normalised(images, mean, std).permute(0, 3, 1, 2)
    return F.unfold(x, 2).transpose(0, 1).flatten(1)


def moment(patches: Tensor, centered: bool) -> Tensor:
    return torch.cov(patches, correction=0) if centered else patches @ patches.T / patches.shape[1]


def assert_whitens(filters: Tensor, patches: Tensor, eps: float, centered: bool) -> None:
    """Filtered patches have covariance diag(lambda / (lambda + eps)), the lambdas of the patches falling."""
    eigenvalues = torch.linalg.eigvalsh(moment(patches, centered)).flip(0)
    whitened = moment(filters.flatten(1) @ patches, centered)
    assert (whitened - torch.diag(eigenvalues / (eigenvalues + eps))).abs().max() < 1e-3


@pytest.mark.parametrize("chunk", [1, 7, 1000])
@pytest.mark.parametrize("centered", [True, False])
def test_patch_covariance_is_that_of_the_unfolded_patches(centered, chunk):
    images = correlated_images(50)
    result = patch_covariance.reference(images, mean=MEAN, std=STD, centered=centered, chunk=chunk)
    assert_near(result, moment(unfolded(images), centered), 1e-5)


def test_kernels_are_compared_with_sums_in_float64():
    case = next(case for case in patch_covariance.SPEC.cases if case.name == "smoke")
    told = {k: widened(v) for k, v in patch_covariance.SPEC.make(case, torch.float32, "cpu").items()}
    exact = moment(unfolded(told["images"], told["mean"], told["std"]), case.centered)
    assert_near(patch_covariance.reference(**told), exact, 1e-13)


@pytest.mark.parametrize("centered", [True, False])
@pytest.mark.parametrize("eps", [1e-2, 5e-4])
def test_whitened_patches_are_uncorrelated(eps, centered):
    patches = unfolded(correlated_images(200))
    assert_whitens(whitening.filters(moment(patches, centered), eps, 12), patches, eps, centered)


def test_doubled_filters_are_negations():
    filters = whitening.filters(torch.cov(torch.randn(12, 100)), 1e-2, 24)
    assert torch.equal(filters[12:], -filters[:12])


def test_signs_are_fixed_by_the_largest_entry():
    filters = whitening.filters(torch.cov(torch.randn(12, 100)), 1e-2, 12).flatten(1)
    assert (filters.gather(1, filters.abs().argmax(1, keepdim=True)) > 0).all()


@pytest.mark.parametrize("name", ["seed", "record94"])
def test_whiten_sets_the_stem_from_the_first_images_of_the_recipe(name):
    images = correlated_images(50)
    settings = recipe(name, {"whiten_images": 50})
    network = Network(settings, kernels.backend("reference")).cast(torch.float64)
    whitening.whiten(network, torch.cat((images, pixels(10, 20, 20))), MEAN, STD)
    filters = network.stem.whiten[:12]
    assert_whitens(filters, unfolded(images), settings.whiten_eps, settings.whiten_centered)
