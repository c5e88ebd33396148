"""docs/kernel-costs.md: what every kernel does and moves at the recipes' shapes, beside eager PyTorch."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from kernels import CATALOGUE
from kernels.base import chips
from kernels.base.launch import short
from kernels.base.spec import Case, KernelSpec
from kernels.base.traffic import fused, unfused
from kernels.convolution import conv, selection, tiling

from . import markdown

CHIP = chips.AIMED_AT
RATE, BANDWIDTH = CHIP.flops[torch.float16], CHIP.bandwidth
HEAD = f"""\
# What the kernels cost

Every op that has a kernel, at the shapes of the recipes. `python -m bench report --markdown` writes this
page, and a test compares the two.

| column | what it is |
|--|--|
| GFLOP | of matrix products as kernels issue them: with the zeros that fill tiles, without skipped padding |
| eager MB | of the op's reference in eager PyTorch: each operator reads its inputs and writes its outputs |
| fused MB | of its kernels, and of what they leave to operators, such as sums of partial gradients |
| floor µs | on {CHIP.name}: a launch takes its FLOPs at {RATE / 1e12:.0f} TFLOP/s, of 8 bits at \
{CHIP.flops[tiling.FLOAT8] / 1e12:.0f}, or its bytes at {BANDWIDTH / 1e12:.1f} TB/s, whichever is longer; \
all added up |
| µs, cuDNN | measured on that chip, cuDNN with the statistics and pool that it then needs (* corrected); \
– where it was not |

MB are 10^6 bytes, GFLOP 10^9 operations; a multiply-add is two. An op with a gradient is counted forward and
backward. The dtype is float16 where an op has it.

A kernel's bytes and FLOPs are declared in its SPEC; a test counts them in Triton's interpreter, within 5 %.
Bytes of operators are counted from shapes (`kernels/base/traffic.py`), each tensor once per operator: a lower
bound.

References are written for correctness, not speed: `norm_act` takes its statistics in float32 in several
operators, where `F.batch_norm` would take one. Where eager / fused is below 1, the kernels move more bytes,
in fewer launches.
"""
PASSES = """\
How each pass of the convolution is launched: in tiles of rows x columns x depth, where rows are images at one
place, or places row by row. `issued` is the launch's FLOPs over the useful ones: those of the outputs that
are kept, padding taps included.
"""


COLUMNS = ("case", "GFLOP", "eager MB", "fused MB", "eager / fused", "floor µs")
PASS_COLUMNS = (
    "case",
    "pass",
    "configuration",
    "GFLOP",
    "issued",
    "floor µs",
    "µs",
    "cuDNN",
)
CONVOLUTIONS = ("conv", "conv_bn_act", "conv_bn_act_eval", "conv_bn_act_float8", "conv_bn_act_float8_eval")


def text() -> str:
    """The page as Markdown, without the last newline."""
    with chips.targeting(CHIP):
        return "\n".join((HEAD, *(part for spec in CATALOGUE.values() for part in _section(spec))))


def _section(spec: KernelSpec) -> Iterator[str]:
    dtype = spec.dtype()
    eager = {case: unfused(spec, case, dtype) for case in spec.cases}
    backward = any(bytes["training"] > bytes["forward"] for bytes in eager.values())
    names = " ".join(f"`{name}`" for name in spec.bytes(spec.cases[0], dtype))
    yield f"## {spec.name}\n"
    yield f"    {spec.formula}\n"
    yield f"{'Forward and backward' if backward else 'Forward'}, {short(dtype)}: {names}\n"
    rows = []
    for case in spec.cases:
        unfused_bytes, moved = eager[case]["training"], fused(spec, case, dtype)
        done, floor = sum(spec.flops(case, dtype).values()), floor_seconds(spec, case, dtype, moved)
        numbers = done / 1e9, unfused_bytes / 1e6, moved / 1e6, unfused_bytes / moved, floor * 1e6
        rows.append((case.name, *map(number, numbers)))
    yield markdown.table(COLUMNS, rows, range(1, len(COLUMNS))) + "\n"
    if spec.name in CONVOLUTIONS:
        yield PASSES
        rows = [row for case in spec.cases for row in _passes(spec, case, dtype)]
        yield markdown.table(PASS_COLUMNS, rows, range(3, len(PASS_COLUMNS))) + "\n"


def _passes(spec: KernelSpec, case: Case, dtype: torch.dtype) -> Iterator[tuple[str, ...]]:
    bytes = spec.bytes(case, dtype)
    for kernel, (problem, config) in conv.passes(case, dtype, tiling.PASSES).items():
        if kernel in bytes:
            done = tiling.flops(problem, config)
            floor = max(done / CHIP.flops[problem.dtype], bytes[kernel] / BANDWIDTH)
            numbers = done / 1e9, done / tiling.useful(problem), floor * 1e6
            estimate = selection.estimate(problem, CHIP)
            measured = estimate.how == "measured"
            times = (estimate.seconds, estimate.cudnn) if measured else (None, None)
            ours, theirs = map(_microseconds, times)
            theirs += "*" * (estimate.corrected and measured)
            yield case.name, problem.kind, str(config), *map(number, numbers), ours, theirs


def _microseconds(seconds: float | None) -> str:
    return "–" if seconds is None else number(seconds * 1e6)


def floor_seconds(spec: KernelSpec, case: Case, dtype: torch.dtype, moved: int) -> float:
    """The floor of a call that moves so many bytes, PyTorch's operators included."""
    bytes, flops = spec.bytes(case, dtype), spec.flops(case, dtype)
    passes = conv.passes(case, dtype, tiling.PASSES) if spec.name in CONVOLUTIONS else {}
    rates = {name: CHIP.flops[problem.dtype] for name, (problem, _) in passes.items()}
    kernels = sum(max(bytes[name] / BANDWIDTH, flops.get(name, 0) / rates.get(name, RATE)) for name in bytes)
    return kernels + (moved - sum(bytes.values())) / BANDWIDTH


def number(value: float) -> str:
    """Three significant digits, or all before the point; "" for 0."""
    if not value:
        return ""
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}".rstrip(".")
