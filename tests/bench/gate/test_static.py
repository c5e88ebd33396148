"""The gate without a GPU: what it calls worse, what it refuses to compare, its baseline and its files."""

from __future__ import annotations

import copy
import json
from math import prod
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from rich.console import Console

from bench.check import aot, check, sass
from bench.gate import snapshot, static
from hlb import UserError
from kernels import CATALOGUE
from kernels.base import launch
from kernels.norm import norm_act

CHIPS = ("8.0", "9.0", "10.0")
CODE = {"registers": 100, "stack": 0, "shared memory": 10_000, "instructions": 1000, "tensor": 16, "async": 8}
CODE |= {"global": 100, "shared": 100, "local": 0, "barrier": 20, "loop": 100}
WORK = {"bytes": 1_000_000, "flops": 1_000_000}


def code(**changes: int) -> dict:
    """A compilation as `python -m bench check --json` has it, from numbers by the columns of a baseline."""
    numbers = CODE | changes
    groups = {group: numbers["instructions" if group == "all" else group] for group in sass.COUNTED}
    whole = {"registers": numbers["registers"], "stack": numbers["stack"], "shared": numbers["shared memory"]}
    return whole | {"instructions": groups, "occupancy": 1.0, "widths": {}, "error": ""}


def record(*ops: str) -> dict:
    """Of a check: of each op two launches of a kernel, in a case each, on three chips."""
    cases, ops = ("a", "b"), ops or ("conv", "sgd")
    launches = [
        {
            "key": f"{op}/_{op}/{case}/float16/4 warps",
            "op": op,
            "chips": {chip: code() for chip in CHIPS},
        }
        for op in ops
        for case in cases
    ]
    work = [
        {
            "op": op,
            "case": case,
            "dtype": "float16",
            "chips": {chip: {f"_{op}": dict(WORK)} for chip in CHIPS},
        }
        for op in ops
        for case in cases
    ]
    versions = {"triton": "3.6.0", "ptxas": "12.8"}
    return {
        "names": [],
        "all": False,
        "versions": versions,
        "faults": [],
        "launches": launches,
        "work": work,
    }


def changed(before: dict, column: str, number: int, op: int = 0) -> dict:
    """The record with another number in the first launch of an op on 9.0, or in the work of its kernel."""
    now = copy.deepcopy(before)
    if column in WORK:
        (numbers,) = now["work"][2 * op]["chips"]["9.0"].values()
        numbers[column] = number
    else:
        now["launches"][2 * op]["chips"]["9.0"] = code(**{column: number})
    return now


class Gate:
    """The gate in a folder: `baseline` and `found` are records."""

    def __init__(self, folder: Path):
        self.file, self.found = folder / "static.json", folder / "check.json"
        self.junit, self.summary = folder / "junit.xml", folder / "summary.md"

    def update(self, found: dict, *names: str) -> str:
        return self._run(found, names, True)[1]

    def __call__(self, found: dict, *names: str) -> tuple[int, str]:
        """(exit status, what it prints)"""
        return self._run(found, names, False)

    def _run(self, found: dict, names: tuple[str, ...], update: bool) -> tuple[int, str]:
        self.found.write_text(json.dumps(found))
        console = Console(width=160, highlight=False)
        with console.capture() as printed:
            files = self.file, self.found, update, self.junit, self.summary
            status = static.run(console, list(names), *files)
        return status, printed.get()


@pytest.fixture
def gate(tmp_path):
    return Gate(tmp_path)


def test_the_same_code_is_green_in_one_line(gate):
    gate.update(record())
    assert gate(record()) == (0, "4 launches, 12 compiles: as in the baseline\n")


