"""Muon: momentum whose update is orthogonalised, for convolution filters seen as matrices [out, in * 3 * 3].

    buffer = momentum * buffer + grad           g = grad + momentum * buffer              (Nesterov)
    value  = value * sqrt(out) / norm(value)                              (filters keep their scale)
    value  = value - lr * orthogonalise(g)                       then grad = 0, compute = value, and averages

orthogonalise is a few steps of a quintic Newton-Schulz iteration: with X = g / norm(g) = U S V^T,
    X <- a X + b (X X^T) X + c (X X^T)^2 X,        that is  S <- a S + b S^3 + c S^5  on the singular values,
which drives them towards 1 (into about [0.7, 1.2], not to 1 exactly) and leaves U and V alone. It runs in
bfloat16 for a 16-bit network and in the network's own dtype otherwise; a permutation of columns changes
nothing, so filters may be flattened in any memory order.

With `momenta` momentum is momenta[step], which a captured step reads anew.

Arena, tables and averaging are those of sgd.py; a matrix (offset, rows, columns) is a piece of the
arena. The kernels hold X in a workspace, the smaller side m as rows, both sides padded with zeros to
multiples of 64, and treat all filters in each launch: 1 for the momentum, 3 per step for gram = X X^T,
poly = b gram + c gram gram and X <- a X + poly X, 1 for the update. Dots and norms accumulate in float32. X
starts as g, not g / norm(g): the first step scales its float32 sums instead.

Bytes per element: value read twice and written, buffer read and written, grad read and zeroed, compute
written; a step moves 3 X, 2 gram and 2 poly (what several tiles read comes from the L2 cache). FLOPs per
step and filter, m = min(out, in * 9), k the other side: 4 m^2 k + 2 m^3.
Source: Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024); airbench94_muon.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from .base.launch import INTERPRETED, cdiv, expect, launch, power_of_2, register, tl, triton
from .base.spec import Case, KernelSpec, updated
from .sgd import _average, arena_bytes, average, check_arena, make_arena

Matrix = tuple[int, int, int]  # where a filter starts in the arena, its rows and columns
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
EPS = 1e-7  # beside norm(g)


def orthogonalise(g: Tensor, steps: int, coefficients: tuple[float, float, float] = COEFFICIENTS) -> Tensor:
    """[m, k] -> [m, k] with the same singular vectors and singular values near 1, in the dtype of `g`."""
    a, b, c = coefficients
    x = g.T if g.shape[0] > g.shape[1] else g
    x = x / (x.norm() + EPS)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if g.shape[0] > g.shape[1] else x


def reference(
    value: Tensor,
    grad: Tensor,
    buffer: Tensor,
    rates: Tensor,
    step: Tensor,
    matrices: Sequence[Matrix],
    *,
    column: int,
    momentum: float,
    steps: int,
    momenta: Tensor | None = None,
    compute: Tensor | None = None,
    slow: Tensor | None = None,
    averages: Tensor | None = None,
) -> None:
    """One step, in place on `value`, `buffer`, `compute` and `slow`; `grad` is zero afterwards.

    `column` is that of the rates; `momenta`, float32 [steps of the run], has a momentum for each step, in
    place of `momentum`. Raises ValueError for matrices that overlap or lie outside the arena, a
    column that is not there, and no `steps`.
    """
    _check_matrices(matrices, len(value), column, rates.shape[1], steps)
    lr = rates.index_select(0, step)[0, column]
    for offset, rows, columns in matrices:
        at = slice(offset, offset + rows * columns)
        v, g, b = (flat[at].view(rows, columns) for flat in (value, grad, buffer))
        if momenta is None:
            b.mul_(momentum).add_(g)
            d = g.to(v.dtype).add(b, alpha=momentum)
        else:
            wide = torch.promote_types(v.dtype, torch.float32)
            mu, d = momenta.index_select(0, step).to(wide), g.to(wide)
            b.copy_(torch.addcmul(d, b.to(wide), mu))
            d = torch.addcmul(d, b.to(wide), mu)
        d = d.to(torch.bfloat16) if g.dtype.itemsize == 2 else d
        v.mul_(rows**0.5 / v.norm())
        v.sub_(orthogonalise(d, steps).to(v.dtype) * lr)
        if slow is not None:
            average(value[at], slow[at], averages, step)
        if compute is not None:
            compute[at].copy_(value[at])
        g.zero_()


@triton.jit
def _of(program, FIRST: tl.constexpr, FIELD: tl.constexpr):
    """The entry in FIELD of the matrix that a program works on: the last whose first program is not later."""
    found = FIELD[0]
    for i in tl.static_range(1, len(FIRST)):
        found = tl.where(program >= FIRST[i], FIELD[i], found)
    return found


@triton.jit
def _norm(p_partial, first, tiles, BLOCK: tl.constexpr):
    """The root of the sum of a matrix's partial sums."""
    o_partial = tl.arange(0, BLOCK)
    return tl.sqrt(tl.sum(tl.load(p_partial + first + o_partial, mask=o_partial < tiles, other=0.0), axis=0))


