"""What kernels and operators do and move, counted on shapes; `hlb recipes --kernels`; kernels/README.md."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import hlb
import kernels
from hlb import cost
from hlb.cli import main
from hlb.networks import Network
from hlb.optimizer import Optimizer
from kernels import conv, launch, launches, page
from kernels.compare import leaves
from kernels.spec import Case
from kernels.traffic import Traffic, around, fused, traffic, unfused

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


def test_a_convolutions_gradients_are_a_product_each():
    x = torch.empty(2, 4, 8, 8, device="meta").to(memory_format=torch.channels_last).requires_grad_()
    filters = torch.empty(5, 4, 3, 3, device="meta", requires_grad=True)
    inputs = {"x": x, "filters": filters}
    forward, backward = traffic(conv.reference, inputs)
    assert forward.bytes.total() == 4 * (x.numel() + filters.numel() + 2 * 5 * 64)
    assert backward.bytes.total() == 2 * forward.bytes.total()
    assert forward.flops.total() == 2 * 2 * 5 * 64 * 9 * 4
    assert backward.flops.total() == 2 * forward.flops.total()
    x.requires_grad_(False)
    assert traffic(conv.reference, inputs)[1].flops.total() == forward.flops.total()


def test_what_an_op_leaves_to_operators_counts_too():
    spec = kernels.CATALOGUE["pool_head"]
    case, dtype = spec.cases[0], torch.float16
    forward, backward = around(spec.op, leaves(spec, spec.make(case, dtype, "meta")))
    assert forward.bytes.total() == 0
    assert backward.flops.total() == 2 * case.n * case.c * case.classes  # the gradient of the weight
    assert fused(spec, case, dtype) == sum(spec.bytes(case, dtype).values()) + backward.bytes.total()


def test_a_single_operator_moves_what_a_single_kernel_does():
    spec = kernels.CATALOGUE["update_running_stats"]
    moved = fused(spec, spec.cases[0], torch.float32)
    assert unfused(spec, spec.cases[0], torch.float32) == {"forward": moved, "training": moved}


# A recipe's step


@pytest.mark.parametrize("name", hlb.RECIPES)
def test_the_references_of_a_step_do_the_flops_that_the_report_counts(name):
    recipe = hlb.recipe(name)
    done = sum(p.flops for p in cost.launched(recipe, "reference") if p.name != "muon")
    _, train = cost.flops_per_image(recipe)
    assert done == pytest.approx(recipe.batch_size * train, rel=1e-6)


@pytest.mark.parametrize("name", hlb.RECIPES)
def test_useful_flops_are_those_of_the_layers_without_what_pooling_drops(name):
    recipe = hlb.recipe(name)
    passes = cost.launched(recipe, "reference")
    for layer in cost.layers(recipe):
        found = {p.name: p for p in passes if p.layer == layer.name and p.useful}
        assert set(found) == (
            {"forward", "wgrad", *("dgrad",) * layer.input_grad} if "conv" in layer.name else set()
        )
        for p in found.values():
            assert p.flops == recipe.batch_size * layer.flops >= p.useful


FIELDS = [
    pytest.param(op, case, id=f"{op}-{case.name}")
    for op in cost.FIELDS
    for case in kernels.CATALOGUE[op].cases
    if case.get("averaging", "none") == "none"
]


@pytest.mark.parametrize("op, case", FIELDS)
def test_the_case_of_a_call_is_the_one_that_made_its_arguments(op, case):
    spec = kernels.CATALOGUE[op]
    inputs = spec.make(case, spec.dtypes[-1], "meta")
    found, dtype = Case(**cost.FIELDS[op](**inputs)), cost.dtype_of(inputs)
    assert dtype == spec.dtypes[-1]
    assert spec.bytes(found, dtype) == spec.bytes(case, dtype)
    assert spec.flops(found, dtype) == spec.flops(case, dtype)


def launches_of_a_step(recipe) -> Counter:
    """Kernels by name, of a step of the `triton` backend on tensors without memory."""
    ops = kernels.backend("triton")
    with FakeTensorMode(), Traffic(), launch.recording() as launches:
        network = Network(recipe, ops).cast(torch.float16)
        optimizer = Optimizer(network, steps=10, per_epoch=5, channels_last=True)
        pixels = torch.empty(recipe.batch_size, 32, 32, 3, dtype=torch.float16)
        labels = torch.empty(recipe.batch_size, dtype=torch.int64)
        logits, stats = network(network.layout(pixels), train_stem=False)
        loss, _ = ops.cross_entropy(logits, labels, recipe.label_smoothing)
        loss.backward()
        ops.update_running_stats(network.running, stats, recipe.bn_momentum)
        optimizer.step()
    return Counter(one.name for one in launches)


@pytest.mark.skipif(not launch.INSTALLED, reason="kernels have no names without triton")
@pytest.mark.parametrize("name", hlb.RECIPES)
def test_a_steps_kernels_are_those_that_it_launches(name):
    recipe = hlb.recipe(name)
    told = Counter(
        conv.NAMES.get(p.name, p.name) for p in cost.launched(recipe, "triton") if p.form != "PyTorch"
    )
    launched = launches_of_a_step(recipe)
    assert told - Counter(["_augment"]) == {
        kernel: 1 if kernel in ("_gram", "_poly", "_apply") else count for kernel, count in launched.items()
    }


def test_recipes_tells_what_a_step_launches(capsys):
    assert main(["recipes", "smoke", "--kernels", "triton"]) == 0
    lines = capsys.readouterr().out.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("layer"))
    assert "issued / useful" in lines[start]
    passes = cost.launched(hlb.recipe("smoke"), "triton")
    for line, p in zip(lines[start + 1 :], passes):
        assert line.startswith(p.layer) and f" {p.name} " in line and f" {p.form} " in line
    total = lines[start + 1 + len(passes)].split()
    assert total[:3] == [
        "total",
        f"{sum(p.flops for p in passes) / 1e9:.2f}",
        f"{sum(p.bytes for p in passes) / 1e6:.1f}",
    ]
    assert max(map(len, lines)) <= 150 and not any("…" in line for line in lines)


def test_recipes_json_has_what_a_step_launches(capsys):
    assert main(["recipes", "smoke", "--kernels", "triton,conv_bn_act=reference", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)["smoke"]
    assert report["kernels"] == "triton,conv_bn_act=reference"
    assert report["launched"] == [
        vars(p) for p in cost.launched(hlb.recipe("smoke"), "triton,conv_bn_act=reference")
    ]
    forms = {p["form"] for p in report["launched"]}
    assert forms == {"triton", "reference", "cuDNN", "PyTorch"}


# The page


def test_the_page_is_what_the_command_writes():
    readme = Path(page.__file__).with_name("README.md").read_text()
    assert readme == page.text() + "\n", "stale: python -m kernels --markdown > kernels/README.md"
    assert max(map(len, readme.splitlines())) <= 150


def test_tuned_shows_what_it_takes_for_each_block_and_pass(monkeypatch):
    monkeypatch.setattr(launches, "block_winner", lambda p, chip: "triton" if p.pool else "reference")
    monkeypatch.setattr(
        launches, "choose_tuned", lambda p, chip: None if p.kind == "wgrad" else launches.choose(p, chip)
    )
    passes = {(p.layer, p.name): p for p in cost.launched(hlb.recipe("seed"), "tuned")}
    plain, triton = (
        {(p.layer, p.name): p for p in cost.launched(hlb.recipe("seed"), choice)}
        for choice in ("reference", "triton")
    )
    assert passes["group2.conv1", "forward"] == triton["group2.conv1", "forward"]
    assert passes["group2.conv1", "wgrad"].form == "cuDNN"
    assert passes["group2.conv1", "wgrad"].flops == plain["group2.conv1", "wgrad"].flops
    assert passes["group1.conv2", "forward"] == plain["group1.conv2", "forward"]
