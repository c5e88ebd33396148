"""A configuration that is trained: `python -m bench.card.trainee ASKED`, one JSON object, builds it and
says {"built": seconds}; then each line that it reads is {"run": seed} or {"profile": seed}, and answered by
a line.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity

from hlb import Dataset, Execution, recipe
from hlb.data import load
from hlb.execution import resolve
from hlb.runs import ledger
from hlb.train import Trainer

from ..pairs import made_up_data

SHOWN, NAME = 60, 140  # lines of a profile, and characters of a name
IMAGES, TESTS = 50000, 10000  # as CIFAR-10 has


def dataset(folder: str | None, images: int = IMAGES, tests: int = TESTS) -> Dataset:
    """CIFAR-10 from a folder, or made-up images, as many."""
    if folder:
        return load(folder)
    pixels, labels, *_ = made_up_data(images).tensors
    return Dataset("made up", (pixels, labels, pixels[:tests], labels[:tests]))


def built(asked: dict) -> Trainer:
    """A trainer for what is asked, the whole run as one graph where there are graphs."""
    cuda = asked["device"] == "cuda"
    execution = Execution(device=asked["device"], kernels=asked["kernels"], graph="run" if cuda else "off")
    chosen, execution = resolve(recipe(asked["recipe"], asked["settings"]), execution)
    data = dataset(asked["data"]) if cuda else dataset(asked["data"], 64, 16)
    return Trainer(chosen, execution, data)


def profiled(trainer: Trainer, seed: int) -> str:
    """The kernels of a run, as text."""
    cuda = trainer.device.type == "cuda"
    activity = ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU
    with torch.profiler.profile(activities=[activity], acc_events=True) as profiler:
        trainer.run(seed, eval_every=0)
    kind = DeviceType.CUDA if cuda else DeviceType.CPU
    events = [one for one in profiler.events() if one.device_type == kind and not one.is_user_annotation]
    return summed(
        [
            (one.name, one.time_range.start, one.time_range.elapsed_us() if cuda else one.self_cpu_time_total)
            for one in events
        ]
    )


def summed(events: list[tuple[str, float, float]]) -> str:
    """Calls of (name, start, microseconds), summed by name, those first that take longest."""
    count, total = Counter(), Counter()
    for name, _, micros in events:
        count[name] += 1
        total[name] += micros
    ends = [start + micros for _, start, micros in events]
    span = max(ends, default=0) - min((start for _, start, _ in events), default=0)
    lines = [f"span {span / 1e3:.1f} ms, busy {total.total() / 1e3:.1f} ms, kernels {len(events)}"]
    for name, micros in total.most_common(SHOWN):
        mean = micros / count[name]
        lines.append(f"{micros / 1e3:9.2f} ms {count[name]:7} x {mean:8.1f} us  {name[:NAME]}")
    return "\n".join(lines)


def main(asked: dict) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not mix with answers

    def answer(**said) -> None:
        print(json.dumps(ledger.finite(said)), file=answers, flush=True)

    trainer = built(asked)
    answer(built=trainer.build_seconds)
    if asked["build"]:
        return
    known = ledger.provenance(trainer) | {"command": "python -m bench card"}
    for line in sys.stdin:
        wanted = json.loads(line)
        if "run" in wanted:
            answer(record=ledger.record(trainer.run(wanted["run"], eval_every=0), known))
        else:
            answer(profile=profiled(trainer, wanted["profile"]))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
