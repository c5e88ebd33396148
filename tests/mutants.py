"""Breaks each kernel in one place at a time and expects its tests to notice.

    python tests/mutants.py [NAME ...] [--jobs N] [--seconds N]

NAME is a module of kernels/ or of a folder in it; without one it is every module that has a kernel in the
catalogue, or a list of mutants and a part in one (then the tests are its own and those of the ops that import
it). The mutants of NAME.py stand in tests/mutants/NAME.txt, one a line, `#` before a comment:

    old text ==> new text

Old text occurs exactly once in the module. Each mutant is tried on a copy of the tree by the general kernel
tests of the module's ops, and by test_NAME.py and test_OP.py in tests/kernels/, where there are any, after
the module as it is. A mutant is caught when a test fails, or when the tests crash, or run out of time, as a
loop without an end does; one that cannot be imported is a mistake in the list. Exit status 1 if one survives,
or if a list is missing, wrong or shorter than FEWEST; 2 for an unknown NAME.
"""

from __future__ import annotations

import argparse
import ast
import shutil
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("kernels", "hlb", "bench", "tests", "pytest.ini")
TESTS = "tests/kernels"
FEWEST = 5
SEPARATOR = " ==> "
PASSED, FAILED = 0, 1  # pytest's exit status; any other is no verdict
CRASHES = (signal.SIGABRT, signal.SIGSEGV)  # the interpreter writes wherever a kernel says


@dataclass(frozen=True)
class Mutant:
    """One replacement in <module>.py; without a text, the module as it is."""

    module: str
    old: str = ""
    new: str = ""

    def __str__(self) -> str:
        return f"{self.module}: {self.old}{SEPARATOR}{self.new}" if self.old else f"{self.module} as it is"


def read(module: str, root: Path = ROOT) -> list[Mutant]:
    """The mutants of a module. ValueError for a list that is missing, short, or does not fit the module."""
    path = root / "tests" / "mutants" / f"{module}.txt"
    if not path.exists():
        raise ValueError(f"{path.name}: not there, and {module}.py has a kernel")
    source = modules(root)[module]
    text = source.read_text()
    mutants = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        old, separator, new = line.partition(SEPARATOR)
        if not separator or old == new:
            raise ValueError(f"{path.name}:{number}: got {line!r}, accepted is old text{SEPARATOR}new text")
        if text.count(old) != 1:
            raise ValueError(f"{path.name}:{number}: {old!r} occurs {text.count(old)} times in {source.name}")
        mutants.append(Mutant(module, old, new))
    if len(mutants) < FEWEST:
        raise ValueError(f"{path.name}: got {len(mutants)} mutants, accepted are {FEWEST} or more")
    return mutants


def modules(root: Path = ROOT) -> dict[str, Path]:
    """name -> file of each module in kernels/."""
    return {path.stem: path for path in (root / "kernels").rglob("*.py") if path.stem[0] != "_"}


def outcome(mutant: Mutant, ops: list[str], seconds: float, root: Path = ROOT) -> str:
    """`passed`, `caught`, `caught, out of time`, or what kept the tests from running."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in COPIED:
            if (root / name).is_dir():
                shutil.copytree(
                    root / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "results")
                )
            elif (root / name).exists():
                shutil.copy(root / name, copy / name)
        if mutant.old:
            path = modules(copy)[mutant.module]
            path.write_text(path.read_text().replace(mutant.old, mutant.new))
        files = {name: f"{TESTS}/test_{name}.py" for name in (mutant.module, *ops)}
        files = {name: file for name, file in files.items() if (copy / file).exists()}
        names = list(dict.fromkeys((*files, *ops)))
        command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider"]
        command += [*files.values(), "tests/kernels/test_kernels.py"]
        command += ["-k", " or ".join(names)]
        try:
            done = subprocess.run(command, cwd=copy, capture_output=True, text=True, timeout=seconds)
        except subprocess.TimeoutExpired:
            return "caught, out of time"
    if -done.returncode in CRASHES:
        return "caught, crashed"
    if done.returncode in (PASSED, FAILED):
        return "caught" if done.returncode == FAILED else "passed"
    lines = (done.stdout.strip() or done.stderr.strip() or "no output").splitlines()
    return f"no verdict, pytest ended with {done.returncode}: {lines[-1]}"


def catalogue() -> dict[str, list[str]]:
    """module -> names of the ops with kernels that are in it, or its own where it has none, and of those that
    use it.
    """
    sys.path.insert(0, str(ROOT))
    from kernels import CATALOGUE

    found: dict[str, list[str]] = {}
    for spec in CATALOGUE.values():
        found.setdefault(spec.op.__module__.rpartition(".")[2], []).append(spec.name)
    owners = {owner: list(names) for owner, names in found.items()}
    imports = {name: imported(path.read_text()) for name, path in modules().items()}
    for path in sorted((ROOT / "tests" / "mutants").glob("*.txt")):
        using = users(path.stem, imports)
        names = [name for owner, its in owners.items() if owner in using for name in its]
        found[path.stem] = owners.get(path.stem, [path.stem]) + names
    return found


def users(module: str, imports: dict[str, set[str]]) -> set[str]:
    """The other modules that import it, or names from it, directly or through others."""
    found, new = {module}, {module}
    while new:
        new = {name for name, names in imports.items() if name not in found and names & new}
        found |= new
    return found - {module}


def imported(text: str) -> set[str]:
    """Names of modules, or of what is in them, that a module imports from its package."""
    statements = [s for s in ast.walk(ast.parse(text)) if isinstance(s, ast.ImportFrom) and s.level]
    names = {name.name for statement in statements for name in statement.names}
    return names | {(statement.module or "").rpartition(".")[2] for statement in statements}


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        print(f"mutants: {message}", file=sys.stderr)
        sys.exit(2)


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, accepted is a whole number above 0")
    return int(text)


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="mutants", description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--jobs", type=positive, default=1)
    parser.add_argument("--seconds", type=positive, default=600, help="for the tests of one mutant (600)")
    options = parser.parse_args(arguments)
    ops = catalogue()
    for name in options.names:
        if name not in ops:
            print(f"mutants: NAME: got {name!r}, accepted are {', '.join(ops)}", file=sys.stderr)
            return 2
    todo, failures = [], []
    for module in options.names or ops:
        try:
            todo += [Mutant(module), *read(module)]
        except ValueError as error:
            failures.append(str(error))
    with ThreadPoolExecutor(options.jobs) as pool:
        results = pool.map(lambda mutant: outcome(mutant, ops[mutant.module], options.seconds), todo)
        for mutant, result in zip(todo, results):
            print(f"{result:<21}{mutant}", flush=True)
            if mutant.old and result == "passed":
                failures.append(f"survived: {mutant}")
            elif not result.startswith("caught" if mutant.old else "passed"):
                failures.append(f"{result}: {mutant}")
    print(f"{sum(bool(mutant.old) for mutant in todo)} mutants, {len(failures)} failures")
    for failure in failures:
        print(failure)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