LIMITS = [  # column, before, the most that is green, the least that is red
    ("registers", 100, 110, 111),
    ("registers", 8, 9, 10),
    ("stack", 0, 0, 8),
    ("stack", 16, 16, 24),
    ("shared memory", 10_000, 10_500, 10_501),
    ("shared memory", 0, 0, 16),
    ("instructions", 1000, 1050, 1051),
    ("instructions", 20, 27, 28),
    ("loop", 100, 105, 106),
    ("tensor", 16, 1, 0),
    ("tensor", 16, 1000, None),
    ("async", 8, 1, 0),
    ("global", 100, 110, 111),
    ("global", 10, 13, 14),
    ("shared", 100, 110, 111),
    ("shared", 10, 13, 14),
    ("local", 0, 0, 1),
    ("barrier", 20, 22, 23),
    ("barrier", 2, 3, 4),
    ("bytes", 1_000_000, 1_005_000, 1_005_001),
    ("flops", 1_000_000, 1_005_000, 1_005_001),
    ("flops", 0, 0, 1),
]


@pytest.mark.parametrize("column, before, most, least", LIMITS)
def test_each_number_has_a_limit(gate, column, before, most, least):
    was = changed(record(), column, before)
    gate.update(was)
    assert gate(changed(was, column, most))[0] == 0
    if least is not None:
        status, said = gate(changed(was, column, least))
        assert status == 1
        assert f"RED conv _conv: {column} {before:,} → {least:,} on 9.0 (a/float16" in said
        assert "4 launches, 12 compiles: 1 worse; if that is meant: python -m bench gate" in said


def test_every_number_of_a_baseline_has_a_limit_that_is_tested():
    columns = {column for section in snapshot.SECTIONS.values() for column in section}
    assert columns == static.LIMITS.keys() | set(static.KEPT) == {column for column, *_ in LIMITS}


def test_what_stays_within_the_limits_is_shown_and_green(gate):
    gate.update(record())
    status, said = gate(changed(record(), "registers", 104))
    assert status == 0 and "+4.0%" in said and said.endswith("compiles: 1 changed within limits\n")


@pytest.mark.parametrize("column, number", [("registers", 80), ("instructions", 900), ("flops", 500_000)])
def test_better_code_is_green_and_a_note_says_how_to_keep_it(gate, column, number):
    gate.update(record())
    status, said = gate(changed(record(), column, number))
    assert status == 0 and "RED" not in said
    assert f"conv _conv: {column} " in said and "1 better; if that is meant: python -m bench gate" in said


def test_a_note_is_of_what_is_better_though_something_else_grew(gate):
    gate.update(record())
    now = changed(record(), "registers", 80)
    now["launches"][1]["chips"]["9.0"] = code(registers=110)
    status, said = gate(now)
    assert status == 0 and "registers 100 → 80 on 9.0 (a/float16/4 warps)" in said


def test_a_launch_that_is_missing_is_red_even_on_one_chip(gate):
    gate.update(record())
    now = record()
    del now["launches"][1]["chips"]["8.0"]
    assert gate(now)[0] == 1
    del now["launches"][1]
    status, said = gate(now)
    assert status == 1 and "missing on 8.0, 9.0, 10.0 (b/float16/4 warps)" in said


def test_a_launch_that_does_not_compile_is_missing(gate):
    gate.update(record())
    now = record()
    now["launches"][0]["chips"]["9.0"] |= {"error": "no", "instructions": {}}
    status, said = gate(now)
    assert status == 1 and "missing on 9.0 (a/float16/4 warps)" in said


def test_an_op_that_is_missing_is_red(gate):
    gate.update(record())
    status, said = gate(record("conv"))
    assert status == 1 and "RED sgd _sgd: missing" in said


def test_a_new_launch_is_a_note(gate):
    gate.update(record("conv"))
    status, said = gate(record())
    assert status == 0 and "sgd _sgd: new on 8.0, 9.0, 10.0" in said and "4 new; " in said


def test_another_configuration_is_red_until_it_is_the_baseline(gate):
    gate.update(record())
    now = record()
    now["launches"][0]["key"] = "conv/_conv/a/float16/8 warps"
    status, said = gate(now)
    assert status == 1 and "(a/float16/4 warps); new on 8.0, 9.0, 10.0 (a/float16/8 warps)" in said
    gate.update(now)
    assert gate(now)[0] == 0


