"""Errors for people, and the exit status of a program that ends with one."""

from __future__ import annotations

import argparse
import contextlib
import errno
import math
import os
import sys
import types
import typing
from collections.abc import Callable, Iterable
from typing import TextIO


class UserError(ValueError):
    """An error that the user can fix: its message is one line that says what is wrong and what to do.

    The command line prints it and ends with status 2.
    """


def expect_known(what: str, accepted: Iterable[str], *values: object) -> None:
    """Raises UserError, naming `what` it is, for the first of the values that is not accepted."""
    for value in values:
        if value not in accepted:
            raise UserError(f"{what}: got {value!r}, accepted are {', '.join(accepted)}")


def read(field: str, value: object, kind: type) -> object:
    """A field's value from a string or a Python value, a NumPy or torch scalar included. Raises UserError
    that says what the field takes.
    """
    if hasattr(value, "tolist") and hasattr(value, "ndim"):
        value = value.tolist()
    if typing.get_origin(kind) is types.UnionType:  # of a value and nothing, or of one and several
        one, other = typing.get_args(kind)
        if other is types.NoneType:
            return None if value in (None, "none", "None") else read(field, value, one)
        several = value if isinstance(value, (str, list, tuple)) else (value,)
        items = read(field, several, other)
        return items[0] if len(items) == 1 else items
    if typing.get_origin(kind) is tuple:
        parts = value.split(",") if isinstance(value, str) else value
        if not isinstance(parts, (list, tuple)):
            raise UserError(f"{field}: got {value!r}, accepted is a list such as {field}=1,2,3")
        return tuple(read(field, part, typing.get_args(kind)[0]) for part in parts)
    if kind is bool and isinstance(value, str):
        words = dict.fromkeys(("true", "on", "1", "yes"), True)
        words |= dict.fromkeys(("false", "off", "0", "no"), False)
        value = words.get(value.lower(), value)
    elif kind in (int, float) and isinstance(value, (str, int, float)) and not isinstance(value, bool):
        try:
            number = float(value)
        except (ValueError, OverflowError):
            number = math.nan
        fits = math.isfinite(number) and (kind is float or number.is_integer())
        value = kind(number) if fits else str(value)
    if type(value) is not kind:
        name = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}[kind]
        raise UserError(f"{field}: got {value!r}, accepted is {name}")
    return value


# What an encoding may lack, and how it is then written; everything else becomes a question mark.
PLAIN = str.maketrans(
    {"µ": "u", "→": "->", "…": "...", "–": "-", "×": "x"}
    | dict.fromkeys("─━", "-")
    | dict.fromkeys("│┃", "|")
)
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


class Output:
    """Standard output on which printing always succeeds, but for a reader who has left (BrokenPipeError).

    What its encoding lacks is written plainly. Once it takes no more, a full disk say, a line on standard
    error says so, and the rest goes there; `lost` is then true.
    """

    def __init__(self, stream: TextIO, program: str):
        self.stream, self.program, self.lost = stream, program, False

    def __getattr__(self, name: str):
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        if not self.lost:
            with self._losing():
                try:
                    return self.stream.write(text)
                except UnicodeEncodeError as error:
                    plain = text.translate(PLAIN).encode(error.encoding, "replace").decode(error.encoding)
                    return self.stream.write(plain)
        return sys.stderr.write(text)

    def flush(self) -> None:
        with self._losing():
            self.stream.flush()

    @contextlib.contextmanager
    def _losing(self):
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as error:
            self.lost = True
            self.discard()
            tell(self.program, f"standard output: {error.strerror}; the rest goes here")

    def discard(self) -> None:
        """Drops what is still buffered, for which Python would try again at its end."""
        with contextlib.suppress(OSError, ValueError):  # no file of the system's
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())


def tell(program: str, message: object) -> None:
    """Prints a line on standard error, if that can be."""
    with contextlib.suppress(OSError):
        print(f"{program}: {message}", file=sys.stderr)


def exit_status(program: str, work: Callable[[], int]) -> int:
    """The exit status that `work` returns. A UserError, and a disk without room, prints one line and gives 2,
    Ctrl-C prints one and gives 130; 141 where the output's reader has closed it.
    """
    output = Output(sys.stdout, program)
    with contextlib.redirect_stdout(output):
        try:
            try:
                status = work()
            finally:
                output.flush()
        except UserError as error:
            tell(program, error)
            return 2
        except KeyboardInterrupt:
            tell(program, "interrupted")
            return 130
        except (BrokenPipeError, SystemExit) as error:
            if isinstance(error, SystemExit) and not isinstance(error.__context__, BrokenPipeError):
                raise
            output.discard()  # rich makes a SystemExit of a closed pipe
            return 141
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            tell(program, f"cannot write {error.filename or 'a file'}: {error.strerror}; make room for it")
            return 2
    return 2 if output.lost else status


class Options(argparse.Namespace):
    """The options of a command line. `given` are those that stand there: name -> how it is written."""

    given: dict[str, str] = {}

    def only(self, read: Iterable[str], why: str) -> None:
        """Raises UserError for an option that was given but is none of those that are `read`: it would do
        nothing, and `why` says so.
        """
        self.without(self.given.keys() - {*read}, why)

    def without(self, unread: Iterable[str], why: str) -> None:
        """Raises UserError for one of these options that was given: here none of them is read."""
        for name, written in self.given.items():
            if name in unread:
                raise UserError(f"{written}: {why}; leave {written} out")


class Parser(argparse.ArgumentParser):
    """A parser whose errors are UserErrors, one line each. Its help is its description, where it has one; its
    result are `Options`.
    """

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, allow_abbrev=False, **options)

    def error(self, message: str) -> typing.NoReturn:
        raise UserError(" ".join(message.split()))

    def format_help(self) -> str:
        return self.description or super().format_help()

    def add_json(self) -> None:
        """Adds `--json [FILE|-]`; alone it is -, standard output."""
        self.add_argument("--json", nargs="?", const="-", metavar="FILE|-")

    def parse_known_args(self, args=None, namespace=None):
        return self._noting(super().parse_known_args, args, namespace)

    def parse_known_intermixed_args(self, args=None, namespace=None):
        return self._noting(super().parse_known_intermixed_args, args, namespace)

    def _noting(self, parse: Callable, args, namespace) -> tuple[Options, list[str]]:
        """What argparse makes of a command line, and which options stand there."""
        words = sys.argv[1:] if args is None else [*args]
        options, rest = parse(words, Options() if namespace is None else namespace)
        flags = {word.partition("=")[0] for word in words[: words.index("--") if "--" in words else None]}
        given = dict(getattr(options, "given", {}))
        for action in self._actions:
            if written := flags.intersection(action.option_strings):
                given[action.dest] = max(written, key=len)
            elif not action.option_strings and action.nargs != argparse.PARSER:  # a positional one
                empty = getattr(options, action.dest, None) in (None, [], action.default)
                given |= {} if empty else {action.dest: action.metavar or action.dest.upper()}
        options.given = given
        return options, rest


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
