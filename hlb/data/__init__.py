"""Data sets: CIFAR-10 from torchvision's layout, and the built-in synthetic one, as uint8 NHWC tensors.

`load` resolves what `--data` says: `auto`, `cifar10`, `synthetic`, or a folder in torchvision's layout (one
that holds `cifar-10-batches-py/`). Files are checked by MD5 before they are read. What was read once is
cached as one file of tensors that loads in well under a second. Nothing that this module did not write is
ever overwritten or deleted.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import pickle
import shutil
import socket
import sys
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.library import Library

from .. import synthetic
from ..errors import UserError
from ..files import atomic
from .dataset import CLASSES, Dataset

STALL_SECONDS = 10  # a download that brings no byte for this long is given up
FOLDER = "cifar-10-batches-py"
SHAPES = ((50000, 32, 32, 3), (50000,), (10000, 32, 32, 3), (10000,))


class DownloadError(UserError):
    """CIFAR-10 is not on disk and could not be fetched."""


def cache_dir() -> Path:
    """Where downloads and tensor caches go: $HLB_CACHE, else $XDG_CACHE_HOME/hlb, else ~/.cache/hlb."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("HLB_CACHE") or Path(base) / "hlb")


def load(data: str = "auto") -> Dataset:
    """The data set that `data` names. Raises UserError (DownloadError when CIFAR-10 cannot be had).

    `auto` is CIFAR-10 if it is on disk or can be downloaded, else the synthetic set: its name tells.
    """
    if data == "synthetic":
        return Dataset("synthetic", synthetic.make(), classes=synthetic.CLASSES)
    if data == "auto":
        try:
            return cifar10()
        except DownloadError as error:
            return Dataset("synthetic", synthetic.make(), classes=synthetic.CLASSES, note=str(error))
    if data == "cifar10":
        return cifar10()
    root = Path(os.path.expanduser(data))
    if not os.path.isdir(root):
        raise UserError(
            f"--data: no folder {data!r}; accepted are auto, cifar10, synthetic, or a folder that holds "
            f"{FOLDER}/"
        )
    return cifar10(root.parent if root.name == FOLDER else root)


def cifar10(root: Path | None = None) -> Dataset:
    """CIFAR-10 from `root`; without one from the cache, `./data` or `.`, else downloaded to the cache."""
    cache = cache_dir()
    tensors = cache / "cifar10.pt"
    if root is None and not tensors.exists():
        root = next((place for place in (cache, Path("data"), Path()) if (place / FOLDER).exists()), None)
        if root is None:
            root = cache
            download(root)
    if root is not None:
        verify(root)
    if tensors.exists():
        return Dataset("cifar10", _read_tensors(tensors), classes=CLASSES)
    dataset = Dataset("cifar10", read(root), classes=CLASSES)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        _write_tensors(tensors, dataset.tensors)
    except OSError:
        pass  # a cache that cannot be written costs a second at the next start
    return dataset


def torchvision_cifar10() -> type:
    """torchvision's CIFAR10 class, also where torchvision's C++ operators do not fit this torch.

    There, `import torchvision` stops at a fake implementation for its own operator `nms`, which was never
    defined. Defining its schema is enough for the data sets, which use no operator.
    """
    try:
        from torchvision.datasets import CIFAR10
    except ImportError as error:
        raise UserError(f"torchvision cannot be imported ({error}); pip install torchvision") from None
    except RuntimeError:
        global _schema
        _schema = Library("torchvision", "FRAGMENT")
        _schema.define("nms(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor")
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        from torchvision.datasets import CIFAR10
    return CIFAR10


def verify(root: Path) -> None:
    """Checks each file of CIFAR-10 below `root` by its MD5. Raises UserError that names the first file that
    is missing or differs.
    """
    CIFAR10 = torchvision_cifar10()
    folder = root / FOLDER
    if not folder.is_dir():
        raise UserError(f"no {FOLDER}/ in {root}; give --data the folder that holds it, or leave --data out")
    for name, md5 in (
        CIFAR10.train_list + CIFAR10.test_list + [(CIFAR10.meta["filename"], CIFAR10.meta["md5"])]
    ):
        path = folder / name
        if not path.is_file():
            raise UserError(
                f"{path} is missing; restore it, or move {folder} away to have CIFAR-10 downloaded"
            )
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from None
        if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
            raise UserError(
                f"{path} ({len(content):,} bytes, MD5 differs) is not CIFAR-10's: truncated, corrupted or "
                f"foreign; restore it, or move {folder} away to have CIFAR-10 downloaded"
            )


