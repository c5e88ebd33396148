"""Fetching the files of a published set, whole or not at all."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import torch

from ..files import reason
from .cache import DownloadError, scratch
from .published import Published, torchvision_datasets

STALL_SECONDS = 10  # a download that brings no byte for this long is given up


def download(source: Published, root: Path, mirror: str | None = None) -> None:
    """Downloads a set into `root`, with progress on standard error; checks each file's MD5.

    It arrives in a temporary folder beside its place and is moved there whole; where another process was
    faster, what that brought stays. `mirror` replaces where torchvision fetches it from, as the environment's
    HLB_CIFAR10_URL (HLB_CIFAR100_URL, HLB_SVHN_URL) does. Raises DownloadError when no byte arrives for 10 s,
    when a file is not what it should be, and when `root` cannot be written or is full.
    """
    mirror = mirror or os.environ.get(f"HLB_{source.name.upper()}_URL")
    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(scratch(root))
        except OSError as error:
            raise DownloadError(
                f"cannot write to the cache folder {root} ({reason(error)}); set HLB_CACHE to one that can"
            ) from None
        for url, name, md5 in source.archives(mirror):
            problem = _fetch(url, folder / name, md5, source.title)
            if problem:
                raise DownloadError(
                    f"{source.title} could not be downloaded from {url}: {problem}; download it by hand and "
                    "give --data DIR, or take --data synthetic"
                )
        for part in source.parts:
            _settle(folder / part, root / part)


def _fetch(url: str, path: Path, md5: str, title: str) -> str | None:
    """Fetches a file, unpacks it if it is an archive. Returns what went wrong."""
    torchvision_datasets()  # which may have to be helped to be imported
    from torchvision.datasets.utils import check_integrity, extract_archive

    try:
        with _stall_timeout(STALL_SECONDS):
            torch.hub.download_url_to_file(url, str(path))
        if not check_integrity(path, md5):
            return f"what came is truncated or not {title}"
        if path.suffix == ".gz":
            extract_archive(str(path), str(path.parent))
    except (OSError, http.client.HTTPException, ValueError) as error:
        cause = getattr(error, "reason", error)
        if isinstance(cause, TimeoutError):
            return f"nothing for {STALL_SECONDS} s"
        return reason(cause) if isinstance(cause, OSError) else str(cause) or type(cause).__name__
    return None


def _settle(come: Path, place: Path) -> None:
    """Moves what has come to its place, unless another process has filled that."""
    try:
        if not place.exists():
            os.rename(come, place)
    except OSError as error:
        if not place.exists():
            raise DownloadError(f"{place} cannot be written: {reason(error)}") from None


@contextlib.contextmanager
def _stall_timeout(seconds: float) -> Iterator[None]:
    """Every socket opened inside gives up after `seconds` without a byte."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
