"""`python -m bench`: the microbenchmark; `python -m bench gate`: the speed gate."""

import os
import signal
import sys


def main() -> int:
    """The exit status of either, or 130 after Ctrl-C or a kill."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if sys.argv[1:2] == ["gate"]:
            from . import gate

            return gate.main(sys.argv[2:])
        from . import cli

        return cli.main()
    except KeyboardInterrupt:
        print("bench: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read our output has left; what is still buffered goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


if __name__ == "__main__":
    sys.exit(main())
