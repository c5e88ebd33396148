"""Your own images: NumPy arrays, or a folder with a folder of images for each class.

    python examples/own_data.py            # made-up arrays: bright and dark images
    python examples/own_data.py PATH       # PATH/CLASS/*.png, or PATH/train/CLASS and PATH/test/CLASS

Images are 32x32: those of a folder are scaled. The model predicts with the statistics and the class names of
the set that it was trained on, which are in its file.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import hlb
from hlb.data import load
from hlb.data.dataset import statistics


def arrays(n: int = 1000) -> hlb.Dataset:
    """Noise, darker or brighter than the middle; a fifth of it for the test."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, n)  # int64 [n]
    images = random.integers(0, 200, (n, 32, 32, 3)) + 56 * labels[:, None, None, None]
    images = images.astype(np.uint8)  # [n, 32, 32, 3], 0 to 255
    tests = n // 5
    parts = images[tests:], labels[tests:], images[:tests], labels[:tests]
    first = hlb.Dataset("mine", parts, classes=("dark", "bright"))  # checked; its statistics are CIFAR-10's
    return hlb.Dataset("mine", first.tensors, *statistics(first.tensors[0]), classes=first.classes)


def main(
    path: str | None = None, model: str | Path = "model.pt", **settings: object
) -> tuple[float, list[str]]:
    """Accuracy, and what the model of the last run says of the first test images; the settings are fields of
    the recipe.
    """
    data = load(f"folder:{path}") if path else arrays()
    small = {"batch_size": min(100, len(data.tensors[0]))}
    result = hlb.train("smoke", data=data, settings=small | settings, save=model, ledger=None)
    classifier = hlb.load(model)
    predicted = classifier.predict(data.tensors[2][:5])
    return result.accuracy["mean"], [classifier.classes[i] for i in predicted]


if __name__ == "__main__":
    print(*main(*sys.argv[1:2]))
