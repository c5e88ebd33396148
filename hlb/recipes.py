"""Recipes: what is trained and how, as data. How it is executed stands in execution.py.

`RECIPES` holds the named ones; settings.py gives one with fields replaced, as `--set` does.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import typing
from collections.abc import Callable
from dataclasses import dataclass

import torch

from .errors import UserError, expect_known, read
from .optimizer import OPTIMIZERS
from .ranges import CHOICES, DTYPES, RANGES


def _items(value: object) -> tuple:
    return value if isinstance(value, tuple) else (value,)


def _at(value: object, epoch: int) -> object:
    """That of an epoch, of a value for each: the last one from then on."""
    values = _items(value)
    return values[min(epoch, len(values) - 1)]


@functools.cache
def _kinds() -> dict[str, type]:
    """field -> its type, of those that have one."""
    return {
        field: kind
        for field, kind in typing.get_type_hints(Recipe).items()
        if field not in ("name", "optimizer")
    }


def by_epoch(field: str) -> bool:
    """Whether a field takes one value, or one for each epoch."""
    return tuple in map(typing.get_origin, typing.get_args(_kinds().get(field)))


@dataclass(frozen=True)
class Recipe:
    """One way to train a network. Strings and NumPy's numbers become the types of their fields. Raises
    UserError for a value that a field does not accept.
    """

    name: str

    # Precision. master_weights: float32 copies that the optimizer updates; auto is on for bfloat16 only.
    # conv_dtype: operands of the blocks' convolutions, one for all groups or one each. auto is dtype, which
    # may be named; float8 has 8 bits in the forward pass and in the gradient of x, float8_forward in the
    # former alone (kernels/convolution/float8.py).
    dtype: str = "auto"
    master_weights: str = "auto"
    conv_dtype: tuple[str, ...] = ("auto",)

    # Network (networks.py). Widths are multiples of base_depth; stem_width 0 is a stem without projection.
    # Only such a stem has stem_activation. It is GELU, as in airbench, also where the blocks have SiLU: the
    # other hyperparameters were found with it.
    base_depth: int = 64
    stem_width: float = 0.0
    group_widths: tuple[float, ...] = (1.0, 4.0, 4.0)
    groups: tuple[str, ...] = ("pair", "pair", "pair")
    activation: str = "gelu"
    stem_activation: str = "gelu"
    filter_init: str = "dirac"
    head_init: str = "unit_std"
    logit_scale: float = 1 / 256
    bn_momentum: float = 0.4  # PyTorch's convention: the weight of the new value
    bn_eps: float = 1e-12

    # Whitening (whitening.py): training images used, the ridge, and how long the stem's bias trains.
    whiten_images: int = 5000
    whiten_eps: float = 5e-4
    whiten_centered: bool = False
    whiten_bias_epochs: float = 3.0

    # Data. train_examples 0 is all of them; the remainder of an epoch is dropped, or is a shorter last batch.
    # batch_size may have a value for each epoch, the last one from then on.
    # An image's brightness moves by up to that many standard deviations, its contrast by up to that fraction.
    train_examples: int = 0
    batch_size: int | tuple[int, ...] = 2000
    drop_last: bool = True
    pad: int = 2
    flip: str = "alternating"
    cutout: int = 0
    brightness: float = 0.0
    contrast: float = 0.0
    # Side of the training images in each epoch, resized bilinearly; the last one from then on.
    sizes: tuple[int, ...] = (32,)
    # From epoch hard_from on (counted from 0) only that fraction of the images is shown, those whose loss was
    # largest when last seen, those never seen before all: an epoch's steps go round among them, chosen anew
    # each time. It may have a value for each epoch from there on; a round keeps that which it begins with.
    hard_fraction: float | tuple[float, ...] = 1.0
    hard_from: int = 0

    # Schedule (schedule.py). warmup is a fraction of all steps; initial_lr, where it starts, and final_lr,
    # held for the last final_epochs, are multiples of the peak. What is left of the way down, from 1 to 0, is
    # raised to the power lr_curve: below 1 rates stay high for longer. With several batch sizes the filters'
    # rate goes as (batch size / the first one) ** lr_scaling; those of SGD, for the summed loss, need none.
    epochs: float = 8.0
    schedule: str = "linear"
    warmup: float = 0.0
    initial_lr: float = 0.0
    final_lr: float = 0.0
    final_epochs: float = 0.0
    lr_curve: float = 1.0
    lr_scaling: float = 0.0

    # Loss and optimizer (optimizer.py). Learning rates are for the summed loss. Weight decay is per step at
    # the peak rate: every SGD group's coupled decay is weight_decay / its peak rate.
    label_smoothing: float = 0.2
    hard_label_smoothing: float | None = None  # in rounds of hard images alone; None: the same
    # The optimizer of the 3x3 filters: muon, sgd, or a torch.optim.Optimizer, as torch.optim.AdamW or in
    # Python a callable that makes one of a list of tensors. Everything else is SGD.
    optimizer: str | Callable[..., torch.optim.Optimizer] = "muon"
    lr: float = 0.24  # 3x3 filters
    linear_lr: float = 0.67  # head, squeeze-and-excite and projection weights
    bias_lr: float = 0.053
    momentum: float = 0.85
    muon_momentum: float = 0.6
    # In the first muon_momentum_warmup epochs it rises from muon_momentum_start to muon_momentum.
    muon_momentum_start: float = 0.0
    muon_momentum_warmup: float = 0.0
    muon_steps: int = 3
    weight_decay: float = 2e-6 * 2000

    # Weight averaging (averaging.py), over the last averaging_epochs, every so many steps; decay is per step.
    averaging: str = "none"
    averaging_epochs: float = 0.0
    averaging_every: int = 1
    averaging_decay: float = 0.0

    # Evaluation: test-time views of the final accuracy, the fraction of test images that get them (those
    # whose own logits are least sure), views of per-epoch validation; the rows of a forward pass, which are
    # views of images; the accuracy aimed at.
    views: str = "flip+shift"
    views_fraction: float = 1.0
    val_views: str = "none"
    eval_batch_size: int = 2000
    target: float = 0.94

    def __post_init__(self):
        for name, kind in _kinds().items():
            object.__setattr__(self, name, read(name, getattr(self, name), kind))
        for name in CHOICES:
            expect_known(name, CHOICES[name], *_items(getattr(self, name)))
        named = isinstance(self.optimizer, str) and (self.optimizer in OPTIMIZERS or "." in self.optimizer)
        if not named and not callable(self.optimizer):
            raise UserError(
                f"optimizer: got {self.optimizer!r}, accepted are {', '.join(OPTIMIZERS)}, or a "
                "torch.optim.Optimizer such as torch.optim.AdamW"
            )
        for name, (low, high) in RANGES.items():
            values = _items(getattr(self, name))
            if not values:
                raise UserError(f"{name}: got none, accepted is one value or more, separated by commas")
            for value in values:
                if value is not None and not low <= value <= high:
                    raise UserError(f"{name}: got {value:g}, accepted is {low:g} to {high:g}")
        if len(self.groups) != len(self.group_widths) or not self.groups:
            raise UserError(
                f"group_widths: got {len(self.group_widths)} widths for {len(self.groups)} groups, "
                "one each is needed"
            )
        if len(self.conv_dtype) not in (1, len(self.groups)):
            got = f"got {len(self.conv_dtype)} for {len(self.groups)} groups"
            raise UserError(f"conv_dtype: {got}, accepted is one for all, or one each")
        if min(self.sizes) - 1 < 2 ** len(self.groups):
            raise UserError(
                f"sizes: got {min(self.sizes)}, which {len(self.groups)} groups halve to nothing; "
                f"accepted is {2 ** len(self.groups) + 1} or more"
            )
        if len(self.groups) > 4:
            raise UserError(f"groups: got {len(self.groups)}, accepted is 1 to 4: each halves the 31x31 map")
        if self.bn_momentum == 0:
            raise UserError(
                "bn_momentum: got 0, which never updates the running statistics; take a value up to 1"
            )
        if self.averaging in ("ema", "tail") and not self.averaging_epochs > 0:
            raise UserError(
                f"averaging_epochs: got 0, averaging={self.averaging} needs the last epochs it averages over"
            )
        if len(_items(self.batch_size)) > 1 and not self.drop_last:
            raise UserError("batch_size: got several with drop_last=false; take drop_last=true, or one size")
        if self.muon_momentum_start and not self.muon_momentum_warmup:
            raise UserError(
                f"muon_momentum_start: got {self.muon_momentum_start:g}, which needs the epochs in which it "
                "rises: set muon_momentum_warmup"
            )

    def width(self, multiple: float) -> int:
        """Channels of a layer whose width is `multiple` times the base depth; at least 1."""
        return max(1, round(self.base_depth * multiple))

    @property
    def conv_dtypes(self) -> tuple[str, ...]:
        """`conv_dtype` of each group, the network's own dtype as `auto`."""
        plain = tuple("auto" if name in DTYPES else name for name in self.conv_dtype)
        return plain * len(self.groups) if len(plain) == 1 else plain

    def steps_per_epoch(self, examples: int, epoch: int = 0) -> int:
        """Training steps in an epoch over `examples` images (or over train_examples of them)."""
        count = min(examples, self.train_examples) if self.train_examples else examples
        batch = self.batch(epoch)
        if count < batch and self.drop_last:
            raise UserError(
                f"batch_size: got {batch} with {count} training images; a batch that is never "
                "full is dropped: lower batch_size or set drop_last=false"
            )
        return count // batch if self.drop_last else math.ceil(count / batch)

    @property
    def tested(self) -> str:
        """The test-time views of the final accuracy, and the test images that get them where not all do."""
        few = f" for the least sure {100 * self.views_fraction:g} %" if self.views_fraction < 1 else ""
        return self.views + few

    def size(self, epoch: int) -> int:
        """Side of the training images in an epoch, counted from 0."""
        return _at(self.sizes, epoch)

    def batch(self, epoch: int) -> int:
        """Images of a training step in an epoch, counted from 0."""
        return _at(self.batch_size, epoch)

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """All of them, each once."""
        return tuple(dict.fromkeys(_items(self.batch_size)))

    def fraction(self, epoch: int) -> float:
        """Of the images, those that a round shows which begins in an epoch, counted from 0."""
        return 1.0 if epoch < self.hard_from else _at(self.hard_fraction, epoch - self.hard_from)

    def steps(self, examples: int) -> int:
        """Training steps of the whole run."""
        return self.epoch_starts(examples)[-1]

    def steps_by_epoch(self, examples: int) -> tuple[int, ...]:
        """Training steps in each epoch as it is when whole."""
        return tuple(self.steps_per_epoch(examples, epoch) for epoch in range(math.ceil(self.epochs)))

    def epoch_starts(self, examples: int) -> list[int]:
        """The first step of each epoch, and at last the number of all steps."""
        starts = [0]
        for epoch in range(math.ceil(self.epochs)):
            part = min(self.epochs - epoch, 1) * self.steps_per_epoch(examples, epoch)
            starts.append(starts[-1] + max(1, math.ceil(round(part, 9))))
        return starts


