"""Test-time views of a batch, and the weights of their logits.

    logits(image) = sum over views v of weight[v] * network(view_v(image))

A view is the image shifted by (dy, dx) pixels through reflected borders, then mirrored or not. images uint8
[n, h, w, 3] -> [v, n, h, w, 3], normalised as in training. `flip` is the two mirror images (hlb-CIFAR10);
`flip+shift` adds both mirror images of two diagonal one-pixel shifts at half their weight (airbench, arXiv
2404.00498).

Bytes: 3 * h * w read + v * 3 * h * w * itemsize written per image.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .augment import normalise, reflect

# name -> (dy, dx, mirrored, weight) per view
VIEWS: dict[str, tuple[tuple[int, int, bool, float], ...]] = {
    "none": ((0, 0, False, 1.0),),
    "flip": ((0, 0, False, 0.5), (0, 0, True, 0.5)),
    "flip+shift": (
        (0, 0, False, 0.25),
        (0, 0, True, 0.25),
        (-1, -1, False, 0.125),
        (-1, -1, True, 0.125),
        (1, 1, False, 0.125),
        (1, 1, True, 0.125),
    ),
}


def reference(
    images: Tensor, views: str, *, mean: tuple[float, ...], std: tuple[float, ...], dtype: torch.dtype
) -> Tensor:
    """uint8 [n, h, w, 3] -> [v, n, h, w, 3] in `dtype`, v the number of views of `VIEWS[views]`."""
    if views not in VIEWS:
        raise ValueError(f"views: got {views!r}, accepted are {', '.join(VIEWS)}")
    _, h, w, _ = images.shape
    y, x = torch.arange(h, device=images.device), torch.arange(w, device=images.device)
    out = [
        images[:, reflect(y + dy, h)][:, :, reflect((x.flip(0) if mirrored else x) + dx, w)]
        for dy, dx, mirrored, _ in VIEWS[views]
    ]
    return normalise(torch.stack(out), mean, std, dtype)
