"""`python -m bench`: its options, the tools that they choose, and the files that it writes."""

from __future__ import annotations

import argparse
import importlib.util
import shlex
import sys
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

import kernels
from hlb import UserError
from hlb.errors import Parser, exit_status, expect_known, positive
from hlb.files import check_writable
from hlb.runs import ledger
from kernels.base import timing
from kernels.base.spec import Case, KernelSpec

from . import micro
from .calls import DIRECTIONS
from .inspect.asm import CHIPS, STAGES
from .rows import write_csv

HELP = """\
usage: python -m bench [NAME ...] [--case TEXT] [--dtype NAME] [options]
       python -m bench COMMAND ...    `python -m bench COMMAND --help`
       pytest bench                   the same times, for pytest-benchmark

Times ops beside the PyTorch that they replace: eager, compiled and cudnn
against triton, its forms and tuned; forward, backward and both. At the shapes
of record94; with NAME, --case or --all at those of every recipe. Incorrect
kernels are not timed. Without a GPU it times the references alone, on the CPU,
at a small batch.

  NAME             {names}
  --case TEXT      only cases whose name contains this: --case r1.conv1
  --dtype NAME     {dtypes}; float16, on a CPU float32.
                   Without it, an op that does not have that takes its own
  --direction WAY  {directions}
  --samples N      times taken of each, {samples} if not given
  --all            every case of every op
  --max-autotune   references autotuned by Inductor too: 1 to 2 minutes a case
  --compile        compiled references on a CPU too
  --json [FILE|-]  every measurement, the machine and the commit; -, standard
                   output
  --csv FILE       the rows, a line each
  --out FOLDER     rows.json and rows.csv, and roofline and speedup as .png and
                   .svg; needs matplotlib

Commands:
  asm STAGE NAME   the code of a case: {stages}
  trace FILE NAME  a Chrome trace of a few calls of each case
  ncu NAME         Nsight Compute's counters of a launch
  vs REF NAME      ratios to the times at another git revision
  pairs A B        steps of two settings, interleaved
  check            kernels compiled ahead of time for four chips; needs no GPU
  tune             the fastest launches of convolutions on this GPU
  gate             the speed gate: is anything slower than its baseline?
  report           what was measured as one page with its plots
  card             everything, on a new GPU
  pace             what rewritten kernels should take, from two checks
  times            what a measured card's kernels take, for expected times
  halving          how often `hlb sweep --budget` picks the best arm, simulated
"""
HELP_OF = {
    "asm": """\
usage: python -m bench asm STAGE NAME ... [--case TEXT] [--dtype NAME]
                               [--chip CC]

The code of the one case that these name: {stages}.

  --case TEXT      the case whose name contains this
  --dtype NAME     {dtypes}; float16 if not given
  --chip CC        for another GPU: {chips}
""",
    "trace": """\
usage: python -m bench trace FILE [NAME ...] [--case TEXT] [--dtype NAME]

A Chrome trace of a few calls of each case, and a table of where their time
goes.

  --case TEXT      only cases whose name contains this
  --dtype NAME     {dtypes}
""",
    "ncu": """\
usage: python -m bench ncu NAME ... [--case TEXT] [--dtype NAME]
                           [--direction WAY] [--kernel NAME]

Nsight Compute's counters of one launch of the one case that these name.

  --case TEXT      the case whose name contains this
  --dtype NAME     {dtypes}
  --direction WAY  {directions}
  --kernel NAME    a launch of this kernel
""",
    "vs": """\
usage: python -m bench vs REF [NAME ...] [--case TEXT] [--dtype NAME]
                          [--direction WAY] [--samples N] [--repeats N]
                          [--json [FILE|-]]

Ratios to the times at another git revision.

  --case TEXT      only cases whose name contains this
  --dtype NAME     {dtypes}
  --direction WAY  {directions}
  --samples N      times taken of each, {samples} if not given
  --json [FILE|-]  every measurement; - is standard output
  --repeats N      runs of each revision, in turn, {repeats} if not given
""",
}
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
REPEATS = 5
# Command -> its options; "" is the benchmark itself.
MODES = {
    "": ("direction", "samples", "all", "max_autotune", "compile", "json", "csv", "out"),
    "asm": ("chip",),
    "trace": (),
    "ncu": ("direction", "kernel"),
    "vs": ("direction", "samples", "repeats", "json"),
}
ARGUMENTS = {"asm": "stage", "trace": "file", "vs": "ref"}  # a command's argument before the names of ops
FILES = ("rows.json", "rows.csv", "roofline.png", "roofline.svg", "speedup.png", "speedup.svg")  # of --out


def _help(mode: str) -> str:
    names, lines = list(kernels.CATALOGUE), [""]
    for name in names:
        word = name + "," * (name != names[-1])
        if len(lines[-1]) + len(word) > 60:
            lines.append("")
        lines[-1] += word + " "
    return HELP_OF.get(mode, HELP).format(
        names=("\n" + " " * 19).join(line.strip() for line in lines),
        dtypes=", ".join(DTYPES),
        directions=", ".join(DIRECTIONS),
        samples=timing.SAMPLES,
        stages=", ".join(STAGES),
        chips=", ".join(CHIPS),
        repeats=REPEATS,
    )


