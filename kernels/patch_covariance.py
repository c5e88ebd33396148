"""The covariance of the 2x2 patches of the normalised images, from which whitening filters are made.

    covariance = mean over all patches p of p p^T,        minus mean p (mean p)^T where centered

images uint8 [n, h, w, 3] -> [12, 12] in float64 (the reference: float32 where the device has none). A patch p
is its 12 normalised values in order (c, dy, dx); patches overlap, (h - 1) * (w - 1) of an image.

Pixels are integers, so the kernel sums products of integers, exactly: with v = (the 12 pixels of a patch less
128, 1) one matrix product gives M = sum of v v^T, in int32 for each program and int64 over the programs. The
normalised patch is A v, so the second moment is A M A^T / count and the mean patch the last column of
A M / count, in float64.

Bytes: the images read once, and 1,024 written by each program. FLOPs: 2 * 16 * 16 per patch.
Source: Page, "How to train your ResNet 8: Bag of tricks" (2019); see hlb/whitening.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .augment import normalise
from .base.launch import cdiv, expect, launch, register, tl, triton
from .base.spec import Case, KernelSpec, sized


def reference(
    images: Tensor,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    centered: bool,
    chunk: int = 1000,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Covariance of all 2x2 patches of the normalised images: uint8 [n, h, w, 3] -> [12, 12], order (c, dy,
    dx).

    `centered` subtracts the mean patch (a covariance proper); otherwise it is the second moment about zero.
    Products are summed in `dtype` within a chunk of images, over chunks in float64 (float32 where the device
    has none). A float32 sum over a chunk's million patches is off by 1e-6, which the kernel is not.
    """
    wide = torch.float32 if images.device.type == "mps" else torch.float64
    second = torch.zeros(12, 12, dtype=wide, device=images.device)
    first = torch.zeros(12, dtype=wide, device=images.device)
    count = 0
    for part in images.split(chunk):
        x = normalise(part, mean, std, dtype)
        patches = (
            torch.stack(
                [x[:, dy : x.shape[1] - 1 + dy, dx : x.shape[2] - 1 + dx] for dy in (0, 1) for dx in (0, 1)],
                dim=-1,
            )
            .flatten(0, 2)
            .flatten(1)
        )  # [m, 12]
        second += (patches.T @ patches).to(wide)
        first += patches.sum(0, dtype=wide)
        count += len(patches)
    second, first = second / count, first / count
    return second - torch.outer(first, first) if centered else second


