"""Counter-based random numbers: Philox4x32-10.

    (r0, r1, r2, r3) = philox(key = seed, counter = (c0, c1, c2, c3)),   each r an unsigned 32-bit integer

A draw is a pure function of its key and counter, so it depends neither on the order in which numbers are
asked for, nor on the batch split, nor on the device. Throughout the project the key is the run's seed and
the counter is (id, epoch, stream, block): the image or element, the epoch (or the tensor, for
initialisation), one of the streams below, and a block number for whoever needs more than four draws.

    uniform[4 b + i] = u_i = (r_i >> 8) / 2^24           with r the draws of counter (b, tensor, INIT, 0)
    normal[4 b + i]: (u_0, u_1) -> sqrt(-2 log(1 - u_0)) * (cos, sin)(2 pi u_1), and so (u_2, u_3)
    permutation = stable argsort of r_0 of counters (id, epoch, ORDER, 0)

In torch, unsigned 32-bit values are held in int64 tensors. The 32 x 32 -> 64 bit product wraps in int64,
which leaves its bits right: the low half by a mask, the high half by a shift and a mask. Kernels compute in
uint32, with the same bits.

Bytes: 4 per value, written; a permutation's sort is PyTorch's, and not counted.
Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011); Box, Muller, "A
note on the generation of random normal deviates" (1958).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .base.launch import cdiv, expect, launch, register, tl, triton
from .base.spec import Case, KernelSpec

INIT, ORDER, AUGMENT, DATA = range(4)  # streams

_MASK = 0xFFFFFFFF
_ROUND_A, _ROUND_B = 0xD2511F53, 0xCD9E8D57
_KEY_A, _KEY_B = 0x9E3779B9, 0xBB67AE85


def philox(
    seed: Tensor,
    c0: Tensor,
    c1: Tensor | int = 0,
    c2: Tensor | int = 0,
    c3: Tensor | int = 0,
    rounds: int = 10,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four draws in [0, 2**32) per counter.

    `seed`: int64 scalar tensor, its two halves are the key. `c0`: int64 tensor of any shape; the other words
    broadcast against it. Returns four int64 tensors of that shape, on the device of `c0`.
    """
    k0, k1 = seed & _MASK, (seed >> 32) & _MASK
    for _ in range(rounds):
        a, b = c0 * _ROUND_A, c2 * _ROUND_B
        c0, c1, c2, c3 = ((b >> 32) & _MASK) ^ c1 ^ k0, b & _MASK, ((a >> 32) & _MASK) ^ c3 ^ k1, a & _MASK
        k0, k1 = (k0 + _KEY_A) & _MASK, (k1 + _KEY_B) & _MASK
    return tuple(torch.broadcast_tensors(c0, c1, c2, c3))


def below(draw: Tensor, n: int) -> Tensor:
    """A draw in [0, 2**32) -> an integer in [0, n), by multiply-high: no modulo, bias below n / 2**32."""
    return (draw * n) >> 32


def unit(draw: Tensor) -> Tensor:
    """A draw in [0, 2**32) -> float32 in [0, 1): the upper 24 bits, so that every value is exact."""
    return (draw >> 8).to(torch.float32) * 2.0**-24


def reference(seed: Tensor, tensor_index: int, numel: int) -> Tensor:
    """`numel` float32 values uniform in [0, 1) for initialising tensor number `tensor_index`; shape
    [numel].
    """
    return unit(_draws(seed, tensor_index, numel)).flatten()[:numel]


def normal(seed: Tensor, tensor_index: int, numel: int) -> Tensor:
    """`numel` float32 values of the standard normal distribution, from the draws of `reference`; [numel]."""
    u = unit(_draws(seed, tensor_index, numel)).double().view(-1, 2)
    radius, angle = (-2 * torch.log1p(-u[:, 0])).sqrt(), 2 * torch.pi * u[:, 1]
    return torch.stack((radius * angle.cos(), radius * angle.sin()), dim=1).float().flatten()[:numel]


def _draws(seed: Tensor, tensor_index: int, numel: int) -> Tensor:
    """Enough draws for `numel` values, int64 [blocks, 4]."""
    blocks = torch.arange(cdiv(numel, 4), dtype=torch.int64, device=seed.device)
    return torch.stack(philox(seed, blocks, tensor_index, INIT), dim=1)


def permutation(seed: Tensor, epoch: Tensor | int, n: int) -> Tensor:
    """The order of an epoch: the stable argsort of one draw per example; int64 [n], on the device of
    `seed`.
    """
    ids = torch.arange(n, dtype=torch.int64, device=seed.device)
    return philox(seed, ids, epoch, ORDER)[0].argsort(stable=True)


@triton.jit
def _philox(seed, c0, c1, c2, c3):
    """`philox` in a kernel: int64 scalar seed, integers or integer blocks of one shape -> four uint32."""
    return tl.philox(
        seed, tl.cast(c0, tl.uint32), tl.cast(c1, tl.uint32), tl.cast(c2, tl.uint32), tl.cast(c3, tl.uint32)
    )


@triton.jit
def _below(draw, n):
    """`below` in a kernel: uint32 -> int32."""
    return tl.umulhi(draw, tl.cast(n, tl.uint32)).to(tl.int32)


