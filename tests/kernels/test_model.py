"""The model of what a convolution's pass takes, by itself and beside what an H200 measured."""

from __future__ import annotations

import functools
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean

import pytest
import torch
from helpers import recipe_passes

from bench.tune import fitting
from bench.tune.cli import main
from kernels.base.chips import TARGETS
from kernels.convolution import candidates, model, selection, tiling
from kernels.convolution.tiling import Config, Problem

H200 = TARGETS[90]
DTYPES = (torch.float16, torch.bfloat16)
PROBLEM = Problem("forward", 512, 15, 15, 128, 128)
CONFIG = Config("rows", 64, 64, 32, 4, 4)


def test_more_work_and_slower_chips_take_longer():
    config = selection.choose(PROBLEM, H200)

    def seconds(problem=PROBLEM, chip=H200) -> float:
        return model.seconds(problem, config, chip)

    assert seconds(replace(PROBLEM, n=1024)) > seconds()
    assert seconds(replace(PROBLEM, c=256)) > seconds()
    assert seconds(chip=replace(H200, multiprocessors=100)) != seconds()  # other rounds, less evenly filled
    halved = {kind: rate / 8 for kind, rate in H200.flops.items()}
    assert seconds(chip=replace(H200, flops=halved)) > seconds()
    assert seconds(chip=replace(H200, bandwidth=H200.bandwidth / 100)) > seconds()
    assert seconds(replace(PROBLEM, dtype=torch.float32)) > seconds()


def test_smaller_steps_and_waiting_for_each_product_take_longer(monkeypatch):
    monkeypatch.setattr(model, "residents", lambda *_: 1)
    config = Config("images", 64, 64, 64, 4, 3)
    seconds = model.seconds(PROBLEM, config, H200)
    assert model.seconds(PROBLEM, replace(config, depth=32), H200) > seconds
    assert model.seconds(PROBLEM, config, H200, serial=True) > seconds


def test_programs_that_are_resident_together_fill_each_others_waits(monkeypatch):
    config = Config("images", 128, 128, 64, 8, 3)
    seconds = []
    for many in (1, 2):
        monkeypatch.setattr(model, "residents", lambda *_, many=many: many)
        seconds.append(model.seconds(PROBLEM, config, H200))
    assert seconds[1] < seconds[0]


def test_launches_take_microseconds_and_a_pass_no_less_than_its_flops_and_bytes():
    for problem in recipe_passes(torch.float16):
        config = selection.choose(problem, H200)
        seconds = model.seconds(problem, config, H200) - (3e-6 if problem.kind == "wgrad" else 1.5e-6)
        assert seconds > tiling.flops(problem, config) / H200.flops[torch.float16]
        assert seconds * 1.001 > tiling.bytes(problem, config) / H200.bandwidth
    tiny = Problem("wgrad", 1, 3, 3, 16, 16)
    assert model.seconds(tiny, selection.choose(tiny, H200), H200) > 3e-6


def test_small_tiles_read_more_and_take_longer():
    small, large = (Config("images", size, size, 64, 8, 3) for size in (32, 128))
    assert model.seconds(PROBLEM, small, H200) > model.seconds(PROBLEM, large, H200)


def test_a_multiprocessor_holds_what_registers_shared_memory_and_warps_allow(monkeypatch):
    config = Config("images", 64, 64, 64, 4, 3)  # 48 KiB
    monkeypatch.setattr(model, "registers", lambda *_: 40)
    assert model.residents(PROBLEM, config, H200) == 4
    monkeypatch.setattr(model, "registers", lambda *_: 255)
    assert model.residents(PROBLEM, config, H200) == 2
    assert model.residents(PROBLEM, replace(config, depth=512), H200) == 1


@pytest.mark.parametrize(
    "kind, pool, tile, cc, compiled",
    [
        ("forward", True, (128, 128, 64, 8, 3), 90, 238),
        ("forward", True, (64, 64, 64, 4, 3), 90, 155),
        ("forward", False, (128, 64, 64, 8, 3), 90, 102),
        ("dgrad", False, (128, 128, 64, 8, 3), 90, 100),
        ("dgrad", False, (128, 128, 64, 8, 3), 80, 162),
        ("wgrad", True, (128, 256, 64, 8, 3), 90, 208),
        ("wgrad", True, (128, 64, 64, 8, 3), 80, 105),
    ],
)
def test_registers_are_about_what_the_compiler_needs(kind, pool, tile, cc, compiled):
    problem = replace(PROBLEM, kind=kind, pool=pool)
    assert model.registers(problem, Config("images", *tile), TARGETS[cc]) == pytest.approx(compiled, rel=0.2)


