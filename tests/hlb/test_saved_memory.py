"""What a training step keeps for its backward: storages that autograd saves, on tensors without memory."""

from __future__ import annotations

import weakref

import pytest
import torch
from helpers import draw
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

import hlb
import kernels
from hlb.averaging import Averaging
from hlb.networks import Network
from hlb.optimizer import Optimizer


def saved(name: str, choice: str) -> int:
    """Bytes that a step in float16 saves, images included, parameters not; each storage once."""
    recipe, ops, storages = hlb.recipe(name), kernels.backend(choice), {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage
        return tensor

    with FakeTensorMode():
        network = Network(recipe, ops).cast(torch.float16)
        Optimizer(network, steps=10, per_epoch=(5, 5), channels_last=True)  # lays the parameters out
        pixels = torch.empty(recipe.batch_size, 32, 32, 3, dtype=torch.float16)
        labels = torch.empty(recipe.batch_size, dtype=torch.int64)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            logits, _ = network(network.layout(pixels))
            ops.cross_entropy(logits, labels, recipe.label_smoothing)
        parameters = {p.untyped_storage()._cdata for p in network.parameters()}
        return sum(storage.nbytes() for key, storage in storages.items() if key not in parameters)


def test_the_kernels_save_at_most_42_percent_of_what_the_reference_saves():
    reference, triton = saved("seed", "reference"), saved("seed", "triton")
    assert triton <= 0.42 * reference, (
        f"{triton / 1e6:.1f} MB of {reference / 1e6:.1f}: {triton / reference:.1%}"
    )


def rise(name: str, choice: str) -> int:
    """Bytes by which a step's peak of allocated memory lies above what was there before it."""
    recipe = hlb.recipe(name)
    network = Network(recipe, kernels.backend(choice)).cast(torch.float16).cuda()
    Optimizer(network, steps=10, per_epoch=(5, 5), channels_last=True)
    network.reset(draw)
    pixels = torch.randn(recipe.batch_size, 32, 32, 3, device="cuda").half()
    labels = torch.zeros(recipe.batch_size, dtype=torch.int64, device="cuda")
    for _ in range(2):  # the first compiles, and allocates what stays
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        logits, _ = network(network.layout(pixels))
        network.ops.cross_entropy(logits, labels, recipe.label_smoothing)[0].backward()
        peak = torch.cuda.max_memory_allocated()
        del logits
    return peak - before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="allocated memory is a CUDA device's")
def test_the_peak_of_a_step_rises_at_most_42_percent_of_the_references():
    reference, triton = rise("seed", "reference"), rise("seed", "triton")
    assert triton <= 0.42 * reference, f"{triton / 1e6:.1f} MB of {reference / 1e6:.1f}"


class Live(TorchDispatchMode):
    """Bytes of the storages that operators made and that are still held, and their peak."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.known = weakref.WeakSet()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_flatten(result)[0]:
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage()) not in self.known:
                self.known.add(storage)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._freed, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return result

    def _freed(self, size: int) -> None:
        self.now -= size


@pytest.mark.parametrize("choice", ["reference", "triton"])
@pytest.mark.parametrize("name", ["seed", "record94"])
def test_network_and_step_fit_a_card_of_4_gb(name, choice):
    recipe = hlb.recipe(name)
    with FakeTensorMode(), Live() as live:
        data = torch.empty(60000, 32, 32, 3, dtype=torch.uint8)
        network = Network(recipe, kernels.backend(choice)).cast(torch.float16)
        optimizer = Optimizer(network, steps=1000, per_epoch=(50,) * 20, channels_last=True)
        averaging = Averaging(network, optimizer, 1000, (50,) * 20)
        images = torch.empty(recipe.batch_size, 32, 32, 3, dtype=torch.float16)
        labels = torch.empty(recipe.batch_size, dtype=torch.int64)
        logits, stats = network(network.layout(images))
        loss, _ = network.ops.cross_entropy(logits, labels, recipe.label_smoothing)
        torch.autograd.grad(loss, [p for arena in optimizer.arenas for p in arena.params])
        del images
    assert len(data) and averaging
    # A CUDA context takes half a gigabyte, cuDNN's workspaces and the allocator's gaps some more.
    assert 0.3e9 < live.peak < 3.0e9, f"{live.peak / 1e9:.2f} GB"
