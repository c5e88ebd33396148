"""`python -m bench tune`: the fastest launch configurations of convolutions on the GPU that is here.

Each pass of the recipes' convolutions is measured in the candidates whose modelled time is short, and by
cuDNN; and of a pooled block, what cuDNN's gradients cost besides (measure.py). Everything is compiled first,
in as many processes as there are CPUs. Results go into measured.json one by one: a run that is stopped keeps
what it has measured, and a run over some names leaves the others.
"""

from __future__ import annotations

import datetime
import itertools
import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from kernels import conv_bn_act
from kernels.base import chips, timing
from kernels.base.chips import Chip
from kernels.base.launch import triton
from kernels.base.spec import Case
from kernels.convolution import float8, model, selection, tiling
from kernels.convolution.tiling import Config, Problem

from ..check import check
from . import measure

DTYPES = (torch.float16, torch.bfloat16)
UNPOOL = "unpool"  # the kind of a job that is no pass
# Rough seconds, for the estimate: to compile a candidate, on one CPU; to test and time one; besides, a pass.
COMPILE, TIME, PASS = 4.0, 0.25, 1.0


@dataclass(frozen=True)
class Job:
    """A pass to tune, or with kind UNPOOL what cuDNN's gradients cost beside, that these cases of the recipes
    share.
    """

    problem: Problem
    cases: tuple[Case, ...]

    @property
    def name(self) -> str:
        return selection.key(self.problem)


def jobs(names: list[str]) -> list[Job]:
    """The jobs in whose keys and cases each of these names begins a word."""
    by_problem: dict[Problem, list[Case]] = {}
    blocks = conv_bn_act.SPEC.cases + conv_bn_act.EVAL_SPEC.cases
    narrow = conv_bn_act.FLOAT8_SPEC.cases + conv_bn_act.FLOAT8_EVAL_SPEC.cases
    for dtype, case in (*itertools.product(DTYPES, blocks), *((tiling.FLOAT8, case) for case in narrow)):
        forward = Problem("forward", case.n, *case.map, case.c, case.o, 3, case.pool, dtype)
        kinds = tiling.PASSES if case.training else ("forward",)
        if dtype == tiling.FLOAT8:
            kinds = [kind for kind in kinds if kind in float8.PASSES[case.conv_dtype]]
        elif case.training and case.pool:
            kinds = (*kinds, UNPOOL)
        for kind in kinds:
            by_problem.setdefault(replace(forward, kind=kind), []).append(case)

    def named(job: Job) -> bool:
        words = " ".join((job.name, *(case.name for case in job.cases))).split()
        return all(any(word.startswith(name) for word in words) for name in names)

    return list(filter(named, (Job(problem, tuple(cases)) for problem, cases in by_problem.items())))


# The table


def provenance(command: list[str], device: str) -> dict[str, str | None]:
    """Command, date, device, versions and commit of this run."""

    def output(*words: str) -> str | None:
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    here = str(Path(__file__).resolve().parents[2])
    driver = output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    changes = output("git", "-C", here, "status", "--porcelain", "--untracked-files=no")
    return {
        "command": shlex.join(command),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else device,
        "driver": driver and driver.splitlines()[0],
        "torch": torch.__version__,
        "triton": triton.__version__,
        "commit": output("git", "-C", here, "rev-parse", "HEAD"),
        "changed": bool(changes),
    }


def record(chip: Chip, run: dict, group: str, name: str, entry: dict) -> None:
    """Puts an entry in measured.json, and `run` among those that it names."""
    file = selection.FILE
    data = json.loads(file.read_text()) if file.exists() else {}
    section = data.setdefault(chip.name, {})
    section |= {"cc": chip.cc, "multiprocessors": chip.multiprocessors}
    section.setdefault(group, {})[name] = entry | {"run": run["date"]}
    entries = [e for kind in ("launches", UNPOOL) for e in section.get(kind, {}).values()]
    runs = section.get("runs", {}) | {run["date"]: run}
    section["runs"] = {date: runs[date] for date in sorted({e["run"] for e in entries})}
    check.write(file, text(data))
    selection.forget()


def text(data: dict) -> str:
    """As JSON, a line for each entry."""

    def lines(values: dict, inside: Callable) -> str:
        return "{\n" + ",\n".join(f"{json.dumps(k)}: {inside(values[k])}" for k in sorted(values)) + "\n}"

    def group(values) -> str:
        return lines(values, json.dumps) if isinstance(values, dict) else json.dumps(values)

    return lines(data, lambda section: lines(section, group))


# The command


