"""What kernels and compiled references take on a card, from its record, for the expected time of a run.

    python -m bench times [bench/results/h200]        writes hlb/cost/times.json

Of each whole run in profiles.json the kernels' times are added up by pass (hlb/cost/passes.py), and beside
them stands what the passes of that run move and launch. So a pass of another size takes what its bytes, or
where PyTorch's operators stand between kernels its launches, took there. What a profile cannot tell apart is
from ops.json: compiled references of an op, forward and backward. The pass over a convolution's output that
makes statistics, and pools, is from the corrected blocks of conv-passes.json. Convolutions themselves are not
here: they stand in kernels/convolution/measured.json, pass by pass. Kernels that were rewritten since have a
`factor`, what they are modelled to take of that time, from rewritten.json (pace.py), and `beside` it the
seconds of operators that they have spared since; those of a profile of PRESENT are as they are now.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import statistics
from collections import Counter, defaultdict
from functools import partial
from pathlib import Path

import kernels
from hlb import UserError, settings
from hlb.cost import expected, floor
from hlb.errors import Parser, exit_status
from hlb.files import atomic
from kernels.base import traffic
from kernels.base.correctness import leaves
from kernels.base.spec import Case
from kernels.convolution import selection

HELP = """\
usage: python -m bench times [FOLDER]

What kernels and compiled references take on a card, from its record, for the
expected time of a run: writes hlb/cost/times.json.

  FOLDER  the record of a card, bench/results/h200 if not given
"""
# Pass -> pattern of its kernels in a profile; the first match counts. Those of "" are counted elsewhere.
CONVOLUTION = (
    r"_(conv|window)_(fwd|dgrad|wgrad)$|_(fprop|dgrad|wgrad)_"
    r"|implicit_gemm|ImplicitGemm|5x_cudnn|convolve_common"
)
OF_KERNELS = {
    "": CONVOLUTION,
    "conv_bn_act, the rest": r"reduce_kernel<128, 4.*float",
    "pool_head, the rest": r"simt_sgemm|splitKreduce",
    "cross_entropy, the rest": r"reduce_kernel<512, 1.*float",
    "se_gate, the rest": r"xmma_gemm_f32f32|_fused_gelu_\d|_fused_sum_\d",
    "stem, the rest": r"gemmSN_NN",
}
OF_TUNED = {"": CONVOLUTION + "|init_device_workspace"}
OF_REFERENCES = {
    "": CONVOLUTION
    + r"|nhwcAddPadding|convolution_gelu|abs_addcmul_index|_unsafe_index_add|gemm|splitKreduce|nvjet"
    r"|fused__to_copy_max_pool2d|log_softmax|^_(gram|apply|poly|momentum|update|sgd)$",
    "pool backward": r"max_pool2d_with_indices_backward_native",
    "pool": r"fused_max_pool2d_with_indices_\d+$",
    "norm_act backward": r"(silu|gelu|native_batch_norm)_backward",
    "norm_act": r"no_training_\w*(silu|gelu)|^triton_(red|per)_fused__to_copy_\w*mean\w*",
}
# recipe -> profile -> patterns of it; each profile gives the passes that no earlier one has given.
PROFILES = {
    "record94": {"tuned": OF_TUNED, "float8": OF_TUNED, "tri": OF_KERNELS, "mix": OF_REFERENCES},
    "seed": {"seed-tuned": OF_TUNED, "seed-tri": OF_KERNELS, "seed-ref": OF_REFERENCES},
}
PRESENT = ("tuned", "float8", "seed-tuned")
# Operators of PyTorch beside a kernel: what it has spared of them since it was measured is counted with it.
BESIDE = {
    "conv_bn_act, the rest": "_sums",
    "pool_head, the rest": "_pool_head_bwd",
    "cross_entropy, the rest": "_cross_entropy",
    "se_gate, the rest": "_se_gate_bwd",
    "stem, the rest": "_stem_bwd",
}


def read(path: Path):
    """A JSON file of the record. Raises UserError where it is missing or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {getattr(error, 'strerror', None) or error}") from None


