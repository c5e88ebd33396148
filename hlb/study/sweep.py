"""A sweep: runs of every configuration of a grid, interleaved, by one process or by all that torchrun starts.
Its ledger lets it resume where it stopped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from ..data import Dataset
from ..errors import UserError, expect_known, tell
from ..execution import Execution, apply, shortage_explained
from ..files import check_writable, noted
from ..recipes import Recipe
from ..runs import environment, statistics
from ..runs import ledger as ledgers
from ..runs.display import duration, line, seconds, synthetic_banner
from ..runs.experiment import check_counts, check_interpreted, default
from ..step import plan, work
from ..train import Trainer
from . import shard
from .arms import arms as of_file
from .compare import Sample
from .findings import SweepResult, report
from .grid import READY, Configuration, Key, all_runs, grid, key, ready, shares
from .trainers import Trainers

LARGEST = 1_000_000  # runs
HELP = """\
usage: hlb sweep [--recipe NAME] --set FIELD=VALUE,VALUE,... --runs N [options]
       hlb sweep --grid record94    a ready grid of that recipe, 50 runs of each
       hlb sweep --arms FILE --budget SECONDS    the fastest that is good enough

Trains every combination of the values, N runs each, and tells which differ.
Interrupted or killed, the same command goes on where it was.

  --set FIELD=A,B,C   values of a field of the recipe; those of a field that is
                      a list are parted by /: sizes=24,28,32/28,32
  --arms FILE         JSON: {{"recipe": .., "arms": {{NAME: {{FIELD: ..}}, ..}}}}
  --runs N  --seed N  seeds of every configuration: seed, seed + 1, ...
  --budget SECONDS    instead of --runs: finds the fastest that surely reaches
                      the recipe's target; half go on with twice as many runs
  --random K          K configurations of the grid, drawn by the seed
  --grid NAME         a ready grid ({grids}); --set changes all of it
  --ledger FILE       where runs are kept (results/sweep-NAME.jsonl)
  --shard             this is one of torchrun's processes: take a share
  --data --device --dtype --compile --graph --kernels --threads --channels-last
  --deterministic --eval-every (0) --json --quiet      as for training

  hlb sweep --set lr=0.2,0.24,0.3 --runs 20
  hlb sweep --set lr=0.2,0.24,0.3 bias_lr=40,53,60 --random 5 --runs 10
  hlb sweep --set epochs=8.4,8.0,7.6 --budget 300
  torchrun --nproc-per-node 8 -m hlb sweep --set lr=0.2,0.24 --runs 40 --shard
""".format(grids=", ".join(READY))


def asked(
    recipe: str | Recipe | None,
    settings: list[str],
    execution: Execution,
    draw: int | None = None,
    seed: int = 0,
    named: str | None = None,
    arms: str | Path | None = None,
) -> list[Configuration]:
    """The configurations of a file of `arms`, of the ready grid that is `named`, or what `grid` makes of a
    recipe (as `train`) and the settings. Raises UserError.
    """
    if named is not None:
        expect_known("--grid", READY, named)
    sources = {"--arms": arms, "--grid": named}
    source = next((f"{option} {value}" for option, value in sources.items() if value is not None), "")
    others = {"--grid": named if arms is not None else None, "--recipe": recipe, "--random": draw}
    for option, value in others.items():
        if source and value is not None:
            raise UserError(f"{option}: the configurations are those of {source}; leave it out")
    if arms is not None:
        return of_file(arms, settings, execution)
    if named is not None:
        return ready(named, settings, execution)
    return grid(default(execution) if recipe is None else recipe, settings, execution, draw, seed)


def default_ledger(recipe: str) -> Path:
    """Where the runs of a recipe's sweeps are kept."""
    return Path("results") / f"sweep-{recipe}.jsonl"


