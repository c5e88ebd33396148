"""A trained network with what its predictions need: from pixels to classes.

    model = hlb.load("model.pt")
    classes = model.predict(images)          # uint8 [n, 32, 32, 3] -> int64 [n], indices of model.classes
    logits = model.predict(images, logits=True)

A network alone wants images normalised by the statistics of its training set, which nothing checks. Here they
are part of the model, as are the test-time views that its accuracy was measured with and the classes' names.
All images get all views, so what is predicted of one does not depend on the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from kernels.base.launch import short
from kernels.views import VIEWS

from ..errors import UserError
from ..execution import Execution, device_of, torch_defaults
from ..networks import Network
from . import checkpoint

SIDE = 32  # of an image


class Classifier(nn.Module):
    """A network in evaluation mode, the statistics of its training images and its classes' names.

    `forward` takes images uint8 [n, 32, 32, 3] on the network's device and gives logits float32 [n, classes]
    (float64 of a float64 network). It is plain PyTorch where the network's ops are, so `torch.export` takes
    it. `predict` is for people: it takes NumPy's arrays, checks what it gets, and goes in batches.
    """

    def __init__(self, network: Network, mean: Sequence[float], std: Sequence[float], classes: Sequence[str]):
        super().__init__()
        self.network = network.eval()
        self.recipe, self.views = network.recipe, network.recipe.views
        self.mean, self.std, self.classes = tuple(mean), tuple(std), tuple(classes)

    def forward(self, images: Tensor) -> Tensor:
        network, ops = self.network, self.network.ops
        dtype = network.head.weight.dtype
        batch = ops.views(images, self.views, mean=self.mean, std=self.std, dtype=dtype)
        logits, _ = network(network.layout(batch.flatten(0, 1)))
        return ops.weigh_views(logits.unflatten(0, (len(VIEWS[self.views]), images.shape[0])), self.views)

    @torch_defaults()
    def predict(self, images: Tensor | np.ndarray, logits: bool = False) -> Tensor:
        """Classes int64 [n] of images uint8 [n, 32, 32, 3], or their logits [n, classes]; on the network's
        device. Raises UserError for images of another shape or dtype.
        """
        images = _pixels(images)
        weight = self.network.head.weight
        count = max(1, self.recipe.eval_batch_size // len(VIEWS[self.views]))
        with torch.inference_mode():
            scores = torch.cat([self(batch.to(weight.device)) for batch in images.split(count)])
        return scores if logits else scores.argmax(1)


def _pixels(images: Tensor | np.ndarray) -> Tensor:
    """Images as a tensor that is dense, uint8 [n, 32, 32, 3]. Raises UserError for what is none."""
    accepted = f"accepted are pixels from 0 to 255 as uint8 [n, {SIDE}, {SIDE}, 3]"
    try:
        tensor = images if isinstance(images, Tensor) else torch.from_numpy(np.array(images))
    except (TypeError, ValueError):  # not numbers, or of several shapes
        raise UserError(f"images: got {type(images).__name__}, {accepted}") from None
    if tensor.dtype != torch.uint8 or tensor.dim() != 4 or tensor.shape[1:] != (SIDE, SIDE, 3):
        raise UserError(f"images: got {short(tensor.dtype)} {list(tensor.shape)}, {accepted}")
    return tensor.contiguous()


@torch_defaults()
def load(path: Path | str, device: str = "cpu", dtype: str | None = None) -> Classifier:
    """The model of a checkpoint that `--save` wrote, on `device` (auto, cpu, cuda, mps), in the dtype of its
    recipe or in `dtype`.

    Raises UserError for a file that is no checkpoint, and for one of an older version that does not say how
    the images of its data set were normalised.
    """
    device = device_of(Execution(device=device))
    network, _, about = checkpoint.load(path, device, dtype)
    if "mean" not in about:
        raise UserError(
            f"{path} is of an older version, without the statistics of its data set {about['dataset']}; "
            "train again, or take hlb.load_checkpoint and normalise as in training"
        )
    return Classifier(network.requires_grad_(False), about["mean"], about["std"], about["classes"])
