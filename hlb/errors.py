"""Errors that are for people, and the exit status of what ended with one."""

import argparse
import os
import sys
import typing
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


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, a UserError's; with a description, that is its help."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, allow_abbrev=False, **options)

    def error(self, message: str) -> typing.NoReturn:
        raise UserError(message)

    def format_help(self) -> str:
        return self.description or super().format_help()


def whole(text: str) -> int:
    """An option's whole number; argparse names the option when it is none."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}, accepted is a whole number") from None


def positive(text: str) -> int:
    """An option's whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, accepted is a whole number above 0")
    return int(text)
