"""Where a training step's time goes: a trace for a viewer, and a table, op by op, beside each op's floor.

    result = profile("trace.json", "seed")
    show(Console(), result)

A few steps of the largest images run under torch.profiler, each op in a range of its name (`Ranges`). An
autograd node has a number, which a trace holds twice: at the operator that made the node, and at the node's
call. So a call belongs to the op in whose range its number was last seen; operators before the one that makes
the node show it too. What lies in no range is "between the ops".

Times are the wall clock of ranges and nodes on a CPU, of the kernels that they launch on a GPU. The floor is
that of passes.py at a GPU's rates; on a CPU that of the reference, at the rates of a matrix product and of a
copy, measured in the same process.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import json
import os
import shlex
import sys
import tempfile
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import NamedTuple

import torch
from rich.console import Console
from torch.profiler import ProfilerActivity, record_function

from kernels.base import chips, timing
from kernels.base.chips import Chip
from kernels.base.traffic import Traffic

from ..audit import Audit
from ..data import Dataset
from ..errors import UserError
from ..execution import Execution, shortage_explained, torch_dtype
from ..files import atomic, check_writable, noted
from ..recipes import Recipe
from ..runs import environment
from ..runs.display import line, print_table
from ..runs.experiment import begin
from ..settings import fields
from ..step import Variant
from ..train import Clock, Trainer
from . import complexity
from .passes import LAYERS, REST, passes
from .rehearsal import Rehearsal

WARM_UP, STEPS = 1, 5
SAMPLES, COPIED = 5, 2**28  # of the rates measured on a CPU: samples, and bytes of a copy
BETWEEN, STEP = "between the ops", "training step"
NODE = "autograd::engine::evaluate_function: "  # before the name of a node, where a trace has its call
WORK = ("kernel", "gpu_memcpy", "gpu_memset")  # categories of what a GPU does


class Piece(NamedTuple):
    """A call of an op, or of an autograd node that it made; from where to where, in microseconds."""

    thread: tuple
    start: float
    end: float
    op: str
    backward: bool


@dataclass(frozen=True)
class Row:
    """An op's part of a step: calls, and seconds."""

    op: str
    calls: int
    forward: float
    backward: float
    floor: float

    @property
    def seconds(self) -> float:
        return self.forward + self.backward


@dataclass(frozen=True)
class Profile:
    """What `profile` returns. `recipe` and `execution` are resolved, the latter as it was asked for;
    `wall_seconds` is a profiled step's.
    """

    path: Path
    recipe: Recipe
    execution: Execution
    dataset: str
    variant: Variant
    chip: Chip
    rows: list[Row]
    wall_seconds: float
    unwritten: str = ""  # why there is no trace

    @property
    def step(self) -> Row:
        """The sum of the rows."""
        parts = ("forward", "backward", "floor")
        return Row("a step", 0, *(sum(getattr(row, name) for row in self.rows) for name in parts))

    def json(self) -> dict:
        """A record of the profile: what of, on what, and the rows, in seconds."""
        commit, dirty = environment.commit()
        return {
            "command": shlex.join(["hlb", *sys.argv[1:]]),
            "recipe": self.recipe.name,
            "recipe_fields": fields(self.recipe),
            "execution": dataclasses.asdict(self.execution),
            "dataset": self.dataset,
            "device_name": environment.device_name(self.execution.device),
            "versions": environment.versions(),
            "commit": commit,
            "dirty": dirty,
            "time": datetime.datetime.now(datetime.timezone.utc).isoformat(),
            "images": self.variant.count,
            "size": self.variant.size,
            "chip": self.chip.name,
            "step_seconds": self.wall_seconds,
            "rows": [dataclasses.asdict(row) for row in self.rows],
        }


