"""What the fields of a recipe accept: words, and numbers from the smallest to the largest."""

from __future__ import annotations

from kernels.augment import FLIPS
from kernels.convolution import float8
from kernels.norm.activations import ACTIVATIONS
from kernels.views import VIEWS

from .networks import FILTER_INITS, GROUPS, HEAD_INITS
from .schedule import SCHEDULES

AVERAGES = ("none", "ema", "lookahead", "tail")
DTYPES = ("float64", "float32", "tf32", "bfloat16", "float16")
CHOICES = {
    "dtype": ("auto", *DTYPES),
    "master_weights": ("auto", "on", "off"),
    "conv_dtype": ("auto", *DTYPES, *(name for name, passes in float8.PASSES.items() if passes)),
    "groups": tuple(GROUPS),
    "activation": tuple(ACTIVATIONS),
    "stem_activation": tuple(ACTIVATIONS),
    "filter_init": FILTER_INITS,
    "head_init": HEAD_INITS,
    "flip": FLIPS,
    "schedule": tuple(SCHEDULES),
    "averaging": AVERAGES,
    "views": tuple(VIEWS),
    "val_views": tuple(VIEWS),
}
AUGMENTATION = ("pad", "flip", "cutout", "brightness", "contrast")  # fields that kernels/augment.py takes
# field -> (smallest accepted, largest accepted)
RANGES = {
    "base_depth": (1, 4096),
    "group_widths": (1 / 64, 64),
    "stem_width": (0, 64),
    "whiten_images": (1, 1e9),
    "whiten_eps": (1e-12, 1),
    "whiten_bias_epochs": (0, 1e9),
    "logit_scale": (1e-6, 1e3),
    "bn_momentum": (0, 1),
    "bn_eps": (1e-30, 1),
    "train_examples": (0, 1e9),
    "batch_size": (1, 1e6),
    "pad": (0, 31),
    "cutout": (0, 32),
    "brightness": (0, 10),
    "contrast": (0, 1),
    "sizes": (8, 32),
    "hard_fraction": (0.01, 1),
    "hard_from": (0, 1e9),
    "epochs": (1e-3, 10000),
    "warmup": (0, 1),
    "initial_lr": (0, 1),
    "final_lr": (0, 1),
    "final_epochs": (0, 1e9),
    "lr_curve": (0.01, 100),
    "lr_scaling": (0, 2),
    "label_smoothing": (0, 1),
    "hard_label_smoothing": (0, 1),
    "lr": (1e-12, 1e6),
    "linear_lr": (1e-12, 1e6),
    "bias_lr": (1e-12, 1e6),
    "momentum": (0, 1),
    "muon_momentum": (0, 1),
    "muon_momentum_start": (0, 1),
    "muon_momentum_warmup": (0, 1e9),
    "muon_steps": (1, 100),
    "weight_decay": (0, 1e3),
    "averaging_epochs": (0, 1e9),
    "averaging_every": (1, 1e9),
    "averaging_decay": (0, 1),
    "views_fraction": (0, 1),
    "eval_batch_size": (1, 1e6),
    "target": (0, 1),
}
