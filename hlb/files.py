"""Writing files whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .errors import UserError


@contextlib.contextmanager
def atomic(path: Path | str) -> Iterator[Path]:
    """Gives a temporary path beside `path` to write to; on leaving, it is renamed to `path`, or removed on
    an error.
    """
    path = Path(path)
    if path.exists() and not path.is_file():  # a device or a pipe, /dev/null say: nothing to rename over
        yield path
        return
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    try:
        yield Path(temporary)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def reason(error: OSError) -> str:
    """What the system says of a file that cannot be read or written, such as "No space left on device"."""
    return error.strerror or str(error) or type(error).__name__


def check_output(target: str | None, option: str) -> None:
    """As `check_writable`, of what may also be standard output (-), or not asked for (None)."""
    if target not in (None, "-"):
        check_writable(target, option)


def check_writable(path: Path | str, option: str) -> None:
    """Raises UserError, naming `option`, if `path` cannot be written; makes its folder. Called before any
    work begins.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(None, "it is a folder")
        if path.exists():
            with open(path, "ab"):
                pass
        else:
            with tempfile.TemporaryFile(dir=path.parent):
                pass
    except OSError as error:
        raise UserError(
            f"{option}: cannot write {path}: {error.strerror}; give a path that can be written"
        ) from None
