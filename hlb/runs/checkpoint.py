"""Checkpoints: a network's weights with the recipe that made them. Loaded with `weights_only=True`."""

from __future__ import annotations

import dataclasses
import io
import os
import warnings
from pathlib import Path

import torch

import kernels

from ..errors import UserError
from ..execution import torch_dtype
from ..files import atomic
from ..networks import Network
from ..recipes import Recipe
from ..settings import fields, from_fields
from ..train import Run, Trainer

FORMAT = "hlb-checkpoint-1"


def save(path: Path | str, trainer: Trainer, run: Run) -> None:
    """Writes the trainer's network as `run` left it (the averaged weights where the recipe averages)."""
    with trainer.averaging.averaged(), atomic(path) as temporary, io.BytesIO() as file:
        torch.save(
            {
                "format": FORMAT,
                "recipe": fields(trainer.recipe),
                "dataset": trainer.dataset.name,
                "seed": run.seed,
                "accuracy": run.accuracy,
                "views": run.views,
                "weights": {
                    name: tensor.detach().cpu().clone()
                    for name, tensor in trainer.network.state_dict().items()
                },
            },
            file,  # of a full disk torch makes a RuntimeError
        )
        temporary.write_bytes(file.getbuffer())


def load(
    path: Path | str, device: str = "cpu", dtype: str | None = None, channels_last: bool = True
) -> tuple[Network, Recipe, dict]:
    """The network on `device` in evaluation mode, its recipe, and the checkpoint's other entries.

    `dtype` replaces the recipe's. Raises UserError for a file that is missing, damaged or not a checkpoint
    of this program.
    """
    foreign = f"{path} is not a checkpoint of this program, or is damaged; give a file that --save wrote"
    if not os.path.isfile(path):
        raise UserError(f"no file {path}; give a checkpoint that --save wrote")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch.load, about files that are refused below
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # torch.load raises many kinds for a file that is not its own
        raise UserError(foreign) from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(foreign)
    try:
        recipe = from_fields(content["recipe"])
        recipe = dataclasses.replace(recipe, dtype=dtype) if dtype else recipe
        network = Network(recipe, kernels.backend("reference"), channels_last)
        network.load_state_dict(content["weights"])
    except (UserError, RuntimeError, KeyError, AttributeError, TypeError):
        raise UserError(foreign) from None
    network = network.cast(torch_dtype(recipe.dtype)).to(device).eval()
    if channels_last:
        network = network.to(memory_format=torch.channels_last)
    return network, recipe, {key: value for key, value in content.items() if key not in ("weights", "recipe")}
