"""The first layer: frozen whitening filters, and a trainable projection or bias, as one 2x2 convolution.

    project:  y = conv1x1(conv2x2(x, whiten), project) = conv2x2(x, project @ whiten)      exactly
    bias:     y = conv2x2(x, whiten) + bias

x [n, 3, h, w], whiten [k, 3, 2, 2] frozen, project [c, k, 1, 1] -> y [n, c, h - 1, w - 1], channels-last.
Merging is exact because nothing stands between the two convolutions; the k-channel tensor between them
never exists, and the projection's gradient is d project = d merged @ whiten^T. The merged filters are
computed in float32 (float64 for float64) and rounded once.

Bytes (16-bit, 32 x 32, c = 32): 6,144 read + 61,504 written per image. FLOPs: 2 * 12 * c * 31 * 31 per image.

Also the covariance of the 2x2 patches from which the whitening filters are made (see hlb/whitening.py).
Sources: Page, "How to train your ResNet" (2019); hlb-CIFAR10.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .augment import normalise


def reference(
    x: Tensor, whiten: Tensor, *, project: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """[n, 3, h, w] -> [n, c, h - 1, w - 1] in the dtype of `x`; c is k, or the projection's outputs."""
    weight = whiten
    if project is not None:
        wide = torch.promote_types(x.dtype, torch.float32)
        weight = torch.einsum("ok,kihw->oihw", project[:, :, 0, 0].to(wide), whiten.to(wide))
    return F.conv2d(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))


def patch_covariance(
    images: Tensor, *, mean: tuple[float, ...], std: tuple[float, ...], centered: bool, chunk: int = 1000
) -> Tensor:
    """Covariance of all 2x2 patches of the normalised images: uint8 [n, h, w, 3] -> [12, 12], order (c, dy,
    dx).

    `centered` subtracts the mean patch (a covariance proper); otherwise it is the second moment about zero.
    Products are float32 within a chunk of images, sums over chunks float64 (float32 where the device has
    none).
    """
    wide = torch.float32 if images.device.type == "mps" else torch.float64
    second = torch.zeros(12, 12, dtype=wide, device=images.device)
    first = torch.zeros(12, dtype=wide, device=images.device)
    count = 0
    for part in images.split(chunk):
        x = normalise(part, mean, std, torch.float32)
        patches = (
            torch.stack(
                [x[:, dy : x.shape[1] - 1 + dy, dx : x.shape[2] - 1 + dx] for dy in (0, 1) for dx in (0, 1)],
                dim=-1,
            )
            .flatten(0, 2)
            .flatten(1)
        )  # [m, 12]
        second += (patches.T @ patches).to(wide)
        first += patches.sum(0, dtype=wide)
        count += len(patches)
    second, first = second / count, first / count
    return second - torch.outer(first, first) if centered else second
