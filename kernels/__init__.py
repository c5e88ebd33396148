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

# What chooses by shape between kernels and cuDNN. All other ops are kernels in `tuned` too: on an H200 each
# was right, and a run with every op a kernel was faster than one with the references compiled.
BACKENDS["tuned"] = {"conv_bn_act": conv_bn_act.measured}

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
    tuned = dict.fromkeys(BACKENDS["tuned"], "tuned")
    return {op: tuned.get(op, "triton") if name == "tuned" else name for op, name in chosen.items()}


def backend(choice: str = "reference") -> SimpleNamespace:
    """The ops as attributes: `backend("triton").norm_act(...)`. `choice` and errors as `choose`."""
    return SimpleNamespace(**{op: BACKENDS[name][op] for op, name in choose(choice).items()})