@triton.jit
def _dot(a, b, sums, UPCAST: tl.constexpr):
    """sums + a @ b in float32."""
    if UPCAST:  # the interpreter has no bfloat16 dot
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, sums, input_precision="ieee")


@triton.jit
def _momentum(
    p_value,  # [P], as the next two
    p_grad,
    p_buffer,
    p_x,  # every matrix [M, K], one after the other
    p_partial,  # float32 [2, programs]: of g^2 and of value^2
    p_momenta,  # float32 [steps]
    p_step,  # int64 [1]
    FIRST: tl.constexpr,  # per matrix: its first program, its place in the arena,
    OFFSET: tl.constexpr,
    ROWS: tl.constexpr,  # extents and strides there of what are X's rows and columns,
    COLUMNS: tl.constexpr,
    ROW_STRIDE: tl.constexpr,
    COLUMN_STRIDE: tl.constexpr,
    AT: tl.constexpr,  # its place in p_x, and its padded columns there
    K: tl.constexpr,
    MOMENTUM: tl.constexpr,
    MOMENTA: tl.constexpr,  # whether each step has a momentum of its own
    TILE: tl.constexpr,
):
    program, programs = tl.program_id(0), tl.num_programs(0)
    tile, k = program - _of(program, FIRST, FIRST), _of(program, FIRST, K)
    rows = tile // (k // TILE) * TILE + tl.arange(0, TILE)[:, None]
    columns = tile % (k // TILE) * TILE + tl.arange(0, TILE)[None, :]
    m_all = (rows < _of(program, FIRST, ROWS)) & (columns < _of(program, FIRST, COLUMNS))  # [TILE, TILE]
    o_all = _of(program, FIRST, OFFSET) + rows * _of(program, FIRST, ROW_STRIDE)
    o_all += columns * _of(program, FIRST, COLUMN_STRIDE)
    value = tl.load(p_value + o_all, mask=m_all, other=0.0).to(tl.float32)
    grad = tl.load(p_grad + o_all, mask=m_all, other=0.0).to(tl.float32)
    buffer = tl.load(p_buffer + o_all, mask=m_all, other=0.0).to(tl.float32)
    mu = MOMENTUM
    if MOMENTA:
        mu = tl.load(p_momenta + tl.load(p_step))
    buffer = mu * buffer + grad
    x = (grad + mu * buffer).to(p_x.dtype.element_ty)
    tl.store(p_buffer + o_all, buffer.to(p_buffer.dtype.element_ty), mask=m_all)
    tl.store(p_grad + o_all, tl.zeros([TILE, TILE], p_grad.dtype.element_ty), mask=m_all)
    tl.store(p_x + _of(program, FIRST, AT) + rows * k + columns, x)  # zeros as padding
    wide = x.to(tl.float32)
    tl.store(p_partial + program, tl.sum(tl.sum(wide * wide, axis=1), axis=0))
    tl.store(p_partial + programs + program, tl.sum(tl.sum(value * value, axis=1), axis=0))


@triton.jit
def _gram(
    p_x,  # [M, K] of every matrix
    p_partial,  # float32 [2, programs of _momentum]
    p_gram,  # [M, M] of every matrix: X X^T
    FIRST: tl.constexpr,  # per matrix: its first program, its first partial sum and their number,
    FIRST_PARTIAL: tl.constexpr,
    TILES: tl.constexpr,
    AT: tl.constexpr,  # its places in p_x and p_gram,
    AT_GRAM: tl.constexpr,
    M: tl.constexpr,  # and its padded extents
    K: tl.constexpr,
    SCALE: tl.constexpr,  # whether X is still to be divided by its norm
    EPS: tl.constexpr,
    BLOCK_PARTIAL: tl.constexpr,
    UPCAST: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    program = tl.program_id(0)
    tile, m, k = program - _of(program, FIRST, FIRST), _of(program, FIRST, M), _of(program, FIRST, K)
    rows = tile // (m // TILE) * TILE + tl.arange(0, TILE)[:, None]
    columns = tile % (m // TILE) * TILE + tl.arange(0, TILE)
    inner = tl.arange(0, BLOCK_K)
    p_left = p_x + _of(program, FIRST, AT) + rows * k + inner[None, :]  # [TILE, BLOCK_K]
    p_right = p_x + _of(program, FIRST, AT) + columns[None, :] * k + inner[:, None]  # [BLOCK_K, TILE]
    sums = tl.zeros([TILE, TILE], tl.float32)
    for at in tl.range(0, k, BLOCK_K):
        sums = _dot(tl.load(p_left + at), tl.load(p_right + at), sums, UPCAST)
    if SCALE:
        first, tiles = _of(program, FIRST, FIRST_PARTIAL), _of(program, FIRST, TILES)
        scale = 1.0 / (_norm(p_partial, first, tiles, BLOCK_PARTIAL) + EPS)
        sums = sums * scale * scale
    o_all = _of(program, FIRST, AT_GRAM) + rows * m + columns[None, :]
    tl.store(p_gram + o_all, sums.to(p_gram.dtype.element_ty))


@triton.jit
def _poly(
    p_gram,  # [M, M] of every matrix
    p_poly,  # [M, M] of every matrix: B gram + C gram gram
    FIRST: tl.constexpr,  # per matrix: its first program,
    AT_GRAM: tl.constexpr,  # its place in p_gram and p_poly, and its padded extent
    M: tl.constexpr,
    B: tl.constexpr,
    C: tl.constexpr,
    UPCAST: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    program = tl.program_id(0)
    tile, m = program - _of(program, FIRST, FIRST), _of(program, FIRST, M)
    rows = tile // (m // TILE) * TILE + tl.arange(0, TILE)[:, None]
    columns = tile % (m // TILE) * TILE + tl.arange(0, TILE)[None, :]
    inner = tl.arange(0, BLOCK_K)
    at_gram = _of(program, FIRST, AT_GRAM)
    p_left = p_gram + at_gram + rows * m + inner[None, :]  # [TILE, BLOCK_K]
    p_right = p_gram + at_gram + inner[:, None] * m + columns  # [BLOCK_K, TILE]
    sums = tl.zeros([TILE, TILE], tl.float32)
    for at in tl.range(0, m, BLOCK_K):
        sums = _dot(tl.load(p_left + at), tl.load(p_right + at * m), sums, UPCAST)
    o_all = at_gram + rows * m + columns
    gram = tl.load(p_gram + o_all).to(tl.float32)
    tl.store(p_poly + o_all, (B * gram + C * sums).to(p_poly.dtype.element_ty))


@triton.jit
def _apply(
    p_x,  # [M, K] of every matrix
    p_poly,  # [M, M] of every matrix
    p_partial,  # float32 [2, programs]
    p_out,  # [M, K] of every matrix: A X + poly X
    FIRST: tl.constexpr,  # per matrix: its first program and partial sum, the number of both,
    TILES: tl.constexpr,
    AT: tl.constexpr,  # its places in p_x and p_poly,
    AT_GRAM: tl.constexpr,
    M: tl.constexpr,  # and its padded extents
    K: tl.constexpr,
    SCALE: tl.constexpr,  # whether X is still to be divided by its norm
    EPS: tl.constexpr,
    BLOCK_PARTIAL: tl.constexpr,
    A: tl.constexpr,
    UPCAST: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    program = tl.program_id(0)
    first = _of(program, FIRST, FIRST)
    tile, m, k = program - first, _of(program, FIRST, M), _of(program, FIRST, K)
    rows = tile // (k // TILE) * TILE + tl.arange(0, TILE)[:, None]
    columns = tile % (k // TILE) * TILE + tl.arange(0, TILE)[None, :]
    inner = tl.arange(0, BLOCK_K)
    p_left = p_poly + _of(program, FIRST, AT_GRAM) + rows * m + inner[None, :]  # [TILE, BLOCK_K]
    p_right = p_x + _of(program, FIRST, AT) + inner[:, None] * k + columns  # [BLOCK_K, TILE]
    sums = tl.zeros([TILE, TILE], tl.float32)
    for at in tl.range(0, m, BLOCK_K):
        sums = _dot(tl.load(p_left + at), tl.load(p_right + at * k), sums, UPCAST)
    o_all = _of(program, FIRST, AT) + rows * k + columns
    sums += A * tl.load(p_x + o_all).to(tl.float32)
    if SCALE:
        sums *= 1.0 / (_norm(p_partial, first, _of(program, FIRST, TILES), BLOCK_PARTIAL) + EPS)
    tl.store(p_out + o_all, sums.to(p_out.dtype.element_ty))


@triton.jit
def _update(
    p_value,  # [P], as the next two
    p_compute,
    p_slow,
    p_x,  # [M, K] of every matrix
    p_partial,  # float32 [2, programs]
    p_rates,  # float32 [steps, RATES]
    p_averages,  # float32 [steps, 2]
    p_step,  # int64 [1]
    FIRST: tl.constexpr,  # per matrix: as in _momentum,
    TILES: tl.constexpr,
    OFFSET: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROW_STRIDE: tl.constexpr,
    COLUMN_STRIDE: tl.constexpr,
    AT: tl.constexpr,
    K: tl.constexpr,
    ROOT: tl.constexpr,  # and the norm it is given
    RATES: tl.constexpr,
    RATE: tl.constexpr,
    COMPUTE: tl.constexpr,  # whether there is a compute copy
    AVERAGE: tl.constexpr,
    BLOCK_PARTIAL: tl.constexpr,
    TILE: tl.constexpr,
):
    program, programs = tl.program_id(0), tl.num_programs(0)
    first = _of(program, FIRST, FIRST)
    tile, k = program - first, _of(program, FIRST, K)
    rows = tile // (k // TILE) * TILE + tl.arange(0, TILE)[:, None]
    columns = tile % (k // TILE) * TILE + tl.arange(0, TILE)[None, :]
    m_all = (rows < _of(program, FIRST, ROWS)) & (columns < _of(program, FIRST, COLUMNS))  # [TILE, TILE]
    o_all = _of(program, FIRST, OFFSET) + rows * _of(program, FIRST, ROW_STRIDE)
    o_all += columns * _of(program, FIRST, COLUMN_STRIDE)
    step = tl.load(p_step)
    lr = tl.load(p_rates + step * RATES + RATE)
    norm = _norm(p_partial + programs, first, _of(program, FIRST, TILES), BLOCK_PARTIAL)
    value = tl.load(p_value + o_all, mask=m_all, other=0.0).to(tl.float32)
    x = tl.load(p_x + _of(program, FIRST, AT) + rows * k + columns, mask=m_all, other=0.0).to(tl.float32)
    value = value * (_of(program, FIRST, ROOT) / norm) - lr * x
    if AVERAGE:
        value = _average(value, p_slow, o_all, m_all, p_averages, step)
    tl.store(p_value + o_all, value.to(p_value.dtype.element_ty), mask=m_all)
    if COMPUTE:
        tl.store(p_compute + o_all, value.to(p_compute.dtype.element_ty), mask=m_all)


TILE = 64  # rows and columns of a tile, and what workspaces are padded to


def _layout(matrices: Sequence[Matrix]) -> dict[str, tuple]:
    """Per matrix what the kernels are told of it, named as there. FIRST and GRAMS, the first programs of its
    tiles of X and of X X^T, end with the number of programs.
    """
    offsets, rows, columns = zip(*matrices)
    turned = [m > k for m, k in zip(rows, columns)]  # X is the transpose
    small, large = (tuple(map(side, rows, columns)) for side in (min, max))
    m, k = (tuple(cdiv(n, TILE) * TILE for n in side) for side in (small, large))
    tiles, grams = ([a * b // TILE**2 for a, b in zip(m, side)] for side in (k, m))
    firsts = {name: tuple(accumulate(counts, initial=0)) for name, counts in (("x", tiles), ("gram", grams))}
    return {
        "OFFSET": offsets,
        "ROWS": small,
        "COLUMNS": large,
        "ROW_STRIDE": tuple(1 if t else n for t, n in zip(turned, columns)),
        "COLUMN_STRIDE": tuple(n if t else 1 for t, n in zip(turned, columns)),
        "ROOT": tuple(n**0.5 for n in rows),
        "M": m,
        "K": k,
        "TILES": tuple(tiles),
        "FIRST": firsts["x"],
        "GRAMS": firsts["gram"],
    }


@register("hlb::muon", mutates=("value", "grad", "buffer", "compute", "slow"))
def _step(
    value: Tensor,
    grad: Tensor,
    buffer: Tensor,
    compute: Tensor | None,
    slow: Tensor | None,
    rates: Tensor,
    momenta: Tensor | None,
    averages: Tensor | None,
    step: Tensor,
    offsets: Sequence[int],
    rows: Sequence[int],
    columns: Sequence[int],
    column: int,
    momentum: float,
    steps: int,
) -> None:
    layout = _layout(tuple(zip(offsets, rows, columns)))
    *first, programs = layout["FIRST"]
    *first_gram, gram_programs = layout["GRAMS"]
    first, first_gram = tuple(first), tuple(first_gram)
    # Where each matrix lies in a workspace: tiles before it, of TILE * TILE elements each.
    places = {"AT": tuple(TILE**2 * n for n in first), "AT_GRAM": tuple(TILE**2 * n for n in first_gram)}

    def told(*names: str) -> dict:
        return {name: (layout | places)[name] for name in names}

    kind = torch.bfloat16 if grad.dtype.itemsize == 2 else torch.float32
    x, out = (grad.new_empty(programs * TILE**2, dtype=kind) for _ in range(2))
    gram, poly = (grad.new_empty(gram_programs * TILE**2, dtype=kind) for _ in range(2))
    partial = grad.new_empty((2, programs), dtype=torch.float32)
    piece = ("OFFSET", "ROWS", "COLUMNS", "ROW_STRIDE", "COLUMN_STRIDE", "AT", "K")
    norm = {"BLOCK_PARTIAL": power_of_2(max(layout["TILES"]))}
    dots = {"UPCAST": INTERPRETED, "TILE": TILE, "BLOCK_K": 128 // kind.itemsize, "num_stages": 3}
    a, b, c = COEFFICIENTS

    launch(
        _momentum,
        (programs,),
        value,
        grad,
        buffer,
        x,
        partial,
        rates if momenta is None else momenta,
        step,
        FIRST=first,
        **told(*piece),
        MOMENTUM=momentum,
        MOMENTA=momenta is not None,
        TILE=TILE,
        num_warps=8,
    )
    for i in range(steps):
        scale = {"SCALE": i == 0, "EPS": EPS, **norm}
        launch(
            _gram,
            (gram_programs,),
            x,
            partial,
            gram,
            FIRST=first_gram,
            FIRST_PARTIAL=first,
            **told("TILES", "AT", "AT_GRAM", "M", "K"),
            **scale,
            **dots,
        )
        launch(
            _poly,
            (gram_programs,),
            gram,
            poly,
            FIRST=first_gram,
            **told("AT_GRAM", "M"),
            B=b,
            C=c,
            **dots,
        )
        launch(
            _apply,
            (programs,),
            x,
            poly,
            partial,
            out,
            FIRST=first,
            **told("TILES", "AT", "AT_GRAM", "M", "K"),
            **scale,
            A=a,
            **dots,
        )
        x, out = out, x
    launch(
        _update,
        (programs,),
        value,
        value if compute is None else compute,  # an absent one is never read or written
        value if slow is None else slow,
        x,
        partial,
        rates,
        rates if averages is None else averages,
        step,
        FIRST=first,
        **told("TILES", *piece, "ROOT"),
        RATES=rates.shape[1],
        RATE=column,
        COMPUTE=compute is not None,
        AVERAGE=slow is not None,
        **norm,
        TILE=TILE,
        num_warps=8,
    )


@_step.register_fake
def _(
    value,
    grad,
    buffer,
    compute,
    slow,
    rates,
    momenta,
    averages,
    step,
    offsets,
    rows,
    columns,
    column,
    momentum,
    steps,
):
    return None


def op(
    value: Tensor,
    grad: Tensor,
    buffer: Tensor,
    rates: Tensor,
    step: Tensor,
    matrices: Sequence[Matrix],
    *,
    column: int,
    momentum: float,
    steps: int,
    momenta: Tensor | None = None,
    compute: Tensor | None = None,
    slow: Tensor | None = None,
    averages: Tensor | None = None,
) -> None:
    """As `reference`, for all matrices at once in 2 + 3 * steps launches. 16-byte accesses need offsets and
    columns that are multiples of 8.

    Raises ValueError for a wrong shape, dtype, layout or device, naming the argument.
    """
    check_arena(value, grad, buffer, rates, step, compute, slow, averages)
    _check_matrices(matrices, len(value), column, rates.shape[1], steps)
    if momenta is not None:
        expect("momenta", momenta, len(rates), dtypes=(torch.float32,), device=value.device)
    if matrices:
        tables, arrays = (rates, momenta, averages, step), zip(*matrices)
        _step(value, grad, buffer, compute, slow, *tables, *arrays, column, momentum, steps)


def _check_matrices(matrices: Sequence[Matrix], size: int, column: int, columns: int, steps: int) -> None:
    end = 0
    for offset, m, k in matrices:
        if not (end <= offset and m > 0 and k > 0 and offset + m * k <= size):
            raise ValueError(
                f"matrices: got {m} x {k} at {offset}, accepted are ascending, disjoint ones in 0 to {size}"
            )
        end = offset + m * k
    if not 0 <= column < columns:
        raise ValueError(f"column: got {column}, accepted is 0 to {columns - 1}")
    if steps < 1:
        raise ValueError(f"steps: got {steps}, accepted is 1 or more")


def _make(case: Case, dtype: torch.dtype, device) -> dict:
    """Matrices of the shapes in the case, with gaps between them that no step may touch."""
    matrices, at = [], case.gap
    for rows, columns in case.shapes:
        matrices.append((at, rows, columns))
        at += rows * columns + case.gap
    arena = make_arena(at, 2, case.master, case.averaging, dtype, device)
    warm = case.get("warm", False)  # records have cases from before there was one
    momenta = torch.tensor([float("nan"), case.momentum, float("nan")], device=device)  # the step is 1
    return arena | {
        "matrices": tuple(matrices),
        "column": 1,
        "momentum": 0.3 if warm else case.momentum,
        "momenta": momenta if warm else None,
        "steps": case.steps,
    }


def _bytes(case: Case, dtype: torch.dtype) -> dict[str, int]:
    layout = _layout([(0, *shape) for shape in case.shapes])
    wide = 4 if case.master else dtype.itemsize
    itemsize = 4 if dtype.itemsize == 4 else 2  # of X
    elements = sum(rows * columns for rows, columns in case.shapes)
    moved = {
        "_momentum": elements * (3 * wide + 2 * dtype.itemsize),
        "_gram": 0,
        "_poly": 0,
        "_apply": 0,
        "_update": elements * (arena_bytes(case, dtype) - 2 * wide - 2 * dtype.itemsize + itemsize),
    }
    for m, tiles in zip(layout["M"], layout["TILES"]):
        down = m // TILE
        tile = TILE**2 * itemsize
        norms = 4 * tiles  # the partial sums
        moved["_momentum"] += tiles * (tile + 8)
        moved["_gram"] += case.steps * tile * (tiles + down**2) + norms
        moved["_poly"] += case.steps * tile * 2 * down**2
        moved["_apply"] += case.steps * tile * (2 * tiles + down**2) + norms
        moved["_update"] += tiles * norms
    return moved


def _flops(case: Case, dtype: torch.dtype) -> dict[str, int]:
    layout = _layout([(0, *shape) for shape in case.shapes])
    sides = list(zip(layout["M"], layout["K"]))
    thin, cube = (
        2 * case.steps * sum(m * m * n for m, n in pairs) for pairs in (sides, [(m, m) for m, _ in sides])
    )
    return {"_gram": thin, "_poly": cube, "_apply": thin}


def _case(label: str, *shapes: tuple[int, int], master: bool = False, averaging: str = "none") -> Case:
    how = {"master": master, "averaging": averaging, "momentum": 0.6, "warm": False}
    return Case(label, shapes=shapes, gap=0, steps=3, **how)


def _counted(*shapes: tuple[int, int], **how) -> Case:
    return Case(shapes=shapes, momentum=0.6, **how)


_RECORD94 = ((64, 216), (64, 576), (256, 576), (256, 2304), (256, 2304), (256, 2304))
_SMOKE = ((16, 216), (16, 144), (64, 144), (64, 576), (64, 576), (64, 576))

SPEC = KernelSpec(
    name="muon",
    formula="value = value * sqrt(out) / norm(value) - lr * orthogonalise(grad + m * buffer); average",
    fuses="momentum, orthogonalisation, scale, update, averages and clearing, all filters at once",
    reference=reference,
    op=op,
    ops=("hlb::muon",),
    make=_make,
    cases=(
        _case("record94", *_RECORD94),
        _case("record94.master", *_RECORD94, master=True),
        _case("record94.ema", *_RECORD94, master=True, averaging="ema"),
        _case("smoke", *_SMOKE),
    ),
    space={
        "shapes": (((1, 9),), ((3, 27), (66, 72)), ((64, 64), (70, 9), (16, 72))),  # 70 x 9 is turned
        "gap": (0, 5),
        "steps": (1, 2),
        "master": (False, True),
        "averaging": ("none", "idle", "copy", "ema", "lookahead", "end"),
        "momentum": (0.0, 0.6),
        "warm": (False, True),
    },
    counted=(
        _counted((64, 128), (128, 192), gap=64, steps=2, master=True, averaging="ema", warm=False),
        _counted((192, 64), gap=0, steps=1, master=False, averaging="none", warm=True),
    ),
    bytes=_bytes,
    flops=_flops,
    case_of=lambda inputs: updated(
        inputs, shapes=tuple(shape for _, *shape in inputs["matrices"]), steps=inputs["steps"]
    ),
    dtype_from="grad",
    part="weights",
    repeats=lambda case: dict.fromkeys(("_gram", "_poly", "_apply"), case.steps),
    mutates=("value", "grad", "buffer", "compute", "slow"),
    reduction=lambda case: max(max(shape) for shape in case.shapes),
    compiled={"warm": (False, True)},
    narrow={"p_partial": "two numbers a program"},
    shared_reads=("_gram", "_poly", "_apply"),
)
