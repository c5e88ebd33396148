"""The trainers of a sweep: each configuration's is built once, and kept while there is room.

A build of record94 takes 6 s on an H200 with full caches, as long as 11 runs. So configurations that differ
only in what tables of steps say share a network and its compiled code: how long and when, not how. Of the
second one only its graphs are captured, in 3.5 s (bench/results/h200/sweep.jsonl).
"""

from __future__ import annotations

import gc
import json
from collections.abc import Sequence

import torch

from ..data import Dataset
from ..execution import apply
from ..runs import ledger as ledgers
from ..runs.statistics import decisive
from ..settings import fields
from ..step import rounds
from ..train import Trainer
from .grid import Configuration

CACHED = 4  # trainers kept on a CPU; on a GPU they may take half of its memory
# Fields of a recipe that act by tables of steps, and by which kinds of steps there are. `lr` is one where it
# is Muon's: as a rate of SGD it is in the decay, too.
IN_TABLES = frozenset(
    (
        *("epochs", "sizes", "hard_from", "hard_fraction", "lr_curve"),
        *("schedule", "warmup", "initial_lr", "final_lr", "final_epochs", "whiten_bias_epochs"),
        *("averaging_epochs", "averaging_every", "averaging_decay"),
    )
)
MOMENTA = frozenset(("muon_momentum", "muon_momentum_start", "muon_momentum_warmup"))  # where that warms up


def family(configuration: Configuration, examples: int) -> str:
    """What configurations that can share a network have in common."""
    recipe = configuration.recipe
    apart = IN_TABLES | ({"lr"} if recipe.optimizer == "muon" else set())
    apart |= MOMENTA if recipe.muon_momentum_warmup else set()
    same = {name: value for name, value in decisive(fields(recipe)).items() if name not in apart}
    shown = min(images for _, images in rounds(recipe, examples))
    same["warmed"] = recipe.muon_momentum_warmup > 0  # then Muon reads its momentum from a table
    same["hard"] = shown < min(recipe.train_examples or examples, examples)  # losses are kept for them
    return json.dumps([same, repr(configuration.execution)], sort_keys=True)


class Trainers:
    """Those of a data set, each with its provenance; the ones used last are kept. Some of the configurations
    `sharing` share a network.
    """

    def __init__(self, dataset: Dataset, sharing: Sequence[Configuration] = ()):
        self.dataset = dataset
        # By a configuration's name; the last used stands last.
        self.kept: dict[str, tuple[Trainer, dict]] = {}
        self.families: dict[str, str] = {}  # by a configuration's name
        self.rows: dict[str, int] = {}  # steps of a family's longest run
        examples = len(dataset.tensors[0])
        for one in sharing:
            mine = self.families[one.name] = family(one, examples)
            self.rows[mine] = max(self.rows.get(mine, 0), one.recipe.steps(examples))

    def ready(self, configuration: Configuration) -> tuple[Trainer, dict]:
        """The configuration's, built where it is not kept, with torch's switches set for it."""
        name = configuration.name
        while name not in self.kept and full(configuration.execution.device, len(self.kept)):
            self.forget(next(iter(self.kept)))
        self.kept[name] = self.kept.pop(name, None) or self._built(configuration)
        trainer, provenance = self.kept[name]
        apply(trainer.recipe, trainer.execution)  # torch's switches are those of the trainer built last
        return trainer, provenance

    def has(self, configuration: Configuration) -> bool:
        """Whether its trainer is kept."""
        return configuration.name in self.kept

    def like(self, configuration: Configuration) -> Trainer | None:
        """A kept one whose network it can share."""
        mine = self.families.get(configuration.name)
        alike = (kept for name, kept in self.kept.items() if mine and self.families[name] == mine)
        return next((trainer for trainer, _ in alike), None)

    def forget(self, name: str) -> None:
        """Frees a trainer."""
        self.kept.pop(name, None)
        gc.collect()  # a trainer is held by its own functions

    def _built(self, configuration: Configuration) -> tuple[Trainer, dict]:
        recipe, execution, like = configuration.recipe, configuration.execution, self.like(configuration)
        if like is None:
            rows = {"rows": self.rows[self.families[configuration.name]]} if self.families else {}
            trainer = Trainer(recipe, execution, self.dataset, **rows)
            return trainer, ledgers.provenance(trainer)
        try:
            trainer = Trainer(recipe, execution, self.dataset, like=like)
        except BaseException:  # while it warmed up, on made-up images
            like.step.images, like.step.labels = like.train_images, like.train_labels
            raise
        known = next(provenance for other, provenance in self.kept.values() if other is like)
        return trainer, known | ledgers.built(trainer)


def full(device: str, trainers: int) -> bool:
    """Whether there is no room for another trainer beside those that are kept."""
    if not device.startswith("cuda"):
        return trainers == CACHED
    free, total = torch.cuda.mem_get_info(device)
    return trainers > 0 and free < total / 2
