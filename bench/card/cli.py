"""`python -m bench card`: its options, the order of its steps, its exit status."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import shlex
import sys
import time
from functools import partial
from pathlib import Path

from rich.console import Console

from hlb import UserError
from hlb.errors import Parser, above_zero, exit_status, expect_known
from hlb.files import check_writable
from hlb.runs import environment, ledger
from hlb.runs.display import line

from . import machine, promises, runner, steps, table, trains
from .folder import Folder, opened
from .steps import NAMES, STEPS, Context, Step

MINUTES = 8.0
RESERVED = 5.0  # seconds, for the last step to end and for the table
WIDTH = 80  # of what is no terminal
HELP = """\
usage: python -m bench card [--minutes M] [--data DIR] [--out DIR]
                            [--peer NAME=COMMAND ...] [--steps NAME,...]
                            [--configurations NAME,...] [--toy]

Everything that a fresh GPU must show, in order of worth, inside its time. Each
step has a limit of its own, and what it finds is on disk as it comes. At the
end a table of what README promises, beside what was measured.

{steps}

  --minutes M    for all of it, {minutes:g} if not given
  --data DIR     CIFAR-10; without it, and where none is found, made-up images
  --out DIR      where its files go; one that a card was stopped in is gone on
                 with: what had ended is not run again
  --peer NAME=COMMAND
                 a foreign script, run in its turn with the machine to itself;
                 the last line that is a JSON object is kept beside ours
  --steps NAME,...
                 only these
  --configurations NAME,...
                 of the whole runs only these: a recipe and a choice of kernels,
                 such as "record94 tuned,seed tuned"
  --toy          toy sizes on the CPU, through Triton's interpreter; without a
                 GPU there is nothing else

Exit status: 0; 1 where a value is wrong; 2 a mistake; 130 interrupted.
"""


def _help() -> str:
    return HELP.format(steps="\n".join(f"  {step.name:14} {step.what}" for step in STEPS), minutes=MINUTES)


def parsed(arguments: list[str]) -> argparse.Namespace:
    """The options of a command line, checked. Raises UserError for invalid ones."""
    if sys.platform != "linux":  # process groups, signals, /proc
        raise UserError(
            f"the card runs on Linux, this is {sys.platform}; `python -m bench` measures anywhere"
        )
    parser = Parser(description=_help())
    parser.add_argument("--minutes", type=above_zero, default=MINUTES)
    parser.add_argument("--data")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--peer", action="append", default=[])
    parser.add_argument("--steps")
    parser.add_argument("--configurations", default="")
    parser.add_argument("--toy", action="store_true")
    options = parser.parse_args(arguments)
    options.peers = _peers(options.peer)
    if options.steps and "peers" not in map(str.strip, options.steps.split(",")):
        options.without(("peer",), "--steps has no peers")
    options.steps = _steps(options.steps, bool(options.peers))
    options.configurations = tuple(filter(None, map(str.strip, options.configurations.split(","))))
    expect_known("--configurations", trains.NAMES, *options.configurations)
    options.data = machine.found_data(options.data)
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    options.out = options.out or Path("results") / f"card-{stamp}"
    if options.out.exists() and not options.out.is_dir():
        raise UserError(f"--out: {options.out} is no folder; give one")
    return options


def _peers(asked: list[str]) -> tuple[tuple[str, str], ...]:
    commands = {}
    for text in asked:
        name, equals, command = (part.strip() for part in text.partition("="))
        if not (name and equals and command):
            raise UserError(f"--peer: got {text!r}, accepted is NAME=COMMAND")
        if name in commands:
            raise UserError(f"--peer: got {name!r} twice; give two names")
        commands[name] = command
    return tuple(commands.items())


def _steps(text: str | None, peers: bool) -> list[Step]:
    """The steps that were asked for, in order; that of peers only where there are some."""
    asked = NAMES if text is None else [name.strip() for name in text.split(",")]
    expect_known("--steps", NAMES, *asked)
    if text is not None and "peers" in asked and not peers:
        raise UserError("--steps: peers needs --peer NAME=COMMAND")
    return [step for step in STEPS if step.name in asked and (peers or step.name != "peers")]


def main(arguments: list[str], began: float | None = None) -> int:
    """Returns the exit status: 0, 1 (a value is wrong), 2 (a mistake), 130 (interrupted). Its minutes are
    counted from `began` on, else from now.
    """
    return exit_status("bench card", partial(_main, arguments, began or time.time()))


def _main(arguments: list[str], began: float) -> int:
    options = parsed(arguments)
    check_writable(options.out / "card.json", "--out")
    folder = Folder(options.out.resolve())
    why = machine.toy()
    toy = options.toy or why is not None
    commit, dirty = environment.commit()
    fresh = {
        "command": shlex.join(["python", "-m", "bench", "card", *arguments]),
        "begun": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "device_name": environment.device_name("cpu" if toy else "cuda"),
        "commit": commit,
        "dirty": dirty,
        "toy": toy,
        "data": options.data,
        "minutes": options.minutes,
        "steps": {},
    }
    card = opened(folder, fresh)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    say = partial(line, console)
    if toy:
        say(f"{why or '--toy'}: toy sizes on the CPU through the interpreter")
    context = Context(str(folder.path), 0.0, toy, options.data, options.peers, options.configurations)
    try:
        _run(card, folder, options.steps, context, began + 60 * options.minutes - RESERVED, say)
    finally:
        rows = _promised(card, folder)
        table.show(console, card, rows, folder)
    return int(any(promise.wrong for promise in rows))


def _run(card: dict, folder: Folder, asked: list[Step], context: Context, until: float, say) -> None:
    """Runs the steps that have not ended yet; writes the card before and after each."""
    left = []
    for step in asked:
        if context.toy and not step.toy:
            say(f"{step.name}: nothing to do at toy size")
        elif card["steps"].get(step.name, {}).get("state") == "ended":
            say(f"{step.name}: had ended")
        else:
            left.append(step)
    for step in left:
        seconds = steps.limit(step, left, until - time.time())
        if seconds <= 0:
            say(f"{step.name}: no time left")
            continue
        say(f"{step.name}: {step.what}; up to {seconds:.0f} s")
        mine = dataclasses.replace(context, until=time.time() + seconds)
        card["steps"][step.name] = {"state": "running", "seconds": 0.0, "limit": seconds}
        ledger.write(folder.card, card)
        try:
            card["steps"][step.name] = runner.step(step.name, mine, lambda text: say(f"    {text}"))
        except BaseException:
            card["steps"][step.name]["state"] = "interrupted"
            raise
        finally:
            ledger.write(folder.card, card)


def _promised(card: dict, folder: Folder) -> list[promises.Promise]:
    """The rows of the table of promises, which are written into the card too."""
    rows = promises.made(card, folder)
    ledger.write(folder.card, card | {"promises": [dataclasses.asdict(promise) for promise in rows]})
    return rows
