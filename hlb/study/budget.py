"""`hlb sweep --budget SECONDS`: the fastest configuration that is shown to reach the recipe's target.

halving.py decides who is trained how often, lab.py trains; here the arms are checked, and what is known at
the end is told: at the budget's end, after Ctrl-C, and after a kill by the same command again.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from ..data import Dataset
from ..errors import UserError
from ..files import check_writable
from ..runs import statistics
from ..runs.display import line, print_table, seconds
from ..runs.experiment import check_counts, check_interpreted
from ..settings import fields
from .compare import ACCURACY, Sample, interval
from .grid import Configuration
from .halving import Race, Rung
from .lab import FRESH, DeviceLost, Lab
from .sweep import default_ledger, loaded, read, told_once

COLUMNS = ("arm", "n", "accuracy", "seconds", "fresh n", "accuracy", "at least", "")


@dataclass
class Found:
    """What `fastest` returns. `samples` are the runs that chose, `fresh` those of the last rung, by arm."""

    configurations: list[Configuration]
    samples: list[Sample]
    fresh: list[Sample]
    race: Race
    dropped: dict[int, str]
    target: float
    budget: float
    seconds: float  # used of it, earlier processes included
    dataset: str
    ledger: str
    devices: list[str]
    interrupted: bool = False
    lost: str = ""  # why the device answers no more
    unwritten: list[str] = field(default_factory=list)

    def bound(self, arm: int) -> float | None:
        """The one-sided lower 95 % bound of the mean of the arm's fresh runs."""
        return statistics.lower_bound(self.fresh[arm].values(ACCURACY))

    def fate(self, arm: int) -> str:
        """How far an arm came."""
        if arm in self.dropped:
            return "dropped"
        if arm in self.race.untried:
            return "no time"
        if arm == self.race.claimed:
            return "shown"
        if arm in self.race.finalists:
            return "not shown"
        for number, rung in enumerate(self.race.rungs, 1):
            if arm in rung.chances and arm not in rung.kept:
                return f"left in rung {number}"
        return "not tested" if self.samples[arm].ok else ""

    def json(self) -> dict:
        """What `hlb sweep --budget --json` prints."""
        first, race = self.configurations[0], self.race
        names = [configuration.name for configuration in self.configurations]
        chances = {arm: chance for rung in race.rungs for arm, chance in rung.chances.items()}
        return {
            "recipe": first.recipe.name,
            "dataset": self.dataset,
            "device": first.execution.device,
            "device_names": self.devices,
            "ledger": self.ledger,
            "target": self.target,
            "budget": self.budget,
            "seconds": self.seconds,
            "claimed": None if race.claimed is None else names[race.claimed],
            "finalists": [names[arm] for arm in race.finalists],
            "arms": [
                {
                    "name": configuration.name,
                    "sweep": configuration.values,
                    **self.samples[arm].json(),
                    "fresh": {**self.fresh[arm].json(), "lower_bound": self.bound(arm)},
                    "chance": chances.get(arm),
                    "fate": self.fate(arm),
                    "recipe_fields": fields(configuration.recipe),
                }
                for arm, configuration in enumerate(self.configurations)
            ],
            "rungs": [
                {
                    "runs": rung.runs,
                    "arms": [names[arm] for arm in rung.chances],
                    "kept": [names[arm] for arm in rung.kept],
                }  # fmt: skip
                for rung in race.rungs
            ],
            "verdict": self.verdict,
            "interrupted": self.interrupted,
        }

    @property
    def verdict(self) -> str:
        """Which arm is shown to reach the target, what is known of those that are not, in sentences."""
        race, target = self.race, f"{100 * self.target:g} %"
        said = []
        if self.interrupted:
            said.append(f"Interrupted after {self.seconds:.0f} of {self.budget:g} seconds.")
        if self.lost:
            said.append(
                f"The device answers no more ({self.lost}): the same command goes on without that arm."
            )
        if race.claimed is not None:
            said.append(
                f"{self._name(race.claimed)} is the fastest arm that is shown to reach {target}: "
                f"{self._fresh(race.claimed)}."
            )
        elif race.standing():
            said.append(f"No arm is shown to reach {target}.")
        else:
            said.append(f"No arm has a run: {self.budget:g} seconds were too few for one.")
        for arm in race.finalists:
            if arm == race.claimed:
                continue
            stopped = len(self.fresh[arm].ok) < race.planned.get(arm, 0)
            if self.bound(arm) is not None and self.interrupted and stopped:
                planned = f"{race.planned[arm]} were planned"
                said.append(f"{self._name(arm)} was being tested: {self._fresh(arm)}; {planned}.")
            elif self.bound(arm) is not None:
                said.append(f"Not shown of {self._name(arm)}: {self._fresh(arm)}.")
            elif race.claimed is None:
                said.append(
                    f"{self._name(arm)} was to be tested, and there was no time: {self._chosen(arm)}."
                )
        if race.claimed is None and not race.finalists:
            said += [f"{self._name(arm)} leads: {self._chosen(arm)}." for arm in list(race.standing())[:1]]
        if race.untried:
            said.append(f"Not tried, for lack of time: {', '.join(map(self._name, race.untried))}.")
        said += [f"{self._name(arm)} was dropped: {why}." for arm, why in self.dropped.items()]
        return " ".join(said)

    def _name(self, arm: int) -> str:
        return self.configurations[arm].name

    def _fresh(self, arm: int) -> str:
        """The last rung of an arm in words."""
        runs = self.fresh[arm].json()
        accuracy, times = runs["accuracy"], runs["seconds"]
        return (
            f"the mean of {runs['n']} runs of fresh seeds is {accuracy['mean']:.3%}, at least "
            f"{self.bound(arm):.3%} with 95 % confidence, in {times['mean']:.4f} s "
            f"[{interval(times['ci95'], '{:.4f}'.format).replace(' .. ', ', ')}]"
        )

    def _chosen(self, arm: int) -> str:
        """The runs of an arm that chose, in words."""
        runs = self.samples[arm].json()
        within = interval(runs["accuracy"]["ci95"], "{:.3%}".format).replace(" .. ", ", ")
        times = runs["seconds"]["mean"]
        return f"{runs['accuracy']['mean']:.3%} [{within}] in {times:.4f} s, n = {runs['n']}"


