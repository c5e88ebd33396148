"""What an op moves through device memory: its reference as eager PyTorch runs it, and its kernels.

    unfused(spec, case, torch.float16)["training"]    # bytes, forward and backward
    fused(spec, case, torch.float16)

Eager PyTorch launches a kernel for each operator, which reads its input tensors from device memory and writes
its outputs there. So those bytes are added up, operator by operator; views and other metadata are free. What
an operator reads twice, or copies into another layout, counts once, so the sum is a lower bound.

It is counted on the `meta` device, on shapes without memory: no GPU is needed, and the reference takes the
paths that it takes on one. Of an op, kernels move what the SPEC declares; the operators that its launchers
leave to PyTorch, such as the sum of partial gradients, are counted as the reference's are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from math import prod

import torch
from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .correctness import leaves
from .launch import recording
from .spec import Case, KernelSpec

# Operator -> an argument of which it needs the shape only, or which it overwrites unseen.
UNREAD = {"max_pool2d_with_indices_backward": "self"} | dict.fromkeys(
    ("zero_", "fill_", "copy_", "zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full"),
    "self",
)
GATHERS = ("index", "index_select", "gather")  # read of `self` as many elements as they return


def _bytes(tensors: Iterable[Tensor]) -> int:
    """Of the elements in memory, a storage's at most once."""
    touched, sizes = Counter(), {}
    for tensor in tensors:
        storage = tensor.untyped_storage()
        extents = (extent for extent, stride in zip(tensor.shape, tensor.stride()) if stride)
        touched[storage._cdata] += prod(extents) * tensor.itemsize
        sizes[storage._cdata] = storage.nbytes()
    return sum(min(touched[key], sizes[key]) for key in touched)


def _tensors(tree) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def moved(function, args: tuple, kwargs: dict, out) -> int:
    """Bytes that one call of an ATen operator reads and writes."""
    name = function._schema.name.removeprefix("aten::")
    if name.startswith(("empty", "new_empty")):
        return 0
    given = dict(zip((a.name for a in function._schema.arguments), args)) | kwargs
    if name == "convolution_backward":  # a product for each gradient, of two of d y, x and filters
        dx, d_filters, d_bias = given["output_mask"]
        return (dx + d_filters) * _bytes(args[:3]) + d_bias * _bytes(args[:1])
    changed = {a.name for a in function._schema.arguments if a.alias_info and a.alias_info.is_write}
    storages = {tensor.untyped_storage()._cdata for tensor in _tensors(given)}
    new = [tensor for tensor in _tensors(out) if tensor.untyped_storage()._cdata not in storages]
    written = _bytes([*new, *_tensors([given[argument] for argument in changed])])
    if not written:  # a view
        return 0
    given.pop(UNREAD.get(name), None)
    source = given.pop("self") if name in GATHERS else None
    gathered = 0 if source is None else out.numel() * source.itemsize
    return gathered + _bytes(_tensors(given)) + written


def flops(name: str, args: tuple, out) -> int:
    """Of a matrix product or convolution, two for a multiply-add; of any other operator 0."""
    if name in ("mm", "bmm", "addmm"):
        return 2 * out.numel() * args[-1].shape[-2]
    if name == "convolution":
        return 2 * out.numel() * args[1][0].numel()
    if name == "convolution_backward":
        return 2 * args[0].numel() * args[2][0].numel() * sum(args[-1][:2])
    return 0


def launches(name: str, args: tuple, moved: int) -> int:
    """Kernels that one call of an operator launches, at least: one if it moves anything, and one for each
    gradient of a convolution.
    """
    return sum(args[-1]) if name == "convolution_backward" else int(moved > 0)


class Traffic(TorchDispatchMode):
    """Inside, adds up `bytes` moved, `flops` of products and convolutions, and `launches`, by operator
    ("convolution").

    `hlb::` ops run their launchers, the operators of which count. Convolutions on `meta` give the layout that
    they give on a GPU.
    """

    def __init__(self):
        super().__init__()
        self.bytes, self.flops, self.launches = Counter(), Counter(), Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function.namespace == "hlb":
            with self:
                return OPDEFS[function.name()]._init_fn(*args, **kwargs)
        out = function(*args, **kwargs)
        name = function._schema.name.removeprefix("aten::")
        if name == "convolution" and args[0].is_contiguous(memory_format=torch.channels_last):
            out = out.to(memory_format=torch.channels_last)
        touched = moved(function, args, kwargs, out)
        self.bytes[name] += touched
        self.flops[name] += flops(name, args, out)
        self.launches[name] += launches(name, args, touched)
        return out


def traffic(function: Callable, inputs: dict) -> tuple[Traffic, Traffic]:
    """(of a call, of its backward) on `meta`; every input that requires a gradient gets one."""
    with Traffic() as forward:
        outputs = function(**inputs)
    roots = [out for out in _tensors(outputs) if out.requires_grad]
    wanted = [tensor for tensor in _tensors(inputs) if tensor.requires_grad]
    with Traffic() as backward:
        if roots:
            upstream = [torch.empty_like(out) for out in roots]
            torch.autograd.grad(roots, wanted, upstream, allow_unused=True)
    return forward, backward


def around(op: Callable, inputs: dict) -> tuple[Traffic, Traffic]:
    """As `traffic`, of an op: what it leaves to PyTorch's operators. No kernel runs."""

    def fake(tensor: Tensor) -> Tensor:  # on a device that ops accept
        like = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
        return like.requires_grad_(tensor.requires_grad)

    with FakeTensorMode(), recording():
        return traffic(op, {k: fake(v) if isinstance(v, Tensor) else v for k, v in inputs.items()})


def unfused(spec: KernelSpec, case: Case, dtype: torch.dtype) -> dict[str, int]:
    """Bytes of `forward` and, with the backward where there is one, of `training`."""
    inputs = leaves(spec, spec.make(case, dtype, "meta"))
    forward, backward = traffic(spec.reference, inputs)
    return {
        "forward": forward.bytes.total(),
        "training": forward.bytes.total() + backward.bytes.total(),
    }


def fused(spec: KernelSpec, case: Case, dtype: torch.dtype) -> int:
    """Bytes of the op, with the backward where there is one."""
    forward, backward = around(spec.op, leaves(spec, spec.make(case, dtype, "meta")))
    return sum(spec.bytes(case, dtype).values()) + forward.bytes.total() + backward.bytes.total()
