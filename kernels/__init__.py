"""The ops of the network, each in a module of its own that opens with its formula.

Usable without `hlb`: `kernels.backend("reference")` gives the ops as functions, plain PyTorch on any device;
`kernels.backend("triton")` those with a Triton kernel as that. `python -m kernels` lists them.
"""

from __future__ import annotations

from types import SimpleNamespace

from . import (
    augment,
    conv_bn_act,
    cross_entropy,
    muon,
    patch_covariance,
    pool_head,
    random,
    scatter_losses,
    se_gate,
    sgd,
    stem,
    views,
)
from .convolution import conv
from .norm import norm_act, running_stats

# backend -> op -> implementation. A caller picks a backend once; no network asks which one it has.
BACKENDS: dict[str, dict] = {
    "reference": {
        "augment": augment.reference,
        "conv": conv.reference,
        "conv_bn_act": conv_bn_act.reference,
        "cross_entropy": cross_entropy.reference,
        "muon": muon.reference,
        "norm_act": norm_act.reference,
        "patch_covariance": patch_covariance.reference,
        "normal": random.normal,
        "permutation": random.permutation,
        "pool_head": pool_head.reference,
        "scatter_losses": scatter_losses.reference,
        "se_gate": se_gate.reference,
        "sgd": sgd.reference,
        "stem": stem.reference,
        "uniform": random.reference,
        "update_running_stats": running_stats.reference,
        "views": views.reference,
        "weigh_views": views.weighted_mean,
    },
}
BACKENDS["triton"] = BACKENDS["reference"] | {
    "augment": augment.op,
    "views": views.op,
    "weigh_views": views.weigh,
    "conv": conv.op,
    "conv_bn_act": conv_bn_act.op,
    "norm_act": norm_act.op,
    "update_running_stats": running_stats.op,
    "cross_entropy": cross_entropy.op,
    "scatter_losses": scatter_losses.op,
    "pool_head": pool_head.op,
    "se_gate": se_gate.op,
    "patch_covariance": patch_covariance.op,
    "stem": stem.op,
    "muon": muon.op,
    "sgd": sgd.op,
    "uniform": random.op,
    "normal": random.normal_op,
    "permutation": random.permutation_op,
}

# Ops that choose by shape among reference, cuDNN and kernels.
BACKENDS["tuned"] = {"conv_bn_act": conv_bn_act.measured, "se_gate": se_gate.measured}

# Every op that has a kernel, by name. Tests, benchmark, checks and counts go over this.
CATALOGUE = {
    spec.name: spec
    for spec in (
        augment.SPEC,
        views.SPEC,
        views.WEIGH_SPEC,
        cross_entropy.SPEC,
        scatter_losses.SPEC,
        pool_head.SPEC,
        se_gate.SPEC,
        stem.SPEC,
        patch_covariance.SPEC,
        conv.SPEC,
        conv_bn_act.SPEC,
        conv_bn_act.EVAL_SPEC,
        conv_bn_act.FLOAT8_SPEC,
        conv_bn_act.FLOAT8_EVAL_SPEC,
        norm_act.SPEC,
        norm_act.EVAL_SPEC,
        running_stats.SPEC,
        muon.SPEC,
        sgd.SPEC,
        random.SPEC,
        random.NORMAL_SPEC,
        random.PERMUTATION_SPEC,
    )
}


# Ops that `tuned` takes as kernels whatever the shape: case, microseconds of the kernel and of the compiled
# reference, forward and backward where there is one (bench/results/h200/ops.json). An op enters with such a
# measurement, and after its kernel's values were tested on a GPU; until then `tuned` is the reference.
# cross_entropy and pool_head were measured, and are no faster. "prepare" is what precedes the first step of a
# run of record94, with both of these ops as kernels (tri.jsonl there) and with neither (mix.jsonl).
MEASURED: dict[str, tuple[str, float, float]] = {
    "augment": ("record94", 8.9, 21.4),
    "views": ("record94", 25.5, 118.6),
    "stem": ("record94", 360.1, 477.0),
    "norm_act": ("record94 g1.conv1", 471.0, 1005.8),
    "muon": ("record94", 68.4, 412.1),
    "sgd": ("seed", 21.8, 41.6),
    "uniform": ("prepare", 2249.1, 5256.8),
    "patch_covariance": ("prepare", 2249.1, 5256.8),
}

CHOICES = ("reference", "triton", "tuned")


def choose(choice: str) -> dict[str, str]:
    """`triton`, or with exceptions `triton,sgd=reference,views=reference` -> the backend of every op.

    ValueError for an unknown backend or op.
    """
    default, *exceptions = choice.split(",")
    chosen = dict.fromkeys(BACKENDS["reference"], default)
    for exception in exceptions:
        op, _, name = exception.partition("=")
        if op not in chosen:
            raise ValueError(f"kernels: got op {op!r}, accepted are {', '.join(chosen)}")
        chosen[op] = name
    for name in {default, *chosen.values()}:
        if name not in CHOICES:
            raise ValueError(f"kernels: got {name!r}, accepted are {', '.join(CHOICES)}")
    tuned = dict.fromkeys(BACKENDS["tuned"], "tuned") | dict.fromkeys(MEASURED, "triton")
    return {op: tuned.get(op, "reference") if name == "tuned" else name for op, name in chosen.items()}


def backend(choice: str = "reference") -> SimpleNamespace:
    """The ops as attributes: `backend("triton").norm_act(...)`. `choice` and errors as `choose`."""
    return SimpleNamespace(**{op: BACKENDS[name][op] for op, name in choose(choice).items()})
