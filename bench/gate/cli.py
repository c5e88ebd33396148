"""The speed gate: is anything slower than it was?

    python -m bench gate                                  every kernel, against bench/baselines/<gpu>.json
    python -m bench gate sgd muon --max-slowdown 1.05
    python -m bench gate --recipe record94 --runs 20      and whole runs: time and accuracy
    python -m bench gate --update                         makes the baseline, or with NAMEs renews these
    python -m bench gate --static                         without a GPU: what the compiled kernels are made of
    python -m bench gate --simulate                       how often the gate is wrong

Red, with exit status 1, where the lower bound of a slowdown exceeds --max-slowdown, a kernel's values are
wrong, one is missing, or accuracy is lost. 3: the machine is not as it was, so no time is judged. 2: a
mistake. `judge.py` says how it decides, `verdict.py` by which statistics, `rounds.py` what is timed.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import shlex
import statistics
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

import kernels
from hlb import RECIPES, UserError
from hlb.errors import Parser, exit_status
from hlb.files import check_writable
from hlb.runs import environment, ledger

from .. import micro
from . import baseline, endtoend, judge, outcome, verdict
from .baseline import CEILINGS, Baseline, Runs, Session, Timed
from .judge import Finding, Look, Measure
from .rounds import Rounds, catalogue

SIMULATED = 1000
TOO_NOISY = 1.05  # a case of which less than this is not caught is named by --update
MACHINE = 3  # the exit status


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """The options, checked. UserError for what is none."""
    parser = Parser(prog="python -m bench gate")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(kernels.CATALOGUE)}")
    parser.add_argument("--baseline", type=Path, help="default: bench/baselines/<gpu>.json")
    parser.add_argument("--update", action="store_true", help="write the baseline, judge nothing")
    parser.add_argument("--max-slowdown", type=float, default=judge.Plan.allowed, metavar="RATIO")
    parser.add_argument("--first", type=int, default=judge.FIRST, help="rounds before the first look")
    parser.add_argument("--rounds", type=int, default=judge.ROUNDS, help="of a baseline or a second look")
    parser.add_argument("--recipe", nargs="+", action="extend", default=[], metavar="NAME")
    parser.add_argument("--runs", type=int, default=endtoend.RUNS, help="of each recipe")
    parser.add_argument("--data", default="auto", help="of the runs: auto, cifar10, synthetic or a folder")
    parser.add_argument(
        "--max-loss", type=float, default=0.05, metavar="POINTS", help="of accuracy, in percent"
    )
    parser.add_argument("--junit", type=Path, help="where JUnit XML goes")
    summary = os.environ.get("GITHUB_STEP_SUMMARY") or None
    parser.add_argument("--summary", type=Path, default=summary, help="what Markdown is appended to")
    parser.add_argument("--json", type=Path, help="where the record goes")
    parser.add_argument("--static", action="store_true", help="the gate without a GPU")
    parser.add_argument(
        "--from", type=Path, dest="found", help="with --static: what `python -m bench check --json` wrote"
    )
    parser.add_argument("--simulate", type=int, nargs="?", const=SIMULATED, metavar="N", help="gates a line")
    options = parser.parse_args(arguments)
    for option, names, known in (
        ("NAME", options.names, kernels.CATALOGUE),
        ("--recipe", options.recipe, RECIPES),
    ):
        for name in names:
            if name not in known:
                raise UserError(f"{option}: got {name!r}, accepted are {', '.join(known)}")
    least = {
        "first": 1,
        "rounds": verdict.LEAST,
        "runs": endtoend.LEAST,
        "max_slowdown": 1,
        "max_loss": 0,
        "simulate": 1,
    }
    for option, low in least.items():
        value = getattr(options, option)
        if value is not None and not low <= value < math.inf:
            raise UserError(f"--{option.replace('_', '-')}: got {value}, accepted is {low} or more")
    if options.found and not options.static:
        raise UserError("--from: it is for --static; leave it out")
    for mode, others in (
        ("static", ("simulate", "recipe", "json")),
        ("simulate", ("update", "recipe", "baseline", "junit")),
    ):
        for option in others:
            if getattr(options, mode) and getattr(options, option):
                raise UserError(f"--{option}: --{mode} knows nothing of it; leave one of them out")
    outputs = {option: getattr(options, option) for option in ("junit", "summary", "json")}
    if options.update:
        outputs["baseline"] = options.baseline
    paths = [path.resolve() for path in outputs.values() if path and (path.is_file() or not path.exists())]
    if len(set(paths)) < len(paths):
        given = " and ".join(f"--{option}" for option, path in outputs.items() if path)
        raise UserError(f"{given}: two of them are one file; give each its own")
    for option, path in outputs.items():
        if path:
            check_writable(path, f"--{option}")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0, 1 (red), 2 (a mistake), 3 (another machine), 130 (interrupted)."""
    return exit_status("bench", partial(_main, sys.argv[2:] if arguments is None else arguments))


def _main(arguments: list[str]) -> int:
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    options = parsed(arguments)
    options.command = shlex.join(["python", "-m", "bench", "gate", *arguments])
    if options.static:
        from . import static

        files = (options.baseline, options.found)
        return static.run(console, options.names, *files, options.update, options.junit, options.summary)
    if options.simulate:
        from . import simulate

        cases = len(catalogue(options.names))
        status, found = simulate.run(console, options.simulate, cases, plan(options))
        cpu = environment.device_name("cpu")
        write(options.json, found | baseline.provenance(options.command, cpu, None))
        return status
    gpu = this_gpu()
    train = partial(endtoend.trained, options.data)
    return gate(console, options, gpu, catalogue(options.names), Told(console, Rounds()), train)


