"""What tells two groups of runs apart."""

import math
import statistics as stdlib
import warnings

import pytest
from scipy import stats

from hlb.runs.statistics import holm, runs_needed, welch

# An example of unequal variances that textbooks print with t = -2.46, 25 degrees of freedom, p = 0.021.
ONE = [27.5, 21.0, 19.0, 23.6, 17.0, 17.9, 16.9, 20.1, 21.9, 22.6, 23.1, 19.6, 19.0, 21.7, 21.4]
OTHER = [27.1, 22.0, 20.8, 23.4, 23.4, 23.5, 25.8, 22.0, 24.8, 20.2, 21.9, 22.1, 22.9, 20.5, 24.4]


def test_welch_gives_the_printed_p_of_a_textbook_example():
    assert welch(ONE, OTHER)["p"] == pytest.approx(0.021, abs=5e-4)


@pytest.mark.parametrize("a, b", [(ONE, OTHER), ([1, 2, 3, 4], [2, 4, 6, 8, 10]), ([1, 1, 1], [1, 2, 4])])
def test_welch_agrees_with_the_formula_by_hand(a, b):
    squares = [stdlib.variance(values) / len(values) for values in (a, b)]
    error = math.sqrt(sum(squares))
    degrees = error**4 / sum(s**2 / (len(values) - 1) for s, values in zip(squares, (a, b)))
    difference, half = stdlib.mean(b) - stdlib.mean(a), stats.t.ppf(0.975, degrees) * error
    assert welch(a, b) == {
        "difference": pytest.approx(difference),
        "ci95": pytest.approx([difference - half, difference + half]),
        "p": pytest.approx(2 * stats.t.sf(abs(difference) / error, degrees)),
    }


def test_welch_is_positive_where_the_second_group_is_higher_and_turns_with_the_groups():
    there, back = welch(ONE, OTHER), welch(OTHER, ONE)
    assert there["difference"] > 0 and there["ci95"][0] > 0
    assert back["difference"] == -there["difference"] and back["p"] == pytest.approx(there["p"])


@pytest.mark.parametrize(
    "a, b, difference",
    [([], [1, 2], None), ([1, 2], [], None), ([1], [2, 4], 2), ([1, 2], [4], 2.5), ([2, 2], [3, 3, 3], 1)],
)
def test_welch_of_too_few_values_or_of_no_spread_tests_nothing(a, b, difference):
    assert welch(a, b) == {"difference": difference, "ci95": None, "p": None}


def test_welch_with_one_constant_group_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert 0 < welch([0.1, 0.1, 0.1], [0.1, 0.2, 0.3])["p"] < 1


@pytest.mark.parametrize(
    "ps, adjusted",
    [
        (
            [0.01, 0.04, 0.03, 0.005],
            [0.03, 0.06, 0.06, 0.02],
        ),  # 3, 1, 2 and 4 times, never below a smaller one's
        ([0.04], [0.04]),
        ([0.5, 0.9, 0.6], [1, 1, 1]),
        ([], []),
    ],
)
def test_holm_of_numbers_by_hand(ps, adjusted):
    assert holm(ps) == pytest.approx(adjusted)


@pytest.mark.parametrize("effect, runs", [(0.2, 394), (0.5, 64), (0.8, 26)])
def test_runs_needed_are_cohens_for_small_medium_and_large_effects(effect, runs):
    assert runs_needed(1, 1, effect) == runs_needed(0.13, 0.13, 0.13 * effect) == runs


def test_runs_needed_give_that_power_where_spreads_differ():
    n = runs_needed(1, 3, 2)
    error = math.sqrt((1 + 9) / n)
    degrees = error**4 / ((1 / n) ** 2 / (n - 1) + (9 / n) ** 2 / (n - 1))
    power = stats.nct.sf(stats.t.ppf(0.975, degrees), degrees, 2 / error)
    assert power == pytest.approx(0.8, abs=0.02)


def test_at_least_two_runs_are_needed():
    assert runs_needed(1e-6, 1e-6, 1) == 2
