"""The loss of each image of a batch, written to where it is kept for the whole set.

    losses[ids[i]] = -log softmax(logits[i])[targets[i]]

losses float32 [examples]; ids int64 [n], each of them once; logits [n, classes]; targets int64 [n]. Without
label smoothing, which would rank images by how sure the network is too; and without a gradient, so it takes
detached logits. Sums are taken in float32.

Of a target that is no class, 0 to classes - 1, or an id outside [0, examples) the reference makes an error,
as cross_entropy.py says. The kernel writes NaN as the loss of such a target, and nothing for such an id.

Bytes: logits, ids and targets read, a loss per row written. Source: Shrivastava et al., Training Region-based
Object Detectors with Online Hard Example Mining, arXiv 1604.03540.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .base.launch import FLOATS, cdiv, expect, launch, power_of_2, register, tl, triton
from .base.spec import Case, KernelSpec, sized
from .cross_entropy import NO_TARGET


def reference(losses: Tensor, ids: Tensor, logits: Tensor, targets: Tensor) -> None:
    """One batch, in place on `losses`. An id that occurs twice has one of its losses."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    each = F.cross_entropy(logits.to(wide), targets, reduction="none", ignore_index=NO_TARGET)
    losses.index_copy_(0, ids, each.to(losses.dtype))


@triton.jit
def _scatter_losses(
    p_losses,  # [examples]
    p_ids,  # int64 [n]
    p_logits,  # [n, CLASSES]
    p_targets,  # int64 [n]
    n,
    examples,
    CLASSES: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_CLASSES: tl.constexpr,
):
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    classes = tl.arange(0, BLOCK_CLASSES)[None, :]
    m_rows = rows < n
    m_all = m_rows[:, None] & (classes < CLASSES)  # [BLOCK, BLOCK_CLASSES]
    o_all = rows.to(tl.int64)[:, None] * CLASSES + classes
    z = tl.load(p_logits + o_all, mask=m_all, other=0.0).to(tl.float32)
    targets = tl.load(p_targets + rows, mask=m_rows, other=0)  # int64 [BLOCK]
    m_class = targets.to(tl.uint64) < CLASSES  # without a sign, those below 0 are the largest
    targets = targets.to(tl.int32)
    ids = tl.load(p_ids + rows, mask=m_rows, other=0)  # [BLOCK]

    top = tl.where(classes < CLASSES, z, float("-inf"))
    largest = tl.where(m_class, tl.max(top, axis=1), float("nan"))[:, None]  # NaN: and so is the loss
    exponential = tl.exp(top - largest)  # 0 beyond the classes
    chosen = tl.where(classes == targets[:, None], z - largest, 0.0)
    loss = tl.log(tl.sum(exponential, axis=1)) - tl.sum(chosen, axis=1)  # [BLOCK]
    tl.store(p_losses + ids, loss, mask=m_rows & (ids.to(tl.uint64) < examples))


BLOCK = 32  # rows of a program


@register("hlb::scatter_losses", mutates=("losses",))
def _scatter(losses: Tensor, ids: Tensor, logits: Tensor, targets: Tensor) -> None:
    n, classes = logits.shape
    launch(
        _scatter_losses,
        (cdiv(n, BLOCK),),
        losses,
        ids,
        logits,
        targets,
        n,
        len(losses),
        CLASSES=classes,
        BLOCK=BLOCK,
        BLOCK_CLASSES=power_of_2(classes),
    )


@_scatter.register_fake
def _(losses, ids, logits, targets):
    return None


def op(losses: Tensor, ids: Tensor, logits: Tensor, targets: Tensor) -> None:
    """As `reference`, in one launch. Raises ValueError for a wrong shape, dtype, layout or device."""
    expect("losses", losses, None, dtypes=(torch.float32,))
    expect("logits", logits, None, None, device=losses.device)
    for name, tensor in (("ids", ids), ("targets", targets)):
        expect(name, tensor, len(logits), dtypes=(torch.int64,), device=losses.device)
    _scatter(losses, ids, logits, targets)


def _make(case: Case, dtype: torch.dtype, device) -> dict:
    offset = 100 * torch.randn(case.n, 1, device=device)  # rows of either sign, some beyond what exp can hold
    return {
        "losses": torch.rand(case.examples, device=device),
        "ids": torch.randperm(case.examples, device=device)[: case.n],
        "logits": (3 * torch.randn(case.n, case.classes, device=device) + offset).to(dtype),
        "targets": torch.randint(0, case.classes, (case.n,), device=device),
    }


def _bytes(case: Case, dtype: torch.dtype) -> dict[str, int]:
    row = case.classes * dtype.itemsize + 8 + 8 + 4  # logits, id and target; loss
    return {"_scatter_losses": case.n * row}


SPEC = KernelSpec(
    name="scatter_losses",
    formula="losses[ids] = -log softmax(logits)[targets]",
    fuses="softmax, loss of each image, write to its place",
    reference=reference,
    op=op,
    ops=("hlb::scatter_losses",),
    make=_make,
    cases=(Case("record94", n=1536, classes=10, examples=50000),),
    space={"n": (1, 3, 32, 65), "classes": (2, 10, 17), "examples": (65, 200)},
    counted=(Case(n=320, classes=10, examples=500),),
    bytes=_bytes,
    case_of=sized(n=("logits", 0), classes=("logits", 1)),
    dtype_from="logits",
    part="loss",
    dtypes=FLOATS,
    mutates=("losses",),
    narrow={
        "p_losses": "each to a place of its own",
        "p_ids": "one index a row",
        "p_logits": "rows of 10 classes are no multiple of 16 bytes",
        "p_targets": "one class index a row",
    },
)
