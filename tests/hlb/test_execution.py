"""What the engine asks of torch: its switches, its compiler, its devices and graphs, in the right order."""

import contextlib
import dataclasses
import gc
import re

import pytest
import torch
from torch._functorch import config as functorch
from torch._inductor import config as inductor
from torch._inductor.utils import get_code
from torch._prims_common import is_non_overlapping_and_dense_or_false

import hlb
from hlb import execution, synthetic
from hlb.cost import passes
from hlb.execution import apply, compiled, resolve
from hlb.runs import environment
from hlb.train import Trainer
from kernels.norm import norm_act

MIXED = {"base_depth": 4, "train_examples": 120, "batch_size": 40, "eval_batch_size": 60, "epochs": 2.0,
         "whiten_images": 50, "whiten_bias_epochs": 0.5, "sizes": "20", "dtype": "bfloat16",
         "master_weights": "off"}  # fmt: skip


@pytest.fixture(scope="module")
def data() -> hlb.Dataset:
    return hlb.Dataset("synthetic", synthetic.make(120, 60))


# -- launches ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("name", ["smoke", "seed"])
def test_gradients_of_a_dtype_are_copied_in_one_launch(data, name, channels_last, monkeypatch):
    how = hlb.Execution(compile="off", channels_last=channels_last)
    ours, copies = Trainer(*resolve(hlb.recipe(name, MIXED), how), data), []
    copy = torch._foreach_copy_
    monkeypatch.setattr(torch, "_foreach_copy_", lambda *lists: copies.append(lists) or copy(*lists))
    ours.timed_step()
    assert [lists[0][0].dtype for lists in copies] == [arena.grad.dtype for arena in ours.optimizer.arenas]
    assert len(copies) == 2
    for into, values in copies:  # what torch asks of lists that it copies in one launch
        assert len({tensor.dtype for tensor in (*into, *values)}) == 1
        assert all(a.shape == b.shape and a.stride() == b.stride() for a, b in zip(into, values))
        assert all(is_non_overlapping_and_dense_or_false(tensor) for tensor in (*into, *values))


def test_gradients_that_lie_otherwise_than_their_arena_are_copied_all_the_same(data):
    ours = Trainer(*resolve(hlb.recipe("smoke", MIXED), hlb.Execution(compile="off")), data)
    forward, variant, arena = ours.step.forward, max(ours.plan), ours.optimizer.arenas[0]
    ours.step.update = lambda *_: None
    found = []
    for turned in (False, True):
        if turned:  # the filters as the network sees them, so that their gradients are contiguous
            for p in arena.params:
                p.data = p.data.contiguous()
        ours.step.first.zero_()
        ours.optimizer.step_index.zero_()
        ours.step.forward = forward
        arena.grad.zero_()
        ours.step(variant)
        found.append(arena.grad.clone())
    assert torch.equal(*found) and found[0].any()


# -- the compiler --------------------------------------------------------------------------------------------


def test_backward_of_a_compiled_batch_norm_keeps_at_most_one_wide_copy_of_its_map():
    """On a CPU the derivative of SiLU, and nothing else, is written in float32; on a GPU nothing is. As
    torch.compile is by itself there would be two.
    """
    x = torch.randn(16, 32, 12, 12).half().contiguous(memory_format=torch.channels_last).requires_grad_()
    weight, bias = torch.ones(32), torch.zeros(32, requires_grad=True)
    running = torch.stack((torch.zeros(32), torch.ones(32)))

    def norm(x, bias):
        options = {"eps": 1e-12, "activation": "silu", "training": True}
        return norm_act.reference(x, weight, bias, running, **options)[0]

    eagerly = functorch.patch(force_non_lazy_backward_lowering=True)
    with eagerly, inductor.patch(force_disable_caches=True):
        _, _, backward, _ = get_code(compiled(norm), x, bias)
    assert len(re.findall(r"= empty_strided_cpu\(\(16, 32, 12, 12\), .*float32\)", backward)) == 1


def test_compiled_code_of_batch_norm_is_kept_between_processes():
    with functorch.patch(autograd_cache_allow_custom_autograd_functions=False):
        apply(*resolve(hlb.recipe("smoke"), hlb.Execution(compile="on")))
        assert functorch.autograd_cache_allow_custom_autograd_functions


# -- devices and graphs --------------------------------------------------------------------------------------


