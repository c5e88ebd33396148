"""Training augmentation of one batch: gather, crop, flip, normalise, jitter, cutout, resize, cast.

    a[i, y, x]   = (images[ids[i], reflect(y + dy - pad), reflect(x' + dx - pad)] / 255 - mean) / std
                   x' = x, or w - 1 - x where image i is flipped
    b[i, y, x]   = 0 (the mean colour) inside the cutout square, else
                   a[i, y, x] * (1 + contrast * u1) + brightness * u2
    out[i, y, x] = b[i, y, x], or with a `size` the bilinear sample of b at
                   ((y + 0.5) * h / size - 0.5, (x + 0.5) * w / size - 0.5), kept inside the image: that of
                   F.interpolate(mode="bilinear", align_corners=False, antialias=False)

images uint8 [N, h, w, 3], ids int64 [n] -> out [n, h, w, 3] or [n, size, size, 3] in the training dtype,
computed in float32 (float64 for float64) and rounded once. The crop reads through reflected coordinates, so
no padded copy of the data ever exists.

Draws, per image and epoch, are Philox counters (id, epoch, AUGMENT, block), so they depend neither on the
order of the images nor on the batch split:
    block 0: dy, dx, flip         block 1: cutout y, cutout x         block 2: u1, u2
dy and dx are uniform over all 2 * pad + 1 offsets; the cutout's corner over all positions inside the image;
u1 and u2 over [-1, 1). `alternating` flips image i at random once, in epoch 0, and turns it over in every
epoch after that (Jordan, "94 % on CIFAR-10 in 3.29 seconds on a single GPU", arXiv 2404.00498).

Bytes: 3 * h * w read + 3 * h * w * itemsize written per image; 9,216 for 32 x 32 in a 16-bit dtype.
"""

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .base.launch import FLOATS, cdiv, expect, launch, power_of_2, register, short, tl, triton
from .base.spec import Case, KernelSpec
from .random import AUGMENT, _below, _philox, _unit, below, philox, unit

FLIPS = ("none", "random", "alternating")


def reflect(index: Tensor, extent: int) -> Tensor:
    """Coordinates outside [0, extent) mirrored at the border, which is not repeated (as F.pad's
    'reflect').
    """
    index = index.abs()
    return torch.minimum(index, 2 * (extent - 1) - index)


