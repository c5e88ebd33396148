"""What right means for an op: its results and gradients are those of its reference in float64.

Shared by the tests and the benchmark, which shows no time of an op that is wrong.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .spec import Case, KernelSpec

# norm(result - reference) / norm(reference), the reference in float64.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


# Tensor cores do not round float32 to tf32, they drop 13 bits, so that an error has a mean. Of m * 2^e, m
# in [1, 2), the loss is 2^-11 / m in proportion; over all m (logarithmic: density 1 / (m ln 2)) that is
# 2^-11 / (2 ln 2) = 3.5e-4. A product loses twice that, and a sum of products as much as each: 7.0e-4, with
# what is left to chance 7.6e-4. A square of such sums, as a variance is, loses twice as much again: 1.41e-3.
TF32 = 1e-3  # of a sum of products, and twice that of a square


def limits(dtype: torch.dtype, squared: bool = False, narrowed: bool = False) -> tuple[float, float]:
    """(relative error allowed in norm, eps) of a dtype; float32 is tf32 where torch may multiply it so.
    `squared`: of a result that squares what a matrix product gives. `narrowed`: of one of values that are
    rounded to e5m2 after they were off by an error e that is allowed: of those between two numbers, a fourth
    of their size apart at most, a part of 4 e falls to the other one. Its square of norm is e / 4.
    """
    if narrowed:
        return (TOLERANCE[dtype] / 4) ** 0.5, torch.finfo(dtype).eps
    if dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32:
        return TF32 * (1 + squared), 2.0**-10
    return TOLERANCE[dtype], torch.finfo(dtype).eps


def widened(value):
    """An input as the reference gets it: tensors and dtypes of floating kind become float64."""
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value.clone()
    return torch.float64 if isinstance(value, torch.dtype) else value


def leaves(spec: KernelSpec, inputs: dict, gradients: bool = True) -> dict:
    """Copies of a call's inputs, of the same layout; those that may need a gradient do, if wanted."""
    return {
        name: value.detach().clone().requires_grad_(gradients and name in spec.differentiable)
        if isinstance(value, Tensor)
        else value
        for name, value in inputs.items()
    }


def upstream(outputs: list[Tensor]) -> list[Tensor]:
    """A gradient for each output, at random: the same numbers at every call and in every dtype."""
    generator = torch.Generator().manual_seed(1)
    values = [torch.randn(out.shape, generator=generator).bfloat16() for out in outputs]
    return [value.to(out.device, out.dtype) for value, out in zip(values, outputs)]


def execute(spec: KernelSpec, function: Callable, inputs: dict, gradients: bool = True) -> dict[str, Tensor]:
    """Outputs, written arguments and gradients of a call, by name."""
    inputs = leaves(spec, inputs, gradients)
    outputs = function(**inputs)
    outputs = outputs if isinstance(outputs, tuple | list) else (outputs,)
    results = {f"output {i}": out for i, out in enumerate(outputs) if out is not None}
    roots = [out for out in results.values() if out.requires_grad]
    if roots:
        wanted = {name: inputs[name] for name in spec.differentiable if isinstance(inputs[name], Tensor)}
        grads = torch.autograd.grad(roots, tuple(wanted.values()), upstream(roots), allow_unused=True)
        results |= {f"d {name}": g for name, g in zip(wanted, grads) if g is not None}
    results |= {name: inputs[name] for name in spec.mutates if inputs[name] is not None}
    return {name: value.detach() for name, value in results.items()}


def faults(spec: KernelSpec, case: Case, dtype: torch.dtype, got: dict, expected: dict) -> list[str]:
    """What of `got` is not as `expected`, a line each: integers exactly, floats by norm and largest error."""
    if got.keys() != expected.keys():
        return [f"results: got {', '.join(got)}; expected {', '.join(expected)}"]
    each = (
        _fault(spec, case, limits(dtype, name in spec.squared, name in spec.narrowed), got[name], want)
        for name, want in expected.items()
    )
    return [f"{name}: {fault}" for name, fault in zip(expected, each) if fault]


def _fault(
    spec: KernelSpec, case: Case, allowed: tuple[float, float], have: Tensor, want: Tensor
) -> str | None:
    if have.shape != want.shape:
        return f"shape {tuple(have.shape)}, expected {tuple(want.shape)}"
    if not want.is_floating_point():
        wrong = int((have != want).sum())
        return f"{wrong} of {want.numel()} values differ" if wrong else None
    if not have.isfinite().all():
        return f"{(~have.isfinite()).sum()} values are not finite"
    error, size = have.double() - want, want.norm()
    relative = error.norm() / size if size else error.norm()
    tolerance, eps = allowed
    if not relative <= tolerance:
        return f"relative error {relative:.2e}, allowed {tolerance:.0e}"
    largest = error.abs().max()
    bound = 10 * eps * max(1, spec.reduction(case)) ** 0.5 * max(1, want.abs().max())
    return None if largest <= bound else f"largest error {largest:.2e}, allowed {bound:.2e}"


def check(spec: KernelSpec, case: Case, dtype: torch.dtype, device) -> list[str]:
    """The faults of the op, on fresh inputs; an empty list where it is right."""
    inputs = spec.make(case, dtype, device)
    got = execute(spec, spec.op, inputs)
    told = {name: widened(value) for name, value in inputs.items()} | spec.given(inputs)
    expected = execute(spec, spec.reference, told)
    return faults(spec, case, dtype, got, expected)
