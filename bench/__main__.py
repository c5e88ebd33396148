"""`python -m bench`: the microbenchmark; `python -m bench gate`: the speed gate."""

import signal
import sys


def main() -> int:
    """The exit status of either, which a kill ends as Ctrl-C does."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if sys.argv[1:2] == ["gate"]:
        from . import gate

        return gate.main(sys.argv[2:])
    from . import cli

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
