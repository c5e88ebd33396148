"""Records as one Markdown table: ours, and the published ones beside.

    python -m bench.records            # prints it
    python -m bench.records --write    # puts it into README.md, between its two marker lines

Ours are the runs on CIFAR-10 under bench/results/: those of ledgers (*.jsonl), by recipe and what was changed
of it, dtype, device and test-time views, and those of other systems, which are JSON files with "system" and
"runs". Each run counts once. A recipe that aims at no accuracy sets no record. The published ones stand in
bench/published.json, where null is what their authors do not state.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hlb import RECIPES, Recipe, UserError, ledger
from hlb.files import atomic
from hlb.statistics import RECORD_RUNS, summary
from kernels.views import VIEWS

ROOT = Path(__file__).parents[1]
RESULTS = Path("bench") / "results"
PUBLISHED = Path("bench") / "published.json"
MARKERS = ("<!-- records -->", "<!-- /records -->")
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


def measured(accuracies: Sequence[float], seconds: Sequence[float], **fields) -> Record:
    """The record of some runs of ours."""
    accuracy, time = summary(accuracies), summary(seconds)
    return Record(
        accuracy=accuracy["mean"],
        accuracy_ci95=accuracy["ci95"],
        n=accuracy["n"],
        seconds=time["mean"],
        seconds_std=time["std"],
        **fields,
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


def trained(root: Path) -> Iterator[Record]:
    """The records of all ledgers."""
    groups: dict[tuple, dict[str, tuple[str, dict]]] = {}
    for path in sorted((root / RESULTS).rglob("*.jsonl")):
        for run in filter(ledger.is_run, ledger.load(path)):
            fields = run["recipe_fields"]
            if run.get("dataset") != "cifar10" or not fields.get("target"):
                continue
            views = fields.get("views"), fields.get("views_fraction", 1.0)
            group = groups.setdefault((system(run), run.get("device_name"), fields["target"], *views), {})
            source = f"`{path.relative_to(root).as_posix()}`"
            group.setdefault(json.dumps(run, sort_keys=True), (source, run))
    for (name, hardware, target, views, fraction), group in groups.items():
        ok = [run for _, run in group.values() if run["status"] == "ok"]
        yield measured(
            [run["accuracy"] for run in ok],
            [run["train_seconds"] + run["eval_seconds"] for run in ok],
            failed=len(group) - len(ok),
            system=name,
            hardware=hardware,
            target=target,
            views=views,
            views_fraction=fraction,
            contract=CONTRACT,
            source=", ".join(dict.fromkeys(source for source, _ in group.values())),
            gpu=any(str(run.get("device")).startswith("cuda") for run in ok),
        )


def timed(root: Path) -> Iterator[Record]:
    """The records of other systems that we ran. A run without accuracy or seconds has failed."""
    for path in sorted((root / RESULTS).rglob("*.json")):
        shown = path.relative_to(root).as_posix()
        content = _read(root, shown)
        runs = content.get("runs") if isinstance(content, dict) and "system" in content else None
        if not isinstance(runs, list) or content.get("dataset", "cifar10") != "cifar10":
            continue
        ok = [
            run
            for run in runs
            if isinstance(run, dict)
            and run.get("status", "ok") == "ok"
            and all(type(run.get(name)) in (int, float) for name in ("accuracy", "seconds"))
        ]
        yield measured(
            [run["accuracy"] for run in ok],
            [run["seconds"] for run in ok],
            failed=len(runs) - len(ok),
            system=content["system"],
            hardware=content.get("device_name"),
            target=content.get("target", Record.target),
            views=content.get("views"),
            contract=content.get("contract"),
            source=f"`{shown}`",
            gpu=str(content.get("device")).startswith("cuda"),
        )


def published(root: Path) -> list[Record]:
    """The records of others. UserError where one has a field that there is not, or lacks one."""
    try:
        return [Record(**entry) for entry in _read(root, PUBLISHED)]
    except TypeError as error:
        fields = ", ".join(field.name for field in dataclasses.fields(Record))
        raise UserError(f"{PUBLISHED}: {error}; accepted is a list of objects of {fields}") from None


def _read(root: Path, path: Path | str) -> object:
    try:
        return json.loads((root / path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: no JSON: {error}") from None


def row(record: Record) -> tuple[str, ...]:
    """A record's cells, in the order of COLUMNS."""
    unknown = "none" if record.n == 0 else UNKNOWN

    accuracy = unknown
    if record.accuracy is not None:
        accuracy = f"{100 * record.accuracy:.2f} %"
        if record.accuracy_ci95:
            accuracy += " [{:.2f}, {:.2f}]".format(*(100 * bound for bound in record.accuracy_ci95))
        elif record.n != 1:
            std = record.accuracy_std
            accuracy += f", std {UNKNOWN}" if std is None else f", std {100 * std:.2f} %"

    n = UNKNOWN if record.n is None else str(record.n)
    if record.failed:
        n += f", {record.failed} failed"

    views = record.views or UNKNOWN
    if record.views in VIEWS:
        views = f"{len(VIEWS[record.views])} ({record.views})"
        if record.views_fraction < 1:
            views += f", for the least sure {100 * record.views_fraction:g} %"

    seconds = unknown
    if record.seconds is not None:
        seconds = f"{record.seconds:.0f}" if record.seconds >= 1000 else f"{record.seconds:.4g}"
        if record.seconds_std is not None:
            seconds += f" (std {record.seconds_std:.3g})"
    time = f"{seconds}: {record.contract or f'contents {UNKNOWN}'}"

    source = f"{record.source}, {record.date}" if record.date else record.source
    return record.system, record.hardware or UNKNOWN, accuracy, n, views, time, source


