"""Foreign scripts, one after the other, each alone on the machine, behind the lock. The last line of a script
that is a JSON object is kept as it is, a line of runs.jsonl beside ours.
"""

from __future__ import annotations

import subprocess
import time

from hlb.runs import ledger

from . import lock
from .runner import as_object
from .steps import Context, result, say


def run(context: Context) -> int:
    outcomes = {}
    for i, (name, command) in enumerate(context.peers):
        allowed = context.left() / (len(context.peers) - i)
        line = {"peer": name, "command": command, **ran(command, allowed)}
        ledger.append(context.folder.runs, line)
        outcomes[name] = {key: line[key] for key in ("status", "seconds", "said")}
        say(f"{name}: {'ended with status ' + str(line['status']) if line['status'] else line['said']}")
        result(outcomes)
    return int(any(one["status"] for one in outcomes.values()))


def ran(command: str, allowed: float) -> dict:
    """Runs a command: its last JSON object, its exit status or "stopped", and its seconds."""
    with lock.alone():
        began = time.time()
        try:
            done = subprocess.run(
                command, shell=True, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=allowed
            )
            status, out = done.returncode, done.stdout
        except subprocess.TimeoutExpired as error:
            status, out = "stopped", (error.stdout or b"").decode(errors="replace")
        seconds = time.time() - began
    said = [reply for line in out.splitlines() if (reply := as_object(line.strip())) is not None]
    return {"status": status, "seconds": seconds, "said": said[-1] if said else None}
