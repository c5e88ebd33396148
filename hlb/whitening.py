"""Whitening filters for the stem, from the 2x2 patches of the training images.

    covariance = V diag(lambda) V^T,        filter_i = v_i / sqrt(lambda_i + eps)

so that filtered patches have covariance diag(lambda / (lambda + eps)). One covariance over all patches.
Filters are ordered by falling eigenvalue, and each sign is fixed (the largest entry positive), so that
devices agree. Source: Page, "How to train your ResNet 8: Bag of tricks" (2019).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .networks import Network


def filters(covariance: Tensor, eps: float, count: int) -> Tensor:
    """[12, 12] -> [count, 3, 2, 2] in the covariance's dtype; count 24 appends the negated filters (12
    gives none).
    """
    eigenvalues, vectors = torch.linalg.eigh(covariance.cpu())  # 12 x 12: not worth a device call
    eigenvalues, vectors = eigenvalues.flip(0), vectors.flip(1).T  # rows are filters, largest first
    largest = vectors.gather(1, vectors.abs().argmax(1, keepdim=True))
    vectors = vectors * largest.sign() / (eigenvalues.clamp(min=0) + eps).sqrt()[:, None]
    vectors = torch.cat((vectors, -vectors))[:count]
    return vectors.view(count, 3, 2, 2).to(covariance.device)


@torch.no_grad()
def whiten(network: Network, images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """Sets the stem's frozen filters of `network` from the first `whiten_images` of `images`, uint8 [n, h,
    w, 3].
    """
    recipe = network.recipe
    covariance = network.ops.patch_covariance(
        images[: recipe.whiten_images], mean=mean, std=std, centered=recipe.whiten_centered
    )
    whiten = network.stem.whiten
    whiten.copy_(filters(covariance, recipe.whiten_eps, whiten.shape[0]))
