"""A sweep from Python: which label smoothing is best, by Welch's test. `hlb sweep` is the same as a command.

    python examples/sweep.py

The runs of all values are interleaved, so that a machine that slows down slows all of them. They are kept in
the ledger: interrupted, the same call goes on where it was.
"""

from __future__ import annotations

from pathlib import Path

import hlb
from hlb.study.sweep import sweep

LEDGER = Path("results") / "sweep-example.jsonl"


def main(recipe: str = "smoke", data: str = "auto", ledger: Path = LEDGER, **settings: object) -> dict:
    """Mean accuracies by configuration; the settings are fields of the recipe."""
    base = hlb.recipe(recipe, settings)
    result = sweep(base, ["label_smoothing=0,0.1,0.2"], runs=3, data=data, ledger=ledger)
    return {sample.name: sample.json()["accuracy"]["mean"] for sample in result.samples}


if __name__ == "__main__":
    print(main())
