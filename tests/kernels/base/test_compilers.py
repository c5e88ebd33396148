"""What is missing where nothing can be compiled, from the errors that Triton and Inductor end with."""

from __future__ import annotations

import subprocess

import pytest

from kernels.base import launch
from kernels.base.compilers import missing

NEEDS_TRITON = pytest.mark.skipif(not launch.INSTALLED, reason="triton is not installed")


def raised(work, *arguments) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: B017, PT011  whatever a library raises
        work(*arguments)
    return caught.value


def build():
    """As Triton builds a launcher."""
    from triton.runtime.build import _build

    _build("launcher", "/no/launcher.c", "/no", [], [], [], [])


@NEEDS_TRITON
@pytest.mark.parametrize(
    ("compiler", "why"),
    [
        (None, "no C compiler is found: install gcc and g++"),
        ("/no/gcc", "the C compiler /no/gcc is not there: set CC"),
        ("false", "the C compiler cannot build here (what it wrote says why): install Python's headers"),
    ],
)
def test_a_c_compiler_that_is_missing_or_broken_is_named(compiler, why, monkeypatch):
    if compiler is None:
        monkeypatch.setenv("PATH", "")
        monkeypatch.delenv("CC", raising=False)
    else:
        monkeypatch.setenv("CC", compiler)
    assert missing(raised(build)).startswith(why)


@NEEDS_TRITON
def test_a_cache_of_tritons_that_cannot_be_written_is_named(monkeypatch, tmp_path):
    from triton.runtime.cache import FileCacheManager

    (tmp_path / "file").touch()
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "file/cache"))
    why = missing(raised(FileCacheManager, "KEY"))
    assert why.startswith(f"{tmp_path}/file") and why.endswith(": set TRITON_CACHE_DIR")
    assert "Not a directory" in why or "File exists" in why


@pytest.mark.parametrize("number", [13, 28, 30])  # denied, full, read-only
def test_a_cache_of_inductors_that_cannot_be_written_is_named(number, monkeypatch, tmp_path):
    def denied(*_):
        raise OSError(number, "why", str(tmp_path / "fxgraph/ab"))

    def wrapped():
        try:
            denied()
        except OSError as error:
            outer = RuntimeError("a hundred lines")
            outer.inner_exception = error
            raise outer from None

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    expected = f"{tmp_path}/fxgraph/ab: why, and compiled code is kept there: set TORCHINDUCTOR_CACHE_DIR"
    assert missing(raised(wrapped)) == expected
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path.parent / "elsewhere"))
    assert missing(raised(wrapped)) is None


def test_headers_that_are_missing_are_named():
    error = RuntimeError(
        "C++ compile error\n\nOutput:\na.cpp:1:10: fatal error: Python.h: No such file or directory\n 1 |"
    )
    why = "the C compiler cannot build here (Python.h: No such file or directory): install Python's headers"
    assert missing(error).startswith(why)


def test_a_user_without_a_name_is_told_which_folder_to_name():
    assert missing(KeyError("getpwuid(): uid not found: 4321")).endswith("set TORCHINDUCTOR_CACHE_DIR")


def test_any_other_error_is_none_of_these(tmp_path):
    others = (
        ValueError("x: got 3"),
        RuntimeError("a.cpp:1:10: error: 'x' was not declared"),
        raised(open, tmp_path / "absent"),
        raised(subprocess.check_call, ["false"]),
    )
    assert [missing(error) for error in others] == [None] * len(others)