SEED = Recipe(
    # hlb-CIFAR10 of January 2023: 94.0 % after 10 epochs, the mean of both views and of the weights' EMA.
    name="seed",
    stem_width=0.5,
    group_widths=(2.0, 4.0, 8.0),
    groups=("se_residual", "short", "se_residual"),
    filter_init="default",
    head_init="default",
    logit_scale=0.1,
    bn_momentum=0.8,
    whiten_images=50000,
    whiten_eps=1e-2,
    whiten_centered=True,
    whiten_bias_epochs=0.0,
    batch_size=512,
    pad=3,
    flip="random",
    epochs=10.0,
    schedule="one_cycle",
    warmup=0.2,
    final_lr=0.135,
    final_epochs=2.0,
    optimizer="sgd",
    lr=1.15 * 1.35 / 512,
    linear_lr=1.15 * 1.35 / 512,
    bias_lr=32 * 1.15 * 1.35 / 512,
    weight_decay=0.85 * 4.8e-4 * 1.15 * 1.35,
    averaging="ema",
    averaging_epochs=2.0,
    averaging_every=2,
    averaging_decay=0.986,
    views="flip",
    val_views="flip",
    eval_batch_size=1000,
)

# airbench gives rates per 1024 examples and the long-run gain of momentum: the divisor for the summed loss.
KILOSTEP = 1024 * (1 + 1 / (1 - 0.85))

