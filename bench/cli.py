"""`python -m bench`: options, what is done with them, and the files that come of it."""

from __future__ import annotations

import argparse
import importlib.util
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import NoReturn

import torch
from rich.console import Console

import kernels
from hlb import UserError, ledger
from hlb.errors import exit_status
from hlb.files import check_writable
from kernels import timing
from kernels.calls import DIRECTIONS
from kernels.spec import Case, KernelSpec

from . import micro
from .asm import CHIPS, STAGES
from .rows import write_csv

HELP = """\
usage: python -m bench [NAME ...] [--case TEXT] [--dtype NAME] [options]
       python -m bench [NAME ...] --asm STAGE [--chip CC] | --trace FILE
       python -m bench [NAME ...] --ncu [--kernel NAME] | --vs REF [--rounds N]
       python -m bench card ...    everything, on a new GPU: `bench card --help`
       python -m bench gate ...    the speed gate: `python -m bench gate --help`
       pytest bench                the same times, for pytest-benchmark

Times ops beside the PyTorch that they replace, at the shapes of record94, or
all the recipes' where NAME or --case or --all says so: eager, compiled and
cudnn against triton, its forms and tuned; forward, backward and both. What is
wrong is not timed. Without a GPU the references alone, on the CPU, at a small
batch.

  NAME             {names}
  --case TEXT      only cases whose name contains this: --case r1.conv1
  --dtype NAME     {dtypes}; float16, on a CPU float32.
                   Without it, an op that does not have that takes its own
  --direction WAY  {directions}
  --samples N      times taken of each, {samples} if not given
  --all            every case of every op
  --max-autotune   references autotuned by Inductor too: 1 to 2 minutes a case
  --compile        compiled references on a CPU too
  --json FILE      all that was measured, where, and of which commit
  --csv FILE       a line for each row
  --out FOLDER     rows.json and rows.csv, and roofline and speedup as .png and
                   .svg; needs matplotlib

Instead of times:
  --asm STAGE      the code of one case: {stages}
  --chip CC        for another GPU: {chips}
  --trace FILE     a Chrome trace of a few calls of each case
  --ncu            Nsight Compute's counters of one launch
  --kernel NAME    of this kernel
  --vs REF         ratios to the times at another git revision
  --rounds N       runs of each revision, in turn, {rounds} if not given
"""
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
ROUNDS = 5
# What is done -> options that say how; "" is the benchmark itself.
MODES = {
    "": ("direction", "samples", "all", "max_autotune", "compile", "json", "csv", "out"),
    "asm": ("chip",),
    "trace": (),
    "ncu": ("direction", "kernel"),
    "vs": ("direction", "samples", "rounds", "json"),
}
FILES = ("rows.json", "rows.csv", "roofline.png", "roofline.svg", "speedup.png", "speedup.svg")  # of --out


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


class _Parser(Parser):
    """The benchmark's, with its help."""

    def format_help(self) -> str:
        names, lines = list(kernels.CATALOGUE), [""]
        for name in names:
            word = name + "," * (name != names[-1])
            if len(lines[-1]) + len(word) > 60:
                lines.append("")
            lines[-1] += word + " "
        return HELP.format(
            names=("\n" + " " * 19).join(line.strip() for line in lines),
            dtypes=", ".join(DTYPES),
            directions=", ".join(DIRECTIONS),
            samples=timing.SAMPLES,
            stages=", ".join(STAGES),
            chips=", ".join(CHIPS),
            rounds=ROUNDS,
        )


def parsed(arguments: list[str]) -> argparse.Namespace:
    """The options, checked; `mode` is a key of MODES. UserError for what is none."""
    parser = _Parser(allow_abbrev=False)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--case", default="")
    parser.add_argument("--dtype", choices=DTYPES)
    parser.add_argument("--direction", choices=DIRECTIONS)
    parser.add_argument("--samples", type=int)
    for option in ("--all", "--max-autotune", "--compile"):
        parser.add_argument(option, action="store_true", default=None)
    for option in ("--json", "--csv", "--out", "--trace"):
        parser.add_argument(option, type=Path)
    parser.add_argument("--asm", choices=STAGES)
    parser.add_argument("--chip")
    parser.add_argument("--ncu", action="store_true", default=None)
    parser.add_argument("--kernel")
    parser.add_argument("--vs")
    parser.add_argument("--rounds", type=int)
    options = parser.parse_args(arguments)
    for name in options.names:
        if name not in kernels.CATALOGUE:
            raise UserError(f"NAME: got {name!r}, accepted are {', '.join(kernels.CATALOGUE)}")
    options.mode = _mode(options)
    for option in ("samples", "rounds"):
        number = getattr(options, option)
        if number is not None and number < 1:
            raise UserError(f"--{option}: got {number}, accepted is 1 or more")
    _check_files(options)
    return options


