"""The modelled floor of a run: arithmetic, what is counted in it, what it must follow."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch

import hlb
from hlb import averaging
from hlb.cli import main
from hlb.cost import complexity, floor
from hlb.cost.floor import Phase
from hlb.cost.passes import Pass, passes
from hlb.cost.rehearsal import Rehearsal
from hlb.step import Variant
from kernels.base import chips
from kernels.base.chips import Chip
from kernels.sgd import AVERAGES
from kernels.views import VIEWS

H200 = chips.AIMED_AT
TOY = Chip("toy", 90, 1, 1, bandwidth=10.0, l2_bandwidth=1.0, flops={torch.float16: 100.0}, launch=0.5)
SETTINGS = {
    "epochs": 3,
    "sizes": (16, 24, 20),
    "averaging": "ema",
    "averaging_epochs": 1,
    "averaging_every": 5,
}
FEW = {"eval_batch_size": 10000}  # batches, which tests need not wait for


@pytest.fixture(scope="module")
def recipe():
    """Small, with three sizes of images, a stem that freezes on the way, and an average."""
    return hlb.recipe("smoke", SETTINGS | FEW | {"views": "flip+shift", "views_fraction": 0.25})


@pytest.fixture(scope="module")
def phases(recipe):
    return floor.phases(recipe, "triton")


def seconds(recipe, choice: str = "triton") -> float:
    return floor.seconds(floor.phases(recipe, choice), H200)


# The arithmetic


@pytest.mark.parametrize(
    "flops, bytes, launches, expected, bound",
    [
        (1000, 50, 1, 10 + 0.5, "compute"),
        (100, 50, 2, 5 + 1.0, "memory"),
        (100, 50, 12, 5 + 6.0, "launch"),
        (0, 0, 1, 0.5, "launch"),
    ],
)
def test_a_pass_takes_its_flops_or_its_bytes_and_its_launches_on_top(flops, bytes, launches, expected, bound):
    one = Pass("layer", "name", "form", flops, bytes, launches=launches)
    assert one.seconds(TOY) == pytest.approx(expected)
    assert one.bound(TOY) == bound


def test_the_floor_adds_up_passes_times_and_phases():
    a = Pass("a", "", "", 1000, 50)  # 10.5 s
    b = Pass("b", "", "", 100, 50, launches=2)  # 6 s
    parts = [Phase("first", 1, ((1, [a]),)), Phase("then", 5, ((2, [a, b]), (3, [b])))]
    assert floor.seconds(parts, TOY) == pytest.approx(10.5 + 2 * 16.5 + 3 * 6)
    assert floor.launch_seconds(parts, TOY) == pytest.approx(0.5 * (1 + 2 * 3 + 3 * 2))
    assert floor.summary(parts, TOY)["phases"][1] == {
        "phase": "then",
        "steps": 5,
        "flops": 2 * 1100 + 3 * 100,
        "bytes": 5 * 50 + 2 * 50,
        "launches": 12,
        "seconds": pytest.approx(51),
    }


def test_the_chip_that_is_aimed_at_has_the_measured_ceilings():
    assert (H200.name, H200.flops[torch.float16], H200.bandwidth) == ("NVIDIA H200", 790e12, 4.3e12)
    assert H200.launch == 1.5e-6


# What is counted


def test_steps_by_size_add_up_to_the_run(recipe, phases):
    assert [p.name for p in phases] == [
        "prepare",
        "shuffle",
        "train at 16",
        "train at 24",
        "train at 20",
        "evaluation",
    ]
    per_epoch = recipe.steps_per_epoch(50000)
    assert [p.steps for p in phases] == [1, 3, per_epoch, per_epoch, per_epoch, 1]
    assert complexity.steps(recipe).total() == recipe.steps(50000) == 3 * per_epoch
    for phase in phases:
        assert sum(times for times, _ in phase.work) == phase.steps


def test_a_shorter_last_batch_is_a_step_of_its_own():
    counts = complexity.steps(hlb.recipe("smoke", {"batch_size": 3000, "drop_last": False, "epochs": 2}))
    sizes = Counter()
    for (variant, _), times in counts.items():
        sizes[variant.count] += times
    assert sizes == {3000: 6, 1000: 2}


@pytest.mark.parametrize("kind", ("ema", "lookahead", "tail"))
def test_what_a_step_averages_has_the_name_of_a_case_that_moves_as_much(kind):
    recipe = hlb.recipe("smoke", SETTINGS | {"averaging": kind, "averaging_decay": 0.9})
    rows = averaging.table(recipe, recipe.steps(50000), recipe.steps_by_epoch(50000))

    def moves(mix: float, take: float) -> tuple[bool, bool]:
        """Whether slow weights are written, and read."""
        return mix > 0, mix < 1 and max(mix, take) > 0

    found = Counter()
    for (_, name), times in complexity.steps(recipe).items():
        found[moves(*AVERAGES.get(name, (0, 0)))] += times
    assert found == Counter(moves(*row) for row in rows.tolist())


@pytest.mark.parametrize("views", VIEWS)
@pytest.mark.parametrize("fraction", (0.0, 0.25, 1.0))
def test_an_evaluation_is_of_all_images_once_and_of_the_unsure_ones_in_each_other_view(views, fraction):
    recipe = hlb.recipe("smoke", {"views": views, "views_fraction": fraction, "eval_batch_size": 1400})
    run = Rehearsal(recipe, tests=3000)
    calls, between = run.part(run.evaluate)
    batches = [len(inputs["x"]) for op, inputs in calls if op == "stem"]
    assert sum(batches) == 3000 + round(fraction * 3000) * (len(VIEWS[views]) - 1)
    heads = [p for p in passes(recipe, "triton", calls, between) if p.name == "_pool_head_fwd"]
    assert len(heads) == len(batches)


def test_evaluation_has_forward_kernels_only(phases):
    (times, found), *_ = phases[-1].work
    assert times == 1
    assert {p.name for p in found if p.form not in ("PyTorch", "reference")} == {
        "_views",
        "_weigh_views",
        "_stem_fwd",
        "forward",
        "_pool_head_fwd",
        "_cross_entropy",
    }


def test_preparing_draws_weights_and_whitens(phases):
    names = [p.name for _, found in phases[0].work for p in found]
    assert "_uniform" in names and "_patch_moments" in names


def test_a_step_that_trains_the_stem_or_averages_moves_more(recipe):
    run = Rehearsal(recipe)

    def moved(train_stem: bool, averages: str) -> int:
        part = run.part(lambda: run.step(Variant(24, 500, train_stem, averages != "none")))
        return sum(p.bytes for p in passes(recipe, "triton", *part, averages))

    assert moved(False, "none") < moved(False, "ema") < moved(True, "ema")


# What it must follow


@pytest.mark.parametrize("choice", ("triton", "reference"))
def test_smaller_images_cost_less(choice):
    at = [seconds(hlb.recipe("smoke", FEW | {"sizes": sizes}), choice) for sizes in ((24,), (32,))]
    assert at[0] < at[1]


def test_fewer_views_cost_less():
    at = [seconds(hlb.recipe("smoke", FEW | {"views_fraction": fraction})) for fraction in (0.0, 0.25)]
    assert at[0] < at[1]


def test_the_floor_is_above_the_useful_flops_alone():
    recipe = hlb.recipe("record94", FEW)
    parts = floor.phases(recipe, "reference")
    useful = sum(times * sum(p.useful or 0 for p in found) for phase in parts for times, found in phase.work)
    assert floor.seconds(parts, H200) > useful / H200.flops[torch.float16]


# As printed


def test_recipes_prints_the_phases_and_the_floor(capsys):
    assert main(["recipes", "smoke", "--kernels", "triton"]) == 0
    lines = capsys.readouterr().out.splitlines()
    chip = chips.here()
    told = floor.summary(floor.phases(hlb.recipe("smoke"), "triton"), chip)
    start = next(i for i, line in enumerate(lines) if line.startswith("phase"))
    assert lines[start].split() == [
        "phase",
        "steps",
        "TFLOP",
        "GB",
        "launches",
        "floor",
        "s",
        "expected",
        "s",
    ]
    for line, phase in zip(lines[start + 1 :], told["phases"]):
        assert line.startswith(phase["phase"])
        assert line.split()[-6:-1] == [
            str(phase["steps"]),
            f"{phase['flops'] / 1e12:.2f}",
            f"{phase['bytes'] / 1e9:.2f}",
            str(phase["launches"]),
            f"{phase['seconds']:.4f}",
        ]
    assert lines[-3] == (
        f"modelled floor on {chip.name.removeprefix('NVIDIA ')}: {told['seconds']:.3f} s "
        f"(launches {told['launch_seconds']:.3f} s of it)"
    )
    assert len(lines) == start + 4 + len(told["phases"]) and lines[-1].startswith("of it convolutions: ")
    assert "no measurement" in lines[start - 1]


def test_recipes_json_has_the_floor(capsys):
    assert main(["recipes", "smoke", "--kernels", "triton", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["smoke"]["floor"]
    assert told == floor.summary(floor.phases(hlb.recipe("smoke"), "triton"), chips.here())
    assert told["seconds"] == pytest.approx(sum(phase["seconds"] for phase in told["phases"]))
    assert told["launch_seconds"] == pytest.approx(
        sum(phase["launches"] for phase in told["phases"]) * chips.here().launch
    )


def test_record94_needs_at_most_0_35_s_on_an_h200():
    assert floor.seconds(floor.phases(hlb.RECIPES["record94"], "triton"), chips.AIMED_AT) <= 0.35