class Ranges(Audit):
    """An audit that counts nothing, and calls each op in a range of its name. `parts` says of each range what
    `floors` calls it: the layer, or the op where that is no layer.
    """

    def __init__(self, recipe: Recipe):
        super().__init__()
        self.recipe, self.parts = recipe, {}

    def counted(self, ops: SimpleNamespace) -> SimpleNamespace:
        return SimpleNamespace(**{op: self._ranged(op, call) for op, call in vars(ops).items()})

    def _ranged(self, op: str, call: Callable) -> Callable:
        @functools.wraps(call)
        def inside(*args, **kwargs):
            with record_function(self._name(op)):
                return call(*args, **kwargs)

        return inside

    def _name(self, op: str) -> str:
        if op in REST:
            self.parts[op] = op
            return op
        if op == "stem":
            self.layers = iter(complexity.layers(self.recipe))
        if op in LAYERS:
            self.layer = next(self.layers).name
        name = f"{op} {self.layer}" if "." in self.layer else op
        self.parts[name] = self.layer
        return name


def profile(
    path: str | Path,
    recipe: str | Recipe | None = None,
    *,
    settings: dict | list[str] = (),
    data: str | Dataset = "auto",
    execution: Execution = Execution(),
    console: Console | None = None,
) -> Profile:
    """Profiles a few training steps of a recipe and writes their Chrome trace to `path`; no run is made.
    Other arguments as `hlb.train`. Ranges need Python: steps are neither compiled nor captured. Raises
    UserError.
    """
    check_writable(path, "--profile")
    if execution.graph == "run":
        raise UserError("--graph run: a graph of the whole run has no steps to profile; leave it out")
    recipe, execution, dataset = begin(recipe, settings, data, execution, console or Console(quiet=True))
    device = torch.device(execution.device)
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--profile: steps on {device} cannot be profiled; take --device cpu")

    ranges, examples = Ranges(recipe), len(dataset.tensors[0])
    plain = dataclasses.replace(execution, compile="off", graph="off")
    with shortage_explained(recipe):
        trainer = Trainer(recipe, plain, dataset, ranges)
        largest = max(trainer.plan).size
        counts = complexity.steps(recipe, examples)
        variant, averages = max((step for step in counts if step[0].size == largest), key=counts.get)
        trace, wall_seconds = _traced(trainer, variant)
    events = [event for event in trace["traceEvents"] if event.get("ph") == "X"]
    if device.type == "cuda" and not any(event.get("cat") in WORK for event in events):
        raise UserError("--profile: the profiler sees no kernels here; allow it to, or take --device cpu")
    calls = pieces(events, ranges.parts)
    trace["traceEvents"] = [*_backward_slices(calls), *trace["traceEvents"]]

    chip, choice = _chip(recipe, device), execution.kernels if device.type == "cuda" else "reference"
    least = floors(recipe, choice, variant, averages, chip, examples, len(dataset.classes))
    rows = _rows(times(events, calls, device.type == "cuda"), calls, ranges.parts, least)
    unwritten: list[str] = []
    with noted(unwritten, "--profile", path):
        write_trace(path, trace)
    result = recipe, execution, dataset.name, variant, chip, rows, wall_seconds
    return Profile(Path(path), *result, *unwritten)


def _traced(trainer: Trainer, variant: Variant) -> tuple[dict, float]:
    """The trace of a few steps, and the median seconds of one. They use the rates of a run's first such
    step, and images in no particular order.
    """
    number, seconds = trainer.plan.index(variant), []
    for _ in range(WARM_UP):
        trainer.timed_step(variant, number)

    def steps() -> None:
        for _ in range(STEPS):
            trainer.optimizer.step_index.fill_(number)
            with Clock(trainer.device) as clock, record_function(STEP):
                trainer.step(variant)
            seconds.append(clock.seconds)

    return chrome_trace(steps, trainer.device.type == "cuda"), median(seconds)


def write_trace(path: Path | str, trace: dict) -> None:
    """A trace as a file, whole or not at all."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(trace | {"traceName": Path(path).name}))


def chrome_trace(work: Callable[[], object], on_device: bool) -> dict:
    """The trace of a function, in Chrome's format, of CUDA's kernels as well if `on_device`."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # without a GPU it calls that an error
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_device
    with torch.profiler.profile(activities=activities, acc_events=True) as profiler:
        work()
    with tempfile.TemporaryDirectory() as folder:
        profiler.export_chrome_trace(f"{folder}/trace.json")
        return json.loads(Path(folder, "trace.json").read_text())


