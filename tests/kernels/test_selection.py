"""Which configuration a convolution is launched with: candidates and the table of what was measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import recipe_passes

from bench.tune.cli import main
from kernels import conv_bn_act
from kernels.base import chips
from kernels.base.chips import TARGETS
from kernels.convolution import candidates, model, selection, tiling
from kernels.convolution.tiling import PASSES, Config, Problem

H200 = TARGETS[90]
DTYPES = (torch.float16, torch.bfloat16)
PROBLEM = Problem("forward", 512, 15, 15, 128, 128)
CONFIG = Config("rows", 64, 64, 32, 4, 4)


def section(
    chip, config: Config = CONFIG, seconds: float = 1e-4, cudnn: float = 2e-4, problem=PROBLEM
) -> dict:
    entry = {"config": str(config), "seconds": seconds, "cudnn": cudnn}
    found = {"cc": chip.cc, "multiprocessors": chip.multiprocessors}
    return found | {"launches": {selection.key(problem): entry}}


def passes(pool: bool, gains: dict[str, float], unpool: float = 0.0) -> dict:
    """A table in which each pass of PROBLEM takes a kernel 1 s, and cuDNN so much longer."""
    forward, entries = replace(PROBLEM, pool=pool), {}
    for kind, gain in gains.items():
        problem = replace(forward, kind=kind)
        config = selection.best(problem, H200)
        entries |= section(H200, config, 1.0, 1.0 + gain, problem)["launches"]
    written = {selection.key(forward): {"seconds": unpool}} if pool else {}
    return {H200.name: section(H200) | {"launches": entries, "unpool": written}}


# Chips


def test_a_cpu_has_the_chip_that_kernels_are_written_for_unless_another_is_targeted():
    assert chips.current("cpu") is H200
    with chips.targeting(TARGETS[80]):
        assert chips.current("cpu") is chips.current("cuda") is TARGETS[80]
    assert chips.current("cpu") is H200


def test_a_gpu_has_the_rates_of_its_entry_or_of_the_nearest():
    b200 = TARGETS[100]
    assert chips.described(b200.name, 100, 148, 227) == b200
    unknown = chips.described("NVIDIA L40S", 89, 142, 99)
    assert (unknown.name, unknown.multiprocessors) == ("NVIDIA L40S", 142)
    assert unknown.flops == TARGETS[89].flops
    assert len({*chips.CHIPS, unknown}) == len(chips.CHIPS) + 1


# Candidates


@pytest.mark.parametrize("cc", TARGETS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_recipe_pass_does_little_more_than_the_useful_work(cc, dtype):
    most = {"forward": 1.05, "dgrad": 1.10, "wgrad": 1.20}
    for problem in recipe_passes(dtype):
        if (problem.kind, problem.c) != ("dgrad", 24):  # whose 24 columns are 32
            found = {selection.choose(problem, TARGETS[cc]), *candidates.candidates(problem, TARGETS[cc])}
            done = [tiling.flops(problem, config) for config in found if config.order != "windows"]
            assert max(done) / tiling.useful(problem) <= most[problem.kind], problem


@pytest.mark.parametrize("cc", TARGETS)
@pytest.mark.parametrize("dtype", (*DTYPES, torch.float32), ids=str)
def test_candidates_are_possible(cc, dtype):
    for problem in recipe_passes(dtype):
        found = candidates.candidates(problem, TARGETS[cc])
        assert len(set(found)) == len(found) > 0
        for config in found:
            tile = (config.rows, config.cols, config.depth)
            assert all(extent >= 16 and extent & (extent - 1) == 0 for extent in tile)
            assert config.cols < 2 * max(16, problem.columns)
            assert model.shared_bytes(problem, config) <= TARGETS[cc].shared * 1024
            assert config.splits == 1 or problem.kind == "wgrad" or config.order == "windows"


def test_few_images_go_row_by_row():
    few = replace(PROBLEM, n=5)
    assert {config.order for config in candidates.candidates(few, H200)} == {"rows"}
    assert {config.order for config in candidates.candidates(PROBLEM, H200)} == {"images", "rows"}


def test_descriptors_need_9_0_the_order_of_images_and_strides_of_16_bytes():
    def described(problem: Problem, cc: int) -> list[Config]:
        return [config for config in candidates.candidates(problem, TARGETS[cc]) if config.descriptors]

    for kind in tiling.PASSES:
        problem = replace(PROBLEM, kind=kind, pool=True)
        assert described(problem, 90) and described(problem, 100)
        assert all(config.order == "images" for config in described(problem, 90))
        assert not described(problem, 80) and not described(problem, 89)
    assert not described(replace(PROBLEM, c=24), 90)  # a flat axis
    assert not described(replace(PROBLEM, kind="dgrad", c=12), 90)  # filters with rows of 9 * 24 bytes
    assert not described(replace(PROBLEM, kind="wgrad", o=24, pool=True), 90)  # argmax with 24 bytes a pixel


def test_wgrad_is_split_until_it_fills_the_chip():
    problem = Problem("wgrad", 2000, 15, 15, 64, 64)
    config = selection.choose(problem, H200)
    assert tiling.programs(problem, config) > 0.8 * H200.multiprocessors
    tiny = Problem("wgrad", 2, 3, 3, 16, 16)
    assert {config.splits for config in candidates.candidates(tiny, H200)} == {1}


def test_wgrad_of_24_channels_may_take_wide_tiles_that_waste_a_little():
    problem = Problem("wgrad", 1536, 31, 31, 24, 64, pool=True)
    with selection.only(order="rows"):
        config = selection.choose(problem, H200)
    assert config.cols >= 128  # of 9 * 24 columns, which are padded to 256
    narrow = replace(config, cols=32)
    assert model.seconds(problem, config, H200) < 0.8 * model.seconds(problem, narrow, H200)


def test_a_tile_that_spills_is_no_candidate_and_is_not_taken_from_another_chips_table(launch_table):
    problem, tile = Problem("forward", 1536, 7, 7, 256, 256), Config("images", 256, 128, 64, 8, 3)
    launch_table({chip.name: section(chip, tile, problem=problem) for chip in (H200,)})
    for cc, spills in ((89, False), (90, True), (100, True)):
        chip = replace(TARGETS[cc], shared=227)  # room for it
        assert candidates.spills(problem, tile, chip) == spills
        assert (tile in candidates.candidates(problem, chip)) != spills
        assert (selection.choose(problem, chip) == tile) != spills


@pytest.mark.parametrize("channels, outputs", [(3, 3), (12, 40), (40, 24), (96, 10)])
@pytest.mark.parametrize("kind", tiling.PASSES)
def test_any_convolution_has_a_configuration(kind, channels, outputs):
    for size in (1, 2, 3):
        for dtype in (*DTYPES, torch.float32):
            problem = Problem(kind, 1, 6, 7, channels, outputs, size, size == 3, dtype)
            assert selection.choose(problem, TARGETS[89]).order == "rows"


# only


def test_only_takes_candidates_that_have_the_fields():
    with selection.only(order="rows", stages=3):
        found = candidates.candidates(PROBLEM, H200)
        assert found and all((config.order, config.stages) == ("rows", 3) for config in found)
        assert selection.choose(PROBLEM, H200) in found
    assert selection.choose(PROBLEM, H200).order == "images"


def test_only_forces_fields_that_no_candidate_has():
    for kind in tiling.PASSES:
        with selection.only(rows=16, cols=16, depth=16, splits=3):
            config = selection.choose(replace(PROBLEM, kind=kind), H200)
        assert (config.rows, config.cols, config.depth) == (16, 16, 16)
        assert config.splits == (3 if kind == "wgrad" else 1)


def test_only_forces_descriptors_where_there_can_be_any():
    with selection.only(descriptors=True, rows=16, order="images"):
        assert selection.choose(PROBLEM, H200).descriptors
        assert not selection.choose(replace(PROBLEM, c=3), H200).descriptors
    with pytest.raises(ValueError, match="only: got colour"), selection.only(colour="red"):
        pass


def test_only_asks_no_table(launch_table):
    launch_table({H200.name: section(H200)})
    with selection.only(order="images"):
        assert selection.choose(PROBLEM, H200).order == "images" != CONFIG.order


# The table


def test_without_a_table_the_model_chooses_and_cudnn_does_every_pass(launch_table):
    assert selection.choose(PROBLEM, H200) == selection.best(PROBLEM, H200)
    assert selection.estimate(PROBLEM, H200).how == "modelled"
    assert selection.estimate(PROBLEM, H200).cudnn is None
    for pool in (False, True):
        assert selection.by_kernel(replace(PROBLEM, pool=pool), H200) == ""


def test_what_was_measured_is_chosen_with_its_times(launch_table):
    launch_table({H200.name: section(H200)})
    assert selection.best(PROBLEM, H200) != CONFIG == selection.choose(PROBLEM, H200)
    assert selection.estimate(PROBLEM, H200) == selection.Estimate(CONFIG, 1e-4, 2e-4, "measured")


def test_other_images_and_the_other_16_bit_dtype_are_scaled_from_the_nearest_work(launch_table):
    far = replace(PROBLEM, n=2048)
    launch_table({H200.name: section(H200)})
    both = section(H200)["launches"] | section(H200, replace(CONFIG, rows=32), 9.0, 9.0, far)["launches"]
    launch_table({H200.name: section(H200) | {"launches": both}})
    for other in (
        replace(PROBLEM, n=256),
        replace(PROBLEM, h=14, w=14),
        replace(PROBLEM, dtype=torch.bfloat16),
    ):
        found = selection.estimate(other, H200)
        work = other.n * other.h * other.w / (512 * 15 * 15)
        ratio = model.seconds(other, CONFIG, H200) / model.seconds(PROBLEM, CONFIG, H200)
        assert (found.config, found.how) == (CONFIG, "scaled")
        assert found.cudnn == pytest.approx(2e-4 * work) and found.seconds == pytest.approx(1e-4 * ratio)
    assert selection.choose(replace(PROBLEM, n=1800), H200).rows == 32
    others = {"c": 64}, {"pool": True}, {"n": 8}, {"dtype": torch.float32}
    for unlike in (replace(PROBLEM, **fields) for fields in others):
        assert selection.estimate(unlike, H200).how == "modelled"


@pytest.mark.parametrize("faster", ["forward dgrad wgrad", "forward", "dgrad", "wgrad", "forward wgrad", ""])
def test_passes_of_a_block_without_a_pool_are_chosen_one_by_one(launch_table, faster):
    launch_table(passes(False, {kind: 0.5 if kind in faster else -0.5 for kind in PASSES}))
    assert selection.by_kernel(PROBLEM, H200) == faster
    without = " ".join(kind for kind in faster.split() if kind != "dgrad")
    assert selection.by_kernel(PROBLEM, H200, wants_dx=False) == without


@pytest.mark.parametrize(
    "dgrad, wgrad, unpool, both, alone",
    [
        (0.5, 0.5, 0.0, "dgrad wgrad", "wgrad"),
        (-0.5, -0.5, 0.0, "", ""),
        (-0.5, 0.2, 0.0, "", "wgrad"),  # the loss of the one outweighs the other's gain
        (-0.5, 0.2, 0.4, "dgrad wgrad", "wgrad"),  # but not what un-pooling costs
        (0.1, -0.2, 0.15, "dgrad wgrad", ""),
    ],
)
def test_gradients_of_a_pooled_block_are_chosen_together_with_what_unpooling_costs(
    launch_table, dgrad, wgrad, unpool, both, alone
):
    pooled = replace(PROBLEM, pool=True)
    launch_table(passes(True, {"forward": -1.0, "dgrad": dgrad, "wgrad": wgrad}, unpool))
    assert selection.by_kernel(pooled, H200) == both
    assert selection.by_kernel(pooled, H200, wants_dx=False) == alone


def test_what_unpooling_costs_is_scaled_by_its_bytes_and_modelled_where_none_was_measured(launch_table):
    pooled = replace(PROBLEM, pool=True)
    launch_table(passes(True, {"forward": 0.0}, unpool=3e-5))
    assert selection.unpool(replace(pooled, kind="wgrad"), H200) == (3e-5, "measured")
    assert selection.unpool(replace(pooled, n=1024), H200) == (pytest.approx(6e-5), "scaled")
    launch_table({})
    written = 512 * (15 * 15 - 7 * 7) * 128 * 2
    assert selection.unpool(pooled, H200) == (pytest.approx(written / H200.bandwidth), "modelled")


def test_the_nearest_chip_stands_in_where_its_configuration_fits(launch_table):
    a100, ada, b200 = TARGETS[80], TARGETS[89], TARGETS[100]
    rows = {chip.cc: replace(CONFIG, rows=size) for chip, size in ((a100, 16), (H200, 32))}
    launch_table({chip.name: section(chip, rows[chip.cc]) for chip in (a100, H200)})
    assert selection.choose(PROBLEM, a100) == rows[80]
    assert selection.choose(PROBLEM, ada) == selection.choose(PROBLEM, b200) == rows[90]
    assert selection.choose(PROBLEM, replace(a100, name="another", multiprocessors=98)) == rows[80]
    h100 = next(chip for chip in chips.CHIPS if "H100" in chip.name)
    launch_table({chip.name: section(chip, rows[cc]) for chip, cc in ((h100, 80), (H200, 90))})
    assert (selection.choose(PROBLEM, h100), selection.choose(PROBLEM, H200)) == (rows[80], rows[90])
    large = replace(CONFIG, rows=128, cols=128, depth=64, stages=4)  # 128 KiB
    launch_table({chip.name: section(chip, config) for chip, config in ((a100, rows[80]), (H200, large))})
    assert selection.choose(PROBLEM, H200) == large
    assert selection.choose(PROBLEM, ada) == rows[80]


def test_float32_and_tf32_are_chosen_apart(launch_table):
    problem, before = replace(PROBLEM, dtype=torch.float32), torch.backends.cuda.matmul.allow_tf32
    found = {}
    try:
        for torch.backends.cuda.matmul.allow_tf32 in (True, False):
            found[selection.key(problem).split()[-1]] = selection.choose(problem, H200)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    assert found.keys() == {"tf32", "float32"} and found["tf32"] != found["float32"]


@pytest.mark.parametrize(
    "content, what",
    [
        ("{", "Expecting"),
        ('{"A": {"multiprocessors": 1}}', "no 'cc'"),
        (
            '{"A": {"cc": 90, "multiprocessors": 1, "launches": {"x": {"config": "rows 1"}}}}',
            "'x' is no pass",
        ),
        (
            '{"A": {"cc": 90, "multiprocessors": 1, "launches": {"wgrad n=1 3x3 4->4 float17": {}}}}',
            "no attribute 'float17'",
        ),
        (
            '{"A": {"cc": 90, "multiprocessors": 1, "launches":'
            ' {"wgrad n=1 3x3 4->4 float16": {"config": "rows 1"}}}}',
            "'rows 1' is no",
        ),
        ('{"A": 3}', ""),
        ("[]", ""),
    ],
)
def test_a_broken_table_is_an_error_that_names_the_file(launch_table, content, what):
    launch_table(content)
    with pytest.raises(ValueError, match="measured.json: .*python -m bench tune") as caught:
        selection.choose(PROBLEM, H200)
    assert what in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "config", [CONFIG, replace(CONFIG, splits=7), replace(CONFIG, order="images", splits=7, descriptors=True)]
)
def test_a_configuration_is_read_as_it_is_written(config):
    assert selection.parsed(str(config)) == config


def test_the_names_in_the_table_are_those_of_passes():
    assert selection.key(PROBLEM) == "forward n=512 15x15 128->128 float16"
    other = Problem("wgrad", 5, 31, 30, 3, 4, 2, True, torch.bfloat16)
    assert selection.key(other) == "wgrad n=5 31x30 3->4 2x2 pool bfloat16"
    for problem in (PROBLEM, other):
        assert selection.problem_of(selection.key(problem)) == problem


# What the H200 measured


RECORD = Path(__file__).parents[2] / "bench" / "results" / "h200"


def test_the_committed_table_is_what_the_command_makes_of_the_record(launch_table):
    (committed,) = json.loads(Path(selection.__file__).with_name("measured.json").read_text()).values()
    assert main(["--from", str(RECORD / "conv-passes.json")]) == 0
    made = selection.FILE.read_text()
    assert main(["--from", str(RECORD / "conv-passes.json")]) == 0  # nothing twice
    assert selection.FILE.read_text() == made
    (section,) = json.loads(made).values()
    ((name, run),) = section["runs"].items()
    assert run["device"] == "NVIDIA H200" and run["changed"] and "patched" in run["note"]
    for group in ("launches", "unpool"):
        mine = {key: one for key, one in committed[group].items() if one["run"] == name}
        assert mine == section[group]
    # The rest are a card's own winners.
    found = [
        json.loads((RECORD / f"passes-{of}.json").read_text())["found"] for of in ("evaluation", "float8")
    ]
    others = {key: one for key, one in committed["launches"].items() if one["run"] != name}
    assert others.keys() == found[0].keys() | found[1].keys()
    for key, one in others.items():
        measured = (found[0] | found[1])[key]
        assert one["cudnn"] == measured["cudnn"]
        assert one["seconds"] == min(measured["seconds"].values()) == measured["seconds"][one["config"]]


@pytest.mark.parametrize(
    "content, what",
    [
        (None, "No such file"),
        ("{", "Expecting"),
        ("[]", "no passes of this form"),
        ('{"run": {"date": "x"}, "chip": "NVIDIA H200"}', "no 'found'"),
        ('{"run": {"date": "x"}, "chip": "GTX 1", "found": {}}', "chip 'GTX 1' is none of"),
        (
            '{"run": {"date": "x"}, "chip": "NVIDIA H200", "found": {"y": {"seconds": {"z": 1}}}}',
            "'z' is no conf",
        ),
    ],
)
def test_a_file_of_no_passes_is_one_line_and_changes_nothing(launch_table, tmp_path, capsys, content, what):
    file = tmp_path / "passes.json"
    if content is not None:
        file.write_text(content)
    assert main(["--from", str(file)]) == 2
    said = capsys.readouterr().err
    assert what in said and said.count("\n") == 1 and "passes.json" in said
    assert not selection.FILE.exists()


# label of record94 at 32, 28 and 24 pixels, and of seed -> the passes that `tuned` leaves to kernels
PLAN = {
    "record94 g1.conv1": ("forward wgrad", "forward wgrad", "forward wgrad"),
    "record94 g1.conv2": ("forward dgrad", "forward dgrad", "forward dgrad"),
    "record94 g2.conv1": ("", "", ""),
    "record94 g2.conv2": ("dgrad", "dgrad", "dgrad"),
    "record94 g3.conv1": ("forward", "", "forward"),
    "record94 g3.conv2": ("dgrad", "dgrad", "forward dgrad"),
    "r1.conv1": ("",),
    "r1.conv2": ("",),
    "r2.conv1": ("",),
    "r3.conv1": ("",),
    "r3.conv2": ("dgrad",),
}


@pytest.mark.parametrize("label", PLAN)
def test_the_plan_of_the_h200_is(label):
    first = label == "record94 g1.conv1"  # whose x needs no gradient, once the stem's bias is trained
    for size, passes in zip((32, 28, 24), PLAN[label]):
        name = f"{label} at {size}" if size < 32 else label
        case = next(case for case in conv_bn_act.SPEC.cases if case.name == name)
        problem = Problem("forward", case.n, *case.map, case.c, case.o, pool=case.pool)
        assert selection.by_kernel(problem, H200, wants_dx=not first) == passes, size


def test_what_is_corrected_of_cudnn_follows_from_the_profiles_and_the_corrected_blocks():
    content = json.loads((RECORD / "conv-passes.json").read_text())
    seed = json.loads((RECORD / "profiles.json").read_text())["seed-ref"]["rows"]
    found, known = content["found"], content["corrected"]["seconds"]

    def forward(label: str) -> Problem:
        return selection.problem_of(found[f"{label} forward"]["key"])

    def z(label: str) -> int:  # bytes
        return 2 * forward(label).n * forward(label).h * forward(label).w * forward(label).o

    def u_and_argmax(label: str) -> int:
        h, w = forward(label).output
        return 3 * forward(label).n * h * w * forward(label).o

    def of_a_step(tile: str, count: int) -> float:
        (row,) = (
            r for r in seed if "fprop_implicit" in r["name"] and tile in r["name"] and r["count"] == count
        )
        return row["ms"] / 1e3 / 990  # steps and evaluated batches

    plain = [label for label in known if not forward(label).pool]
    beyond = sum(known[label]["forward"]["cudnn"] - found[f"{label} forward"]["cudnn"] for label in plain)
    rate = sum(map(z, plain)) / beyond
    shared = of_a_step("tilesize128x128x64", 3960) - 2 * found["r1.conv2 forward"]["cudnn"]
    flops = {label: found[f"{label} forward"]["full"] for label in ("r2.conv1", "r3.conv1")}
    convolution = {label: shared * flops[label] / sum(flops.values()) for label in flops}
    convolution["r1.conv1"] = of_a_step("tilesize128x128x32", 990)
    derived = content["corrected"]["derived"]["seconds"]
    assert len(derived) + len(known) == 17
    for label, corrected in derived.items():
        if not forward(label).pool:
            seconds = found[f"{label} forward"]["cudnn"] + z(label) / rate
        elif label in convolution:
            seconds = convolution[label] + (z(label) + u_and_argmax(label)) / rate
        else:
            large = label.replace("at 24", "at 32")
            seconds = known[large]["forward"]["cudnn"] * z(label) / z(large)
        assert corrected["forward"]["cudnn"] == pytest.approx(seconds, abs=1e-7)
