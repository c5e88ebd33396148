"""A labelled set of images, checked once, so that whoever has a `Dataset` need not ask what is in it.

    training images uint8 [n, 32, 32, 3], training labels int64 [n], test images, test labels

NumPy arrays and labels of other integer dtypes are converted, images are made contiguous; whatever else is
not as above is refused, by the tensor's name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from ..errors import UserError

# Of CIFAR-10: per-channel mean and standard deviation of the training images, in [0, 1], and the classes.
MEAN = (0.4913997551666284, 0.48215855929693703, 0.4465309133731618)
STD = (0.24703223246328265, 0.24348512800005527, 0.26158784172796434)
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

PARTS = ("training images", "training labels", "test images", "test labels")
IMAGE = (32, 32, 3)
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
            torch.uint16, torch.uint32, torch.uint64)  # fmt: skip


@dataclass(frozen=True)
class Dataset:
    """A labelled set: `tensors` are training images uint8 [n, 32, 32, 3] and labels int64 [n], then the test
    ones. Raises UserError for anything else.

    `mean` and `std` are the per-channel values that images are normalised with, in [0, 1]; `statistics` gives
    those of images, the default is CIFAR-10's. `classes` are the names of the labels 0, 1, ...; without names
    they are called by their numbers, and each of them must occur among the training labels.
    """

    name: str  # what records call it
    tensors: tuple[Tensor, Tensor, Tensor, Tensor]
    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = STD
    classes: tuple[str, ...] = ()
    note: str = ""  # why it is not the set that was hoped for

    def __post_init__(self):
        if not isinstance(self.name, str):
            raise UserError(f"data set: got the name {self.name!r}, accepted is a text")
        try:
            checked = _checked(self.tensors, self.mean, self.std, self.classes)
        except UserError as error:
            raise UserError(f"data set {self.name!r}: {error}") from None
        for field, value in zip(("tensors", "mean", "std", "classes"), checked):
            object.__setattr__(self, field, value)


def statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of images uint8 [n, h, w, 3], in [0, 1]. Counts of values
    are exact, so the result is the same everywhere.
    """
    values, mean, std = torch.arange(256, dtype=torch.float64) / 255, [], []
    for channel in images.unbind(-1):
        weight = torch.bincount(channel.flatten(), minlength=256).double().cpu() / channel.numel()
        mean.append(float((weight * values).sum()))
        std.append(float((weight * (values - mean[-1]) ** 2).sum().sqrt()))
    return tuple(mean), tuple(std)


def _checked(tensors: object, mean: object, std: object, classes: object) -> tuple:
    """All four as `Dataset` has them."""
    if not isinstance(tensors, (tuple, list)) or len(tensors) != len(PARTS):
        raise UserError(f"tensors: accepted are four: {', '.join(PARTS)}")
    train, labels, test, truth = (_tensor(part, value) for part, value in zip(PARTS, tensors))
    train, test = _images(PARTS[0], train), _images(PARTS[2], test)
    labels, truth = _labels(PARTS[1], labels, len(train)), _labels(PARTS[3], truth, len(test))
    classes = _names(classes) or _numbers(labels)
    for part, values in ((PARTS[1], labels), (PARTS[3], truth)):
        if _has_values(values):
            low, high = int(values.min()), int(values.max())
            if low < 0 or high >= len(classes):
                wrong = low if low < 0 else high
                raise UserError(f"{part}: got {wrong}, accepted is 0 to {len(classes) - 1}")
    return (train, labels, test, truth), _colours("mean", mean), _colours("std", std), classes


def _tensor(part: str, value: object) -> Tensor:
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "biuf":
            raise UserError(f"{part}: got a NumPy array of {value.dtype}, accepted are numbers")
        # A copy: torch takes neither read-only memory nor negative strides nor foreign byte orders.
        return torch.from_numpy(np.array(value, dtype=value.dtype.newbyteorder("="), order="C"))
    if not isinstance(value, Tensor):
        raise UserError(f"{part}: got {type(value).__name__}, accepted is a tensor or a NumPy array")
    return value


