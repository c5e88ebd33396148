"""The speed gate: `python -m bench gate` says whether anything is slower than it was.

Red, with exit status 1, where the lower bound of a slowdown exceeds --max-slowdown, a kernel's values are
wrong, one is missing, or accuracy is lost. 3: the machine is not as it was, so no time is judged. 2: a
mistake. `judge.py` says how it decides, `verdict.py` by which statistics, `repeats.py` what is timed.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import shlex
import statistics
import sys
import textwrap
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

import kernels
from hlb import RECIPES, UserError
from hlb.errors import Options, Parser, exit_status, expect_known
from hlb.files import check_writable
from hlb.runs import environment, ledger

from .. import micro
from . import baseline, endtoend, judge, outcome, verdict
from .baseline import CEILINGS, Baseline, Runs, Session, Timed
from .judge import Assessment, Look, Measure
from .repeats import Repeats, catalogue

TOO_NOISY = 1.05  # --update names the cases whose smallest slowdown that is caught exceeds this
MACHINE = 3  # the exit status
MAX_LOSS = 0.05  # points of accuracy
# Option -> the least that it accepts.
LEAST = {
    "first": 1,
    "repeats": verdict.LEAST,
    "runs": endtoend.LEAST,
    "max_slowdown": 1,
    "max_loss": 0,
}
HELP = """\
usage: python -m bench gate [NAME ...] [--recipe NAME ...] [options]
       python -m bench gate --update [NAME ...] [--recipe NAME ...]
       python -m bench gate --static [NAME ...] [--update] [--from FILE]

Is anything slower than it was? Times every case of these ops, or of all, and
whole runs of recipes, beside the baseline of this GPU. What looks slow is
measured again.

  --update              write the baseline, or renew these ops in it; judges
                        nothing
  --static              without a GPU: registers, spills, instructions, bytes
                        and FLOPs of the compiled kernels
  --from FILE           with --static: what `python -m bench check --json`
                        wrote
  --baseline FILE       bench/baselines/<gpu>.json, or static.json, if not given
  --max-slowdown RATIO  of time now to before that is allowed, {slowdown}
  --first N             repeats before the first look, {first}
  --repeats N           of a baseline, and of what is measured again, {repeats}
  --recipe NAME ...     whole runs too: {recipes}
  --runs N              of each recipe, {runs}
  --data DATA           of the runs: auto, cifar10, synthetic or a folder
  --max-loss POINTS     of accuracy, in percent, {loss}
  --junit FILE          JUnit XML
  --summary FILE        Markdown, appended; $GITHUB_STEP_SUMMARY if not given
  --json [FILE|-]       the record; - is standard output