@triton.jit
def _unit(draw):
    """`unit` in a kernel: uint32 -> float32."""
    return (draw >> 8).to(tl.float32) * 5.9604644775390625e-08  # 2 ** -24


@triton.jit
def _in_order(r0, r1, r2, r3, BLOCK: tl.constexpr):
    """Four blocks [BLOCK] -> [4 * BLOCK]: all values of the first counter, then those of the next."""
    return tl.reshape(tl.join(tl.join(r0, r2), tl.join(r1, r3)), [4 * BLOCK])


@triton.jit
def _block(p_seed, tensor_index, STREAM: tl.constexpr, BLOCK: tl.constexpr):
    """The draws of a program's BLOCK counters."""
    counter = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    return _philox(tl.load(p_seed), counter, tensor_index, STREAM, 0)


@triton.jit
def _uniform(
    p_seed,  # int64 scalar
    p_out,  # float32 [numel]
    tensor_index,
    numel,
    STREAM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    r0, r1, r2, r3 = _block(p_seed, tensor_index, STREAM, BLOCK)  # [BLOCK] each
    out = _in_order(_unit(r0), _unit(r1), _unit(r2), _unit(r3), BLOCK)
    o_all = tl.program_id(0) * 4 * BLOCK + tl.arange(0, 4 * BLOCK)
    tl.store(p_out + o_all, out, mask=o_all < numel)


@triton.jit
def _pair(r0, r1):
    """Two draws -> two normal values."""
    u = _unit(r0)
    # log1p(-u): the logarithm's error is absolute near 1, and the root would make it large
    near = u * (1.0 + u * (1 / 2 + u * (1 / 3 + u * (1 / 4 + u * (1 / 5 + u * (1 / 6))))))
    radius = tl.sqrt(2.0 * tl.where(u < 0.05, near, -tl.log(1.0 - u)))
    # The nearest multiple of a quarter turn is taken off exactly; what is left, at most pi / 4, by series.
    turn = (r1 >> 8).to(tl.int32)  # of 2 ** 24
    quarter = (turn + (1 << 21)) >> 22
    x = (turn - (quarter << 22)).to(tl.float32) * 3.7450702829239286e-07  # 2 pi / 2 ** 24
    y = x * x
    sine = x * (1.0 - y / 6 * (1.0 - y / 20 * (1.0 - y / 42 * (1.0 - y / 72 * (1.0 - y / 110)))))
    cosine = 1.0 - y / 2 * (1.0 - y / 12 * (1.0 - y / 30 * (1.0 - y / 56 * (1.0 - y / 90))))
    odd = (quarter & 1) == 1
    first, second = tl.where(odd, sine, cosine), tl.where(odd, cosine, sine)
    first = tl.where(((quarter + 1) & 2) == 2, -first, first)
    second = tl.where((quarter & 2) == 2, -second, second)
    return radius * first, radius * second


@triton.jit
def _normal(
    p_seed,  # int64 scalar
    p_out,  # float32 [numel]
    tensor_index,
    numel,
    STREAM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    r0, r1, r2, r3 = _block(p_seed, tensor_index, STREAM, BLOCK)  # [BLOCK] each
    n0, n1 = _pair(r0, r1)
    n2, n3 = _pair(r2, r3)
    out = _in_order(n0, n1, n2, n3, BLOCK)
    o_all = tl.program_id(0) * 4 * BLOCK + tl.arange(0, 4 * BLOCK)
    tl.store(p_out + o_all, out, mask=o_all < numel)


@triton.jit
def _permutation_keys(
    p_seed,  # int64 scalar
    p_epoch,  # int64 scalar
    p_keys,  # int32 [n]
    n,
    STREAM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    ids = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    draw, _, _, _ = _philox(tl.load(p_seed), ids, tl.load(p_epoch), STREAM, 0)
    # With its first bit turned round, a draw is in the same order as a signed number.
    tl.store(p_keys + ids, (draw ^ 0x80000000).to(tl.int32, bitcast=True), mask=ids < n)


BLOCK = 256  # counters of a program


def _fill(kernel, seed: Tensor, tensor_index: int, numel: int) -> Tensor:
    out = seed.new_empty(numel, dtype=torch.float32)
    if numel:
        constants = {"STREAM": INIT, "BLOCK": BLOCK}
        launch(kernel, (cdiv(numel, 4 * BLOCK),), seed, out, tensor_index, numel, **constants)
    return out


@register("hlb::uniform")
def _uniform_op(seed: Tensor, tensor_index: int, numel: int) -> Tensor:
    return _fill(_uniform, seed, tensor_index, numel)


@register("hlb::normal")
def _normal_op(seed: Tensor, tensor_index: int, numel: int) -> Tensor:
    return _fill(_normal, seed, tensor_index, numel)


@_uniform_op.register_fake
@_normal_op.register_fake
def _(seed, tensor_index, numel):
    return seed.new_empty(numel, dtype=torch.float32)


@register("hlb::permutation_keys")
def _keys(seed: Tensor, epoch: Tensor, n: int) -> Tensor:
    """int32 [n], in the order of the draws of `permutation`."""
    keys = seed.new_empty(n, dtype=torch.int32)
    if n:
        constants = {"STREAM": ORDER, "BLOCK": BLOCK}
        grid = (cdiv(n, BLOCK),)
        launch(_permutation_keys, grid, seed, epoch, keys, n, **constants, num_warps=2)  # 16 bytes a thread
    return keys


@_keys.register_fake
def _(seed, epoch, n):
    return seed.new_empty(n, dtype=torch.int32)


def permutation_op(seed: Tensor, epoch: Tensor | int, n: int) -> Tensor:
    """As `permutation`, exactly: keys of 32 bits in one launch, and their sort. Raises ValueError for a wrong
    shape, dtype or device, or a number out of range, naming the argument.
    """
    expect("seed", seed, dtypes=(torch.int64,))
    if not isinstance(epoch, Tensor):
        epoch = torch.full_like(seed, epoch)
    expect("epoch", epoch, dtypes=(torch.int64,), device=seed.device)
    if not 0 <= n < 2**31:
        raise ValueError(f"n: got {n}, accepted is 0 to 2**31 - 1")
    return _keys(seed, epoch, n).argsort(stable=True)


def op(seed: Tensor, tensor_index: int, numel: int) -> Tensor:
    """As `reference`, bit for bit. Raises ValueError for a wrong shape, dtype or device, or a number out of
    range, naming the argument.
    """
    _check(seed, tensor_index, numel)
    return _uniform_op(seed, tensor_index, numel)


def normal_op(seed: Tensor, tensor_index: int, numel: int) -> Tensor:
    """As `normal`, to rounding. Raises ValueError as `op`."""
    _check(seed, tensor_index, numel)
    return _normal_op(seed, tensor_index, numel)


def _check(seed: Tensor, tensor_index: int, numel: int) -> None:
    expect("seed", seed, dtypes=(torch.int64,))
    if not 0 <= numel < 2**31:
        raise ValueError(f"numel: got {numel}, accepted is 0 to 2**31 - 1")
    if not 0 <= tensor_index < 2**31:
        raise ValueError(f"tensor_index: got {tensor_index}, accepted is 0 to 2**31 - 1")


def _make_seed(device) -> Tensor:
    return torch.randint(-(2**63), 2**63 - 1, (), dtype=torch.int64, device=device)


def _make(case: Case, dtype: torch.dtype, device) -> dict:
    return {"seed": _make_seed(device), "tensor_index": case.tensor_index, "numel": case.numel}


def _make_order(case: Case, dtype: torch.dtype, device) -> dict:
    epoch = torch.tensor(case.epoch, dtype=torch.int64, device=device)
    return {"seed": _make_seed(device), "epoch": epoch, "n": case.n}


_SHARED = {
    "make": _make,
    "cases": (
        Case("record94", tensor_index=0, numel=1_970_176),
        Case("record94.biases", tensor_index=1, numel=1_216),
        Case("seed", tensor_index=0, numel=6_565_248),
        Case("seed.biases", tensor_index=1, numel=3_008),
    ),
    "space": {"tensor_index": (0, 1, 77), "numel": (1, 2, 7, 1024, 2051)},
    "counted": (Case(tensor_index=3, numel=4096),),
    "case_of": lambda inputs: Case(numel=inputs["numel"]),
    "part": "weights",
    "dtypes": (torch.float32,),
}
SPEC = KernelSpec(
    name="uniform",
    formula="u[4 b + i] = (philox(seed, (b, tensor, INIT, 0))[i] >> 8) / 2^24",
    fuses="all Philox rounds and the cast",
    reference=reference,
    op=op,
    ops=("hlb::uniform",),
    bytes=lambda case, dtype: {"_uniform": 4 * case.numel},
    **_SHARED,
)
NORMAL_SPEC = KernelSpec(
    name="normal",
    formula="sqrt(-2 log(1 - u0)) * (cos, sin)(2 pi u1) of the draws of uniform",
    fuses="all Philox rounds, the cast and Box-Muller",
    reference=normal,
    op=normal_op,
    ops=("hlb::normal",),
    bytes=lambda case, dtype: {"_normal": 4 * case.numel},
    **_SHARED,
)
PERMUTATION_SPEC = KernelSpec(
    name="permutation",
    formula="stable argsort of philox(seed, (id, epoch, ORDER, 0))[0]",
    fuses="all Philox rounds; not the sort",
    reference=permutation,
    op=permutation_op,
    ops=("hlb::permutation_keys",),
    make=_make_order,
    cases=(
        Case("record94", n=50_000, epoch=0),
        Case("record94 at 60 %", n=29_184, epoch=5),  # the hard images of its later rounds
        Case("smoke", n=10_000, epoch=0),
    ),
    space={"n": (1, 2, 255, 257, 2051), "epoch": (0, 1, 77)},
    counted=(Case(n=4096, epoch=3),),
    bytes=lambda case, dtype: {"_permutation_keys": 4 * case.n},
    case_of=lambda inputs: Case(n=inputs["n"]),
    part="order",
    dtypes=(torch.float32,),
)