RECORD94 = Recipe(
    # Images that grow, after the E1 run of fulcrumresearch/cifar-10-speedrun with Hiverge's hyperparameters:
    # short whitening, SiLU, jittered colours; lookahead at a low rate in the last half epoch. From the sixth
    # epoch on only the hardest images are shown.
    name="record94",
    activation="silu",
    bn_momentum=0.4434,
    whiten_images=960,
    whiten_bias_epochs=0.2,
    batch_size=1536,
    brightness=0.1399,
    contrast=0.1308,
    sizes=(24, 24, 24, 28, 28, 28, 32),
    hard_fraction=0.6,
    hard_from=5,
    epochs=8.4,
    final_lr=0.05,
    final_epochs=0.8,
    label_smoothing=0.09,
    lr=0.2255,
    linear_lr=0.5415,
    bias_lr=0.0573,
    momentum=0.825,
    muon_momentum=0.655,
    weight_decay=1.0418e-6 * 1536,
    averaging="tail",
    averaging_epochs=0.63,
    averaging_every=4,
    averaging_decay=0.7**0.25,
    views_fraction=0.15,
)

RECORD95 = Recipe(
    name="record95",  # airbench95
    base_depth=128,
    group_widths=(1.0, 3.0, 3.0),
    head_init="default",
    logit_scale=1 / 9,
    batch_size=1024,
    epochs=15.0,
    warmup=0.23,
    initial_lr=0.2,
    final_lr=0.07,
    optimizer="sgd",
    lr=10 / KILOSTEP,
    linear_lr=10 / KILOSTEP,
    bias_lr=64 * 10 / KILOSTEP,
    weight_decay=0.0153 * 1024 / KILOSTEP,
    averaging="lookahead",
    averaging_every=5,
    averaging_decay=0.95,
    target=0.95,
)

