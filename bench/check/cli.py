"""`python -m bench check`: the ahead-of-time check of kernels, and its options."""

from __future__ import annotations

import argparse
import os
import sys
from functools import partial

from hlb import UserError
from hlb.data import cache_dir
from hlb.errors import Parser, exit_status, expect_known, positive
from hlb.files import check_output
from kernels import CATALOGUE
from kernels.base import launch

HELP = """\
usage: python -m bench check [NAME ...] [--all] [--json [FILE|-]] [--jobs N]

Compiles every launch of these ops, or of all, for compute capability 8.0, 8.9,
9.0 and 10.0, which needs no GPU. Fails on spills, too much shared memory, dots
without tensor cores, loops without asynchronous copies and narrow memory
accesses. Activations that no recipe has are compiled for 9.0, once a kernel.
`python -m bench gate --static` compares the code with its baseline.

  --all            dtypes other than float16 too at every case for every chip,
                   not one case for 9.0
  --json [FILE|-]  the record; - is standard output
  --jobs N         processes; as many as there are CPUs
"""


def main(arguments: list[str]) -> int:
    """Returns the exit status: 0, 1 (a kernel breaks a rule), 2 (a mistake), 130 (interrupted)."""
    return exit_status("bench check", partial(_main, arguments))


def parsed(arguments: list[str]) -> argparse.Namespace:
    """The options of a command line, checked. Raises UserError for invalid ones."""
    parser = Parser(description=HELP)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--all", action="store_true")
    parser.add_json()
    parser.add_argument("--jobs", type=positive)
    options = parser.parse_args(arguments)
    expect_known("NAME", CATALOGUE, *options.names)
    check_output(options.json, "--json")
    return options


def _main(arguments: list[str]) -> int:
    options = parsed(arguments)
    if not launch.INSTALLED:
        raise UserError("Triton is needed, which is not installed here")
    if launch.INTERPRETED:  # as it was imported, triton cannot compile
        environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        sys.stdout.flush()
        os.execve(sys.executable, sys.orig_argv, environment)
    if "TRITON_CACHE_DIR" not in os.environ:
        os.environ["TRITON_CACHE_DIR"] = str(cache_dir() / "aot")
    from . import results

    return results.run(options.names, options.all, options.json, options.jobs)