Exit status: 0 green; 1 red; 2 a mistake; 3 the machine is not as it was;
130 interrupted.
"""


def _help() -> str:
    names = textwrap.wrap(", ".join(RECIPES), 80 - 24 - len("whole runs too: "))
    return HELP.format(
        slowdown=judge.Criteria.allowed,
        first=judge.FIRST,
        repeats=judge.REPEATS,
        recipes=("\n" + " " * 24).join(names),
        runs=endtoend.RUNS,
        loss=MAX_LOSS,
    )


def parsed(arguments: Sequence[str]) -> Options:
    """The options of a command line, checked. Raises UserError for invalid ones."""
    parser = Parser(description=_help())
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--baseline", type=Path)
    parser.add_argument("--update", action="store_true")
    parser.add_argument("--max-slowdown", type=float, default=judge.Criteria.allowed)
    parser.add_argument("--first", type=int, default=judge.FIRST)
    parser.add_argument("--repeats", type=int, default=judge.REPEATS)
    parser.add_argument("--recipe", nargs="+", action="extend", default=[])
    parser.add_argument("--runs", type=int, default=endtoend.RUNS)
    parser.add_argument("--data", default="auto")
    parser.add_argument("--max-loss", type=float, default=MAX_LOSS)
    parser.add_argument("--junit", type=Path)
    parser.add_argument("--summary", type=Path, default=os.environ.get("GITHUB_STEP_SUMMARY") or None)
    parser.add_json()
    parser.add_argument("--static", action="store_true")
    parser.add_argument("--from", type=Path, dest="checked")
    options = parser.parse_args(arguments)
    expect_known("NAME", kernels.CATALOGUE, *options.names)
    expect_known("--recipe", RECIPES, *options.recipe)
    for option, least in LEAST.items():
        value = getattr(options, option)
        if not least <= value < math.inf:
            raise UserError(f"--{option.replace('_', '-')}: got {value}, accepted is {least} or more")
    _check_unread(options)
    _check_files(options)
    return options


def _check_unread(options: Options) -> None:
    """Raises UserError for an option that does nothing beside the others."""
    if options.static:
        read = ("names", "static", "baseline", "checked", "update", "junit", "summary")
        options.only(read, "not with --static")
        if options.update:
            options.without(("junit", "summary"), "not with --update, which judges nothing")
        return
    options.without(("checked",), "only with --static")
    if options.update:
        options.without(("first", "max_loss"), "not with --update, which judges nothing")
    if not options.recipe:
        options.without(("runs", "data", "max_loss"), "only with --recipe")


def _check_files(options: argparse.Namespace) -> None:
    """Raises UserError for a file that cannot be written, or that two options name."""
    outputs = {option: getattr(options, option) for option in ("junit", "summary", "json")}
    outputs["json"] = None if options.json in (None, "-") else Path(options.json)
    if options.update:
        outputs["baseline"] = options.baseline
    paths = [path.resolve() for path in outputs.values() if path and (path.is_file() or not path.exists())]
    if len(set(paths)) < len(paths):
        given = " and ".join(f"--{option}" for option, path in outputs.items() if path)
        raise UserError(f"{given}: two of them are one file; give each its own")
    for option, path in outputs.items():
        if path:
            check_writable(path, f"--{option}")


def main(arguments: list[str]) -> int:
    """Returns the exit status: 0, 1 (red), 2 (a mistake), 3 (another machine), 130 (interrupted)."""
    return exit_status("bench gate", partial(_main, arguments))


def _main(arguments: list[str]) -> int:
    options = parsed(arguments)
    width = None if sys.stdout.isatty() else 160
    console = Console(stderr=options.json == "-", highlight=False, emoji=False, width=width)
    options.command = shlex.join(["python", "-m", "bench", "gate", *arguments])
    if options.static:
        from . import static

        files = (options.baseline, options.checked)
        return static.run(console, options.names, *files, options.update, options.junit, options.summary)
    gpu = this_gpu()
    train = partial(endtoend.trained, options.data)
    return gate(console, options, gpu, catalogue(options.names), Told(console, Repeats()), train)


def this_gpu() -> str:
    """The name of this GPU. Raises UserError where no kernel can be timed."""
    device, untimed = micro.timed_on()
    if untimed:
        raise UserError(f"the gate times kernels on a CUDA device, and {untimed}; `--static` needs none")
    return environment.device_name(device)


def state() -> dict | None:
    """State of the GPU, where there is one."""
    return environment.gpu_state("cuda") if torch.cuda.is_available() else None


def criteria(options: argparse.Namespace) -> judge.Criteria:
    return judge.Criteria(options.first, options.repeats, options.max_slowdown)


class Told:
    """Measures repeats, and prints a line after each."""

    def __init__(self, console: Console, measure: Measure):
        self.console, self.measure, self.count = console, measure, 0

    def __call__(self, names: list[str]) -> dict[str, float | str]:
        begin = time.perf_counter()
        measured = self.measure(names)
        self.count += 1
        seconds = time.perf_counter() - begin
        self.console.print(f"repeat {self.count}: {len(names) - len(CEILINGS)} cases, {seconds:.0f} s")
        return measured


def gate(
    console: Console,
    options: argparse.Namespace,
    gpu: str,
    calls: dict[str, dict],
    measure: Measure,
    train: endtoend.Train,
) -> int:
    """Runs the gate, whatever `measure` and `train` time; returns the exit status."""
    path = options.baseline or baseline.FOLDER / f"{baseline.slug(gpu)}.json"
    if options.update:
        check_writable(path, "--baseline")
        old = baseline.load(path, gpu) if path.exists() else Baseline(gpu)
        return update(console, options, path, old, gpu, calls, measure, train)
    if not path.exists():
        where = path if options.baseline else "bench/baselines"
        raise UserError(f"no baseline for {gpu} in {where}; --update makes one")
    base = baseline.load(path, gpu)
    before = state()
    console.print(f"{gpu}, against {path}", markup=False)
    for difference in base.stale(environment.versions()):
        console.print(f"note: the baseline was made with {difference}", markup=False)

    first = {
        name: endtoend.begin(name, base.recipes.get(name), train, options.runs) for name in options.recipe
    }
    judgement = judge.judge(base.only(options.names or kernels.CATALOGUE), calls, measure, criteria(options))
    outcomes = [outcome_of(assessment, *MICROSECONDS) for assessment in judgement.assessments]
    show(console, outcomes)
    states = [assessment.state for assessment in judgement.assessments]
    again = sum(assessment.again > 0 for assessment in judgement.assessments)
    runs: dict[str, list[endtoend.Record]] = {}
    for name in options.recipe:
        limits = endtoend.RunCriteria(options.runs, options.max_slowdown, options.max_loss / 100)
        level = verdict.LEVEL / (2 * len(options.recipe))
        assessments, runs[name] = endtoend.judge(
            name, base.recipes.get(name), first[name], train, limits, level, judgement.machine
        )
        states += [assessment.state for assessment in assessments]
        rows = [outcome_of(assessment, *unit) for assessment, unit in zip(assessments, (SECONDS, PERCENT))]
        show(console, rows)
        outcomes += rows
    status, said = concluded(states, again, options.max_slowdown, judgement.machine)
    record = {
        "verdict": said,
        "status": status,
        "machine": judgement.machine,
        "assessments": [dataclasses.asdict(assessment) for assessment in judgement.assessments],
        "first": dataclasses.asdict(judgement.first),
        "again": dataclasses.asdict(judgement.again),
        "recipes": {name: [dataclasses.asdict(one) for one in records] for name, records in runs.items()},
        **baseline.provenance(options.command, gpu, before),
    }
    finish(console, options, said, outcomes, record)
    return status


def concluded(states: list[str], again: int, allowed: float, machine: str) -> tuple[int, str]:
    """The exit status, and the verdict in a line."""
    red = [state for state in judge.RED if state in states]
    if red:
        counts = ", ".join(f"{states.count(state)} {state}" for state in red)
        also = f"; the machine is not as it was: {machine}" if machine else ""
        return 1, f"RED: of {len(states)} {counts}{also}"
    if machine:
        return MACHINE, f"the machine is not as it was: {machine}; no time was judged"
    notes = [f"{states.count(state)} {state}" for state in ("faster", "new") if state in states]
    said = f"green: of {len(states)} none shown slower by more than {allowed - 1:.1%}"
    return 0, ", ".join([said, f"{again} measured again", *notes])


# How the numbers of an assessment are written: end of the heading, factor, format, unit.
MICROSECONDS = (" us", 1e6, ".2f", "")
SECONDS = ("", 1.0, ".4f", " s")
PERCENT = ("", 100.0, ".3f", " %")


def outcome_of(assessment: Assessment, head: str, factor: float, form: str, unit: str) -> outcome.Outcome:
    def cell(value: float | None, factor: float = 1.0, form: str = ".3f", unit: str = "") -> str:
        return "" if value is None else format(value * factor, form) + unit

    cells = {
        f"baseline{head}": cell(assessment.baseline, factor, form, unit),
        f"now{head}": cell(assessment.now, factor, form, unit),
        "ratio": cell(assessment.ratio),
        "at least": cell(assessment.lower),
        "again": str(assessment.again or ""),
    }
    return outcome.Outcome(assessment.name, assessment.red, cells, assessment.message, assessment.state)


def show(console: Console, outcomes: list[outcome.Outcome]) -> None:
    console.print()
    outcome.show(console, outcomes)


def finish(
    console: Console, options: argparse.Namespace, said: str, outcomes: list[outcome.Outcome], record: dict
) -> None:
    """Prints the verdict, and writes the files that were asked for."""
    console.print(f"\n{said}", markup=False, soft_wrap=True)
    outcome.write_files(
        f"Speed gate, {record['device_name']}", said, outcomes, options.junit, options.summary
    )
    if options.json:
        ledger.write(options.json, record)


def update(
    console: Console,
    options: argparse.Namespace,
    path: Path,
    old: Baseline,
    gpu: str,
    calls: dict[str, dict],
    measure: Measure,
    train: endtoend.Train,
) -> int:
    """Measures a baseline and writes it. Returns 1, and writes nothing, where something is wrong."""
    before = state()
    look = judge.measured(measure, (*CEILINGS, *calls), options.repeats)
    records = {name: train(name, options.runs, 0) for name in options.recipe}
    wrong = look.faults | {
        f"{name} runs": f"{one.failed} of {options.runs} diverged"
        for name, one in records.items()
        if one.failed
    }
    outcomes = [outcome.Outcome(name, True, {}, fault, "wrong") for name, fault in wrong.items()]
    outcomes += [measured_outcome(name, look, len(calls), options) for name in calls if name not in wrong]
    show(console, outcomes)
    shared = baseline.provenance(options.command, gpu, before)
    said = f"RED: {len(wrong)} wrong; {path} is as it was"
    if not wrong:
        seconds = {name: tuple(values) for name, values in look.seconds.items()}
        session = Session({name: seconds.pop(name) for name in CEILINGS}, shared)
        cases = {name: Timed(seconds[name], call, 0) for name, call in calls.items()}
        recipes = {
            name: Runs(tuple(one.seconds), tuple(one.accuracy), one.dataset, one.fields, 0)
            for name, one in records.items()
        }
        baseline.save(path, baseline.renewed(old, session, cases, recipes, options.names))
        said = f"{path}: {len(cases)} cases and {len(recipes)} recipes, {options.repeats} repeats"
    finish(console, options, said, outcomes, {"verdict": said, "look": dataclasses.asdict(look), **shared})
    return 1 if wrong else 0


def measured_outcome(name: str, look: Look, family: int, options: argparse.Namespace) -> outcome.Outcome:
    """A case of a new baseline, and the smallest slowdown that a gate like this one catches."""
    seconds = look.seconds[name]
    seen = verdict.visible(seconds, options.max_slowdown, verdict.LEVEL / family)
    cells = {"us": f"{statistics.median(seconds) * 1e6:.2f}", "catches": f"{seen:.3f}"}
    noisy = f"too noisy: nothing below {seen:.3f} of its time is caught" if seen > TOO_NOISY else ""
    return outcome.Outcome(name, False, cells, noisy, "noisy" if noisy else "")
