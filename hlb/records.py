"""Records as rows: ours, from ledgers, and the published ones beside.

Ours are runs in groups that are alike: those of ledgers by recipe and what was changed of it, dtype, device
and test-time views, and those of other systems, JSON files with "system" and "runs". Each run counts once. A
group that was trained on CIFAR-10 and aims at an accuracy is a record. The published records stand in
published.json, where null is what their authors do not state.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kernels.views import VIEWS

from . import ledger
from .errors import UserError
from .recipes import RECIPES, Recipe
from .statistics import RECORD_RUNS, summary

ROOT = Path(__file__).parents[1]  # of a checkout
RESULTS = Path("bench") / "results"
PUBLISHED = Path(__file__).with_name("published.json")
UNKNOWN = "not stated"
CONTRACT = "prepare + train + evaluation"
COLUMNS = (
    "system",
    "hardware",
    "accuracy: mean [95 % interval] or std",
    "n",
    "test-time views",
    "time in s, and what is in it",
    "source",
)
LATER = {"hard_fraction": 1.0}  # fields that older records lack, and what those did
ELSEWHERE = ("name", "dtype", "target", "views", "views_fraction")  # fields that a row shows anyway
PLAIN = {
    "kernels": "reference",
    "compile": "off",
    "graph": "off",
    "channels_last": True,
    "deterministic": False,
}


@dataclass(frozen=True)
class Record:
    """A row of the table. Accuracies are fractions; None is what is not known."""

    system: str
    source: str
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
    date: str | None = None
    gpu: bool = True


@dataclass(frozen=True)
class Group:
    """Runs of ours that are alike. `runs` are those that ended well, each with "accuracy" and "seconds"."""

    system: str
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

    @property
    def accuracies(self) -> list[float]:
        return [run["accuracy"] for run in self.runs]

    @property
    def seconds(self) -> list[float]:
        return [run["seconds"] for run in self.runs]

    @property
    def record(self) -> Record:
        accuracy, time = summary(self.accuracies), summary(self.seconds)
        fields = ("system", "hardware", "target", "views", "views_fraction", "contract", "failed", "gpu")
        return Record(
            accuracy=accuracy["mean"],
            accuracy_ci95=accuracy["ci95"],
            n=accuracy["n"],
            seconds=time["mean"],
            seconds_std=time["std"],
            source=", ".join(f"`{source}`" for source in self.sources),
            **{field: getattr(self, field) for field in fields},
        )


def _changes(fields: dict, recipe: Recipe) -> dict:
    """The fields of a run's recipe that differ from `recipe`, of those that both know or that are LATER."""
    own = json.loads(json.dumps(dataclasses.asdict(recipe)))  # tuples as a ledger holds them
    fields = LATER | fields
    if own["master_weights"] == "auto":
        own["master_weights"] = "on" if fields.get("dtype") == "bfloat16" else "off"
    return {
        name: value
        for name, value in fields.items()
        if name in own and name not in ELSEWHERE and value != own[name]
    }


def system(run: dict) -> str:
    """What a ledger's run trained: recipe, dtype, settings that were changed.

    A recipe is told by its fields: one that was renamed since goes by its present name.
    """
    name, fields = run.get("recipe"), run["recipe_fields"]
    known = sorted(RECIPES, key=lambda other: other != name)
    same = next((other for other in known if not _changes(fields, RECIPES[other])), name)
    settings = _changes(fields, RECIPES.get(same, Recipe(name=same)))
    settings |= {key: value for key, value in run["execution"].items() if value != PLAIN.get(key, value)}
    changed = " ".join(
        f"{key}={','.join(map(str, value)) if isinstance(value, list) else value}"
        for key, value in settings.items()
    )
    recipe = f"`{same}`" if same == name else f"`{same}` (recorded as `{name}`)"
    return ", ".join(filter(None, [recipe, fields.get("dtype"), changed and f"`{changed}`"]))


def groups(ledgers: Iterable[tuple[str, list[dict]]]) -> list[Group]:
    """The groups of some ledgers' runs, which are (source, runs) each."""
    found: dict[tuple, dict[str, tuple[str, dict]]] = {}
    for source, runs in ledgers:
        for run in filter(ledger.is_run, runs):
            fields = run["recipe_fields"]
            views = fields.get("views"), fields.get("views_fraction", 1.0)
            key = system(run), run.get("device_name"), run.get("dataset"), fields.get("target") or 0.0, *views
            found.setdefault(key, {}).setdefault(json.dumps(run, sort_keys=True), (source, run))
    made = []
    for key, group in found.items():
        runs = [run for _, run in group.values()]
        ok = [
            run | {"seconds": run["train_seconds"] + run["eval_seconds"]}
            for run in runs
            if run["status"] == "ok"
        ]
        sources = tuple(dict.fromkeys(source for source, _ in group.values()))
        gpu = any(str(run.get("device")).startswith("cuda") for run in ok)
        made.append(Group(*key, CONTRACT, ok, len(runs) - len(ok), sources, gpu))
    return made