def ledger(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def passes_of(recipe, choice: str) -> dict[str, Counter]:
    """pass -> bytes and launches of all of a run, but for what precedes its steps."""
    totals: dict[str, Counter] = defaultdict(Counter)
    for phase in floor.phases(recipe, choice):
        for times, passes in phase.work if phase.name != "prepare" else ():
            for one in passes:
                totals[one.name] += Counter(bytes=times * one.bytes, launches=times * one.launches)
    return totals


def profiled(profile: dict, recipe, choice: str, patterns: dict[str, str]) -> dict[str, dict]:
    """pass -> seconds of a whole run, with the bytes and launches that the run's passes have."""
    of = passes_of(recipe, choice)
    names = {name: name for name in of if name.startswith("_")}
    seconds: Counter = Counter({expected.BETWEEN: profile["remainder"]["ms"] / 1e3})
    counts: Counter = Counter()
    for row in profile["rows"]:
        known = names.get(row["name"])
        fits = (name for name, pattern in patterns.items() if re.search(pattern, row["name"]))
        name = known or next(fits, expected.BETWEEN)
        seconds[name] += row["ms"] / 1e3
        counts[name] += row["count"]
    kept = (name for name in seconds if name and name in of)
    rates = {name: {"seconds": seconds[name], **of[name]} for name in kept}
    for rest in BESIDE.keys() & counts.keys():
        spared = seconds[rest] * max(0.0, 1 - of.get(rest, Counter())["launches"] / counts[rest])
        if rest in rates:
            rates[rest]["launches"] = counts[rest]
        if spared:
            rates[BESIDE[rest]]["beside"] = rates[BESIDE[rest]].get("beside", 0.0) + spared
    return rates


def compiled(rows: list[dict], recipe: str) -> dict[str, dict]:
    """pass -> seconds of a compiled reference, and what it moves as eager PyTorch does; of the recipe's own
    case, else of the one that moves most.
    """
    rates: dict[str, dict] = {}
    named = [
        row for row in rows if row["case"].split(".")[0] == recipe and row["implementation"] == "compiled"
    ]
    for row in sorted(named, key=lambda row: row["case"] == recipe):
        op, direction = row["op"], row["direction"]
        if op == "norm_act" or direction == "both":
            continue
        spec, suffix = kernels.CATALOGUE[op], {"forward": "", "backward": " backward"}[direction]
        fields = {name: _frozen(value) for name, value in row["fields"].items()}
        inputs = leaves(spec, spec.make(Case(row["case"], **fields), spec.dtype(), "meta"))
        counted = traffic.traffic(spec.reference, inputs)[direction == "backward"]
        moved = counted.bytes.total()
        if row["case"] == recipe or moved > rates.get(op + suffix, {"bytes": 0})["bytes"]:
            rate = {"seconds": row["median"], "bytes": moved, "launches": counted.launches.total()}
            rates[op + suffix] = rate
    return rates


def _frozen(value):
    """Lists as tuples, which JSON has not and a case has."""
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def statistics_pass(content: dict) -> dict:
    """Of the statistics that cuDNN's forward passes were timed with: what the corrected ones take beyond the
    convolution where nothing is pooled, and the bytes of z, which that reads.
    """
    seconds = moved = 0
    for label, one in content["corrected"]["seconds"].items():
        forward = content["found"][f"{label} forward"]
        problem = selection.problem_of(forward["key"])
        if not problem.pool:
            seconds += one["forward"]["cudnn"] - forward["cudnn"]
            moved += problem.n * problem.h * problem.w * problem.o * problem.dtype.itemsize
    return {"seconds": seconds, "bytes": moved, "launches": 1}


def of_record(root: Path) -> tuple[str, dict]:
    """(the card's name, its entry of hlb/cost/times.json)"""
    profiles, ops, passes = (read(root / f"{name}.json") for name in ("profiles", "ops", "conv-passes"))
    factors = {(row["recipe"], row["kernel"]): row["factor"] for row in read(root / "rewritten.json")["rows"]}
    entry: dict = {"record": root.as_posix(), "recipes": {}, "prepare": {}}
    for name, of in PROFILES.items():
        present: set[str] = set()
        rates = {expected.STATISTICS: statistics_pass(passes)}
        for profile, patterns in of.items():
            run = profiles[profile]["run"]
            lines = ledger(root / run["ledger"])
            recipe = settings.from_fields(lines[0]["recipe_fields"])
            kind = "references" if patterns is OF_REFERENCES else "kernels"
            with contextlib.nullcontext() if profile in PRESENT else selection.as_measured():
                found = profiled(profiles[profile], recipe, run["kernels"], patterns)
            for one, rate in found.items():
                rates.setdefault(f"{one} of {kind}" if one == expected.BETWEEN else one, rate)
            present |= found.keys() if profile in PRESENT else set()
            entry["prepare"].setdefault(kind, statistics.fmean(line["prepare_seconds"] for line in lines))
        rates = compiled(ops["rows"], name) | rates
        for one in rates.keys() & {kernel for recipe, kernel in factors if recipe == name} - present:
            rates[one]["factor"] = factors[name, one]
        shapes = {field: getattr(recipe, field) for field in (*expected.SHAPES, "sizes")}
        entry["recipes"][name] = {"shapes": shapes, "passes": {one: rates[one] for one in sorted(rates)}}
    return profiles["tri"]["run"]["device"], entry


def main(arguments: list[str]) -> int:
    """Returns the exit status: 0, 2 (a mistake), 130 (interrupted)."""
    return exit_status("bench times", partial(_main, arguments))


def parsed(arguments: list[str]) -> argparse.Namespace:
    """The options of a command line. Raises UserError for invalid ones."""
    parser = Parser(description=HELP)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("bench/results/h200"))
    return parser.parse_args(arguments)


def _main(arguments: list[str]) -> int:
    options = parsed(arguments)
    name, entry = of_record(options.folder)
    content = json.loads(expected.FILE.read_text()) if expected.FILE.exists() else {}
    with atomic(expected.FILE) as temporary:
        temporary.write_text(text(content | {name: entry}))
    count = sum(len(one["passes"]) for one in entry["recipes"].values())
    print(f"{expected.FILE.name}: {name}, {count} passes")
    return 0


def text(content: dict) -> str:
    """As JSON, a line for each pass."""
    flat = json.dumps(content, indent=1)
    return (
        re.sub(r"\{\s+(\"seconds\"[^{}]*?)\s+\}", lambda m: "{" + re.sub(r"\s+", " ", m[1]) + "}", flat)
        + "\n"
    )
