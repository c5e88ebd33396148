"""Damaged files. Whatever has become of a ledger, a checkpoint or a cache, who reads it gets a UserError or
what the file says, and the files are as they were.
"""

import functools
import io
import json
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

import hlb
from bench.report import cli as report
from bench.report import records
from hlb import data, evaluate, synthetic
from hlb.runs import checkpoint, ledger
from hlb.settings import fields
from hlb.study import compare, findings, grid, sweep

MANY = settings(max_examples=500, derandomize=True, database=None, suppress_health_check=[*HealthCheck])
DRAW = st.randoms(use_true_random=True)
DEVICE = "a chip"
# What may stand where something else was.
BYTES = (b"", b"\0", b"\n", b'"', b"}", b"NaN", b"1e999", b"-", b"\xff\xfe", b"\xc3", b"\\ud800", b"[" * 999)
DEEP, LEVELS = "deep", "levels"  # in JSON they become nested lists and objects
VALUES = (
    *(None, True, False, 0, -1, 0.5, 3, 4096, 1e308, 1e-320, math.nan, math.inf, 2**63, -(10**400)),
    *("", "failed", "ok", "cuda:7", "\ud800", "\0\n\x1b[1m", "$\\frac{", "[b]", "x" * 500, DEEP, LEVELS),
    *([], [[]], [1, "a"], {}, {"a": {}}, {"": None}),
)
TENSORS = (
    *(torch.zeros(0), torch.tensor(1.5), torch.full((3, 3), math.nan), torch.arange(4), torch.zeros(2) > 0),
    *(torch.zeros(1).expand(2**40), torch.zeros(2, 2, dtype=torch.complex64), torch.eye(2).to_sparse()),
    *(torch.zeros(3, 2).t(), torch.zeros(3, device="meta")),
)


def damaged(draw: Random, content: bytes) -> bytes:
    """The content with a few places cut out or overwritten."""
    for _ in range(draw.randint(1, 3)):
        begin = draw.randint(0, len(content))
        end = begin + draw.choice((0, 1, 1, 4, 60, len(content)))
        content = content[:begin] + draw.choice(BYTES) + content[end:]
    return content


def altered(draw: Random, value: object, values: tuple) -> object:
    """Nested lists and dicts with one thing in them left out or replaced by one of the values."""
    inside = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    if not len(inside) or draw.random() < 0.15:
        return draw.choice(values)
    place, changed = draw.choice([*inside]), value.copy()
    if draw.random() < 0.9:
        changed[place] = altered(draw, value[place], values)
    else:
        del changed[place]
    return changed


class Whole:
    """A file before it is damaged, alone in its folder: its path and what torch finds in it."""

    def __init__(self, path: Path, content: dict):
        self.path, self.content, self.bytes = path, content, as_file(content)

    def damage(self, draw: Random) -> object:
        """Writes it as it was but for some bytes, or for something in it. Returns what a reader may find."""
        if draw.random() < 0.5:
            self.path.write_bytes(damaged(draw, self.bytes))
            return self.content
        content = altered(draw, self.content, (*VALUES, *TENSORS))
        self.path.write_bytes(as_file(content))
        return content