def trained(root: Path, others: Sequence[Path] = ()) -> list[Group]:
    """The groups of all ledgers of a checkout, and of others."""
    found = {path.relative_to(root).as_posix(): path for path in sorted((root / RESULTS).rglob("*.jsonl"))}
    found |= {path.as_posix(): path for path in others}
    return groups((name, ledger.load(path)) for name, path in found.items())


def timed(root: Path) -> Iterator[Group]:
    """The groups of other systems that we ran. A run without accuracy or seconds has failed."""
    for path in sorted((root / RESULTS).rglob("*.json")):
        content = read(path)
        runs = content.get("runs") if isinstance(content, dict) and "system" in content else None
        if not isinstance(runs, list):
            continue
        common = {name: value for name, value in content.items() if name != "runs"}
        ok = [
            common | run
            for run in runs
            if isinstance(run, dict)
            and run.get("status", "ok") == "ok"
            and all(type(run.get(name)) in (int, float) for name in ("accuracy", "seconds"))
        ]
        yield Group(
            system=content["system"],
            hardware=content.get("device_name"),
            dataset=content.get("dataset", "cifar10"),
            target=content.get("target", Record.target),
            views=content.get("views"),
            views_fraction=1.0,
            contract=content.get("contract"),
            runs=ok,
            failed=len(runs) - len(ok),
            sources=(path.relative_to(root).as_posix(),),
            gpu=str(content.get("device")).startswith("cuda"),
        )


def ours(found: Iterable[Group]) -> list[Record]:
    """The records among some groups, GPUs first, then by time."""
    records = [group.record for group in found if group.dataset == "cifar10" and group.target]
    return sorted(records, key=lambda record: (not record.gpu, record.seconds or math.inf))


def published() -> list[Record]:
    """The records of others, by time. UserError where one has a field that there is not, or lacks one."""
    try:
        found = [Record(**entry) for entry in read(PUBLISHED)]
    except TypeError as error:
        fields = ", ".join(field.name for field in dataclasses.fields(Record))
        raise UserError(f"{PUBLISHED.name}: {error}; accepted is a list of objects of {fields}") from None
    return sorted(found, key=lambda record: record.seconds or math.inf)


def read(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path.name}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path.name}: no JSON: {error}") from None


def accuracy(record: Record) -> str:
    """94.20 % [93.93, 94.47], or what is known of that."""
    if record.accuracy is None:
        return "none" if record.n == 0 else UNKNOWN
    mean = f"{100 * record.accuracy:.2f} %"
    if record.accuracy_ci95:
        return mean + " [{:.2f}, {:.2f}]".format(*(100 * bound for bound in record.accuracy_ci95))
    if record.n == 1:
        return mean
    std = UNKNOWN if record.accuracy_std is None else f"{100 * record.accuracy_std:.2f} %"
    return f"{mean}, std {std}"


def runs(record: Record) -> str:
    """How many, and how many failed."""
    n = UNKNOWN if record.n is None else str(record.n)
    return f"{n}, {record.failed} failed" if record.failed else n


def seconds(record: Record) -> str:
    """557.6 (std 12.3), or what is known of that."""
    if record.seconds is None:
        return "none" if record.n == 0 else UNKNOWN
    mean = f"{record.seconds:.0f}" if record.seconds >= 1000 else f"{record.seconds:.4g}"
    return mean if record.seconds_std is None else f"{mean} (std {record.seconds_std:.3g})"


def views(record: Record | Group) -> str:
    if record.views not in VIEWS:
        return record.views or UNKNOWN
    shown = f"{len(VIEWS[record.views])} ({record.views})"
    if record.views_fraction < 1:
        shown += f", for the least sure {100 * record.views_fraction:g} %"
    return shown


def row(record: Record) -> tuple[str, ...]:
    """A record's cells, in the order of COLUMNS."""
    time = f"{seconds(record)}: {record.contract or f'contents {UNKNOWN}'}"
    source = f"{record.source}, {record.date}" if record.date else record.source
    hardware = record.hardware or UNKNOWN
    return record.system, hardware, accuracy(record), runs(record), views(record), time, source


def beside(mine: Sequence[Record]) -> list[Record]:
    """Our records and the published ones, by the accuracy aimed at, ours first."""
    return sorted([*mine, *published()], key=lambda record: record.target)


def unclaimed(mine: Sequence[Record]) -> str:
    """What our records are not, in a sentence."""
    gpu = "" if any(record.gpu for record in mine) else "; there is no GPU record yet"
    return f"Of ours, fewer than {RECORD_RUNS} runs are no record claim{gpu}."
