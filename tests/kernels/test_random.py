from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from kernels import random
from kernels.base import launch

MASK = 2**32 - 1
SEED = torch.tensor(1234567890123)
WORD = st.integers(0, MASK)

interpreted = pytest.mark.skipif(not launch.runnable("cpu"), reason="needs Triton's interpreter")


def plain(seed: int, counter: tuple[int, int, int, int]) -> list[int]:
    """Philox4x32-10 in Python's integers."""
    k0, k1 = seed & MASK, seed >> 32 & MASK
    c0, c1, c2, c3 = counter
    for _ in range(10):
        a, b = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = b >> 32 ^ c1 ^ k0, b & MASK, a >> 32 ^ c3 ^ k1, a & MASK
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return [c0, c1, c2, c3]


def philox(seed: int, counter: tuple[int, int, int, int]) -> list[int]:
    return [int(draw) for draw in random.philox(torch.tensor(seed), *(torch.tensor(c) for c in counter))]


@pytest.mark.parametrize(
    "seed, counter, expected",
    [
        (0, (0, 0, 0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        (-1, (MASK, MASK, MASK, MASK), [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            0x299F31D0A4093822,
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_gives_the_known_answers_of_random123(seed, counter, expected):
    assert philox(seed, counter) == expected


@given(st.integers(-(2**63), 2**63 - 1), st.tuples(WORD, WORD, WORD, WORD))
def test_philox_equals_python_integers(seed, counter):
    assert philox(seed, counter) == plain(seed, counter)


def test_philox_broadcasts_the_counter():
    draws = random.philox(SEED, torch.arange(3)[:, None], torch.arange(2), 5)
    assert [[[int(d[i, j]) for d in draws] for j in range(2)] for i in range(3)] == [
        [plain(int(SEED), (i, j, 5, 0)) for j in range(2)] for i in range(3)
    ]


def test_a_draw_depends_on_its_counter_not_on_its_batch():
    ids = torch.randperm(1000)
    whole = torch.stack(random.philox(SEED, torch.arange(1000), 3, random.AUGMENT))
    parts = [torch.stack(random.philox(SEED, part, 3, random.AUGMENT)) for part in ids.split(130)]
    assert torch.equal(torch.cat(parts, dim=1), whole[:, ids])


def test_streams_are_distinct():
    assert len({random.INIT, random.ORDER, random.AUGMENT, random.DATA}) == 4


@pytest.mark.parametrize("n", [1, 2, 5, 7, 81, 2**20 + 7])
def test_below_splits_the_draws_evenly(n):
    k = torch.arange(1, n, max(1, n // 1000))
    edge = -(-k * 2**32 // n)  # the first draw of each value: the values' shares differ by one draw at most
    assert torch.equal(random.below(edge, n), k)
    assert torch.equal(random.below(edge - 1, n), k - 1)
    assert random.below(torch.tensor([0, MASK]), n).tolist() == [0, n - 1]


@pytest.mark.parametrize("word", range(4))
def test_draws_below_n_are_uniform(word):
    values = random.below(random.philox(SEED, torch.arange(20000))[word], 7)
    assert stats.chisquare(values.bincount(minlength=7)).pvalue > 1e-3


def test_unit_stays_below_one():
    assert random.unit(torch.tensor([0, 255, 256, MASK])).tolist() == [0, 0, 2**-24, 1 - 2**-24]


def test_uniform_values_are_the_draws_of_their_blocks():
    blocks = [plain(int(SEED), (block, 4, random.INIT, 0)) for block in range(3)]
    expected = [(draw >> 8) / 2**24 for block in blocks for draw in block]
    assert random.reference(SEED, 4, 10).tolist() == expected[:10]


@pytest.mark.skipif(not launch.runnable("cpu"), reason="kernels do not run on a CPU here")
@pytest.mark.parametrize("seed", [0, -1, 1234567890123, -(2**63)])
@pytest.mark.parametrize("numel", [1, 1023, 1025])
def test_uniform_kernel_gives_the_bits_of_the_reference(seed, numel):
    seed = torch.tensor(seed)
    assert torch.equal(random.op(seed, 7, numel), random.reference(seed, 7, numel))


@pytest.mark.parametrize("draw", [random.reference, random.normal])
def test_a_shorter_tensor_holds_the_first_values_of_a_longer_one(draw):
    assert torch.equal(draw(SEED, 1, 5), draw(SEED, 1, 100)[:5])


def test_normal_values_are_those_of_box_and_muller():
    u = random.reference(SEED, 4, 10).tolist()
    values = random.normal(SEED, 4, 10).tolist()
    for i in range(0, 10, 2):
        radius = math.sqrt(-2 * math.log(1 - u[i]))
        angle = 2 * math.pi * u[i + 1]
        assert values[i : i + 2] == pytest.approx((radius * math.cos(angle), radius * math.sin(angle)))


def test_normal_values_are_distributed_normally():
    values = random.normal(SEED, 0, 20000)
    assert stats.kstest(values.numpy(), "norm").pvalue > 1e-3
    assert abs(stats.pearsonr(values[::2].numpy(), values[1::2].numpy()).statistic) < 0.03


def test_permutation_holds_every_example_once():
    order = random.permutation(SEED, 0, 1000)
    assert torch.equal(order.sort().values, torch.arange(1000))


@pytest.mark.parametrize("epoch", [2, torch.tensor(2)])
def test_permutation_sorts_the_examples_by_their_draws(epoch):
    draws = [plain(int(SEED), (i, 2, random.ORDER, 0))[0] for i in range(200)]
    assert random.permutation(SEED, epoch, 200).tolist() == sorted(range(200), key=draws.__getitem__)


@pytest.mark.parametrize(
    "permutation", [random.permutation, pytest.param(random.permutation_op, marks=interpreted)]
)
def test_permutation_keeps_tied_examples_in_order(permutation):
    order = permutation(SEED, 0, 200_000)
    draws = random.philox(SEED, order, 0, random.ORDER)[0]
    tied = draws.diff() == 0
    assert tied.any()
    assert (order.diff()[tied] > 0).all()


@pytest.mark.parametrize("seed, epoch", [(1, 0), (0, 1), (2**32, 0)])
def test_permutation_differs_by_seed_and_epoch(seed, epoch):
    first = random.permutation(torch.tensor(0), 0, 1000)
    assert (random.permutation(torch.tensor(seed), epoch, 1000) == first).sum() < 10  # about one by chance


@pytest.mark.parametrize("draw", [random.permutation, random.reference, random.normal])
def test_manual_seed_decides_nothing(draw):
    torch.manual_seed(1)
    first = draw(SEED, 0, 100)
    torch.manual_seed(2)
    assert torch.equal(draw(SEED, 0, 100), first)


@interpreted
@pytest.mark.parametrize("epoch", [3, torch.tensor(3), torch.tensor(2**32 - 1)])
def test_permutation_of_the_kernel_is_the_same_by_one_launch_and_a_sort(epoch):
    assert torch.equal(random.permutation_op(SEED, epoch, 5000), random.permutation(SEED, epoch, 5000))
    with launch.recording() as launched:
        random.permutation_op(SEED, epoch, 5000)
    assert [one.name for one in launched] == ["_permutation_keys"]
