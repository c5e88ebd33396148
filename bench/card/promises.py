"""What README promises, from the records that it is made of, beside what the card's files say.

Every function of PROMISES reads files alone, so the table can be made after a kill. A promise is `wrong`
where a value is: a kernel's, or an accuracy that is too low to be chance. A time is never wrong.
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from hlb import recipe
from hlb.runs import ledger
from hlb.runs.statistics import clocked, distinct, summary

from ..report import records
from ..tune.conversion import converted
from .folder import Folder
from .runner import ROOT
from .testing import WRONG
from .trains import CONFIGURATIONS, configured

MEASURED = ROOT / "bench" / "results" / "h200"
ERRORS = 3.0  # standard errors beyond which a difference of two means is not chance


@dataclass(frozen=True)
class Promise:
    """A row of the table; "" where something is not known."""

    what: str
    promised: str
    measured: str
    wrong: bool = False


def content(path: Path) -> object:
    """The content of a JSON file; None where it cannot be read."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def rows_of(path: Path) -> list[dict]:
    """The rows of a record of `python -m bench`, or of a list of its rows."""
    record = content(path)
    rows = record.get("rows") if isinstance(record, dict) else record
    return [row for row in rows or () if isinstance(row, dict)]


def geometric_mean(values: Iterable[float]) -> float | None:
    values = list(values)
    return math.exp(statistics.fmean(map(math.log, values))) if values else None


# Kernel tests


def tests(card: dict, folder: Folder) -> list[Promise]:
    tested = content(folder.tests) or {}
    outcomes = [one["outcome"] for one in tested.get("tests", {}).values()]
    bad = sum(outcome in WRONG for outcome in outcomes)
    ran = len(outcomes) - outcomes.count("skipped")
    measured = f"{ran - bad} of {ran} right; {tested.get('collected', 0) - len(outcomes)} not run"
    return [Promise("kernel tests", "all right", measured if tested else "not run", bad > 0)]


# Whole runs


def before(timed: bool) -> list[dict]:
    """The runs that were measured on a GPU and are part of the project; `timed`: those whose times are worth
    quoting, which notes.json says.
    """
    notes = content(MEASURED / "notes.json") or {}
    paths = sorted(MEASURED.glob("*.jsonl"))
    ledgers = (path for path in paths if not (timed and "untimed" in notes.get(path.name, {})))
    runs = distinct(run for path in ledgers for run in ledger.runs(path))
    return [run for run in runs if run["status"] == "ok"]


def alike(runs: Iterable[dict], kernels: bool = True) -> dict[tuple, list[dict]]:
    """Runs of the same recipe, field by field, and with `kernels` of the same choice of kernels."""
    groups = defaultdict(list)
    for run in runs:
        key = records.system(run | {"execution": {}}), run["execution"].get("kernels") if kernels else None
        groups[key].append(run)
    return groups


def intended(name: str, kernels: str, settings: Iterable[str] = ()) -> dict:
    """A ledger's line of the recipe as it is now, on a GPU."""
    this = dataclasses.replace(recipe(name, settings), dtype="float16", master_weights="off")
    fields = dataclasses.asdict(this)
    return {
        "recipe": name,
        "recipe_fields": json.loads(json.dumps(fields)),
        "execution": {"kernels": kernels},
    }


def own(folder: Folder) -> dict[str, list[dict]]:
    """The card's runs that ended well, by configuration."""
    groups = defaultdict(list)
    for run in distinct(folder.trained()):
        if run["status"] == "ok":
            groups[configured(run)].append(run)
    return groups


def runs(card: dict, folder: Folder) -> list[Promise]:
    """Seconds of each configuration, and accuracy where it was trained on CIFAR-10."""
    mine, expected = own(folder), step(card, "compile").get("expected", {})
    known, same_recipe = alike(before(timed=True)), alike(before(timed=False), kernels=False)
    made = []
    for one in CONFIGURATIONS:
        label, these = one.name, mine.get(one.name, [])
        line = intended(one.recipe, one.kernels, one.settings)
        (system,), (same,) = (alike([line], kernels) for kernels in (True, False))
        promised = [f"{expected[label]['seconds']:.3f} expected"] if label in expected else []
        if system in known:
            promised.append(f"{mean_of(known[system], clocked)} measured")
        if promised or these:
            measured = mean_of(these, clocked) if these else "not run"
            made.append(Promise(f"{label}, s", ", ".join(promised), measured))
        real = [run for run in these if run["dataset"] == "cifar10"]
        if real:
            made.append(accuracy(label, real, same_recipe.get(same, [])))
    return made


def accuracy(label: str, now: list[dict], then: list[dict]) -> Promise:
    """Wrong where the mean is ERRORS standard errors below that of the runs before."""
    ours, theirs = ([percent(run) for run in group] for group in (now, then))
    low = False
    if len(theirs) > 1:
        earlier = summary(theirs)
        error = earlier["std"] * math.sqrt(1 / len(ours) + 1 / len(theirs))
        low = statistics.fmean(ours) < earlier["mean"] - ERRORS * error
    promised = mean_of(then, percent) if then else ""
    return Promise(f"{label}, accuracy in %", promised, mean_of(now, percent), low)