def scale_and_shift(
    mean: Sequence[float], std: Sequence[float]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(scale, shift), one number a channel each, such that pixels * scale + shift is normalised."""
    return tuple(1 / (255 * s) for s in std), tuple(-m / s for m, s in zip(mean, std))


def _affine(mean: tuple[float, ...], std: tuple[float, ...], dtype: torch.dtype, device: torch.device):
    """`scale_and_shift` as two tensors [3]."""
    return tuple(torch.tensor(values, dtype=dtype, device=device) for values in scale_and_shift(mean, std))


_kept_affine = functools.lru_cache(_affine)  # so that no step copies from the host


def normalise(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...], dtype: torch.dtype) -> Tensor:
    """uint8 [..., 3] -> (pixels / 255 - mean) / std, in float32 at least, rounded once to `dtype`."""
    wide = torch.promote_types(dtype, torch.float32)
    affine = _affine if torch.compiler.is_compiling() else _kept_affine  # compiled they are constants
    scale, shift = affine(mean, std, wide, pixels.device)
    return torch.addcmul(shift, pixels.to(wide), scale).to(dtype)


def draws(seed: Tensor, epoch: Tensor, ids: Tensor, pad: int, flip: str) -> tuple[Tensor, Tensor, Tensor]:
    """Per image of `ids` [n]: row and column offset of the crop in [0, 2 * pad], and whether it is
    flipped.
    """
    dy, dx, coin, _ = philox(seed, ids, epoch, AUGMENT)
    if flip == "alternating":
        coin = philox(seed, ids, 0, AUGMENT)[2]
        flipped = below(coin, 2).bool() ^ (epoch & 1).bool()
    else:
        flipped = below(coin, 2).bool() & (flip == "random")
    return below(dy, 2 * pad + 1), below(dx, 2 * pad + 1), flipped


def reference(
    images: Tensor,
    ids: Tensor,
    seed: Tensor,
    epoch: Tensor,
    *,
    pad: int,
    flip: str,
    cutout: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    dtype: torch.dtype,
    brightness: float = 0.0,
    contrast: float = 0.0,
    size: int = 0,
) -> Tensor:
    """The augmented batch, [n, h, w, 3] in `dtype`; formula, shapes and draws in the module's docstring.

    `seed` and `epoch` are int64 scalar tensors on the device of `images`. `pad`, `cutout` and `size` are in
    pixels, `brightness` in standard deviations of the data, `contrast` a fraction; `size` 0 is the full
    side. Raises ValueError for an unknown `flip`, a `pad` of a whole side or more, a cutout or a size larger
    than the image, a negative brightness and a contrast outside [0, 1].
    """
    _, h, w, _ = images.shape
    _check(h, w, pad, flip, cutout, brightness, contrast, size)
    dy, dx, flipped = draws(seed, epoch, ids, pad, flip)
    y = torch.arange(h, device=images.device)
    column = torch.arange(w, device=images.device)
    x = torch.where(flipped[:, None], w - 1 - column, column)  # [n, w]
    rows = reflect(y + dy[:, None] - pad, h)  # [n, h]
    columns = reflect(x + dx[:, None] - pad, w)  # [n, w]
    pixels = images[ids[:, None, None], rows[:, :, None], columns[:, None, :]]  # [n, h, w, 3]
    out = normalise(pixels, mean, std, torch.promote_types(dtype, torch.float32))
    if brightness or contrast:
        gain, offset, _, _ = (
            2 * unit(draw).to(out.dtype) - 1 for draw in philox(seed, ids, epoch, AUGMENT, 2)
        )
        out = torch.addcmul(
            (brightness * offset)[:, None, None, None], out, (1 + contrast * gain)[:, None, None, None]
        )
    if cutout:
        top, left, _, _ = philox(seed, ids, epoch, AUGMENT, 1)
        top, left = below(top, h - cutout + 1)[:, None], below(left, w - cutout + 1)[:, None]
        inside = ((y >= top) & (y < top + cutout))[:, :, None] & (
            (column >= left) & (column < left + cutout)
        )[:, None]
        out = out.masked_fill(inside[..., None], 0)
    if size:
        out = F.interpolate(out.permute(0, 3, 1, 2), (size, size), mode="bilinear", align_corners=False)
        out = out.permute(0, 2, 3, 1).contiguous()
    return out.to(dtype)


def _check(
    h: int, w: int, pad: int, flip: str, cutout: int, brightness: float, contrast: float, size: int
) -> None:
    """Raises ValueError naming the first option that images of h x w cannot have."""
    side = min(h, w)
    if not 0 <= pad < side:
        raise ValueError(f"pad: got {pad}, accepted is 0 to {side - 1} for images of {h} x {w}")
    if flip not in FLIPS:
        raise ValueError(f"flip: got {flip!r}, accepted are {', '.join(FLIPS)}")
    if not 0 <= cutout <= side:
        raise ValueError(f"cutout: got {cutout}, accepted is 0 to {side} for images of {h} x {w}")
    if not 0 <= brightness < float("inf"):
        raise ValueError(f"brightness: got {brightness}, accepted is 0 or more")
    if not 0 <= contrast <= 1:
        raise ValueError(f"contrast: got {contrast}, accepted is 0 to 1")
    if not 0 <= size <= side:
        raise ValueError(f"size: got {size}, accepted is 0 (the full side) to {side} for images of {h} x {w}")


@triton.jit
def _reflect(index, EXTENT: tl.constexpr):
    """`reflect` in a kernel."""
    index = tl.abs(index)
    return tl.minimum(index, 2 * (EXTENT - 1) - index)


@triton.jit
def _per_channel(channel, VALUES: tl.constexpr):
    """VALUES[channel]: three constants, one for each channel 0, 1, 2 of a block."""
    return tl.where(channel == 0, VALUES[0], tl.where(channel == 1, VALUES[1], VALUES[2]))


@triton.jit
def _tap(index, TAP: tl.constexpr, EXTENT: tl.constexpr, SIZE: tl.constexpr):
    """Of the two of EXTENT pixels that output pixel `index` of SIZE lies between, the first (TAP 0) or the
    second, and its weight. In whole multiples of 1 / (2 * SIZE), so the weight is exact up to its rounding.
    """
    at = tl.maximum((2 * index + 1) * EXTENT - SIZE, 0)
    first = at // (2 * SIZE)
    b_second = (at - first * (2 * SIZE)).to(tl.float32) * (0.5 / SIZE)
    if TAP == 0:
        source, weight = first, 1 - b_second
    else:
        source, weight = tl.minimum(first + 1, EXTENT - 1), b_second
    return source, weight


@triton.jit
def _augment(
    p_images,  # uint8 [N, H, W, 3]
    p_ids,  # int64 [n]
    p_seed,  # int64 []
    p_epoch,  # int64 []
    p_out,  # [n, OUT_H, OUT_W, 3]
    H: tl.constexpr,
    W: tl.constexpr,
    OUT_H: tl.constexpr,
    OUT_W: tl.constexpr,
    PAD: tl.constexpr,
    FLIP: tl.constexpr,
    CUTOUT: tl.constexpr,
    BRIGHTNESS: tl.constexpr,
    CONTRAST: tl.constexpr,
    SCALE: tl.constexpr,  # three numbers: normalised = SCALE * pixel + SHIFT
    SHIFT: tl.constexpr,
    STREAM: tl.constexpr,
    TAPS: tl.constexpr,  # of an output pixel, each way: 1, or 2 where the image is resized
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,  # at least 3 * OUT_W
):
    # Blocks are [BLOCK_W, BLOCK_H]: where Triton sees no order in the addresses, as in those of reflected
    # pixels, it puts neighbouring threads along dimension 0, which had better be the contiguous one.
    image = tl.program_id(0).to(tl.int64)
    rows = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)[None, :]  # [1, BLOCK_H]
    columns = tl.arange(0, BLOCK_W)[:, None]  # [BLOCK_W, 1]: 3 * x + channel
    m_out = (rows < OUT_H) & (columns < 3 * OUT_W)
    inner = tl.minimum(columns, 3 * OUT_W - 1)  # beyond the edge, read the edge again: cheaper than a mask
    out_y, out_x, channels = tl.minimum(rows, OUT_H - 1), inner // 3, inner % 3
    i, seed, epoch = tl.load(p_ids + image), tl.load(p_seed), tl.load(p_epoch)
    p_image = p_images + i * (3 * H * W)

    dy, dx, coin, _ = _philox(seed, i, epoch, STREAM, 0)
    dy, dx = _below(dy, 2 * PAD + 1) - PAD, _below(dx, 2 * PAD + 1) - PAD
    flipped = coin >> 31
    if FLIP == "alternating":
        _, _, coin, _ = _philox(seed, i, 0, STREAM, 0)
        flipped = (coin >> 31) ^ (epoch & 1).to(tl.uint32)
    top, left, _, _ = _philox(seed, i, epoch, STREAM, 1)
    top, left = _below(top, H - CUTOUT + 1), _below(left, W - CUTOUT + 1)
    b_scale, b_shift = _per_channel(channels, SCALE), _per_channel(channels, SHIFT)  # [BLOCK_W, 1]
    if BRIGHTNESS != 0 or CONTRAST != 0:
        u1, u2, _, _ = _philox(seed, i, epoch, STREAM, 2)
        gain = 1 + CONTRAST * (2 * _unit(u1) - 1)
        b_scale, b_shift = b_scale * gain, b_shift * gain + BRIGHTNESS * (2 * _unit(u2) - 1)

    b_out = tl.zeros((BLOCK_W, BLOCK_H), tl.float32)
    for tap in tl.static_range(TAPS * TAPS):
        y, x, weight = out_y, out_x, 1.0
        if TAPS == 2:
            y, weight_y = _tap(out_y, tap // 2, H, OUT_H)
            x, weight_x = _tap(out_x, tap % 2, W, OUT_W)
            weight = weight_y * weight_x
        source = x
        if FLIP != "none":
            source = tl.where(flipped != 0, W - 1 - x, x)
        o_pixels = _reflect(y + dy, H) * (3 * W) + (_reflect(source + dx, W) * 3 + channels)
        b_pixels = tl.load(p_image + o_pixels).to(tl.float32) * b_scale + b_shift  # [BLOCK_W, BLOCK_H]
        if CUTOUT:
            inside = ((y >= top) & (y < top + CUTOUT)) & ((x >= left) & (x < left + CUTOUT))
            b_pixels = tl.where(inside, 0.0, b_pixels)
        b_out = b_pixels if TAPS == 1 else b_out + weight * b_pixels
    o_out = image * (3 * OUT_H * OUT_W) + (rows * (3 * OUT_W) + columns)
    tl.store(p_out + o_out, b_out.to(p_out.dtype.element_ty), mask=m_out)


BLOCK = 4096  # pixels' bytes that a program reads: 32 rows of 32 x 3, filled up to 128


def blocks_of(h: int, w: int, elements: int) -> dict[str, int]:
    """The block of a program: whole rows of w pixels, each filled up to a power of two."""
    width = power_of_2(3 * w)
    return {"BLOCK_H": min(power_of_2(h), max(1, elements // width)), "BLOCK_W": width}


@register("hlb::augment")
def _forward(
    images: Tensor,
    ids: Tensor,
    seed: Tensor,
    epoch: Tensor,
    pad: int,
    flip: str,
    cutout: int,
    mean: list[float],
    std: list[float],
    dtype: torch.dtype,
    brightness: float,
    contrast: float,
    size: int,
) -> Tensor:
    h, w = images.shape[1:3]
    out_h, out_w = (size, size) if size else (h, w)
    out = images.new_empty((len(ids), out_h, out_w, 3), dtype=dtype)
    scale, shift = scale_and_shift(mean, std)
    taps = 1 if (out_h, out_w) == (h, w) else 2
    blocks = blocks_of(out_h, out_w, BLOCK // taps**2)
    # 64 values a thread, 32 of float32 and 8 where it resizes: more, or fewer with a cutout, spill.
    warps = dtype.itemsize * (1 if cutout else taps)
    launch(
        _augment,
        (len(ids), cdiv(out_h, blocks["BLOCK_H"])),
        images,
        ids,
        seed,
        epoch,
        out,
        H=h,
        W=w,
        OUT_H=out_h,
        OUT_W=out_w,
        PAD=pad,
        FLIP=flip,
        CUTOUT=cutout,
        BRIGHTNESS=brightness,
        CONTRAST=contrast,
        SCALE=scale,
        SHIFT=shift,
        STREAM=AUGMENT,
        TAPS=taps,
        **blocks,
        num_warps=warps,
    )
    return out


@_forward.register_fake
def _(images, ids, seed, epoch, pad, flip, cutout, mean, std, dtype, brightness, contrast, size):
    h, w = images.shape[1:3]
    return images.new_empty((len(ids), size or h, size or w, 3), dtype=dtype)


def op(
    images: Tensor,
    ids: Tensor,
    seed: Tensor,
    epoch: Tensor,
    *,
    pad: int,
    flip: str,
    cutout: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    dtype: torch.dtype,
    brightness: float = 0.0,
    contrast: float = 0.0,
    size: int = 0,
) -> Tensor:
    """As `reference`, in one launch, for any number of ids: a batch's, or a whole epoch's.

    Raises ValueError for a wrong shape, dtype, layout, device or option, naming the argument. That ids lie
    in [0, N) is not checked: it would wait for the device.
    """
    expect("images", images, None, None, None, 3, dtypes=(torch.uint8,))
    expect("ids", ids, None, dtypes=(torch.int64,), device=images.device)
    expect("seed", seed, dtypes=(torch.int64,), device=images.device)
    expect("epoch", epoch, dtypes=(torch.int64,), device=images.device)
    expect_float("dtype", dtype)
    _check(*images.shape[1:3], pad, flip, cutout, brightness, contrast, size)
    return _forward(images, ids, seed, epoch, pad, flip, cutout, mean, std, dtype, brightness, contrast, size)


def expect_float(argument: str, dtype: torch.dtype) -> None:
    """Raises ValueError naming `argument` unless kernels write this dtype."""
    if dtype not in FLOATS:
        accepted = ", ".join(map(short, FLOATS))
        raise ValueError(f"{argument}: got {dtype}, accepted are {accepted}")


MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)  # of made-up images


def _make(case: Case, dtype: torch.dtype, device) -> dict:
    h, w = case.map
    brightness, contrast = case.jitter
    return {
        "images": torch.randint(0, 256, (case.images, h, w, 3), dtype=torch.uint8, device=device),
        "ids": torch.randperm(case.images, device=device)[: case.n],
        "seed": torch.randint(-(2**62), 2**62, (), device=device),
        "epoch": torch.randint(0, 100, (), device=device),
        "pad": case.pad,
        "flip": case.flip,
        "cutout": case.cutout,
        "mean": MEAN,
        "std": STD,
        "dtype": dtype,
        "brightness": brightness,
        "contrast": contrast,
        "size": case.size,
    }


def _bytes(case: Case, dtype: torch.dtype) -> dict[str, int]:
    h, w = case.map
    read = min(h, 2 * case.size or h) * min(w, 2 * case.size or w)  # two taps a pixel, each way
    written = (case.size or h) * (case.size or w)
    return {"_augment": case.n * (3 * read + 3 * written * dtype.itemsize + 3 * 8)}


def _case(label: str, n: int, pad: int, flip: str, images: int = 50000, **changes) -> Case:
    plain = {"cutout": 0, "jitter": (0.0, 0.0), "size": 0}
    return Case(label, n=n, images=images, map=(32, 32), pad=pad, flip=flip, **plain | changes)


SPEC = KernelSpec(
    name="augment",
    formula="out = cast(resize(cutout(jitter(normalise(crop, flip(images[ids]))))))",
    fuses="gather, crop, flip, normalisation, jitter, cutout, resize, cast",
    reference=reference,
    op=op,
    ops=("hlb::augment",),
    make=_make,
    cases=(
        _case("seed", 512, 3, "random"),
        _case("record94", 1536, 2, "alternating"),
        _case("record94 at 24", 1536, 2, "alternating", size=24),
        _case("record94 at 28", 1536, 2, "alternating", size=28),
        _case("airbench94", 2000, 2, "alternating"),
        _case("epoch", 50000, 2, "alternating"),
        _case("options", 2000, 2, "random", cutout=8, jitter=(0.1, 0.1), size=24),
    ),
    space={
        "n": (1, 3),
        "images": (3, 7),
        "map": ((33, 40), (7, 5), (8, 8), (2, 3)),
        "pad": (0, 1, 3),
        "flip": FLIPS,
        "cutout": (0, 1, 4),
        "jitter": ((0.0, 0.0), (0.3, 0.0), (0.0, 0.5), (0.2, 1.0)),
        "size": (0, 2, 5, 16),
    },
    counted=(_case("counted", 3, 1, "random", images=9),),
    bytes=_bytes,
    case_of=lambda inputs: Case(
        n=len(inputs["ids"]), map=tuple(inputs["images"].shape[1:3]), size=inputs.get("size", 0)
    ),
    dtype_from="dtype",
    part="images",
    valid=lambda case: case.pad < min(case.map) and max(case.cutout, case.size) <= min(case.map),
    narrow={
        "p_images": "single bytes: a row of 3-byte pixels may start anywhere and run backwards",
        "p_ids": "one index a program",
        "p_seed": "one number",
        "p_epoch": "one number",
    },
)
