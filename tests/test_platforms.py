"""Off Linux: nothing that only POSIX has is needed to import, train, save and predict; CI runs it there."""

from __future__ import annotations

import ast
import importlib
import os
import re
import signal
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Of the modules and functions that Python has on POSIX only, as its documentation says.
MODULES = ("crypt", "fcntl", "grp", "nis", "posix", "pty", "pwd", "readline", "resource", "spwd", "syslog",
           "termios", "tty")  # fmt: skip
FUNCTIONS = {
    "os": (
        "chown", "chroot", "ctermid", "fchmod", "fchown", "fork", "forkpty", "getegid", "geteuid",
        "getgid", "getgroups", "getloadavg", "getpgid", "getpgrp", "getpriority", "getresuid", "getsid",
        "getuid", "killpg", "lchown", "mkfifo", "mknod", "nice", "openpty", "posix_fadvise",
        "posix_fallocate", "posix_spawn", "pread", "pwrite", "sched_getaffinity", "sched_setaffinity",
        "sched_yield", "sendfile", "setpgid", "setpriority", "setsid", "setuid", "statvfs", "sync",
        "sysconf", "tcgetpgrp", "uname", "wait", "wait3", "wait4", "waitid"
    ),
    "signal": (
        "SIGALRM", "SIGCHLD", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGQUIT", "SIGSTOP", "SIGUSR1",
        "SIGUSR2", "alarm", "pause", "pthread_kill", "pthread_sigmask", "setitimer", "siginterrupt",
        "sigwait"
    ),
}  # fmt: skip
LINUX = ROOT / "bench" / "card"  # says at once that it needs Linux
TINY = {"base_depth": 4, "train_examples": 120, "batch_size": 40, "eval_batch_size": 60, "epochs": 1.0,
        "whiten_images": 50, "dtype": "float32", "groups": "short", "group_widths": "1"}  # fmt: skip


def posix_only(tree: ast.AST) -> set[str]:
    """What a module needs that only POSIX has: imports without a way out, and functions and signals without a
    test that they are there.
    """
    found, guarded = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Try):
            caught = {name.id for handler in node.handlers for name in ast.walk(handler.type or handler)
                      if isinstance(name, ast.Name)}  # fmt: skip
            if caught & {"ImportError", "ModuleNotFoundError"}:
                guarded |= {id(inner) for statement in node.body for inner in ast.walk(statement)}
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "hasattr":
            guarded.add(re.sub(r"hasattr\((\w+), '(\w+)'\)", r"\1.\2", ast.unparse(node)))
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)) and id(node) not in guarded:
            level = getattr(node, "level", 0)
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module]
            found |= {name for name in names if not level and name.split(".")[0] in MODULES}
            if isinstance(node, ast.ImportFrom) and node.module in FUNCTIONS and not level:
                of = FUNCTIONS[node.module]
                found |= {f"{node.module}.{alias.name}" for alias in node.names if alias.name in of}
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name = f"{node.value.id}.{node.attr}"
            if node.attr in FUNCTIONS.get(node.value.id, ()) and name not in guarded:
                found.add(name)
    return found


def test_no_module_needs_what_only_posix_has():
    paths = [path for top in ("hlb", "kernels", "bench", "examples") for path in (ROOT / top).rglob("*.py")]
    found = {
        path.relative_to(ROOT).as_posix(): names
        for path in paths
        if LINUX not in path.parents and (names := posix_only(ast.parse(path.read_text(encoding="utf-8"))))
    }
    assert len(paths) > 100 and not found


@pytest.mark.parametrize("text, names", [
    ("import resource", {"resource"}), ("from fcntl import flock", {"fcntl"}),
    ("import os\nos.uname()", {"os.uname"}), ("import signal\nsignal.SIGKILL", {"signal.SIGKILL"}),
    ("from os import fork", {"os.fork"}), ("def f():\n import pwd", {"pwd"}),
    ("try:\n import resource\nexcept ImportError:\n resource = None", set()),
    ("try:\n import resource\nexcept OSError:\n resource = None", {"resource"}),
    ("len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else 1", set()),
    ("from .resource import x\nimport os\nos.replace", set()),
])  # fmt: skip
def test_what_only_posix_has_is_seen(text, names):
    assert posix_only(ast.parse(text)) == names


@pytest.fixture
def windows(tmp_path, monkeypatch):
    """hlb as it is imported where POSIX's modules, functions and signals are not there."""
    for name in MODULES:
        monkeypatch.setitem(sys.modules, name, None)
    for module in (os, signal):
        for name in FUNCTIONS[module.__name__]:
            if not name.startswith("wait"):  # a subprocess of this system needs it
                monkeypatch.delattr(module, name, raising=False)
    ours = [name for name in sys.modules if name.split(".")[0] == "hlb"]
    for name in ours:
        monkeypatch.delitem(sys.modules, name)
    yield importlib.import_module("hlb")
    for name in [name for name in sys.modules if name.split(".")[0] == "hlb"]:
        del sys.modules[name]


def test_smoke_trains_is_saved_and_predicts_without_what_only_posix_has(windows, tmp_path, capsys):
    hlb, main = windows, importlib.import_module("hlb.cli").main
    synthetic = importlib.import_module("hlb.synthetic")
    data = hlb.Dataset("synthetic", synthetic.make(120, 60))
    ledger, path = tmp_path / "ledger.jsonl", tmp_path / "model.pt"
    result = hlb.train("smoke", settings=TINY, data=data, runs=2, ledger=ledger, save=path)
    assert result.memory == {"allocated": None, "reserved": None, "resident": None}
    shown = capsys.readouterr().out
    assert "wall clock of the process" in shown and "peak memory" not in shown
    assert len(ledger.read_text().splitlines()) == 2
    assert hlb.load(path).predict(data.tensors[2]).shape == (60,)
    assert main(["env"]) == main(["recipes"]) == main(["compare", str(ledger), str(ledger)]) == 0
    assert importlib.import_module("hlb.execution").cpus() == os.cpu_count()


def test_a_card_off_linux_is_one_line(monkeypatch, capsys):
    from bench.card import cli

    monkeypatch.setattr(sys, "platform", "win32")
    assert cli.main(["--toy"]) == 2
    assert "runs on Linux, this is win32" in capsys.readouterr().err


def test_nothing_is_compiled_where_there_is_no_triton_to_compile_with(monkeypatch):
    from hlb import execution, recipe

    monkeypatch.setattr(execution, "available", lambda device: True)
    compiled = []
    for there in (True, False):
        monkeypatch.setattr(execution.launch, "INSTALLED", there)
        compiled.append(
            execution.resolve(recipe("seed"), execution.Execution(device="cuda", kernels="reference"))[
                1
            ].compile
        )
    assert compiled == ["on", "off"]
