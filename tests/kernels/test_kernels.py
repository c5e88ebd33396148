"""What every kernel is tested for, written once over the catalogue.

On a machine with a CUDA device the kernels run there, at the recipes' shapes too; elsewhere through Triton's
interpreter (see conftest.py). The tests and their tolerances are the same.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from counting import counting
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, library
from torch._library.custom_ops import OPDEFS
from torch.utils._python_dispatch import TorchDispatchMode

import kernels
from kernels.base import chips, launch
from kernels.base.correctness import check, execute
from kernels.base.spec import Case, KernelSpec

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SPECS = tuple(spec for spec in kernels.CATALOGUE.values() if spec.since <= chips.here().cc)
by_spec = pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)

pytestmark = pytest.mark.skipif(
    not launch.runnable(DEVICE), reason="no CUDA device, and triton is not installed or not interpreting"
)


def cases_of(specs, cases, dtypes=None):
    """pytest parameters (spec, case, dtype)."""
    return pytest.mark.parametrize(
        "spec, case, dtype",
        [
            pytest.param(spec, case, dtype, id=f"{spec.name}-{case.name}-{str(dtype).removeprefix('torch.')}")
            for spec in specs
            for case in cases(spec)
            for dtype in (dtypes or spec.dtypes)
            if dtype in spec.dtypes
        ],
    )


@pytest.fixture
def unwritten_is_nan():
    """`torch.empty` is filled with NaN, so an element that no kernel writes shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def small(spec: KernelSpec) -> list[tuple[Case, torch.dtype]]:
    """Each small case in every dtype; in the interpreter, which is slow, in one or more."""
    return spec.small_in_dtypes() if DEVICE == "cpu" else list(itertools.product(spec.small(), spec.dtypes))


@pytest.mark.parametrize(
    "spec, case, dtype",
    [
        pytest.param(spec, case, dtype, id=f"{spec.name}-{case.name}-{launch.short(dtype)}")
        for spec in SPECS
        for case, dtype in small(spec)
    ],
)
def test_results_and_gradients_are_those_of_the_reference_in_float64(spec, case, dtype, unwritten_is_nan):
    assert not check(spec, case, dtype, DEVICE)


@pytest.mark.skipif(DEVICE == "cpu", reason="the recipes' shapes take hours through the interpreter")
@cases_of(SPECS, lambda spec: spec.cases)
def test_recipe_shapes_agree_with_the_reference_in_float64(spec, case, dtype, unwritten_is_nan):
    assert not check(spec, case, dtype, DEVICE)


@pytest.mark.skipif(DEVICE == "cpu", reason="only tensor cores multiply in tf32")
@cases_of(
    [spec for spec in SPECS if any(spec.flops(case, torch.float32) for case in spec.cases)],
    lambda spec: spec.cases,
    dtypes=(torch.float32,),
)
def test_recipe_shapes_agree_in_tf32(spec, case, dtype, tf32, unwritten_is_nan):
    assert not check(spec, case, dtype, DEVICE)


@by_spec
def test_every_value_of_a_field_is_tried_in_every_dtype(spec):
    tried = {(item, dtype) for case, dtype in spec.small_in_dtypes() for item in case.items()}
    values = {item for case in spec.small() for item in case.items()}
    assert tried == set(itertools.product(values, spec.dtypes))
    assert {case for case, _ in spec.small_in_dtypes()} == set(spec.small())