def as_file(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Threads of small tensors wait for each other longer than they work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# -- ledgers -------------------------------------------------------------------------------------------------

CONFIGURATIONS = grid.grid("smoke", ["lr=0.1,0.2"], hlb.Execution("cpu"))
PLANNED = grid.all_runs(CONFIGURATIONS, "cifar10", range(3))


def line(i: int, seed: int) -> dict:
    """A run's line of a ledger; that of the last seed has failed."""
    return {
        "recipe": "smoke",
        "recipe_fields": ledger.finite(fields(CONFIGURATIONS[i].recipe)) | {"target": 0.94},
        "execution": {"device": "cpu", "kernels": "reference", "compile": "off", "threads": 2},
        "dataset": "cifar10",
        "device": "cpu",
        "device_name": DEVICE,
        "versions": {"torch": "2.11.0", "driver": None},
        "commit": "0123456789",
        "dirty": False,
        "command": "hlb sweep",
        "seed": seed,
        "status": "ok" if seed < 2 else "failed",
        "accuracy": 0.93 + seed / 100 if seed < 2 else None,
        "views": "flip",
        "train_seconds": 2.0 + seed,
        "eval_seconds": 0.5,
        "epochs": [{"epoch": 1, "train_loss": 1.5}],
        "time": "2026-11-22T20:00:00+00:00",
        "sweep": {"lr": 0.1},
    }


def as_json(line: object) -> bytes:
    text = json.dumps(line).replace(f'"{DEEP}"', "[" * 5000 + "]" * 5000)
    return text.replace(f'"{LEVELS}"', '{"a":' * 100 + "1" + "}" * 100).encode()


LINES = [line(*run) for run in PLANNED.values()]
WHOLE = {as_json(line): line for line in LINES}


def changed(draw: Random) -> bytes:
    """A ledger in which something is not as it was."""
    lines, how = [*WHOLE], draw.choice(("bytes", "fields", "fields", "fields", "encoding"))
    for i in draw.sample(range(len(lines)), 2) if how == "fields" else ():
        lines[i] = as_json(altered(draw, LINES[i], VALUES))
    content = b"\n".join(lines) + b"\n"
    if how == "encoding":
        text = content.decode().replace(DEVICE, "größer", draw.randint(0, 9))
        return text.encode(draw.choice(("utf-16", "utf-16-be", "utf-32", "latin-1", "utf-8-sig", "utf-7")))
    return damaged(draw, content) if how == "bytes" else content


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Iterator[Path]:
    """A folder. Plots are named, not drawn, and tables are not laid out: both take long."""
    with pytest.MonkeyPatch.context() as patch:
        published = records.published()
        patch.setattr(records, "published", lambda: published)
        patch.setattr(report, "modelled", list)
        patch.setattr(report, "_plot", lambda draw, *what, out, name, says: name)
        for module in (compare, findings):
            patch.setattr(
                module, "print_table", lambda _, headings, rows, **__: list(map(len, sum(rows, ())))
            )
        yield tmp_path_factory.mktemp("ledger")


def compared(path: Path, pool: bool) -> None:
    comparison = compare.compare(compare.chosen(str(path)), compare.chosen(f"{path}:lr=0.1"), pool)
    compare.show(Console(file=io.StringIO()), comparison)
    ledger.text(comparison)


def resumed(path: Path) -> None:
    samples = [compare.Sample(one.name, []) for one in CONFIGURATIONS]
    for name, run in sweep._read(path, PLANNED, {DEVICE}).items():
        samples[PLANNED[name][0]].records.append(run)
    result = findings.SweepResult(CONFIGURATIONS, samples, 3, "cifar10", str(path))
    findings.report(Console(file=io.StringIO()), result)
    ledger.text(result.json())


def reported(path: Path) -> None:
    report.write(report.find([str(path)]), path.parent)


READERS = (
    reported,
    reported,
    resumed,
    functools.partial(compared, pool=False),
    functools.partial(compared, pool=True),
)


@MANY
@given(DRAW)
def test_a_ledger_is_read_line_by_line_and_what_is_no_run_is_counted(place, draw):
    path, content = place / "runs.jsonl", changed(draw)
    path.write_bytes(content)
    there, found = content.split(b"\n"), ledger.runs(path)
    assert len(found) + found.skipped.total() == sum(bool(line.strip(b"\0 \t\r")) for line in there)
    assert all(WHOLE[line] in found for line in there if line in WHOLE)
    try:
        draw.choice(READERS)(path)
    except hlb.UserError as error:
        assert (not found or "lr" in str(error)) and str(error).isprintable()
    assert path.read_bytes() == content


# -- checkpoints ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Whole:
    """The checkpoint of a small network."""
    path = tmp_path_factory.mktemp("checkpoint") / "model.pt"
    small = ("base_depth=2", "groups=short", "group_widths=1", "train_examples=20", "batch_size=10")
    settings = [*small, "epochs=0.1", "whiten_images=10", "dtype=float32", "views=none"]
    dataset = hlb.Dataset("synthetic", synthetic.make(20, 10))
    hlb.train("smoke", settings=settings, data=dataset, eval_every=0, ledger=None, save=path, quiet=True)
    return Whole(path, torch.load(path, weights_only=True))


@MANY
@given(DRAW)
def test_a_checkpoint_is_a_network_that_predicts_or_is_refused(model, draw):
    content = model.damage(draw)
    before = files(model.path.parent)
    try:
        network, recipe, about = checkpoint.load(model.path)
    except hlb.UserError:
        pass
    else:
        images, labels = torch.zeros(2, 32, 32, 3, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)
        options = {"views": recipe.views, "mean": hlb.Dataset.mean, "std": hlb.Dataset.std}
        accuracy, _ = evaluate.evaluate(network, images, labels, **options)
        assert 0 <= accuracy <= 1 and isinstance(about["dataset"], str)
        found, said = network.state_dict(), content["weights"]
        assert all(torch.equal(found[name], said[name].to(found[name].dtype)) for name in found)
    assert files(model.path.parent) == before


# -- caches --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cached(tmp_path_factory) -> Iterator[Whole]:
    """The cache of a set in CIFAR-10's place."""
    path = tmp_path_factory.mktemp("cache") / "cifar10.pt"
    tensors = tuple(tensor[:2].clone() for tensor in synthetic.make(10, 10))
    about = {
        "name": "cifar10",
        "mean": hlb.Dataset.mean,
        "std": hlb.Dataset.std,
        "classes": synthetic.CLASSES,
    }
    content = {"format": "hlb-cifar10", "key": "", "tensors": list(tensors), "about": about}
    content["crc32"] = functools.reduce(lambda value, one: zlib.crc32(one.numpy(), value), tensors, 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HLB_CACHE", str(path.parent))
        patch.setattr(data, "download", refuse)
        patch.setattr(data, "SHAPES", tuple(tuple(one.shape) for one in tensors), raising=False)
        torch.save(content, path)
        yield Whole(path, content)


def refuse(*_) -> None:
    raise hlb.UserError("there is no network")


def test_the_cache_that_is_damaged_below_is_whole(cached):
    assert all(map(torch.equal, data.load("cifar10").tensors, cached.content["tensors"]))


@MANY
@given(DRAW)
def test_a_cache_is_what_was_cached_or_is_refused(cached, draw):
    cached.damage(draw)
    before = files(cached.path.parent)
    try:
        found = data.load("cifar10").tensors
    except hlb.UserError:
        pass
    else:
        assert all(map(torch.equal, found, cached.content["tensors"])) and found[0].dtype == torch.uint8
    assert files(cached.path.parent) == before
