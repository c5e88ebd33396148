"""Step 3: the kernel tests, those first that say most, by a pool of pytest processes.

Each process (worker.py) has collected all tests and runs the one that it is given, then the next, so that
none waits for a slow one. A process that dies, hangs or loses its device takes one test with it and is
replaced. Results are in tests.json within seconds.
"""

from __future__ import annotations

import json
import os
import queue
import random
import re
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from pathlib import Path

from hlb.runs import ledger

from .runner import ROOT, as_object
from .steps import Context, result, say

FILES = (
    "tests/kernels/test_kernels.py",
    "tests/kernels/test_float8.py",
    "tests/kernels/test_conv_bn_act.py",
    "tests/kernels/test_window_passes.py",
    "tests/kernels/test_window_gradients.py",
    "tests/kernels/test_norm_act.py",
    "tests/kernels/test_cross_entropy.py",
    "tests/kernels/test_scatter_losses.py",
    "tests/kernels/base/test_sums.py",
    "tests/kernels/test_arrival.py",
    "tests/kernels/test_stem.py",
    "tests/kernels/test_patch_covariance.py",
    "tests/kernels/test_random.py",
    "tests/kernels/test_views.py",
    "tests/hlb/test_graph.py",
)
TOY_FILES = ("tests/kernels/test_stem.py",)
SEED = 0  # of the order of the small tests
WORKERS = 8  # at most: they share the device's memory
TEST_SECONDS = 60.0  # after which a test hangs
WRITE_SECONDS = 2.0  # between writes of the file
SHAPES = "test_recipe_shapes_agree_with_the_reference_in_float64["
LOST = re.compile("CUDA error|illegal memory access|device-side assert", re.IGNORECASE)
WRONG = ("failed", "died", "hung")


def ordered(tests: list[str]) -> list[str]:
    """The tests by worth: the recipes' shapes in float16, of each op the first, then of each the second;
    other dtypes, and what is captured; then the small ones, in an order that chance gives and SEED repeats.
    """
    place = list(range(len(tests)))
    random.Random(SEED).shuffle(place)
    seen: Counter[str] = Counter()

    def worth(i: int) -> tuple[int, int]:
        _, shape, case = tests[i].partition(SHAPES)
        if shape and case.endswith("-float16]"):
            op = case.split("-")[0]
            seen[op] += 1
            return 0, seen[op]
        return (1, i) if shape or "test_graph" in tests[i] else (2, place[i])

    return [tests[i] for _, i in sorted((worth(i), i) for i in range(len(tests)))]


class Worker:
    """A pytest process that has collected the tests."""

    def __init__(self, files: tuple[str, ...]):
        self.answers: queue.Queue = queue.Queue()
        self.child = subprocess.Popen(
            self.command(files),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=ROOT,
        )
        threading.Thread(target=self._listen, daemon=True).start()

    def command(self, files: tuple[str, ...]) -> list[str]:
        return [sys.executable, "-m", f"{__package__}.worker", *files]

    def _listen(self) -> None:
        for line in self.child.stdout:
            if (reply := as_object(line)) is not None:
                self.answers.put(reply)
        self.answers.put(None)

    def collected(self) -> list[str] | None:
        """The tests; None where it could not collect them."""
        return (self.answers.get() or {}).get("collected")

    def run(self, test: str) -> dict:
        """Runs a test: its outcome. A worker that can run no other is ended."""
        began = time.time()
        try:
            self.child.stdin.write(json.dumps({"run": test}) + "\n")
            self.child.stdin.flush()
            reply = self.answers.get(timeout=TEST_SECONDS)
        except BrokenPipeError:
            reply = None
        except queue.Empty:
            reply = {"outcome": "hung", "why": f"more than {TEST_SECONDS:.0f} s"}
        if reply is None:
            reply = {"outcome": "died", "why": f"its process ended with status {self.child.wait()}"}
        if reply["outcome"] in ("hung", "died") or LOST.search(reply.get("why", "")):
            self.end()
        return {**reply, "seconds": time.time() - began}

    @property
    def alive(self) -> bool:
        return self.child.poll() is None

    def end(self) -> None:
        self.child.kill()
        self.child.wait()


class Pool:
    """The tests that wait, those that ended, and the workers between them."""

    def __init__(self, context: Context, files: tuple[str, ...], workers: int):
        self.context, self.files = context, files
        self.file: Path = context.folder.tests
        self.ended: dict[str, dict] = context.folder.read(self.file).get("tests", {})
        self.lock, self.waiting, self.collected = threading.Lock(), None, 0
        self.written = time.time()
        self.threads = [threading.Thread(target=self._work, daemon=True) for _ in range(workers)]

    def run(self) -> None:
        for thread in self.threads:
            thread.start()
        for thread in self.threads:
            thread.join(max(0.0, self.context.left()))
        self.write()

    def _work(self) -> None:
        worker = Worker(self.files)
        while (tests := worker.collected()) is not None:
            with self.lock:
                if self.waiting is None:
                    self.collected = len(tests)
                    left = [test for test in ordered(tests) if test not in self.ended]
                    self.waiting = deque(left)
                    say(f"{len(tests)} tests collected, {len(left)} to run")
            while worker.alive and self.context.left() > 0 and (test := self._next()):
                self._note(test, worker.run(test))
            if worker.alive:
                worker.end()
                return
            worker = Worker(self.files)

    def _next(self) -> str | None:
        with self.lock:
            return self.waiting.popleft() if self.waiting else None

    def _note(self, test: str, ending: dict) -> None:
        with self.lock:
            self.ended[test] = ending
            if ending["outcome"] in WRONG:
                say(f"{ending['outcome'].upper()} {test}: {ending['why']}")
            if time.time() > self.written + WRITE_SECONDS:
                self._write()

    def write(self) -> None:
        with self.lock:
            self._write()

    def _write(self) -> None:
        self.written = time.time()
        ledger.write(self.file, {"collected": self.collected, "tests": self.ended})
        result(self.counts())

    def counts(self) -> dict[str, int]:
        return dict(Counter(one["outcome"] for one in self.ended.values())) | {"collected": self.collected}


def run(context: Context) -> int:
    workers = min(WORKERS, max(1, len(os.sched_getaffinity(0)) // 2))
    pool = Pool(context, TOY_FILES if context.toy else FILES, 1 if context.toy else workers)
    pool.run()
    counts = pool.counts()
    of = counts.pop("collected")
    say(f"{', '.join(f'{count} {outcome}' for outcome, count in counts.items()) or 'none'} of {of}")
    if not pool.collected:
        say("no tests were collected: is pytest installed?")
    return int(not pool.collected)
