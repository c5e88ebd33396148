"""What tells groups of runs apart, and the table, tests and verdict of a sweep."""

import math
import re
import statistics as stdlib
import warnings

import pytest
from rich.console import Console
from scipy import stats

from hlb.runs.statistics import holm, quantile, runs_needed, welch
from hlb.study import findings, grid
from hlb.study.compare import Sample

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


def test_quantile_is_that_of_students_t_for_fractional_degrees_too():
    assert quantile(0.975, 9) == pytest.approx(2.262157, abs=1e-6)  # as tables have it
    assert quantile(0.975, 9) > quantile(0.975, 9.5) > quantile(0.975, 10)
    assert quantile(0.2, 4.5) == pytest.approx(-quantile(0.8, 4.5))


def swept(*groups: list[float], failed=0, seconds=None) -> findings.SweepResult:
    """A sweep with these accuracies of rates 0.1, 0.2, ..., and as many failed runs of the last."""
    configurations = grid.grid("smoke", ["lr=" + ",".join(f"{(i + 1) / 10}" for i in range(len(groups)))])
    samples = []
    for i, accuracies in enumerate(groups):
        times = {"train_seconds": (seconds or [3.0] * len(groups))[i], "device_name": "chip"}
        records = [
            {"status": "ok", "accuracy": accuracy, "eval_seconds": 1 + k / 100, **times}
            for k, accuracy in enumerate(accuracies)
        ]
        records += [{"status": "failed", "accuracy": None, **times}] * failed * (i == len(groups) - 1)
        samples.append(Sample(configurations[i].name, records))
    return findings.SweepResult(configurations, samples, len(groups[0]), "cifar10", "runs.jsonl")


def printed(content: findings.SweepResult, width=100) -> str:
    console = Console(width=width)
    with console.capture() as capture:
        findings.report(console, content)
    return capture.get()


SPREAD = [0.939, 0.940, 0.941, 0.942]


def moved(by: float) -> list[float]:
    return [value + by for value in SPREAD]


def test_report_names_what_is_higher_lower_faster_and_slower_and_what_is_not_distinguishable():
    content = swept(SPREAD, moved(0.01), moved(-0.01), moved(0.0001), seconds=[3, 2, 4, 3])
    text = printed(content)
    words = {
        row.split()[0]: row for row in text.split("against lr=0.1")[1].splitlines() if row.startswith("lr=")
    }
    assert re.search(r"\+1.000 +<0.001 +higher +-24.\d\d +<0.001 +faster", words["lr=0.2"])
    assert re.search(r"-1.000 +<0.001 +lower +\+24.\d\d +<0.001 +slower", words["lr=0.3"])
    assert words["lr=0.4"].count("not distinguishable") == 2
    assert "lr=0.2 is more accurate by 1.000 points and faster by" in content.verdict
    assert "lr=0.3 is less accurate by 1.000 points and slower by" in content.verdict
    assert "lr=0.4" not in content.verdict


def test_comparisons_are_corrected_for_their_number():
    alone, among = swept(SPREAD, moved(0.003)), swept(SPREAD, moved(0.003), *[moved(0.0)] * 9)
    p = alone.tests["accuracy"][0]["p"]
    assert 0.005 < p < 0.05
    assert among.tests["accuracy"][0]["p"] == pytest.approx(10 * p)
    assert "more accurate" in alone.verdict
    assert among.verdict == "No configuration can be told from lr=0.1 at 5 %."


def test_one_run_of_each_says_that_there_is_no_interval_and_no_test():
    content = swept([0.94], [0.95])
    assert content.verdict.startswith("No difference could be tested. Fewer than two runs")
    assert "not tested" in printed(content) and ".." not in printed(content)


def test_failed_runs_are_counted_and_named():
    content = swept(SPREAD, SPREAD, failed=3)
    assert re.search(r"^lr=0.2 +4 +3 ", printed(content), re.MULTILINE)
    assert "3 of 7 runs of lr=0.2 failed." in content.verdict


def test_configuration_whose_runs_all_failed_is_not_tested():
    content = swept(SPREAD, [], failed=2)
    assert "not tested" in printed(content) and "no test: lr=0.2" in content.verdict


@pytest.mark.parametrize("width", [40, 80, 100])
def test_table_is_whole_on_a_terminal_of_any_width(width):
    text = printed(swept(SPREAD, moved(0.01), seconds=[1076, 1190]), width)
    assert "…" not in text and "distinguishable" not in text
    assert "1077.0 .. 1077.0" in text and "faster" not in text and "slower" in text
    rows = [row for row in text.splitlines() if row.startswith(("lr=", "configuration"))]
    assert max(map(len, rows)) <= max(width, 80)


def test_runs_of_several_devices_are_warned_of():
    content = swept(SPREAD, SPREAD)
    content.samples[1].records[0]["device_name"] = "other"
    assert "several devices" in printed(content)
