"""Records as rows: ours, from ledgers, beside the published ones.

Runs of a ledger form a group where recipe, changed settings, dtype, execution, device and test-time views are
the same; peers.py has the groups of other systems. Each seed of a group counts once, by its first run. A
group that was trained on CIFAR-10 and has a target accuracy is a record. published.json holds the published
records and the published numbers of the seed system, each with its source; null is what their authors do not
state.

What a ledger's lines do not say is in notes.json beside it, by the ledger's name: {"a.jsonl": {"note":
"patched", "untimed": "accuracy only: the card was shared"}}. Times of an "untimed" ledger are not quoted.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hlb.errors import UserError
from hlb.recipes import RECIPES, Recipe
from hlb.runs import ledger
from hlb.runs.statistics import clocked, distinct, summary

ROOT = Path(__file__).parents[2]  # of a checkout
RESULTS = Path("bench") / "results"
PUBLISHED = Path(__file__).with_name("published.json")
CONTRACT = "prepare + train + evaluation"
LATER = {"hard_fraction": 1.0}  # fields that older records lack, with the value they had then
ELSEWHERE = ("name", "dtype", "target", "views", "views_fraction")  # fields that have a column of their own
PLAIN = {
    "kernels": "reference",
    "compile": "off",
    "graph": "off",
    "channels_last": True,
    "deterministic": False,
}
ON_A_GPU = ("kernels", "compile", "graph")  # shown there even where plain
NOTES = "notes.json"
NOTED = ("note", "untimed")


@dataclass(frozen=True)
class Record:
    """A row of the table. Accuracies are fractions; None is unknown. `own_seconds` are timed by the system's
    own rule, `seconds` by ours.
    """

    system: str
    source: str
    execution: str | None = None
    hardware: str | None = None
    target: float = 0.94
    accuracy: float | None = None
    accuracy_std: float | None = None
    accuracy_ci95: Sequence[float] | None = None
    n: int | None = None
    failed: int = 0
    views: str | None = None
    views_fraction: float = 1.0
    seconds: float | None = None
    seconds_std: float | None = None
    contract: str | None = None
    untimed: str | None = None
    own_seconds: float | None = None
    own_seconds_std: float | None = None
    own_contract: str | None = None
    date: str | None = None
    gpu: bool = True
    ours: bool = False


@dataclass(frozen=True)
class Group:
    """Runs with the same settings that we made, of our recipes or of another system. `runs` are those that
    succeeded, each with "accuracy" and "seconds", and with "own_seconds" if there is an `own_contract`.
    `repeats` are lines that are left out, since their seed had run. `untimed` is the reason why the times are
    not quoted.
    """

    system: str
    execution: str | None
    hardware: str | None
    dataset: str
    target: float
    views: str | None
    views_fraction: float
    contract: str | None
    runs: list[dict]
    failed: int
    sources: tuple[str, ...]
    gpu: bool
    repeats: int = 0
    untimed: str | None = None
    own_contract: str | None = None
    ours: bool = True

    @property
    def accuracies(self) -> list[float]:
        return [run["accuracy"] for run in self.runs]

    @property
    def seconds(self) -> list[float]:
        return [] if self.untimed else [run["seconds"] for run in self.runs]

    @property
    def record(self) -> Record:
        accuracy, time = summary(self.accuracies), summary(self.seconds)
        own = summary([run["own_seconds"] for run in self.runs] if self.own_contract else [])
        common = {field.name for field in dataclasses.fields(Record)} & {
            field.name for field in dataclasses.fields(Group)
        }
        return Record(
            accuracy=accuracy["mean"],
            accuracy_ci95=accuracy["ci95"],
            n=accuracy["n"],
            seconds=time["mean"],
            seconds_std=time["std"],
            own_seconds=own["mean"],
            own_seconds_std=own["std"],
            source=", ".join(f"`{source}`" for source in self.sources),
            **{field: getattr(self, field) for field in common},
        )


@functools.cache
def _fields(recipe: Recipe) -> dict:
    """A recipe's fields as in a ledger, where tuples are lists."""
    return json.loads(json.dumps(dataclasses.asdict(recipe)))


def _changes(fields: dict, recipe: Recipe) -> dict:
    """The fields of a run's recipe that differ from `recipe`, of those that both have or that are LATER."""
    own, fields = dict(_fields(recipe)), LATER | fields
    if own["master_weights"] == "auto":
        own["master_weights"] = "on" if fields.get("dtype") == "bfloat16" else "off"
    changed = {
        name: value
        for name, value in fields.items()
        if name in own and name not in ELSEWHERE and value != own[name]
    }
    if fields["hard_fraction"] == 1:
        changed.pop("hard_from", None)  # has no effect
    return changed


def on_gpu(run: dict) -> bool:
    return str(run.get("device")).startswith("cuda")


def _settings(values: dict) -> str:
    return " ".join(
        f"{key}={','.join(map(str, value)) if isinstance(value, list) else value}"
        for key, value in values.items()
    )


def execution(run: dict) -> str:
    """How a ledger's run was executed: on a GPU always kernels, compilation and graphs, elsewhere only what
    is not plain; then its note.
    """
    always = ON_A_GPU if on_gpu(run) else ()
    chosen = {
        key: value
        for key, value in run["execution"].items()
        if key in always or value != PLAIN.get(key, value)
    }
    return "; ".join(filter(None, [chosen and f"`{_settings(chosen)}`", run.get("note")]))


