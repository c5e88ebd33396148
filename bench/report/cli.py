"""`python -m bench report`: what was measured, as one page with plots; or the tables of README and docs/."""

from __future__ import annotations

import argparse
import datetime
import math
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from hlb.cost.passes import launched
from hlb.errors import Parser, UserError, exit_status
from hlb.files import atomic, check_writable
from hlb.recipes import RECIPES
from hlb.runs import ledger
from hlb.runs.statistics import record_claim, summary
from kernels.base import chips

from . import benches, cells, drawing, pages, peers, plots, records, run_plots, webpage
from .records import Group, Record

FOLDER = Path("results") / "report"
MODELLED = "record94"  # the recipe whose step is modelled if none was profiled
HELP = """\
usage: python -m bench report [LEDGER ...] [--out FOLDER]
       [--kernels RECORD.json ...] [--profile RECORD.json ...]
       python -m bench report --markdown

What was measured as one page, report.html, which opens offline, and its plots
as PNG and SVG. LEDGER is FILE or FILE:FIELD=VALUE,... as for `hlb compare`;
without one, results/ledger.jsonl and, in a checkout, bench/results/.

  --out FOLDER        where to write them (results/report)
  --kernels FILE ...  records of `python -m bench --json FILE`
  --profile FILE ...  records of `hlb --profile TRACE --json FILE`
  --markdown          instead: update the tables of README.md and docs/,
                      docs/kernel-costs.md and docs/accuracy-time.png

  python -m bench report
  python -m bench report a.jsonl b.jsonl:recipe=record94 --out /tmp/report
"""


@dataclass(frozen=True)
class Measurements:
    """What a report shows: the names of what was read, groups of runs, records of kernels and of a step. And
    what in them was left out, and why.
    """

    read: list[str]
    groups: list[Group]
    benches: list[dict]
    profiles: list[dict]
    left_out: list[str]

    @property
    def mine(self) -> list[Record]:
        return records.ours(self.groups)


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0, 2 (a mistake), 130 (interrupted)."""
    return exit_status("bench report", partial(_main, sys.argv[2:] if arguments is None else arguments))


def _main(arguments: list[str]) -> int:
    return run(parsed(arguments))


def parsed(arguments: list[str]) -> argparse.Namespace:
    """The options of a command line. Raises UserError for invalid ones."""
    parser = Parser(description=HELP)
    parser.add_argument("ledgers", nargs="*", metavar="LEDGER")
    parser.add_argument("--out")
    parser.add_argument("--kernels", nargs="+", metavar="FILE")
    parser.add_argument("--profile", nargs="+", metavar="FILE")
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args(arguments)
    if options.markdown:
        options.only(("markdown",), "the tables of --markdown show bench/results/ only")
    return options


def run(given: argparse.Namespace) -> int:
    drawing.check_installed()
    if given.markdown:
        written = pages.write(records.ROOT)
    else:
        measurements = find(given.ledgers, given.kernels, given.profile)
        for text in measurements.left_out:
            print(f"bench report: warning: {text}", file=sys.stderr)
        out = Path(given.out or FOLDER)
        check_writable(out / "report.html", "--out")
        written = [write(measurements, out)]
    print("\n".join(map(str, written)))
    return 0


def find(
    ledgers: Sequence[str] = (), kernels: Sequence[str] | None = None, profiles: Sequence[str] | None = None
) -> Measurements:
    """Reads the files that are named, else those that exist. Raises UserError if one is invalid or there is
    nothing to report.
    """
    if ledgers:
        selected = [(selection, ledger.select(selection)) for selection in dict.fromkeys(ledgers)]
        chosen = [(name, records.noted(Path(runs.path), runs)) for name, runs in selected]
        groups, there = records.groups(chosen), []
    else:
        local = [ledger.DEFAULT] if ledger.DEFAULT.is_file() else []
        chosen = [*records.ledgers(records.ROOT, local)]
        groups = [*records.groups(chosen), *peers.timed(records.ROOT)]
        there = [records.read(path) for path in sorted((records.ROOT / records.RESULTS).rglob("*.json"))]
    measured, stepped = (
        [benches.load(path, option) for path in asked or ()] or [*filter(benches.KINDS[option][0], there)]
        for option, asked in (("kernels", kernels), ("profile", profiles))
    )
    if not (groups or measured or stepped):
        raise UserError(f"nothing to report: no {ledger.DEFAULT}; `hlb` writes it, or name a ledger")
    read = [*dict.fromkeys(source for group in groups for source in group.sources)]
    left_out = [*dict.fromkeys(runs.note for _, runs in chosen if runs.note)]
    left_out += [
        f"{group.repeats} of the runs of {group.system} repeat another's seed, and each seed counts once"
        for group in groups
        if group.repeats
    ]
    return Measurements([*read, *(kernels or ()), *(profiles or ())], groups, measured, stepped, left_out)


def write(measurements: Measurements, out: Path) -> Path:
    """The page and its plots, in the folder `out`; returns the page's path."""
    sections = {
        "In short": headline(measurements),
        "Records": _records(measurements, out),
        "Runs": _runs(measurements, out),
        "A step": _steps(measurements, out),
        "Kernels": _kernels(measurements, out),
        "How each was made": _made(measurements.groups),
    }
    with atomic(out / "report.html") as temporary:
        temporary.write_text(webpage.document("hlb: what was measured", sections), encoding="utf-8")
    return out / "report.html"


