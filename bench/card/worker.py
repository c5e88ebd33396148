"""A pytest process that runs the tests that it is told: `python -m bench.card.worker FILE ...`.

It says {"collected": [names]}, and for each line {"run": name} how that test ended, a line each. Where
hypothesis is not installed, the tests that draw from it are skipped, and say so.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import sys
from types import ModuleType, SimpleNamespace

import pytest

LONGEST = 300  # characters of why a test failed


def without_hypothesis() -> None:
    """Puts a stand-in in its place, enough for test modules to be imported."""
    module = ModuleType("hypothesis")
    skip = pytest.mark.skip(reason="hypothesis is not installed")

    class Anything:
        """Its attributes and calls are itself."""

        def __call__(self, *_, **__):
            return self

        def __getattr__(self, name):
            return self

    def given(*_, **__):
        def mark(test):
            @skip
            def skipped():
                pass

            skipped.__name__ = test.__name__
            return skipped

        return mark

    def settings(*_, **__):
        return lambda test: test

    settings.register_profile = settings.load_profile = lambda *_, **__: None
    module.given, module.settings, module.strategies = given, settings, Anything()
    module.HealthCheck = module.assume = module.example = Anything()
    sys.modules["hypothesis"] = module
    sys.modules["hypothesis.strategies"] = module.strategies


class Told:
    """The plugin: runs the tests that it is told on stdin, one at a time."""

    def __init__(self, answers):
        self.answers, self.reports = answers, []

    def say(self, **said) -> None:
        print(json.dumps(said), file=self.answers, flush=True)

    def pytest_runtest_logreport(self, report) -> None:
        self.reports.append(report)

    def pytest_runtestloop(self, session) -> bool:
        items = {item.nodeid: item for item in session.items}
        self.say(collected=list(items))
        for line in sys.stdin:
            item, self.reports = items[json.loads(line)["run"]], []
            session.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
            self.say(**ended(self.reports))
        return True


def ended(reports) -> dict[str, str]:
    """The outcome of a test from the reports of its phases, and why it failed or was skipped, in a line."""
    worst = next((one for one in reports if one.failed), None) or next(
        (o for o in reports if o.skipped), None
    )
    if worst is None:
        return {"outcome": "passed"}
    text = worst.longrepr[2] if isinstance(worst.longrepr, tuple) else reason(worst.longrepr)
    return {"outcome": worst.outcome, "why": text.strip()[:LONGEST]}


def reason(longrepr) -> str:
    """The message of a failure's exception, in a line."""
    crash = getattr(longrepr, "reprcrash", None) or SimpleNamespace(message=str(longrepr))
    lines = [line.strip() for line in crash.message.splitlines() if line.strip()]
    return " ... ".join(lines[:2])


def main(files: list[str]) -> int:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if importlib.util.find_spec("hypothesis") is None:
        without_hypothesis()
    options = ["-q", "-p", "no:cacheprovider", "--capture=no"]
    if importlib.util.find_spec("xdist") is not None:
        options += ["-p", "no:xdist"]
    with contextlib.redirect_stdout(sys.stderr):
        return pytest.main([*options, *files], plugins=[Told(answers)])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
