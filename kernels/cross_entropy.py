"""Label-smoothed cross-entropy over a batch, its gradient, and the count of right answers.

    z = scale * logits        p = softmax(z)
    loss = sum over i of [ (1 - s) * -log p[i, target_i] + s * mean over classes k of -log p[i, k] ]
    d logits = scale * (p - (1 - s) * onehot(target) - s / classes)                both / n for the mean

logits [n, classes] -> loss scalar in float32 (float64 for float64), correct int64 scalar, both on the
device: nothing waits for the host. Sums are taken in float32, so no loss scale is needed to keep a 16-bit
sum from overflowing. Each program writes a partial sum; the last to arrive adds up all in their order, so
the result repeats bit for bit. Launches share a counter and must not overlap: see base/arrival.py.

A logit of -inf is a class that cannot be: without smoothing it adds nothing where another is right. A target
that is no class, 0 to classes - 1, is never skipped: the reference raises IndexError on a CPU and ends in a
device-side assertion on a GPU; the kernel, which cannot raise, makes the loss and that row's gradient NaN.

Bytes: logits read and their gradient written, 8 of target per row. Source: Szegedy et al., arXiv 1512.00567.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .base.arrival import counters, last
from .base.launch import FLOATS, cdiv, expect, launch, power_of_2, register, tl, triton
from .base.spec import Case, KernelSpec, sized

NO_TARGET = torch.iinfo(torch.int64).min  # what PyTorch skips: not -100, which is as wrong as any other


def reference(
    logits: Tensor,
    targets: Tensor,
    label_smoothing: float,
    *,
    scale: float = 1.0,
    reduction: str = "sum",
) -> tuple[Tensor, Tensor]:
    """logits [n, classes] and int64 targets [n] -> (loss, number of correct predictions).

    Ties go to the first class. Raises ValueError, naming the argument, for a reduction that is neither `sum`
    nor `mean`, a smoothing outside [0, 1], a scale that is not above 0, and logits without a row or a class.
    """
    _check(logits, label_smoothing, scale, reduction)
    wide = torch.promote_types(logits.dtype, torch.float32)
    options = {"label_smoothing": label_smoothing, "reduction": reduction, "ignore_index": NO_TARGET}
    loss = F.cross_entropy(logits.to(wide) * scale, targets, **options)
    return loss, (logits.detach().argmax(1) == targets).sum()


@triton.jit
def _cross_entropy(
    p_logits,  # [n, CLASSES]
    p_targets,  # int64 [n]
    p_grad,  # [n, CLASSES]
    p_partial,  # float32 [2, programs]: loss, correct
    p_loss,  # float32 scalar
    p_correct,  # int64 scalar
    p_arrived,  # int32 scalar, 0
    n,
    CLASSES: tl.constexpr,
    SMOOTHING: tl.constexpr,
    SCALE: tl.constexpr,
    WEIGHT: tl.constexpr,  # of one row in the loss
    BLOCK: tl.constexpr,
    BLOCK_CLASSES: tl.constexpr,
    BLOCK_PROGRAMS: tl.constexpr,
):
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    classes = tl.arange(0, BLOCK_CLASSES)[None, :]
    m_rows = rows < n
    m_all = m_rows[:, None] & (classes < CLASSES)  # [BLOCK, BLOCK_CLASSES]
    o_all = rows.to(tl.int64)[:, None] * CLASSES + classes
    z = tl.load(p_logits + o_all, mask=m_all, other=0.0).to(tl.float32) * SCALE
    targets = tl.load(p_targets + rows, mask=m_rows, other=0)  # int64 [BLOCK]
    m_class = targets.to(tl.uint64) < CLASSES  # without a sign, those below 0 are the largest
    targets = targets.to(tl.int32)

    top = tl.where(classes < CLASSES, z, float("-inf"))
    largest = tl.where(m_class, tl.max(top, axis=1), float("nan"))[:, None]  # NaN: and so is all of the row
    exponential = tl.exp(top - largest)  # 0 beyond the classes
    total = tl.sum(exponential, axis=1)  # [BLOCK]
    smooth = SMOOTHING / CLASSES + tl.where(classes == targets[:, None], 1.0 - SMOOTHING, 0.0)
    smooth = tl.where(classes < CLASSES, smooth, 0.0)  # the target distribution, each row adds up to 1
    expected = smooth * (z - largest)
    if SMOOTHING == 0:  # of other classes 0, and z may be -inf
        expected = tl.where(classes == targets[:, None], z - largest, 0.0)
    loss = tl.log(total) - tl.sum(expected, axis=1)
    correct = m_class & (tl.argmax(top, axis=1) == targets)
    grad = (exponential / total[:, None] - smooth) * (SCALE * WEIGHT)
    tl.store(p_grad + o_all, grad.to(p_grad.dtype.element_ty), mask=m_all)

    program, programs = tl.program_id(0), tl.num_programs(0)
    tl.store(p_partial + program, tl.sum(tl.where(m_rows, loss, 0.0), axis=0) * WEIGHT)
    tl.store(p_partial + programs + program, tl.sum((m_rows & correct).to(tl.float32), axis=0))
    if last(p_arrived, programs):
        o_partial = tl.arange(0, BLOCK_PROGRAMS)  # [BLOCK_PROGRAMS]
        m_partial = o_partial < programs
        b_loss = tl.load(p_partial + o_partial, mask=m_partial, other=0.0, cache_modifier=".cg")
        b_correct = tl.load(p_partial + programs + o_partial, mask=m_partial, other=0.0, cache_modifier=".cg")
        tl.store(p_loss, tl.sum(b_loss, axis=0))
        tl.store(p_correct, tl.sum(b_correct.to(tl.int64), axis=0))


BLOCK = 32  # rows of a program


@register("hlb::cross_entropy")
def _forward(
    logits: Tensor, targets: Tensor, label_smoothing: float, scale: float, mean: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, correct, d loss / d logits)"""
    n, classes = logits.shape
    programs = cdiv(n, BLOCK)
    grad = torch.empty_like(logits)
    partial = torch.empty((2, programs), dtype=torch.float32, device=logits.device)
    loss, correct = partial.new_empty(()), targets.new_empty(())
    launch(
        _cross_entropy,
        (programs,),
        logits,
        targets,
        grad,
        partial,
        loss,
        correct,
        counters(logits),
        n,
        CLASSES=classes,
        SMOOTHING=label_smoothing,
        SCALE=scale,
        WEIGHT=1 / n if mean else 1.0,
        BLOCK=BLOCK,
        BLOCK_CLASSES=power_of_2(classes),
        BLOCK_PROGRAMS=power_of_2(programs),
    )
    return loss, correct, grad