def read(root: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The verified files below `root` as tensors, in the order and shapes of `Dataset.tensors`."""
    CIFAR10 = torchvision_cifar10()
    parts = []
    for names in (CIFAR10.train_list, CIFAR10.test_list):
        batches = [pickle.loads((root / FOLDER / name).read_bytes(), encoding="latin1") for name, _ in names]
        planar = np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32)
        parts.append(torch.from_numpy(np.ascontiguousarray(planar.transpose(0, 2, 3, 1))))
        parts.append(torch.tensor([label for batch in batches for label in batch["labels"]]))
    return tuple(parts)


def download(root: Path, url: str | None = None) -> None:
    """Downloads CIFAR-10 into `root`, with progress on standard error; checks its MD5.

    It arrives in a temporary folder beside its place and is moved there whole. `url` is torchvision's, or
    the environment's HLB_CIFAR10_URL. Raises DownloadError when no byte arrives for 10 s, when the file is
    not CIFAR-10, and when `root` cannot be written.
    """
    CIFAR10 = torchvision_cifar10()
    from torchvision.datasets.utils import check_integrity, extract_archive

    url = url or os.environ.get("HLB_CIFAR10_URL") or CIFAR10.url
    try:
        root.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".download-", dir=root))
    except OSError as error:
        raise DownloadError(
            f"cannot write to the cache folder {root} ({error.strerror}); set HLB_CACHE to one that can"
        ) from None
    archive = temporary / CIFAR10.filename
    try:
        with _stall_timeout(STALL_SECONDS):
            torch.hub.download_url_to_file(url, str(archive))
        problem = (
            None if check_integrity(archive, CIFAR10.tgz_md5) else "what came is truncated or not CIFAR-10"
        )
    except (OSError, http.client.HTTPException, ValueError) as error:
        cause = getattr(error, "reason", error)
        stalled = isinstance(cause, TimeoutError)
        problem = f"nothing for {STALL_SECONDS} s" if stalled else str(cause) or type(cause).__name__
    try:
        if problem:
            raise DownloadError(
                f"CIFAR-10 could not be downloaded from {url}: {problem}; download it by hand and give "
                "--data DIR, or take --data synthetic"
            )
        extract_archive(str(archive), str(temporary))
        with contextlib.suppress(FileExistsError, NotADirectoryError):  # another process was faster
            os.rename(temporary / FOLDER, root / FOLDER)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def _stall_timeout(seconds: float) -> Iterator[None]:
    """Every socket opened inside gives up after `seconds` without a byte."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _checksum(tensors: tuple[Tensor, ...]) -> int:
    value = 0
    for tensor in tensors:
        value = zlib.crc32(tensor.numpy(), value)
    return value


def _write_tensors(path: Path, tensors: tuple[Tensor, ...]) -> None:
    with atomic(path) as temporary:
        torch.save(
            {"format": "hlb-cifar10", "tensors": list(tensors), "crc32": _checksum(tensors)}, temporary
        )


def _read_tensors(path: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Reads and checks the tensor cache. Raises UserError for a foreign, truncated or corrupted file."""
    try:
        content = torch.load(path, weights_only=True)
        tensors = tuple(content["tensors"])
        good = (
            content["format"] == "hlb-cifar10"
            and tuple(tuple(t.shape) for t in tensors) == SHAPES
            and _checksum(tensors) == content["crc32"]
        )
    except Exception:  # torch.load raises many kinds for a file that is not its own
        good = False
    if not good:
        raise UserError(
            f"{path} is truncated, corrupted or not this program's cache; move it away to have it rebuilt"
        )
    return tensors
