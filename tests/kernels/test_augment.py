from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers import DTYPES, MEAN, STD, TOLERANCE, assert_near, normalised, pixels
from scipy import stats
from torch import Tensor

from hlb import Dataset, recipe, synthetic
from hlb.execution import Execution, resolve
from hlb.train import Trainer
from kernels import augment
from kernels.base import launch

H, W = 11, 13
OPTIONS = {"pad": 2, "flip": "random", "cutout": 3}


def augmented(
    images: Tensor,
    ids: Tensor,
    seed: int = 0,
    epoch: int = 0,
    *,
    mean=MEAN,
    std=STD,
    dtype=torch.float64,
    function=augment.reference,
    **options,
) -> Tensor:
    return function(
        images,
        ids,
        torch.tensor(seed),
        torch.tensor(epoch),
        mean=mean,
        std=std,
        dtype=dtype,
        **OPTIONS | options,
    )


def coordinates(n: int, **options) -> Tensor:
    """What becomes of images whose pixels are (row, column, 255), each its own id: [n, h, w, 3], cutout 0."""
    row, column = torch.meshgrid(torch.arange(H), torch.arange(W), indexing="ij")
    image = torch.stack((row, column, torch.full_like(row, 255)), dim=-1).to(torch.uint8)
    images, ids = image.expand(n, -1, -1, -1), torch.arange(n)
    return augmented(images, ids, mean=(0, 0, 0), std=(1 / 255,) * 3, **options).round().long()


