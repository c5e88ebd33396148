"""Accuracy and loss over a labelled set, under the weighted logits of a recipe's test-time views."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kernels.views import VIEWS

from .networks import Network


@torch.no_grad()
def score(
    network: Network,
    images: Tensor,
    labels: Tensor,
    views: str,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    fraction: float = 1.0,
    forward: Callable[..., tuple[Tensor, Tensor]] | None = None,
) -> Tensor:
    """[2]: number of right answers and summed label-smoothed loss, on the device, which nothing here waits
    for; so an evaluation can be captured.

    images uint8 [n, h, w, 3], labels int64 [n]. The images themselves come first; the other views only for
    the `fraction` of them whose two largest probabilities differ least, all of them for 1. A forward pass has
    at most `eval_batch_size` rows: all views of as many images. `forward` is the network or a compiled
    version of it. The network is left in the mode it was in.
    """
    recipe, ops, dtype = network.recipe, network.ops, network.head.weight.dtype
    forward = network if forward is None else forward
    training = network.training
    network.eval()

    def logits(images: Tensor, views: str, first: int) -> Tensor:
        """Of the views from `first` on, [v, n, classes]."""
        parts, count = [], len(VIEWS[views]) - first
        for pixels in images.split(max(1, recipe.eval_batch_size // count)):
            batch = ops.views(pixels, views, mean=mean, std=std, dtype=dtype)[first:]
            rows, _ = forward(network.layout(batch.flatten(0, 1)))
            parts.append(rows.unflatten(0, (count, len(pixels))))
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
    return torch.stack((correct.to(loss.dtype), loss))


def evaluate(network: Network, images: Tensor, labels: Tensor, views: str, **options) -> tuple[float, float]:
    """Fraction of right answers and mean loss; arguments as `score`."""
    correct, loss = score(network, images, labels, views, **options).tolist()
    return correct / len(labels), loss / len(labels)
