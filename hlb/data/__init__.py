"""Data sets as uint8 NHWC tensors: published ones, folders of images, and the built-in synthetic one.

`load` resolves what `--data` says: `auto`, the name of a published set or `synthetic`, `folder:PATH` (images
by class), or a folder that holds a published set in torchvision's layout. Published files are checked by MD5
before they are read. What was read once is cached as one file of tensors that loads in well under a second.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from .. import synthetic
from ..errors import UserError
from ..files import reason
from . import folder
from .cache import DownloadError, cache_dir, cached
from .dataset import Dataset
from .fetch import download
from .published import CIFAR10, PUBLISHED, Published, verify

FOLDER = CIFAR10.folder
ACCEPTED = f"accepted are auto, {', '.join(PUBLISHED)}, synthetic, folder:PATH of images by class"


def load(data: str | os.PathLike = "auto") -> Dataset:
    """The data set that `data` names. Raises UserError (DownloadError when a published set cannot be had).

    `auto` is CIFAR-10 if it is on disk or can be downloaded, else the synthetic set: its name tells.
    """
    if not isinstance(data, (str, os.PathLike)):
        raise UserError(f"--data: got {type(data).__name__}, {ACCEPTED}, or a hlb.Dataset")
    data = os.fspath(data)
    if "\0" in data:
        raise UserError(f"--data: got {data!r}, which no folder can be called; {ACCEPTED}")
    if data == "synthetic":
        return _synthetic()
    if data == "auto":
        try:
            return published(CIFAR10)
        except DownloadError as error:
            return _synthetic(note=str(error))
    if data in PUBLISHED:
        return published(PUBLISHED[data])
    kind, _, path = data.partition(":")
    if kind == "folder" and path:
        return folder.load(path)
    return published(*_held(data))


def published(source: Published, root: Path | None = None) -> Dataset:
    """A published set from `root`; without one from the cache, `./data` or `.`, else downloaded to the
    cache.
    """
    if root is not None:
        verify(source, root)  # also where its tensors are cached

    def read() -> Dataset:
        if root is not None:
            return source.read(root)
        place = found(source)
        if place is None:
            place = cache_dir()
            download(source, place)
        verify(source, place)
        return source.read(place)

    return cached(source.name, "", read)


def _synthetic(note: str = "") -> Dataset:
    return Dataset("synthetic", synthetic.make(), classes=synthetic.CLASSES, note=note)


def found(source: Published) -> Path | None:
    """Where a set lies that no folder was named for: the cache, `./data` or `.`; None where it does not. What
    cannot be looked into has nothing.
    """
    places = [Path("data"), Path()]
    with contextlib.suppress(DownloadError):
        places.insert(0, cache_dir())
    return next((place for place in places if os.path.exists(place / source.parts[-1])), None)


def _held(data: str) -> tuple[Published, Path]:
    """The published set that a folder holds, or is the folder of, and the folder that holds it."""
    root = Path(os.path.expanduser(data))
    try:
        if not stat.S_ISDIR(os.stat(root).st_mode):
            raise NotADirectoryError
        for source in PUBLISHED.values():
            known = source.parts[-1]
            if root.name == known:
                return source, root.parent
            with contextlib.suppress(FileNotFoundError):
                os.stat(root / known)
                return source, root
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"--data: no folder {data!r}; {ACCEPTED}, or a folder that holds {FOLDER}/") from None
    except OSError as error:
        raise UserError(f"--data: {data!r} cannot be read: {reason(error)}") from None
    known = ", ".join(source.parts[-1] for source in PUBLISHED.values())
    raise UserError(f"--data: none of {known} in {data!r}; of images by class, give folder:{data}")


def stored() -> tuple[str, str]:
    """The cache folder, and what of CIFAR-10 is in it, in words."""
    try:
        cache = cache_dir()
    except DownloadError as error:
        return str(error), "not there"
    if os.path.exists(cache / f"{CIFAR10.name}.pt"):
        return str(cache), "as tensors"
    return str(cache), "as batches" if os.path.isdir(cache / FOLDER) else "not there"
