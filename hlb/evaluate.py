"""Accuracy and loss over a labelled set, under the weighted logits of a recipe's test-time views."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.views import VIEWS


@torch.no_grad()
def score(
    network,
    images: Tensor,
    labels: Tensor,
    views: str,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    fraction: float = 1.0,
    forward=None,
) -> tuple[Tensor, Tensor]:
    """Number of right answers and summed label-smoothed loss, on the device, which nothing here waits for.

    images uint8 [n, h, w, 3], labels int64 [n]. The images themselves come first; the other views only for
    the `fraction` of them whose two largest probabilities differ least, all of them for 1. `forward` is the
    network or a compiled version of it. The network is left in the mode it was in.
    """
    recipe, ops, dtype = network.recipe, network.ops, network.head.weight.dtype
    forward = network if forward is None else forward
    training = network.training
    network.eval()

    def logits(images: Tensor, views: str, first: int) -> Tensor:
        """Of the views from `first` on, [v, n, classes]."""
        parts = []
        for pixels in images.split(recipe.eval_batch_size):
            batch = ops.views(pixels, views, mean=mean, std=std, dtype=dtype)[first:]
            parts.append(torch.stack([forward(network.layout(view))[0] for view in batch]))
        return torch.cat(parts, dim=1)

    plain = logits(images, "none", 0)
    scores, count = plain[0], round(fraction * len(images))
    if len(VIEWS[views]) > 1 and count:
        first, second = scores.softmax(1).topk(2).values.unbind(1)
        unsure = (first - second).topk(count, largest=False, sorted=False).indices
        others = logits(images[unsure], views, 1)
        weighed = ops.weigh_views(torch.cat((plain[:, unsure], others)), views)
        scores = scores.index_copy(0, unsure, weighed)
    loss, correct = ops.cross_entropy(scores, labels, recipe.label_smoothing)
    network.train(training)
    return correct, loss


def evaluate(network, images: Tensor, labels: Tensor, views: str, **options) -> tuple[float, float]:
    """Fraction of right answers and mean loss; arguments as `score`."""
    correct, loss = score(network, images, labels, views, **options)
    return correct.item() / len(labels), loss.item() / len(labels)