def run(
    jobs: list[Job],
    command: list[str],
    file: str | None,
    processes: int,
    device: str = "cuda",
    every: bool = False,
    content: dict | None = None,
) -> int:
    """Tunes; writes every measurement to `file` as JSON, if named, as it comes. Returns 1 if a
    candidate was wrong. `every`: as `measure.worth`; `content`: what `file` holds already, which is kept.
    """
    selection.table()  # a fault in it comes first
    torch.backends.cudnn.benchmark = True
    chip, here = chips.current(device), provenance(command, device)
    say = partial(print, file=sys.stderr if file == "-" else sys.stdout, flush=True)
    work = {job.problem: measure.worth(job.problem, chip, every) for job in jobs if is_pass(job)}
    say(estimate(work, processes))

    def progress(done: int, of: int) -> None:
        if done == of or not done % 50:
            say(f"compiled {done} of {of}")

    dropped = measure.compiled(work, chip, processes, progress)
    content = content or {"found": {}, UNPOOL: {}}
    content, wrong = {"run": here, "chip": chip.name, "found": content["found"], UNPOOL: content[UNPOOL]}, 0
    for job in jobs:
        if is_pass(job):
            line, this = _pass(job, chip, here, device, work[job.problem], dropped[job.problem])
            content["found"][job.name] = this
            for what, why in this["dropped"].items():
                line += f"\n    dropped {what}: {why}"
                wrong += not why.startswith("spills")
        else:
            line, name, seconds = _unpool(job, chip, here, device)
            content[UNPOOL][name] = seconds
        say(f"{job.name}: {line}")
        if file and file != "-":
            _write(file, content | {"table": json.loads(selection.FILE.read_text())})
    if file == "-":
        _write(file, content)
    say(f"{len(jobs)} tuned on {chip.name}: {wrong or 'nothing'} wrong")
    return int(bool(wrong))


def is_pass(job: Job) -> bool:
    """Whether a job is a pass of a convolution, which has candidates."""
    return job.problem.kind != UNPOOL


def estimate(work: dict[Problem, list[Config]], processes: int) -> str:
    """A line that says how much there is to do, and how long that takes, about."""
    count = sum(map(len, work.values()))
    seconds = count * (COMPILE / processes + TIME) + len(work) * PASS
    return f"{len(work)} passes, {count} candidates: {timing.about(seconds)} on {processes} CPUs"


def _pass(
    job: Job, chip: Chip, here: dict, device: str, configs: list[Config], dropped: dict[Config, str]
) -> tuple[str, dict]:
    """Measures and records a pass: (a line to show, everything that was measured)."""
    tuned = measure.one_pass(job.problem, configs, dropped, device)
    line = f"cuDNN {1e6 * tuned.cudnn:.1f} us"
    if winner := tuned.winner:
        best = tuned.seconds[winner]
        line += f"; {winner} {1e6 * best:.1f} us, {tuned.cudnn / best:.2f} times as fast"
        entry = {"config": str(winner), "seconds": best, "cudnn": tuned.cudnn}
        entry |= selection.tried(configs)
        record(chip, here, "launches", job.name, entry)
    return line, {
        "cudnn": tuned.cudnn,
        "seconds": {str(config): seconds for config, seconds in tuned.seconds.items()},
        "dropped": {str(config): why for config, why in tuned.dropped.items()},
    }


def _unpool(job: Job, chip: Chip, here: dict, device: str) -> tuple[str, str, float]:
    """Measures and records the extra write of a pooled block's gradient: line, its forward pass, seconds."""
    forward = replace(job.problem, kind="forward")
    seconds, name = measure.unpool(forward, device), selection.key(forward)
    record(chip, here, UNPOOL, name, {"seconds": seconds})
    return f"{1e6 * seconds:.1f} us more to write the gradient of all outputs", name, seconds


def dry_run(jobs: list[Job], file: str | None, processes: int, every: bool = False, shown: int = 3) -> int:
    """Shows passes and their candidates with modelled times, the best `shown` of each; JSON has all."""
    chip = chips.here()
    console = Console()
    if not console.is_terminal:
        console.width = 150
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("pass", "candidates", "configuration", "us", "work", "TFLOP/s"):
        table.add_column(heading, justify="left" if heading in ("pass", "configuration") else "right")
    modelled = {}
    work = {job.problem: measure.worth(job.problem, chip, every) for job in jobs if is_pass(job)}
    for job in filter(is_pass, jobs):
        ranked = work[job.problem]
        times = {config: model.seconds(job.problem, config, chip) for config in ranked}
        modelled[job.name] = {str(config): times[config] for config in ranked}
        useful = tiling.useful(job.problem)
        for i, config in enumerate(ranked[:shown]):
            table.add_row(
                *((job.name, str(len(ranked))) if i == 0 else ("", "")),
                str(config),
                f"{1e6 * times[config]:.1f}",
                f"{tiling.flops(job.problem, config) / useful:.2f}",
                f"{useful / times[config] / 1e12:.0f}",
            )
    if file:
        _write(file, {"chip": chip.name, "modelled": modelled})
    if file != "-":
        console.print(table)
        print(estimate(work, processes))
        print(f"modelled for {chip.name}; work in multiples of the useful, TFLOP/s of useful work")
    return 0


def _write(file: str, data: dict) -> None:
    content = json.dumps(data, indent=1)
    if file == "-":
        print(content)
    else:
        check.write(Path(file), content)
