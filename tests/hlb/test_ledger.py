"""The ledger: whole lines whatever happens to the process that writes them."""

import errno
import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from hlb.runs import ledger
from hlb.settings import from_fields

ROOT = Path(__file__).parents[2]
RECORD = {"recipe": "smoke", "accuracy": 0.5, "epochs": [{"epoch": 1, "train_loss": 2.0}]}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "results" / "ledger.jsonl"


def test_records_load_as_they_were_appended_oldest_first(path):
    records = [{**RECORD, "seed": seed, "name": "größer"} for seed in range(3)]
    for record in records:
        ledger.append(path, record)
    assert ledger.load(path) == records


def test_every_record_is_one_line_of_json(path):
    ledger.append(path, {"command": "two\nlines\r\nand \u2028 more"})
    ledger.append(path, RECORD)
    content = path.read_bytes()
    assert content.count(b"\n") == 2 and content.endswith(b"\n")
    assert [json.loads(line) for line in content.splitlines()] == ledger.load(path)


@pytest.mark.parametrize("torn", [b'{"accuracy": 0.', b'{"name": "\xc3', b"17", b"\x00\x00\x00"])
def test_torn_last_line_is_skipped_and_the_next_record_starts_on_a_new_line(path, torn):
    ledger.append(path, RECORD)
    with open(path, "ab") as f:
        f.write(torn)
    assert ledger.load(path) == [RECORD]
    ledger.append(path, {"seed": 1})
    assert ledger.load(path) == [RECORD, {"seed": 1}]
    assert path.read_bytes().splitlines()[1] == torn


def test_whole_last_record_without_its_newline_is_kept(path):
    ledger.append(path, RECORD)
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    ledger.append(path, {"seed": 1})
    assert ledger.load(path) == [RECORD, {"seed": 1}]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_json_cannot_hold_becomes_null_at_any_depth(path, value):
    ledger.append(path, {"accuracy": value, "epochs": [{"train_loss": value}], "range": (0.5, value)})
    expected = {"accuracy": None, "epochs": [{"train_loss": None}], "range": [0.5, None]}
    assert json.loads(path.read_text(), parse_constant=pytest.fail) == expected


def test_numbers_of_numpy_and_torch_become_those_of_json(path):
    ledger.append(path, {"seed": np.int64(3), "lr": np.float32(0.5), "on": np.bool_(True)})
    ledger.append(
        path, {"seed": torch.tensor(3), "widths": np.array([1.0, math.nan]), "loss": np.float64("inf")}
    )
    first, second = ledger.load(path)
    assert first == {"seed": 3, "lr": 0.5, "on": True} and first["on"] is True
    assert second == {"seed": 3, "widths": [1.0, None], "loss": None}


# -- a full disk ---------------------------------------------------------------------------------------------


@pytest.fixture
def room(path):
    """A function that leaves the ledger room for some bytes more."""
    resource = pytest.importorskip("resource")  # not on Windows
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def leave(size: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + size, before[1]))

    yield leave
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("torn", [b"", b'{"accuracy": 0.'], ids=["whole", "torn"])
def test_what_a_full_disk_took_of_a_line_is_taken_back_and_the_next_append_is_whole(path, room, torn):
    ledger.append(path, RECORD)
    with open(path, "ab") as f:
        f.write(torn)
    content = path.read_bytes()
    room(20)
    with pytest.raises(OSError) as error:
        ledger.append(path, RECORD | {"seed": 1})
    assert (error.value.errno, error.value.filename) == (errno.EFBIG, str(path))
    assert path.read_bytes() == content
    room(1000)
    ledger.append(path, RECORD | {"seed": 2})
    assert ledger.load(path) == [RECORD, RECORD | {"seed": 2}]


def test_nothing_is_taken_back_where_the_file_may_be_anothers_too(path, room, monkeypatch):
    """On a file system without locks, what stands behind our line may be another writer's."""
    monkeypatch.setattr(ledger, "fcntl", None)
    ledger.append(path, RECORD)
    room(20)
    with pytest.raises(OSError):
        ledger.append(path, RECORD)
    room(1000)
    assert len(path.read_bytes().splitlines()[1]) == 20 and ledger.load(path) == [RECORD]
    ledger.append(path, RECORD)
    assert ledger.load(path) == [RECORD] * 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_device_without_room_is_an_error_that_names_it():
    with pytest.raises(OSError) as error:
        ledger.append("/dev/full", RECORD)
    assert (error.value.errno, error.value.filename) == (errno.ENOSPC, "/dev/full")
    ledger.append("/dev/null", RECORD)


