"""A built-in data set for machines without CIFAR-10: ten kinds of shape, 32x32, uint8.

Every image is one shape of random size, place, foreground and background colour, with a colour gradient and
noise over it. Colours and places say nothing of the class, so a linear classifier stays near chance and a
network has to learn the shapes. Shapes are symmetric enough that mirroring keeps the class. Draws are Philox,
made on the CPU: the same images everywhere.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.random import DATA, philox, unit

CLASSES = (
    "disk",
    "ring",
    "square",
    "frame",
    "triangle",
    "cross",
    "diagonal cross",
    "bars across",
    "bars down",
    "checkerboard",
)
SEED = 10
SIZES = (4.5, 11.0)  # half a shape's side, in pixels
CONTRAST = 0.16  # least difference of foreground and background, in every channel
NOISE = 0.5  # full width of the uniform noise


def images(first: int, count: int) -> tuple[Tensor, Tensor]:
    """Images `first` to `first + count` of the endless set: uint8 [n, 32, 32, 3] and labels int64 [n]."""
    seed = torch.tensor(SEED)
    ids = torch.arange(first, first + count)
    words = [word for block in range(4) for word in philox(seed, ids, 0, DATA, block)]
    draws = unit(torch.stack(words, dim=1))  # [n, 16]
    labels = ids % len(CLASSES)

    size = (SIZES[0] + (SIZES[1] - SIZES[0]) * draws[:, 0])[:, None]
    centre = 15.5 + (draws[:, 1:3] - 0.5) * (31 - 1.5 * size)
    axis = torch.arange(32, dtype=torch.float32)
    u = ((axis - centre[:, :1]) / size)[:, None, :].expand(-1, 32, -1)
    v = ((axis - centre[:, 1:]) / size)[:, :, None].expand(-1, -1, 32)
    mask = _shapes(u, v)[labels, torch.arange(count)][..., None]

    fore, back = draws[:, None, None, 3:6], draws[:, None, None, 6:9]
    fore = torch.where((fore - back).abs() < CONTRAST, (back + 0.5) % 1, fore)
    tilt = (draws[:, 9:11] - 0.5)[:, None, None, :]
    ramp = axis / 31 - 0.5
    shade = tilt[..., :1] * ramp[:, None, None] + tilt[..., 1:] * ramp[None, :, None]
    out = torch.where(mask, fore, back) + shade + NOISE * (_noise(seed, ids) - 0.5)
    return (out.clamp(0, 1) * 255).round().to(torch.uint8), labels


def make(train: int = 10000, test: int = 2000) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images and labels, test images and labels; the two never share an image."""
    total = train + test
    parts = [images(at, min(1000, total - at)) for at in range(0, total, 1000)]
    pixels, labels = (torch.cat(column) for column in zip(*parts))
    return pixels[:train], labels[:train], pixels[train:], labels[train:]


def _shapes(u: Tensor, v: Tensor) -> Tensor:
    """Every class's mask, bool [classes, n, 32, 32]; in the coordinates u, v [n, 32, 32] a shape spans [-1,
    1].
    """
    radius = (u * u + v * v).sqrt()
    square, inner = torch.maximum(u.abs(), v.abs()), torch.minimum(u.abs(), v.abs())
    across, down = torch.cos(v * 7.9) > 0, torch.cos(u * 7.9) > 0
    return torch.stack(
        (
            radius < 1,
            (radius < 1) & (radius > 0.6),
            square < 0.9,
            (square < 0.9) & (square > 0.55),
            (v < 0.8) & (v > 1.8 * u.abs() - 1),
            (square < 1) & (inner < 0.28),
            (square < 1) & (torch.minimum((u - v).abs(), (u + v).abs()) < 0.4),
            (square < 1) & across,
            (square < 1) & down,
            (square < 1) & (across ^ down),
        )
    )


def _noise(seed: Tensor, ids: Tensor) -> Tensor:
    """Uniform in [0, 1) in steps of 1 / 256, float32 [n, 32, 32, 3]: four bytes from every word."""
    blocks = torch.arange(32 * 32 * 3 // 16)
    words = torch.stack(philox(seed, ids[:, None] * len(blocks) + blocks, 1, DATA), -1)
    bytes_ = torch.stack([(words >> shift) & 255 for shift in (0, 8, 16, 24)], -1)
    return bytes_.to(torch.float32).view(-1, 32, 32, 3) / 256