@_forward.register_fake
def _(logits, targets, label_smoothing, scale, mean):
    scalar = logits.new_empty((), dtype=torch.float32)
    return scalar, logits.new_empty((), dtype=torch.int64), torch.empty_like(logits)


def _setup(ctx, inputs, output):
    ctx.save_for_backward(output[2])
    ctx.mark_non_differentiable(output[1], output[2])
    ctx.set_materialize_grads(False)  # no zeros are made for these


def _backward(ctx, d_loss, d_correct, d_grad):
    (grad,) = ctx.saved_tensors
    return (grad * d_loss).to(grad.dtype), None, None, None, None


_forward.register_autograd(_backward, setup_context=_setup)


def op(
    logits: Tensor,
    targets: Tensor,
    label_smoothing: float,
    *,
    scale: float = 1.0,
    reduction: str = "sum",
) -> tuple[Tensor, Tensor]:
    """As `reference`, in one launch; the gradient is made with the loss.

    Raises ValueError as that does, and for a wrong shape, dtype, layout or device, naming the argument.
    """
    expect("logits", logits, None, None)
    _check(logits, label_smoothing, scale, reduction)
    expect("targets", targets, len(logits), dtypes=(torch.int64,), device=logits.device)
    return _forward(logits, targets, label_smoothing, scale, reduction == "mean")[:2]


def _check(logits: Tensor, label_smoothing: float, scale: float, reduction: str) -> None:
    if not logits.numel():
        raise ValueError(f"logits: got shape {list(logits.shape)}, accepted is one with a row and a class")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing: got {label_smoothing}, accepted is 0 to 1")
    if not 0 < scale < math.inf:
        raise ValueError(f"scale: got {scale}, accepted is a number above 0")
    if reduction not in ("sum", "mean"):
        raise ValueError(f"reduction: got {reduction!r}, accepted are sum, mean")


def _make(case: Case, dtype: torch.dtype, device) -> dict:
    offset = 100 * torch.randn(case.n, 1, device=device)  # rows of either sign, some beyond what exp can hold
    return {
        "logits": (3 * torch.randn(case.n, case.classes, device=device) + offset).to(dtype),
        "targets": torch.randint(0, case.classes, (case.n,), device=device),
        "label_smoothing": case.smoothing,
        "scale": case.scale,
        "reduction": case.reduction,
    }


def _bytes(case: Case, dtype: torch.dtype) -> dict[str, int]:
    row = 2 * case.classes * dtype.itemsize + 8
    return {"_cross_entropy": case.n * row + 2 * 8 * cdiv(case.n, BLOCK) + 16}


def _case(label: str, n: int, smoothing: float) -> Case:
    return Case(label, n=n, classes=10, smoothing=smoothing, scale=1.0, reduction="sum")


SPEC = KernelSpec(
    name="cross_entropy",
    formula="loss = sum of -smoothed_onehot * log softmax(scale * logits), its gradient, right answers",
    fuses="softmax, label smoothing, loss, its gradient, count of right answers",
    reference=reference,
    op=op,
    ops=("hlb::cross_entropy",),
    make=_make,
    cases=(
        _case("seed", 512, 0.2),
        _case("record94", 1536, 0.2),
        _case("airbench94", 2000, 0.2),
        _case("evaluation", 10000, 0.2),
    ),
    space={
        "n": (1, 3, 32, 65),
        "classes": (2, 10, 17),
        "smoothing": (0.0, 0.2, 1.0),
        "scale": (1.0, 0.1),
        "reduction": ("sum", "mean"),
    },
    counted=(Case(n=320, classes=10, smoothing=0.2, scale=1.0, reduction="sum"),),
    bytes=_bytes,
    case_of=sized(n=("logits", 0), classes=("logits", 1)),
    dtype_from="logits",
    part="loss",
    dtypes=FLOATS,
    differentiable=("logits",),
    reduction=lambda case: case.n * case.classes,
    narrow={
        "p_logits": "rows of 10 classes are no multiple of 16 bytes",
        "p_grad": "rows of 10 classes are no multiple of 16 bytes",
        "p_targets": "one class index a row",
        "p_partial": "two numbers a program",
    },
)