# -- lines that are no records, and records that are no runs -------------------------------------------------

RUN = {
    "recipe_fields": {"lr": 0.24, "group_widths": [1.0, 4.0, 4.0], "drop_last": True, "views": "flip"},
    "execution": {"device": "cpu"},
    "seed": 0,
    "status": "ok",
    "accuracy": 0.94,
    "train_seconds": 2.0,
    "eval_seconds": 1.0,
}


@pytest.mark.parametrize(
    "line, reason",
    [
        (b'{"accuracy": 0.', "cut short or no JSON"),
        (b"a text", "cut short or no JSON"),
        (b"1" * 5000, "cut short or no JSON"),  # more digits than Python reads
        (b"[1]", "no JSON object"),
        (b'"text"', "no JSON object"),
        (b'{"a":' * 30 + b"1" + b"}" * 30, "nested too deeply"),
        (b'{"a":' + b"[" * 99999 + b"]" * 99999 + b"}", "nested too deeply"),
        ('{"name": "größer"}'.encode("latin-1"), "not in UTF-8"),
        ('{"name": "größer"}'.encode("utf-16-le"), "not in UTF-8"),
        (b'{"name": "\\ud800"}', "not in UTF-8"),
        (b'{"a": 1}', "no runs"),
    ],
    ids=range(11),
)
def test_lines_that_are_no_runs_are_counted_with_the_reason(path, line, reason):
    ledger.append(path, RUN)
    with open(path, "ab") as f:
        f.write(line + b"\n\n" + line + b"\n")
    ledger.append(path, RUN | {"seed": 1})
    runs = ledger.runs(path)
    assert [run["seed"] for run in runs] == [0, 1]
    assert runs.skipped == {reason: 2} and runs.note == f"{path}: 2 lines skipped: 2 {reason}"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_every_line_of_a_ledger_in_another_encoding_is_told(path, encoding):
    path.parent.mkdir()
    path.write_bytes("".join(json.dumps(RUN | {"seed": i}) + "\r\n" for i in range(7)).encode(encoding))
    assert ledger.runs(path) == [] and ledger.runs(path).skipped == {"not in UTF-8": 7}


def test_a_byte_order_mark_is_no_part_of_the_first_line(path):
    path.parent.mkdir()
    path.write_bytes((json.dumps(RUN) + "\r\n").encode("utf-8-sig"))
    assert ledger.runs(path) == [RUN] and not ledger.runs(path).note


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_number_that_json_cannot_hold_is_read_as_none_at_any_depth(path, number):
    path.parent.mkdir()
    path.write_text(json.dumps(RUN | {"epochs": [{"train_loss": "?"}]}).replace('"?"', number) + "\n")
    (run,) = ledger.runs(path)
    assert run["epochs"] == [{"train_loss": None}]
    path.write_text(json.dumps(RUN | {"accuracy": "?"}).replace('"?"', number) + "\n")
    assert ledger.runs(path).skipped == {"no runs": 1}


@pytest.mark.parametrize(
    "change",
    [
        *({"accuracy": value} for value in (None, True, "0.9", [0.9], -0.1, 94.0, 10**400)),
        *({"train_seconds": value} for value in (None, -1.0, 1e300, "2", False)),
        {"train_seconds": 0.0, "eval_seconds": 0},  # per cent of which mean?
        *({"seed": value} for value in (-1, 1.5, "0", True, 2**63)),
        *({"status": value} for value in (None, "fine", ["ok"])),
        *({name: value} for name in ("recipe_fields", "execution") for value in (None, [], "x")),
        *({"device_name": value} for value in (1, ["x"], {"a": 1})),
        {"dataset": ["cifar10"]},
        {"commit": 12345678},
        {"command": ["hlb"]},
        {"time": 2026},
        {"versions": ["torch"]},
        {"note": 1},
        *({"recipe_fields": {name: value}} for name, value in (
            ("lr", "fast"), ("lr", None), ("lr", True), ("group_widths", 1.0), ("group_widths", [1, "a"]),
            ("drop_last", 1), ("views", 6), ("target", 94), ("target", "0.94"), ("views_fraction", [1]),
            ("hard_fraction", []), ("hard_fraction", [0.5, 2]), ("batch_size", [8, "8"]),
            ("hard_label_smoothing", "none"), ("hard_label_smoothing", 2))),
    ],
    ids=str,
)  # fmt: skip
def test_a_line_whose_fields_are_of_other_types_or_out_of_range_is_no_run(change):
    assert ledger.is_run(RUN) and not ledger.is_run(RUN | change)