def pieces(events: Sequence[dict], ops: Sequence[str]) -> list[Piece]:
    """The calls of ops, forward and backward, in a trace's complete events; `ops` are the ranges' names."""
    calls, makers = [], {}
    current = Piece((), 0, 0, BETWEEN, False)
    for event in sorted(events, key=lambda event: event["ts"]):
        category, name, detail = event.get("cat"), event["name"], event.get("args", {})
        extent = (event["pid"], event["tid"]), event["ts"], event["ts"] + event["dur"]
        number = detail.get("Sequence number")
        if category == "user_annotation" and name in ops:
            current = Piece(*extent, name, False)
            calls.append(current)
        elif name.startswith(NODE):
            calls.append(Piece(*extent, makers.get(number, BETWEEN), True))
        elif number is not None and not detail.get("Fwd thread id") and extent[0] == current.thread:
            makers[number] = current.op if event["ts"] < current.end else BETWEEN
    return calls


def times(events: Sequence[dict], calls: Sequence[Piece], on_device: bool) -> list[Counter]:
    """Of each step, the seconds of every (op, backward). They add up to the step's: its wall clock, or where
    `on_device` that of all it has the device do.
    """
    steps = sorted(
        (event["ts"], event["ts"] + event["dur"])
        for event in events
        if event.get("cat") == "user_annotation" and event["name"] == STEP
    )
    spent = [Counter() for _ in steps]
    begun = [start for start, _ in steps]
    work = _device_work(events, calls) if on_device else ((p.start, p, p.end - p.start) for p in calls)
    for start, piece, micros in work:
        i = bisect(begun, start) - 1
        if i >= 0 and start < steps[i][1]:
            spent[i][(piece.op, piece.backward) if piece else (BETWEEN, False)] += micros / 1e6
    if not on_device:
        for (start, end), parts in zip(steps, spent):
            parts[BETWEEN, False] += (end - start) / 1e6 - parts.total()
    return spent


def _device_work(events: Sequence[dict], calls: Sequence[Piece]):
    """(launch time, the piece that launched it or None, microseconds) of everything that the device did. A
    kernel has the id of the operator that launched it.
    """
    launchers = {e["args"].get("External id"): e for e in events if e.get("cat") == "cpu_op"}
    threads = {}
    for piece in calls:
        threads.setdefault(piece.thread, []).append(piece)
    for event in events:
        if event.get("cat") in WORK:
            by = launchers.get(event["args"].get("External id"), event)
            mine = threads.get((by["pid"], by["tid"]), [])
            i = bisect(mine, by["ts"], key=lambda piece: piece.start) - 1
            inside = i >= 0 and by["ts"] < mine[i].end
            yield by["ts"], mine[i] if inside else None, event["dur"]


def _backward_slices(calls: Sequence[Piece]) -> list[dict]:
    """Events that name the op over the calls of its autograd nodes that follow one another."""
    named = []
    for (thread, op, backward), run in groupby(calls, key=lambda p: (p.thread, p.op, p.backward)):
        if backward and op != BETWEEN:
            run = list(run)
            extent = {"ts": run[0].start, "dur": run[-1].end - run[0].start}
            place = {"pid": thread[0], "tid": thread[1]}
            named.append({"ph": "X", "cat": "user_annotation", "name": f"{op} backward", **place, **extent})
    return named


def _chip(recipe: Recipe, device: torch.device) -> Chip:
    """The device's rates for products in the recipe's dtype, as its float16, which is what a `Pass` asks for;
    measured where no table has them.
    """
    dtype = torch_dtype(recipe.dtype)
    if device.type == "cuda":
        chip = chips.current(device)
    else:
        bandwidth = COPIED / timing.copy(COPIED, device, SAMPLES).median
        chip = Chip("measured on this machine", 0, 0, 0, bandwidth, bandwidth, {}, launch=0.0)
    flops = chip.flops.get("tf32" if recipe.dtype == "tf32" else dtype)
    return dataclasses.replace(chip, flops={torch.float16: flops or timing.matmul(dtype, device, SAMPLES)})