def system(run: dict) -> str:
    """What a ledger's run trained: recipe, dtype, changed settings.

    A recipe is recognised by its fields, so one that was renamed since has its present name.
    """
    name, fields = run.get("recipe"), run["recipe_fields"]
    known = sorted(RECIPES, key=lambda other: other != name)
    same = next((other for other in known if not _changes(fields, RECIPES[other])), name)
    changed = _settings(_changes(fields, RECIPES[same] if same in RECIPES else Recipe(name=same)))
    recipe = f"`{same}`" if same == name else f"`{same}` (recorded as `{name}`)"
    return ", ".join(filter(None, [recipe, fields.get("dtype"), changed and f"`{changed}`"]))


def groups(ledgers: Iterable[tuple[str, list[dict]]]) -> list[Group]:
    """The groups of some ledgers' runs, given as (source, runs)."""
    about = ("system", "execution", "hardware", "dataset", "target", "views", "views_fraction", "untimed")
    by_key: dict[tuple, dict[str, tuple[str, dict]]] = {}
    for source, runs in ledgers:
        for run in filter(ledger.is_run, runs):
            fields = run["recipe_fields"]
            views = fields.get("views"), fields.get("views_fraction", 1.0)
            what = system(run), execution(run), run.get("device_name"), run.get("dataset")
            key = *what, fields.get("target") or 0.0, *views, run.get("untimed")
            by_key.setdefault(key, {}).setdefault(json.dumps(run, sort_keys=True), (source, run))
    made = []
    for key, group in by_key.items():
        lines = [run for _, run in group.values()]
        runs = distinct(lines)
        ok = [run | {"seconds": clocked(run)} for run in runs if run["status"] == "ok"]
        sources = tuple(dict.fromkeys(source for source, _ in group.values()))
        made.append(
            Group(
                **dict(zip(about, key)),
                contract=CONTRACT,
                runs=ok,
                failed=len(runs) - len(ok),
                repeats=len(lines) - len(runs),
                sources=sources,
                gpu=any(map(on_gpu, ok)),
            )
        )
    return made


def noted(path: Path, runs: ledger.Lines) -> ledger.Lines:
    """The runs of a ledger, each with the ledger's notes. Raises UserError for invalid notes."""
    beside = path.with_name(NOTES)
    notes = read(beside) if beside.is_file() else {}
    note = notes.get(path.name, {}) if isinstance(notes, dict) else None
    if not isinstance(note, dict) or not set(note) <= set(NOTED):
        raise UserError(f"{beside}: accepted are {', '.join(NOTED)} for each ledger")
    return ledger.Lines(runs.path, (run | note for run in runs), runs.skipped)


def ledgers(root: Path, others: Sequence[Path] = ()) -> Iterator[tuple[str, ledger.Lines]]:
    """All ledgers of a checkout, and the `others`: names and runs. Raises UserError if one cannot be read."""
    paths = {path.relative_to(root).as_posix(): path for path in sorted((root / RESULTS).rglob("*.jsonl"))}
    paths |= {path.as_posix(): path for path in others}
    for name, path in paths.items():
        try:
            yield name, noted(path, ledger.runs(path))
        except OSError as error:
            raise UserError(f"cannot read {name}: {error.strerror}") from None


def trained(root: Path) -> list[Group]:
    """The groups of all ledgers of a checkout."""
    return groups(ledgers(root))


def rank(group: Group) -> tuple:
    """For sorting groups that have times: those whose mean reaches the target by time, then by accuracy."""
    accuracy, time = summary(group.accuracies)["mean"], summary(group.seconds)["mean"]
    return (0, time) if accuracy >= group.target else (1, -accuracy)


def best(groups: Iterable[Group]) -> dict[tuple[float, bool], Group]:
    """(target accuracy, on a GPU) -> the first by `rank` of our groups that have times."""
    by_aim: dict[tuple[float, bool], list[Group]] = {}
    for group in groups:
        if group.ours and group.seconds and group.target and group.dataset == "cifar10":
            by_aim.setdefault((group.target, group.gpu), []).append(group)
    return {key: min(by_aim[key], key=rank) for key in sorted(by_aim, key=lambda key: (key[0], not key[1]))}


def ours(groups: Iterable[Group]) -> list[Record]:
    """The records among some groups, GPUs first, then by time."""
    records = [group.record for group in groups if group.dataset == "cifar10" and group.target]
    return sorted(records, key=lambda record: (not record.gpu, record.seconds or math.inf))


def published() -> list[Record]:
    """The published records of others, by time. Raises UserError for an unknown or a missing field."""
    try:
        entries = [Record(**entry) for entry in read(PUBLISHED)["records"]]
    except (TypeError, KeyError) as error:
        fields = ", ".join(field.name for field in dataclasses.fields(Record))
        raise UserError(f"{PUBLISHED.name}: {error}; `records` is a list of objects of {fields}") from None
    return sorted(entries, key=lambda record: record.seconds or math.inf)


def published_seed() -> dict:
    """The published numbers of the seed system. Raises UserError if there are none."""
    try:
        return read(PUBLISHED)["seed_system"]
    except (TypeError, KeyError):
        raise UserError(f"{PUBLISHED.name}: `seed_system` is missing") from None


def text(path: Path, name: str) -> str:
    """A file's text. Raises UserError, naming the file, if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read {name}: {error.strerror}") from None


def read(path: Path) -> object:
    """A file's JSON. Raises UserError if it cannot be read or is not JSON."""
    try:
        return json.loads(text(path, path.name))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path.name}: not JSON: {error}") from None


def beside(mine: Sequence[Record]) -> list[Record]:
    """Our records and the published ones, by target accuracy, ours first."""
    return sorted([*mine, *published()], key=lambda record: record.target)
