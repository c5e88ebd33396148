"""What docs/measured-facts.md says of one H200 has the numbers of bench/results/h200/."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable
from math import exp
from pathlib import Path
from statistics import fmean, geometric_mean

import torch
from test_docs import FACTS, PAGES, rows, runs_of

from bench.expect import pace
from bench.tune import fitting
from hlb.runs import ledger
from hlb.runs.statistics import summary
from kernels.base import chips
from kernels.convolution import selection

ROOT = Path(__file__).parents[2]
H200 = ROOT / "bench" / "results" / "h200"


@functools.cache
def read(name: str) -> dict:
    return json.loads((H200 / name).read_text())


def span(values: Iterable[float], form: str) -> str:
    """From the least to the greatest."""
    least, *_, greatest = sorted(values)
    return f"{least:{form}} to {greatest:{form}}"


def test_runs_have_the_numbers_of_their_records():
    peers = {peer["system"].partition(",")[0]: peer["measured"] for peer in read("peers.json")["peers"]}
    found = rows(FACTS, "mean accuracy, seconds, n, memory")
    assert len(found) == 14
    for fact, numbers, source in found:
        path = ROOT / source.strip("`")
        if path.suffix == ".jsonl":
            accuracies, seconds = runs_of(path)
            memory = max(run["peak_memory_allocated"] for run in ledger.load(path))
            timed = "untimed" not in read("notes.json").get(path.name, {})
        else:
            peer = peers[fact.partition(",")[0]]
            accuracies, seconds = peer["accuracy_list"], peer["train_eval_seconds_list"]
            memory, timed = peer["peak_memory_mib"] * 2**20, True
        time = f"{fmean(seconds):.3f} s" if timed else "no time"
        wanted = f"{100 * fmean(accuracies):.2f} %, {time}, n = {len(accuracies)}, {memory / 1e9:.2f} GB"
        assert numbers == wanted, fact


# Facts, a function for each


def timed() -> dict[str, list[dict]]:
    """The compiled ledgers of `record94` whose times may be quoted."""
    notes = read("notes.json")
    found = {name: ledger.load(H200 / name) for name, note in notes.items() if "untimed" not in note}
    compiled = {name: runs for name, runs in found.items() if runs[0]["execution"]["compile"] == "on"}
    return {name: runs for name, runs in compiled.items() if runs[0]["recipe"] == "record94"}


def by_kernels() -> dict[str, list[dict]]:
    """Those of kernels, which are not compiled."""
    return {name: ledger.load(H200 / name) for name in ("triton.jsonl", "tuned.jsonl", "float8.jsonl")}


def milliseconds(field: str, found: dict[str, list[dict]] | None = None) -> str:
    found = timed() if found is None else found
    return span((1e3 * summary([run[field] for run in runs])["mean"] for runs in found.values()), ".1f")


def builds() -> str:
    warm = (runs[0]["build_seconds"] for name, runs in timed().items() if name != "hard.jsonl")
    return f"{span(warm, '.0f')} s"


def builds_of_kernels() -> str:
    seconds = {f"{runs[0]['build_seconds']:.0f} s" for runs in by_kernels().values()}
    cold = read("card-kernels.json")["steps"]["compile"]["result"]["builds"]["record94 triton"]
    return f"{', '.join(seconds)}; {cold:.0f} s"


def cold_build() -> str:
    return re.search(r"took (\d+ s) with empty caches", (H200 / "README.md").read_text())[1]


def ran_and_passed() -> str:
    passed, failed = sum(read("tests.json")["passed"].values()), len(read("tests.json")["failed"])
    return f"{passed + failed}, {passed}"


def shapes_of_today() -> str:
    tests = read("card-tests.json")["tests"].values()
    right = sum(one["outcome"] == "passed" for one in tests)
    return f"{sum(one['outcome'] != 'skipped' for one in tests)}, {right}"


def kernels_alone() -> str:
    return f"{fmean(runs_of(H200 / 'tri.jsonl')[1]):.3f} s"


def truncated() -> str:
    texts = " ".join(one["text"] for one in read("tests.json")["failed"] if "tf32" in one["id"])
    errors = re.findall(r"error ([\d.e-]+), allowed 1e-03", texts)
    return f"variances wrong by {span(map(float, errors), '.2e')} where 1e-03 was allowed for rounding"


def passes(kind: str = "", recipe: str = "", pool: bool = True) -> dict[str, dict]:
    """The convolution passes of a kind and a recipe, without the pooled ones if so asked."""
    found = read("conv-passes.json")["found"].items()
    chosen = {name: one for name, one in found if name.endswith(kind) and name.startswith(recipe)}
    return {name: one for name, one in chosen.items() if pool or "pool" not in one["key"]}


def fastest(one: dict) -> float:
    """Seconds of a pass by the fastest kernel."""
    return min(one["seconds"].values())


def ratios(found: dict[str, dict]) -> list[float]:
    """How many times faster than cuDNN the fastest kernel is."""
    return [one["cudnn"] / fastest(one) for one in found.values()]


def descriptors() -> str:
    gains = []
    for one in passes().values():
        boxed = [s for config, s in one["seconds"].items() if "descriptors" in config]
        plain = [s for config, s in one["seconds"].items() if "descriptors" not in config]
        if boxed and plain:
            gains.append(min(plain) / min(boxed))
    better, mean = sum(gain > 1 for gain in gains), geometric_mean(gains)
    of = f"faster in {better} of {len(gains)} passes"
    return f"{of}, {mean:.2f} times (geometric mean), {max(gains):.2f} at most"


def weakest() -> str:
    wgrad, dgrad = ratios(passes("wgrad")), ratios(passes("dgrad", pool=False))
    slower, slow = (sum(ratio < 1 for ratio in found) for found in (wgrad, dgrad))
    return f"slower than cuDNN in {slower} of {len(wgrad)}, dgrad without a pool in {slow} of {len(dgrad)}"


def modelled() -> str:
    def off(kind: str) -> str:
        return f"{geometric_mean(fastest(o) / min(o['model'].values()) for o in passes(kind).values()):.2f}"

    kinds = ", ".join(f"{kind} {off(kind)}" for kind in ("forward", "dgrad", "wgrad"))
    return f"{off('')} times the modelled (geometric mean), {kinds}"


def refitted() -> str:
    chip, found = fitting.read(H200 / "conv-passes.json")

    def off(kind: str) -> str:
        errors = fitting.errors([one for one in found if one.problem.kind.startswith(kind)], chip)
        return f"{exp(fmean(errors)):.2f}"

    kinds = ", ".join(f"{kind} {off(kind)}" for kind in ("forward", "dgrad", "wgrad"))
    return f"{fitting.described(list(fitting.errors(found, chip)))}; {off('')} times the modelled, {kinds}"


def launched(profile: str, *words: str) -> list[dict]:
    """The rows of a profile in whose name all words are."""
    found = read("profiles.json")[profile]["rows"]
    return [row for row in found if all(word in row["name"] for word in words)]


def took(profile: str, *names: str) -> str:
    """Milliseconds of kernels in a run, by a word of their names."""
    return ", ".join(f"{sum(row['ms'] for row in launched(profile, name)):.1f} ms" for name in names)


def pool_backward() -> str:
    two = launched("ref-base", "triton_poi_", "max_pool2d_with_indices_backward")[:2]
    return f"{' + '.join(format(row['us'], '.0f') for row in two)} µs a step of `record94`"


def convolutions() -> str:
    ms = sum(row["ms"] for row in launched("tri", "_conv_"))
    return f"{ms:.0f} of {read('profiles.json')['tri']['busy_ms']:.0f} ms"


def reductions() -> str:
    found = launched("tri", "at::native::reduce_kernel")
    return f"{took('tri', 'at::native::reduce_kernel')} in {sum(row['count'] for row in found):,} launches"


def float32_product() -> str:
    return f"{launched('seed-tri', 'gemm_f32f32')[0]['us']:.1f} µs a step"


FIRST = "record94 g1.conv1 at 32"


def first_convolution() -> str:
    best = {name: min(fastest(one), one["cudnn"]) for name, one in passes().items() if " at 32 " in name}
    del best[f"{FIRST} dgrad"]  # which only the first steps need
    two, whole = best[f"{FIRST} forward"] + best[f"{FIRST} wgrad"], sum(best.values())
    return f"{1e6 * two:.0f} of {1e6 * whole:,.0f} µs"


def from_its_floor() -> str:
    parts = []
    for kind in ("forward", "wgrad"):
        one = passes()[f"{FIRST} {kind}"]
        floor = one["useful"] / chips.AIMED_AT.flops[torch.float16]
        parts.append(f"{min(fastest(one), one['cudnn']) / floor:.1f} times {kind}")
    return ", ".join(parts)


def smaller_images() -> str:
    found = dict(zip(passes(), ratios(passes())))
    pairs = [(found[name], found[name.replace("at 32", "at 24")]) for name in found if "at 32" in name]
    return f"in {sum(small > large for large, small in pairs)} of {len(pairs)} passes"


def dgrad() -> str:
    return f"{span(ratios(passes('dgrad', 'record94', pool=False)), '.2f')} times"


NUMBERS = {  # words of a fact -> its numbers
    "the final evaluation": lambda: f"{milliseconds('eval_seconds')} ms",
    "what precedes": lambda: f"{milliseconds('prepare_seconds')} ms",
    "building it": builds,
    "and with empty ones": cold_build,
    "evaluation by kernels": lambda: f"{milliseconds('eval_seconds', by_kernels())} ms",
    "building kernels alone": builds_of_kernels,
    "at the recipes' shapes": shapes_of_today,
    "of 2026-11-26 that ran": ran_and_passed,
    "every op a kernel: 0.65": kernels_alone,
    "truncate tf32": truncated,
    "tensor descriptors": descriptors,
    "wgrad is the weakest": weakest,
    "the model's time": modelled,
    "the same, fitted": refitted,
    "max-pool's backward": pool_backward,
    "convolutions, of": convolutions,
    "`_sums` takes": lambda: took("tri", "_sums", "_gradient"),
    "sums of splits": lambda: took("tri", "_sum_splits", "_merge_statistics"),
    "small reductions": reductions,
    "float32 product": float32_product,
    "the first convolution": first_convolution,
    "its FLOPs alone": from_its_floor,
    "better at 24": smaller_images,
    "Triton is the faster": dgrad,
}


def test_facts_have_the_numbers_of_their_records():
    found = rows(FACTS, "measured") + rows(FACTS, "came")
    assert len(found) == len(NUMBERS)
    for fact, numbers, _ in found:
        ((_, wanted),) = [one for one in NUMBERS.items() if one[0] in fact]
        assert numbers == wanted(), fact


# Ops


def ops() -> dict[tuple[str, str, str, str], dict]:
    fields = ("op", "case", "direction", "implementation")
    return {tuple(row[field] for field in fields): row for row in read("ops.json")["rows"]}


def test_times_of_ops_are_those_of_their_rows_and_what_is_slower_is_said():
    found = rows(FACTS, "compiled")
    assert len(found) == 9
    for op, case, direction, *times, _ in found:
        name = re.search("`(.+?)`", op)[1]
        ours, theirs = (1e6 * ops()[name, case, direction, by]["median"] for by in ("triton", "compiled"))
        assert times == [f"{ours:.1f}", f"{theirs:.1f}"] and (ours > theirs) is ("slower" in op), op


def test_rates_of_ops_are_those_of_their_rows():
    found = rows(FACTS, "of 4.3 TB/s")
    assert len(found) == 3 and chips.AIMED_AT.bandwidth == 4.3e12
    for op, case, direction, *rates, _ in found:
        rate = ops()[op.strip("`"), case, direction, "triton"]["bytes_per_second"]
        assert rates == [f"{rate / 1e12:.2f}", f"{100 * rate / 4.3e12:.0f} %"], op


def test_the_copies_that_ops_were_compared_with_had_two_rates():
    copies = {
        call: row["bytes_per_second"] / row["percent_of_copy"] / 1e10
        for call, row in ops().items()
        if call[0] == "norm_act"
    }
    fast = {call: rate for call, rate in copies.items() if rate > 4}
    assert {direction for _, _, direction, _ in fast} == {"backward"}
    page = re.sub(r"\s+", " ", PAGES[FACTS].read_text())
    assert f"at {span(fast.values(), '.2f')};" in page
    large = read("ops.json")["copy_bytes_per_second"] / 1e12
    assert f"no more than {large:.2f} TB/s" in page
    assert max(rate for call, rate in copies.items() if call not in fast) <= large


def test_the_rooflines_example_took_what_its_record_says():
    seconds = fastest(passes()["r1.conv1 forward"])
    floor = (33.22e9 / 790e12) + 1.5e-6
    page = re.sub(r"\s+", " ", PAGES["docs/roofline.md"].read_text())
    assert f"took {1e6 * seconds:.1f} µs, {seconds / floor:.1f} times its floor" in page


# What no card has run


def test_what_rewritten_kernels_should_take_is_what_the_record_says():
    wanted = []
    for recipe, kernel, *numbers in pace.table(read("rewritten.json")["rows"]):
        if numbers[-1]:
            profile = {"record94": "triton", "seed": "seed-tuned"}[recipe]
            (came,) = [row["us"] for row in launched(profile) if row["name"] == kernel]
            wanted.append([f"`{kernel}`", recipe, *numbers, f"{came:.1f}"])
    assert rows(FACTS, "expected µs") == wanted


def test_what_windows_should_take_is_what_the_plan_says():
    found = []
    for kind in ("forward", "wgrad"):
        problem = selection.problem_of(passes()[f"{FIRST} {kind}"]["key"])
        form = selection.estimate(problem, chips.AIMED_AT)
        spared = selection.unpool(problem, chips.AIMED_AT)[0] if kind == "wgrad" else 0.0
        times = form.seconds, form.replaced.seconds, form.replaced.cudnn + spared
        modelled, kernel, cudnn = (f"{1e6 * seconds:.0f}" for seconds in times)
        found.append([kind, modelled, f"{kernel}, {cudnn}"])
    assert rows(FACTS, "measured µs, Triton, cuDNN") == found
