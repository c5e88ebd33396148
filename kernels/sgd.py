"""Stochastic gradient descent with Nesterov momentum and coupled weight decay, over one flat tensor.

    d = grad + weight_decay * value        buffer = momentum * buffer + d
    value = value - lr * (d + momentum * buffer)

value and buffer [P] in float32 (master weights) or in the training dtype, grad [P] in the training dtype,
lr a scalar tensor on the device, so that a captured step reads it anew. As torch.optim.SGD(nesterov=True,
dampening=0).

Bytes: value and buffer read and written, grad read. Source: Sutskever et al., ICML 2013.
"""

from __future__ import annotations

from torch import Tensor


def reference(
    value: Tensor, grad: Tensor, buffer: Tensor, lr: Tensor, *, momentum: float, weight_decay: float
) -> None:
    """One step, in place on `value` and `buffer`."""
    direction = grad.to(value.dtype, copy=True).add_(value, alpha=weight_decay)
    buffer.mul_(momentum).add_(direction)
    value.sub_(direction.add_(buffer, alpha=momentum).mul_(lr))
