"""Why nothing can be compiled here: what is missing, from the error that a compiler ended with.

    try: ...
    except Exception as error:
        if why := missing(error): ...     "no C compiler is found: install gcc"

Triton builds a launcher of its kernels with a C compiler, Inductor its code for a CPU with a C++ compiler;
both keep what they compile in folders. Where a compiler or a folder is missing, everything that is to be
compiled fails, with a hundred lines each: the fault is the machine's, not that of a kernel.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator

TRITON, INDUCTOR = "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"


def missing(error: BaseException) -> str | None:
    """What is missing, in a line that ends with what to do; None where the error is another one."""
    return next((why for one in _chain(error) if (why := _missing(one))), None)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, and those that it was raised from or wraps."""
    seen, todo = [], [error]
    while todo:
        one = todo.pop()
        if isinstance(one, BaseException) and one not in seen:
            yield one
            seen.append(one)
            todo += [one.__context__, one.__cause__, getattr(one, "inner_exception", None)]


def _missing(error: BaseException) -> str | None:
    text = str(error)
    if "Failed to find C compiler" in text or type(error).__name__ == "InvalidCxxCompiler":
        return "no C compiler is found: install gcc and g++, or set CC and CXX"
    if "uid not found" in text:  # Inductor's folder has the user's name
        return "compiled code is kept in a folder with the user's name, and there is none: set " + INDUCTOR
    if isinstance(error, OSError):
        if error.filename and error.filename in (os.environ.get("CC"), os.environ.get("CXX")):
            return f"the C compiler {error.filename} is not there: set CC and CXX to one that is"
        if folder := _cache(error.filename):
            return f"{error.filename}: {error.strerror}, and compiled code is kept there: set {folder}"
        if "No usable temporary directory" in text:
            return "no temporary folder can be written: set TMPDIR"
    built = isinstance(error, subprocess.CalledProcessError) and "-shared" in error.cmd
    if built or (absent := re.search(r"fatal error: (\S+: No such file or directory)", text)):
        what = "what it wrote says why" if built else absent[1]
        return f"the C compiler cannot build here ({what}): install Python's headers and those of C"
    return None


def _cache(filename: str | bytes | None) -> str | None:
    """The variable that names another folder for compiled code, if a file is in it, or a folder around it."""
    if not filename:
        return None
    usual = {
        TRITON: os.path.join(os.environ.get("TRITON_HOME") or os.path.expanduser("~"), ".triton"),
        INDUCTOR: os.path.join(tempfile.gettempdir(), "torchinductor_"),  # and a name
    }
    path = os.path.abspath(os.fsdecode(filename))
    for variable, folder in usual.items():
        folder = os.path.abspath(os.environ.get(variable) or folder)
        if path.startswith(folder) or folder.startswith(path):
            return variable
    return None
