"""How often `hlb sweep --budget SECONDS` picks the best arm: its own code, in a lab where runs are drawn.

    python -m bench halving --json bench/results/halving.json

An arm has a true mean and a time. A run's accuracy is normal about the mean with the spread that was measured
on an H200 (0.14 points, bench/results/h200/hard.jsonl), its time about the arm's (0.001 s). The best arm is
the fastest whose true mean reaches the target. Two other ways have the same budget: as many runs of every
arm, then the same last rung; and as many runs of every arm, of which the fastest is claimed whose bound
reaches the target. The first build takes 6 s, one that shares a network 3.5 s, and a run 0.03 s off the clock
(measured: bench/results/h200/sweep.jsonl).
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import random
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from rich.console import Console

from hlb.errors import Parser, exit_status, positive
from hlb.files import check_output
from hlb.runs import environment, ledger
from hlb.runs.display import duration, line, print_table
from hlb.runs.statistics import quantile
from hlb.study.halving import Race, Tally

HELP = """\
usage: python -m bench halving [--trials N] [--json [FILE|-]]

How often `hlb sweep --budget SECONDS` names the best arm, and how often it
claims one that misses the target: simulated, with the spread as measured.

  --trials N       of each row, {trials} if not given
  --json [FILE|-]  the record, which docs/try-an-idea.md shows; - is standard
                   output
