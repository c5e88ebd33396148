"""Test-time views of a batch, and the weights of their logits.

    logits(image) = sum over views v of weight[v] * network(view_v(image))

A view is the image shifted by (dy, dx) pixels through reflected borders, then mirrored or not. images uint8
[n, h, w, 3] -> [v, n, h, w, 3], normalised as in training. `flip` is the two mirror images (hlb-CIFAR10);
`flip+shift` adds both mirror images of two diagonal one-pixel shifts at half their weight (airbench, arXiv
2404.00498). The sum: logits [v, n, classes] -> [n, classes] in float32 (float64 for float64).

Bytes: 3 * h * w read + v * 3 * h * w * itemsize written per image; the sum reads v * classes * itemsize and
writes 4 * classes per image.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .augment import (
    MEAN,
    STD,
    _per_channel,
    _reflect,
    blocks_of,
    expect_float,
    normalise,
    reflect,
    scale_and_shift,
)
from .base.launch import cdiv, expect, launch, register, tl, triton
from .base.spec import Case, KernelSpec

# name -> (dy, dx, mirrored, weight) per view
VIEWS: dict[str, tuple[tuple[int, int, bool, float], ...]] = {
    "none": ((0, 0, False, 1.0),),
    "flip": ((0, 0, False, 0.5), (0, 0, True, 0.5)),
    "flip+shift": (
        (0, 0, False, 0.25),
        (0, 0, True, 0.25),
        (-1, -1, False, 0.125),
        (-1, -1, True, 0.125),
        (1, 1, False, 0.125),
        (1, 1, True, 0.125),
    ),
}


def reference(
    images: Tensor, views: str, *, mean: tuple[float, ...], std: tuple[float, ...], dtype: torch.dtype
) -> Tensor:
    """uint8 [n, h, w, 3] -> [v, n, h, w, 3] in `dtype`, v the number of views of `VIEWS[views]`."""
    _check(views)
    _, h, w, _ = images.shape
    y, x = torch.arange(h, device=images.device), torch.arange(w, device=images.device)
    out = [
        images[:, reflect(y + dy, h)][:, :, reflect((x.flip(0) if mirrored else x) + dx, w)]
        for dy, dx, mirrored, _ in VIEWS[views]
    ]
    return normalise(torch.stack(out), mean, std, dtype)


def weighted_mean(logits: Tensor, views: str) -> Tensor:
    """Logits [v, n, classes] of the views `VIEWS[views]` -> their weighted mean [n, classes], in float32 at
    least.
    """
    _check(views)
    _check_count(logits, views)
    wide = torch.promote_types(logits.dtype, torch.float32)
    return sum(weight * view.to(wide) for view, (*_, weight) in zip(logits, VIEWS[views]))


def _check(views: str) -> None:
    if views not in VIEWS:
        raise ValueError(f"views: got {views!r}, accepted are {', '.join(VIEWS)}")


def _check_count(logits: Tensor, views: str) -> None:
    if len(logits) != len(VIEWS[views]):
        raise ValueError(f"logits: got {len(logits)} views, accepted are the {len(VIEWS[views])} of {views}")


@triton.jit
def _views(
    p_images,  # uint8 [n, H, W, 3]
    p_out,  # [V, n, H, W, 3]
    n,
    H: tl.constexpr,
    W: tl.constexpr,
    DY: tl.constexpr,  # of each view
    DX: tl.constexpr,
    MIRRORED: tl.constexpr,
    SCALE: tl.constexpr,  # three numbers: normalised = SCALE * pixel + SHIFT
    SHIFT: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,  # at least 3 * W
):
    # Blocks are [BLOCK_W, BLOCK_H], as in augment.py and for the same reason.
    image = tl.program_id(0).to(tl.int64)
    rows = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)[None, :]  # [1, BLOCK_H]
    columns = tl.arange(0, BLOCK_W)[:, None]  # [BLOCK_W, 1]: 3 * x + channel
    m_out = (rows < H) & (columns < 3 * W)
    inner = tl.minimum(columns, 3 * W - 1)  # beyond the edge, read the edge again: cheaper than a mask
    y, x, channels = tl.minimum(rows, H - 1), inner // 3, inner % 3
    b_scale, b_shift = _per_channel(channels, SCALE), _per_channel(channels, SHIFT)  # [BLOCK_W, 1]
    o_out = rows * (3 * W) + columns  # [BLOCK_W, BLOCK_H]
    for view in tl.static_range(len(DY)):
        source = W - 1 - x if MIRRORED[view] else x
        o_pixels = _reflect(y + DY[view], H) * (3 * W) + (_reflect(source + DX[view], W) * 3 + channels)
        b_pixels = tl.load(p_images + image * (3 * H * W) + o_pixels).to(tl.float32) * b_scale + b_shift
        p_view = p_out + (view * tl.cast(n, tl.int64) + image) * (3 * H * W)
        tl.store(p_view + o_out, b_pixels.to(p_out.dtype.element_ty), mask=m_out)


@triton.jit
def _weigh_views(
    p_logits,  # [V, size]
    p_out,  # float32 [size]
    size,  # n * classes
    WEIGHTS: tl.constexpr,  # V of them
    BLOCK: tl.constexpr,
):
    o_out = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    m_out = o_out < size
    b_out = tl.zeros((BLOCK,), tl.float32)
    for view in tl.static_range(len(WEIGHTS)):
        p_view = p_logits + view * tl.cast(size, tl.int64)
        b_out += WEIGHTS[view] * tl.load(p_view + o_out, mask=m_out, other=0.0).to(tl.float32)
    tl.store(p_out + o_out, b_out, mask=m_out)


@register("hlb::views")
def _forward(images: Tensor, views: str, mean: list[float], std: list[float], dtype: torch.dtype) -> Tensor:
    n, h, w, _ = images.shape
    dy, dx, mirrored, _ = zip(*VIEWS[views])
    out = images.new_empty((len(dy), n, h, w, 3), dtype=dtype)
    scale, shift = scale_and_shift(mean, std)
    blocks = blocks_of(h, w, BLOCK)
    launch(
        _views,
        (n, cdiv(h, blocks["BLOCK_H"])),
        images,
        out,
        n,
        H=h,
        W=w,
        DY=dy,
        DX=dx,
        MIRRORED=mirrored,
        SCALE=scale,
        SHIFT=shift,
        **blocks,
        num_warps=4,
    )
    return out


@_forward.register_fake
def _(images, views, mean, std, dtype):
    return images.new_empty((len(VIEWS[views]), *images.shape), dtype=dtype)


@register("hlb::weigh_views")
def _weigh(logits: Tensor, views: str) -> Tensor:
    out = logits.new_empty(logits.shape[1:], dtype=torch.float32)
    weights = tuple(weight for *_, weight in VIEWS[views])
    grid = (cdiv(out.numel(), WEIGH_BLOCK),)
    launch(_weigh_views, grid, logits, out, out.numel(), WEIGHTS=weights, BLOCK=WEIGH_BLOCK)
    return out


@_weigh.register_fake
def _(logits, views):
    return logits.new_empty(logits.shape[1:], dtype=torch.float32)


BLOCK = 2048  # pixels' bytes that a program reads
WEIGH_BLOCK = 512  # logits that a program writes


def op(
    images: Tensor, views: str, *, mean: tuple[float, ...], std: tuple[float, ...], dtype: torch.dtype
) -> Tensor:
    """As `reference`, in one launch.

    Raises ValueError for a wrong shape, dtype, layout or option, naming the argument.
    """
    _check(views)
    expect("images", images, None, None, None, 3, dtypes=(torch.uint8,))
    if min(images.shape[1:3]) < 2:
        raise ValueError(f"images: got {images.shape[1]} x {images.shape[2]}, accepted is 2 x 2 or larger")
    expect_float("dtype", dtype)
    return _forward(images, views, mean, std, dtype)


def weigh(logits: Tensor, views: str) -> Tensor:
    """As `weighted_mean`, in one launch; it has no gradient.

    Raises ValueError for a wrong shape, dtype, layout or option, naming the argument.
    """
    _check(views)
    expect("logits", logits, None, None, None)
    _check_count(logits, views)
    return _weigh(logits, views)


def _make(case: Case, dtype: torch.dtype, device) -> dict:
    images = torch.randint(0, 256, (case.n, *case.map, 3), dtype=torch.uint8, device=device)
    return {"images": images, "views": case.views, "mean": MEAN, "std": STD, "dtype": dtype}


def _bytes(case: Case, dtype: torch.dtype) -> dict[str, int]:
    h, w = case.map
    return {"_views": case.n * 3 * h * w * (1 + len(VIEWS[case.views]) * dtype.itemsize)}


def _make_logits(case: Case, dtype: torch.dtype, device) -> dict:
    logits = torch.randn(len(VIEWS[case.views]), case.n, case.classes, device=device).to(dtype)
    return {"logits": logits, "views": case.views}


def _weigh_bytes(case: Case, dtype: torch.dtype) -> dict[str, int]:
    return {"_weigh_views": case.n * case.classes * (len(VIEWS[case.views]) * dtype.itemsize + 4)}


SPEC = KernelSpec(
    name="views",
    formula="out[v] = normalise(shift and mirror(images, v))",
    fuses="shift, mirror and normalisation of all test-time views",
    reference=reference,
    op=op,
    ops=("hlb::views",),
    make=_make,
    cases=(
        Case("seed", n=1000, map=(32, 32), views="flip"),
        Case("seed plain", n=1000, map=(32, 32), views="none"),
        Case("record94", n=1500, map=(32, 32), views="flip+shift"),
        Case("record94 at 400", n=400, map=(32, 32), views="flip+shift"),  # 5 * 400 are a batch of 2,000
        Case("record94 at 300", n=300, map=(32, 32), views="flip+shift"),
        Case("record94 plain at 2000", n=2000, map=(32, 32), views="none"),
        Case("record94 plain at 10000", n=10000, map=(32, 32), views="none"),
        Case("airbench94", n=2000, map=(32, 32), views="flip+shift"),
    ),
    space={"n": (1, 3), "map": ((17, 32), (7, 5), (2, 3), (15, 23)), "views": tuple(VIEWS)},
    counted=(Case(n=3, map=(32, 32), views="flip+shift"),),
    bytes=_bytes,
    case_of=lambda inputs: Case(
        n=len(inputs["images"]), map=tuple(inputs["images"].shape[1:3]), views=inputs["views"]
    ),
    dtype_from="dtype",
    part="images",
    narrow={"p_images": "single bytes: a row of 3-byte pixels may start anywhere and run backwards"},
)

WEIGH_SPEC = KernelSpec(
    name="weigh_views",
    formula="out = sum over views v of weight[v] * logits[v]",
    fuses="the weighted sum of the views' logits",
    reference=weighted_mean,
    op=weigh,
    ops=("hlb::weigh_views",),
    make=_make_logits,
    cases=(
        Case("seed", n=10000, classes=10, views="flip"),
        Case("record94", n=1500, classes=10, views="flip+shift"),
        Case("airbench94", n=10000, classes=10, views="flip+shift"),
    ),
    space={"n": (1, 3, 64), "classes": (2, 10, 17), "views": tuple(VIEWS)},
    counted=(Case(n=100, classes=10, views="flip+shift"),),
    bytes=_weigh_bytes,
    case_of=lambda inputs: Case(
        n=inputs["logits"].shape[1], classes=inputs["logits"].shape[2], views=inputs["views"]
    ),
    dtype_from="logits",
    part="logits",
    reduction=lambda case: len(VIEWS[case.views]),
    narrow={"p_logits": "four values a thread, which fill the 16 bytes of the float32 that it writes"},
)