@pytest.fixture
def cuda(monkeypatch) -> list:
    """The calls of torch.cuda, none of which does anything."""
    calls = []

    def noted(name, value=None):
        monkeypatch.setattr(torch.cuda, name, lambda *args, **_: calls.append((name, *args)) or value)

    class Graph:
        def replay(self):
            calls.append(("replay",))

    for name in ("init", "set_device", "reset_peak_memory_stats", "synchronize", "empty_cache"):
        noted(name)
    noted("graph_pool_handle")
    noted("CUDAGraph", Graph())
    noted("graph", contextlib.nullcontext())
    return calls


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_cuda_is_there_before_its_memory_is_asked_for(cuda, device):
    environment.reset_peak_memory(device)
    assert cuda == [("init",), ("reset_peak_memory_stats", device)]


@pytest.mark.parametrize("device, called", [("cuda:1", [("set_device", "cuda:1")]), ("cuda", [])])
def test_device_with_a_number_becomes_the_one_that_graphs_are_captured_on(cuda, device, called):
    recipe, execution = resolve(hlb.recipe("smoke"), hlb.Execution(device="cpu"))
    apply(recipe, dataclasses.replace(execution, device=device))
    assert cuda == called


def test_nothing_is_collected_or_compiled_again_in_a_capture(cuda):
    twice = torch.compile(lambda x: 2 * x, backend="eager", dynamic=False)
    twice(torch.ones(2))
    collecting = []

    def work(n: int) -> None:
        collecting.append(gc.isenabled())
        twice(torch.ones(n))

    execution.capture(lambda: work(2))
    assert collecting == [False] and gc.isenabled()
    with pytest.raises(RuntimeError, match="Detected recompile"):
        execution.capture(lambda: work(3))
    assert gc.isenabled()
    assert twice(torch.ones(3)).tolist() == [2, 2, 2]


def test_every_kind_of_shuffle_has_run_before_it_is_captured(data, monkeypatch):
    seen, settings = [], MIXED | {"hard_fraction": 0.4, "hard_from": 1, "epochs": 3.0}
    shuffle = hlb.step.Step.shuffle
    monkeypatch.setattr(hlb.step.Step, "shuffle", lambda self, n: seen.append(n) or shuffle(self, n))
    ours = Trainer(*resolve(hlb.recipe("smoke", settings), hlb.Execution(compile="off")), data)
    assert sorted(set(seen)) == sorted({images for _, images in ours.rounds}) == [40, 120]


# -- what auto stands for ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "asked, compile",
    [
        ({}, "off"),
        ({"kernels": "tuned"}, "off"),
        ({"kernels": "tuned", "graph": "off"}, "on"),
        ({"kernels": "reference"}, "on"),
        ({"kernels": "triton"}, "off"),
        ({"kernels": "triton", "graph": "run"}, "off"),
        ({"kernels": "triton", "graph": "off"}, "on"),
        ({"kernels": "triton", "compile": "on"}, "on"),
        ({"kernels": "triton,sgd=reference"}, "on"),
        ({"kernels": "triton,sgd=tuned"}, "off"),  # which is the kernel
        ({"kernels": "tuned,cross_entropy=reference"}, "on"),
        ({"kernels": "triton", "dtype": "float64"}, "on"),  # of which there are no kernels
        ({"kernels": "triton", "device": "cpu"}, "off"),
        ({"kernels": "reference", "device": "cpu"}, "off"),
    ],
    ids=lambda value: " ".join(value.values()) if isinstance(value, dict) else None,
)
def test_what_is_all_kernels_and_captured_is_not_compiled(monkeypatch, asked, compile):
    monkeypatch.setattr(execution, "available", lambda device: True)
    monkeypatch.setattr(execution.launch, "runnable", lambda device: True)
    monkeypatch.setattr(execution.launch, "INSTALLED", True)
    settings = {"dtype": asked.pop("dtype", "auto")}
    how = hlb.Execution(**{"device": "cuda"} | asked)
    assert resolve(hlb.recipe("record94", settings), how)[1].compile == compile


@pytest.mark.parametrize("name", ["record94", "record95", "airbench94"])
def test_step_of_kernels_leaves_pytorch_too_little_for_a_compiler(name):
    """28 launches, in an H200's microseconds less than a percent of a step, compiled away or not."""
    left = [p for p in passes.launched(hlb.recipe(name), "triton") if p.form == "PyTorch"]
    assert 0 < sum(p.launches for p in left) <= 28
