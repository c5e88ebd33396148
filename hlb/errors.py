"""Errors that are for people, and the exit status of what ended with one."""

import os
import sys
from collections.abc import Callable


class UserError(ValueError):
    """Something the user can mend: its message is one line that says what is wrong and what to do.

    The command line prints it and ends with status 2.
    """


def exit_status(program: str, work: Callable[[], int]) -> int:
    """The exit status that `work` returns; with a line that begins with the program's name 2 for a UserError
    and 130 after Ctrl-C; 141 where whoever read the output has left.
    """
    try:
        return work()
    except UserError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # what is still buffered goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