def _mode(options: argparse.Namespace) -> str:
    """What is done. UserError for two things at once, and for an option that the one does not have."""
    asked = [mode for mode in MODES if mode and getattr(options, mode) is not None]
    if len(asked) > 1:
        raise UserError(f"--{' and --'.join(asked)}: one at a time")
    mode = asked[0] if asked else ""
    for option in dict.fromkeys(option for known in MODES.values() for option in known):
        if getattr(options, option) is not None and option not in MODES[mode]:
            others = " or ".join(f"--{other}" for other in MODES if other and option in MODES[other])
            needs = f"needs {others}" if others and not mode else f"does not go with --{mode}"
            raise UserError(f"--{option.replace('_', '-')}: {needs}")
    return mode


def _check_files(options: argparse.Namespace) -> None:
    """UserError for a file that could not be written, or that two options name."""
    files = {f"--{name}": getattr(options, name) for name in ("json", "csv", "trace")}
    files = {option: path for option, path in files.items() if path}
    if options.out:
        if importlib.util.find_spec("matplotlib") is None:
            raise UserError('--out: plots need matplotlib, which is not installed: pip install -e ".[plot]"')
        if options.out.exists() and not options.out.is_dir():
            raise UserError(f"--out: {options.out} is no folder; give one")
        files |= {f"--out {file}": options.out / file for file in FILES}
    names = {}
    for option, path in files.items():
        if path.resolve() in names:
            raise UserError(f"{names[path.resolve()]} and {option}: both are {path}; give two files")
        names[path.resolve()] = option
    for option, path in files.items():
        check_writable(path, option.split()[0])


def selected(options: argparse.Namespace, device: str) -> tuple[dict[KernelSpec, list[Case]], torch.dtype]:
    """The cases of each op that was asked for, and the dtype. UserError where there is none."""
    specs = [kernels.CATALOGUE[name] for name in options.names or kernels.CATALOGUE]
    if options.mode or options.names or options.case or options.all:
        found = {spec: [case for case in spec.cases if options.case in case.name] for spec in specs}
    else:
        found = {spec: micro.few(spec) for spec in specs}
    if not any(found.values()):
        names = dict.fromkeys(case.name for spec in specs for case in spec.cases)
        raise UserError(f"--case: got {options.case!r}, cases are {', '.join(names)}")
    found = {spec: cases for spec, cases in found.items() if cases}
    if options.direction in ("backward", "both"):
        found = {spec: cases for spec, cases in found.items() if spec.differentiable}
        if not found:
            raise UserError(f"--direction: got {options.direction}, none of these ops has a gradient")
    if options.dtype:
        found = {spec: cases for spec, cases in found.items() if DTYPES[options.dtype] in spec.dtypes}
        if not found:
            raise UserError(f"--dtype: got {options.dtype}, none of these ops has it")
        return found, DTYPES[options.dtype]
    dtype = torch.float32 if device == "cpu" and options.mode != "asm" else torch.float16
    return found, dtype if any(dtype in spec.dtypes for spec in found) else next(iter(found)).dtypes[0]


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0, 1 (something failed or is wrong), 2 (a mistake), 130 (interrupted)."""
    return exit_status("bench", partial(_main, sys.argv[1:] if arguments is None else arguments))


def _main(arguments: list[str]) -> int:
    options = parsed(arguments)
    device, _ = micro.timed_on()
    todo, dtype = selected(options, device)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    if options.mode:
        return _instead(options, console, todo, dtype, device)
    return _benchmark(options, console, todo, dtype, shlex.join(["python", "-m", "bench", *arguments]))


def _benchmark(
    options: argparse.Namespace,
    console: Console,
    todo: dict[KernelSpec, list[Case]],
    dtype: torch.dtype,
    command: str,
) -> int:
    record = micro.run(
        console,
        todo,
        dtype,
        samples=options.samples or timing.SAMPLES,
        direction=options.direction,
        compile=bool(options.compile),
        autotune=bool(options.max_autotune),
        command=command,
    )
    out = options.out
    for path in filter(None, (options.json, out and out / "rows.json")):
        ledger.write(path, record)
    for path in filter(None, (options.csv, out and out / "rows.csv")):
        write_csv(path, record)
    if out:
        from hlb import plots

        plots.roofline(record, out / "roofline.png", out / "roofline.svg")
        plots.speed_up(record, out / "speedup.png", out / "speedup.svg")
        console.print(f"\n{', '.join(FILES)} are in {out}", markup=False, soft_wrap=True)
    return 1 if any(row["fault"] for row in record["rows"]) else 0


def _instead(
    options: argparse.Namespace,
    console: Console,
    todo: dict[KernelSpec, list[Case]],
    dtype: torch.dtype,
    device: str,
) -> int:
    """What is done instead of the benchmark, of the ops that have this dtype."""
    todo = {spec: cases for spec, cases in todo.items() if dtype in spec.dtypes}
    if options.mode == "asm":
        from . import asm

        return asm.run(console, todo, dtype, options.asm, options.chip)
    if options.mode == "trace":
        from . import trace

        return trace.run(console, todo, dtype, device, options.trace)
    if options.mode == "ncu":
        from . import ncu

        return ncu.run(console, todo, dtype, options.direction, options.kernel)
    from . import versus

    names, samples, rounds = options.names, options.samples or timing.SAMPLES, options.rounds or ROUNDS
    asked = (options.case, kernels.launch.short(dtype), options.direction)
    return versus.run(console, options.vs, names, *asked, samples, rounds, options.json)
