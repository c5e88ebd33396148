"""The interpreter as the tests speed it up (tests/interpreter.py) beside the interpreter as it comes."""

import contextlib

import numpy as np
import pytest
import torch

from kernels.base.launch import INTERPRETED, tl, triton

if not INTERPRETED:
    pytest.skip("triton does not interpret here", allow_module_level=True)

import interpreter
from triton.language import core
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter as theirs

DTYPES = (tl.int1, tl.int8, tl.uint8, tl.int32, tl.int64, tl.float16, tl.bfloat16, tl.float32, tl.float64)
SHAPES = ([4], [2, 8], [core.constexpr(16), 1], core.tuple([32, core.constexpr(2)]))


@contextlib.contextmanager
def as_it_comes():
    now = [(place, name, getattr(place, name)) for place, name, _ in interpreter.REPLACED]
    for place, name, original in interpreter.REPLACED:
        setattr(place, name, original)
    try:
        yield
    finally:
        for place, name, new in now:
            setattr(place, name, new)


def test_this_version_is_known():
    assert triton.__version__ in interpreter.VERSIONS, "see that tests/interpreter.py fits it, then name it"
    assert len(interpreter.REPLACED) == 6


def made(shape, dtype) -> tuple:
    """What there is to see of a type and of a tensor of it."""
    type = core.block_type(dtype, shape)
    tensor = core.tensor("handle", type)
    return (
        (type.shape.values, type.numel, type.name, type.element_ty, str(type), type.mangle()),
        (tensor.shape.values, tensor.numel, tensor.dtype, tensor.handle, str(tensor)),
        theirs._get_np_dtype(type),
        theirs._get_np_dtype(dtype),
        theirs._get_np_dtype(core.block_type(core.pointer_type(dtype), shape)),
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_types_and_tensors_are_the_same(dtype):
    for shape in SHAPES:
        with as_it_comes():
            before = made(shape, dtype)
        assert made(shape, dtype) == before
    with as_it_comes():
        scalar = core.tensor(1, dtype)
    assert (core.tensor(1, dtype).shape.values, core.tensor(1, dtype).numel) == (
        scalar.shape.values,
        scalar.numel,
    )


@pytest.mark.parametrize("shape", [[], [3], [4, 6], [2.5], (4, 4)])
def test_shapes_that_are_none_are_refused_alike(shape):
    with as_it_comes(), pytest.raises((TypeError, ValueError, AssertionError)) as before:
        core.block_type(tl.float32, shape)
    with pytest.raises(before.type) as now:
        core.block_type(tl.float32, shape)
    assert str(now.value) == str(before.value)


def outcome(lhs, rhs, options) -> list | str:
    """Of the operands of an operation in their common type and shape, or the error of those without one."""
    try:
        found = TritonSemantic(theirs.interpreter_builder).binary_op_type_checking_impl(lhs, rhs, *options)
    except Exception as error:
        return repr(error)
    return [
        (str(one.type), one.shape.values, one.handle.data.dtype, one.handle.data.tolist()) for one in found
    ]


def operands(dtype) -> list:
    """A scalar and blocks."""
    kind = theirs._get_np_dtype(dtype)
    scalar = core.tensor(theirs.TensorHandle(np.ones(1, kind), dtype), dtype)
    blocks = [
        core.tensor(theirs.TensorHandle(np.ones(shape, kind), dtype), core.block_type(dtype, shape))
        for shape in ([4], [8], [1, 4], [2, 1], [2, 4])
    ]
    return [scalar, *blocks]


@pytest.mark.parametrize(
    "options", [(), (True, True), (False, False, True, True), (False, False, False, True)]
)
@pytest.mark.parametrize("dtype", [*DTYPES, core.pointer_type(tl.float16)], ids=str)
def test_operands_have_the_same_common_type_and_shape(dtype, options):
    others = [one for other in (dtype, tl.int32, tl.float32, tl.float16) for one in operands(other)]
    others += [0, 3, -1, 2**31, -(2**40), 2.5, 1e300, True]
    pairs = [(one, other) for one in operands(dtype) for other in others]
    pairs += [(other, one) for one, other in pairs]
    with as_it_comes():
        before = [outcome(*pair, options) for pair in pairs]
    assert [outcome(*pair, options) for pair in pairs] == before
    assert any(isinstance(one, str) for one in before)
    assert any(isinstance(one, list) for one in before) or dtype.is_ptr()


@triton.jit
def _doubled(x):
    return 2 * x


@triton.jit
def _inner(p_x, p_y, n, BLOCK: tl.constexpr):
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(p_x + o, mask=o < n, other=0.0)
    tl.store(p_y + o, _doubled(x) - tl.max(x, axis=0) + tl.sum(x, axis=0), mask=o < n)


@triton.jit
def _fails(p_x):
    tl.store(p_x, _doubled(tl.arange(0, 3)))


def test_a_kernel_with_device_functions_has_the_same_bits_and_errors():
    x, (here, there) = torch.randn(50), torch.zeros(2, 50)
    _inner[(4,)](x, here, 50, BLOCK=16)
    with as_it_comes():
        _inner[(4,)](x, there, 50, BLOCK=16)
        with pytest.raises(theirs.InterpreterError) as before:
            _fails[(1,)](x)
    assert torch.equal(here, there) and here.abs().min() > 0
    with pytest.raises(theirs.InterpreterError) as now:
        _fails[(1,)](x)
    assert str(now.value) == str(before.value)
