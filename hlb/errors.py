"""Errors for people, and the exit status of a program that ends with one."""

import argparse
import os
import sys
import typing
from collections.abc import Callable, Iterable


class UserError(ValueError):
    """An error that the user can fix: its message is one line that says what is wrong and what to do.

    The command line prints it and ends with status 2.
    """


def expect_known(what: str, accepted: Iterable[str], *values: object) -> None:
    """Raises UserError, naming `what` it is, for the first of the values that is not accepted."""
    for value in values:
        if value not in accepted:
            raise UserError(f"{what}: got {value!r}, accepted are {', '.join(accepted)}")


def exit_status(program: str, work: Callable[[], int]) -> int:
    """The exit status that `work` returns. A UserError prints one line and gives 2, Ctrl-C prints one and
    gives 130; 141 where the output's reader has closed it.
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
    """A parser whose errors are UserErrors, one line each. Its help is its description, where it has one."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, allow_abbrev=False, **options)

    def error(self, message: str) -> typing.NoReturn:
        raise UserError(message)

    def format_help(self) -> str:
        return self.description or super().format_help()


def whole(text: str) -> int:
    """Parses an option's whole number; argparse adds the option's name to the error."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}, accepted is a whole number") from None


def positive(text: str) -> int:
    """Parses an option's whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, accepted is a whole number above 0")
    return int(text)