def fastest(
    configurations: list[Configuration],
    budget: float,
    *,
    seed: int = 0,
    data: str | Dataset = "auto",
    eval_every: int = 0,
    ledger: str | Path | None = None,
    console: Console | None = None,
    started: float | None = None,
) -> Found:
    """Looks for the fastest of the configurations (`grid`, `ready`, `arms`) whose accuracy reaches the
    recipe's target, for `budget` seconds from `started` on, a `time.perf_counter()` (now); prints its
    progress and what it found, and returns it.

    The first configurations are tried where there is no time for all. A run is begun only if it should end in
    time. Runs that raise or diverge are recorded, and drop their configuration. The ledger
    (results/sweep-RECIPE.jsonl) is read first: what it has of a sweep that was stopped is not made again, and
    counts. An interrupt returns what is known. Raises UserError, if possible before anything is downloaded.
    """
    started = time.perf_counter() if started is None else started
    _, eval_every, seed = check_counts(2 * FRESH, eval_every, seed)
    first = configurations[0]
    targets = {configuration.recipe.target for configuration in configurations}
    if targets == {0.0}:
        raise UserError(f"--budget: {first.recipe.name} aims at no accuracy; give one, as --set target=0.94")
    if len(targets) > 1:
        raise UserError("--budget: the arms have several targets; give them one, as --set target=0.94")
    for configuration in configurations:
        check_interpreted(configuration.recipe, configuration.execution)
    ledger = default_ledger(first.recipe.name) if ledger is None else Path(ledger)
    check_writable(ledger, "--ledger", append=True)
    console = console or Console(file=sys.stdout)
    dataset = loaded(data, configurations, console)
    if note := read(ledger).note:
        line(console, f"warning: {note}")
    lab = Lab(
        configurations,
        dataset,
        budget=budget,
        started=started,
        seed=seed,
        eval_every=eval_every,
        ledger=ledger,
        console=console,
    )
    _announce(console, lab)
    race = Race(lab, len(configurations), targets.pop(), lambda rung: _tell(console, lab, race, rung))
    interrupted, lost = False, ""
    try:
        race.run()
    except KeyboardInterrupt:
        interrupted = True
    except DeviceLost as error:
        lost = str(error)
    arms = range(len(configurations))
    names = [configuration.name for configuration in configurations]
    found = Found(
        configurations,
        [Sample(names[arm], lab.samples(arm)) for arm in arms],
        [Sample(names[arm], lab.samples(arm, fresh=True)) for arm in arms],
        race,
        lab.dropped,
        race.target,
        budget,
        budget - lab.left(),
        dataset.name,
        str(ledger),
        [lab.device_name],
        interrupted,
        lost,
        told_once(lab.unwritten),
    )
    report(console, found)
    return found


def _announce(console: Console, lab: Lab) -> None:
    first, count = lab.configurations[0], len(lab.configurations)
    there = sum(len(runs) for runs in lab.runs.values())
    line(
        console,
        f"{first.recipe.name} on {lab.dataset.name}, {lab.device_name}   arms: {count}   "
        f"budget: {lab.budget:g} s" + (f", {lab.spent:.0f} s of it used" if lab.spent else ""),
    )
    if there:
        line(console, f"{there} runs are in {lab.ledger} already")
    for arm, why in lab.dropped.items():
        line(console, f"{lab.configurations[arm].name}: dropped before: {why}")


def _tell(console: Console, lab: Lab, race: Race, rung: Rung) -> None:
    """Prints how a rung ended."""
    line(console, f"rung {len(race.rungs)}, {rung.runs} runs each:")
    for arm in sorted(rung.chances, key=lambda arm: -rung.chances[arm]):
        n, mean, _, clock = lab.tally(arm)
        line(
            console,
            f"    {lab.configurations[arm].name}: n {n}, mean {mean:.3%}, {seconds(clock)} s, "
            f"the fastest to be shown: {rung.chances[arm]:.0%}{'' if arm in rung.kept else ', leaves'}",
        )


def report(console: Console, found: Found) -> None:
    """Prints the table and the verdict."""
    console.print()
    rows = []
    for arm, (sample, fresh) in enumerate(zip(found.samples, found.fresh)):
        chose, shown = sample.json(), fresh.json()
        times, bound = chose["seconds"]["mean"], found.bound(arm)
        rows.append(
            (
                sample.name,
                str(chose["n"]),
                _written(chose["accuracy"]["mean"]),
                "" if times is None else seconds(times),
                str(shown["n"] or ""),
                _written(shown["accuracy"]["mean"]),
                _written(bound),
                found.fate(arm),
            )
        )
    print_table(console, COLUMNS, rows, words=(0,), expendable=(5, 4))
    console.print()
    line(
        console,
        f"data: {found.dataset}   device: {'; '.join(found.devices)}   used: {found.seconds:.0f} of "
        f"{found.budget:g} s   ledger: {found.ledger}",
    )
    line(console, found.verdict)


def _written(accuracy: float | None) -> str:
    return "" if accuracy is None else f"{accuracy:.4f}"
