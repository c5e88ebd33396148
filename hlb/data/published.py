"""The published sets that --data knows, in torchvision's layout: their files, and how these are read.

torchvision says where a set comes from and what its files' MD5s are; they are checked before they are read.
"""

from __future__ import annotations

import hashlib
import pickle
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import library

from ..errors import UserError
from ..files import reason
from .dataset import MEAN, STD, Dataset, statistics


def torchvision_datasets() -> ModuleType:
    """torchvision.datasets, also where torchvision's C++ operators do not fit this torch.

    There, `import torchvision` stops at a fake implementation for its own operator `nms`, which was never
    defined. Defining its schema is enough for the data sets, which use no operator.
    """
    try:
        from torchvision import datasets
    except ImportError as error:
        raise UserError(f"torchvision cannot be imported ({error}); pip install torchvision") from None
    except RuntimeError:
        global _schema
        _schema = library.Library("torchvision", "FRAGMENT")
        _schema.define("nms(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor")
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        from torchvision import datasets
    return datasets


@dataclass(frozen=True)
class Cifar:
    """CIFAR-10 or CIFAR-100: a folder of batches, pickled, each image 3 x 32 x 32 bytes in a row."""

    name: str  # of --data
    title: str  # in messages; without the hyphen, torchvision's class
    folder: str
    labels: str  # what a batch calls them

    @property
    def parts(self) -> tuple[str, ...]:
        """What a folder that holds the set has in it, and the set is known by."""
        return (self.folder,)

    def _torchvision(self) -> type:
        return getattr(torchvision_datasets(), self.title.replace("-", ""))

    def archives(self, mirror: str | None) -> list[tuple[str, str, str]]:
        """(URL, file name, MD5) of what is fetched; `mirror` is the URL of the archive."""
        known = self._torchvision()
        return [(mirror or known.url, known.filename, known.tgz_md5)]

    def files(self) -> list[tuple[str, str]]:
        """(path below the folder that holds the set, MD5) of all files."""
        known = self._torchvision()
        listed = known.train_list + known.test_list + [(known.meta["filename"], known.meta["md5"])]
        return [(f"{self.folder}/{name}", md5) for name, md5 in listed]

    def read(self, root: Path) -> Dataset:
        """The set from its verified files."""
        known, folder, tensors = self._torchvision(), root / self.folder, []
        for names in (known.train_list, known.test_list):
            batches = [_unpickled(folder / name) for name, _ in names]
            planar = np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32)
            tensors.append(torch.from_numpy(np.ascontiguousarray(planar.transpose(0, 2, 3, 1))))
            tensors.append(torch.tensor([label for batch in batches for label in batch[self.labels]]))
        mean, std = (MEAN, STD) if self is CIFAR10 else statistics(tensors[0])
        names = _unpickled(folder / known.meta["filename"])[known.meta["key"]]
        return Dataset(self.name, tuple(tensors), mean, std, tuple(names))


@dataclass(frozen=True)
class Svhn:
    """Street View House Numbers, cropped digits: a MATLAB file of training images, one of test images."""

    name: str = "svhn"
    title: str = "SVHN"
    parts: tuple[str, ...] = ("test_32x32.mat", "train_32x32.mat")

    def _known(self) -> list[tuple[str, str, str]]:
        """(URL, file name, MD5), as torchvision has them, in the order of `parts`."""
        lists = torchvision_datasets().SVHN.split_list
        return [tuple(lists[split]) for split in ("test", "train")]

    def archives(self, mirror: str | None) -> list[tuple[str, str, str]]:
        """(URL, file name, MD5) of what is fetched; `mirror` is the URL of the folder of both."""
        return [(f"{mirror}/{name}" if mirror else url, name, md5) for url, name, md5 in self._known()]

    def files(self) -> list[tuple[str, str]]:
        """(path below the folder that holds the set, MD5) of all files."""
        return [(name, md5) for _, name, md5 in self._known()]

    def read(self, root: Path) -> Dataset:
        """The set from its verified files. In them the digit 0 is class 10."""
        from scipy.io import loadmat

        tensors = []
        for name in reversed(self.parts):
            content = loadmat(root / name)  # X [32, 32, 3, n], y [n, 1]
            tensors.append(torch.from_numpy(np.ascontiguousarray(content["X"].transpose(3, 0, 1, 2))))
            tensors.append(torch.from_numpy(content["y"].astype(np.int64).flatten() % 10))
        digits = tuple(map(str, range(10)))
        return Dataset(self.name, tuple(tensors), *statistics(tensors[0]), digits)


Published = Cifar | Svhn
CIFAR10 = Cifar("cifar10", "CIFAR-10", "cifar-10-batches-py", "labels")
CIFAR100 = Cifar("cifar100", "CIFAR-100", "cifar-100-python", "fine_labels")
PUBLISHED = {source.name: source for source in (CIFAR10, CIFAR100, Svhn())}


def _unpickled(path: Path) -> dict:
    return pickle.loads(path.read_bytes(), encoding="latin1")


def verify(source: Published, root: Path) -> None:
    """Checks each file of a set below `root` by its MD5. Raises UserError that names the first file that is
    missing or differs.
    """
    again = f"move {root / source.parts[-1]} away to have {source.title} downloaded"
    for name, md5 in source.files():
        path = root / name
        try:
            content = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(f"{path} is missing; restore it, or {again}") from None
        except OSError as error:
            raise UserError(f"{path} cannot be read: {reason(error)}") from None
        if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
            raise UserError(
                f"{path} ({len(content):,} bytes, MD5 differs) is not {source.title}'s: truncated, corrupted "
                f"or foreign; restore it, or {again}"
            )
