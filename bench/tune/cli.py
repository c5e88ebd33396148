"""`python -m bench tune`: the fastest launch configurations, and its options."""

from __future__ import annotations

import argparse
import os
from functools import partial
from pathlib import Path

import torch

from hlb import UserError
from hlb.errors import Parser, exit_status, positive
from hlb.execution import cpus
from hlb.files import check_output
from kernels.base import launch
from kernels.convolution import selection

from . import conversion, fitting, tune

HELP = """\
usage: python -m bench tune [NAME ...] [--all] [--dry-run] [--json [FILE|-]]
                            [--jobs N]
       python -m bench tune --from FILE | --fit FILE

Measures the launch configurations of the recipes' convolutions of every NAME
(record94, r1.conv1, forward, unpool, 31x31, bfloat16 ...; without one, those in
float16) on the GPU that is here, beside cuDNN, and keeps the fastest for later
runs.

  --all            every dtype, and every candidate, not the few of the best
                   modelled time
  --dry-run        show configurations and modelled times, which needs no GPU
  --json [FILE|-]  every measurement; - is standard output
  --jobs N         processes; as many as there are CPUs
  --from FILE      takes what such a file holds, such as
                   bench/results/h200/conv-passes.json
  --fit FILE       how far modelled times are off those of such a file, and the
                   constants that suit it best
"""


def main(arguments: list[str]) -> int:
    """Returns the exit status: 0, 1 (incorrect values), 2 (a mistake), 130 (interrupted)."""
    return exit_status("bench tune", partial(_main, arguments))


def parsed(arguments: list[str]) -> argparse.Namespace:
    """The options of a command line, checked. Raises UserError for invalid ones."""
    parser = Parser(description=HELP)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--from", dest="source", metavar="FILE")
    parser.add_argument("--fit", metavar="FILE")
    parser.add_json()
    parser.add_argument("--jobs", type=positive)
    options = parser.parse_args(arguments)
    for name, option in (("fit", "--fit"), ("source", "--from")):
        if getattr(options, name):
            options.only((name,), f"{option} measures nothing")
    check_output(options.json, "--json")
    return options


def _main(arguments: list[str]) -> int:
    options = parsed(arguments)
    if not launch.INSTALLED:
        raise UserError("Triton is needed, which is not installed here")
    try:
        return _run(options, arguments)
    except ValueError as error:  # a fault of measured.json, or of the file
        raise UserError(str(error)) from None


def _run(options: argparse.Namespace, arguments: list[str]) -> int:
    if options.fit:
        return fitting.run(Path(options.fit))
    if options.source:
        chip, count = conversion.take(Path(options.source))
        print(f"{selection.FILE.name}: {count} passes measured on {chip}")
        return 0
    jobs = tune.jobs(options.names or ([] if options.all else ["float16"]))
    processes = options.jobs or cpus()
    if not jobs:
        raise UserError(
            f"no convolution of the recipes is named {' '.join(options.names)!r}; --dry-run shows all"
        )
    if options.dry_run:
        return tune.dry_run(jobs, options.json, processes, options.all)
    if not torch.cuda.is_available() or launch.INTERPRETED:
        raise UserError(
            "a CUDA device is needed, and no TRITON_INTERPRET; --dry-run shows what would be measured"
        )
    if not os.access(selection.FILE.parent, os.W_OK):
        raise UserError(f"{selection.FILE} cannot be written")
    command = ["python", "-m", "bench", "tune", *arguments]
    return tune.run(jobs, command, options.json, processes, every=options.all)
