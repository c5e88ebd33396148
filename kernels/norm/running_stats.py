"""The running statistics of all batch norms, moved towards those of the batch.

    running = (1 - momentum) * running + momentum * stats

running, stats float32 [2, channels], mean and unbiased variance of all layers side by side, so that a step
needs one launch. Momentum is PyTorch's, the weight of the new value.

Bytes: running read and written, stats read. Source: Ioffe and Szegedy, arXiv 1502.03167.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..base.launch import cdiv, expect, launch, register, tl, triton
from ..base.spec import Case, KernelSpec, sized


def reference(running: Tensor, stats: Tensor, momentum: float) -> None:
    """One step, in place on `running`. Raises ValueError for a momentum outside [0, 1]."""
    _check(momentum)
    running.lerp_(stats, momentum)


@triton.jit
def _running_stats(
    p_running,  # [count]
    p_stats,  # [count]
    count,
    MOMENTUM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    m = o < count
    b_running = tl.load(p_running + o, mask=m, other=0.0)
    b_stats = tl.load(p_stats + o, mask=m, other=0.0)
    tl.store(p_running + o, (1.0 - MOMENTUM) * b_running + MOMENTUM * b_stats, mask=m)


BLOCK = 512


@register("hlb::update_running_stats", mutates=("running",))
def _update(running: Tensor, stats: Tensor, momentum: float) -> None:
    count = running.numel()
    launch(
        _running_stats,
        (cdiv(count, BLOCK),),
        running,
        stats,
        count,
        MOMENTUM=momentum,
        BLOCK=BLOCK,
    )


@_update.register_fake
def _(running, stats, momentum):
    return None


def op(running: Tensor, stats: Tensor, momentum: float) -> None:
    """As `reference`, in one launch. Raises ValueError for a wrong shape, dtype, layout or device too."""
    _check(momentum)
    expect("running", running, 2, None, dtypes=(torch.float32,))
    expect("stats", stats, 2, running.shape[1], dtypes=(torch.float32,), device=running.device)
    _update(running, stats, momentum)


def _check(momentum: float) -> None:
    if not 0 <= momentum <= 1:
        raise ValueError(f"momentum: got {momentum}, accepted is 0 to 1")


def _make(case: Case, dtype: torch.dtype, device) -> dict:
    running, stats = torch.rand(2, 2, case.channels, device=device).sub(0.3).to(dtype)
    return {"running": running, "stats": stats, "momentum": case.momentum}


SPEC = KernelSpec(
    name="update_running_stats",
    formula="running = (1 - momentum) * running + momentum * stats",
    fuses="the running statistics of all batch norms, in one launch",
    reference=reference,
    op=op,
    ops=("hlb::update_running_stats",),
    make=_make,
    cases=(
        Case("seed", channels=2208, momentum=0.8),  # 32 + 3 * 128 + 256 + 3 * 512
        Case("record94", channels=1152, momentum=0.4),  # 2 * (64 + 256 + 256)
    ),
    space={"channels": (1, 3, 12, 24, 40, 255, 257, 600), "momentum": (0.4, 0.8, 1.0)},
    counted=(Case(channels=600, momentum=0.8),),
    bytes=lambda case, dtype: {"_running_stats": 2 * case.channels * 3 * 4},
    case_of=sized(channels=("running", 1)),
    dtype_from="running",
    part="statistics",
    dtypes=(torch.float32,),
    mutates=("running",),
)
