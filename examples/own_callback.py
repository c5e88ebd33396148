"""A callback of your own: the first epoch that reaches an accuracy, and the seconds until then.

    python examples/own_callback.py

`hlb.Callback` lists what is called and when. Several may be given; with the package tensorboard,
`hlb.TensorBoard()` is one of them.
"""

from __future__ import annotations

import hlb


class Reached(hlb.Callback):
    """(seed, epoch, seconds of training) where the validation accuracy first reached `goal`."""

    def __init__(self, goal: float):
        self.goal = goal
        self.reached: list[tuple[int, int, float]] = []

    def epoch(self, run, row: dict) -> None:
        seen = self.reached and self.reached[-1][0] == run.seed
        if not seen and row["val_acc"] is not None and row["val_acc"] >= self.goal:
            self.reached.append((run.seed, row["epoch"], row["train_seconds"]))


def main(
    recipe: str = "smoke", data: str | hlb.Dataset = "auto", goal: float = 0.3, **settings: object
) -> list[tuple[int, int, float]]:
    """What `Reached` found in two runs; the settings are fields of the recipe."""
    reached = Reached(goal)
    hlb.train(recipe, data=data, settings=settings, runs=2, callbacks=[reached], ledger=None)
    return reached.reached


if __name__ == "__main__":
    for seed, epoch, seconds in main():
        print(f"seed {seed}: epoch {epoch}, after {seconds:.1f} s")
