"""One timed thing at a time on a machine, whichever process it is in."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None


def path() -> Path:
    """The lock's file; of a user, so that two may share a machine."""
    return Path(tempfile.gettempdir()) / f"hlb-card-{os.getuid() if fcntl else 0}.lock"


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Inside, no other process is in here. The system lets go of it where a process is killed."""
    with open(path(), "w") as f:
        if fcntl:
            fcntl.flock(f, fcntl.LOCK_EX)
        yield
