"""What each field of a recipe means and takes, a line each: what `hlb recipes NAME` says of it."""

from __future__ import annotations

import typing
from types import NoneType

from ..optimizer import OPTIMIZERS
from ..ranges import CHOICES, RANGES
from ..recipes import Recipe, by_epoch

MEANING = {
    "dtype": "of weights and images; auto: the device's",
    "master_weights": "float32 copies that the optimizer updates; auto: for bfloat16",
    "conv_dtype": "operands of convolutions",
    "base_depth": "channels that all widths are multiples of",
    "stem_width": "of the stem's projection; 0 is a stem without",
    "group_widths": "of each group of blocks",
    "groups": "kind of each group",
    "activation": "of the blocks",
    "stem_activation": "of a stem without projection",
    "filter_init": "initial 3x3 filters",
    "head_init": "initial weights of the last layer",
    "logit_scale": "factor of the logits",
    "bn_momentum": "weight of the new value in batch norm's running statistics",
    "bn_eps": "added to batch norm's variance",
    "whiten_images": "training images that the stem's filters are computed from",
    "whiten_eps": "ridge of their covariance",
    "whiten_centered": "subtract the mean of the patches first",
    "whiten_bias_epochs": "epochs in which the stem's bias trains",
    "train_examples": "training images used; 0 is all",
    "batch_size": "images of a training step, in each epoch; the last one from then on",
    "drop_last": "drop what is left of an epoch, in place of a shorter last batch",
    "pad": "pixels that a crop moves by, at most",
    "flip": "mirrored images: at random, or every other epoch",
    "cutout": "side of a square that is blanked; 0 is none",
    "brightness": "standard deviations that an image's brightness moves by, at most",
    "contrast": "fraction that an image's contrast moves by, at most",
    "sizes": "side of the training images in each epoch; the last one from then on",
    "hard_fraction": "of the images, those of the largest loss, that are shown, in each epoch from hard_from",
    "hard_from": "epoch, counted from 0, from which only those are shown",
    "epochs": "length of a run",
    "schedule": "of the learning rates",
    "warmup": "fraction of all steps in which rates rise",
    "initial_lr": "where the warm-up starts, in multiples of the peak",
    "final_lr": "where the rates end, in multiples of the peak",
    "final_epochs": "last epochs, in which it is held",
    "lr_curve": "power of what is left of the way down; below 1 rates stay high for longer",
    "lr_scaling": "power of the batch size, over the first, that the 3x3 filters' rate is multiplied by",
    "label_smoothing": "share of the target that all classes get",
    "hard_label_smoothing": "in rounds of hard images alone; none: the same",
    "optimizer": "of the 3x3 filters; all else is SGD",
    "lr": "peak rate of the 3x3 filters, for the summed loss",
    "linear_lr": "of head, squeeze-and-excite and projection weights",
    "bias_lr": "of biases",
    "momentum": "of SGD",
    "muon_momentum": "of Muon",
    "muon_momentum_start": "at the first step, where it is warmed",
    "muon_momentum_warmup": "first epochs, in which it rises from there to muon_momentum",
    "muon_steps": "Newton-Schulz iterations of Muon",
    "weight_decay": "per step at the peak rate",
    "averaging": "of the weights",
    "averaging_epochs": "last epochs that are averaged over",
    "averaging_every": "steps between two averages",
    "averaging_decay": "of an average, per step",
    "views": "test-time views of the final accuracy",
    "views_fraction": "of the test images, the least sure, that get them",
    "val_views": "of the validation between epochs",
    "eval_batch_size": "views of images in a forward pass",
    "target": "accuracy aimed at; 0 is none",
}


def accepted(field: str) -> str:
    """What a field takes, in words: its range, its choices."""
    kind = typing.get_type_hints(Recipe)[field]
    several = ", a list" if typing.get_origin(kind) is tuple else ""
    several = ", or a list" if by_epoch(field) else several
    several = ", or none" if NoneType in typing.get_args(kind) else several
    if field == "optimizer":
        return f"{', '.join(OPTIMIZERS)} or torch.optim.NAME"
    if field in CHOICES:
        return ", ".join(CHOICES[field]) + several
    if field in RANGES:
        low, high = RANGES[field]
        return f"{low:g} to {high:g}{several}"
    return "true or false"


def explained(fields: dict[str, object]) -> list[str]:
    """A line for each field: its value, its meaning, what it accepts."""
    lines = []
    for field, value in fields.items():
        text = ",".join(map(str, value)) if isinstance(value, tuple) else value
        text = "none" if value is None else text
        lines.append(f"  {f'{field}={text}':34}  {MEANING[field]} ({accepted(field)})")
    return lines