def this_gpu() -> str:
    """Its name. UserError where no kernel can be timed."""
    device, untimed = micro.timed_on()
    if untimed:
        raise UserError(f"the gate times kernels on a CUDA device, and {untimed}; `--static` needs none")
    return environment.device_name(device)


def state() -> dict | None:
    """The GPU's, where there is one."""
    return environment.gpu_state("cuda") if torch.cuda.is_available() else None


def plan(options: argparse.Namespace) -> judge.Plan:
    return judge.Plan(options.first, options.rounds, options.max_slowdown)


class Told:
    """Measures rounds, and prints a line for each."""

    def __init__(self, console: Console, measure: Measure):
        self.console, self.measure, self.count = console, measure, 0

    def __call__(self, names: list[str]) -> dict[str, float | str]:
        begin = time.perf_counter()
        found = self.measure(names)
        self.count += 1
        seconds = time.perf_counter() - begin
        self.console.print(f"round {self.count}: {len(names) - len(CEILINGS)} cases, {seconds:.0f} s")
        return found


def gate(
    console: Console,
    options: argparse.Namespace,
    gpu: str,
    calls: dict[str, dict],
    measure: Measure,
    train: endtoend.Train,
) -> int:
    """The gate on a GPU, or whatever measures for it; the exit status."""
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
    found = judge.judge(base.only(options.names or kernels.CATALOGUE), calls, measure, plan(options))
    outcomes = [outcome_of(finding, *MICROSECONDS) for finding in found.findings]
    show(console, outcomes)
    states = [finding.state for finding in found.findings]
    again = sum(finding.again > 0 for finding in found.findings)
    runs: dict[str, list[endtoend.Record]] = {}
    for name in options.recipe:
        limits = endtoend.Plan(options.runs, options.max_slowdown, options.max_loss / 100)
        level = verdict.LEVEL / (2 * len(options.recipe))
        findings, runs[name] = endtoend.judge(
            name, base.recipes.get(name), first[name], train, limits, level, found.machine
        )
        states += [finding.state for finding in findings]
        rows = [outcome_of(finding, *unit) for finding, unit in zip(findings, (SECONDS, PERCENT))]
        show(console, rows)
        outcomes += rows
    status, said = concluded(states, again, options.max_slowdown, found.machine)
    record = {
        "verdict": said,
        "status": status,
        "machine": found.machine,
        "findings": [dataclasses.asdict(finding) for finding in found.findings],
        "first": dataclasses.asdict(found.first),
        "again": dataclasses.asdict(found.again),
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


# How the numbers of a finding are written: end of the heading, factor, form, end of the number.
MICROSECONDS = (" us", 1e6, ".2f", "")
SECONDS = ("", 1.0, ".4f", " s")
PERCENT = ("", 100.0, ".3f", " %")


def outcome_of(finding: Finding, head: str, factor: float, form: str, unit: str) -> outcome.Outcome:
    def cell(value: float | None, factor: float = 1.0, form: str = ".3f", unit: str = "") -> str:
        return "" if value is None else format(value * factor, form) + unit

    cells = {
        f"baseline{head}": cell(finding.baseline, factor, form, unit),
        f"now{head}": cell(finding.now, factor, form, unit),
        "ratio": cell(finding.ratio),
        "at least": cell(finding.lower),
        "again": str(finding.again or ""),
    }
    return outcome.Outcome(finding.name, finding.red, cells, finding.message, finding.state)


def show(console: Console, outcomes: list[outcome.Outcome]) -> None:
    console.print()
    outcome.show(console, outcomes)


def finish(
    console: Console, options: argparse.Namespace, said: str, outcomes: list[outcome.Outcome], record: dict
) -> None:
    """Says the verdict, and writes the files that were asked for."""
    console.print(f"\n{said}", markup=False, soft_wrap=True)
    outcome.report(f"Speed gate, {record['device_name']}", said, outcomes, options.junit, options.summary)
    write(options.json, record)


def write(path: Path | None, record: dict) -> None:
    """The record as a file, if one is wanted."""
    if path:
        ledger.write(path, record)


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
    """Measures a baseline and writes it; 1, and nothing written, where something is wrong."""
    before = state()
    look = judge.measured(measure, (*CEILINGS, *calls), options.rounds)
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
        said = f"{path}: {len(cases)} cases and {len(recipes)} recipes, {options.rounds} rounds"
    finish(console, options, said, outcomes, {"verdict": said, "look": dataclasses.asdict(look), **shared})
    return 1 if wrong else 0


def measured_outcome(name: str, look: Look, family: int, options: argparse.Namespace) -> outcome.Outcome:
    """A case of a new baseline, and the slowdown of it that a gate like this one catches."""
    seconds = look.seconds[name]
    seen = verdict.visible(seconds, options.max_slowdown, verdict.LEVEL / family)
    cells = {"us": f"{statistics.median(seconds) * 1e6:.2f}", "catches": f"{seen:.3f}"}
    noisy = f"too noisy: nothing below {seen:.3f} of its time is caught" if seen > TOO_NOISY else ""
    return outcome.Outcome(name, False, cells, noisy, "noisy" if noisy else "")
