"""A folder of images by class: its classes, its test images, what is cached, and what is refused by name."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from hlb import UserError, data
from hlb.cli import main
from hlb.data import folder


def _image(seed: int, height: int = 32, width: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _fill(place, count: int, first: int = 0) -> None:
    place.mkdir(parents=True, exist_ok=True)
    for seed in range(first, first + count):
        Image.fromarray(_image(seed)).save(place / f"{seed:03}.png")


@pytest.fixture
def parted(tmp_path):
    """Two classes, with test images of their own."""
    root = tmp_path / "pets"
    for part, count in (("train", 4), ("test", 2)):
        _fill(root / part / "cat", count)
        _fill(root / part / "dog", count, 10)
    return root


@pytest.fixture
def whole(tmp_path):
    """Two classes of ten images."""
    root = tmp_path / "pets"
    _fill(root / "cat", 10)
    _fill(root / "dog", 10, 10)
    return root


def test_train_and_test_folders_are_read_class_by_class(parted):
    dataset = data.load(f"folder:{parted}")
    images, labels, tests, truth = dataset.tensors
    assert dataset.classes == ("cat", "dog") and dataset.name == f"folder:{parted}"
    assert (labels.tolist(), truth.tolist()) == ([0] * 4 + [1] * 4, [0, 0, 1, 1])
    assert torch.equal(images, torch.tensor(np.stack([_image(i) for i in (0, 1, 2, 3, 10, 11, 12, 13)])))
    assert torch.equal(tests, torch.tensor(np.stack([_image(i) for i in (0, 1, 10, 11)])))
    assert dataset.mean == pytest.approx((images.double() / 255).mean((0, 1, 2)).tolist())


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_test_images_may_be_in_a_folder_of_another_name(parted, name):
    (parted / "test").rename(parted / name)
    assert len(data.load(f"folder:{parted}").tensors[2]) == 4


def test_every_fifth_image_of_a_class_is_a_test_where_none_are_given(whole):
    images, labels, tests, truth = data.load(f"folder:{whole}").tensors
    assert (len(images), truth.tolist()) == (16, [0, 0, 1, 1])
    assert torch.equal(tests, torch.tensor(np.stack([_image(i) for i in (4, 9, 14, 19)])))


def test_image_is_scaled_to_its_shorter_side_and_cut_from_the_middle(whole):
    wide = np.zeros((64, 128, 3), dtype=np.uint8)
    wide[:, 32:96] = 200  # the middle
    Image.fromarray(wide).save(whole / "cat" / "000.png")
    image = data.load(f"folder:{whole}").tensors[0][0]
    assert image.shape == (32, 32, 3) and image[:, 2:-2].eq(200).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_image_of_any_kind_of_8_bits_is_rgb(whole, mode):
    suffix = "tif" if mode == "CMYK" else "png"
    Image.fromarray(_image(0)).convert(mode).save(whole / "cat" / f"000.{suffix}")
    assert data.load(f"folder:{whole}").tensors[0].shape[1:] == (32, 32, 3)


def test_photograph_that_lies_on_its_side_is_turned(whole):
    upright = Image.fromarray(np.repeat(np.arange(32, dtype=np.uint8)[:, None, None] * 8, 32, 1).repeat(3, 2))
    about = Image.Exif()
    about[0x0112] = 6  # to be turned by 90 degrees to the right
    upright.rotate(90).save(whole / "cat" / "000.png", exif=about)
    image = data.load(f"folder:{whole}").tensors[0][0]
    assert torch.equal(image, torch.tensor(np.array(upright)))


def test_hidden_folders_and_files_are_no_classes_and_no_images(whole):
    _fill(whole / ".ipynb_checkpoints", 1)
    (whole / "cat" / "._000.png").write_text("what macOS leaves")
    (whole / "cat" / "notes.txt").write_text("no image")
    dataset = data.load(f"folder:{whole}")
    assert dataset.classes == ("cat", "dog") and len(dataset.tensors[0]) == 16


def test_second_load_reads_the_cache_until_a_file_changes(whole, monkeypatch):
    first, read = data.load(f"folder:{whole}"), folder._read
    monkeypatch.setattr(folder, "_read", None)
    again = data.load(f"folder:{whole}")
    assert again.classes == first.classes and (again.mean, again.std) == (first.mean, first.std)
    assert all(torch.equal(a, b) for a, b in zip(first.tensors, again.tensors, strict=True))
    monkeypatch.setattr(folder, "_read", read)
    _fill(whole / "dog", 2, 30)
    assert len(data.load(f"folder:{whole}").tensors[0]) == 18
    Image.fromarray(_image(99)).save(whole / "cat" / "000.png")
    assert torch.equal(data.load(f"folder:{whole}").tensors[0][0], torch.tensor(_image(99)))
    assert len(list((whole.parent / "cache").glob("folder-*.pt"))) == 1


def test_odd_names_of_classes_and_files_are_read(whole, tmp_path):
    (whole / "cat").rename(whole / ":smile: [red]")
    (whole / "dog").rename(whole / os.fsdecode(b"\xff"))
    name = "x" * 246 + ".png"
    (whole / ":smile: [red]" / "000.png").rename(whole / ":smile: [red]" / name)
    whole = whole.rename(tmp_path / ("y" * 250))
    dataset = data.load(f"folder:{whole}")
    assert dataset.classes == (":smile: [red]", "\\xff") and len(dataset.tensors[0]) == 16


# -- what is refused -----------------------------------------------------------------------------------------


def _no_folder(root):
    root.rename(root.with_name("elsewhere"))
    return root


def _no_image_of_a_class(root):
    (root / "bird").mkdir()
    return root / "bird"


def _one_class(root):
    (root / "cat").rename(root.parent / "cat")
    return root


def _flat(root):
    _fill(root.parent / "flat", 3)
    (root / "cat").rename(root.parent / "cat")
    (root / "dog").rename(root.parent / "dog")
    return root


def _text_for_an_image(root):
    (root / "cat" / "000.png").write_text("no image")
    return root / "cat" / "000.png"


def _cut(root):
    path = root / "dog" / "012.png"
    path.write_bytes(path.read_bytes()[:500])
    return path


def _loop(root):
    path = root / "dog" / "012.png"
    path.unlink()
    path.symlink_to(path)
    return path


def _sixteen_bits(root):
    Image.fromarray(np.full((32, 32), 40000, dtype=np.uint16)).save(root / "cat" / "000.png")
    return root / "cat" / "000.png"


def _too_few_for_a_test(root):
    for path in [*root.rglob("*.png")]:
        if int(path.stem) % 10 > 2:
            path.unlink()
    return root


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_no_folder, "cannot be read: No such file or directory"),
        (_no_image_of_a_class, "has no images"),
        (_one_class, "has 1 folders"),
        (_flat, "has 0 folders"),
        (_text_for_an_image, "it is damaged, or no image"),
        (_cut, "it is damaged, or no image"),
        (_loop, "cannot be read: Too many levels of symbolic links"),
        (_sixteen_bits, "has pixels of mode I;16"),
        (_too_few_for_a_test, "has no test images"),
    ],
)
def test_folder_that_cannot_be_used_is_named_in_one_line(whole, cache, capsys, spoil, says):
    path = spoil(whole)
    assert main(["--data", f"folder:{whole}", "--recipe", "smoke"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and str(path) in err and says in err
    assert ("damaged" in err) == ("damaged" in says)
    assert [path.name for path in cache.iterdir()] == ["notes.txt"]


def test_class_of_test_images_alone_is_named(parted):
    _fill(parted / "test" / "bird", 1)
    with pytest.raises(UserError, match="bird"):
        data.load(f"folder:{parted}")


@pytest.mark.parametrize("unreadable", ["scandir", "walk", "open"])
def test_folder_or_image_without_permission_is_named(whole, monkeypatch, unreadable):
    """As root, permissions do not bite."""

    def refuse(path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    if unreadable == "scandir":
        monkeypatch.setattr(os, "scandir", refuse)
    elif unreadable == "walk":
        real = os.scandir
        monkeypatch.setattr(os, "scandir", lambda path: refuse(path) if "dog" in str(path) else real(path))
    else:
        monkeypatch.setattr(Image, "open", refuse)
    with pytest.raises(UserError) as raised:
        data.load(f"folder:{whole}")
    named = {"scandir": whole, "walk": whole / "dog", "open": whole / "cat" / "000.png"}[unreadable]
    assert str(raised.value) == f"{named} cannot be read: Permission denied"


def test_folder_of_images_trains_from_the_command_line(whole, tmp_path, capsys):
    settings = ["base_depth=4", "batch_size=8", "epochs=2", "whiten_images=10"]
    assert main(["--recipe", "smoke", "--data", f"folder:{whole}", "--json", "-", "--set", *settings]) == 0
    assert f'"dataset": "folder:{whole}"' in capsys.readouterr().out
