"""The ways to do an op that the benchmark times: right, different, and each as it is named."""

from dataclasses import replace
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch._functorch import config as functorch

import kernels
from bench import implementations
from bench.implementations import FORMS, KERNELS, LIBRARY, distinct, faults, launches_of, scope
from kernels import conv_bn_act
from kernels.base import chips
from kernels.base.launch import INSTALLED
from kernels.base.spec import Case
from kernels.convolution import selection, tiling
from kernels.convolution.tiling import Problem

needs_triton = pytest.mark.skipif(not INSTALLED, reason="triton is not installed")
BLOCK = Case("block", n=3, c=16, o=24, map=(7, 6), pool=True, gate=True, residual=False, spatial=True)
BLOCK = Case("block", **BLOCK, activation="gelu", training=True)
# As large as in a recipe, so that tiles are; but for the batch.
CONV = Case("conv", n=64, c=64, o=64, map=(7, 7), size=3)


@cache
def near_zero(name: str) -> list[Case]:
    """Small cases of an op without those of mean / std = 100, where PyTorch's batch norm on a CPU is wrong in
    the fifth digit.
    """
    return [case for case in kernels.CATALOGUE[name].small() if not case.get("offset")]


def wrong(name: str, cases: list[Case], dtype: torch.dtype = torch.float32) -> dict[str, list[str]]:
    found = {case.name: faults(kernels.CATALOGUE[name], "cudnn", case, dtype, "cpu") for case in cases}
    return {case: lines for case, lines in found.items() if lines}


@pytest.mark.parametrize("name", LIBRARY)
def test_library_calls_give_results_and_gradients_of_the_reference(name):
    cases = near_zero(name)
    assert len(cases) > 10
    assert wrong(name, cases) == {}


@pytest.mark.parametrize("name", LIBRARY)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_library_calls_round_as_the_reference_does(name, dtype):
    gated = [case for case in kernels.CATALOGUE[name].cases if case.gate or case.pool][-4:]
    cases = [Case(case.name, **{**case, "n": 2}) for case in gated]
    assert wrong(name, cases, dtype) == {}


@pytest.mark.parametrize("name", LIBRARY)
@pytest.mark.parametrize(
    "broken",
    [
        lambda call, **inputs: call(**inputs | {"eps": 1e-2}),
        lambda call, **inputs: call(**inputs | {"gate": None}),
        lambda call, **inputs: (2 * call(**inputs)[0].detach() - call(**inputs)[0], *call(**inputs)[1:]),
        lambda call, **inputs: (call(**inputs)[0], inputs["running"], call(**inputs)[2]),
    ],
    ids=["eps", "gate", "gradient", "statistics"],
)
def test_a_library_version_that_does_something_else_is_wrong(monkeypatch, name, broken):
    call = LIBRARY[name]
    monkeypatch.setitem(LIBRARY, name, lambda **inputs: broken(call, **inputs))
    assert wrong(name, [case for case in near_zero(name) if case.gate][:3])


def test_reference_is_told_what_the_librarys_pool_takes():
    told = []
    spec = replace(
        conv_bn_act.SPEC,
        reference=lambda **inputs: told.append("argmax" in inputs) or conv_bn_act.reference(**inputs),
    )
    for pool in (True, False):
        case = Case("block", **{**BLOCK, "pool": pool})
        assert faults(spec, "cudnn", case, torch.float32, "cpu") == []
    assert told == [True, False]


def test_argmax_of_the_librarys_pool_is_the_place_in_the_window():
    x = torch.arange(2 * 3 * 5 * 7.0).reshape(2, 3, 5, 7)
    x[0, 0, 0, 1], x[1, 2, 2, 4] = 999, 999
    argmax = implementations.taken({"pool": True, "x": x})["argmax"]
    assert argmax.shape == (2, 3, 2, 3)
    assert (argmax[0, 0, 0, 0], argmax[1, 2, 1, 2], argmax[0, 1].unique().tolist()) == (1, 0, [3])


def ways(name: str, case: Case, dtype: torch.dtype = torch.float32) -> dict[str, dict[str, int]]:
    spec = kernels.CATALOGUE[name]
    return distinct(spec, spec.make(case, dtype, "cpu"), list(implementations.IMPLEMENTATIONS))


@needs_triton
def test_an_op_that_is_no_convolution_has_one_form():
    case = near_zero("norm_act")[0]
    assert list(ways("norm_act", case)) == ["eager", "compiled", "max-autotune", "cudnn", "triton"]