def table(root: Path) -> str:
    """The table of all records in Markdown, by the accuracy aimed at, ours first, then by time; and notes."""
    ours = sorted([*trained(root), *timed(root)], key=lambda r: (not r.gpu, r.seconds or math.inf))
    theirs = sorted(published(root), key=lambda r: r.seconds or math.inf)
    rows = [COLUMNS, ["--"] * len(COLUMNS), *map(row, sorted([*ours, *theirs], key=lambda r: r.target))]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |" for cells in rows]
    lines[1] = "|" + "--|" * len(COLUMNS)
    gpu = "" if any(record.gpu for record in ours) else "; there is no GPU record yet"
    notes = [
        "By the accuracy aimed at, ours first. A published time is its authors', under their own rules.",
        f"Of ours, fewer than {RECORD_RUNS} runs are no record claim{gpu}.",
        f"From `{RESULTS.as_posix()}/` and `{PUBLISHED.as_posix()}` by `python -m bench.records --write`.",
    ]
    return "\n".join([*lines, "", *notes])


def replaced(text: str, table: str) -> str:
    """`text` with `table` between the markers. UserError unless each is there once, on a line of its own."""
    lines = text.split("\n")
    for marker in MARKERS:
        if (count := lines.count(marker)) != 1:
            raise UserError(f"README.md: got {count} lines {marker}, needed is one, where the table belongs")
    begin, end = map(lines.index, MARKERS)
    if begin > end:
        raise UserError(f"README.md: {MARKERS[1]} stands before {MARKERS[0]}; swap the two lines")
    return "\n".join([*lines[: begin + 1], "", table, "", *lines[end:]])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.records", description=__doc__.split("\n")[0])
    parser.add_argument("--write", action="store_true", help="put it into README.md")
    options = parser.parse_args(arguments)
    try:
        made = table(ROOT)
        if not options.write:
            print(made)
            return 0
        readme = ROOT / "README.md"
        text = replaced(readme.read_text(encoding="utf-8"), made)
        with atomic(readme) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except (UserError, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
