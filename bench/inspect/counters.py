"""Ten counters of a kernel's launch: how Nsight Compute names them, and what they say in words.

Names, units and the reasons of stalls are those of Nsight Compute's kernel profiling guide and its sections.
"""

from __future__ import annotations

import csv
import math
import re

TIME = "gpu__time_duration.sum"
READ, WRITTEN = "dram__bytes_read.sum", "dram__bytes_write.sum"
DRAM = "dram__throughput.avg.pct_of_peak_sustained_elapsed"
L2_HITS = "lts__t_sector_hit_rate.pct"
SM = "sm__throughput.avg.pct_of_peak_sustained_elapsed"
TENSOR = "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_elapsed"
WARPS = "sm__warps_active.avg.pct_of_peak_sustained_active"
MOST_WARPS = "sm__maximum_warps_per_active_cycle_pct"
REGISTERS = "launch__registers_per_thread"
SPILLS = tuple(f"l1tex__t_bytes_pipe_lsu_mem_local_op_{way}.sum" for way in ("ld", "st"))
CONFLICTS = "l1tex__data_bank_conflicts_pipe_lsu_mem_shared.sum"
STALL = "smsp__average_warps_issue_stalled_{}_per_issue_active.ratio"
# What a warp waits for between two of its instructions.
REASONS = {
    "long_scoreboard": "data from L2 or DRAM",
    "short_scoreboard": "data from shared memory",
    "barrier": "other warps, at a barrier",
    "gmma": "wgmma",
    "math_pipe_throttle": "a busy arithmetic pipe",
    "mio_throttle": "room in the queue for shared memory",
    "lg_throttle": "room in the queue for memory",
    "tex_throttle": "room in the queue for textures",
    "wait": "a fixed latency",
    "not_selected": "its turn beside other warps that are ready",
    "no_instruction": "instructions to be fetched",
    "branch_resolving": "a branch",
    "drain": "its last stores",
    "membar": "a memory fence",
    "imc_miss": "constants",
    "dispatch_stall": "the dispatcher",
    "sleeping": "the end of a sleep",
    "misc": "something else",
}
STALLS = {STALL.format(reason): words for reason, words in REASONS.items()}
ISSUED = STALL.format("selected")  # what a warp's time has beside stalls
METRICS = (
    *(TIME, READ, WRITTEN, DRAM, L2_HITS, SM, TENSOR, WARPS, MOST_WARPS, REGISTERS, *SPILLS, CONFLICTS),
    *(*STALLS, ISSUED),
)
# metric -> what chips without it have in its place
SUCCESSORS = {
    READ: "dram__bytes_op_read.sum",
    WRITTEN: "dram__bytes_op_write.sum",
    DRAM: "gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed",
}
PREFIXES = {"": 1.0, "n": 1e-9, "u": 1e-6, "m": 1e-3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}


def parsed(text: str) -> dict[str, float]:
    """metric -> value, in seconds, bytes or as it is, of what `ncu --csv` and its program print. What is n/a
    is left out.
    """
    values = {}
    for row in csv.DictReader(line for line in text.splitlines() if line.startswith('"')):
        try:
            number = float(row.get("Metric Value", "").replace(",", ""))
        except ValueError:
            continue
        values[row["Metric Name"]] = number * scale(row["Metric Unit"])
    return values


def scale(unit: str) -> float:
    """Of a unit of time or of bytes, in seconds or bytes: ns, usecond, Mbyte; 1 of any other."""
    match = re.fullmatch(r"([numKMGT]?)(s|second|byte)", unit)
    return PREFIXES[match[1]] if match else 1.0


def quantity(value: float, unit: str) -> str:
    """34.5 MB, 12.3 us: three digits and a prefix."""
    rounded = float(f"{value:.3g}")
    power = min(max(math.floor(math.log10(rounded) / 3 + 1e-9), -3), 4) if rounded else 0
    return f"{rounded / 1000**power:.3g} {'num KMGT'[power + 3].strip()}{unit}"


def table(values: dict[str, float], moved: float, done: float) -> list[tuple[str, str, str]]:
    """Ten rows (counter, value, what it says) of a launch that is declared to move and do so many bytes and
    FLOPs. `values` is by metric; a counter without its metrics is not available.
    """

    def percent(metric: str) -> str:
        return f"{values[metric]:.1f} %"

    def time() -> tuple[str, str]:
        rates = [(moved, "B"), (done, "FLOP")]
        words = [f"{quantity(x / values[TIME], u)}/s of the {quantity(x, u)} declared" for x, u in rates if x]
        return quantity(values[TIME], "s"), ", ".join(words)

    def traffic() -> tuple[str, str]:
        read, written = values[READ], values[WRITTEN]
        ways = f"{quantity(read, 'B')} read, {quantity(written, 'B')} written (what stays in L2 is not)"
        ratio = f"{(read + written) / moved:.2f} of the {quantity(moved, 'B')} declared: " if moved else ""
        return quantity(read + written, "B"), ratio + ways

    def registers() -> tuple[str, str]:
        spilled = sum(values.get(metric, math.nan) for metric in SPILLS)
        moves = quantity(spilled, "B") if spilled > 0 else "nothing"
        words = "spills are not available" if math.isnan(spilled) else f"{moves} is spilled to local memory"
        return f"{values[REGISTERS]:g}", f"a thread; {words}"

    def stalls() -> tuple[str, str]:
        spent = {metric: values[metric] for metric in (*STALLS, ISSUED) if metric in values}
        whole = sum(spent.values()) or 1
        shares = sorted(((spent[m] / whole, m) for m in STALLS if m in spent), reverse=True)
        (most, first), (next_most, second), *_ = shares
        words = (
            f"of its time a warp waits for {STALLS[first]}, then {100 * next_most:.0f} % for {STALLS[second]}"
        )
        return f"{100 * most:.0f} %", words

    no_dot = "" if done else "; no dot is declared"
    rows = (
        ("time", (TIME,), time),
        ("DRAM traffic", (READ, WRITTEN), traffic),
        ("DRAM throughput", (DRAM,), lambda: (percent(DRAM), "of what device memory can do")),
        ("L2 hits", (L2_HITS,), lambda: (percent(L2_HITS), "of what is asked of L2, which starts empty")),
        ("SM throughput", (SM,), lambda: (percent(SM), "of what the busiest part of an SM can do")),
        ("tensor cores", (TENSOR,), lambda: (percent(TENSOR), f"of what they can do{no_dot}")),
        (
            "occupancy",
            (WARPS, MOST_WARPS),
            lambda: (percent(WARPS), f"of the warps that fit an SM; the launch allows {percent(MOST_WARPS)}"),
        ),
        ("registers", (REGISTERS,), registers),
        ("stalls", tuple(STALLS)[:2], stalls),
        (
            "bank conflicts",
            (CONFLICTS,),
            lambda: (f"{values[CONFLICTS]:,.0f}", "cycles lost in shared memory"),
        ),
    )
    return [
        (name, *(cells() if all(metric in values for metric in needed) else ("not available", "")))
        for name, needed, cells in rows
    ]