def _images(part: str, images: Tensor) -> Tensor:
    shape = tuple(images.shape)
    if images.dtype != torch.uint8:
        hint = "; where 1 is white, give (images * 255).round().to(torch.uint8)"
        hint = hint if images.dtype.is_floating_point else ""
        raise UserError(f"{part}: got {_short(images.dtype)}, accepted is uint8, 0 to 255{hint}")
    if shape[1:] != IMAGE:
        hint = ""
        if shape[1:] == (3, 32, 32):
            hint = "; give images.permute(0, 2, 3, 1)"
        elif shape[1:] in ((32, 32), (32, 32, 1), (1, 32, 32)):
            hint = "; of grey images, give images.reshape(-1, 32, 32, 1).repeat(1, 1, 1, 3)"
        raise UserError(f"{part}: got shape {list(shape)}, accepted is [n, 32, 32, 3]{hint}")
    if not len(images):
        raise UserError(f"{part}: got none, accepted is one or more")
    return images.contiguous()


def _labels(part: str, labels: Tensor, images: int) -> Tensor:
    shape = tuple(labels.shape)
    if shape != (images,):
        hint = ""
        if shape == (images, 1):
            hint = "; give labels.flatten()"
        elif shape[:1] == (images,) and len(shape) == 2:
            hint = "; of one-hot labels, give labels.argmax(1)"
        raise UserError(f"{part}: got shape {list(shape)}, accepted is [{images}], one of each image{hint}")
    if labels.dtype not in INTEGERS:
        raise UserError(f"{part}: got {_short(labels.dtype)}, accepted are int64 and other integers")
    return labels.to(torch.int64)


def _names(classes: object) -> tuple[str, ...]:
    listed = isinstance(classes, (tuple, list))
    if not listed or not all(isinstance(name, str) for name in classes):
        raise UserError(f"classes: got {classes!r}, accepted are the names of the classes, a text each")
    if len(set(classes)) < len(classes):
        raise UserError("classes: a name occurs twice; give each class a name of its own")
    if len(classes) == 1:
        raise UserError("classes: got one, accepted are two or more")
    return tuple(classes)


def _numbers(labels: Tensor) -> tuple[str, ...]:
    """The classes of training labels, called by their numbers; of tensors without values, ten."""
    if not _has_values(labels):
        return tuple(map(str, range(len(CLASSES))))
    used = labels.unique().tolist()  # sorted
    missing = next((number for number, label in enumerate(used) if number != label), None)
    if used[0] < 0 or missing is not None:
        wrong = f"got {used[0]}" if used[0] < 0 else f"none of them is {missing}, the largest is {used[-1]}"
        raise UserError(
            f"{PARTS[1]}: {wrong}; accepted are 0, 1, ... without a gap, or any below len(classes) where "
            "classes are given"
        )
    if len(used) == 1:
        raise UserError(f"{PARTS[1]}: all are 0, accepted are two classes or more")
    return tuple(map(str, used))


def _colours(what: str, values: object) -> tuple[float, ...]:
    """Three numbers, in the range of a mean or standard deviation of values in [0, 1]."""
    try:
        numbers = tuple(float(value) for value in values)
    except (TypeError, ValueError):
        numbers = ()
    low = 0.0 if what == "mean" else math.ulp(0.0)
    if len(numbers) != 3 or not all(low <= number <= 1 for number in numbers):
        above = "0 to 1" if what == "mean" else "above 0, up to 1"
        raise UserError(
            f"{what}: got {values!r}, accepted is a number a channel, {above}: pixels count 0 to 1"
        )
    return numbers


def _has_values(tensor: Tensor) -> bool:
    """Not so where only shapes matter: costs are counted on tensors without memory."""
    return not tensor.is_meta and not isinstance(tensor, FakeTensor)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
