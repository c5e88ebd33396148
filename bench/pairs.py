"""Training steps of two settings, interleaved, and the ratio of their times pair by pair.

    python -m bench pairs dtype=bfloat16 dtype=float32 --recipe seed --pairs 20

A machine's speed drifts; within a pair it hardly does, so the median of the pairs' ratios is worth more than
the ratio of two medians taken one after the other. Which goes first alternates. Settings are fields of the
recipe or of the execution (compile, channels_last, threads, device, kernels), joined by commas; '' changes
nothing. Where a run's steps are captured, so are these.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import re
import shlex
import statistics
import sys
import typing

import torch

from hlb import Dataset, Execution, Recipe, UserError, recipe
from hlb.errors import Parser, exit_status, positive, read
from hlb.execution import apply, resolve
from hlb.files import check_output
from hlb.runs import ledger
from hlb.train import Trainer

HELP = """\
usage: python -m bench pairs A B [--recipe NAME] [--pairs N] [--json [FILE|-]]

Steps of two settings, interleaved, and the ratio of their times pair by pair.
A and B are fields of the recipe or of the execution, joined by commas, such as
dtype=bfloat16,compile=off; '' changes nothing.

  --recipe NAME    seed if not given
  --pairs N        10 if not given
  --json [FILE|-]  the record; - is standard output
"""
KEPT = ("recipe", "device", "device_name", "versions", "commit", "dirty")  # of a run's provenance


def made_up_data(examples: int) -> Dataset:
    """A data set of the right shapes; a step's time does not depend on what the images show."""
    images = torch.arange(examples * 32 * 32 * 3).mul(7919).to(torch.uint8).view(examples, 32, 32, 3)
    labels = torch.arange(examples) % 10
    return Dataset("made up", (images, labels, images[:1000], labels[:1000]))


def settings_of(text: str) -> tuple[dict[str, str], dict[str, object]]:
    """Fields of the recipe and of the execution in `field=value,field=value`; a value may hold commas.

    Raises UserError for text of another form, or an invalid value of the execution.
    """
    kinds = typing.get_type_hints(Execution)
    known = (field.name for kind in (Recipe, Execution) for field in dataclasses.fields(kind))
    parts = [part.partition("=") for part in re.split(rf",(?=(?:{'|'.join(known)})=)", text) if part]
    for field, equals, _ in parts:
        if not equals:
            raise UserError(f"settings: got {field!r}, accepted is field=value,field=value")
    fields = {field: value for field, _, value in parts}
    execution = {field: read(field, fields.pop(field), kinds[field]) for field in kinds if field in fields}
    return fields, execution


def chosen(name: str, settings: str) -> tuple[Recipe, Execution]:
    """The recipe `name` with `field=value,field=value` changed, and where it runs. Raises UserError."""
    fields, execution = settings_of(settings)
    return resolve(recipe(name, fields), Execution(**execution))


def trainer(chosen: Recipe, where: Execution) -> Trainer:
    return Trainer(chosen, where, made_up_data(max(chosen.batch_sizes)))


def measure(a: Trainer, b: Trainer, pairs: int) -> list[tuple[float, float]]:
    """Seconds of a step of each, pair by pair."""
    out = []
    for i in range(pairs):
        first, second = (a, b) if i % 2 == 0 else (b, a)
        seconds = {}
        for one in (first, second):
            apply(one.recipe, one.execution)  # else torch's switches are those of the trainer built last
            seconds[id(one)] = one.timed_step()
        out.append((seconds[id(a)], seconds[id(b)]))
    return out


def main(arguments: list[str]) -> int:
    """Returns the exit status: 0, 2 (a mistake), 130 (interrupted)."""
    return exit_status("bench pairs", functools.partial(_main, arguments))


def parsed(arguments: list[str]) -> argparse.Namespace:
    """The options of a command line, checked. Raises UserError for invalid ones."""
    parser = Parser(description=HELP)
    parser.add_argument("a")
    parser.add_argument("b")
    parser.add_argument("--recipe", default="seed")
    parser.add_argument("--pairs", type=positive, default=10)
    parser.add_json()
    options = parser.parse_args(arguments)
    check_output(options.json, "--json")
    return options


def _main(arguments: list[str]) -> int:
    options = parsed(arguments)
    both = [chosen(options.recipe, settings) for settings in (options.a, options.b)]
    trainers = [trainer(*one) for one in both]
    pairs = measure(*trainers, options.pairs)
    ratios = sorted(x / y for x, y in pairs)
    say = functools.partial(print, file=sys.stderr if options.json == "-" else sys.stdout)
    for x, y in pairs:
        say(f"{x:10.4f} s {y:10.4f} s   ratio {x / y:.3f}")
    medians = [statistics.median(column) for column in zip(*pairs)]
    ratio = statistics.median(ratios)
    say(
        f"median step: {options.a} {medians[0]:.4f} s, {options.b} {medians[1]:.4f} s; "
        f"ratio, median of {len(ratios)} pairs: {ratio:.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})"
    )
    if options.json:
        shared = ledger.provenance(trainers[0])
        record = {
            "command": shlex.join(["python", "-m", "bench", "pairs", *arguments]),
            "a": options.a,
            "b": options.b,
            "seconds": pairs,
            "median_seconds": medians,
            "median_ratio": ratio,
            **{key: shared[key] for key in KEPT},
            "compile_seconds": [t.compile_seconds for t in trainers],
        }
        ledger.write(options.json, record)
    return 0


if __name__ == "__main__":
    print("bench.pairs: this is now `python -m bench pairs`", file=sys.stderr)
    sys.exit(2)