def _plot(draw, *what, out: Path, name: str, says: str) -> str:
    """Draws a plot into the folder, and returns it for the page."""
    paths = out / f"{name}.png", out / f"{name}.svg"
    draw(*what, *paths)
    return webpage.figure(paths[1], says)


def headline(measurements: Measurements) -> str:
    """Our best for each target, and what has not been measured."""
    parts = []
    for (target, _), group in records.best(measurements.groups).items():
        record = group.record
        reached = "reached" if record.accuracy >= target else "missed"
        on = record.hardware or cells.UNKNOWN
        time, _, std = cells.seconds(record).partition(" ")
        lead = f"{100 * target:g} % {reached} on {on}: {cells.accuracy(record)} in {time} s {std}"
        _, claim = record_claim(group.accuracies, group.failed, group.dataset, target)
        known = {
            "system": record.system,
            **({"run with": record.execution} if record.execution else {}),
            "n": f"{cells.runs(record)}; {claim}",
            "test-time views": cells.views(record),
            "in the time": record.contract or cells.UNKNOWN,
            "command": "\n".join(commands(group)),
            "versions": "\n".join(versions(group)),
        }
        parts += [f'<p class="lead">{webpage.inline(lead)}</p>', webpage.facts(known)]
    if parts:
        parts.append(webpage.paragraphs("The fastest whose mean reaches the target, else the most accurate."))
    if absent := missing(measurements):
        parts += [webpage.paragraphs("Not measured:"), webpage.items(absent)]
    if measurements.left_out:
        parts += [webpage.paragraphs("Left out:"), webpage.items(measurements.left_out)]
    when = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    of = ", ".join(f"`{source}`" for source in measurements.read)
    return "\n".join([*parts, f'<p class="note">{webpage.inline(f"Made {when} of {of}.")}</p>'])


def missing(measurements: Measurements) -> list[str]:
    """What a report lacks because it was not measured."""
    mine, absent = measurements.mine, []
    known = {record.target for record in mine if record.n and record.ours}
    for target in sorted({record.target for record in records.published()} - known):
        absent.append(f"a run that aims at {100 * target:g} %")
    if not any(record.gpu and record.ours and record.n for record in mine):
        absent.append("a run on a GPU")
    if not any(bench.get("kernels_timed") for bench in measurements.benches):
        absent.append("a kernel on a GPU: `python -m bench --json FILE`, then `--kernels FILE`")
    if not measurements.profiles:
        absent.append("a step, op by op: `hlb --profile TRACE --json FILE`, then `--profile FILE`")
    return absent


def _records(measurements: Measurements, out: Path) -> str:
    mine, published = measurements.mine, records.published()
    says = "Our records and the published ones. A published time is its authors', under their own rules."
    shown = _plot(run_plots.accuracy_time, mine, published, out=out, name="accuracy-time", says=says)
    rows = list(map(cells.row, records.beside(mine)))
    table = webpage.table(cells.COLUMNS, rows, range(len(cells.COLUMNS)))
    return "\n".join([shown, table, webpage.paragraphs(cells.unclaimed(mine))])


STATISTICS = ("mean", "std", "min", "max", "95 % interval")


def _statistics(group: Group) -> tuple[str, ...]:
    """A row whose cells have accuracies on the first line and times on the second."""
    lines = []
    for values, digits in (([100 * value for value in group.accuracies], ".2f"), (group.seconds, ".4g")):
        stats = summary(values, least=0)
        known = ("" if stats[name] is None else format(stats[name], digits) for name in STATISTICS[:4])
        lines.append((*known, " .. ".join(format(bound, digits) for bound in stats["ci95"] or ())))
    about = _named(group), group.hardware or cells.UNKNOWN, str(group.dataset)
    of = "accuracy, %\ntime, s" + (f"\n{group.untimed}" if group.untimed else "")
    return *about, cells.runs(group.record), of, *map("\n".join, zip(*lines))


def _named(group: Group) -> str:
    """The system, and on a second line how it was executed."""
    return "\n".join(filter(None, (group.system, group.execution)))