RECORD96 = dataclasses.replace(
    # airbench96, but for its residuals, which it adds before the last activation of a group.
    RECORD95,
    name="record96",
    group_widths=(1.0, 3.0, 4.0),
    groups=("residual", "residual", "residual"),
    bn_momentum=0.1,
    pad=4,
    cutout=12,
    epochs=37.0,
    warmup=0.1,
    final_lr=0.0,
    lr=9 / KILOSTEP,
    linear_lr=9 / KILOSTEP,
    bias_lr=64 * 9 / KILOSTEP,
    weight_decay=0.012 * 1024 / KILOSTEP,
    averaging="none",
    target=0.96,
)

RECIPES = {
    recipe.name: recipe
    for recipe in (
        RECORD94,
        RECORD95,
        RECORD96,
        dataclasses.replace(RECORD94, name="cpu94"),  # what is fastest on a GPU is so on a CPU, too
        Recipe(name="airbench94"),  # the defaults above: airbench94_muon
        SEED,
        Recipe(
            name="smoke",
            base_depth=16,
            train_examples=10000,
            batch_size=500,
            epochs=4.0,
            whiten_images=1000,
            whiten_bias_epochs=1.0,
            logit_scale=1 / 64,
            weight_decay=2e-6 * 500,
            views="flip",
            eval_batch_size=1000,
            target=0.0,
        ),
    )
}
