"""A step of the card: the sweep within a budget over shortest.json, for as long as the step has.

Its runs are lines of sweep.jsonl, from which a second card goes on. A run is one graph, as in trains.py.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from hlb import Execution
from hlb.study.arms import arms
from hlb.study.budget import fastest

from ..card import lock, trainee
from ..card.runner import ROOT
from ..card.steps import Context, result
from ..card.trains import TINY

ARMS = ROOT / "bench" / "sweeps" / "shortest.json"
TOY = {"recipe": "smoke", "arms": {"two epochs": {"epochs": 2.0}, "one": {"epochs": 1.0}}}
TOY_SECONDS = 4.0
LAST = 6.0  # seconds of the step that are no part of the budget: to say what was found


def run(context: Context) -> int:
    cuda = context.device == "cuda"
    execution = Execution(device=context.device, graph="run" if cuda else "off")
    data = trainee.dataset(context.data) if cuda else trainee.dataset(context.data, 64, 16)
    with tempfile.TemporaryDirectory() as folder:
        path, settings = ARMS, []
        if context.toy:
            path = Path(folder) / "arms.json"
            path.write_text(json.dumps(TOY))
            settings = [setting for setting in TINY.split() if "epochs" not in setting] + ["target=0.01"]
        configurations = arms(path, settings, execution)
    budget = min(context.left() - LAST, TOY_SECONDS if context.toy else context.left())
    context.folder.sweep.touch()  # also where there is no time for a run
    with lock.alone():
        found = fastest(
            configurations,
            max(budget, 1.0),
            data=data,
            ledger=context.folder.sweep,
            console=Console(file=sys.stdout, width=100, highlight=False),
        )
    said = found.json()
    kept = ("recipe", "dataset", "claimed", "target", "budget", "seconds", "verdict")
    of_claimed = next((arm["fresh"] for arm in said["arms"] if arm["name"] == said["claimed"]), None)
    result({"sweep": {name: said[name] for name in kept} | {"fresh": of_claimed}})
    return int(len(found.dropped) == len(configurations))