"""
TARGET = 0.94
STD, JITTER = 0.0014, 0.001  # of a run's accuracy, and of its seconds
ARMS, FASTEST, STEP = 12, 0.500, 0.010  # arms, seconds of the fastest one's run, and from one to the next
BUILD, SHARED, BESIDE = 6.0, 3.5, 0.03  # seconds of the first build, of the others, of a run off the clock
BUDGETS = (120, 240, 480)
TRIALS = 500
# The true means in per cent, from the fastest arm to the slowest.
SCENARIOS: dict[str, tuple[float, ...]] = {
    "clear": (93.60, 93.65, 93.70, 93.75, 93.80, 93.85, 94.10, 94.12, 94.14, 94.15, 94.16, 94.18),
    "close": tuple(93.865 + 0.025 * i for i in range(ARMS)),
    "none, by far": tuple(93.60 + 0.02 * i for i in range(ARMS)),
    "none, by a hair": (93.9999,) * ARMS,
}


class Made:
    """A lab whose runs are drawn. `arms` are (true mean, seconds)."""

    def __init__(self, arms: list[tuple[float, float]], budget: float, draw: random.Random):
        self.arms, self.budget, self.draw = arms, budget, draw
        self.dropped: dict[int, str] = {}
        self.ready: set[int] = set()
        self.spent = 0.0
        none = Tally(0, 0.0, 0.0, 0.0)
        self.tallies = {False: [none] * len(arms), True: [none] * len(arms)}

    def left(self) -> float:
        return self.budget - self.spent

    def built(self) -> float:
        return BUILD + SHARED * (len(self.ready) - 1) if self.ready else 0.0

    def building(self, arm: int) -> float:
        return 0.0 if arm in self.ready else SHARED if self.ready else BUILD

    def build(self, arm: int) -> None:
        self.spent += self.building(arm)
        self.ready.add(arm)

    def cost(self, arm: int) -> float:
        return self.arms[arm][1] + BESIDE

    def train(self, counts: dict[int, int], fresh: bool = False) -> None:
        missing = {arm: n - self.tallies[fresh][arm].n for arm, n in counts.items()}
        each = sum(self.cost(arm) for arm in counts)
        fit = int(max(0.0, self.left()) / each)
        for arm, n in missing.items():
            if (n := min(n, fit)) > 0:
                self.tallies[fresh][arm] = joined(self.tallies[fresh][arm], self._runs(arm, n))
                self.spent += n * self.cost(arm)

    def _runs(self, arm: int, n: int) -> Tally:
        """So many runs."""
        mean, seconds = self.arms[arm]
        squares = 2 * self.draw.gammavariate((n - 1) / 2, 1) if n > 1 else 0.0
        return Tally(
            n,
            self.draw.gauss(mean, STD / math.sqrt(n)),
            STD**2 * squares / max(n - 1, 1),
            self.draw.gauss(seconds, JITTER / math.sqrt(n)),
        )

    def tally(self, arm: int, fresh: bool = False) -> Tally:
        return self.tallies[fresh][arm]

    def bound(self, arm: int, fresh: bool = True) -> float | None:
        n, mean, variance, _ = self.tallies[fresh][arm]
        return mean - quantile(0.95, n - 1) * math.sqrt(variance / n) if n > 1 else None


def joined(a: Tally, b: Tally) -> Tally:
    """The runs of both."""
    n, apart = a.n + b.n, (a.mean - b.mean) ** 2 * a.n * b.n / (a.n + b.n)
    squares = max(a.n - 1, 0) * a.variance + max(b.n - 1, 0) * b.variance + apart
    mean, seconds = ((x * a.n + y * b.n) / n for x, y in ((a.mean, b.mean), (a.seconds, b.seconds)))
    return Tally(n, mean, squares / max(n - 1, 1), seconds)


def halved(lab: Made, halve: bool = True) -> tuple[int | None, int | None, int]:
    """The arm that is named, the one that is claimed, and how many were tried."""
    race = Race(lab, len(lab.arms), TARGET)
    race.run(halve)
    named = race.claimed if race.claimed is not None else race.finalists[-1] if race.finalists else None
    return named, race.claimed, len(lab.ready)


def unshown(lab: Made) -> tuple[int | None, int | None, int]:
    """As many runs of each arm as fit, and no last rung: claimed is the fastest whose bound reaches."""
    race = Race(lab, len(lab.arms), TARGET)
    race.admit()
    tried = sorted(lab.ready, key=lambda arm: lab.arms[arm][1])
    lab.train(dict.fromkeys(tried, int(max(0.0, lab.left()) / sum(map(lab.cost, tried)))))
    shown = [arm for arm in tried if (lab.bound(arm, fresh=False) or 0.0) >= TARGET]
    best = max(tried, key=lambda arm: lab.tally(arm).mean)
    return (shown[0], shown[0], len(tried)) if shown else (best, None, len(tried))


METHODS: dict[str, Callable[[Made], tuple[int | None, int | None, int]]] = {
    "halving": halved,
    "equal n": partial(halved, halve=False),
    "equal n, no last rung": unshown,
}


@dataclass
class Row:
    """Of one scenario, budget and method, over all trials: fractions of them."""

    scenario: str
    budget: int
    method: str
    best: float | None  # names the best arm; None where no arm reaches the target
    missing: float  # names one that misses the target
    claimed: float  # claims an arm
    wrong: float  # claims one that misses the target
    slower: float | None  # mean seconds of a right claim above the best arm's
    tried: float  # mean number of arms


def row(scenario: str, budget: int, method: str, trials: int = TRIALS, seed: int = 0) -> Row:
    draw = random.Random(f"{scenario} {budget} {seed}")  # the same arms for every method
    means = [mean / 100 for mean in SCENARIOS[scenario]]
    hits = misses = claims = wrongs = tried = 0
    slower = []
    for _ in range(trials):
        arms = [(mean, FASTEST + i * STEP) for i, mean in enumerate(means)]
        draw.shuffle(arms)
        good = [seconds for mean, seconds in arms if mean >= TARGET]
        named, claimed, count = METHODS[method](Made(arms, budget, random.Random(draw.random())))
        tried += count
        hits += named is not None and bool(good) and arms[named][1] == min(good)
        misses += named is not None and arms[named][0] < TARGET
        claims += claimed is not None
        wrongs += claimed is not None and arms[claimed][0] < TARGET
        if claimed is not None and arms[claimed][0] >= TARGET:
            slower.append(arms[claimed][1] - min(good))
    return Row(
        scenario,
        budget,
        method,
        hits / trials if max(means) >= TARGET else None,
        misses / trials,
        claims / trials,
        wrongs / trials,
        sum(slower) / len(slower) if slower else None,
        tried / trials,
    )


def table(trials: int = TRIALS) -> list[Row]:
    return [
        row(scenario, budget, method, trials)
        for scenario in SCENARIOS
        for budget in BUDGETS
        for method in METHODS
    ]


COLUMNS = (
    *("true means", "budget", "arms tried", "names the best", "names one that misses"),
    *("claims one", "claims one that misses", "slower than the best"),
)


def cells(rows: list[dict]) -> list[tuple[str, ...]]:
    """The rows of the record as a table shows them: the METHODS of a scenario and a budget in one."""
    found = []
    for first in range(0, len(rows), len(METHODS)):
        ways = rows[first : first + len(METHODS)]
        found.append(
            (
                ways[0]["scenario"],
                f"{ways[0]['budget']} s",
                f"{ways[0]['tried']:.1f}",
                _beside([one["best"] for one in ways], 100, "%"),
                _beside([one["missing"] for one in ways], 100, "%"),
                _beside([one["claimed"] for one in ways], 100, "%"),
                _beside([one["wrong"] for one in ways], 100, "%", 1),
                _beside([one["slower"] for one in ways], 1000, "ms"),
            )
        )
    return found


def _beside(values: list[float | None], scale: float, unit: str, digits: int = 0) -> str:
    """Values in a cell; nothing where there are none."""
    known = [f"{scale * value:.{digits}f}" for value in values if value is not None]
    return f"{' / '.join(known)} {unit}" if known else ""


def main(arguments: list[str]) -> int:
    """Returns the exit status: 0, 2 (a mistake), 130 (interrupted)."""
    return exit_status("bench halving", partial(_main, arguments))


def parsed(arguments: list[str]) -> argparse.Namespace:
    """The options of a command line, checked. Raises UserError for invalid ones."""
    parser = Parser(description=HELP.format(trials=TRIALS))
    parser.add_argument("--trials", type=positive, default=TRIALS)
    parser.add_json()
    options = parser.parse_args(arguments)
    check_output(options.json, "--json")
    return options


def _main(arguments: list[str]) -> int:
    options, began = parsed(arguments), time.time()
    console = Console(stderr=options.json == "-", highlight=False)
    rows = [dataclasses.asdict(one) for one in table(options.trials)]
    print_table(console, COLUMNS, cells(rows), words=())
    line(console, f"of each three: {', '.join(METHODS)}")
    line(console, f"{options.trials} trials each, in {duration(time.time() - began)}")
    if options.json:
        commit, dirty = environment.commit()
        assumed = {"target": TARGET, "std": STD, "jitter": JITTER}
        assumed |= {"build": BUILD, "shared": SHARED, "beside": BESIDE}
        record = {
            "command": shlex.join(["python", "-m", "bench", "halving", *arguments]),
            "commit": commit,
            "dirty": dirty,
            "trials": options.trials,
            "assumed": assumed,
            "scenarios": SCENARIOS,
            "simulated": rows,
        }
        ledger.write(options.json, record)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
