"""Writing files whole or not at all."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .errors import UserError


@contextlib.contextmanager
def atomic(path: Path | str) -> Iterator[Path]:
    """Gives a temporary path beside the file to write to; on leaving, it replaces the file, or is removed on
    an error. A link stays one: what it points to is replaced. A file that was there keeps its mode.

    An OSError of the writing names `path`.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():  # a device or a pipe, /dev/null say: nothing to rename over
        with _naming(path):
            yield path
        return
    with _naming(path):
        temporary = _temporary(path)
    try:
        with _naming(path):
            yield temporary
            os.chmod(temporary, stat.S_IMODE(path.stat().st_mode) if path.exists() else 0o666 & ~_umask())
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _temporary(path: Path) -> Path:
    """A new empty file beside `path`, whose name is no longer than a folder allows."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name[:32]}.", dir=path.parent)
    os.close(handle)
    return Path(name)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Names `path` in an OSError: one of writing names no file, one of renaming the temporary one."""
    try:
        yield
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def reason(error: OSError) -> str:
    """What the system says of a file that cannot be read or written, such as "No space left on device"."""
    return error.strerror or str(error) or type(error).__name__


@contextlib.contextmanager
def noted(failures: list[str], option: str, path: Path | str) -> Iterator[None]:
    """Adds a line to `failures` where the work inside cannot write `path`, on a full disk say, and goes on:
    what else there is to tell is worth more.
    """
    try:
        yield
    except OSError as error:
        failures.append(f"{option}: cannot write {path}: {error.strerror}; make room, or give another path")


def check_output(target: str | None, option: str) -> None:
    """As `check_writable`, of what may also be standard output (-), or not asked for (None)."""
    if target not in (None, "-"):
        check_writable(target, option)


def check_writable(path: Path | str, option: str, append: bool = False) -> None:
    """Raises UserError, naming `option`, if `path` cannot be replaced, or if `append` says so, written to;
    makes its folder. Called before any work begins.
    """
    try:
        real = Path(os.path.realpath(path))
        real.parent.mkdir(parents=True, exist_ok=True)
        if os.path.isdir(path) or not os.fspath(path):
            raise IsADirectoryError(None, "it is a folder")
        if real.exists() and not real.is_fifo():  # which would wait for its reader
            with open(real, "ab"):
                pass
        if not real.exists() or real.is_file() and not append:
            _temporary(real).unlink()
    except (OSError, ValueError, TypeError) as error:  # a null character, no path at all
        why = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{option}: cannot write {path}: {why}; give a path that can be written") from None