@triton.jit
def _patch_offsets(pixels, values, H: tl.constexpr, W: tl.constexpr):
    """Where value (c, dy, dx) of the patch at an output pixel lies in [n, H, W, 3]: [pixels, values]."""
    x = pixels % (W - 1)
    y = pixels // (W - 1) % (H - 1)
    image = pixels // ((H - 1) * (W - 1))
    corner = ((image * H + y) * W + x).to(tl.int64) * 3
    return corner[:, None] + ((values // 2 % 2 * W + values % 2) * 3 + values // 4)[None, :]


@triton.jit
def _patch_moments(
    p_images,  # uint8 [n, H, W, 3]
    p_partial,  # int32 [programs, 16, 16]
    pixels,  # n * (H - 1) * (W - 1)
    H: tl.constexpr,
    W: tl.constexpr,
    SPAN: tl.constexpr,  # patches of a program
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0)
    values = tl.arange(0, 16)
    b_moments = tl.zeros([16, 16], tl.int32)
    for start in range(program * SPAN, tl.minimum(program * SPAN + SPAN, pixels), BLOCK):
        rows = start + tl.arange(0, BLOCK)  # [BLOCK]
        m_rows = (rows < pixels)[:, None]
        o_patches = _patch_offsets(rows, values, H, W)  # [BLOCK, 16]
        b_pixels = tl.load(p_images + o_patches, mask=m_rows & (values < 12), other=128)
        b_patches = b_pixels.to(tl.int16) - 128
        b_patches = tl.where(m_rows & (values == 12), 1, b_patches).to(tl.int8)
        b_moments = tl.dot(tl.trans(b_patches), b_patches, b_moments, out_dtype=tl.int32)
    o_moments = (program * 16 + values)[:, None] * 16 + values
    tl.store(p_partial + o_moments, b_moments)


BLOCK = 512  # patches of a step
SPAN = 16 * BLOCK  # patches of a program: 128 * 128 * SPAN stays below 2^31


@register("hlb::patch_moments")
def _moments(images: Tensor) -> Tensor:
    """int64 [13, 13]: sum over all patches of v v^T, v = (pixels - 128, 1)."""
    n, h, w, _ = images.shape
    pixels = n * (h - 1) * (w - 1)
    programs = cdiv(pixels, SPAN)
    partial = torch.empty((programs, 16, 16), dtype=torch.int32, device=images.device)
    sizes = {"H": h, "W": w, "SPAN": SPAN, "BLOCK": BLOCK}
    # One stage: single bytes cannot be copied asynchronously.
    launch(_patch_moments, (programs,), images, partial, pixels, num_stages=1, **sizes)
    return partial.sum(0)[:13, :13].contiguous()


@_moments.register_fake
def _(images):
    return images.new_empty((13, 13), dtype=torch.int64)


def op(
    images: Tensor,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    centered: bool,
    chunk: int = 1000,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """As `reference`, in one launch over all images, whatever `chunk` and `dtype`: exact, and float64.

    Raises ValueError for a wrong shape, dtype, layout or device, naming the argument.
    """
    expect("images", images, None, None, None, 3, dtypes=(torch.uint8,))
    if len(images) == 0 or min(images.shape[1:3]) < 2:
        raise ValueError(f"images: got shape {list(images.shape)}, accepted is one image of 2x2 or more")
    moments = _moments(images).double()
    wide = {"dtype": torch.float64, "device": images.device}
    centre, spread = (torch.tensor(v, **wide).repeat_interleave(4)[:, None] for v in (mean, std))
    affine = torch.cat((torch.eye(12, **wide) / 255, 128 / 255 - centre), dim=1) / spread  # A, [12, 13]
    second, first = affine @ moments @ affine.T, affine @ moments[:, 12]
    second, first = second / moments[12, 12], first / moments[12, 12]
    return second - torch.outer(first, first) if centered else second


def _make(case: Case, dtype: torch.dtype, device) -> dict:
    """Images whose channels share most of their signal, of values up to both ends."""
    shape = case.n, case.h, case.w
    shared, own = torch.randn(*shape, 1, device=device), torch.randn(*shape, 3, device=device)
    return {
        "images": (120 + 70 * shared + 20 * own).round().clamp(0, 255).to(torch.uint8),
        "mean": (0.4914, 0.4822, 0.4465),
        "std": (0.2470, 0.2435, 0.2616),
        "centered": case.centered,
        "chunk": case.chunk,
        "dtype": dtype,
    }


def patch_count(case: Case) -> int:
    """Of all images, as a 2x2 convolution has output pixels."""
    return case.n * (case.h - 1) * (case.w - 1)


def patch_bytes(case: Case, block: int, itemsize: int) -> int:
    """Each pixel once, and a row of them again wherever two blocks of the output meet."""
    return 3 * itemsize * (case.n * case.h + cdiv(patch_count(case), block) - 1) * case.w


def _bytes(case: Case, dtype: torch.dtype) -> dict[str, int]:
    programs = cdiv(patch_count(case), SPAN)
    return {"_patch_moments": patch_bytes(case, SPAN, 1) + programs * 16 * 16 * 4}


def _flops(case: Case, dtype: torch.dtype) -> dict[str, int]:
    steps = cdiv(patch_count(case), BLOCK)
    return {"_patch_moments": 2 * 16 * 16 * BLOCK * steps}


def _images(label: str, n: int, centered: bool) -> Case:
    return Case(label, n=n, h=32, w=32, centered=centered, chunk=1000)


GATHERED = "two pixels of 3 channels lie side by side in a patch"

SPEC = KernelSpec(
    name="patch_covariance",
    formula="mean over all 2x2 patches p of p p^T, minus mean p (mean p)^T where centered",
    fuses="normalisation, patches and their covariance, in integers",
    reference=reference,
    op=op,
    ops=("hlb::patch_moments",),
    make=_make,
    cases=(
        _images("seed", 50000, True),
        _images("record94", 960, False),
        _images("airbench94", 5000, False),
        _images("smoke", 1000, False),
    ),
    space={
        "n": (1, 3, 7),
        "h": (2, 3, 8, 40),
        "w": (2, 5, 16, 40),
        "centered": (True, False),
        "chunk": (1, 2, 1000),
    },
    counted=(_images("counted", 9, True),),
    bytes=_bytes,
    flops=_flops,
    case_of=sized(n=("images", 0), h=("images", 1), w=("images", 2)),
    dtype_from="",
    part="stem",
    valid=lambda case: not case.centered or patch_count(case) > 1,  # of one patch the covariance is 0
    dtypes=(torch.float32,),
    narrow={
        "p_images": GATHERED,
        "p_partial": "256 sums a program, two for each thread",
    },
)
