"""Training steps of two settings, interleaved, and the ratio of their times pair by pair.

    python -m bench.pairs dtype=bfloat16 dtype=float32 --recipe seed --pairs 20

A machine's speed drifts; within a pair it hardly does, so the median of the pairs' ratios is worth more than
the ratio of two medians taken one after the other. Which goes first alternates. Settings are recipe
fields, or fields of the execution (compile, channels_last, threads, device), joined by commas.
"""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import statistics
import sys
from pathlib import Path

import torch

from hlb import Dataset, Execution, UserError, ledger, recipe
from hlb.execution import resolve
from hlb.files import check_writable
from hlb.train import Trainer

KEPT = ("recipe", "device", "device_name", "versions", "commit", "dirty")  # of a run's provenance


def made_up_data(examples: int) -> Dataset:
    """A set of the right shapes; a step's time does not depend on what the images show."""
    images = torch.arange(examples * 32 * 32 * 3).mul(7919).to(torch.uint8).view(examples, 32, 32, 3)
    labels = torch.arange(examples) % 10
    return Dataset("made up", (images, labels, images[:1000], labels[:1000]))


def trainer(name: str, settings: str) -> Trainer:
    """The trainer for `field=value,field=value`."""
    fields = dict(item.partition("=")[::2] for item in settings.split(",") if item)
    own = {field.name for field in dataclasses.fields(Execution)}
    execution = {field: fields.pop(field) for field in list(fields) if field in own}
    for field, read in (("channels_last", lambda text: text in ("on", "true")), ("threads", int)):
        if field in execution:
            execution[field] = read(execution[field])
    chosen, where = resolve(recipe(name, fields), Execution(**execution))
    return Trainer(chosen, where, made_up_data(chosen.batch_size))


def measure(a: Trainer, b: Trainer, pairs: int) -> list[tuple[float, float]]:
    """Seconds of a step of each, pair by pair."""
    out = []
    for i in range(pairs):
        first, second = (a, b) if i % 2 == 0 else (b, a)
        seconds = {id(t): t.timed_step() for t in (first, second)}
        out.append((seconds[id(a)], seconds[id(b)]))
    return out


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.pairs", description=__doc__.split("\n")[0])
    parser.add_argument("a", help="settings of the one, e.g. dtype=bfloat16")
    parser.add_argument("b", help="settings of the other, e.g. dtype=float32")
    parser.add_argument("--recipe", default="seed")
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--json", type=Path, help="where the record goes")
    options = parser.parse_args(arguments)
    try:
        if options.pairs < 1:
            raise UserError(f"--pairs: got {options.pairs}, accepted is 1 or more")
        if options.json:
            check_writable(options.json, "--json")
        trainers = [trainer(options.recipe, settings) for settings in (options.a, options.b)]
    except UserError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    pairs = measure(*trainers, options.pairs)
    ratios = sorted(x / y for x, y in pairs)
    for x, y in pairs:
        print(f"{x:10.4f} s {y:10.4f} s   ratio {x / y:.3f}")
    medians = [statistics.median(column) for column in zip(*pairs)]
    ratio = statistics.median(ratios)
    print(
        f"median step: {options.a} {medians[0]:.4f} s, {options.b} {medians[1]:.4f} s; "
        f"ratio, median of {len(ratios)} pairs: {ratio:.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})"
    )
    if options.json:
        shared = ledger.provenance(trainers[0])
        record = {
            "command": shlex.join(["python", "-m", "bench.pairs", *(arguments or sys.argv[1:])]),
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
    sys.exit(main())