@needs_triton
def test_a_convolution_has_the_forms_that_launch_something_else():
    spec, found = kernels.CATALOGUE["conv"], ways("conv", CONV, torch.float16)
    assert "cudnn" not in found  # it is the reference
    for form, order in FORMS.items():
        with scope(form):
            both = launches_of(spec, spec.op, spec.make(CONV, torch.float16, "cpu"))[1]
        orders = [one.constants["IMAGES"] for one in both if "IMAGES" in one.constants]
        assert orders == [order == "images"] * 3
    for form in FORMS:
        same = [way for way in ("forward", "backward", "both") if way not in found.get(form, {})]
        assert same == [way for way in ("forward", "backward", "both") if chosen(way, FORMS[form])]


def chosen(way: str, order: str) -> bool:
    """Whether the passes of a direction are in this order anyway."""
    kinds = {"forward": tiling.PASSES[:1], "backward": tiling.PASSES[1:], "both": tiling.PASSES}[way]
    extents = {"n": CONV.n, "h": CONV.map[0], "w": CONV.map[1], "c": CONV.c, "o": CONV.o}
    problems = (Problem(kind, **extents, dtype=torch.float16) for kind in kinds)
    return all(selection.choose(problem, chips.here()).order == order for problem in problems)


@needs_triton
def test_forms_are_as_right_as_the_op():
    spec = kernels.CATALOGUE["conv"]
    case = Case("small", n=2, c=16, o=16, map=(3, 2), size=3)
    for form in FORMS:
        assert faults(spec, form, case, torch.float32, "cpu") == []
    twice = replace(spec, op=lambda x, filters: 2 * spec.op(x, filters))
    assert faults(twice, "triton rows", case, torch.float32, "cpu")


def table(faster: str) -> dict:
    """A table of launches in which kernels beat cuDNN in these passes."""
    chip = chips.here()
    extents = {"n": BLOCK.n, "h": BLOCK.map[0], "w": BLOCK.map[1], "c": BLOCK.c, "o": BLOCK.o, "pool": True}
    entries = {}
    for kind in tiling.PASSES:
        problem = Problem(kind, **extents, dtype=torch.float32)
        seconds = {"seconds": 1.0, "cudnn": 2.0 if kind in faster else 0.5}
        entries[selection.key(problem)] = {"config": str(selection.best(problem, chip)), **seconds}
    return {chip.name: {"cc": chip.cc, "multiprocessors": chip.multiprocessors, "launches": entries}}


@needs_triton
def test_tuned_has_a_row_where_it_takes_something_of_its_own_and_is_checked_as_it_is(
    launch_table, monkeypatch
):
    spec = conv_bn_act.SPEC
    launch_table(table("forward dgrad wgrad"))
    assert "tuned" not in ways("conv_bn_act", BLOCK)  # it launches what `triton` does
    launch_table(table("dgrad wgrad"))
    assert ways("conv_bn_act", BLOCK)["tuned"] == {"forward": None, "both": None}  # backward as `triton`
    told = []
    spied = replace(spec, given=lambda inputs: told.append(inputs["by_kernel"]) or spec.given(inputs))
    assert faults(spied, "tuned", BLOCK, torch.float32, "cpu") == [] and told == ["dgrad wgrad"]


def test_tuned_of_an_op_whose_shape_does_not_matter_is_its_kernel():
    assert implementations.tuned(kernels.CATALOGUE["sgd"]) is kernels.CATALOGUE["sgd"].op


def test_every_op_of_the_catalogue_is_an_op_of_the_backends():
    for spec in kernels.CATALOGUE.values():
        assert spec.op in kernels.BACKENDS["triton"].values(), spec.name


def test_what_is_compiled_reads_as_many_tensors_at_once_as_a_batch_norm_has(monkeypatch):
    options = {}
    monkeypatch.setattr(torch, "compile", lambda function, dynamic, options: options)
    for name in ("compiled", "max-autotune"):
        options[name] = implementations.IMPLEMENTATIONS[name](conv_bn_act.SPEC)
        assert options[name]["realize_reads_threshold"] >= 5
    assert options["max-autotune"]["max_autotune"] and "max_autotune" not in options["compiled"]


def test_buffers_are_donated_but_for_the_backward_alone():
    for direction in ("forward", "backward", "both"):
        with scope("compiled", direction):
            assert functorch.donated_buffer == (direction != "backward")
    assert functorch.donated_buffer


def test_reference_is_not_checked_against_itself():
    for name in ("eager", "compiled", "max-autotune"):
        assert name not in KERNELS
        assert faults(replace(conv_bn_act.SPEC, reference=F.gelu), name, BLOCK, torch.float32, "cpu") == []
