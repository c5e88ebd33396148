"""Builds every configuration of trains.py once, for the caches: `python -m bench.card.building CONTEXT`.

Each is a process of trainee.py; a few are built side by side, in the order of worth.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

from .runner import ROOT
from .steps import Context, result, say
from .trains import Configuration, command, wanted

CPUS = 8  # to a build: Inductor compiles in processes of its own


def build(one: Configuration, context: Context) -> subprocess.Popen:
    """A process that builds a configuration, and ends."""
    quiet = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    return subprocess.Popen(command(one, context, build=True), cwd=ROOT, **quiet)


def main(context: Context) -> None:
    """Builds them all; reports the seconds of each build, or how it ended."""
    waiting, running, builds = list(wanted(context)), {}, {}
    together = max(1, len(os.sched_getaffinity(0)) // CPUS)
    while waiting or running:
        while waiting and len(running) < together:
            one = waiting.pop(0)
            running[one] = time.time(), build(one, context)
        for one, (began, child) in list(running.items()):
            if (status := child.poll()) is not None:
                del running[one]
                builds[one.name] = time.time() - began if status == 0 else f"ended with status {status}"
                say(f"built {one.name}: {builds[one.name] if status else f'{builds[one.name]:.0f} s'}")
                result({"builds": builds})
        time.sleep(0.2)


if __name__ == "__main__":
    main(Context.parsed(sys.argv[1]))
