"""CIFAR-10 on its way in: the download, torchvision's layout, the tensor cache, what falls back to what."""

import hashlib
import io
import pickle
import re
import socket
import subprocess
import sys
import tarfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from hlb import data
from hlb.data import FOLDER, DownloadError
from hlb.errors import UserError

TRAIN, TEST = 20, 10  # images in each of the five training batches, and in the test batch


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache folder but for a file of the user's, and a working directory without data."""
    folder = tmp_path / "cache"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HLB_CACHE", str(folder))
    monkeypatch.delenv("HLB_CIFAR10_URL", raising=False)
    return folder


@pytest.fixture
def tiny(monkeypatch):
    """A tiny CIFAR-10 of random pixels in place of the real one: {file name: content}."""
    generator, files = np.random.default_rng(0), {}
    for name, count in [(f"data_batch_{i}", TRAIN) for i in range(1, 6)] + [("test_batch", TEST)]:
        pixels = generator.integers(0, 256, (count, 3 * 32 * 32), dtype=np.uint8)
        files[name] = pickle.dumps({"data": pixels, "labels": [int(p) % 10 for p in pixels[:, 0]]})
    files["batches.meta"] = pickle.dumps({"label_names": [str(i) for i in range(10)]})
    CIFAR10 = data.torchvision_cifar10()
    monkeypatch.setattr(CIFAR10, "train_list", [[name, _md5(files[name])] for name in list(files)[:5]])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", _md5(files["test_batch"])]])
    monkeypatch.setattr(
        CIFAR10,
        "meta",
        {"filename": "batches.meta", "key": "label_names", "md5": _md5(files["batches.meta"])},
    )
    shapes = ((5 * TRAIN, 32, 32, 3), (5 * TRAIN,), (TEST, 32, 32, 3), (TEST,))
    monkeypatch.setattr(data, "SHAPES", shapes)
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
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in tiny.items():
            entry = tarfile.TarInfo(f"{FOLDER}/{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    monkeypatch.setattr(data.torchvision_cifar10(), "tgz_md5", _md5(packed.getvalue()))
    return packed.getvalue()


class Handler(BaseHTTPRequestHandler):
    """Serves `server.archive` in the manner that the path names."""

    def do_GET(self):
        content, manner, over = self.server.archive, self.path.strip("/"), self.server.over
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


@pytest.fixture
def server(archive):
    """The address of a server in this process that has the archive."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        http.daemon_threads, http.archive, http.over = True, archive, threading.Event()
        threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}"
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
    monkeypatch.setattr(data, "STALL_SECONDS", 1)
    begin = time.perf_counter()
    data.download(cache, f"{server}/{manner}")
    # The slow one takes longer than a stall may, but is never silent for that long.
    assert (time.perf_counter() - begin > 1) == (manner == "slow")
    assert _contents(cache) == {"notes.txt": b"mine", **{f"{FOLDER}/{name}": tiny[name] for name in tiny}}


def test_download_shows_progress_on_standard_error_only(server, cache, capfd):
    data.download(cache, f"{server}/whole")
    out, err = capfd.readouterr()
    assert out == "" and re.search(r"100(\.0)?%", err)


@pytest.mark.parametrize(
    ("manner", "names"),
    [
        ("silent", "nothing for 1 s"),
        ("stalled", "nothing for 1 s"),
        ("truncated", "truncated"),
        ("other", "not CIFAR-10"),
        ("absent", "Not Found"),
        ("refused", "refused"),
    ],
)
def test_failed_download_says_why_in_one_line_and_leaves_the_folder_as_it_was(
    server, cache, monkeypatch, manner, names
):
    monkeypatch.setattr(data, "STALL_SECONDS", 1)
    url = _closed_port() if manner == "refused" else f"{server}/{manner}"
    with pytest.raises(DownloadError) as raised:
        data.download(cache, url)
    text = str(raised.value)
    assert "\n" not in text and url in text and names in text and "--data" in text
    assert [path.name for path in cache.iterdir()] == ["notes.txt"]
    assert (cache / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("manner", ["silent", "stalled"])
def test_stalled_download_is_given_up_after_the_stall_time(server, cache, monkeypatch, manner):
    monkeypatch.setattr(data, "STALL_SECONDS", 1)
    begin = time.perf_counter()
    with pytest.raises(DownloadError):
        data.download(cache, f"{server}/{manner}")
    assert 1 <= time.perf_counter() - begin < 10


def test_shipped_stall_time_is_ten_seconds():
    assert data.STALL_SECONDS == 10


def test_download_leaves_the_socket_timeout_of_the_process_alone(server, cache):
    data.download(cache, f"{server}/whole")
    assert socket.getdefaulttimeout() is None


def test_download_into_a_cache_that_cannot_be_made_names_it(tmp_path, server):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="HLB_CACHE") as raised:
        data.download(tmp_path / "file" / "cache", f"{server}/whole")
    assert str(tmp_path / "file" / "cache") in str(raised.value)


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


# -- the tensor cache ----------------------------------------------------------------------------------------


def test_second_load_needs_neither_the_files_nor_the_net(folder, monkeypatch):
    first = data.load(str(folder)).tensors
    monkeypatch.setenv("HLB_CIFAR10_URL", _closed_port())
    again = data.load("cifar10")
    assert again.name == "cifar10"
    assert all(torch.equal(a, b) for a, b in zip(first, again.tensors, strict=True))


def test_cache_of_cifar10s_size_loads_in_under_a_second(tmp_path, monkeypatch):
    def tensors(root):
        generator = torch.Generator().manual_seed(0)
        return tuple(
            torch.randint(256, shape, dtype=torch.uint8, generator=generator)
            if len(shape) == 4
            else torch.arange(shape[0]) % 10
            for shape in data.SHAPES
        )

    monkeypatch.setattr(data, "verify", lambda root: None)
    monkeypatch.setattr(data, "read", tensors)
    data.cifar10(tmp_path)
    monkeypatch.setattr(data, "read", None)
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


# -- a torchvision that does not fit -------------------------------------------------------------------------

UNFIT = """
import torch
def refuse(path):
    raise OSError(f"{{path}}: undefined symbol")  # what a torchvision built for another torch gives
torch.ops.load_library = refuse
{before}
from hlb.data import torchvision_cifar10
CIFAR10 = torchvision_cifar10()
import torchvision
assert not torchvision.extension._has_ops()
print(CIFAR10.__module__, CIFAR10.__name__)
"""
IMPORTED_BEFORE = """
try:
    import torchvision
    raise SystemExit("torchvision does without its operators")
except RuntimeError as error:
    assert "torchvision::nms does not exist" in str(error)
"""


@pytest.mark.parametrize("before", ["", IMPORTED_BEFORE], ids=["first", "after a failed import"])
def test_torchvision_without_its_operators_still_gives_its_cifar10(before):
    done = subprocess.run(
        [sys.executable, "-c", UNFIT.format(before=before)],
        capture_output=True,
        text=True,
        cwd=Path(data.__file__).parents[1],
    )
    assert done.stdout == "torchvision.datasets.cifar CIFAR10\n", done.stderr
