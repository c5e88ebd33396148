"""`python -m kernels`: the catalogue of ops."""

from __future__ import annotations

import argparse
import json
import os
import sys
import textwrap
import typing

from . import CATALOGUE
from .base import launch
from .base.spec import KernelSpec

HELP = """\
usage: python -m kernels [--json]

The ops that have a kernel: formula, custom ops, cases and dtypes. --json: bytes and FLOPs of each case too.
"""
WIDTH = 100
MOVED = {"check": "python -m bench check", "tune": "python -m bench tune"}  # command -> where it is now


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> typing.NoReturn:
        print(f"kernels: {message}", file=sys.stderr)
        sys.exit(2)

    def format_help(self) -> str:
        return HELP


def main(arguments: list[str] | None = None) -> int:
    """Runs a command line; returns the exit status: 0, 2 (a mistake), 130 (interrupted)."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = Parser(allow_abbrev=False)
    if arguments and arguments[0] in MOVED:
        parser.error(f"{arguments[0]} is now `{MOVED[arguments[0]]}`")
    parser.add_argument("--json", action="store_true")
    try:
        try:
            return _list(parser.parse_args(arguments))
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read our output has left; what is still buffered goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _work(spec: KernelSpec) -> dict:
    """An op for a program to read. Bytes and FLOPs of a case are sums over its kernels, in float16."""
    dtype = spec.dtype()
    return {
        "formula": spec.formula,
        "ops": list(spec.ops),
        "dtypes": [launch.short(each) for each in spec.dtypes],
        "cases": [
            {
                "name": case.name,
                "bytes": sum(spec.bytes(case, dtype).values()),
                "flops": sum(spec.flops(case, dtype).values()),
            }
            for case in spec.cases
        ],
    }


def _list(options: argparse.Namespace) -> int:
    catalogue = {name: _work(spec) for name, spec in CATALOGUE.items()}
    if options.json:
        print(json.dumps(catalogue, indent=1))
        return 0
    for name, work in catalogue.items():
        count = f"{len(work['cases']):3} case{'s' * (len(work['cases']) != 1)}"
        print(f"{name:24}{count:12}{' '.join(work['dtypes'])}")
        for text in (work["formula"], " ".join(work["ops"])):
            print(textwrap.fill(text, WIDTH, initial_indent="    ", subsequent_indent="        "))
    return 0


if __name__ == "__main__":
    sys.exit(main())