def percent(run: dict) -> float:
    return 100 * run["accuracy"]


def mean_of(runs: list[dict], value: Callable[[dict], float]) -> str:
    """0.846 (std 0.001, n 50)"""
    values = [value(run) for run in runs]
    spread = f"std {statistics.stdev(values):.3f}, " if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f} ({spread}n {len(values)})"


def swept(card: dict, folder: Folder) -> list[Promise]:
    """The fastest variant of record94 that a sweep has shown to reach its target."""
    found = step(card, "sweep").get("sweep")
    if not found:
        return []
    what = f"fastest shown to reach {100 * found['target']:g} %, s"
    if found["claimed"] is None:
        return [Promise(what, "", f"none in {found['seconds']:.0f} s")]
    accuracy, times = found["fresh"]["accuracy"], found["fresh"]["seconds"]
    bound = f"at least {100 * found['fresh']['lower_bound']:.2f} %, n {accuracy['n']}"
    return [Promise(what, "", f"{times['mean']:.3f}: {found['claimed']} ({bound})")]


# Ops, passes and the rest


def ops(card: dict, folder: Folder) -> list[Promise]:
    """How much faster than compiled each op is, forward and backward, over its cases."""
    made = []
    promised, measured = by_op(rows_of(MEASURED / "ops.json")), by_op(rows_of(folder.ops))
    for op in dict.fromkeys([*promised, *measured]):
        faults = [row["fault"] for row in measured.get(op, []) if row.get("fault")]
        now = f"wrong: {faults[0]}" if faults else speed_up(measured.get(op, [])) or "not run"
        made.append(Promise(f"{op}, times compiled", speed_up(promised.get(op, [])), now, bool(faults)))
    return made


def by_op(rows: list[dict]) -> dict[str, list[dict]]:
    """The rows of an op's own kernels that span both directions, or of one that has forward alone."""
    groups = defaultdict(list)
    both = {(row["op"], row["case"]) for row in rows if row["direction"] == "both"}
    for row in rows:
        whole = row["direction"] == ("both" if (row["op"], row["case"]) in both else "forward")
        if row["implementation"] == "triton" and (whole or row.get("fault")):
            groups[row["op"]].append(row)
    return groups


def speed_up(rows: list[dict]) -> str:
    mean = geometric_mean(row["speed_up_compiled"] for row in rows if row.get("speed_up_compiled"))
    return f"{mean:.2f}" if mean else "right; not compiled" if rows else ""


def passes(card: dict, folder: Folder) -> list[Promise]:
    """The fastest candidates beside cuDNN, now and before, where cuDNN's times are corrected."""
    tuned = (content(folder.passes) or {}).get("found", {})
    wrong = sum(
        not why.startswith("spills") for one in tuned.values() for why in one.get("dropped", {}).values()
    )
    timed = (one for one in tuned.values() if "cudnn" in one and one["seconds"])
    now = [(min(one["seconds"].values()), one["cudnn"]) for one in timed]
    record = content(MEASURED / "conv-passes.json")
    before = converted(record)[1]["launches"].values() if record else ()
    then = [(one["seconds"], one["cudnn"]) for one in before]
    if not tuned:
        return [Promise("passes of convolutions", beside_cudnn(then), "not run")] if then else []
    measured = f"{beside_cudnn(now)}; {wrong or 'none'} wrong"
    return [Promise("passes of convolutions", beside_cudnn(then), measured, wrong > 0)]


def beside_cudnn(times: list[tuple[float, float]]) -> str:
    """Of seconds, ours and cuDNN's: 7 of 51 faster than cuDNN."""
    faster = sum(ours < theirs for ours, theirs in times)
    return f"{faster} of {len(times)} faster than cuDNN" if times else ""


def sanitizers(card: dict, folder: Folder) -> list[Promise]:
    checked = step(card, "sanitizers")
    if not checked:
        return []
    errors = checked.get("errors")
    measured = checked["said"] if errors is None else f"{errors} errors in {len(checked['ops'])} ops"
    return [Promise("compute-sanitizer", "0 errors", measured, bool(errors))]


def peers(card: dict, folder: Folder) -> list[Promise]:
    """The last JSON objects of foreign scripts, as they printed them."""
    lines = [line for line in folder.lines() if "peer" in line]
    return [Promise(f"peer {one['peer']}", "", json.dumps(one["said"])) for one in lines]


def step(card: dict, name: str) -> dict:
    """The result of a step."""
    return card.get("steps", {}).get(name, {}).get("result") or {}


PROMISES = (tests, runs, swept, ops, passes, sanitizers, peers)


def made(card: dict, folder: Folder) -> list[Promise]:
    """All rows of the table."""
    return [promise for find in PROMISES for promise in find(card, folder)]
