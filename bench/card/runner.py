"""A step as a process: shown while it runs, ended at its limit, and with it all that it started."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
GRACE = 3.0  # seconds between being asked to end and being ended
KEPT = 20  # last lines of a step that the card keeps


class Process:
    """A command in a process group of its own, whose lines are told to `show`, in a thread, as they come."""

    def __init__(self, command: list[str], show: Callable[[str], None], environment: dict[str, str]):
        self.lines: list[str] = []
        self.result: dict | None = None
        self.child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            cwd=ROOT,
            env=environment,
            start_new_session=True,
        )
        self.reader = threading.Thread(target=self._read, args=(show,), daemon=True)
        self.reader.start()

    def _read(self, show: Callable[[str], None]) -> None:
        for line in self.child.stdout:
            line = line.rstrip()
            if (part := as_object(line)) is not None:
                self.result = (self.result or {}) | part
            elif line:
                self.lines = [*self.lines, line][-KEPT:]
                show(line)

    def wait(self, seconds: float) -> int | None:
        """The exit status; None where it had to be ended."""
        try:
            return self.child.wait(max(0.0, seconds))
        except subprocess.TimeoutExpired:
            return None
        finally:
            self.end()

    def end(self) -> None:
        """Ends what still runs of the group, first by asking."""
        for number, patience in ((signal.SIGTERM, GRACE), (signal.SIGKILL, GRACE)):
            if self.child.poll() is None or number == signal.SIGKILL:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.child.pid, number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.child.wait(patience)
        self.reader.join(GRACE)


def as_object(line: str) -> dict | None:
    """A line that is a JSON object; None for any other."""
    if not line.startswith("{"):
        return None
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def step(name: str, context, show: Callable[[str], None]) -> dict:
    """Runs a step: what the card keeps of it. `state` is ended, stopped (at its limit), or failed."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    if context.toy:
        environment["TRITON_INTERPRET"] = "1"
    began, allowed = time.time(), context.left()
    command = [sys.executable, "-m", f"{__package__}.steps", name, context.json()]
    process = Process(command, show, environment)
    try:
        status = process.wait(allowed)
    except BaseException:
        process.end()
        raise
    state = "stopped" if status is None else "failed" if status else "ended"
    return {
        "state": state,
        "status": status,
        "seconds": time.time() - began,
        "limit": allowed,
        "lines": process.lines,
        "result": process.result,
    }
