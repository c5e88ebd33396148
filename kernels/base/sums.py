"""The sums over what programs have left of a reduction, one row of float32 parts each.

    sum[i] = over all rows, partial[row, i]

partial [rows, size] float32 -> sum [size], in a dtype of its own; or two of them, of the first columns and of
the rest. Added in float32 and in a fixed order, so results repeat bit for bit.

The parts have just been written and mostly lie in the cache; what takes time is to wait for them, once for
each link of a chain of additions. So a program asks for all rows of its columns at once, where they are no
more than 512, and has as few columns as leave every multiprocessor of a large GPU something to do.

Bytes: the parts read, the sums written.
"""

from __future__ import annotations

from torch import Tensor

from .launch import cdiv, launch, power_of_2, tl, triton


@triton.jit
def _sum_splits(
    p_partial,  # float32 [splits, SIZE]
    p_sum,  # [FIRST]
    p_rest,  # [SIZE - FIRST], or None
    splits,
    SIZE: tl.constexpr,
    FIRST: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    cols = tl.program_id(0) * COLS + tl.arange(0, COLS)  # [COLS]
    b_parts = tl.zeros((ROWS, COLS), dtype=tl.float32)
    for first in range(0, splits, ROWS):
        rows = first + tl.arange(0, ROWS)[:, None]
        m_all = (rows < splits) & (cols < SIZE)[None, :]  # [ROWS, COLS]
        b_parts += tl.load(p_partial + rows.to(tl.int64) * SIZE + cols[None, :], mask=m_all, other=0.0)
    b_sum = tl.sum(b_parts, axis=0)  # [COLS]
    tl.store(p_sum + cols, b_sum.to(p_sum.dtype.element_ty), mask=cols < FIRST)
    if p_rest is not None:
        m_rest = (cols >= FIRST) & (cols < SIZE)
        tl.store(p_rest + cols - FIRST, b_sum.to(p_rest.dtype.element_ty), mask=m_rest)


LEAST, MOST = 512, 4096  # parts that a program asks for at once: 4 to 32 a thread
NARROW, WIDE = 8, 512  # columns of a program: the 32 bytes that memory gives at a time; four a thread
PROGRAMS = 128  # that share the columns, if these are enough: nearly a multiprocessor each


def sum_splits(partial: Tensor, sum: Tensor, rest: Tensor | None = None) -> None:
    """Writes the sums over the first axis of `partial`, float32: of the first columns to `sum`, of those that
    are left to `rest`.
    """
    splits, first = len(partial), sum.numel()
    size = first + (0 if rest is None else rest.numel())
    rows, share = power_of_2(splits), power_of_2(cdiv(size, PROGRAMS) + 1) // 2
    cols = max(NARROW, LEAST // rows, min(WIDE, MOST // rows, share))
    blocks = {"ROWS": min(rows, MOST // cols), "COLS": cols}
    launch(_sum_splits, (cdiv(size, cols),), partial, sum, rest, splits, SIZE=size, FIRST=first, **blocks)


# Why accesses are narrow, for a SPEC whose sums are all 16-bit, or few.
SUMS = {"p_sum": "a program has as many sums as threads: so many programs read the splits"}
