"""The ledger: whole lines whatever happens to the process that writes them."""

import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hlb.runs import ledger

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
        "epochs=8",
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
