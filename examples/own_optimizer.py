"""An optimizer of your own, for the 3x3 filters: Lion (Chen et al., arXiv 2302.06675), beside Muon.

    python examples/own_optimizer.py

hlb calls what it is given with the list of filters, sets the learning rate of every step by the recipe's
schedule, and trains everything else with SGD.
"""

from __future__ import annotations

import torch

import hlb


class Lion(torch.optim.Optimizer):
    """Steps of one size: the sign of a momentum."""

    def __init__(self, params, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.99)):
        super().__init__(params, {"lr": lr, "betas": betas})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            first, second = group["betas"]
            for p in group["params"]:
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                p.sub_(momentum.lerp(p.grad, 1 - first).sign(), alpha=group["lr"])
                momentum.lerp_(p.grad, 1 - second)


def main(recipe: str = "smoke", data: str | hlb.Dataset = "auto", **settings: object) -> dict[str, float]:
    """Mean accuracies by optimizer; the settings are fields of the recipe."""
    ways = {"muon": {}, "Lion": {"optimizer": Lion, "lr": 0.003}}
    results = {
        name: hlb.train(recipe, data=data, settings=settings | way, runs=2, quiet=True, ledger=None)
        for name, way in ways.items()
    }
    return {name: result.accuracy["mean"] for name, result in results.items()}


if __name__ == "__main__":
    for name, accuracy in main().items():
        print(f"{name:5} {100 * accuracy:.2f} %")
