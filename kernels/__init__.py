"""The ops of the network, each in a module of its own that opens with its formula.

Usable without `hlb`: `kernels.backend("reference")` gives the ops as functions, plain PyTorch on any device.
"""

from __future__ import annotations

from types import SimpleNamespace

from . import (
    augment,
    conv_bn_act,
    cross_entropy,
    muon,
    norm_act,
    pool_head,
    random,
    se_gate,
    sgd,
    stem,
    views,
)

# backend -> op -> implementation. A caller picks a backend once; no network asks which one it has.
BACKENDS: dict[str, dict] = {
    "reference": {
        "augment": augment.reference,
        "conv_bn_act": conv_bn_act.reference,
        "cross_entropy": cross_entropy.reference,
        "muon": muon.reference,
        "norm_act": norm_act.reference,
        "patch_covariance": stem.patch_covariance,
        "permutation": random.permutation,
        "pool_head": pool_head.reference,
        "se_gate": se_gate.reference,
        "sgd": sgd.reference,
        "stem": stem.reference,
        "uniform": random.reference,
        "update_running_stats": norm_act.update_running_stats,
        "views": views.reference,
    },
}
BACKENDS["triton"] = BACKENDS["reference"] | {
    "cross_entropy": cross_entropy.op,
}

# Every op that has a kernel, by name. Tests, benchmark, checks and counts go over this.
CATALOGUE = {spec.name: spec for spec in (cross_entropy.SPEC,)}


def backend(name: str) -> SimpleNamespace:
    """The ops of a backend as attributes: `backend("reference").conv_bn_act(...)`. ValueError for an
    unknown name.
    """
    if name not in BACKENDS:
        raise ValueError(f"kernels: got {name!r}, accepted are {', '.join(BACKENDS)}")
    return SimpleNamespace(**BACKENDS[name])
