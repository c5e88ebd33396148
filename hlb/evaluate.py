"""Accuracy and loss over a labelled set, under the weighted logits of a recipe's test-time views."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def evaluate(
    network,
    images: Tensor,
    labels: Tensor,
    views: str,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    forward=None,
) -> tuple[float, float]:
    """Fraction of right answers and mean label-smoothed loss.

    images uint8 [n, h, w, 3], labels int64 [n]. `forward` is the network or a compiled version of it. The
    network is left in the mode it was in.
    """
    recipe, ops, dtype = network.recipe, network.ops, network.head.weight.dtype
    forward = network if forward is None else forward
    training = network.training
    network.eval()
    correct, loss = 0, 0
    for pixels, targets in zip(images.split(recipe.eval_batch_size), labels.split(recipe.eval_batch_size)):
        batch = ops.views(pixels, views, mean=mean, std=std, dtype=dtype)
        logits = torch.stack([forward(network.layout(view))[0] for view in batch])
        logits = ops.weigh_views(logits, views)
        batch_loss, batch_correct = ops.cross_entropy(logits, targets, recipe.label_smoothing)
        correct, loss = correct + batch_correct, loss + batch_loss
    network.train(training)
    return correct.item() / len(labels), loss.item() / len(labels)