def test_a_run_may_lack_what_came_later_and_have_what_is_unknown():
    assert ledger.is_run({**RUN, "recipe_fields": {"gone": {"a": [1]}}, "execution": {}, "seed": None})
    assert ledger.is_run(RUN | {"status": "failed", "accuracy": None, "train_seconds": None})


@pytest.mark.parametrize("field, value", [
    ("hard_fraction", [0.8, 0.5]), ("batch_size", [8, 16]), ("hard_label_smoothing", None),
    ("hard_label_smoothing", 0.1),
])  # fmt: skip
def test_a_field_may_have_a_value_for_each_epoch_or_none(path, field, value):
    ledger.append(path, RUN | {"recipe_fields": {field: value, "name": "smoke"}})
    (run,) = ledger.runs(path)
    read = getattr(from_fields(run["recipe_fields"]), field)
    assert read == (tuple(value) if type(value) is list else value)


def _append_many(path: Path, writer: int, records: int, epochs: int) -> None:
    for i in range(records):
        ledger.append(path, {"writer": writer, "record": i, "epochs": [{"train_loss": i / 7}] * epochs})


@pytest.mark.parametrize("epochs", [1, 1000], ids=["short lines", "long lines"])
def test_two_processes_that_append_lose_no_record(path, epochs):
    fork = multiprocessing.get_context("fork")
    records = 60
    writers = [fork.Process(target=_append_many, args=(path, i, records, epochs)) for i in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    loaded = ledger.load(path)
    for writer in range(2):
        assert [record["record"] for record in loaded if record["writer"] == writer] == list(range(records))


# -- a real program, stopped in the middle of a run ----------------------------------------------------------


@pytest.fixture
def program(path, tmp_path):
    """Five runs, long enough to be stopped in the middle of one, in a process of its own."""
    if os.name != "posix":
        pytest.skip("Windows has no signal that kills")
    command = [
        sys.executable,
        "-m",
        "hlb",
        "train",
        "--recipe",
        "smoke",
        "--data",
        "synthetic",
        "--runs",
        "5",
        "--eval-every",
        "0",
        "--threads",
        "1",
        "--ledger",
        path,
        "--json",
        tmp_path / "out.json",
        "--set",
        "base_depth=4",
        "train_examples=500",
        "batch_size=250",
        "epochs=2",
    ]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        # a background shell has its children ignore Ctrl-C
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    yield process
    if process.poll() is None:
        process.kill()
        process.communicate()


def _stop_in_run(process: subprocess.Popen, path: Path, number: int, how: int) -> tuple[str, str]:
    """Sends `how` once `number` - 1 runs have finished; the process's standard output and error."""
    deadline = time.monotonic() + 300  # for a machine that is busy
    while not path.exists() or path.read_bytes().count(b"\n") < number - 1:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.1)  # into the next run
    os.kill(process.pid, how)
    return process.communicate(timeout=300)


def test_killed_in_its_third_run_a_program_leaves_two_whole_records(program, path):
    _stop_in_run(program, path, 3, signal.SIGKILL)
    assert program.returncode == -signal.SIGKILL
    assert path.read_bytes().count(b"\n") == 2 and path.read_bytes().endswith(b"\n")
    assert [(record["seed"], record["status"]) for record in ledger.load(path)] == [(0, "ok"), (1, "ok")]


def test_interrupted_in_its_second_run_a_program_ends_with_statistics_of_the_first(program, path, tmp_path):
    out, err = _stop_in_run(program, path, 2, signal.SIGINT)
    assert program.returncode == 130
    (record,) = ledger.load(path)
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["accuracy"]["mean"] == record["accuracy"] and written["accuracy"]["n"] == 1
    assert "1 of 5 runs finished" in out and f"{record['accuracy']:.4f}" in out.split("finished")[1]
    assert "Traceback" not in err
