"""What a sweep says it found: table, tests and verdict."""

import re

import pytest
from rich.console import Console

from hlb.study import findings, grid
from hlb.study.compare import Sample


def found(*groups: list[float], failed=0, seconds=None) -> findings.SweepResult:
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
    content = found(SPREAD, moved(0.01), moved(-0.01), moved(0.0001), seconds=[3, 2, 4, 3])
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
    alone, among = found(SPREAD, moved(0.003)), found(SPREAD, moved(0.003), *[moved(0.0)] * 9)
    p = alone.tests["accuracy"][0]["p"]
    assert 0.005 < p < 0.05
    assert among.tests["accuracy"][0]["p"] == pytest.approx(10 * p)
    assert "more accurate" in alone.verdict
    assert among.verdict == "No configuration can be told from lr=0.1 at 5 %."


def test_one_run_of_each_says_that_there_is_no_interval_and_no_test():
    content = found([0.94], [0.95])
    assert content.verdict.startswith("No difference could be tested. Fewer than two runs")
    assert "not tested" in printed(content) and ".." not in printed(content)


def test_failed_runs_are_counted_and_named():
    content = found(SPREAD, SPREAD, failed=3)
    assert re.search(r"^lr=0.2 +4 +3 ", printed(content), re.MULTILINE)
    assert "3 of 7 runs of lr=0.2 failed." in content.verdict


def test_configuration_whose_runs_all_failed_is_not_tested():
    content = found(SPREAD, [], failed=2)
    assert "not tested" in printed(content) and "no test: lr=0.2" in content.verdict


@pytest.mark.parametrize("width", [40, 80, 100])
def test_table_is_whole_on_a_terminal_of_any_width(width):
    text = printed(found(SPREAD, moved(0.01), seconds=[1076, 1190]), width)
    assert "…" not in text and "distinguishable" not in text
    assert "1077.0 .. 1077.0" in text and "faster" not in text and "slower" in text
    rows = [row for row in text.splitlines() if row.startswith(("lr=", "configuration"))]
    assert max(map(len, rows)) <= max(width, 80)


def test_runs_of_several_devices_are_warned_of():
    content = found(SPREAD, SPREAD)
    content.samples[1].records[0]["device_name"] = "other"
    assert "several devices" in printed(content)
