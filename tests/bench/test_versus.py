"""`python -m bench vs`, on a small repository whose benchmark reads its times from a file."""

from __future__ import annotations

import io
import json
import math
import subprocess
from pathlib import Path

import pytest
from rich.console import Console

from bench.inspect import versus
from hlb import UserError

BENCH = """
import json, os, pathlib, subprocess, sys
here = pathlib.Path(__file__).resolve().parents[1]
told = json.loads((here / "told.json").read_text())
if "says" in told:
    sys.exit(told["says"])
git = lambda *words: subprocess.run(("git", *words), cwd=here, capture_output=True, text=True).stdout.strip()
record = {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "-uno"))}
record |= dict.fromkeys(("device", "device_name", "versions", "gpu_before", "gpu_after")) | told
pathlib.Path(sys.argv[sys.argv.index("--json") + 1]).write_text(json.dumps(record))
with open(os.environ["LOG"], "a") as log:
    print(os.getcwd(), sys.path[1], *sys.argv[1:-1], file=log)
"""


def row(
    median: float | None, direction: str = "forward", by: str = "eager", fault: str | None = None
) -> dict:
    names = {
        "op": "doubled",
        "case": "seed",
        "dtype": "float32",
        "direction": direction,
        "implementation": by,
    }
    return {**names, "median": median, "fault": fault}


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A function that commits what its benchmark tells, and gives the commit."""
    root = tmp_path / "repository"
    (root / "bench").mkdir(parents=True)
    (root / "bench" / "__init__.py").touch()  # else a bench that PYTHONPATH names is taken
    monkeypatch.setattr(versus, "ROOT", root)
    monkeypatch.setenv("LOG", str(tmp_path / "log"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr(versus.tempfile, "tempdir", None)  # it is remembered
    (tmp_path / "temporary").mkdir()
    git(root, "init", "--quiet")

    def commit(benchmark: str = BENCH, **told) -> str:
        (root / "told.json").write_text(json.dumps(told))
        if benchmark:
            (root / "bench" / "__main__.py").write_text(benchmark)
        git(root, "add", "--all")
        git(root, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "--message", "a")
        return git(root, "rev-parse", "HEAD")

    yield commit
    assert len(git(root, "worktree", "list").splitlines()) == 1
    assert list((tmp_path / "temporary").iterdir()) == []


def git(root: Path, *words: str) -> str:
    return subprocess.run(
        ("git", *words), cwd=root, check=True, capture_output=True, text=True
    ).stdout.strip()


def against(
    ref: str, direction: str | None = None, status: int = 0, repeats: int = 2, file: Path | None = None
):
    """What is printed, a line each with single spaces."""
    out = io.StringIO()
    arguments = ref, ["doubled"], "seed", "float32", direction, 3, repeats, file
    assert versus.run(Console(file=out, width=160), *arguments) == status
    return [" ".join(line.split()) for line in out.getvalue().splitlines()]


def test_changed_tree_is_compared_with_a_revision_and_left_as_it_is(repository, tmp_path):
    there = repository(rows=[row(1e-3)])
    here = repository(rows=[row(2e-3)])
    (versus.ROOT / "told.json").write_text(json.dumps({"rows": [row(4e-3)]}))
    first, _, shown, *_ = against("HEAD~1")
    assert first == f"here {here[:10]} with changes, there {there[:10]} (HEAD~1), 2 repeats"
    assert shown == "doubled seed forward eager 4000.00 1000.00 4.000 4.000 to 4.000 slower"
    assert json.loads((versus.ROOT / "told.json").read_text())["rows"][0]["median"] == 4e-3
    assert "faster" not in shown and git(versus.ROOT, "rev-parse", "HEAD") == here


def test_repeats_take_turns_each_process_in_its_own_tree(repository, tmp_path):
    repository(rows=[row(1e-3)])
    shown = against("HEAD", repeats=3)
    assert "doubled seed forward eager 1000.00 1000.00 1.000 1.000 to 1.000 no difference shown" in shown
    ran = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    sides = ["here" if tree == str(versus.ROOT) else "there" for tree, *_ in ran]
    assert sides == ["here", "there", "there", "here", "here", "there"]
    for tree, path, *options in ran:
        assert path == tree
        assert options == ["doubled", "--case", "seed", "--dtype", "float32", "--samples", "3", "--json"]


def test_interval_is_students_of_the_logarithms():
    here, there = (1.1, 1.3, 1.2), (1.0, 1.0, 1.0)
    found = versus.compared(("op", "case", "float32", "forward", "eager"), here, there)
    mean = sum(map(math.log, here)) / 3
    half = 4.302653 * math.sqrt(sum((math.log(x) - mean) ** 2 for x in here) / 2 / 3)  # t of two degrees
    assert found.ratio == pytest.approx(math.exp(mean))
    assert found.ci95 == pytest.approx([math.exp(mean - half), math.exp(mean + half)])
    assert found.verdict == "no difference shown" and found.ci95[0] < 1


@pytest.mark.parametrize(
    "here, verdict",
    [((1.1, 1.11, 1.1), "slower"), ((0.9, 0.91, 0.9), "faster"), ((1.1, 0.9, 1.0), "no difference shown")],
)
def test_verdict_is_that_of_the_interval(here, verdict):
    assert versus.compared(("",) * 5, here, (1.0, 1.0, 1.0)).verdict == verdict


def test_direction_of_older_revisions_is_known_and_other_directions_are_left_out(repository):
    repository(rows=[row(1e-3), row(3e-3, "training")])
    repository(rows=[row(1e-3), row(3e-3, "both"), row(2e-3, "backward")])
    assert [line.split()[2] for line in against("HEAD~1") if line.startswith("doubled")] == [
        "forward",
        "both",
    ]
    shown = against("HEAD~1", "both")
    assert [line.split()[2] for line in shown if line.startswith("doubled")] == ["both"]
    assert not any(line.startswith("only") for line in shown)


def test_rows_of_one_side_alone_are_said(repository):
    repository(rows=[row(1e-3), row(1e-3, by="older")])
    repository(rows=[row(1e-3), *(row(1e-3, by=f"newer{i}") for i in range(7))])
    shown = against("HEAD~1")
    assert "only there: doubled seed float32 forward older" in shown
    (line,) = [line for line in shown if line.startswith("only here")]
    assert line.count("newer") == 5 and line.endswith(" and 2 more")


def test_failed_row_has_no_ratio_and_exit_status_is_1(repository):
    repository(rows=[row(1e-3), row(1e-3, by="triton")])
    repository(rows=[row(1e-3), row(None, by="triton", fault="wrong: output 0")])
    shown = against("HEAD~1", status=1)
    assert "FAILED here: doubled seed float32 forward triton: wrong: output 0" in shown
    assert [line.split()[3] for line in shown if line.startswith("doubled")] == ["eager"]


def test_record_has_both_commits_the_hardware_and_every_round(repository, tmp_path):
    there = repository(rows=[row(1e-3)])
    here = repository(
        rows=[row(2e-3), row(1e-3, by="newer")], device_name="a device", versions={"torch": "2"}
    )
    against("HEAD~1", file=tmp_path / "new" / "record.json")
    record = json.loads((tmp_path / "new" / "record.json").read_text())
    assert record["here"] == {"commit": here, "dirty": False}
    assert record["there"] == {"commit": there, "dirty": False}
    assert record["command"].startswith("python -m bench")
    assert (record["device_name"], record["versions"], record["repeats"]) == ("a device", {"torch": "2"}, 2)
    assert record["rows"][0]["here"] == [2e-3] * 2 and record["rows"][0]["ratio"] == pytest.approx(2)
    assert record["only_here"] == [["doubled", "seed", "float32", "forward", "newer"]]


def test_process_that_ran_other_code_is_found_out(repository):
    repository(rows=[row(1e-3)], commit="0" * 40)
    repository(rows=[row(1e-3)])
    with pytest.raises(UserError, match="the benchmark there ran 0000000000"):
        against("HEAD~1")
    repository(rows=[row(1e-3)], dirty=True)
    with pytest.raises(UserError, match="the benchmark there ran .* changed: True"):
        against("HEAD")


def test_ctrl_c_leaves_no_worktree(repository, monkeypatch):
    repository(rows=[row(1e-3)])
    trees = []

    def interrupted(side, tree, *_):
        trees.append((tree / "bench" / "__main__.py").exists())
        raise KeyboardInterrupt

    monkeypatch.setattr(versus, "measured", interrupted)
    with pytest.raises(KeyboardInterrupt):
        against("HEAD")
    assert trees == [True]


def refused(ref: str, **options) -> str:
    with pytest.raises(UserError) as raised:
        against(ref, **options)
    message = str(raised.value)
    assert "\n" not in message
    return message


def test_mistakes_are_a_line_each(repository, tmp_path, monkeypatch):
    repository("", rows=[])
    assert "HEAD has no `python -m bench`" in refused("HEAD")
    repository(says="bench: NAME: got 'doubled', accepted are halved")
    assert "the benchmark here fails, exit status 1: bench: NAME: got 'doubled'" in refused("HEAD")
    for ref in ("nosuch", "--all", ""):
        assert f"got {ref!r}, by which git knows no commit" in refused(ref)
    assert refused("HEAD", repeats=1).startswith("--repeats: got 1")
    assert refused("HEAD", file=tmp_path).startswith("--json: cannot write")
    monkeypatch.setattr(versus, "ROOT", versus.ROOT / "bench")
    assert "is no checkout" in refused("HEAD")
    monkeypatch.setenv("PATH", "")
    assert "is no checkout that git can read" in refused("HEAD")
    monkeypatch.undo()
