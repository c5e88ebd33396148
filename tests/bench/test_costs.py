"""What kernels and operators do and move, by shapes; `hlb recipes --kernels`; docs/kernel-costs.md."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import hlb
import kernels
from bench.report import kernel_costs
from hlb.cli import main
from hlb.cost import complexity, passes
from hlb.cost.rehearsal import COLOURS, Rehearsal
from hlb.data import Dataset
from hlb.evaluate import score
from hlb.execution import Execution
from hlb.step import Variant, build
from kernels.base import chips, launch
from kernels.base.correctness import leaves
from kernels.base.traffic import Traffic, around, fused, traffic, unfused
from kernels.convolution import conv, selection

N = 4 * 1000  # bytes of x
OPERATORS = {  # what -> bytes, of x float32 [10, 100] and i int64 [3]
    "elementwise": (lambda x, i: x * 2, 2 * N),
    "two inputs": (lambda x, i: x * torch.empty_like(x), 3 * N),
    "one input twice": (lambda x, i: x * x, 2 * N),
    "a view": (lambda x, i: x.t().reshape(100, 2, 5)[:, 1], 0),
    "a copy": (lambda x, i: x.t().contiguous(), 2 * N),
    "in place": (lambda x, i: x.add_(x[:1]), 2 * N),
    "overwritten": (lambda x, i: x.zero_(), N),
    "allocated": (lambda x, i: torch.empty_like(x), 0),
    "allocated and filled": (lambda x, i: torch.zeros_like(x), N),
    "an expanded input": (lambda x, i: x[:, :1].expand(10, 100) * 2, 40 + N),
    "part of an input": (lambda x, i: x[:5].sum(), N // 2 + 4),
    "parts that make up an input": (lambda x, i: torch.cat((x[5:], x[:5])), 2 * N),
    "gathered rows": (lambda x, i: x[i], 3 * 400 + 3 * 8 + 3 * 400),
    "reduced": (lambda x, i: x.sum(0), N + 400),
}


@pytest.mark.parametrize("what", OPERATORS)
def test_an_operator_moves_what_it_reads_and_writes(what):
    function, expected = OPERATORS[what]
    with torch.device("meta"):
        x, i = torch.empty(10, 100), torch.empty(3, dtype=torch.int64)
    forward, _ = traffic(function, {"x": x, "i": i})
    assert forward.bytes.total() == expected
    assert forward.launches.total() == (expected > 0)


def test_a_convolutions_gradients_are_a_product_each():
    x = torch.empty(2, 4, 8, 8, device="meta").to(memory_format=torch.channels_last).requires_grad_()
    filters = torch.empty(5, 4, 3, 3, device="meta", requires_grad=True)
    inputs = {"x": x, "filters": filters}
    forward, backward = traffic(conv.reference, inputs)
    assert forward.bytes.total() == 4 * (x.numel() + filters.numel() + 2 * 5 * 64)
    assert backward.bytes.total() == 2 * forward.bytes.total()
    assert forward.flops.total() == 2 * 2 * 5 * 64 * 9 * 4
    assert backward.flops.total() == 2 * forward.flops.total()
    assert (forward.launches.total(), backward.launches.total()) == (1, 2)
    x.requires_grad_(False)
    _, backward = traffic(conv.reference, inputs)
    assert backward.flops.total() == forward.flops.total()
    assert backward.launches.total() == 1


def test_what_an_op_leaves_to_operators_counts_too():
    spec = kernels.CATALOGUE["cross_entropy"]
    case, dtype = spec.cases[0], torch.float16
    forward, backward = around(spec.op, leaves(spec, spec.make(case, dtype, "meta")))
    assert forward.bytes.total() == 0
    scaled = 2 * case.n * case.classes * dtype.itemsize  # the gradient, by that of the loss
    assert backward.bytes.total() == scaled + torch.float32.itemsize
    assert fused(spec, case, dtype) == sum(spec.bytes(case, dtype).values()) + backward.bytes.total()


def test_a_single_operator_moves_what_a_single_kernel_does():
    spec = kernels.CATALOGUE["update_running_stats"]
    moved = fused(spec, spec.cases[0], torch.float32)
    assert unfused(spec, spec.cases[0], torch.float32) == {"forward": moved, "training": moved}


# A recipe's step


@pytest.mark.parametrize("name", hlb.RECIPES)
def test_the_references_of_a_step_do_the_flops_that_the_report_counts(name):
    recipe = hlb.recipe(name)
    done = sum(p.flops for p in passes.launched(recipe, "reference") if p.name != "muon")
    _, train = complexity.flops_per_image(recipe)
    assert done == pytest.approx(recipe.batch_size * train, rel=1e-6)


@pytest.mark.parametrize("name", hlb.RECIPES)
def test_useful_flops_are_those_of_the_layers_without_what_pooling_drops(name):
    recipe = hlb.recipe(name)
    of_a_step = passes.launched(recipe, "reference")
    for layer in complexity.layers(recipe):
        found = {p.name: p for p in of_a_step if p.layer == layer.name and p.useful}
        assert set(found) == (
            {"forward", "wgrad", *("dgrad",) * layer.input_grad} if "conv" in layer.name else set()
        )
        for p in found.values():
            assert p.flops == recipe.batch_size * layer.flops >= p.useful


def test_a_run_of_smaller_images_does_the_flops_of_each_size():
    recipe = hlb.recipe("airbench94", {"sizes": (24, 28), "epochs": 3, "whiten_bias_epochs": 0})
    per_image = {size: complexity.flops_per_image(recipe, size=size)[1] for size in (24, 28, 32)}
    assert complexity.report(recipe)["tflop_per_run"] == pytest.approx(
        50000 * (per_image[24] + 2 * per_image[28]) / 1e12
    )
    assert complexity.report(recipe)["gflop_per_image"]["train"] == per_image[32] / 1e9
    run = Rehearsal(recipe)
    calls, between = run.part(lambda: run.step(Variant(24, 100, False)))
    done = sum(p.flops for p in passes.passes(recipe, "reference", calls, between) if p.name != "muon")
    assert done == pytest.approx(100 * per_image[24], rel=1e-6)


FIELDS = [
    pytest.param(op, spec, case, id=f"{spec.name}-{case.name}")
    for op in kernels.BACKENDS["reference"]
    for spec in (kernels.CATALOGUE[op], kernels.CATALOGUE.get(f"{op}_eval"))
    for case in (spec.cases if spec else ())
    if case.get("averaging", "none") == "none"
]


@pytest.mark.parametrize("op, spec, case", FIELDS)
def test_the_case_of_a_call_is_the_one_that_made_its_arguments(op, spec, case):
    inputs = spec.make(case, spec.dtypes[-1], "meta")
    counted = kernels.CATALOGUE[op]  # of training and of evaluation
    found, dtype = counted.case_of(inputs), counted.dtype_of(inputs)
    assert dtype == spec.dtypes[-1]
    assert counted.bytes(found, dtype) == spec.bytes(case, dtype)
    assert counted.flops(found, dtype) == spec.flops(case, dtype)


class Fake:
    """What a run of the `triton` backend launches, on tensors without memory: kernels by name, and how many
    operators of PyTorch.
    """

    def __init__(self, recipe):
        self.recipe, self.mode = recipe, FakeTensorMode()
        execution = Execution(device="cpu", compile="off")
        with self.mode:
            self.images = torch.empty(10000, 32, 32, 3, dtype=torch.uint8)
            self.labels = torch.empty(10000, dtype=torch.int64)
            dataset = Dataset("fake", 2 * (self.images, self.labels), **COLOURS)
            resolved = dataclasses.replace(recipe, dtype="float16")
            self.step = build(resolved, kernels.backend("triton"), execution, dataset)
        self.network = self.step.network

    def evaluate(self) -> None:
        fraction = self.recipe.views_fraction
        score(self.network, self.images, self.labels, self.recipe.views, **COLOURS, fraction=fraction)

    def launches(self, work) -> tuple[Counter, int]:
        with self.mode, launch.recording() as found, Traffic() as operators:
            work(self)
        return Counter(one.name for one in found), operators.launches.total()


@functools.cache
def both(name: str) -> tuple[Rehearsal, Fake]:
    """What is told of a run, and what launches it."""
    recipe = hlb.recipe(name, {"averaging": "none", "views_fraction": 0.3})
    return Rehearsal(recipe), Fake(recipe)


PARTS = {  # of a run
    "step": lambda run: run.step(Variant(32, run.recipe.batch_size, False)),
    "step of the stem": lambda run: run.step(Variant(32, 300, True)),
    "step of smaller images": lambda run: run.step(Variant(24, run.recipe.batch_size, False)),
    "shuffle": lambda run: run.step.shuffle(run.step.examples),
    "evaluation": lambda run: run.evaluate(),
}


@pytest.mark.skipif(not launch.INSTALLED, reason="kernels have no names without triton")
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("name", hlb.RECIPES)
def test_the_launches_of_a_part_of_a_run_are_those_that_it_makes(name, part):
    (run, fake), told, operators = both(name), Counter(), 0
    for p in passes.passes(run.recipe, "triton", *run.part(lambda: PARTS[part](run))):
        if p.form in ("PyTorch", "reference"):
            operators += p.launches
        else:
            names = conv.WINDOWS if p.form.startswith("windows") else conv.NAMES
            told[names.get(p.name, p.name)] += p.launches
    assert (told, operators) == fake.launches(PARTS[part])


def test_recipes_tells_what_a_step_launches(capsys):
    assert main(["recipes", "smoke", "--kernels", "triton"]) == 0
    lines = capsys.readouterr().out.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("layer"))
    assert "issued / useful" in lines[start]
    launched, chip = passes.launched(hlb.recipe("smoke"), "triton"), chips.here()
    for line, p in zip(lines[start + 1 :], launched):
        assert line.startswith(p.layer) and f" {p.name} " in line and f" {p.form} " in line
        assert line.split()[-2:] == [f"{1e6 * p.seconds(chip):.1f}", p.bound(chip)]
    total = lines[start + 1 + len(launched)].split()
    assert total[:3] == [
        "total",
        f"{sum(p.flops for p in launched) / 1e9:.2f}",
        f"{sum(p.bytes for p in launched) / 1e6:.1f}",
    ]
    assert total[-1] == f"{1e6 * sum(p.seconds(chip) for p in launched):.1f}"
    assert max(map(len, lines)) <= 150 and not any("…" in line for line in lines)


def test_recipes_json_has_what_a_step_launches(capsys):
    assert main(["recipes", "smoke", "--kernels", "triton,conv_bn_act=reference", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)["smoke"]
    assert report["kernels"] == "triton,conv_bn_act=reference"
    chip = chips.here()
    assert report["launched"] == [
        p.row() | {"seconds": p.seconds(chip), "bound": p.bound(chip)}
        for p in passes.launched(hlb.recipe("smoke"), "triton,conv_bn_act=reference")
    ]
    forms = {p["form"] for p in report["launched"]}
    assert forms == {"triton", "reference", "cuDNN", "PyTorch"}


# The page


def test_the_page_is_what_the_command_writes():
    readme = (Path(__file__).parents[2] / "docs" / "kernel-costs.md").read_text()
    assert readme == kernel_costs.text() + "\n", "stale: python -m bench report --markdown"
    assert max(map(len, readme.splitlines())) <= 150


def test_tuned_shows_what_it_takes_for_each_block_and_pass(monkeypatch):
    monkeypatch.setattr(
        selection, "by_kernel", lambda p, *_: "forward wgrad" if p.pool else "forward dgrad wgrad"
    )
    tuned = {(p.layer, p.name): p for p in passes.launched(hlb.recipe("seed"), "tuned")}
    plain, triton = (
        {(p.layer, p.name): p for p in passes.launched(hlb.recipe("seed"), choice)}
        for choice in ("reference", "triton")
    )
    for kind in ("forward", "wgrad"):
        assert tuned["group2.conv1", kind].form == triton["group2.conv1", kind].form
    theirs = tuned["group2.conv1", "dgrad"]
    assert theirs.form == "cuDNN" and theirs.flops == plain["group2.conv1", "dgrad"].flops
    whole, pooled = (each["group2.conv1", "_gradient"].bytes for each in (tuned, triton))
    beyond = 2 * (15 * 15 - 7 * 7) + 7 * 7  # all of z's gradient, for cuDNN, by argmax
    assert whole - pooled == 512 * 256 * beyond
    assert tuned["group1.conv2", "forward"] == triton["group1.conv2", "forward"]
    for layer, name in (
        ("group1.se", "_se_gate_fwd"),
        ("group3.se", "_se_gate_fwd"),
        ("head", "_pool_head_fwd"),
    ):
        assert tuned[layer, name] == triton[layer, name]


def test_a_forward_pass_of_cudnn_is_followed_by_the_pass_that_pools_and_makes_statistics(monkeypatch):
    monkeypatch.setattr(
        selection, "by_kernel", lambda p, chip, wants_dx, *_: "dgrad wgrad" if wants_dx else "wgrad"
    )
    tuned = {(p.layer, p.name): p for p in passes.launched(hlb.recipe("record94"), "tuned")}
    z, u = 1536 * 31 * 31 * 64, 1536 * 15 * 15 * 64
    assert tuned["group1.conv1", "_tile_statistics"].bytes == pytest.approx(2 * z + 3 * u, rel=0.05)
    assert tuned["group1.conv1", "forward"].form == "cuDNN"
    assert ("group1.conv1", "dgrad") not in tuned
    assert tuned["group1.conv1", "_gradient"].bytes < 4 * z  # of the pooled values: a kernel reads them
