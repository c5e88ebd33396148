"""`python -m kernels`: the catalogue of ops; `check`: the ahead-of-time check; `tune`: fastest launches."""

from __future__ import annotations

import argparse
import json
import os
import sys
import textwrap
import typing
from pathlib import Path

import torch

from . import CATALOGUE, launch
from .spec import KernelSpec

HELP = """\
usage: python -m kernels [--json | --markdown]
       python -m kernels check [NAME ...] [--all] [--json FILE|-] [--jobs N]
       python -m kernels tune [NAME ...] [--all] [--dry-run] [--json FILE|-] [--jobs N]
       python -m kernels tune --from FILE | --fit FILE

Alone: the ops that have a kernel. check: compiles every launch of these ops, or of all, for compute
capability 8.0, 8.9, 9.0 and 10.0, which needs no GPU, and fails on spills, too much shared memory, dots
without tensor cores, loops without asynchronous copies and narrow memory accesses; `python -m bench gate
--static` compares with how it was. tune: measures the launch configurations of the recipes' convolutions of
every NAME (record94, r1.conv1, forward, unpool, 31x31, bfloat16 ...; without one, those in float16) on the
GPU that is here, beside cuDNN, and keeps the fastest for later runs.

  --markdown   what each op does and moves: kernels/README.md
  --all        check: dtypes other than float16 too at every case for every chip, not one case for 9.0;
               tune: every dtype, and every candidate, not the few of the best modelled time
  --dry-run    show configurations and modelled times, which needs no GPU
  --json FILE  everything that was found; - is standard output
  --jobs N     processes; as many as there are CPUs
  --from FILE  takes what such a file holds, such as bench/results/h200/conv-passes.json
  --fit FILE   how far modelled times are off those of such a file, and the constants that suit it best
"""
WIDTH = 100


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> typing.NoReturn:
        fail(message)

    def format_help(self) -> str:
        return HELP


def fail(message: str) -> typing.NoReturn:
    print(f"kernels: {message}", file=sys.stderr)
    sys.exit(2)


def positive(text: str) -> int:
    """An option's whole number; argparse names the option when it is none."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, accepted is a whole number above 0")
    return int(text)


def parser() -> Parser:
    """The parser of both commands."""
    top = Parser(prog="kernels", allow_abbrev=False)
    commands = top.add_subparsers(dest="command", parser_class=Parser)
    show = commands.add_parser("list", allow_abbrev=False)
    form = show.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true")
    form.add_argument("--markdown", action="store_true")
    show.set_defaults(run=_list)
    check = commands.add_parser("check", allow_abbrev=False)
    check.add_argument("names", nargs="*", metavar="NAME")
    check.add_argument("--all", action="store_true")
    check.add_argument("--json", metavar="FILE|-")
    check.add_argument("--jobs", type=positive)
    check.set_defaults(run=_check)
    tune = commands.add_parser("tune", allow_abbrev=False)
    tune.add_argument("names", nargs="*", metavar="NAME")
    tune.add_argument("--all", action="store_true")
    tune.add_argument("--dry-run", action="store_true")
    tune.add_argument("--from", dest="source", metavar="FILE")
    tune.add_argument("--fit", metavar="FILE")
    tune.add_argument("--json", metavar="FILE|-")
    tune.add_argument("--jobs", type=positive)
    tune.set_defaults(run=_tune)
    return top


def main(arguments: list[str] | None = None) -> int:
    """Runs a command line; returns the exit status: 0, 1 (a kernel breaks a rule), 2 (a mistake)."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-h", "--help")):
        arguments = ["list", *arguments]
    options = parser().parse_args(arguments)
    try:
        return options.run(options)
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
    if options.markdown:
        from . import page

        print(page.text())
        return 0
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


def _expect_writable(name: str | None) -> None:
    if name not in (None, "-"):
        file = Path(name).resolve()
        if file.is_dir() or not os.access(file.parent, os.W_OK):
            fail(f"--json: {name!r} cannot be written")


def _check(options: argparse.Namespace) -> int:
    if unknown := [name for name in options.names if name not in CATALOGUE]:
        fail(f"no op {unknown[0]!r}; there are {', '.join(CATALOGUE)}")
    _expect_writable(options.json)
    if not launch.INSTALLED:
        fail("check needs triton, which is not installed here")
    if launch.INTERPRETED:  # as it was imported, triton cannot compile
        environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        sys.stdout.flush()
        os.execve(sys.executable, sys.orig_argv, environment)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    cache = Path(os.environ.get("HLB_CACHE") or Path(base) / "hlb")
    os.environ.setdefault("TRITON_CACHE_DIR", str(cache / "aot"))
    from . import report

    return report.run(options.names, options.all, options.json, options.jobs)


def _tune(options: argparse.Namespace) -> int:
    _expect_writable(options.json)
    if not launch.INSTALLED:
        fail("tune needs triton, which is not installed here")
    from . import conversion, fitting, launches, tune

    if options.fit:
        try:
            return fitting.run(Path(options.fit))
        except ValueError as error:
            fail(str(error))
    if options.source:
        try:
            chip, count = conversion.take(Path(options.source))
        except ValueError as error:
            fail(str(error))
        print(f"{launches.FILE.name}: {count} passes measured on {chip}")
        return 0
    jobs = tune.jobs(options.names or ([] if options.all else ["float16"]))
    processes = options.jobs or len(os.sched_getaffinity(0))
    if not jobs:
        fail(f"no convolution of the recipes is named {' '.join(options.names)!r}; --dry-run shows all")
    try:
        if options.dry_run:
            return tune.dry_run(jobs, options.json, processes, options.all)
        if not torch.cuda.is_available() or launch.INTERPRETED:
            fail("tune needs a CUDA device and no TRITON_INTERPRET; --dry-run shows what it would measure")
        if not os.access(launches.FILE.parent, os.W_OK):
            fail(f"tune writes {launches.FILE}, which cannot be written")
        command = ["python", "-m", "kernels", *sys.argv[1:]]
        return tune.run(jobs, command, options.json, processes, every=options.all)
    except ValueError as error:  # of the table that is there
        fail(str(error))


if __name__ == "__main__":
    sys.exit(main())