def sweep(
    recipe: str | Recipe | None = None,
    settings: list[str] = (),
    *,
    runs: int | None = None,
    seed: int = 0,
    draw: int | None = None,
    named: str | None = None,
    arms: str | Path | None = None,
    data: str = "auto",
    execution: Execution = Execution(),
    eval_every: int = 0,
    ledger: str | Path | None = None,
    sharded: bool = False,
    console: Console | None = None,
) -> SweepResult | None:
    """Trains the configurations that are `asked` for, each from seeds `seed` to `seed + runs - 1` (one, or as
    many as a ready grid says); prints what `findings.report` has to say, and returns it. None in all of
    torchrun's processes but the first.

    A run that the ledger (results/sweep-RECIPE.jsonl) has, with the same recipe, data set, device name and
    seed, is not repeated. `sharded` says that this is one of torchrun's processes, which share the runs. An
    interrupt returns the runs that had finished. Where the ledger cannot be written any more, the sweep goes
    on, and the result's `unwritten` says so. Raises UserError, if possible before anything is downloaded.
    """
    if runs is None:
        runs = READY[named].runs if named in READY else 1
    runs, eval_every, seed = check_counts(runs, eval_every, seed)
    execution = shard.local(execution, sharded)
    configurations = asked(recipe, settings, execution, draw, seed, named, arms)
    first = configurations[0]
    if runs * len(configurations) > LARGEST:
        raise UserError(
            f"--runs: got {runs:,} of {len(configurations)}, accepted are {LARGEST:,} runs in all"
        )
    for configuration in configurations:
        check_interpreted(configuration.recipe, configuration.execution)
    ledger = default_ledger(first.recipe.name) if ledger is None else Path(ledger)
    check_writable(ledger, "--ledger", append=True)
    console = console or Console(file=sys.stdout)

    with shard.processes(sharded) as (rank, size):
        console.quiet = console.quiet or rank > 0
        line(console, "building ...")
        dataset = loaded(data, configurations, console)
        device = environment.device_name(first.execution.device)
        sets, devices = map(set, zip(*shard.gather((dataset.name, device))))
        if len(sets) > 1:
            raise UserError(f"--data: got {' and '.join(sorted(sets))}; name one that every machine has")
        planned = all_runs(configurations, dataset.name, range(seed, seed + runs))
        finished: dict[Key, dict] = {}
        for theirs in shard.gather(_read(ledger, planned, devices)):
            finished |= theirs
        _announce(console, configurations, dataset.name, len(planned), finished, ledger, size)

        left = [run for name, run in planned.items() if name not in finished]
        new, interrupted, unwritten = {}, False, []
        try:
            for record in _records(configurations, shares(left, size)[rank], dataset, eval_every, console):
                new[key(record)] = record
                with noted(unwritten, "--ledger", ledger):
                    ledgers.append(ledger, record)
            for theirs in shard.gather(new):
                finished |= theirs
        except KeyboardInterrupt:
            finished, interrupted = finished | new, True
    if rank > 0:
        told_once(unwritten)
        return None
    there = _read(ledger, planned, devices)
    if size > 1:
        for name in finished.keys() - there.keys():  # of machines with a ledger of their own
            with noted(unwritten, "--ledger", ledger):
                ledgers.append(ledger, finished[name])
    finished |= there
    samples = [Sample(configuration.name, []) for configuration in configurations]
    for name, (i, _) in planned.items():
        if name in finished:
            samples[i].records.append(finished[name])
    unwritten = told_once(unwritten)
    result = SweepResult(configurations, samples, runs, dataset.name, str(ledger), interrupted, unwritten)
    report(console, result)
    return result


def told_once(unwritten: list[str]) -> list[str]:
    """Prints each reason why runs are not in the ledger, once; returns them."""
    different = list(dict.fromkeys(unwritten))
    for why in different:
        tell("hlb", why)
    return different


def loaded(data: str | Dataset, configurations: list[Configuration], console: Console) -> Dataset:
    """The data set on the configurations' device, for all trainers to share. Sets torch's switches, too.
    Raises UserError where one of them cannot be trained on it.
    """
    first = configurations[0]
    dataset = data if isinstance(data, Dataset) else shard.load(data)
    for configuration in configurations:
        plan(configuration.recipe, len(dataset.tensors[0]))
    if data == "auto" and dataset.name == "synthetic":
        synthetic_banner(console, first.recipe.name, dataset.note)
    apply(first.recipe, first.execution)
    tensors = tuple(tensor.to(first.execution.device) for tensor in dataset.tensors)
    return dataclasses.replace(dataset, tensors=tensors)


