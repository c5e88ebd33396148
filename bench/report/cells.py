"""Records as cells of a table, in words; what is unknown says so."""

from __future__ import annotations

from collections.abc import Sequence

from hlb.runs.statistics import RECORD_RUNS
from kernels.views import VIEWS

from .records import Group, Record

UNKNOWN = "not stated"
UNCLAIMED = f"Fewer than {RECORD_RUNS} runs are not a record claim."
COLUMNS = (
    "system",
    "run with",
    "hardware",
    "accuracy: mean [95 % interval] or std",
    "n",
    "test-time views",
    "time in s, and what is in it",
    "source",
)


def accuracy(record: Record) -> str:
    """94.20 % [93.93, 94.47], or as much of that as is known."""
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
    """How many succeeded, and how many failed."""
    n = UNKNOWN if record.n is None else str(record.n)
    return f"{n}, {record.failed} failed" if record.failed else n


def seconds(record: Record) -> str:
    """557.6 (std 12.3), or as much of that as is known."""
    if record.seconds is None:
        return "none" if record.n == 0 else UNKNOWN
    return _seconds(record.seconds, record.seconds_std)


def _seconds(mean: float, std: float | None) -> str:
    if std is None:
        return f"{mean:.0f}" if mean >= 1000 else f"{mean:.4g}"
    return (f"{mean:.0f}" if mean >= 1000 else f"{mean:#.4g}") + f" (std {std:.3g})"


def time(record: Record) -> str:
    """Seconds and what they include, by our rule and by the system's own; or why no time is quoted."""
    if record.untimed:
        return record.untimed
    text = f"{seconds(record)}: {record.contract or f'contents {UNKNOWN}'}"
    if record.own_seconds is None:
        return text
    own = _seconds(record.own_seconds, record.own_seconds_std)
    return f"{text}; by its own rule {own}: {record.own_contract}"


def views(record: Record | Group) -> str:
    if record.views not in VIEWS:
        return record.views or UNKNOWN
    shown = f"{len(VIEWS[record.views])} ({record.views})"
    if record.views_fraction < 1:
        shown += f", for the least sure {100 * record.views_fraction:g} %"
    return shown


def row(record: Record) -> tuple[str, ...]:
    """A record's cells, in the order of COLUMNS."""
    source = f"{record.source}, {record.date}" if record.date else record.source
    about = record.system, record.execution or "", record.hardware or UNKNOWN
    return *about, accuracy(record), runs(record), views(record), time(record), source


def unclaimed(mine: Sequence[Record]) -> str:
    """What our records do not claim, in a sentence or two."""
    gpu = "" if any(record.gpu and record.ours for record in mine) else " There is no GPU record yet."
    return UNCLAIMED + gpu