def parsed(arguments: list[str]) -> argparse.Namespace:
    """The options of a command line, checked; `mode` is a key of MODES. Raises UserError for invalid ones."""
    mode = arguments[0] if arguments and arguments[0] in MODES else ""
    arguments = arguments[1:] if mode else arguments
    for old in MODES:
        if old and any(word.partition("=")[0] == f"--{old}" for word in arguments):
            what = ARGUMENTS.get(old, "").upper()
            raise UserError(f"--{old} is now `python -m bench {' '.join(filter(None, (old, what)))} NAME`")
    parser = Parser(description=_help(mode))
    if mode in ARGUMENTS:
        kinds = {"asm": {"choices": STAGES}, "trace": {"type": Path}}
        parser.add_argument(ARGUMENTS[mode], **kinds.get(mode, {}))
    parser.add_argument("names", nargs="*")
    parser.add_argument("--case", default="")
    parser.add_argument("--dtype", choices=DTYPES)
    ways = {
        "direction": {"choices": DIRECTIONS},
        **dict.fromkeys(("samples", "repeats"), {"type": positive}),
        **dict.fromkeys(("all", "max_autotune", "compile"), {"action": "store_true"}),
        **dict.fromkeys(("csv", "out"), {"type": Path}),
    }
    for option in dict.fromkeys(option for options in MODES.values() for option in options):
        if option in MODES[mode] and option == "json":
            parser.add_json()
        elif option in MODES[mode]:
            parser.add_argument("--" + option.replace("_", "-"), **ways.get(option, {}))
        else:
            parser.set_defaults(**{option: None})
    options = parser.parse_intermixed_args(arguments)
    options.mode = mode
    expect_known("NAME", kernels.CATALOGUE, *options.names)
    if options.names or options.case:
        options.without(("all",), "with NAME or --case every case of theirs is timed")
    _check_files(options)
    return options


def _check_files(options: argparse.Namespace) -> None:
    """Raises UserError for a file that cannot be written, or that two options name."""
    files = {"--csv": options.csv, "--json": options.json and options.json != "-" and Path(options.json)}
    files["FILE"] = getattr(options, "file", None)
    files = {option: path for option, path in files.items() if path}
    if options.out:
        if importlib.util.find_spec("matplotlib") is None:
            raise UserError("--out: plots need matplotlib, which is not installed: pip install matplotlib")
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
    """The chosen cases of each op, and the dtype. Raises UserError where nothing is chosen."""
    specs = [kernels.CATALOGUE[name] for name in options.names or kernels.CATALOGUE]
    if options.mode or options.names or options.case or options.all:
        chosen = {spec: [case for case in spec.cases if options.case in case.name] for spec in specs}
    else:
        chosen = {spec: micro.few(spec) for spec in specs}
    if not any(chosen.values()):
        names = dict.fromkeys(case.name for spec in specs for case in spec.cases)
        raise UserError(f"--case: got {options.case!r}, cases are {', '.join(names)}")
    chosen = {spec: cases for spec, cases in chosen.items() if cases}
    if options.direction in ("backward", "both"):
        chosen = {spec: cases for spec, cases in chosen.items() if spec.differentiable}
        if not chosen:
            raise UserError(f"--direction: got {options.direction}, none of these ops has a gradient")
    if options.dtype:
        chosen = {spec: cases for spec, cases in chosen.items() if DTYPES[options.dtype] in spec.dtypes}
        if not chosen:
            raise UserError(f"--dtype: got {options.dtype}, none of these ops has it")
        return chosen, DTYPES[options.dtype]
    dtype = torch.float32 if device == "cpu" and options.mode != "asm" else torch.float16
    return chosen, dtype if any(dtype in spec.dtypes for spec in chosen) else next(iter(chosen)).dtypes[0]


def main(arguments: list[str]) -> int:
    """Returns the exit status: 0, 1 (something failed or is wrong), 2 (a mistake), 130 (interrupted)."""
    program = " ".join(("bench", *arguments[:1])) if arguments[:1] and arguments[0] in MODES else "bench"
    return exit_status(program, partial(_main, arguments))


def _main(arguments: list[str]) -> int:
    options = parsed(arguments)
    device, _ = micro.timed_on()
    todo, dtype = selected(options, device)
    if device == "cuda":
        options.without(("compile",), "on a GPU references are compiled anyway")
    width = None if sys.stdout.isatty() else 160
    console = Console(stderr=options.json == "-", highlight=False, emoji=False, width=width)
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
        from .report import plots

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
    """Runs another tool in place of the benchmark, on the ops that have this dtype."""
    todo = {spec: cases for spec, cases in todo.items() if dtype in spec.dtypes}
    if options.mode == "asm":
        from .inspect import asm

        return asm.run(console, todo, dtype, options.stage, options.chip)
    if options.mode == "trace":
        from .inspect import trace

        return trace.run(console, todo, dtype, device, options.file)
    if options.mode == "ncu":
        from .inspect import ncu

        return ncu.run(console, todo, dtype, options.direction, options.kernel)
    from .inspect import versus

    names, samples, repeats = options.names, options.samples or timing.SAMPLES, options.repeats or REPEATS
    asked = (options.case, kernels.base.launch.short(dtype), options.direction)
    return versus.run(console, options.ref, names, *asked, samples, repeats, options.json)
