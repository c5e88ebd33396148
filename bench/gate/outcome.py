"""What a gate found: as a table, as JUnit XML, and as Markdown for the step summary of a GitHub job."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hlb.files import atomic

from ..report import markdown as tables

ILLEGAL = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # in XML, even escaped


@dataclass(frozen=True)
class Outcome:
    """What was found of one thing that a gate looks at. `name` is unique in a gate; `cells` are what a table
    shows of it, heading -> text; `message` is a line that says why it is red, or what else is worth saying;
    `state` is a word for how it is, where that is more than red or not.
    """

    name: str
    red: bool
    cells: dict[str, str] = field(default_factory=dict)
    message: str = ""
    state: str = ""

    @property
    def word(self) -> str:
        """How it is, in a table."""
        return f"RED {self.state}".strip() if self.red else self.state or "ok"


def show(console: Console, outcomes: Sequence[Outcome]) -> None:
    """A row each, numbers to the right, and below it a line for each message."""
    headings = list(dict.fromkeys(heading for outcome in outcomes for heading in outcome.cells))
    table = Table(box=None, pad_edge=False)
    for heading in ("", *headings, " "):
        justify = "right" if heading in headings else "left"
        table.add_column(heading, justify=justify, no_wrap=bool(heading))  # a narrow screen folds names
    for outcome in outcomes:
        cells = (escape(outcome.cells.get(heading, "")) for heading in headings)
        table.add_row(escape(outcome.name), *cells, f"[{colour(outcome)}]{escape(outcome.word)}[/]")
    console.print(table)
    for outcome in outcomes:
        if outcome.message:
            said = f"{'RED ' if outcome.red else ''}{outcome.name}: {outcome.message}"
            console.print(said, markup=False, highlight=False, soft_wrap=True)


def colour(outcome: Outcome) -> str:
    if outcome.red:
        return "red"
    return "green" if outcome.word == "ok" else "yellow"


def junit(suite: str, outcomes: Sequence[Outcome]) -> str:
    """A test suite of a test case for each outcome, as Jenkins, GitLab and GitHub's actions read it."""

    def legal(text: str) -> str:
        return ILLEGAL.sub("?", text)

    failures = sum(outcome.red for outcome in outcomes)
    root = ElementTree.Element("testsuites")
    counts = {"tests": str(len(outcomes)), "failures": str(failures), "errors": "0"}
    parent = ElementTree.SubElement(root, "testsuite", name=suite, **counts)
    for outcome in outcomes:
        case = ElementTree.SubElement(parent, "testcase", classname=suite, name=legal(outcome.name))
        if outcome.red:
            ElementTree.SubElement(case, "failure", message=legal(outcome.message))
        said = [f"{heading}: {text}" for heading, text in outcome.cells.items() if text]
        ElementTree.SubElement(case, "system-out").text = legal("\n".join([*said, outcome.message]))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def markdown(title: str, verdict: str, outcomes: Sequence[Outcome]) -> str:
    """A heading, the verdict, and a table, what is red first."""
    headings = list(dict.fromkeys(heading for outcome in outcomes for heading in outcome.cells))
    rows = [
        [
            f"`{outcome.name}`",
            *(outcome.cells.get(heading, "") for heading in headings),
            f"{f'**{outcome.word}**' if outcome.red else outcome.word} {outcome.message}".strip(),
        ]
        for outcome in sorted(outcomes, key=lambda outcome: not outcome.red)
    ]
    table = tables.table(("", *headings, ""), rows, range(1, len(headings) + 1))
    return "\n".join([f"## {title}", "", verdict, "", table, ""])


def write_files(
    title: str, verdict: str, outcomes: Sequence[Outcome], junit_file: Path | None, summary: Path | None
) -> None:
    """Writes the files that are wanted; `summary` is appended to, as GitHub asks."""
    if junit_file:
        with atomic(junit_file) as temporary:
            temporary.write_text(junit(title, outcomes), encoding="utf-8")
    if summary:
        with open(summary, "a", encoding="utf-8") as file:
            file.write(markdown(title, verdict, outcomes) + "\n")
