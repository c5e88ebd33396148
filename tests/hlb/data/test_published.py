"""Published sets on their way in: download, torchvision's layout, tensor cache, what falls back to what."""

import contextlib
import errno
import hashlib
import io
import os
import pickle
import re
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from torch._inductor.runtime import cache_dir_utils  # now: a test has no user, whom it asks for

from hlb import data
from hlb.cli import main
from hlb.data import FOLDER, PUBLISHED, DownloadError, fetch
from hlb.data.cache import HERE, _checksum, cached, scratch
from hlb.data.dataset import CLASSES, MEAN, Dataset, statistics
from hlb.data.published import CIFAR10, torchvision_datasets
from hlb.errors import UserError
from hlb.execution import name_inductors_cache

TRAIN, TEST = 20, 10  # images in each of the five training batches, and in the test batch


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _packed(folder: str, files: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"{folder}/{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


@pytest.fixture
def tiny(monkeypatch):
    """A tiny CIFAR-10 of random pixels in place of the real one: {file name: content}."""
    generator, files = np.random.default_rng(0), {}
    for name, count in [(f"data_batch_{i}", TRAIN) for i in range(1, 6)] + [("test_batch", TEST)]:
        pixels = generator.integers(0, 256, (count, 3 * 32 * 32), dtype=np.uint8)
        files[name] = pickle.dumps({"data": pixels, "labels": [int(p) % 10 for p in pixels[:, 0]]})
    files["batches.meta"] = pickle.dumps({"label_names": [str(i) for i in range(10)]})
    known = torchvision_datasets().CIFAR10
    monkeypatch.setattr(known, "train_list", [[name, _md5(files[name])] for name in list(files)[:5]])
    monkeypatch.setattr(known, "test_list", [["test_batch", _md5(files["test_batch"])]])
    monkeypatch.setattr(
        known,
        "meta",
        {"filename": "batches.meta", "key": "label_names", "md5": _md5(files["batches.meta"])},
    )
    return files


@pytest.fixture
def folder(tiny, tmp_path):
    """A folder that holds the tiny CIFAR-10 in torchvision's layout."""
    place = tmp_path / "mine"
    (place / FOLDER).mkdir(parents=True)
    for name, content in tiny.items():
        (place / FOLDER / name).write_bytes(content)
    return place


@pytest.fixture
def archive(tiny, monkeypatch) -> bytes:
    """The tiny CIFAR-10 as the archive that a server sends."""
    packed = _packed(FOLDER, tiny)
    monkeypatch.setattr(torchvision_datasets().CIFAR10, "tgz_md5", _md5(packed))
    return packed


class Handler(BaseHTTPRequestHandler):
    """Serves `server.archive` in the manner that the path names."""

    def do_GET(self):
        manner, over = self.path.strip("/"), self.server.over
        content = self.server.files.get(manner, self.server.archive)
        if manner == "silent":
            over.wait(30)
            return
        if manner == "absent":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        half = len(content) // 2
        try:
            if manner == "slow":
                for at in range(0, len(content), len(content) // 30 + 1):
                    self.wfile.write(content[at : at + len(content) // 30 + 1])
                    over.wait(0.05)
            elif manner == "stalled":
                self.wfile.write(content[:half])
                over.wait(30)
            elif manner == "truncated":
                self.wfile.write(content[:half])
            elif manner == "other":
                self.wfile.write(bytes(len(content)))
            else:
                self.wfile.write(content)
        except OSError:
            pass  # the client has left

    def log_message(self, *_):
        pass


class Address(str):
    """A server's, and the files that it has beside the archive: {name: content}."""

    files: dict[str, bytes]


@pytest.fixture
def server(archive):
    """The address of a server in this process that has the archive."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        http.daemon_threads, http.archive, http.over = True, archive, threading.Event()
        http.files = {}
        threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        address = Address(f"http://127.0.0.1:{http.server_port}")
        address.files = http.files
        yield address
        http.over.set()
        http.shutdown()


def _closed_port() -> str:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{s.getsockname()[1]}/"


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# -- the download --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("manner", ["whole", "slow"])
def test_download_brings_every_file_and_nothing_else(server, cache, tiny, monkeypatch, manner):
    monkeypatch.setattr(fetch, "STALL_SECONDS", 1)
    begin = time.perf_counter()
    fetch.download(CIFAR10, cache, f"{server}/{manner}")
    # The slow one takes longer than a stall may, but is never silent for that long.
    assert (time.perf_counter() - begin > 1) == (manner == "slow")
    assert _contents(cache) == {"notes.txt": b"mine", **{f"{FOLDER}/{name}": tiny[name] for name in tiny}}


def test_download_shows_progress_on_standard_error_only(server, cache, capfd):
    fetch.download(CIFAR10, cache, f"{server}/whole")
    out, err = capfd.readouterr()
    assert out == "" and re.search(r"100(\.0)?%", err)


@pytest.mark.parametrize(
    ("manner", "names"),
    [
        ("silent", "nothing for 0.3 s"),
        ("stalled", "nothing for 0.3 s"),
        ("truncated", "truncated"),
        ("other", "not CIFAR-10"),
        ("absent", "Not Found"),
        ("refused", "refused"),
    ],
)
def test_failed_download_says_why_in_one_line_and_leaves_the_folder_as_it_was(
    server, cache, monkeypatch, manner, names
):
    if manner in ("silent", "stalled"):
        monkeypatch.setattr(fetch, "STALL_SECONDS", 0.3)
    url = _closed_port() if manner == "refused" else f"{server}/{manner}"
    with pytest.raises(DownloadError) as raised:
        fetch.download(CIFAR10, cache, url)
    text = str(raised.value)
    assert "\n" not in text and url in text and names in text and "--data" in text
    assert [path.name for path in cache.iterdir()] == ["notes.txt"]
    assert (cache / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("manner", ["silent", "stalled"])
def test_stalled_download_is_given_up_after_the_stall_time(server, cache, monkeypatch, manner):
    monkeypatch.setattr(fetch, "STALL_SECONDS", 0.3)
    begin = time.perf_counter()
    with pytest.raises(DownloadError):
        fetch.download(CIFAR10, cache, f"{server}/{manner}")
    assert 0.3 <= time.perf_counter() - begin < 10


def test_shipped_stall_time_is_ten_seconds():
    assert fetch.STALL_SECONDS == 10


def test_download_leaves_the_socket_timeout_of_the_process_alone(server, cache):
    fetch.download(CIFAR10, cache, f"{server}/whole")
    assert socket.getdefaulttimeout() is None


def test_download_into_a_cache_that_cannot_be_made_names_it(tmp_path, server):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="HLB_CACHE") as raised:
        fetch.download(CIFAR10, tmp_path / "file" / "cache", f"{server}/whole")
    assert str(tmp_path / "file" / "cache") in str(raised.value)


# -- several processes, killed ones, full disks --------------------------------------------------------------


def _full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("part", [FOLDER, "test_32x32.mat"], ids=["folder", "file"])
def test_of_two_downloads_at_once_the_loser_takes_what_the_winner_brought(cache, tmp_path, part):
    come, place = tmp_path / "come", cache / part
    for path, text in ((come, "mine"), (place, "the winner's")):
        if part == FOLDER:
            path.mkdir()
            path = path / "test_batch"
        path.write_text(text)
    fetch._settle(come, place)
    assert ((place / "test_batch") if part == FOLDER else place).read_text() == "the winner's"


def test_download_that_ends_second_leaves_the_winners_folder(server, cache, tiny, monkeypatch):
    rename = os.rename

    def late(source, target):  # the winner's comes between looking and moving
        if Path(target).name == FOLDER:
            Path(target).mkdir()
            (Path(target) / "winner").write_text("first")
        rename(source, target)

    monkeypatch.setattr(os, "rename", late)
    fetch.download(CIFAR10, cache, f"{server}/whole")
    assert _contents(cache) == {"notes.txt": b"mine", f"{FOLDER}/winner": b"first"}


def _left_behind(cache: Path, name: str) -> Path:
    left = cache / name
    left.mkdir()
    (left / "cifar-10-python.tar.gz").write_bytes(bytes(1000))
    return left


@pytest.mark.parametrize("manner", ["whole", "truncated"])
def test_what_a_killed_download_left_is_removed_at_the_next_one(server, cache, manner):
    _left_behind(cache, f"{HERE}abcd1234")
    with contextlib.suppress(DownloadError):
        fetch.download(CIFAR10, cache, f"{server}/{manner}")
    assert not list(cache.glob(".*"))


def test_what_a_process_was_killed_over_is_removed_when_a_cache_is_written(folder, cache):
    _left_behind(cache, f"{HERE}abcd1234")
    data.load(str(folder))
    assert sorted(path.name for path in cache.iterdir()) == ["cifar10.pt", "notes.txt"]


def test_folder_of_a_download_that_goes_on_is_left_alone(server, cache):
    with scratch(cache) as other:
        fetch.download(CIFAR10, cache, f"{server}/whole")
        assert other.is_dir()
    assert not list(cache.glob(".*"))


@pytest.mark.parametrize(
    "start", [".download-", ".download-elsewhere-"], ids=["older version", "other machine"]
)
def test_folder_of_another_machine_is_abandoned_after_an_hour(cache, start):
    old, young = (_left_behind(cache, f"{start}{name}") for name in ("old", "young"))
    for path in (old / "cifar-10-python.tar.gz", old):
        os.utime(path, (time.time() - 4000,) * 2)
    with scratch(cache):
        assert young.is_dir() and not old.exists()


def test_without_locks_a_folder_is_abandoned_after_an_hour(cache, monkeypatch):
    monkeypatch.setattr("hlb.data.cache.fcntl", None)  # as on Windows
    old, young = (_left_behind(cache, f"{HERE}{name}") for name in ("old", "young"))
    for path in (old / "cifar-10-python.tar.gz", old):
        os.utime(path, (time.time() - 4000,) * 2)
    with scratch(cache):
        assert young.is_dir() and not old.exists()


def test_disk_that_fills_up_as_the_archive_is_unpacked_is_one_line(server, cache, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.utils.extract_archive", _full)
    with pytest.raises(DownloadError, match="No space left on device") as raised:
        fetch.download(CIFAR10, cache, f"{server}/whole")
    assert "\n" not in str(raised.value) and [path.name for path in cache.iterdir()] == ["notes.txt"]


def test_disk_that_fills_up_during_the_download_is_named_without_its_number(server, cache, monkeypatch):
    monkeypatch.setattr("torch.hub.download_url_to_file", _full)
    with pytest.raises(DownloadError, match=": No space left on device; download it by hand"):
        fetch.download(CIFAR10, cache, f"{server}/whole")


def test_cache_that_does_not_fit_on_the_disk_is_done_without(folder, cache, monkeypatch, caplog):
    monkeypatch.setattr(Path, "write_bytes", _full)
    assert len(data.load(str(folder)).tensors[0]) == 5 * TRAIN
    (line,) = caplog.messages
    assert line.count("\n") == 0 and str(cache / "cifar10.pt") in line and "No space left on device" in line
    assert [path.name for path in cache.iterdir()] == ["notes.txt"]


# -- torchvision's layout ------------------------------------------------------------------------------------


def test_folder_in_torchvisions_layout_is_read_as_nhwc_in_file_order(folder, tiny):
    images, labels, test_images, test_labels = data.load(str(folder)).tensors
    batches = [pickle.loads(content) for name, content in tiny.items() if "batch_" in name]
    planar = np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32)
    assert torch.equal(images.permute(0, 3, 1, 2), torch.from_numpy(planar)) and images.is_contiguous()
    assert labels.tolist() == [label for batch in batches for label in batch["labels"]]
    assert (test_images.dtype, test_labels.dtype) == (torch.uint8, torch.int64)
    assert test_images.shape == (TEST, 32, 32, 3) and test_labels.shape == (TEST,)


@pytest.mark.parametrize("place", [".", "data"])
def test_cifar10_is_found_where_people_keep_it(folder, tmp_path, monkeypatch, place):
    monkeypatch.setenv("HLB_CIFAR10_URL", _closed_port())
    (tmp_path / place).mkdir(exist_ok=True)
    (folder / FOLDER).rename(tmp_path / place / FOLDER)
    for source in ("auto", "cifar10"):
        assert data.load(source).name == "cifar10"


def _remove(path):
    path.unlink()


def _cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def _flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _replace(path):
    path.write_text("a file of another program")


@pytest.mark.parametrize("damage", [_remove, _cut, _flip_a_bit, _replace])
@pytest.mark.parametrize("name", ["data_batch_3", "test_batch", "batches.meta"])
def test_damaged_file_is_named_and_nothing_is_changed(folder, damage, name):
    damage(folder / FOLDER / name)
    before = _contents(folder)
    with pytest.raises(UserError) as raised:
        data.load(str(folder))
    text = str(raised.value)
    assert str(folder / FOLDER / name) in text and "\n" not in text
    assert ("is missing" in text) == (damage is _remove)
    assert _contents(folder) == before


def test_damaged_file_is_named_even_when_the_tensors_are_cached(folder):
    data.load(str(folder))
    _flip_a_bit(folder / FOLDER / "test_batch")
    with pytest.raises(UserError, match="test_batch"):
        data.load(str(folder))


@pytest.mark.parametrize("place", ["cache", ".", "data"])
def test_damaged_file_that_was_found_is_named_and_not_downloaded_again(
    folder, tmp_path, server, monkeypatch, place
):
    monkeypatch.setenv("HLB_CIFAR10_URL", f"{server}/whole")
    (tmp_path / place).mkdir(exist_ok=True)
    (folder / FOLDER).rename(tmp_path / place / FOLDER)
    _cut(tmp_path / place / FOLDER / "data_batch_1")
    before = _contents(tmp_path)
    for source in ("auto", "cifar10"):
        with pytest.raises(UserError, match="data_batch_1"):
            data.load(source)
    assert _contents(tmp_path) == before


@pytest.mark.parametrize("name", ["data_batch_3", "batches.meta"])
def test_file_without_permission_is_not_called_corrupted(folder, monkeypatch, name):
    read = Path.read_bytes

    def refuse(path):
        if path.name == name:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(UserError) as raised:
        data.load(str(folder))
    assert str(raised.value) == f"{folder / FOLDER / name} cannot be read: Permission denied"


@pytest.mark.parametrize("below", ["", FOLDER])
def test_folder_that_cannot_be_looked_into_is_named(tmp_path, monkeypatch, below):
    (tmp_path / "locked").mkdir()
    look = os.stat

    def refuse(path, *arguments, **options):
        if str(path) == str(tmp_path / "locked" / below):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return look(path, *arguments, **options)

    monkeypatch.setattr(os, "stat", refuse)
    with pytest.raises(UserError) as raised:
        data.load(str(tmp_path / "locked"))
    assert str(raised.value) == f"--data: '{tmp_path / 'locked'}' cannot be read: Permission denied"


def test_folder_without_a_published_set_leads_to_folders_of_images(tmp_path):
    with pytest.raises(UserError, match=f"give folder:{tmp_path}"):
        data.load(str(tmp_path))


@pytest.mark.parametrize("wrong", [5, None, [1], b"auto", "a\0b", "folder:a\0b"])
def test_data_of_another_type_is_a_user_error(wrong):
    with pytest.raises(UserError, match="--data: got .* accepted are auto, cifar10"):
        data.load(wrong)


def test_data_may_be_a_path(folder):
    assert data.load(folder).name == data.load(folder / FOLDER).name == "cifar10"


# -- CIFAR-100 and SVHN --------------------------------------------------------------------------------------


@pytest.fixture
def hundred(monkeypatch) -> bytes:
    """A tiny CIFAR-100 as the archive that a server sends."""
    generator, files = np.random.default_rng(1), {}
    for name, count in (("train", 200), ("test", 100)):
        pixels = generator.integers(0, 256, (count, 3 * 32 * 32), dtype=np.uint8)
        labels = {"fine_labels": [i % 100 for i in range(count)], "coarse_labels": [0] * count}
        files[name] = pickle.dumps({"data": pixels, **labels})
    files["meta"] = pickle.dumps({"fine_label_names": [f"class {i}" for i in range(100)]})
    known = torchvision_datasets().CIFAR100
    monkeypatch.setattr(known, "train_list", [["train", _md5(files["train"])]])
    monkeypatch.setattr(known, "test_list", [["test", _md5(files["test"])]])
    monkeypatch.setattr(known, "meta", {**known.meta, "md5": _md5(files["meta"])})
    packed = _packed(known.base_folder, files)
    monkeypatch.setattr(known, "tgz_md5", _md5(packed))
    return packed


@pytest.fixture
def digits(monkeypatch) -> dict[str, bytes]:
    """A tiny SVHN: {file name: content}."""
    generator, files = np.random.default_rng(2), {}
    lists = {}
    for split, count in (("train", 30), ("test", 20)):
        content = io.BytesIO()
        pixels = generator.integers(0, 256, (32, 32, 3, count), dtype=np.uint8)
        scipy.io.savemat(content, {"X": pixels, "y": (np.arange(count) % 10 + 1)[:, None]})
        name = f"{split}_32x32.mat"
        files[name] = content.getvalue()
        lists[split] = ["http://127.0.0.1:1/", name, _md5(files[name])]
    monkeypatch.setattr(torchvision_datasets().SVHN, "split_list", lists)
    return files


def test_cifar100_is_downloaded_read_and_cached_with_its_classes(server, hundred, cache, monkeypatch):
    server.files["cifar-100-python.tar.gz"] = hundred
    monkeypatch.setenv("HLB_CIFAR100_URL", f"{server}/cifar-100-python.tar.gz")
    first = data.load("cifar100")
    monkeypatch.delenv("HLB_CIFAR100_URL")
    assert (first.name, len(first.classes), first.classes[41]) == ("cifar100", 100, "class 41")
    assert (first.mean, first.std) == statistics(first.tensors[0])
    assert first.tensors[1].tolist() == [i % 100 for i in range(200)]
    again, found = data.load("cifar100"), data.load(str(cache))
    for other in (again, found):
        assert (other.classes, other.mean, other.std) == (first.classes, first.mean, first.std)
        assert all(torch.equal(a, b) for a, b in zip(first.tensors, other.tensors, strict=True))


def test_svhn_is_downloaded_and_its_class_10_is_the_digit_0(server, digits, cache, monkeypatch):
    server.files.update(digits)
    monkeypatch.setenv("HLB_SVHN_URL", str(server))
    dataset = data.load("svhn")
    images, labels, tests, truth = dataset.tensors
    assert (dataset.name, dataset.classes) == ("svhn", tuple("0123456789"))
    assert labels.tolist() == [(i + 1) % 10 for i in range(30)] and len(truth) == 20
    pixels = scipy.io.loadmat(io.BytesIO(digits["test_32x32.mat"]))["X"]
    assert torch.equal(tests, torch.tensor(pixels.transpose(3, 0, 1, 2)))
    assert set(_contents(cache)) == {"notes.txt", "svhn.pt", *digits}
    assert data.load(str(cache)).name == "svhn"


def test_damaged_file_of_svhn_is_named(digits, cache):
    for name, content in digits.items():
        (cache / name).write_bytes(content)
    _flip_a_bit(cache / "test_32x32.mat")
    with pytest.raises(UserError, match="test_32x32.mat .* is not SVHN's"):
        data.load("svhn")


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_published_set_that_cannot_be_had_says_where_it_was_asked_for(name, monkeypatch):
    monkeypatch.setenv(f"HLB_{name.upper()}_URL", _closed_port())
    with pytest.raises(DownloadError, match="refused") as raised:
        data.load(name)
    assert PUBLISHED[name].title in str(raised.value)


# -- the tensor cache ----------------------------------------------------------------------------------------


def test_second_load_needs_neither_the_files_nor_the_net(folder, monkeypatch):
    first = data.load(str(folder)).tensors
    monkeypatch.setenv("HLB_CIFAR10_URL", _closed_port())
    again = data.load("cifar10")
    assert again.name == "cifar10"
    assert all(torch.equal(a, b) for a, b in zip(first, again.tensors, strict=True))


def test_cache_of_cifar10s_size_loads_in_under_a_second():
    def made() -> Dataset:
        images = torch.full((60000, 32, 32, 3), 7, dtype=torch.uint8)
        labels = torch.arange(60000) % 10
        return Dataset("cifar10", (images[:50000], labels[:50000], images[50000:], labels[50000:]))

    cached("cifar10", "", made)
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        loaded = data.load("cifar10").tensors
        seconds.append(time.perf_counter() - begin)
    assert loaded[0].shape == (50000, 32, 32, 3) and loaded[2].shape == (10000, 32, 32, 3)
    assert min(seconds) < 1


def _torch_file_of_another_program(path):
    torch.save({"weights": torch.zeros(3)}, path)


@pytest.mark.parametrize("damage", [_cut, _flip_a_bit, _replace, _torch_file_of_another_program])
def test_damaged_cache_is_named_and_left_where_it_is(folder, cache, damage):
    data.load(str(folder))
    made = next(path for path in cache.iterdir() if path.name != "notes.txt")
    damage(made)
    before = _contents(cache)
    for source in ("auto", "cifar10"):
        with pytest.raises(UserError) as raised:
            data.load(source)
        assert str(made) in str(raised.value) and not isinstance(raised.value, DownloadError)
    assert _contents(cache) == before


def test_cache_that_cannot_be_read_is_done_without_and_left_as_it_is(folder, cache, caplog):
    (cache / "cifar10.pt").symlink_to(cache / "cifar10.pt")  # unreadable for root, too
    assert len(data.load(str(folder)).tensors[0]) == 5 * TRAIN
    (line,) = caplog.messages
    assert str(cache / "cifar10.pt") in line and "cannot be read: Too many levels" in line
    assert (cache / "cifar10.pt").is_symlink()


def test_cache_of_another_user_is_skipped_and_the_files_are_found(folder, tmp_path, monkeypatch, caplog):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    (folder / FOLDER).rename(tmp_path / FOLDER)
    monkeypatch.setattr(torch, "load", refuse)
    for source in ("auto", "cifar10"):
        assert data.load(source).name == "cifar10"
    assert "cannot be read: Permission denied" in caplog.messages[0]


@pytest.mark.parametrize(
    ("field", "value"), [("mean", (0.4, 0.4, 0.4)), ("classes", tuple("abcdefghij")), ("name", "mine")]
)
def test_cache_whose_statistics_or_names_are_others_is_refused(folder, cache, field, value):
    data.load(str(folder))
    content = torch.load(cache / "cifar10.pt")
    content["about"][field] = value
    torch.save(content, cache / "cifar10.pt")
    with pytest.raises(UserError, match="cifar10.pt is truncated, corrupted"):
        data.load("cifar10")


def test_older_cache_without_classes_is_cifar10s(cache):
    images, labels = torch.zeros(10, 32, 32, 3, dtype=torch.uint8), torch.arange(10)
    content = {"format": "hlb-cifar10", "tensors": [images, labels] * 2}
    content["crc32"] = _checksum(content["tensors"])
    torch.save(content, cache / "cifar10.pt")
    dataset = data.load("cifar10")
    assert (dataset.classes, dataset.mean) == (CLASSES, MEAN) and torch.equal(dataset.tensors[1], labels)


def test_cache_that_cannot_be_written_does_not_stop_a_load(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HLB_CACHE", str(folder / FOLDER / "test_batch" / "below a file"))
    assert data.load(str(folder)).name == "cifar10"


# -- what falls back to what ---------------------------------------------------------------------------------


@pytest.fixture
def synthetic(monkeypatch):
    made = (torch.zeros(1, 32, 32, 3, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64)) * 2
    monkeypatch.setattr(data.synthetic, "make", lambda *_: made)
    return made


def test_auto_takes_the_synthetic_set_where_cifar10_cannot_be_had(synthetic, monkeypatch):
    monkeypatch.setenv("HLB_CIFAR10_URL", _closed_port())
    dataset = data.load("auto")
    assert dataset.name == "synthetic"
    assert all(ours is theirs for ours, theirs in zip(dataset.tensors, synthetic, strict=True))


def test_auto_downloads_cifar10_where_it_can(server, monkeypatch):
    monkeypatch.setenv("HLB_CIFAR10_URL", f"{server}/whole")
    assert data.load("auto").name == "cifar10"


def test_cifar10_never_falls_back(synthetic, monkeypatch):
    monkeypatch.setenv("HLB_CIFAR10_URL", _closed_port())
    with pytest.raises(DownloadError, match="refused"):
        data.load("cifar10")


def test_a_folder_never_falls_back(synthetic, tmp_path):
    with pytest.raises(UserError, match=FOLDER):
        data.load(str(tmp_path))


# -- where the cache is --------------------------------------------------------------------------------------


def test_tilde_in_the_caches_name_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HLB_CACHE", "~/x")
    assert data.cache_dir() == tmp_path / "x"
    monkeypatch.delenv("HLB_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "~/y")
    assert data.cache_dir() == tmp_path / "y" / "hlb"


def test_home_folder_is_asked_for_only_where_nothing_names_a_cache(homeless, folder, tmp_path, monkeypatch):
    assert data.load(str(folder)).name == "cifar10"  # without a cache
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert data.cache_dir() == tmp_path / "xdg" / "hlb"
    monkeypatch.setenv("HLB_CACHE", str(tmp_path / "hlb"))
    assert data.cache_dir() == tmp_path / "hlb"


def test_without_a_home_folder_auto_says_what_to_set_and_takes_the_synthetic_set(homeless, synthetic):
    dataset = data.load("auto")
    assert dataset.name == "synthetic" and "set HLB_CACHE" in dataset.note
    with pytest.raises(DownloadError, match="set HLB_CACHE"):
        data.load("svhn")


def test_inductor_does_not_ask_for_a_name_that_a_user_does_not_have(homeless, tmp_path, monkeypatch):
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME", "TORCHINDUCTOR_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises((KeyError, OSError)):
        cache_dir_utils.cache_dir()
    name_inductors_cache()
    assert cache_dir_utils.cache_dir() == str(tmp_path / f"torchinductor_{os.getuid()}")


def test_commands_run_without_a_home_folder(homeless, capsys):
    assert main(["env"]) == 0
    assert "set HLB_CACHE" in capsys.readouterr().out


# -- a torchvision that does not fit -------------------------------------------------------------------------

UNFIT = """
import os, sys
import torch
from hlb.data.published import torchvision_datasets
def refuse(path):
    raise OSError(f"{path}: undefined symbol")  # what a torchvision built for another torch gives
torch.ops.load_library = refuse
for imported_before in (False, True):
    if os.fork():  # each try in a process of its own, which need not import torch again
        os.wait()
        continue
    if imported_before:
        try:
            import torchvision
            raise SystemExit("torchvision does without its operators")
        except RuntimeError as error:
            assert "torchvision::nms does not exist" in str(error)
    CIFAR10 = torchvision_datasets().CIFAR10
    import torchvision
    assert not torchvision.extension._has_ops()
    print(imported_before, CIFAR10.__module__, CIFAR10.__name__)
    sys.exit()
"""


@pytest.fixture(scope="module")
def unfit() -> subprocess.CompletedProcess:
    """A process of its own, in which torchvision has not been imported yet."""
    root = Path(data.__file__).parents[2]
    return subprocess.run([sys.executable, "-c", UNFIT], capture_output=True, text=True, cwd=root)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("imported_before", [False, True], ids=["first", "after a failed import"])
def test_torchvision_without_its_operators_still_gives_its_cifar10(unfit, imported_before):
    assert f"{imported_before} torchvision.datasets.cifar CIFAR10\n" in unfit.stdout, unfit.stderr
