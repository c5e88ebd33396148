"""What several test modules share: comparison with float64, and made-up inputs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kernels import conv_bn_act
from kernels.base.correctness import TOLERANCE
from kernels.convolution import tiling
from kernels.convolution.tiling import Problem

DTYPES = tuple(TOLERANCE)
MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)


def wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def channels_last(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape).to(dtype).to(memory_format=torch.channels_last)


def pixels(n: int, h: int, w: int) -> Tensor:
    return torch.randint(0, 256, (n, h, w, 3), dtype=torch.uint8)


def draw(tensor: Tensor, bound: float) -> None:
    """Uniform values in [-bound, bound), the same each time: for `Network.reset`."""
    tensor.copy_((2 * torch.rand(tensor.shape, generator=torch.Generator().manual_seed(0)) - 1) * bound)


def normalised(images: Tensor, mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD) -> Tensor:
    """(pixels / 255 - mean) / std in float64, [..., 3]."""
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in (mean, std))
    return (images.double() / 255 - mean) / std


def assert_near(result: Tensor, expected: Tensor, tolerance: float, what: str = "result") -> None:
    assert result.shape == expected.shape, what
    error = (result.double() - expected).norm() / expected.norm()
    assert error < tolerance, f"{what}: relative error {error:.2e}, allowed {tolerance:.0e}"


def assert_agrees(
    op: Callable[..., Tensor], plain: Callable[..., Tensor], inputs: dict[str, Tensor], dtype: torch.dtype
) -> None:
    """Output of `op` and gradient of every input are those of `plain` on the same inputs in float64."""
    results = []
    for function, cast in ((op, Tensor.clone), (plain, Tensor.double)):
        leaves = {name: cast(value).detach().requires_grad_() for name, value in inputs.items()}
        output = function(**leaves)
        # bfloat16 values are exact in every dtype, so both sides get the same upstream gradient.
        upstream = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
        output.backward(upstream.to(output.dtype))
        results.append({"output": output.detach(), **{f"d {name}": x.grad for name, x in leaves.items()}})
    for name, expected in results[1].items():
        assert_near(results[0][name], expected, TOLERANCE[dtype], name)


def recipe_passes(dtype: torch.dtype) -> set[Problem]:
    """The passes of the recipes' convolution blocks."""
    return {
        Problem(kind, case.n, *case.map, case.c, case.o, 3, case.pool, dtype)
        for case in conv_bn_act.SPEC.cases
        for kind in tiling.PASSES
    }
