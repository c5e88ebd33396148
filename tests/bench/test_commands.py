"""Every command of `python -m bench`: its help, a mistake in its words, and what older words are answered."""

import runpy

import pytest

import bench.__main__
import hlb.cli
import kernels.__main__
from bench import cli

COMMANDS = [*bench.__main__.COMMANDS, *filter(None, cli.MODES)]


def ended(call, capsys) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a program, whether it returns the status or exits with it."""
    try:
        status = call()
    except SystemExit as stop:
        status = stop.code
    return status or 0, *capsys.readouterr()


@pytest.fixture
def run(capsys, monkeypatch):
    """`python -m bench` with these words, in this process."""
    monkeypatch.setattr(bench.__main__.signal, "signal", lambda *_: None)
    return lambda *words: ended(lambda: bench.__main__.main(list(words)), capsys)


@pytest.mark.parametrize("words", [[], *([command] for command in COMMANDS)], ids=" ".join)
def test_help_is_written_by_hand_and_fits_80_columns(run, words):
    status, out, err = run(*words, "--help")
    assert (status, err) == (0, "")
    assert out.startswith(f"usage: python -m bench {' '.join(words)}".rstrip() + " ")
    assert "show this help message" not in out  # argparse's own
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize("words", [[], *([command] for command in COMMANDS)], ids=" ".join)
def test_an_unknown_option_is_one_line_that_names_command_and_option(run, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    needed = {"asm": ["ptx"], "pace": ["a", "b"], "pairs": ["a", "b"], "trace": ["file"], "vs": ["ref"]}
    status, out, err = run(*words, *needed.get("".join(words), ()), "--no-such-option")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err == f"{' '.join(['bench', *words])}: unrecognized arguments: --no-such-option\n"
    assert list(tmp_path.iterdir()) == []


MOVED = {
    "python -m bench.pairs": (
        lambda: runpy.run_module("bench.pairs", run_name="__main__"),
        "bench.pairs: this is now `python -m bench pairs`",
    ),
    "python -m kernels check": (
        lambda: kernels.__main__.main(["check", "sgd"]),
        "kernels: check is now `python -m bench check`",
    ),
    "python -m kernels tune": (
        lambda: kernels.__main__.main(["tune", "--all"]),
        "kernels: tune is now `python -m bench tune`",
    ),
    "hlb report": (
        lambda: hlb.cli.main(["report", "a.jsonl"]),
        "hlb: report is now `python -m bench report`",
    ),
    **{
        f"python -m bench {option}": (
            lambda option=option: bench.__main__.main([option, "sgd"]),
            f"bench: {option} is now `python -m bench {now} NAME`",
        )
        for option, now in {
            "--asm": "asm STAGE",
            "--trace": "trace FILE",
            "--ncu": "ncu",
            "--vs": "vs REF",
        }.items()
    },
}


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("command", MOVED)
def test_a_command_that_moved_says_in_one_line_where_to(command, capsys, monkeypatch):
    monkeypatch.setattr(bench.__main__.signal, "signal", lambda *_: None)
    call, line = MOVED[command]
    assert ended(call, capsys) == (2, "", f"{line}\n")