MEASURED = Path(__file__).resolve().parents[2] / "bench" / "results" / "h200" / "conv-passes.json"


@functools.cache
def theirs() -> list[fitting.Pass]:
    """The passes that were measured on an H200."""
    return fitting.read(MEASURED)[1]


def test_modelled_times_are_off_by_an_eighth_in_the_mean_and_by_two_fifths_at_worst():
    assert len(theirs()) == 51
    errors = list(fitting.errors(theirs(), H200))
    assert len(errors) == 384 and abs(fmean(errors)) < 0.01
    assert fmean(map(abs, errors)) < 0.119 and max(map(abs, errors)) < 0.395


@pytest.mark.parametrize("name", asdict(model.FITTED))
def test_a_constant_of_the_model_is_the_one_that_fits_what_was_measured(name):
    least = fitting.squares(theirs(), H200, model.FITTED)
    for factor in (0.9, 0.98, 1.02, 1.1):
        other = replace(model.FITTED, **{name: factor * getattr(model.FITTED, name)})
        assert fitting.squares(theirs(), H200, other) > least


def test_a_fit_finds_its_way_back_from_other_constants():
    some = theirs()[::5]
    off = replace(model.FITTED, reuse=model.FITTED.reuse / 2)
    there = fitting.squares(some, H200, model.FITTED)
    best = fitting.fit(some, H200, off)
    assert fitting.squares(some, H200, best) <= there < fitting.squares(some, H200, off)


def test_what_the_model_chooses_is_mostly_among_the_fastest_that_were_measured():
    lost = []
    for one in theirs():
        found = [config for config in candidates.candidates(one.problem, H200) if config in one.seconds]
        chosen = min(found, key=lambda c: model.seconds(one.problem, c, H200, serial=one.serial))
        lost.append(one.seconds[chosen] / min(one.seconds[config] for config in found))
    assert sum(each <= 1.05 for each in lost) >= 39 and sum(each <= 1.10 for each in lost) >= 43
    assert max(lost) < 1.45


@pytest.mark.parametrize(
    "kind, pool, order, c, tile, descriptors, compiled",
    [
        ("dgrad", False, "images", 64, (128, 128, 64, 8, 3), True, 119),
        ("dgrad", False, "images", 64, (128, 256, 64, 8, 3), False, 158),
        ("dgrad", True, "images", 64, (128, 64, 64, 8, 3), True, 360),
        ("forward", True, "images", 64, (128, 128, 64, 8, 3), True, 120),
        ("wgrad", False, "images", 128, (128, 128, 64, 8, 3), True, 161),
        ("wgrad", True, "images", 256, (128, 256, 64, 8, 3), True, 400),
        ("wgrad", True, "rows", 24, (64, 128, 64, 8, 3), False, 389),
    ],
)
def test_instructions_of_a_step_are_about_those_that_the_compiler_makes(
    kind, pool, order, c, tile, descriptors, compiled
):
    problem, config = replace(PROBLEM, kind=kind, pool=pool, c=c), Config(order, *tile, descriptors)
    assert model.instructions(problem, config) == pytest.approx(compiled, rel=0.3)


def test_how_far_the_model_is_off_is_told_with_what_would_suit_it_better(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(fitting, "fit", lambda *_: replace(model.FITTED, issue=1e9))
    assert main(["--fit", str(MEASURED)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "51 passes, 384 configurations on NVIDIA H200"
    assert lines[1] == "now: 11.8 % off in the mean, 39 % at worst" and lines[2] > "fitted: 11.8 %"
    assert [line.split() for line in lines[3:5]] == [["reuse", "2.59"], ["issue", "1e+09"]]
    for path, text in (("none.json", None), ("other.json", "{}"), ("chip.json", '{"chip": "NVIDIA T4"}')):
        if text:
            (tmp_path / path).write_text(text)
        assert main(["--fit", str(tmp_path / path)]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and path in err


def test_nearly_all_that_was_measured_took_less_than_the_margin_times_the_modelled():
    within = [
        one.seconds[best := min(one.seconds, key=one.seconds.get)]
        < selection.MARGIN * model.seconds(one.problem, best, H200, serial=one.serial)
        for one in theirs()
    ]
    assert sum(within) >= 48
