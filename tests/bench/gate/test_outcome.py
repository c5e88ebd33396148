"""What a gate found, as a table, as JUnit XML and as Markdown."""

from xml.etree import ElementTree

import pytest
from rich.console import Console

from bench.gate.outcome import Outcome, junit, markdown, show, write_files

FINE = Outcome("sgd forward", False, {"us": "1.00", "again": ""})
RED = Outcome("muon forward", True, {"us": "9.00", "again": "16"}, "slower by 5 %", "slow")
NEW = Outcome("views forward", False, {"us": "2.00"}, "not in the baseline", "new")


def shown(outcomes: list[Outcome], width: int = 100) -> str:
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        show(console, outcomes)
    return capture.get()


def test_table_has_a_row_each_with_its_state_and_says_below_what_there_is_to_say():
    lines = [line.split() for line in shown([FINE, RED, NEW]).splitlines()]
    assert lines[0] == ["us", "again"]
    assert lines[1:4] == [
        ["sgd", "forward", "1.00", "ok"],
        ["muon", "forward", "9.00", "16", "RED", "slow"],
        ["views", "forward", "2.00", "new"],
    ]
    assert [" ".join(words) for words in lines[4:]] == [
        "RED muon forward: slower by 5 %",
        "views forward: not in the baseline",
    ]


def test_narrow_table_folds_names_and_keeps_every_number():
    text = shown([Outcome("a name of rather many words", False, {"us": "123456.78", "ratio": "1.001"})], 34)
    assert "123456.78" in text and "1.001" in text and "ok" in text and "…" not in text
    assert max(map(len, text.splitlines())) <= 34


def test_junit_counts_failures_and_says_why():
    suite = ElementTree.fromstring(junit("Gate", [FINE, RED, NEW])).find("testsuite")
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("3", "1", "0")
    assert [case.get("name") for case in suite] == ["sgd forward", "muon forward", "views forward"]
    failures = {case.get("name"): case.find("failure") for case in suite}
    assert failures["muon forward"].get("message") == "slower by 5 %"
    assert failures["sgd forward"] is None and failures["views forward"] is None
    assert "us: 9.00" in suite[1].find("system-out").text


@pytest.mark.parametrize(
    "message", ['a < b & "c"', "\x1b[31mptxas\x1b[0m \x00 failed", "\ud800 alone", "µs | 中"]
)
def test_junit_is_xml_whatever_a_message_holds(message, tmp_path):
    write_files("Gate", "red", [Outcome("x", True, {}, message)], tmp_path / "out.xml", None)
    assert ElementTree.parse(tmp_path / "out.xml").find(".//failure").get("message")


def test_markdown_puts_red_first_and_escapes_what_would_end_a_cell():
    lines = markdown(
        "Gate", "RED: of 3 1 slow", [FINE, Outcome("a|b", True, {"us": "1"}, "c|d", "slow")]
    ).splitlines()
    assert lines[:3] == ["## Gate", "", "RED: of 3 1 slow"]
    assert lines[6] == "| `a\\|b` | 1 |  | **RED slow** c\\|d |"
    assert lines[7].startswith("| `sgd forward` | 1.00 |")
    assert lines[5] == "|--|--:|--:|--|"


def test_summary_is_appended_to_what_other_steps_wrote(tmp_path):
    path = tmp_path / "summary.md"
    path.write_text("earlier\n")
    write_files("Gate", "green", [FINE], None, path)
    write_files("Gate", "green", [FINE], None, path)
    assert path.read_text().startswith("earlier\n## Gate") and path.read_text().count("## Gate") == 2