def test_launches_that_share_a_key_and_a_chip_count_as_the_greater(gate):
    was = record()
    was["launches"].insert(0, changed(was, "registers", 120)["launches"][0])
    gate.update(was)
    assert gate(changed(record(), "registers", 132))[0] == 0
    assert gate(changed(was, "registers", 133))[0] == 1


def test_the_worst_of_several_launches_is_told(gate):
    gate.update(record())
    now = changed(record(), "registers", 120)
    now["launches"][1]["chips"] = {chip: code(registers=140) for chip in CHIPS}
    _, said = gate(now)
    assert "registers 100 → 140 on 8.0, 9.0, 10.0 (b/float16/4 warps and 1 more)" in said


def test_only_named_ops_are_compared(gate):
    gate.update(record())
    now = changed(record(), "stack", 8, op=1)
    assert gate(now, "conv") == (0, "2 launches, 6 compiles: as in the baseline\n")
    assert gate(now, "sgd")[0] == gate(now)[0] == 1


@pytest.mark.parametrize("update", [False, True])
def test_code_of_other_compilers_is_not_compared(gate, update):
    gate.update(record())
    now = record() | {"versions": {"triton": "3.7.0", "ptxas": "12.8"}}
    with pytest.raises(UserError, match="is of triton 3.6.0, .* the code here of triton 3.7.0, "):
        gate._run(now, ("conv",), update)
    gate.update(now)
    assert gate(now)[0] == 0


def test_an_update_of_named_ops_leaves_the_others_as_they_were(gate):
    gate.update(record())
    before = gate.file.read_text().splitlines()
    now = changed(changed(record(), "registers", 50, op=0), "registers", 50, op=1)
    del now["launches"][1]
    gate.update(now, "conv")
    after = gate.file.read_text().splitlines()
    assert [line for line in after if "sgd" in line] == [line for line in before if "sgd" in line]
    launches = [line for line in after if "conv" in line and "warps" in line]
    assert len(launches) == 1 and "[50,0,10000," in launches[0]


def test_no_baseline_is_made_of_kernels_that_break_a_rule(gate):
    gate.update(record())
    before = gate.file.read_text()
    with pytest.raises(UserError, match="spills"):
        gate.update(record("conv") | {"faults": ["conv _conv: spills"]})
    assert gate.file.read_text() == before


def test_a_baseline_is_read_as_it_was_written_a_line_for_each_entry(gate):
    found = changed(record(), "registers", 7)
    gate.update(found)
    assert snapshot.read(gate.file)["sections"] == snapshot.entries(found)
    assert sum("float16" in line for line in gate.file.read_text().splitlines()) == 8
    assert '"conv/_conv/a/float16": {"8.0 9.0 10.0":[1000000,1000000]}' in gate.file.read_text()


def test_the_committed_baseline_has_every_kernel_of_every_op():
    known = snapshot.read(static.BASELINE)
    names = {tuple(name.split("/")[:3]) for name in known["sections"]["work"]}
    for spec in CATALOGUE.values():
        for case in spec.cases:
            declared = spec.bytes(case, spec.dtypes[0])
            assert {(spec.name, kernel, case.name) for kernel in declared} <= names


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "check.json is not what python -m bench check --json of this version writes"),
        ("[]", "check.json is not what python -m bench check --json of this version writes"),
        ('{"launches": []}', "check.json is not what python -m bench check --json of this version writes"),
        (
            json.dumps(record()).replace('"barrier"', '"bars"'),
            "check.json is not what python -m bench check --json of this version writes",
        ),
        (json.dumps(record("conv") | {"names": ["conv"]}), "check.json is of conv alone"),
        (json.dumps(record() | {"all": True}), "check.json was made with --all"),
        (None, "check.json: No such file or directory; python -m bench check --json makes one"),
    ],
)
def test_a_record_that_cannot_be_compared_is_one_line(gate, content, message):
    gate.update(record())
    gate.found.unlink()
    if content is not None:
        gate.found.write_text(content)
    with pytest.raises(UserError) as stop:
        static.run(Console(quiet=True), [], gate.file, gate.found, False, None, None)
    assert message in str(stop.value) and "\n" not in str(stop.value)


