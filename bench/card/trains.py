"""Step 4: whole runs of recipes with each choice of kernels, and the kernels of one run of each, summed.

Each configuration is a process of its own (trainee.py). All are built side by side; then their runs take
turns, one at a time behind the lock, after one of each that is not timed. Those of OFTEN are in every round,
the others in every OTHERS-th. Every run is a line of runs.jsonl at once; a second card goes on with
the next seed.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

from hlb.runs import ledger
from hlb.runs.statistics import clocked

from . import lock
from .runner import ROOT, as_object
from .steps import Context, result, say

MOST = 100  # runs of a configuration
OTHERS = 20  # rounds from one run of what is not in OFTEN to the next
BUILDING = 0.5  # of the time: a configuration that is not built by then is left out
UNTIMED = 0  # the seed of the run that is not recorded


@dataclass(frozen=True)
class Configuration:
    """A recipe, a choice of kernels, and settings as `--set` takes them, with a word for these."""

    recipe: str
    kernels: str
    settings: tuple[str, ...] = ()
    word: str = ""

    @property
    def name(self) -> str:
        return " ".join(filter(None, (self.recipe, self.kernels, self.word)))


CHOICES = ("tuned", "triton", "reference")
CONFIGURATIONS = (
    Configuration("record94", "tuned"),
    Configuration("record94", "tuned", ("conv_dtype=auto,float8,float8",), "float8"),
    Configuration("record94", "triton"),
    Configuration("record94", "reference"),
    *(Configuration(recipe, kernels) for recipe in ("seed", "airbench94") for kernels in CHOICES),
)
OFTEN = CONFIGURATIONS[:2]
NAMES = tuple(one.name for one in CONFIGURATIONS)
TINY = "base_depth=2 train_examples=16 batch_size=8 eval_batch_size=8 epochs=1 whiten_images=8 views=none"
TOY = (Configuration("smoke", "reference,sgd=triton", tuple(TINY.split())),)


def command(one: Configuration, context: Context, build: bool = False) -> list[str]:
    """Of the process that trains it, or with `build` only builds it."""
    asked = {
        "recipe": one.recipe,
        "kernels": one.kernels,
        "settings": one.settings,
        "data": context.data,
        "device": context.device,
        "build": build,
    }
    return [sys.executable, "-m", f"{__package__}.trainee", json.dumps(asked)]


def wanted(context: Context) -> tuple[Configuration, ...]:
    """The configurations that a card was asked for."""
    asked = context.configurations
    return tuple(one for one in CONFIGURATIONS if not asked or one.name in asked)


@dataclass
class Trainee:
    """A configuration's process, which answers a line for a line."""

    one: Configuration
    child: subprocess.Popen
    answers: queue.Queue = field(default_factory=queue.Queue)
    seconds: float = 0.0  # of its last turn
    seed: int = 1  # of its next run
    fault: str = ""

    @classmethod
    def start(cls, one: Configuration, context: Context, cpus: int) -> Trainee:
        """Its process, whose compiler takes so many CPUs."""
        child = subprocess.Popen(
            command(one, context),
            env={**os.environ, "TORCHINDUCTOR_COMPILE_THREADS": str(cpus)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
        )
        trainee = cls(one, child)
        threading.Thread(target=trainee._listen, daemon=True).start()
        return trainee

    def _listen(self) -> None:
        last = ""
        for line in self.child.stdout:
            if (reply := as_object(line)) is not None:
                self.answers.put(reply)
            else:
                last = line.strip() or last
        self.answers.put({"fault": last or f"ended with status {self.child.wait()}"})

    def answer(self, seconds: float) -> dict:
        """Its next answer. No answer in time is a fault, and ends the process."""
        try:
            reply = self.answers.get(timeout=max(0.1, seconds))
        except queue.Empty:
            reply = {"fault": "it did not answer in time"}
        if "fault" in reply:
            self.fault = reply["fault"]
            self.child.kill()
        return reply

    def turn(self, asked: dict, seconds: float) -> dict:
        """Its answer to a request, with the machine to itself."""
        with lock.alone():
            began = time.time()
            with contextlib.suppress(BrokenPipeError):  # its last line comes as the answer
                self.child.stdin.write(json.dumps(asked) + "\n")
                self.child.stdin.flush()
            reply = self.answer(seconds)
            self.seconds = time.time() - began
        return reply


def ready(context: Context, configurations: tuple[Configuration, ...]) -> list[Trainee]:
    """The trainees that were built in time, all side by side."""
    cpus = max(1, len(os.sched_getaffinity(0)) // len(configurations))
    trainees = [Trainee.start(one, context, cpus) for one in configurations]
    until = time.time() + BUILDING * context.left()
    for trainee in trainees:
        reply = trainee.answer(until - time.time())
        built = f"not run: {trainee.fault}" if trainee.fault else f"built in {reply['built']:.0f} s"
        say(f"{trainee.one.name}: {built}")
    return [trainee for trainee in trainees if not trainee.fault]


def run(context: Context) -> int:
    there = context.folder.trained()
    if not context.data:
        say("made-up images: times are right, accuracies mean nothing")
    trainees = ready(context, TOY if context.toy else wanted(context))
    for trainee in trainees:
        trainee.seed += sum(configured(run) == trainee.one.name for run in there)
    counts = Counter({trainee.one.name: 0 for trainee in trainees})
    for number in range(-1, 1 if context.toy else MOST):
        turns = 0
        for trainee in trainees:
            rare = trainee.one not in OFTEN and number % OTHERS
            if trainee.fault or (number > 0 and rare) or context.left() < 1.5 * trainee.seconds:
                continue
            turns += 1
            if number < 0:
                trainee.turn({"run": UNTIMED}, context.left())
            else:
                counts[trainee.one.name] += record(context, trainee)
            if number == 0:
                profile(context, trainee)
            if trainee.fault:
                say(f"{trainee.one.name}: {trainee.fault}")
        result({"runs": counts, "faults": {t.one.name: t.fault for t in trainees if t.fault}})
        if not turns:
            break
    for trainee in trainees:
        trainee.child.kill()
    return int(not counts.total())


def configured(run: dict) -> str:
    """The name of the configuration that a line of runs.jsonl is of."""
    return run.get("configuration") or f"{run['recipe']} {run['execution']['kernels']}"


def record(context: Context, trainee: Trainee) -> bool:
    """Makes a timed run and appends it to runs.jsonl; whether it ended."""
    reply = trainee.turn({"run": trainee.seed}, context.left())
    if trainee.fault:
        return False
    line = reply["record"] | {"configuration": trainee.one.name}
    ledger.append(context.folder.runs, line)
    trainee.seed += 1
    accuracy = "diverged" if line["accuracy"] is None else f"{line['accuracy']:.2%}"
    say(f"{trainee.one.name}: seed {line['seed']}, {clocked(line):.3f} s, {accuracy}")
    return True


def profile(context: Context, trainee: Trainee) -> None:
    """Appends the kernels of one run to profiles.txt."""
    if not trainee.fault and "profile" in (reply := trainee.turn({"profile": UNTIMED}, context.left())):
        with open(context.folder.profiles, "a") as f:
            f.write(f"== {trainee.one.name}\n{reply['profile']}\n")
