"""The steps of a card, and how they divide its time.

A step is an entry of STEPS and a module with `run(context)`. It is run in a process of its own:

    python -m bench.card.steps NAME CONTEXT

Lines that it prints are shown; those that are JSON objects are its result, joined. It writes its files as it
goes, looks at `context.left()`, and is ended at its limit. What it leaves of its limit is the later steps'.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hlb.errors import exit_status

from .folder import Folder


@dataclass(frozen=True)
class Step:
    """`share` is its part of the time; `module`, of bench, has its `run`. `toy`: whether there is
    something to do at toy size, without a GPU.
    """

    name: str
    share: float
    module: str
    what: str
    toy: bool = True


# In order of worth.
STEPS = (
    Step("environment", 0.05, "card.machine", "versions, device, data"),
    Step("compile", 0.30, "card.compiling", "kernels and recipes, on all cores", toy=False),
    Step("tests", 0.18, "card.testing", "kernel tests, the recipes' shapes in float16 first"),
    Step("runs", 0.26, "card.trains", "whole runs of recipes, interleaved, and their profiles"),
    Step("sweep", 0.20, "sweeps.card_step", "the fastest variant of record94 that is shown to reach 94 %"),
    Step("peers", 0.20, "card.peers", "foreign scripts, in their turn"),
    Step("passes", 0.10, "card.passes", "passes of convolutions beside cuDNN"),
    Step("ops", 0.09, "card.ops", "every op beside what torch.compile makes of its reference"),
    Step("sanitizers", 0.05, "card.sanitizers", "a small case of each op under compute-sanitizer", toy=False),
)
NAMES = tuple(step.name for step in STEPS)
LEAST = 20.0  # seconds, if that is no more than half of what is left: a process takes some to begin
POLL = 0.5  # seconds between looks at whether the card is still there


@dataclass(frozen=True)
class Context:
    """What a step is told. `until` is when it should have ended, in time.time()'s seconds."""

    out: str
    until: float
    toy: bool
    data: str | None = None  # a folder that holds CIFAR-10; None: made-up images
    peers: tuple[tuple[str, str], ...] = ()  # (name, command)
    configurations: tuple[str, ...] = ()  # names of trains.CONFIGURATIONS; none: all

    def left(self) -> float:
        """Seconds."""
        return self.until - time.time()

    @property
    def folder(self) -> Folder:
        return Folder(Path(self.out))

    @property
    def device(self) -> str:
        return "cpu" if self.toy else "cuda"

    def json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def parsed(cls, text: str) -> Context:
        """The context that `json` wrote."""
        fields = json.loads(text)
        fields["peers"] = tuple(map(tuple, fields["peers"]))
        return cls(**fields | {"configurations": tuple(fields["configurations"])})


def limit(step: Step, steps: Sequence[Step], left: float) -> float:
    """Seconds for `step`, of those `left` for it and the steps after it: its share, but LEAST where there
    are.
    """
    after = steps[steps.index(step) :]
    return max(left * step.share / sum(one.share for one in after), min(LEAST, left / 2))


def say(text: str) -> None:
    """Prints a line, whole, whichever thread it is from."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def result(values: dict) -> None:
    """Reports results of the step; a later value replaces an earlier one of the same name."""
    say(json.dumps(values))


def end_with(parent: int) -> None:
    """Ends this process and all that it started once its parent is gone: a card that was killed leaves
    nothing.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL)
        os.killpg(os.getpgrp(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def main(name: str, context: str) -> int:
    """Runs a step; its exit status."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if os.getpgrp() == os.getpid():  # not where a test calls it
        end_with(os.getppid())
    step = STEPS[NAMES.index(name)]
    work = importlib.import_module(f"..{step.module}", __package__).run
    try:
        return exit_status(f"card: {name}", lambda: work(Context.parsed(context)) or 0)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # what ends with the process may be ended


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
