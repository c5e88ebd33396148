"""`python -m bench`: the microbenchmark, and the commands beside it; `python -m bench --help` lists them."""

import importlib
import signal
import sys
import time
from pathlib import Path

BEGAN = time.time()  # importing torch is in the minutes of a card
# First word -> module whose `main` takes the words after it. Any other word goes to the microbenchmark.
COMMANDS = {
    "card": "card.cli",
    "check": "check.cli",
    "gate": "gate.cli",
    "halving": "sweeps.simulation",
    "pace": "expect.pace",
    "pairs": "pairs",
    "report": "report.cli",
    "times": "expect.times",
    "tune": "tune.cli",
}
# Command, and option, of what needs more than a package: tests, records, baselines, the pages with tables.
OF_A_CHECKOUT = (("card",), ("gate",), ("report", "--markdown"))
CHECKOUT = Path(__file__).parents[1] / "setup.py"


def main(arguments: list[str] | None = None) -> int:
    """Runs a command; returns its exit status. SIGTERM interrupts it as Ctrl-C does."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    arguments = sys.argv[1:] if arguments is None else arguments
    for words in () if CHECKOUT.exists() else OF_A_CHECKOUT:
        if arguments[:1] == [words[0]] and {*words} <= {*arguments}:
            print(f"bench {' '.join(words)}: needs a checkout of hlb; run it there", file=sys.stderr)
            return 2
    if arguments[:1] == ["card"]:
        from .card import cli as card

        return card.main(arguments[1:], BEGAN)
    if arguments and arguments[0] in COMMANDS:
        return importlib.import_module(f"bench.{COMMANDS[arguments[0]]}").main(arguments[1:])
    from . import cli

    return cli.main(arguments)


if __name__ == "__main__":
    sys.exit(main())
