"""What a training step keeps for its backward: storages that autograd saves, on tensors without memory."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import hlb
import kernels
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
        Optimizer(network, steps=10, per_epoch=5, channels_last=True)  # lays the parameters out
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