def floors(
    recipe: Recipe, choice: str, variant: Variant, averages: str, chip: Chip, examples: int, classes: int = 10
) -> Counter[str]:
    """The least seconds of each part of a step: layers by name, everything else by op."""
    rehearsal = Rehearsal(recipe, torch_dtype(recipe.dtype), examples, classes=classes)
    calls, between = rehearsal.part(lambda: rehearsal.step(variant))
    least, groups = Counter(), {}
    for op, inputs in calls:
        groups.setdefault(op if op in REST else "", []).append((op, inputs))
    for op, group in groups.items():
        for p in passes(recipe, choice, group, Traffic(), averages):
            least[op or p.layer] += p.seconds(chip)
    least[BETWEEN] = sum(p.seconds(chip) for p in passes(recipe, choice, [], between))
    return least


def _rows(
    spent: Sequence[Counter], pieces: Sequence[Piece], parts: dict[str, str], least: Counter[str]
) -> list[Row]:
    """A row per part, in the order of the forward pass, and one for what is between the ops."""
    calls = Counter(piece.op for piece in pieces if not piece.backward)
    ops = {}
    for op in calls:
        ops.setdefault(parts[op], []).append(op)
    rows = []
    for part, these in (ops | {BETWEEN: [BETWEEN]}).items():
        both = (median(sum(step[op, way] for op in these) for step in spent) for way in (False, True))
        count = max(calls[op] for op in these) // len(spent)
        rows.append(Row(" + ".join(these), count, *both, least[part]))
    return rows


def show(console: Console, result: Profile) -> None:
    """Prints a profile: what was profiled, the table, and how to read it."""
    recipe, execution, variant, chip = result.recipe, result.execution, result.variant, result.chip
    on_device = execution.device.startswith("cuda")
    line(
        console,
        f"{recipe.name} on {result.dataset}, {environment.device_name(execution.device)}: {STEPS} training "
        f"steps of {variant.count} images of {variant.size}x{variant.size} in {recipe.dtype}, "
        f"--kernels {execution.kernels}, after warm-up",
    )
    hiding = {"torch.compile": execution.compile == "on", "CUDA graphs": execution.graph == "step"}
    if any(hiding.values()):
        without = " and ".join(name for name, on in hiding.items() if on)
        line(console, f"profiled without {without}, in which ops cannot be told apart; a run takes less time")
    console.print()
    headings = ("ms per step", "calls", "forward", "backward", "share", "floor", "x floor")
    print_table(
        console, headings, [_cells(row, result.step) for row in (*result.rows, result.step)], words=(0,)
    )
    console.print()
    what, wall = "kernels on the device" if on_device else "the wall clock", 1e3 * result.wall_seconds
    line(console, f"times: medians of {what}; a whole step took {wall:.1f} ms by the wall clock, profiled")
    rates = (
        f"{chip.flops[torch.float16] / 1e12:.3g} TFLOP/s in {recipe.dtype}, {chip.bandwidth / 1e9:.3g} GB/s"
    )
    launches = f"{1e6 * chip.launch:g} µs a launch" if chip.launch else "what stays in a cache moves faster"
    line(console, f"floor: {chip.name}: {rates}; {launches}")
    if not result.unwritten:
        line(console, f"every call is in {result.path}, for https://ui.perfetto.dev or chrome://tracing")


def _cells(row: Row, step: Row) -> tuple[str, ...]:
    floor = (f"{1e3 * row.floor:.3f}", f"{row.seconds / row.floor:.1f}") if row.floor else ("", "")
    both = (f"{1e3 * seconds:.3f}" if seconds else "" for seconds in (row.forward, row.backward))
    return row.op, str(row.calls or ""), *both, f"{row.seconds / step.seconds:.1%}", *floor
