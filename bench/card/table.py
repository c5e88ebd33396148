"""What a card prints at its end, from what is on disk."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from hlb.runs.display import line, print_table

from .folder import Folder
from .promises import Promise
from .steps import NAMES
from .testing import WRONG

SHOWN = 10  # tests that failed, at most; tests.json has all


def show(console: Console, card: dict, promises: Sequence[Promise], folder: Folder) -> None:
    """Prints the steps, the promises, the failures, and where the files are."""
    console.print()
    ran = [_step(name, card["steps"][name]) for name in NAMES if name in card["steps"]]
    print_table(console, ("step", "", "s", "of", "said"), ran, words=(0, 1, 4))
    console.print()
    cells = [(p.what, p.promised, p.measured, "WRONG" if p.wrong else "") for p in promises]
    print_table(console, ("", "promised", "measured", ""), cells, words=(0, 1, 2))
    bad = [
        f"{one['outcome'].upper()} {name}: {one.get('why', '')}"
        for name, one in folder.read(folder.tests).get("tests", {}).items()
        if one["outcome"] in WRONG
    ]
    for text in bad[:SHOWN]:
        line(console, text)
    if bad[SHOWN:]:
        line(console, f"and {len(bad) - SHOWN} more in {folder.tests}")
    console.print()
    line(console, f"{card['device_name']}; {_notes(card)}")
    line(console, f"everything is in {folder.path}")


def _step(name: str, entry: dict) -> tuple[str, ...]:
    said = entry["lines"][-1] if entry.get("lines") else ""
    return name, entry["state"], f"{entry['seconds']:.0f}", f"{entry['limit']:.0f}", said[:100]


def _notes(card: dict) -> str:
    """What a reader of the numbers must know."""
    images = "CIFAR-10" if card["data"] else "made-up images, so accuracies mean nothing"
    size = "toy size on a CPU, so times mean nothing; " if card["toy"] else ""
    return f"{size}{images}; promises were measured on an NVIDIA H200"
