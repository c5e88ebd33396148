"""Checkpoints: a network's weights with the recipe that made them, the statistics that its images were
normalised with and the names of their classes. Loaded with `weights_only=True`.
"""

from __future__ import annotations

import dataclasses
import io
import math
import os
import warnings
import zipfile
from pathlib import Path

import torch
from torch import Tensor

import kernels

from .. import synthetic
from ..data.dataset import CLASSES, MEAN, STD, Dataset
from ..errors import UserError, expect_known
from ..execution import torch_dtype
from ..files import atomic
from ..networks import Network
from ..ranges import DTYPES
from ..recipes import Recipe
from ..settings import fields, from_fields
from ..train import Run, Trainer

FORMAT = "hlb-checkpoint-1"
FOREIGN = "{} is not a checkpoint of this program, or is damaged; give a file that --save wrote"
IMAGES = ("mean", "std", "classes")  # what is kept of a Dataset
# Sets that are normalised by CIFAR-10's statistics, and their classes: files of older versions have neither.
KNOWN = {"cifar10": CLASSES, "synthetic": synthetic.CLASSES}


def save(path: Path | str, trainer: Trainer, run: Run) -> None:
    """Writes the trainer's network as `run` left it (the averaged weights where the recipe averages)."""
    file = io.BytesIO()  # of a full disk torch would make a RuntimeError
    with trainer.averaging.averaged(), atomic(path) as temporary:
        torch.save(
            {
                "format": FORMAT,
                "recipe": fields(trainer.recipe),
                "dataset": trainer.dataset.name,
                **{name: getattr(trainer.dataset, name) for name in IMAGES},
                "seed": run.seed,
                "accuracy": run.accuracy,
                "views": run.views,
                "weights": {
                    name: tensor.detach().cpu().clone()
                    for name, tensor in trainer.network.state_dict().items()
                },
            },
            file,
        )
        temporary.write_bytes(file.getvalue())


def load(
    path: Path | str, device: str = "cpu", dtype: str | None = None, channels_last: bool = True
) -> tuple[Network, Recipe, dict]:
    """The network on `device` in evaluation mode, its recipe, and the checkpoint's other entries.

    The network takes normalised images: `hlb.load` gives a model that takes pixels. `dtype` replaces the
    recipe's. `mean`, `std` and `classes` are absent where an older version wrote the file, of a set that is
    neither CIFAR-10 nor the built-in one. Raises UserError for a file that is missing, damaged or not a
    checkpoint of this program.
    """
    if dtype is not None:
        expect_known("dtype", DTYPES, dtype)
    content = _read(path)
    try:
        recipe, about = from_fields(content["recipe"]), _about(content)
        recipe = dataclasses.replace(recipe, dtype=dtype) if dtype else recipe
        weights = dict(content["weights"])
        classes = len(weights["head.weight"])
        with torch.device("meta"):  # no memory for what a damaged file may say
            network = Network(recipe, kernels.backend("reference"), channels_last, classes=classes)
        network.load_state_dict(weights, assign=True)
        there = all(map(_dense, network.state_dict().values()))
        if not there or len(about.get("classes", range(classes))) != classes:
            raise ValueError("weights, classes")
        network = network.cast(torch_dtype(recipe.dtype))
    except Exception:  # what a damaged file holds fails in many ways
        raise UserError(FOREIGN.format(path)) from None
    network = network.to(device).eval()
    if channels_last:
        network = network.to(memory_format=torch.channels_last)
    return network, recipe, about


def check_classes(network: Network, about: dict, dataset: Dataset) -> None:
    """Raises UserError where the labels of a data set are not what the network of a checkpoint tells apart.
    Classes without names, which are called by their numbers, are only counted.
    """
    count, numbers = len(network.head.weight), tuple(map(str, range(len(dataset.classes))))
    trained = about.get("classes", dataset.classes)
    if count != len(numbers):
        raise UserError(f"--data: {dataset.name} has {len(numbers)} classes, the model has {count}")
    if trained != dataset.classes and numbers not in (trained, dataset.classes):
        own = next(name for name, theirs in zip(dataset.classes, trained) if name != theirs)
        raise UserError(f"--data: {dataset.name} has the class {own!r}, with which the model was not trained")


def _read(path: Path | str) -> dict:
    """What torch finds in the file. Raises UserError where it is missing, unreadable, or not ours."""
    if not os.path.isfile(path):
        raise UserError(f"no file {path}; give a checkpoint that --save wrote")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch.load, about files that are refused below
            content = torch.load(path, map_location="cpu", weights_only=True)
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():  # torch reads weights without looking at their checksum
                raise ValueError(damaged)
    except PermissionError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except Exception:  # torch.load raises many kinds for a file that is not its own
        raise UserError(FOREIGN.format(path)) from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(FOREIGN.format(path))
    return content


def _dense(tensor: Tensor) -> bool:
    """Whether it has numbers, in memory, one after the other."""
    return tensor.is_floating_point() and tensor.layout is torch.strided and not tensor.is_meta


def _about(content: dict) -> dict:
    """The entries beside recipe and weights; ValueError where one is not what `save` writes."""
    about = {key: value for key, value in content.items() if key not in ("weights", "recipe")}
    name = about["dataset"]
    if not isinstance(name, str):
        raise ValueError("dataset")
    if "mean" not in about and name in KNOWN:
        about |= zip(IMAGES, (MEAN, STD, KNOWN[name]))
    if "mean" in about:
        mean, std = (tuple(map(float, about[key])) for key in IMAGES[:2])
        good = len(mean) == len(std) == 3 and all(map(math.isfinite, mean + std)) and min(std) > 0
        if not good or not all(isinstance(name, str) for name in about["classes"]):
            raise ValueError("mean, std, classes")
        about |= zip(IMAGES, (mean, std, tuple(about["classes"])))
    return about
