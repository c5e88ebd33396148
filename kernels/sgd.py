"""Stochastic gradient descent with Nesterov momentum, weight decay and weight averaging, over one flat arena.

    d = grad + weight_decay * value        buffer = momentum * buffer + d
    value = value - lr * (d + momentum * buffer)                         then grad = 0, compute = value
    decoupled: d = grad, and lr * weight_decay * value is subtracted from the value as well
    mix, take = averages[step]:    slow = slow + mix * (value - slow),    value = slow where take

value, buffer and slow [P] in float32 (master weights) or in the training dtype; grad and compute (the copy of
master weights that the network computes with) [P] in the training dtype. lr is rates[step, column], with
rates [steps, columns], averages [steps, 2] and step [1] on the device, so that a captured step reads them
anew. A segment (start, end, column, weight_decay) of the arena has a rate and a decay of its own; elements in
no segment stay as they are. mix is 0 in steps that average nothing (slow is then not touched), 1 for a copy;
take is 1 where the network follows its slow weights (lookahead). As torch.optim.SGD(nesterov=True,
dampening=0); the kernel computes in float32, and all segments are one launch.

Bytes per element: value and buffer read and written, grad read and zeroed, compute written; slow read where
0 < mix < 1 or a take needs it, and written where 0 < mix.
Source: Sutskever et al., ICML 2013; Zhang et al., arXiv 1907.08610 (lookahead); Loshchilov, Hutter, arXiv
1711.05101 (decoupled decay).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from .base.launch import cdiv, expect, launch, register, tl, triton
from .base.spec import Case, KernelSpec, updated

Segment = tuple[int, int, int, float]  # start, end, column of the rate table, weight decay


def reference(
    value: Tensor,
    grad: Tensor,
    buffer: Tensor,
    rates: Tensor,
    step: Tensor,
    segments: Sequence[Segment],
    *,
    momentum: float,
    decoupled: bool = False,
    compute: Tensor | None = None,
    slow: Tensor | None = None,
    averages: Tensor | None = None,
) -> None:
    """One step, in place on `value`, `buffer`, `compute` and `slow`; `grad` is zero afterwards.

    `step`, int64 [1], is the row of `rates` and `averages`; `slow` and `averages` come together. Raises
    ValueError for segments that overlap, lie outside the arena or name a column that is not there.
    """
    _check_segments(segments, len(value), rates.shape[1])
    lr = rates.index_select(0, step)[0]
    for start, end, column, weight_decay in segments:
        v, g, b = value[start:end], grad[start:end], buffer[start:end]
        coupled = 0 if decoupled else weight_decay
        direction = g.to(v.dtype, copy=True).add_(v, alpha=coupled)
        b.mul_(momentum).add_(direction)
        direction.add_(b, alpha=momentum).add_(v, alpha=weight_decay - coupled)
        v.sub_(direction.mul_(lr[column]))
        if slow is not None:
            average(v, slow[start:end], averages, step)
        if compute is not None:
            compute[start:end].copy_(v)
        g.zero_()


def average(value: Tensor, slow: Tensor, averages: Tensor, step: Tensor) -> None:
    """mix, take = averages[step]: `slow` takes `mix` of `value`, then `value` takes `slow` where `take`; in
    place. With a mix of 1, `slow` becomes a copy, whatever it held.
    """
    row = averages.index_select(0, step)[0]
    wide = torch.promote_types(value.dtype, torch.float32)
    mix, take = row.to(wide)
    mixed = slow.to(wide).lerp(value.to(wide), mix)
    slow.copy_(torch.where(mix < 1, mixed, value))
    value.copy_(torch.where(take > 0, slow, value))


@triton.jit
def _average(b_value, p_slow, o_all, m_all, p_averages, step):
    """`average` for a block of values in float32; returns them as the network goes on with them."""
    mix = tl.load(p_averages + 2 * step) + tl.zeros_like(b_value)  # blocks, as the masks are
    take = tl.load(p_averages + 2 * step + 1) + tl.zeros_like(b_value)
    m_slow = m_all & (mix < 1.0) & ((mix > 0.0) | (take > 0.0))
    b_slow = tl.load(p_slow + o_all, mask=m_slow, other=0.0).to(tl.float32)
    far = b_value - b_slow
    b_slow = tl.where(mix < 0.5, b_slow + mix * far, b_value - (1.0 - mix) * far)  # exact at both ends
    tl.store(p_slow + o_all, b_slow.to(p_slow.dtype.element_ty), mask=m_all & (mix > 0.0))
    return tl.where(take > 0.0, b_slow, b_value)


@triton.jit
def _sgd(
    p_value,  # [P]
    p_grad,  # [P]
    p_buffer,  # [P]
    p_compute,  # [P]
    p_slow,  # [P]
    p_rates,  # float32 [steps, COLUMNS]
    p_averages,  # float32 [steps, 2]
    p_step,  # int64 [1]
    FIRST: tl.constexpr,  # per segment: its first program, start, end, column, weight decay
    START: tl.constexpr,
    END: tl.constexpr,
    COLUMN: tl.constexpr,
    DECAY: tl.constexpr,
    COLUMNS: tl.constexpr,
    MOMENTUM: tl.constexpr,
    DECOUPLED: tl.constexpr,
    COMPUTE: tl.constexpr,  # whether there is a compute copy
    AVERAGE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0)
    start, end, column, decay = 0, 0, 0, 0.0
    for i in tl.static_range(len(FIRST)):
        here = program >= FIRST[i]
        start = tl.where(here, START[i] + (program - FIRST[i]) * BLOCK, start)
        end = tl.where(here, END[i], end)
        column = tl.where(here, COLUMN[i], column)
        decay = tl.where(here, DECAY[i], decay)
    o_all = start + tl.arange(0, BLOCK)  # [BLOCK]
    m_all = o_all < end
    step = tl.load(p_step)
    lr = tl.load(p_rates + step * COLUMNS + column)

    value = tl.load(p_value + o_all, mask=m_all, other=0.0).to(tl.float32)
    direction = tl.load(p_grad + o_all, mask=m_all, other=0.0).to(tl.float32)
    buffer = tl.load(p_buffer + o_all, mask=m_all, other=0.0).to(tl.float32)
    if not DECOUPLED:
        direction += decay * value
    buffer = MOMENTUM * buffer + direction
    direction += MOMENTUM * buffer
    if DECOUPLED:
        direction += decay * value
    value -= lr * direction
    if AVERAGE:
        value = _average(value, p_slow, o_all, m_all, p_averages, step)
    tl.store(p_value + o_all, value.to(p_value.dtype.element_ty), mask=m_all)
    tl.store(p_buffer + o_all, buffer.to(p_buffer.dtype.element_ty), mask=m_all)
    tl.store(p_grad + o_all, tl.zeros([BLOCK], p_grad.dtype.element_ty), mask=m_all)
    if COMPUTE:
        tl.store(p_compute + o_all, value.to(p_compute.dtype.element_ty), mask=m_all)


BLOCK = 1024  # elements of a program


@register("hlb::sgd", mutates=("value", "grad", "buffer", "compute", "slow"))
def _update(
    value: Tensor,
    grad: Tensor,
    buffer: Tensor,
    compute: Tensor | None,
    slow: Tensor | None,
    rates: Tensor,
    averages: Tensor | None,
    step: Tensor,
    starts: Sequence[int],
    ends: Sequence[int],
    columns: Sequence[int],
    decays: Sequence[float],
    momentum: float,
    decoupled: bool,
) -> None:
    *first, programs = accumulate((cdiv(end - start, BLOCK) for start, end in zip(starts, ends)), initial=0)
    launch(
        _sgd,
        (programs,),
        value,
        grad,
        buffer,
        value if compute is None else compute,  # an absent one is never read or written
        value if slow is None else slow,
        rates,
        rates if averages is None else averages,
        step,
        FIRST=tuple(first),
        START=tuple(starts),
        END=tuple(ends),
        COLUMN=tuple(columns),
        DECAY=tuple(decays),
        COLUMNS=rates.shape[1],
        MOMENTUM=momentum,
        DECOUPLED=decoupled,
        COMPUTE=compute is not None,
        AVERAGE=slow is not None,
        BLOCK=BLOCK,
    )


@_update.register_fake
def _(
    value,
    grad,
    buffer,
    compute,
    slow,
    rates,
    averages,
    step,
    starts,
    ends,
    columns,
    decays,
    momentum,
    decoupled,
):
    return None


def op(
    value: Tensor,
    grad: Tensor,
    buffer: Tensor,
    rates: Tensor,
    step: Tensor,
    segments: Sequence[Segment],
    *,
    momentum: float,
    decoupled: bool = False,
    compute: Tensor | None = None,
    slow: Tensor | None = None,
    averages: Tensor | None = None,
) -> None:
    """As `reference`, in one launch. 16-byte accesses need segments that start and end at multiples of 16
    elements.

    Raises ValueError for a wrong shape, dtype, layout or device, naming the argument.
    """
    check_arena(value, grad, buffer, rates, step, compute, slow, averages)
    _check_segments(segments, len(value), rates.shape[1])
    if segments:
        starts, ends, columns, decays = zip(*segments)
        _update(
            value,
            grad,
            buffer,
            compute,
            slow,
            rates,
            averages,
            step,
            starts,
            ends,
            columns,
            [float(decay) for decay in decays],
            momentum,
            decoupled,
        )


def check_arena(
    value: Tensor,
    grad: Tensor,
    buffer: Tensor,
    rates: Tensor,
    step: Tensor,
    compute: Tensor | None,
    slow: Tensor | None,
    averages: Tensor | None,
) -> None:
    """Raises ValueError, naming the argument, for what is no arena with its tables."""
    expect("value", value, None)
    if len(value) >= 2**31:
        raise ValueError(f"value: got {len(value)} elements, accepted are fewer than 2**31")
    alike = {"device": value.device, "dtypes": (value.dtype,)}
    expect("grad", grad, len(value), device=value.device)
    expect("buffer", buffer, len(value), **alike)
    if compute is not None:
        expect("compute", compute, len(value), device=value.device, dtypes=(grad.dtype,))
    expect("rates", rates, None, None, dtypes=(torch.float32,), device=value.device)
    expect("step", step, 1, dtypes=(torch.int64,), device=value.device)
    if (slow is None) != (averages is None):
        raise ValueError(f"averages: got {'none' if averages is None else 'a table'}, it comes with slow")
    if slow is not None:
        expect("slow", slow, len(value), **alike)
        expect("averages", averages, len(rates), 2, dtypes=(torch.float32,), device=value.device)


def _check_segments(segments: Sequence[Segment], size: int, columns: int) -> None:
    last = 0
    for start, end, column, _ in segments:
        if not last <= start < end <= size:
            raise ValueError(
                f"segments: got {start} to {end}, accepted are ascending, disjoint ones in 0 to {size}"
            )
        if not 0 <= column < columns:
            raise ValueError(f"segments: got column {column}, accepted is 0 to {columns - 1}")
        last = end


# mix and take, as a table of averages has them.
AVERAGES = {
    "idle": (0.0, 0.0),
    "copy": (1.0, 0.0),
    "ema": (0.03, 0.0),
    "lookahead": (0.7, 1.0),
    "end": (0.0, 1.0),
}


def make_arena(size: int, columns: int, master: bool, averaging: str, dtype: torch.dtype, device) -> dict:
    """Random arguments that the optimizers' ops share; the step is 1 of 3, the others' rows are NaN."""
    wide = torch.float32 if master else dtype
    value = torch.randn(size, device=device).to(wide)

    def only_row_1(*row: float) -> Tensor:
        return torch.tensor([[float("nan")] * len(row), row, [float("nan")] * len(row)], device=device)

    return {
        "value": value,
        "grad": torch.randn(size, device=device).to(dtype),
        "buffer": torch.randn(size, device=device).to(wide),
        "rates": only_row_1(*(0.1 / (1 + i) for i in range(columns))),
        "step": torch.ones(1, dtype=torch.int64, device=device),
        "compute": value.to(dtype) if master else None,
        "slow": torch.randn_like(value) if averaging != "none" else None,
        "averages": only_row_1(*AVERAGES[averaging]) if averaging != "none" else None,
    }


def arena_bytes(case: Case, dtype: torch.dtype) -> int:
    """What a step must move per element: value and buffer both ways, grad, compute, slow."""
    wide = 4 if case.master else dtype.itemsize
    mix, take = AVERAGES.get(case.averaging, (0, 0))
    slow = (mix > 0) + (mix < 1 and max(mix, take) > 0)
    return (4 + slow) * wide + (2 + case.master) * dtype.itemsize


def _make(case: Case, dtype: torch.dtype, device) -> dict:
    """Segments of the sizes in the case, with gaps between them that no step may touch."""
    segments, at = [], case.gap
    for i, size in enumerate(case.sizes):
        segments.append((at, at + size, len(case.sizes) - 1 - i, 0.3 * i))
        at += size + case.gap
    arena = make_arena(at, len(case.sizes), case.master, case.averaging, dtype, device)
    return arena | {"segments": tuple(segments), "momentum": case.momentum, "decoupled": case.decoupled}


def _bytes(case: Case, dtype: torch.dtype) -> dict[str, int]:
    return {"_sgd": sum(case.sizes) * arena_bytes(case, dtype)}


def _case(label: str, *sizes: int, averaging: str = "none", master: bool = False, momentum=0.85) -> Case:
    options = {"averaging": averaging, "momentum": momentum, "decoupled": False}
    return Case(label, sizes=sizes, gap=0, master=master, **options)


SPEC = KernelSpec(
    name="sgd",
    formula="d = grad + wd * value; buffer = m * buffer + d; value -= lr * (d + m * buffer); average",
    fuses="momentum, decay, update, averages and clearing, all parameters at once",
    reference=reference,
    op=op,
    ops=("hlb::sgd",),
    make=_make,
    cases=(
        _case("seed", 6_524_928, 40_320),
        _case("seed.master", 6_524_928, 40_320, master=True),
        _case("seed.ema", 6_524_928, 40_320, master=True, averaging="ema"),
        _case("seed.biases", 3_008),
        _case("record94.sgd", 1_967_616, 2_560),
        _case("record94.linear", 2_560),
        _case("record94.biases", 1_152, 64),
    ),
    space={
        "sizes": ((1,), (1024,), (64, 1090), (1500, 3, 640)),
        "gap": (0, 5),
        "master": (False, True),
        "averaging": ("none", *AVERAGES),
        "momentum": (0.0, 0.85),
        "decoupled": (False, True),
    },
    counted=tuple(
        Case(sizes=(4096, 1088), gap=64, master=master, averaging=averaging, momentum=0.85, decoupled=False)
        for master, averaging in (
            (False, "none"),
            (True, "ema"),
            (True, "idle"),
            (True, "copy"),
            (False, "lookahead"),
            (False, "end"),
        )
    ),
    bytes=_bytes,
    case_of=lambda inputs: updated(inputs, sizes=tuple(end - start for start, end, *_ in inputs["segments"])),
    dtype_from="grad",
    part="weights",
    mutates=("value", "grad", "buffer", "compute", "slow"),
)
