"""What a card leaves: at most seven files in one folder, each whole after a kill.

card.json      what was asked for, where, the steps and their results, the promises
tests.json     each kernel test that ended
runs.jsonl     a line for each whole run, as a ledger has it, and for each peer
sweep.jsonl    a line for each run of the sweep within a budget
profiles.txt   kernels of one whole run of each recipe and choice of kernels, summed by name
passes.json    passes of convolutions: all that was measured, and measured.json as it then is
ops.json       ops beside compiled, as `python -m bench --json` writes them
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from hlb import UserError
from hlb.runs import ledger

SAME = ("device_name", "commit", "toy", "data")  # fields that must match to resume a card


@dataclass(frozen=True)
class Folder:
    """The files, by name."""

    path: Path

    @property
    def card(self) -> Path:
        return self.path / "card.json"

    @property
    def tests(self) -> Path:
        return self.path / "tests.json"

    @property
    def runs(self) -> Path:
        return self.path / "runs.jsonl"

    @property
    def sweep(self) -> Path:
        return self.path / "sweep.jsonl"

    @property
    def profiles(self) -> Path:
        return self.path / "profiles.txt"

    @property
    def passes(self) -> Path:
        return self.path / "passes.json"

    @property
    def ops(self) -> Path:
        return self.path / "ops.json"

    def read(self, path: Path) -> dict:
        """A JSON file of the folder, {} where it is missing. Raises UserError where it is not JSON."""
        if not path.exists():
            return {}
        try:
            content = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"--out: {path} cannot be read ({error}); give another folder") from None
        if not isinstance(content, dict):
            raise UserError(f"--out: {path} is no card's; give another folder")
        return content

    def lines(self) -> list[dict]:
        """The whole lines of runs.jsonl."""
        return ledger.load(self.runs) if self.runs.exists() else []

    def trained(self) -> list[dict]:
        """The runs among them that say their recipe and choice of kernels, as the card's own do."""
        runs = filter(ledger.is_run, self.lines())
        return [run for run in runs if run.get("recipe") and run["execution"].get("kernels")]


def opened(folder: Folder, fresh: dict) -> dict:
    """The card in the folder, to resume, or the `fresh` one where there is none. Raises UserError for a card
    of another device, commit or data set.
    """
    there = folder.read(folder.card)
    if not there:
        return fresh
    for field in SAME:
        if there.get(field) != fresh[field]:
            raise UserError(
                f"--out: {folder.path} holds a card of {field} {there.get(field)!r}, this is "
                f"{fresh[field]!r}; give another folder"
            )
    return {**fresh, "steps": there.get("steps", {}), "begun": there.get("begun", fresh["begun"])}
