"""What `pip install` brings: all that the code imports and reads, and what bench does without a checkout."""

from __future__ import annotations

import ast
import re
import runpy
import sys
from pathlib import Path

import pytest
import setuptools

import bench.__main__ as program

ROOT = Path(__file__).parents[1]
TOPS = ("hlb", "kernels", "bench")
# Imported where they are there: triton comes with torch, on Linux; pytest by the benchmarks that are its.
BESIDE = {"triton", "pytest"}


@pytest.fixture(scope="module")
def given() -> dict:
    """What setup.py gives to setuptools."""
    with pytest.MonkeyPatch.context() as patch:
        arguments = {}
        patch.setattr(setuptools, "setup", lambda **given: arguments.update(given))
        patch.chdir(ROOT)
        read = Path.read_text

        def strict(path: Path, encoding: str | None = None, errors: str | None = None) -> str:
            assert encoding == "utf-8", f"{path} is read in the encoding of the machine"
            return read(path, encoding, errors)

        patch.setattr(Path, "read_text", strict)
        runpy.run_path(str(ROOT / "setup.py"))
    return arguments


def required(requirements: list[str]) -> set[str]:
    return {re.match(r"[\w-]+", line)[0] for line in requirements}


IMPORTED_AS = {"PIL": "pillow"}


def imported(path: Path) -> set[str]:
    """The packages that a module imports, at its top or within."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module)
    return {IMPORTED_AS.get(top, top) for top in (name.split(".")[0] for name in names)}


def test_the_default_install_has_every_package_that_the_code_imports(given):
    modules = [path for top in TOPS for path in (ROOT / top).rglob("*.py")]
    foreign = set().union(*map(imported, modules)) - set(sys.stdlib_module_names) - {*TOPS} - BESIDE
    assert "matplotlib" in foreign and foreign <= required(given["install_requires"])
    pinned = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line[0] != "#"]
    assert required(given["install_requires"]) <= required(pinned)


def test_a_wheel_has_every_module_and_every_file_that_one_reads(given):
    packages = {path.parent.relative_to(ROOT).as_posix().replace("/", ".") for top in TOPS
                for path in (ROOT / top).rglob("__init__.py")}  # fmt: skip
    assert set(given["packages"]) == packages
    data = {path.relative_to(ROOT) for top in TOPS for path in (ROOT / top).rglob("*.json")}
    data = {path for path in data if path.parts[1] not in ("results", "baselines")}  # of a checkout
    marks = {Path(top, "py.typed") for top in ("hlb", "kernels")}
    packed = {
        path.relative_to(ROOT)
        for package, patterns in given["package_data"].items()
        for pattern in patterns
        for path in (ROOT / package.replace(".", "/")).glob(pattern)
    }
    assert packed == data | marks


def test_the_package_says_who_made_it_for_whom(given):
    assert given["author"] and "Typing :: Typed" in given["classifiers"]
    assert len(given["classifiers"]) == len(set(given["classifiers"])) > 5
    assert given["long_description"] == (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("arguments", [["card", "--toy"], ["gate"], ["report", "--markdown"]])
def test_without_a_checkout_what_needs_one_is_one_line(monkeypatch, tmp_path, capsys, arguments):
    monkeypatch.setattr(program, "CHECKOUT", tmp_path / "setup.py")
    assert program.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "needs a checkout" in err and arguments[0] in err


@pytest.mark.parametrize(
    "arguments", [["--help"], ["report", "--help"], ["check", "--help"], ["pairs", "--help"]]
)
def test_without_a_checkout_the_rest_of_bench_runs(monkeypatch, tmp_path, capsys, arguments):
    monkeypatch.setattr(program, "CHECKOUT", tmp_path / "setup.py")
    with pytest.raises(SystemExit) as ended:
        program.main(arguments)
    assert not ended.value.code and "usage: python -m bench" in capsys.readouterr().out
