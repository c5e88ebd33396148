"""A Chrome trace of a few calls of each case, forward and backward, and where their time goes.

    python -m bench trace trace.json cross_entropy --case record94

On CUDA the reference and the op are called, except ops whose results are incorrect; elsewhere the reference
alone, at a small batch. Each pass is a range named after op, case, implementation and direction, at whose end
the host waits for the device: what a range launches also runs within it. The table is of what runs on the
device: kernels, or on a CPU operators, each without those that it calls. Calls follow one another on the same
inputs, which therefore may lie in L2: `python -m bench` has the times to quote.
"""

from __future__ import annotations

import contextlib
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor
from torch.profiler import record_function

from hlb import UserError
from hlb.cost.profiling import WORK, chrome_trace, write_trace
from hlb.files import check_writable
from hlb.runs.display import line, print_table
from hlb.runs.environment import device_name
from kernels.base import launch
from kernels.base.correctness import check, leaves, upstream
from kernels.base.spec import Case, KernelSpec

from .. import micro
from ..calls import tensors

WARM_UP, CALLS = 2, 3
SHOWN, WIDTH = 5, 60  # rows of a range, and characters of a kernel's name
PYTHON = "outside operators"  # of a CPU's time
HEADINGS = ("what runs", "times a call", "us a call", "share")

Within = Callable[[str], contextlib.AbstractContextManager]


def passes(spec: KernelSpec, function: Callable, arguments: dict, within: Within) -> None:
    """One call of an op: forward, and backward where something asks for a gradient, each in a context that
    `within(direction)` gives.
    """
    with within("forward"):
        outputs = tensors(function(**arguments))
    if roots := [out for out in outputs if out.requires_grad]:
        wanted = [arguments[name] for name in spec.differentiable if isinstance(arguments[name], Tensor)]
        gradients = upstream(roots)
        with within("backward"):
            torch.autograd.grad(roots, wanted, gradients, allow_unused=True)


def run(
    console: Console, todo: dict[KernelSpec, list[Case]], dtype: torch.dtype, device: str, path: Path
) -> int:
    """Writes the trace to `path`, whole or not at all, and prints the table. Returns the exit status, 1 where
    an op is incorrect. Raises UserError where nothing can be traced.
    """
    check_writable(path, "FILE")
    on_device = torch.device(device).type == "cuda"
    calls: list[tuple[KernelSpec, Case, dict[str, Callable]]] = []
    wrong = []
    for spec, cases in todo.items():
        for case in cases if on_device else map(micro.on_cpu, cases):
            functions = {"eager": spec.reference}
            if on_device and launch.INSTALLED and not launch.INTERPRETED:
                if faults := _faults(spec, case, dtype, device):
                    wrong.append(f"WRONG {spec.name} {case.name}, not traced: {faults}")
                else:
                    functions["triton"] = spec.op
            calls.append((spec, case, functions))

    @contextlib.contextmanager
    def within(name: str) -> Iterator[None]:
        with record_function(name):
            yield
            if on_device:
                torch.cuda.synchronize(device)

    def work(times: int) -> None:
        for spec, case, functions in calls:
            inputs = spec.make(case, dtype, device)  # here, so that one case's are in memory
            for by, function in functions.items():
                arguments, name = leaves(spec, inputs), f"{spec.name} {case.name} {by}"
                for _ in range(times):
                    passes(spec, function, arguments, lambda way, name=name: within(f"{name} {way}"))

    work(WARM_UP)
    trace = chrome_trace(lambda: work(CALLS), on_device)
    events = [event for event in trace["traceEvents"] if event.get("ph") == "X"]
    if on_device and not any(event.get("cat") in WORK for event in events):
        raise UserError("the profiler sees no kernels here; allow it to")
    names = {
        f"{spec.name} {case.name} {by} {direction}"
        for spec, case, functions in calls
        for by in functions
        for direction in ("forward", "backward")
    }
    alone = "" if on_device else f", references alone, at n = {micro.CPU_BATCH} or less"
    line(console, f"{device_name(device)}, {launch.short(dtype)}, {CALLS} calls of each{alone}\n")
    print_table(console, HEADINGS, table(spent(events, names, on_device)), words=(0,))
    for fault in wrong:
        line(console, fault)
    write_trace(path, trace)
    line(console, f"\nevery call is in {path}, for https://ui.perfetto.dev or chrome://tracing")
    return 1 if wrong else 0


def _faults(spec: KernelSpec, case: Case, dtype: torch.dtype, device: str) -> str:
    """The faults of the op's results; nothing where they are right."""
    try:
        return "; ".join(check(spec, case, dtype, device))
    except Exception as error:  # one op fails: the others are still traced
        return micro.one_line(error)


def spent(events: Sequence[dict], names: set[str], on_device: bool) -> dict[str, dict[str, list[float]]]:
    """range -> what ran on the device within it -> seconds of each time that it ran, from a trace's complete
    events; `names` are the ranges'.
    """
    ranges = sorted(
        (event["ts"], event["ts"] + event["dur"], event["name"])
        for event in events
        if event.get("cat") == "user_annotation" and event["name"] in names
    )
    by_range = {name: {} for _, _, name in ranges}
    work = [(e, e["dur"]) for e in events if e.get("cat") in WORK] if on_device else own(events)
    inside = Counter()
    for event, micros in work:
        i = bisect(ranges, event["ts"], key=lambda extent: extent[0]) - 1
        if i >= 0 and event["ts"] < ranges[i][1]:
            by_range[ranges[i][2]].setdefault(event["name"], []).append(micros / 1e6)
            inside[i] += micros / 1e6
    for i, (start, end, name) in enumerate([] if on_device else ranges):
        by_range[name].setdefault(PYTHON, []).append((end - start) / 1e6 - inside[i])
    return by_range


def own(events: Sequence[dict]) -> Iterator[tuple[dict, float]]:
    """Each operator's event and its microseconds without those of the operators that it calls."""
    threads: dict[tuple, list[dict]] = {}
    for event in events:
        if event.get("cat") == "cpu_op":
            threads.setdefault((event["pid"], event["tid"]), []).append(event)
    for calls in threads.values():
        inner, callers = Counter(), []
        for i, event in enumerate(calls := sorted(calls, key=lambda e: (e["ts"], -e["dur"]))):
            while callers and calls[callers[-1]]["ts"] + calls[callers[-1]]["dur"] <= event["ts"]:
                callers.pop()
            if callers:
                inner[callers[-1]] += event["dur"]
            callers.append(i)
        yield from ((event, event["dur"] - inner[i]) for i, event in enumerate(calls))


def table(by_range: dict[str, dict[str, list[float]]]) -> list[tuple[str, ...]]:
    """Rows under HEADINGS: of each range its sum, and what took most of it."""
    rows = []
    for name, parts in by_range.items():
        whole = sum(map(sum, parts.values()))
        rows.append((name, "", f"{whole / CALLS * 1e6:.1f}", ""))
        most = sorted(parts.items(), key=lambda item: -sum(item[1]))
        lines = [(part[:WIDTH], seconds) for part, seconds in most[:SHOWN]]
        if rest := [seconds for _, many in most[SHOWN:] for seconds in many]:
            lines.append((f"{len(most) - SHOWN} more", rest))
        for part, seconds in lines:
            share = f"{sum(seconds) / whole:.0%}" if whole else ""
            each = f"{len(seconds) / CALLS:g}", f"{sum(seconds) / CALLS * 1e6:.1f}"
            rows.append((f"  {part}", *each, share))
    return rows
