"""Triton's interpreter with less bookkeeping of its own: the same values, in about half the time.

    interpreter.speed_up()          once, before kernels run

As it comes, the interpreter looks through all of triton.language at each call of a device function, though
the launch around it has replaced what there is to replace; builds the table of NumPy's dtypes for each
operation; and makes shape, number of elements and name of every block anew. Here these are made once and
kept, and an operation on two values of one type, or on one and a number, has the type that it shows. What an
operation computes is not touched. An interpreter of another version stays as it is.
"""

from __future__ import annotations

import builtins
import math
from types import SimpleNamespace

import numpy as np

VERSIONS = ("3.6.0",)
REPLACED: list[tuple[object, str, object]] = []  # by `speed_up`: where, which, and what was there


def speed_up() -> bool:
    """Whether it was done: where triton is of one of VERSIONS."""
    try:
        import triton
        from triton.language import core, semantic
        from triton.runtime import interpreter
    except ImportError:
        return False
    if triton.__version__ not in VERSIONS:
        return False
    block_type, tensor = _types(core)
    operands, broadcast = _operations(core, semantic.TritonSemantic)
    for place, name, new in (
        (interpreter.InterpretedFunction, "__call__", _device_function),
        (interpreter, "_get_np_dtype", _np_dtypes(interpreter, core)),
        (core.block_type, "__init__", block_type),
        (core.tensor, "__init__", tensor),
        (semantic.TritonSemantic, "binary_op_type_checking_impl", operands),
        (semantic.TritonSemantic, "broadcast_impl_value", broadcast),
    ):
        REPLACED.append((place, name, getattr(place, name)))
        setattr(place, name, new)
    return True


_seen: set[str] = set()  # modules whose names of triton.language were replaced


def _device_function(self, *args, **kwargs):
    """A call of a device function, within a launch, which has replaced the names of its own module."""
    from triton.runtime.interpreter import InterpreterError, _patch_lang

    if self.fn.__module__ not in _seen:
        _patch_lang(self.fn)
        _seen.add(self.fn.__module__)
    work = self.rewrite()
    try:
        return work(*args, **kwargs)
    except Exception as error:
        raise InterpreterError(repr(error)) from error


def _np_dtypes(interpreter, core):
    known: dict[str, np.dtype] = {}
    made = interpreter._get_np_dtype

    def np_dtype(dtype) -> np.dtype:
        scalar = dtype.element_ty if isinstance(dtype, core.block_type) else dtype
        if scalar.name not in known:
            known[scalar.name] = made(scalar)
        return known[scalar.name]

    return np_dtype


def _types(core):
    shapes: dict[tuple[int, ...], tuple] = {}  # extents -> what types and tensors of them have

    def shape_of(extents: tuple[int, ...]) -> tuple:
        if extents not in shapes:
            shape, numel = core.tuple(extents), core.validate_block_shape(extents)
            of_tensor = core.tuple([core.constexpr(extent) for extent in extents])
            shapes[extents] = shape, numel, str(shape), of_tensor, core.constexpr(math.prod(extents))
        return shapes[extents]

    def block_type(self, element_ty, shape) -> None:
        assert isinstance(shape, builtins.list | core.tuple)
        extents = builtins.tuple([e.value if type(e) is core.constexpr else e for e in shape])
        if not extents:
            raise TypeError("0d block_type is forbidden")
        self.element_ty = element_ty
        self.shape, self.numel, name, *_ = shape_of(extents)
        self.name = f"<{name}, {element_ty}>"

    scalar = core.tuple([]), core.constexpr(1)

    def tensor(self, handle, type) -> None:
        self.handle, self.type, self.dtype = handle, type, type.scalar
        if type.is_block():
            *_, self.shape, self.numel = shape_of(builtins.tuple(type.shape.values))
        else:
            self.shape, self.numel = scalar

    return block_type, tensor


def _operations(core, semantic):
    """The two operands of an operation, in their common type and then their common shape."""
    slow_operands, slow_broadcast = semantic.binary_op_type_checking_impl, semantic.broadcast_impl_value
    shapes: dict[tuple[tuple, tuple], list[int] | None] = {}  # of two blocks: the common one, if there is one

    def simple(tensor, number) -> bool:
        """Whether a number takes the type of this tensor, whatever the operation."""
        scalar = tensor.type.scalar if type(tensor) is core.tensor else None
        if type(number) is int and -(2**31) <= number < 2**31:
            return scalar is core.int32 or scalar is core.float32
        return type(number) is float and scalar is core.float32

    def operands(self, lhs, rhs, lhs_ptr=False, rhs_ptr=False, arithmetic_check=True, div_or_mod=False):
        if type(lhs) is type(rhs) is core.tensor:
            scalar = lhs.type.scalar
            if scalar is rhs.type.scalar and not div_or_mod and not scalar.is_ptr():
                return self.broadcast_impl_value(lhs, rhs)
        elif arithmetic_check and simple(lhs, rhs):
            return self.broadcast_impl_value(lhs, self.scalar_constant(rhs, lhs.type.scalar))
        elif arithmetic_check and simple(rhs, lhs):
            return self.broadcast_impl_value(self.scalar_constant(lhs, rhs.type.scalar), rhs)
        return slow_operands(self, lhs, rhs, lhs_ptr, rhs_ptr, arithmetic_check, div_or_mod)

    def broadcast(self, lhs, rhs):
        left, right = lhs.type, rhs.type
        if left.is_block() and right.is_block():
            if left.shape is right.shape:
                return lhs, rhs
            key = builtins.tuple(left.shape.values), builtins.tuple(right.shape.values)
            if key not in shapes:
                shapes[key] = common(*key)
            if shape := shapes[key]:
                return enlarged(self, lhs, shape), enlarged(self, rhs, shape)
        elif left.is_block() or right.is_block():
            shape = (left if left.is_block() else right).shape.values
            return splat(self, lhs, shape), splat(self, rhs, shape)
        return slow_broadcast(self, lhs, rhs)

    def common(left: tuple, right: tuple) -> list[int] | None:
        fits = len(left) == len(right) and all(a == b or 1 in (a, b) for a, b in zip(left, right))
        return [max(a, b) for a, b in zip(left, right)] if fits else None

    def enlarged(self, tensor, shape: list[int]):
        if list(tensor.type.shape.values) == shape:
            return tensor
        handle = self.builder.create_broadcast(tensor.handle, shape)
        return self.tensor(handle, core.block_type(tensor.type.scalar, shape))

    def splat(self, tensor, shape: list[int]):
        if tensor.type.is_block():
            return tensor
        handle = self.builder.create_splat(SimpleNamespace(shape=shape), tensor.handle)
        return self.tensor(handle, core.block_type(tensor.type.scalar, list(shape)))

    return operands, broadcast