@by_spec
@settings(
    max_examples=2 if DEVICE == "cpu" else 5, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_drawn_shapes_agree_with_the_reference(spec, data):
    draw = st.fixed_dictionaries({name: st.sampled_from(values) for name, values in spec.space.items()})
    case = Case(**data.draw(draw.filter(lambda fields: spec.valid(Case(**fields)))))
    assert not check(spec, case, data.draw(st.sampled_from(spec.dtypes)), DEVICE)


@by_spec
def test_the_same_input_gives_the_same_bits(spec):
    inputs = spec.make(spec.counted[0], spec.dtypes[0], DEVICE)
    first, second = (execute(spec, spec.op, inputs) for _ in range(2))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def least(spec: KernelSpec) -> Case:
    """The small case that moves the fewest bytes."""
    return min(spec.small(), key=lambda case: sum(spec.bytes(case, spec.dtypes[0]).values()))


class Calls(TorchDispatchMode):
    """Notes the calls of ops of the namespace hlb."""

    def __init__(self):
        super().__init__()
        self.calls = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "hlb":
            self.calls.setdefault(function.name(), (function, args, kwargs or {}))
        return function(*args, **(kwargs or {}))


@by_spec
def test_registered_ops_pass_opcheck(spec):
    with Calls() as noted:
        execute(spec, spec.op, spec.make(least(spec), spec.dtypes[0], DEVICE))
    assert set(spec.ops) == set(noted.calls)
    for name, (function, args, kwargs) in noted.calls.items():
        trained = OPDEFS[name]._backward_fn is not None
        args = [a.detach().clone() if isinstance(a, Tensor) else a for a in args]
        for i in [i for i, a in enumerate(args) if isinstance(a, Tensor) and a.is_floating_point()][:trained]:
            args[i].requires_grad_()
        library.opcheck(function, tuple(args), kwargs)


@by_spec
def test_compiles_to_one_graph(spec):
    inputs = spec.make(least(spec), spec.dtypes[0], DEVICE)
    backend = "inductor" if DEVICE == "cuda" else "aot_eager"
    torch._dynamo.reset()
    compiled = torch.compile(spec.op, fullgraph=True, dynamic=False, backend=backend)
    expected, got = execute(spec, spec.op, inputs), execute(spec, compiled, inputs)
    for name, want in expected.items():
        assert torch.equal(got[name], want), name


def spoilt(value: Tensor):
    """(what is wrong, the tensor made so)"""
    yield "dtype", value.to(torch.complex64)
    yield "rank", value[None]
    if value.numel() > 1:
        yield "layout", torch.stack((value, value), dim=-1)[..., 0]
    yield "device", value.to("meta")


@by_spec
@pytest.mark.filterwarnings("ignore:Casting complex")
def test_a_wrong_tensor_is_a_value_error_that_names_the_argument(spec):
    inputs = spec.make(spec.counted[0], spec.dtypes[0], DEVICE)
    checked = 0
    for name, value in inputs.items():
        if isinstance(value, Tensor):
            for what, wrong in spoilt(value):
                with pytest.raises(ValueError, match=r"^\w+: got") as caught:
                    spec.op(**(inputs | {name: wrong}))
                message = str(caught.value)
                others = [other for other in inputs if message.startswith(f"{other}: ")]
                assert others, f"{name} of wrong {what}: {message}"
                # A wrong device shows in whichever tensor is compared with the first.
                assert others == [name] or what == "device", f"{name} of wrong {what}: {message}"
                checked += 1
    assert checked


@pytest.mark.skipif(DEVICE == "cuda", reason="work is counted in the interpreter")
@pytest.mark.parametrize(
    "spec, case, dtype",
    [
        pytest.param(spec, case, dtype, id=f"{spec.name}-{case.name}-{launch.short(dtype)}")
        for spec in SPECS
        for case in spec.counted
        for dtype in [d for d in (torch.float16, torch.float32) if d in spec.dtypes][
            : 1
            + (
                case is spec.counted[0]
            )  # float32, which is slow, at the first
        ]
    ],
)
def test_counted_work_is_what_the_spec_declares(spec, case, dtype):
    with counting() as counts:
        execute(spec, spec.op, spec.make(case, dtype, DEVICE))
    declared = spec.bytes(case, dtype)
    assert counts.keys() == declared.keys()
    for name, count in counts.items():
        bytes = count.distinct if name in spec.shared_reads else count.bytes
        assert bytes == pytest.approx(declared[name], rel=0.05), name
        assert count.flops == pytest.approx(spec.flops(case, dtype).get(name, 0), rel=0.05), name


@by_spec
def test_recording_notes_every_kernel_and_runs_none(spec):
    inputs = spec.make(spec.counted[0], spec.dtypes[0], DEVICE)
    with launch.recording() as launches:
        execute(spec, spec.op, inputs)
    assert {one.name for one in launches} == set(spec.bytes(spec.counted[0], spec.dtypes[0]))
