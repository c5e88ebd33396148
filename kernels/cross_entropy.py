"""Label-smoothed cross-entropy, summed over the batch, and the count of right answers.

    p = softmax(logits)
    loss = sum over i of [ (1 - s) * -log p[i, target_i] + s * mean over classes k of -log p[i, k] ]

logits [n, classes] -> loss scalar, correct int64 scalar, both on the device: nothing waits for the host.
The sum is taken in float32, so no loss scale is needed to keep a 16-bit sum from overflowing. Source:
Szegedy et al., arXiv 1512.00567.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def reference(logits: Tensor, targets: Tensor, label_smoothing: float) -> tuple[Tensor, Tensor]:
    """logits [n, classes] and int64 targets [n] -> (summed loss, number of correct predictions)."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    loss = F.cross_entropy(logits.to(wide), targets, label_smoothing=label_smoothing, reduction="sum")
    return loss, (logits.detach().argmax(1) == targets).sum()