def _read(path: Path, planned: dict, devices: set[str]) -> dict[Key, dict]:
    """The planned runs that a ledger has of these devices, by key; the first where it has several of a
    key, in different executions.
    """
    runs = {}
    for record in statistics.distinct(read(path)):
        if key(record) in planned and record.get("device_name") in devices:
            runs.setdefault(key(record), record)
    return runs


def read(path: Path) -> ledgers.Lines:
    """The runs of a ledger that may not be there yet."""
    try:
        return ledgers.runs(path) if path.is_file() else ledgers.Lines(path)
    except OSError as error:
        raise UserError(f"--ledger: cannot read {path}: {error.strerror}; give another") from None


def _records(
    configurations: list[Configuration],
    runs: list[tuple[int, int]],
    dataset: Dataset,
    eval_every: int,
    console: Console,
) -> Iterator[dict]:
    """Trains the runs (configuration, seed) one by one, and gives each one's ledger record."""
    trainers, foretold = Trainers(dataset), False
    begin = time.perf_counter()
    for done, (i, seed) in enumerate(runs, 1):
        configuration = configurations[i]
        with _named(configuration):
            trainer, provenance = trainers.ready(configuration)
            if not foretold:
                foretold = True
                line(console, _forecast(trainer, [configurations[i] for i, _ in runs], eval_every))
            environment.reset_peak_memory(trainer.execution.device)
            run = trainer.run(seed, eval_every)
        yield ledgers.finite({**ledgers.record(run, provenance), "sweep": configuration.values})
        outcome = "failed: the loss became NaN or infinite"
        if run.status == "ok":
            outcome = f"accuracy {run.accuracy:.4f}, {seconds(run.train_seconds + run.eval_seconds)} s"
        left = (time.perf_counter() - begin) / done * (len(runs) - done)
        line(
            console,
            f"{done:>{len(str(len(runs)))}} of {len(runs)}  {configuration.name}, seed {seed}: {outcome}"
            + (f"; about {duration(left)} left" if left else ""),
        )


def _forecast(trainer: Trainer, runs: list[Configuration], eval_every: int) -> str:
    """What the runs will take, by the first trainer: its build for each configuration, and its step for the
    steps and image sizes of each run.
    """
    examples, builds = len(trainer.dataset.tensors[0]), len({one.name for one in runs})
    first = trainer.estimate_seconds(eval_every)
    training = sum(first * work(one.recipe, examples) / work(trainer.recipe, examples) for one in runs)
    return (
        f"about {duration(builds * trainer.build_seconds + training)} for all: {builds} to build in "
        f"{duration(trainer.build_seconds)} each, a run in {duration(training / len(runs))}"
    )


@contextlib.contextmanager
def _named(configuration: Configuration) -> Iterator[None]:
    """Adds the configuration's name to a UserError."""
    try:
        with shortage_explained(configuration.recipe):
            yield
    except UserError as error:
        raise UserError(f"{configuration.name}: {error}") from None


def _announce(
    console: Console,
    configurations: list[Configuration],
    dataset: str,
    planned: int,
    finished: dict[Key, dict],
    ledger: Path,
    processes: int,
) -> None:
    """Prints how many runs are planned and how many the ledger has, and warns where those ran in another
    way.
    """
    first, count = configurations[0], len(configurations)
    counts = {
        "configurations": count,
        "runs of each": planned // count,
        f"in {ledger} already": len(finished),
        "to do": planned - len(finished),
        **({"processes": processes} if processes > 1 else {}),
    }
    kind = first.execution.device.partition(":")[0]
    shown = "   ".join(f"{name}: {number}" for name, number in counts.items())
    line(console, f"{first.recipe.name} on {dataset}, {kind}   {shown}")
    if note := read(ledger).note:
        line(console, f"warning: {note}")
    code = environment.commit()
    ways = {_way(*code, dataclasses.asdict(c.execution)) for c in configurations}
    other = sum(_way(r.get("commit"), r.get("dirty"), r["execution"]) not in ways for r in finished.values())
    if other:
        line(console, f"warning: {other} of those are of another commit or were executed in another way")


def _way(commit: str | None, dirty: bool | None, execution: dict) -> str:
    """Which code executed a run, and how; which of a machine's GPUs it ran on does not matter."""
    return json.dumps([commit, dirty, {**execution, "device": None}], sort_keys=True)
