"""Counter-based random numbers: Philox4x32-10.

    (r0, r1, r2, r3) = philox(key = seed, counter = (c0, c1, c2, c3)),   each r an unsigned 32-bit integer

A draw is a pure function of its key and counter, so it depends neither on the order in which numbers are
asked for, nor on the batch split, nor on the device. Throughout the project the key is the run's seed and
the counter is (id, epoch, stream, block): the image or element, the epoch (or the tensor, for
initialisation), one of the streams below, and a block number for whoever needs more than four draws.

Unsigned 32-bit values are held in int64 tensors. The 32 x 32 -> 64 bit product wraps in int64, which leaves
its bits right: the low half by a mask, the high half by a shift and a mask.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
"""

from __future__ import annotations

import torch
from torch import Tensor

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
    blocks = torch.arange((numel + 3) // 4, dtype=torch.int64, device=seed.device)
    return unit(torch.stack(philox(seed, blocks, tensor_index, INIT), dim=1)).flatten()[:numel]


def permutation(seed: Tensor, epoch: Tensor | int, n: int) -> Tensor:
    """The order of an epoch: the stable argsort of one draw per example; int64 [n], on the device of
    `seed`.
    """
    ids = torch.arange(n, dtype=torch.int64, device=seed.device)
    return philox(seed, ids, epoch, ORDER)[0].argsort(stable=True)