def _runs(measurements: Measurements, out: Path) -> str:
    """The statistics of every group, and a plot of every run."""
    aimed = [group for group in measurements.groups if group.dataset == "cifar10" and group.target]
    others = [group for group in measurements.groups if group not in aimed]
    parts = []
    for name, groups, title in (
        ("runs", aimed, "Runs one by one"),
        ("other-runs", others, "Runs that set no record: synthetic data, or no target accuracy"),
    ):
        if groups:
            says = f"{title}; below the dots the mean of each configuration and its 95 % interval."
            parts.append(_plot(run_plots.distribution, title, groups, out=out, name=name, says=says))
            groups = sorted(groups, key=lambda group: summary(group.seconds)["mean"] or math.inf)
            headings = ("system", "hardware", "data", "n", "of", *STATISTICS)
            parts.append(webpage.table(headings, list(map(_statistics, groups)), range(5)))
    return "\n".join(parts) or webpage.paragraphs("There is no run.")


def _steps(measurements: Measurements, out: Path) -> str:
    parts = []
    for i, profile in enumerate(measurements.profiles, 1):
        ways = [
            {way: {row["op"]: row[way] for row in profile["rows"]} for way in bar}
            for bar in (("forward", "backward"), ("floor",))
        ]
        about = benches.about_profile(profile)
        title = f"Time of a training step by op\n{about}"
        says = f"Measured: {about}. The floor is arithmetic: least times at this device's rates."
        parts.append(_plot(run_plots.step_times, title, ways, out=out, name=f"step-{i}", says=says))
    if not parts:
        chip = chips.AIMED_AT
        title = f"Modelled, not measured: a training step of {MODELLED} on {chip.name}, float16"
        says = (
            "No step was profiled. This is arithmetic: each launch takes its FLOPs or its bytes at "
            f"{chip.name}'s rates, and {1e6 * chip.launch:g} µs; images of the last size."
        )
        parts.append(_plot(run_plots.step_times, title, modelled(), out=out, name="step-modelled", says=says))
    return "\n".join(parts)


def modelled() -> list[dict[str, dict[str, float]]]:
    """Least seconds of a step by layer, with PyTorch's operators and with the kernels."""
    bars = []
    for series, choice in (("eager PyTorch", "reference"), ("kernels", "triton")):
        by_layer = defaultdict(float)
        for one in launched(RECIPES[MODELLED], choice):
            by_layer["between the ops" if one.layer == "all" else one.layer] += one.seconds(chips.AIMED_AT)
        bars.append({series: by_layer})
    return bars


def _kernels(measurements: Measurements, out: Path) -> str:
    parts = []
    for i, record in enumerate(measurements.benches, 1):
        of = benches.about(record)
        for name, draw, what in (
            ("roofline", plots.roofline, "Roofline"),
            ("speed-up", plots.speed_up, "Speed-up"),
        ):
            parts.append(_plot(draw, record, out=out, name=f"{name}-{i}", says=f"{what}: {of}."))
        said = (record.get("command") and f"`{record['command']}`", record.get("note"))
        parts += [webpage.paragraphs(text) for text in filter(None, said)]
        wrong = [row for row in record["rows"] if row.get("fault")]
        parts.append(
            webpage.items([" ".join(row[f] for f in benches.FIELDS) + f": {row['fault']}" for row in wrong])
        )
    return "\n".join(parts) or webpage.paragraphs(
        "No kernel has been timed: there is no record of `python -m bench`."
    )


def commands(group: Group, shown: int = 5) -> list[str]:
    """The different commands that started the runs of a group, at most `shown`."""
    known = list(dict.fromkeys(f"`{run['command']}`" for run in group.runs if run.get("command")))
    more = [f"and {len(known) - shown} more"] if len(known) > shown else []
    return [*known[:shown], *more] or [cells.UNKNOWN]


def versions(group: Group) -> list[str]:
    """The different versions that the runs of a group were made with."""
    known = [run.get("versions") or {} for run in group.runs]
    shown = [", ".join(f"{name} {version}" for name, version in each.items() if version) for each in known]
    return list(filter(None, dict.fromkeys(shown))) or [cells.UNKNOWN]


def _made(groups: Sequence[Group]) -> str:
    """Commands, commits, days, machines and versions of every group."""
    rows = []
    for group in groups:
        commits = dict.fromkeys(
            f"`{run['commit'][:8]}`{' with changes' if run.get('dirty') else ''}"
            for run in group.runs
            if run.get("commit")
        )
        days = dict.fromkeys(run["time"][:10] for run in group.runs if run.get("time"))
        rows.append(
            (
                _named(group),
                "\n".join(commands(group)),
                "\n".join(commits) or cells.UNKNOWN,
                "\n".join(days) or cells.UNKNOWN,
                group.hardware or cells.UNKNOWN,
                "\n".join(versions(group)),
                "\n".join(f"`{source}`" for source in group.sources),
            )
        )
    headings = ("system", "commands", "commit", "day", "hardware", "versions", "record")
    return webpage.table(headings, rows, range(len(headings)))