def crops(n: int, pad: int, flip: str = "none", **options) -> tuple[Tensor, Tensor, Tensor]:
    """Row offset, column offset and flip of ids 0 to n - 1, read off augmented coordinates."""
    out = coordinates(n, pad=pad, flip=flip, cutout=0, **options)
    across = out[:, 0, :, 1]
    flipped = across[:, W // 2] > across[:, W // 2 + 1]
    middle = torch.where(flipped, across[:, W - 1 - W // 2], across[:, W // 2])
    return out[:, H // 2, 0, 0] - H // 2 + pad, middle - W // 2 + pad, flipped


def corners(n: int, cutout: int, **options) -> tuple[Tensor, Tensor]:
    """Top row and left column of the cutout of ids 0 to n - 1; 0 without one."""
    hole = coordinates(n, cutout=cutout, **options)[..., 2] == 0
    return hole.any(2).long().argmax(1), hole.any(1).long().argmax(1)


def jitters(n: int, brightness: float, contrast: float, **options) -> tuple[Tensor, Tensor]:
    """(offset, gain) [n] of ids 0 to n - 1, read off an image whose rows are black, white, black..."""
    image = (torch.arange(H) % 2 * 255).to(torch.uint8)[:, None, None].expand(n, H, W, 3)
    plain = {"pad": 0, "flip": "none", "cutout": 0, "mean": (0, 0, 0), "std": (1, 1, 1)}
    out = augmented(image, torch.arange(n), brightness=brightness, contrast=contrast, **plain | options)
    black, white = out[:, 0, 0, 0], out[:, 1, 0, 0]
    return black, white - black


def plain(image: Tensor, pad: int, cutout: int, dy: int, dx: int, flip: int, top: int, left: int) -> Tensor:
    """Normalise, pad, slice, flip and cut one image [h, w, 3], in float64."""
    x = F.pad(normalised(image).permute(2, 0, 1), (pad,) * 4, mode="reflect")
    x = x[:, dy : dy + H, dx : dx + W].permute(1, 2, 0)
    x = x.flip(1) if flip else x.clone()
    x[top : top + cutout, left : left + cutout] = 0
    return x


def assert_equals_plain(n: int, dtype: torch.dtype, pad: int, flip: str, cutout: int, **options) -> None:
    images, ids = pixels(n, H, W), torch.randperm(n)
    choice = *crops(n, pad, flip, **options), *corners(n, cutout, pad=pad, flip=flip, **options)
    expected = torch.stack([plain(images[i], pad, cutout, *(int(value[i]) for value in choice)) for i in ids])
    out = augmented(images, ids, dtype=dtype, pad=pad, flip=flip, cutout=cutout, **options)
    assert out.dtype == dtype
    assert_near(out, expected, TOLERANCE[dtype])


@pytest.mark.parametrize("cutout", [0, 3, 4, H])
@pytest.mark.parametrize("flip", augment.FLIPS)
@pytest.mark.parametrize("pad", range(5))
def test_batch_equals_padding_slicing_flipping_and_cutting(pad, flip, cutout):
    assert_equals_plain(30, torch.float64, pad, flip, cutout, seed=5, epoch=3)


@pytest.mark.parametrize("dtype", DTYPES)
def test_batch_is_in_the_training_dtype(dtype):
    assert_equals_plain(30, dtype, pad=2, flip="random", cutout=3)


@pytest.mark.parametrize("extent", [2, 3, 32])
def test_reflection_reaches_a_whole_side_less_one(extent):
    index = torch.arange(extent)
    padded = F.pad(index.double()[None], (extent - 1,) * 2, mode="reflect")[0].long()
    assert torch.equal(augment.reflect(torch.arange(1 - extent, 2 * extent - 1), extent), padded)


@pytest.mark.parametrize("pad", [2, 3, 4])
def test_crop_offsets_are_uniform_over_all_of_them(pad):
    side = 2 * pad + 1
    dy, dx, _ = crops(100 * side**2, pad)
    counts = (dy * side + dx).bincount(minlength=side**2)
    assert len(counts) == side**2
    assert counts.min() > 0
    assert stats.chisquare(counts).pvalue > 1e-3


def test_crop_and_flip_are_drawn_independently():
    dy, dx, flipped = crops(10000, pad=1, flip="random")
    counts = (dy * 6 + dx * 2 + flipped).bincount(minlength=18)
    assert stats.chisquare(counts).pvalue > 1e-3


def test_no_image_is_flipped_without_flips():
    assert not crops(1000, pad=0, flip="none")[2].any()


def test_random_flips_turn_half_of_the_images_over_anew_in_every_epoch():
    first, second = (crops(10000, pad=0, flip="random", epoch=epoch)[2].long() for epoch in (0, 1))
    assert stats.chisquare((2 * first + second).bincount(minlength=4)).pvalue > 1e-3


def test_alternating_flip_starts_with_half_of_the_images():
    flipped = crops(10000, pad=0, flip="alternating")[2].long()
    assert stats.chisquare(flipped.bincount(minlength=2)).pvalue > 1e-3


def test_alternating_flip_turns_every_image_over_in_every_epoch():
    epochs = [crops(1000, pad=0, flip="alternating", epoch=epoch)[2] for epoch in range(5)]
    assert all((before ^ after).all() for before, after in zip(epochs, epochs[1:]))


@pytest.mark.parametrize("cutout", [4, 5, H])
def test_cutout_corners_are_uniform_over_all_positions_inside(cutout):
    rows, columns = H - cutout + 1, W - cutout + 1
    top, left = corners(100 * rows * columns, cutout)
    counts = (top * columns + left).bincount(minlength=rows * columns)
    assert len(counts) == rows * columns
    assert counts.min() > 0
    assert stats.chisquare(counts).pvalue > 1e-3


def test_cutout_is_drawn_independently_of_the_crop():
    dy, dx, _ = crops(10000, pad=1)
    top, left = corners(10000, H - 1)
    counts = ((dy * 3 + dx) * 8 + top * 4 + left).bincount(minlength=72)
    assert stats.chisquare(counts).pvalue > 1e-3


def test_without_jitter_and_size_pixels_are_normalised_and_rounded_once():
    images, ids = pixels(30, H, W), torch.randperm(30)
    for dtype in DTYPES:
        out = augmented(images, ids, dtype=dtype, pad=0, flip="none", cutout=0)
        assert torch.equal(out, augment.normalise(images[ids], MEAN, STD, dtype))
        off = augmented(images, ids, dtype=dtype, brightness=0.0, contrast=0.0, size=0)
        assert torch.equal(off, augmented(images, ids, dtype=dtype))


@pytest.mark.parametrize("brightness, contrast", [(0.5, 0.0), (0.0, 0.25), (0.3, 0.6)])
def test_jitter_is_uniform_up_to_brightness_and_contrast(brightness, contrast):
    offset, gain = jitters(10000, brightness, contrast)
    for value, middle, most in ((offset, 0, brightness), (gain, 1, contrast)):
        if most:
            assert (value - middle).abs().max() <= most
            assert stats.kstest((value - middle) / most, stats.uniform(-1, 2).cdf).pvalue > 1e-3
        else:
            assert torch.allclose(value, torch.full_like(value, middle), rtol=0, atol=1e-12)


def test_brightness_contrast_and_the_crop_are_drawn_independently():
    offset, gain = jitters(10000, 0.5, 0.5)
    dy, dx, _ = crops(10000, pad=1)
    counts = ((dy * 3 + dx) * 4 + (offset > 0) * 2 + (gain > 1)).bincount(minlength=36)
    assert stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("other", [{"seed": 1}, {"epoch": 1}], ids=str)
def test_jitter_is_drawn_anew_for_every_seed_and_epoch(other):
    for first, second in zip(jitters(1000, 0.5, 0.5), jitters(1000, 0.5, 0.5, **other)):
        assert abs(torch.corrcoef(torch.stack((first, second)))[0, 1]) < 0.15


@pytest.mark.parametrize("dtype", DTYPES)
def test_jitter_scales_and_shifts_normalised_pixels_and_leaves_the_cutout_zero(dtype):
    images, ids = pixels(30, H, W), torch.arange(30)
    offset, gain = jitters(30, 0.4, 0.5)
    expected = augmented(images, ids) * gain[:, None, None, None] + offset[:, None, None, None]
    top, left = corners(30, OPTIONS["cutout"])
    for i in ids:
        expected[i, top[i] : top[i] + 3, left[i] : left[i] + 3] = 0
    out = augmented(images, ids, dtype=dtype, brightness=0.4, contrast=0.5)
    assert_near(out, expected, TOLERANCE[dtype])
    assert torch.equal(out == 0, expected == 0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 5, 8, H])
def test_resized_batch_is_the_finished_one_interpolated_and_rounded_once(size, dtype):
    images, ids = pixels(30, H, W), torch.randperm(30)
    options = {"brightness": 0.4, "contrast": 0.5}
    whole = augmented(images, ids, dtype=torch.promote_types(dtype, torch.float32), **options)
    expected = F.interpolate(whole.permute(0, 3, 1, 2), (size, size), mode="bilinear", antialias=False)
    out = augmented(images, ids, dtype=dtype, size=size, **options)
    assert out.is_contiguous()
    assert torch.equal(out, expected.permute(0, 2, 3, 1).to(dtype))


def test_half_the_size_is_the_mean_of_two_by_two_pixels():
    images, ids = pixels(30, 12, 12), torch.randperm(30)
    expected = F.avg_pool2d(augmented(images, ids).permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
    assert_near(augmented(images, ids, size=6), expected, 1e-12)


OPS = [
    augment.reference,
    pytest.param(augment.op, marks=pytest.mark.skipif(not launch.runnable("cpu"), reason="no interpreter")),
]


@pytest.mark.parametrize("options", [{}, {"brightness": 0.5, "contrast": 0.5, "size": 7}], ids=str)
@pytest.mark.parametrize("function", OPS)
def test_an_image_is_augmented_alike_in_any_batch_and_order(function, options):
    options |= {"function": function, "dtype": torch.float32, "flip": "alternating"}
    images, ids = pixels(20, H, W), torch.randperm(20)
    whole = augmented(images, torch.arange(20), **options)
    assert torch.equal(torch.cat([augmented(images, part, **options) for part in ids.split(7)]), whole[ids])


def test_kernel_writes_no_dtype_but_those_of_kernels():
    with pytest.raises(ValueError, match="^dtype: got torch.float64, accepted are float32"):
        augmented(pixels(2, H, W), torch.arange(2), function=augment.op)


def test_training_augments_as_its_recipe_says():
    options = {"pad": 1, "flip": "none", "cutout": 5, "brightness": 0.25, "contrast": 0.5}
    tiny = {"base_depth": 4, "batch_size": 10, "epochs": 1.0, "whiten_images": 10, "dtype": "float32"}
    data = Dataset("synthetic", synthetic.make(20, 10))
    trainer = Trainer(*resolve(recipe("smoke", tiny | options), Execution()), data)
    images, ids = trainer.train_images, torch.arange(20)
    out = trainer.step.augment(images, ids, torch.tensor(3), torch.tensor(2))
    colours = {"mean": data.mean, "std": data.std, "dtype": torch.float32}
    assert torch.equal(out, augmented(images, ids, 3, 2, **colours, **options))


@pytest.mark.parametrize("other", [{"seed": 1}, {"epoch": 1}], ids=str)
def test_crops_are_drawn_anew_for_every_seed_and_epoch(other):
    first, second = torch.stack(crops(10000, pad=4)[:2]), torch.stack(crops(10000, pad=4, **other)[:2])
    assert (first == second).double().mean(1).max() < 0.13  # 1 in 9 by chance


@pytest.mark.parametrize("other", [{"seed": 1}, {"epoch": 1}], ids=str)
def test_cutouts_are_drawn_anew_for_every_seed_and_epoch(other):
    first, second = torch.stack(corners(10000, 3)), torch.stack(corners(10000, 3, **other))
    assert (first == second).double().mean(1).max() < 0.13  # 1 in 9 rows by chance


@pytest.mark.parametrize(
    "argument, value",
    [
        ("pad", -1),
        ("pad", H),
        ("cutout", -1),
        ("cutout", H + 1),
        ("flip", "both"),
        ("brightness", -0.1),
        ("brightness", float("inf")),
        ("brightness", float("nan")),
        ("contrast", -0.1),
        ("contrast", 1.1),
        ("size", -1),
        ("size", H + 1),
    ],
)
@pytest.mark.parametrize("function", [augment.reference, augment.op])
def test_error_names_the_argument(function, argument, value):
    options = {"function": function, "dtype": torch.float32, argument: value}
    with pytest.raises(ValueError, match=f"^{argument}: got {value!r}, accepted"):
        augmented(pixels(2, H, W), torch.arange(2), **options)
