"""docs/kernel-costs.md: what every kernel does and moves at the recipes' shapes, beside eager PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from hlb.files import atomic
from kernels import CATALOGUE
from kernels.base import chips
from kernels.base.launch import short
from kernels.base.spec import Case, KernelSpec
from kernels.base.traffic import fused, unfused
from kernels.convolution import conv, selection, tiling

CHIP = chips.AIMED_AT
RATE, BANDWIDTH = CHIP.flops[torch.float16], CHIP.bandwidth
HEAD = f"""\
# What the kernels cost

Every op that has a kernel, at the calls of the recipes. `python -m bench report --markdown` writes this page,
and a test compares.

| column | what it is |
|--|--|
| GFLOP | of matrix products as kernels issue them: with the zeros that fill tiles, without skipped padding |
| eager MB | of the op's reference in eager PyTorch: each operator reads its inputs and writes its outputs |
| fused MB | of its kernels, and of what they leave to operators, such as sums of partial gradients |
| floor µs | on {CHIP.name}: a launch takes its FLOPs at {RATE / 1e12:.0f} TFLOP/s, or its bytes at \
{BANDWIDTH / 1e12:.1f} TB/s, whichever is longer; all added up |
| µs, cuDNN | measured on that chip, cuDNN with the statistics and pool that it then needs (* corrected); \
– where it was not |

MB are 10^6 bytes, GFLOP 10^9 operations, a multiply-add is two. An op with a gradient is counted forward and
backward. The dtype is float16 where an op has it.

A kernel's bytes and FLOPs are declared in its SPEC; a test counts them in Triton's interpreter, within 5 %.
Bytes of operators are counted on shapes (`kernels/base/traffic.py`), each tensor once an operator: the least
they can be.

References are written to be right: `norm_act` takes its statistics in float32 in several operators, where
`F.batch_norm` would take one. And a ratio below 1 is what it seems: there the kernels move more, in fewer
launches.
"""
PASSES = """\
How each pass of the convolution is launched: in tiles of rows x columns x depth, where rows are images at one
place, or places row by row. `issued`: FLOPs of the launch over the useful ones, of the outputs that are kept,
padding taps included.
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
CONVOLUTIONS = ("conv", "conv_bn_act", "conv_bn_act_eval")


def text() -> str:
    """The page as Markdown, without the last line's end."""
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
    yield table(COLUMNS, rows, words=1)
    if spec.name in CONVOLUTIONS:
        yield PASSES
        rows = [row for case in spec.cases for row in _passes(spec, case, dtype)]
        yield table(PASS_COLUMNS, rows, words=3)


def _passes(spec: KernelSpec, case: Case, dtype: torch.dtype) -> Iterator[tuple[str, ...]]:
    bytes = spec.bytes(case, dtype)
    for kernel, (problem, config) in conv.passes(case, dtype, tiling.PASSES).items():
        if kernel in bytes:
            done = tiling.flops(problem, config)
            floor = max(done / RATE, bytes[kernel] / BANDWIDTH)
            numbers = done / 1e9, done / tiling.useful(problem), floor * 1e6
            found = selection.estimate(problem, CHIP)
            there = (found.seconds, found.cudnn) if found.how == "measured" else (None, None)
            ours, theirs = map(_microseconds, there)
            theirs += "*" * (found.corrected and found.how == "measured")
            times = *map(number, numbers), ours, theirs
            yield case.name, problem.kind, str(config), *times


def _microseconds(seconds: float | None) -> str:
    return "–" if seconds is None else number(seconds * 1e6)


def floor_seconds(spec: KernelSpec, case: Case, dtype: torch.dtype, moved: int) -> float:
    """Of a call that moves so many bytes, those of PyTorch's operators included."""
    bytes, flops = spec.bytes(case, dtype), spec.flops(case, dtype)
    kernels = sum(max(bytes[name] / BANDWIDTH, flops.get(name, 0) / RATE) for name in bytes)
    return kernels + (moved - sum(bytes.values())) / BANDWIDTH


def number(value: float) -> str:
    """Three digits, or all before the point; nothing for 0."""
    if not value:
        return ""
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}".rstrip(".")


def table(headings: tuple[str, ...], rows: list[tuple[str, ...]], words: int) -> str:
    """Markdown, readable as it stands; the first `words` columns are words, the others numbers."""
    widths = [max(map(len, column)) for column in zip(headings, *rows)]

    def line(cells: tuple[str, ...]) -> str:
        padded = (c.ljust(w) if i < words else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths)))
        return f"| {' | '.join(padded)} |"

    rule = tuple("-" * w if i < words else "-" * (w - 1) + ":" for i, w in enumerate(widths))
    return "\n".join(map(line, (headings, rule, *rows))) + "\n"


def write(root: Path) -> Path:
    """The page in a checkout; returns its path."""
    path = root / "docs" / "kernel-costs.md"
    with atomic(path) as temporary:
        temporary.write_text(text() + "\n", encoding="utf-8")
    return path