def test_without_a_baseline_the_command_that_makes_one_is_named(gate):
    with pytest.raises(UserError, match="static.json: .*; python -m bench gate --static --update makes one"):
        gate(record())
    with pytest.raises(UserError, match="makes one"):
        gate.update(record(), "conv")


def test_a_baseline_of_something_else_is_one_line(gate):
    gate.file.write_text('{"versions": {}, "work": {"columns": [], "entries": 3}}')
    with pytest.raises(UserError, match="static.json is not what python -m bench gate --static --update"):
        gate(record())


def test_an_unknown_op_is_named(gate):
    with pytest.raises(UserError, match="^NAME: got 'bogus', accepted are augment, "):
        gate(record(), "bogus")


def test_files_that_cannot_be_written_are_refused_before_anything_is_compiled(gate, monkeypatch):
    gate.update(record())
    monkeypatch.setattr(snapshot, "record", lambda *_: pytest.fail("compiled"))
    gate.junit = gate.found.parent  # a folder
    with pytest.raises(UserError, match="^--junit: "):
        gate(record())


def test_without_a_record_a_check_of_the_named_ops_is_made(gate, monkeypatch):
    if not launch.INSTALLED:
        pytest.skip("triton is not installed")
    commands = []

    def check(command, **options):
        commands.append(command[1:])
        Path(command[command.index("--json") + 1]).write_text(json.dumps(record() | {"names": ["conv"]}))
        return snapshot.subprocess.CompletedProcess(command, 1)  # a fault is for `check` to tell

    gate.update(record())
    monkeypatch.setattr(snapshot.subprocess, "run", check)
    assert static.run(Console(quiet=True), ["conv"], gate.file, None, False, None, gate.summary) == 0
    (command,) = commands
    assert command[:4] == ["-m", "bench", "check", "--json"] and command[5:] == ["conv"]


def test_a_check_that_writes_nothing_is_an_error(gate, monkeypatch):
    gate.update(record())
    failed = snapshot.subprocess.CompletedProcess([], 2)
    monkeypatch.setattr(snapshot.subprocess, "run", lambda *_, **__: failed)
    monkeypatch.setattr(launch, "INSTALLED", True)
    with pytest.raises(UserError, match="ended with status 2"):
        static.run(Console(quiet=True), [], gate.file, None, False, None, None)
    monkeypatch.setattr(launch, "INSTALLED", False)
    with pytest.raises(UserError, match="needs triton"):
        static.run(Console(quiet=True), [], gate.file, None, False, None, None)


def test_junit_has_every_entry_and_the_summary_every_kernel(gate):
    gate.update(record())
    gate(changed(changed(record(), "registers", 200), "flops", 2_000_000))
    suite = ElementTree.parse(gate.junit).getroot().find("testsuite")
    assert (suite.get("tests"), suite.get("failures")) == ("8", "2")  # 4 launches, 4 of work
    failed = [case.get("name") for case in suite.iter("testcase") if case.find("failure") is not None]
    assert failed == ["conv/_conv/a/float16", "conv/_conv/a/float16/4 warps"]
    lines = gate.summary.read_text().splitlines()
    assert (
        "4 launches, 12 compiles: 2 worse; if that is meant: python -m bench gate --static --update" in lines
    )
    assert [line.split(" | ")[0] for line in lines if "_" in line and line.startswith("|")] == [
        "| `conv _conv`",
        "| `sgd _sgd`",
    ]


def test_the_programs_that_leave_sums_of_a_norm_fit_on_an_h200_at_once():
    found = snapshot.read(static.BASELINE)["sections"]["launches"]
    for case in norm_act.SPEC.cases:
        launched = next(
            one for one in check.record(norm_act.SPEC, case, torch.float16) if one.name == "_sums"
        )
        code = found.get(f"norm_act/_sums/{case.name}/float16/8 warps 2 stages")
        if code:  # else it is as that of another case
            numbers = (code["9.0"][column] for column in ("registers", "stack", "shared memory"))
            resident = aot.Compiled(90, *numbers, launched.num_warps, {}).occupancy * 64 // launched.num_warps
            assert prod(launched.grid) <= 132 * resident, case.name
