"""The options of each command of `hlb`."""

from __future__ import annotations

import typing

from .. import __version__, errors
from ..errors import UserError, whole
from ..execution import COMPILE, GRAPHS
from ..ranges import DTYPES
from ..runs.ledger import DEFAULT as LEDGER
from ..study.compare import HELP as COMPARE
from ..study.sweep import HELP as SWEEP
from . import help


class Parser(errors.Parser):
    """A command's; its errors say where help is."""

    def error(self, message: str) -> typing.NoReturn:
        command = "" if self.prog in ("hlb", "hlb train") else f"{self.prog.partition(' ')[2]} "
        raise UserError(f"{' '.join(message.split())}; `hlb {command}--help` shows what there is")


def parser() -> Parser:
    """The parser of all commands; `command` is the one that was named."""
    top = Parser(prog="hlb", description=help.page(help.TRAIN))
    top.add_argument("--version", action="version", version=f"hlb {__version__}")
    commands = top.add_subparsers(dest="command", parser_class=Parser)

    shared = Parser(add_help=False)
    shared.add_argument("--data", default="auto")
    shared.add_argument("--device", default="auto")
    shared.add_argument("--dtype", choices=("auto", *DTYPES))
    shared.add_argument("--threads", type=whole, default=0)
    shared.add_argument("--channels-last", choices=("on", "off"), default="on")
    shared.add_argument("--quiet", action="store_true")
    shared.add_json()

    training = Parser(add_help=False)
    training.add_argument("--recipe")
    training.add_argument("--set", nargs="+", action="extend", default=[], metavar="FIELD=VALUE")
    training.add_argument("--graph", choices=GRAPHS, default="auto")
    training.add_argument("--kernels", default="auto")
    training.add_argument("--seed", type=whole, default=0)
    training.add_argument("--deterministic", action="store_true")

    run = commands.add_parser("train", parents=[shared, training], description=help.page(help.TRAIN))
    run.add_argument("--compile", choices=COMPILE, default="auto")
    run.add_argument("--runs", type=whole, default=1)
    run.add_argument("--epochs")
    run.add_argument("--eval-every", type=whole, default=1)
    run.add_argument("--ledger", default=str(LEDGER))
    run.add_argument("--save")
    run.add_argument("--profile", metavar="FILE")

    grid = commands.add_parser("sweep", parents=[shared, training], description=SWEEP)
    grid.add_argument("--compile", choices=COMPILE, default="auto")
    grid.add_argument("--runs", type=whole)
    grid.add_argument("--random", type=whole, metavar="K")
    grid.add_argument("--grid", metavar="NAME")
    grid.add_argument("--eval-every", type=whole, default=0)
    grid.add_argument("--ledger")
    grid.add_argument("--shard", action="store_true")

    pair = commands.add_parser("compare", description=COMPARE)
    pair.add_argument("A")
    pair.add_argument("B")
    pair.add_argument("--pool", action="store_true")
    pair.add_json()

    test = commands.add_parser("eval", parents=[shared], description=help.page(help.EVAL))
    test.add_argument("model")
    test.add_argument("--views")

    commands.add_parser("audit", parents=[shared, training], description=help.page(help.AUDIT))

    costs = commands.add_parser("recipes", description=help.page(help.RECIPE))
    costs.add_argument("name", nargs="?")
    costs.add_argument("--set", nargs="+", action="extend", default=[], metavar="FIELD=VALUE")
    costs.add_argument("--kernels")
    costs.add_json()

    commands.add_parser("env", description=help.page(help.ENV)).add_json()
    return top
