"""`python -m bench`: the microbenchmark; `bench gate`: the speed gate; `bench card`: all of it on a new
GPU.
"""

import signal
import sys
import time


def main() -> int:
    """The exit status of any, which a kill ends as Ctrl-C does."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if sys.argv[1:2] == ["gate"]:
        from . import gate

        return gate.main(sys.argv[2:])
    if sys.argv[1:2] == ["card"]:
        began = time.time()  # importing torch is in the card's minutes
        from .card import cli as card

        return card.main(sys.argv[2:], began)
    from . import cli

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
