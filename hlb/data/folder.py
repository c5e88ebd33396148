"""A folder of images as a data set, a folder for each class, as torchvision's ImageFolder has them.

    PATH/train/CLASS/*.png and PATH/test/CLASS/*.png (or val)        or PATH/CLASS/*.png

In the latter, every fifth image of a class, in the order of the names, is a test image. An image is scaled so
that its shorter side is 32, and the middle is taken. What was read is cached; the cache is made anew when a
file comes, goes, or changes in size or date.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from ..errors import UserError
from ..files import reason
from .cache import cached
from .dataset import IMAGE, Dataset, statistics
from .published import torchvision_datasets

TESTS = ("test", "val", "valid", "validation")  # what a folder of test images may be called
HELD_OUT = 5  # one of so many is a test image where none are given
MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"}  # of 8 bits a channel
MANY = 2000  # images from which on progress is shown

Classes = dict[str, list[Path]]  # the images of each class


def load(path: str) -> Dataset:
    """The data set of a folder. Raises UserError that names a folder or image that cannot be read, or is not
    as it should be.
    """
    root = Path(os.path.realpath(os.path.expanduser(path)))
    try:
        train, test = split(root)
        key = _fingerprint(train, test)
    except OSError as error:
        raise UserError(f"{error.filename or root} cannot be read: {reason(error)}") from None
    stem = f"folder-{hashlib.sha256(os.fsencode(root)).hexdigest()[:16]}"
    return cached(stem, key, lambda: _dataset(root, train, test))


def split(root: Path) -> tuple[Classes, Classes]:
    """The training and the test images of a folder, class by class. Raises OSError and UserError."""
    tests = next((root / name for name in TESTS if (root / name).is_dir()), None)
    if tests is not None and (root / "train").is_dir():
        train, test = _by_class(root / "train"), _by_class(tests)
        unknown = sorted(test.keys() - train.keys())
        if unknown:
            raise UserError(f"{tests / unknown[0]} is of a class that {root / 'train'} has no folder for")
        return _whole(root / "train", train), test
    classes = _whole(root, _by_class(root))
    train, test = {}, {}
    for name, images in classes.items():
        test[name] = images[HELD_OUT - 1 :: HELD_OUT]
        train[name] = [image for i, image in enumerate(images) if i % HELD_OUT < HELD_OUT - 1]
    return train, test


def _by_class(folder: Path) -> Classes:
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] != ".")
    return {name: _images(folder / name) for name in names}


def _images(folder: Path) -> list[Path]:
    """Those in a folder at any depth, in the order of their names."""

    def refuse(error: OSError) -> None:
        raise error

    torchvision_datasets()
    from torchvision.datasets.folder import IMG_EXTENSIONS

    found = []
    for place, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if name[0] != "."]
        found += [Path(place, n) for n in names if n.lower().endswith(IMG_EXTENSIONS) and n[0] != "."]
    return sorted(found)


def _whole(folder: Path, classes: Classes) -> Classes:
    """The classes of a folder, if they can be trained on."""
    empty = next((name for name, images in classes.items() if not images), None)
    if len(classes) < 2:
        raise UserError(
            f"{folder} has {len(classes)} folders; accepted is one of images for each class, two or more, or "
            "train and test (or val) with such folders"
        )
    if empty is not None:
        raise UserError(f"{folder / empty} has no images; put some there, or remove it")
    return classes


def _fingerprint(*parts: Classes) -> str:
    """Differs where any file does, by its place, size or date."""
    known = hashlib.sha256()
    for part in parts:
        for name, images in part.items():
            known.update(f"{len(images)} ".encode() + os.fsencode(name) + b"\0")
            for image in images:
                about = image.stat()
                known.update(os.fsencode(image) + f"\0{about.st_size} {about.st_mtime_ns}\0".encode())
    return known.hexdigest()


def _dataset(root: Path, train: Classes, test: Classes) -> Dataset:
    numbers = {name: number for number, name in enumerate(train)}
    if not any(test.values()):
        raise UserError(
            f"{root} has no test images; add test (or val) beside train, or {HELD_OUT} images to a class"
        )
    tensors = []
    for part in (train, test):
        tensors.append(_read([image for images in part.values() for image in images]))
        tensors.append(torch.tensor([numbers[name] for name, images in part.items() for _ in images]))
    return Dataset(f"folder:{_text(root)}", tuple(tensors), *statistics(tensors[0]), tuple(map(_text, train)))


def _read(paths: list[Path]) -> Tensor:
    """uint8 [n, 32, 32, 3]"""
    pixels = np.empty((len(paths), *IMAGE), dtype=np.uint8)
    console = Console(stderr=True)
    with ThreadPoolExecutor() as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, about oddities of files that it reads all the same
        shown = track(
            pool.map(_pixels, paths), "reading images", len(paths), console=console, disable=len(paths) < MANY
        )
        for i, image in enumerate(shown):
            pixels[i] = image
    return torch.from_numpy(pixels)


def _pixels(path: Path) -> np.ndarray:
    """uint8 [32, 32, 3] of an image file."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            if image.mode in MODES:
                upright = ImageOps.exif_transpose(image).convert("RGB")
                return np.asarray(ImageOps.fit(upright, IMAGE[:2], Image.Resampling.BILINEAR))
            wrong = f"has pixels of mode {image.mode}, accepted are 8 bits a channel"
    except Exception as error:  # Pillow raises many kinds for what it does not know
        wrong = f"cannot be read: it is damaged, or no image ({error})"
        if isinstance(error, OSError) and error.errno is not None:
            wrong = f"cannot be read: {reason(error)}"
    raise UserError(f"{path} {wrong}".replace("\n", " "))


def _text(path: Path | str) -> str:
    """A name of the file system, whose bytes need not be text, as text."""
    return os.fsencode(path).decode(errors="backslashreplace")
