"""The mutant runner, on a tree of its own; and that every list of mutants fits its module."""

import pytest
from mutants import Mutant, catalogue, main, outcome, read

SOURCE = "def f(n):\n    while n > 2:\n        n -= 1\n    return n + 1\n"
TEST = "from kernels.made import f\ndef test_made():\n    assert f(1) == 2\n"
LINES = ("n + 1 ==> n", "n -= 1 ==> n += 1", "n > 2 ==> n > 1", "return ==> return 1 +", "def f ==> def  f")


@pytest.fixture
def tree(tmp_path):
    """A tree with a module `made`, its test and its list."""
    for folder in ("kernels", "hlb", "tests/kernels", "tests/mutants"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "kernels/__init__.py").touch()  # else one that is installed as a path goes before it
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "kernels/made.py").write_text(SOURCE)
    (tmp_path / "tests/kernels/test_kernels.py").write_text(TEST)
    (tmp_path / "tests/mutants/made.txt").write_text("# why\n\n" + "\n".join(LINES))
    return tmp_path


@pytest.mark.parametrize(
    ("mutant", "expected"),
    [
        (Mutant("made"), "passed"),
        (Mutant("made", "n > 2", "n > 9"), "passed"),
        (Mutant("made", "n + 1", "n"), "caught"),
        (Mutant("made", "n > 2:", "n > 0:\n        n += 1"), "caught, out of time"),
        (Mutant("made", "n + 1", "n +"), "no verdict, pytest ended with 2"),
        (Mutant("made", "def f", "def g"), "no verdict, pytest ended with 2"),
    ],
    ids=["as it is", "survives", "red", "endless", "syntax", "import"],
)
def test_verdict_on_a_mutant(tree, mutant, expected):
    seconds = 3 if "time" in expected else 60
    assert outcome(mutant, ["made"], seconds, tree).startswith(expected)
    assert (tree / "kernels/made.py").read_text() == SOURCE


def test_no_test_of_the_ops_is_no_verdict(tree):
    assert outcome(Mutant("made"), ["other"], 60, tree).startswith("no verdict, pytest ended with 5")


def test_list_is_read_line_by_line(tree):
    assert [f"{mutant.old} ==> {mutant.new}" for mutant in read("made", tree)] == list(LINES)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([*LINES, "n ==> m"], r"made.txt:6: 'n' occurs \d+ times"),
        ([*LINES, "absent ==> m"], "'absent' occurs 0 times"),
        ([*LINES, "n > 2 -> n > 1"], "made.txt:6: got 'n > 2 -> n > 1'"),
        ([*LINES, "n > 2 ==> n > 2"], "made.txt:6: got"),
        (LINES[:4], "got 4 mutants, accepted are 5 or more"),
    ],
)
def test_list_that_does_not_fit_is_refused(tree, lines, message):
    (tree / "tests/mutants/made.txt").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=message):
        read("made", tree)


def test_missing_list_is_refused(tree):
    (tree / "tests/mutants/made.txt").unlink()
    with pytest.raises(ValueError, match="made.txt: not there"):
        read("made", tree)


@pytest.mark.parametrize("module", catalogue())
def test_every_kernel_module_has_a_list_that_fits_it(module):
    assert read(module)


def test_unknown_name_is_one_line_and_exit_status_2(capsys):
    assert main(["nothing"]) == 2
    assert "'nothing'" in capsys.readouterr().err
