"""A built-in data set for machines without CIFAR-10: ten kinds of shape, 32x32, uint8.

Every image is one shape of random size, place, foreground and background colour, with a colour gradient and noise
over it. Colours and places say nothing of the class, so a linear classifier stays near chance and a network has to
learn the shapes. Shapes are symmetric enough that mirroring keeps the class. Draws are Philox, made on the CPU: the
same images everywhere.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.random import DATA, philox, unit

CLASSES = ("disk", "ring", "square", "frame", "triangle", "cross", "diagonal cross", "bars across", "bars down",
           "checkerboard")
SEED = 10


def _masks(labels: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Which pixels belong to the shape; u, v [n, 32, 32] are coordinates in which the shape spans [-1, 1]."""
    radius, square = (u * u + v * v).sqrt(), torch.maximum(u.abs(), v.abs())
    stripes_u, stripes_v = torch.cos(u * 7.9) > 0, torch.cos(v * 7.9) > 0
    shapes = torch.stack((
        radius < 1, (radius < 1) & (radius > 0.6), square < 0.9, (square < 0.9) & (square > 0.55),
        (v < 0.8) & (v > 1.8 * u.abs() - 1),
        (square < 1) & (torch.minimum(u.abs(), v.abs()) < 0.28),
        (square < 1) & (torch.minimum((u - v).abs(), (u + v).abs()) < 0.4),
        (square < 1) & stripes_v, (square < 1) & stripes_u, (square < 1) & (stripes_u ^ stripes_v),
    ))
    return shapes[labels, torch.arange(len(labels))]


def images(first: int, count: int) -> tuple[Tensor, Tensor]:
    """Images `first` to `first + count` of the endless set: uint8 [n, 32, 32, 3] and labels int64 [n]."""
    seed = torch.tensor(SEED)
    ids = torch.arange(first, first + count)
    draws = torch.stack([unit(word) for block in range(4) for word in philox(seed, ids, 0, DATA, block)], dim=1)
    labels = ids % len(CLASSES)
    size = (6 + 6 * draws[:, 0])[:, None, None]
    centre = 10 + 12 * draws[:, 1:3]
    axis = torch.arange(32, dtype=torch.float32)
    u = (axis[None, None, :] - centre[:, 0, None, None]) / size
    v = (axis[None, :, None] - centre[:, 1, None, None]) / size
    mask = _masks(labels, *torch.broadcast_tensors(u, v))[..., None]

    fore, back = draws[:, None, None, 3:6], draws[:, None, None, 6:9]
    # Foreground and background differ by at least 0.25 in every channel, either way round.
    fore = torch.where((fore - back).abs() < 0.25, (back + 0.5) % 1, fore)
    tilt = (draws[:, 9:11] - 0.5)[:, None, None, :] * 0.6
    shade = tilt[..., 0:1] * (axis[:, None, None] / 31 - 0.5) + tilt[..., 1:2] * (axis[None, :, None] / 31 - 0.5)
    pixel = torch.arange(32 * 32 * 3)
    noise = unit(philox(seed, ids[:, None] * (32 * 32 * 3) + pixel, 1, DATA)[0]).view(-1, 32, 32, 3) - 0.5
    out = torch.where(mask, fore, back) + shade + 0.35 * noise
    return (out.clamp(0, 1) * 255).round().to(torch.uint8), labels


def make(train: int = 10000, test: int = 2000) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images and labels, test images and labels; the two never share an image."""
    parts = [torch.cat(column) for column in zip(*(images(at, min(1000, train + test - at))
                                                   for at in range(0, train + test, 1000)))]
    return parts[0][:train], parts[1][:train], parts[0][train:], parts[1][train:]
