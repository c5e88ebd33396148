"""The cache folder: whole sets as one file of tensors each, and what a process puts together there.

A cache is a convenience: where it cannot be read or written, a line of the log says so and the set is made
without it. Nothing that this package did not write is ever overwritten or deleted.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import platform
import re
import shutil
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from ..errors import UserError
from ..files import reason
from .dataset import CLASSES, Dataset

try:
    import fcntl
except ImportError:  # Windows locks no folder
    fcntl = None

log = logging.getLogger(__name__)
PREFIX = ".download-"  # of folders that are in the making
HERE = f"{PREFIX}{re.sub('[^0-9A-Za-z]', '', platform.node())[:32]}-"  # of those that are on this machine
ABANDONED_SECONDS = 3600  # after which one of another machine that nothing has touched counts as abandoned


class DownloadError(UserError):
    """A published set is not on disk and could not be fetched."""


def cache_dir() -> Path:
    """Where downloads and tensor caches go: $HLB_CACHE, else $XDG_CACHE_HOME/hlb, else ~/.cache/hlb. Raises
    DownloadError where that asks for the home folder of a user who has none.
    """
    asked, base = os.environ.get("HLB_CACHE"), os.environ.get("XDG_CACHE_HOME")
    try:
        if asked:
            return Path(asked).expanduser()
        return (Path(base).expanduser() if base else Path.home() / ".cache") / "hlb"
    except RuntimeError:
        raise DownloadError("there is no home folder to cache data in; set HLB_CACHE to a folder") from None


def cached(stem: str, key: str, make: Callable[[], Dataset]) -> Dataset:
    """The set that `make` gives, from the file `stem`.pt of the cache where that was made under the same
    `key`; else made, and cached. Raises UserError for a cache that is damaged or another program's.
    """
    try:
        path = cache_dir() / f"{stem}.pt"
    except DownloadError:
        return make()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch.load, about files that it refuses
            found = _read(path, stem, key)
    except OSError as error:
        log.warning(f"hlb: the cache {path} cannot be read: {reason(error)}; going on without it")
        return make()
    if found is None:
        found = make()
        try:
            _write(path, stem, key, found)
        except OSError as error:
            log.warning(f"hlb: the cache {path} cannot be written: {reason(error)}; going on without it")
    return found


def _read(path: Path, stem: str, key: str) -> Dataset | None:
    """None where there is no such file, or one that was made under another key."""
    try:
        content = dict(torch.load(path, weights_only=True))
        tensors = tuple(content["tensors"])
        about = content.get("about", {"name": stem, "classes": CLASSES})  # older ones were of CIFAR-10 alone
        good = content["format"] == f"hlb-{stem}" and _checksum(tensors) == content["crc32"]
        if good and _checksum_of_text(about) == content.get("about_crc32", _checksum_of_text(about)):
            return Dataset(tensors=tensors, **about) if content.get("key", "") == key else None
    except FileNotFoundError:
        return None
    except OSError:
        raise
    except Exception:  # torch.load raises many kinds for a file that is not its own
        pass
    raise UserError(
        f"{path} is truncated, corrupted or not this program's cache; move it away to have it rebuilt"
    )


def _write(path: Path, stem: str, key: str, dataset: Dataset) -> None:
    content, buffer = {"format": f"hlb-{stem}", "key": key, "tensors": list(dataset.tensors)}, io.BytesIO()
    content["crc32"] = _checksum(dataset.tensors)
    content["about"] = {field: getattr(dataset, field) for field in ("name", "mean", "std", "classes")}
    content["about_crc32"] = _checksum_of_text(content["about"])
    torch.save(content, buffer)  # to a file it would not say why it fails
    with scratch(path.parent) as folder:
        (folder / path.name).write_bytes(buffer.getbuffer())
        os.replace(folder / path.name, path)


def _checksum(tensors: tuple[Tensor, ...]) -> int:
    value = 0
    for tensor in tensors:
        value = zlib.crc32(tensor.numpy(), value)
    return value


def _checksum_of_text(about: dict) -> int:
    return zlib.crc32(repr(sorted(about.items())).encode(errors="backslashreplace"))


@contextlib.contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """A new folder in `folder`, which is made where it is missing, for what is moved to its place once it is
    whole. Removed on leaving, and so are those that killed processes have left. Raises OSError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(f"{PREFIX}*"):
        if _abandoned(left):
            shutil.rmtree(left, ignore_errors=True)
    unlocked = tempfile.mkdtemp(prefix=".new-", dir=folder)
    lock = _lock(unlocked)
    made = folder / Path(unlocked).name.replace(".new-", HERE, 1)
    os.rename(unlocked, made)  # locked since before anyone could call it abandoned
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _lock(folder: Path | str) -> int | None:
    """Locks a folder as long as the descriptor is open and the process lives; None where it is locked, or
    cannot be.
    """
    if fcntl is None:
        return None
    descriptor = None
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        if descriptor is not None:
            os.close(descriptor)
        return None
    return descriptor


def _abandoned(folder: Path) -> bool:
    """Whether the process that made a folder is dead. On this machine its lock has gone with it."""
    if fcntl is None or not folder.name.startswith(HERE):
        try:
            touched = max(path.stat().st_mtime for path in (folder, *folder.rglob("*")))
        except OSError:  # it goes just now
            return False
        return time.time() - touched > ABANDONED_SECONDS
    lock = _lock(folder)
    if lock is not None:
        os.close(lock)
    return lock is not None
