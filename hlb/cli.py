"""The command line: `hlb train`, sweep, compare, eval, recipes, env. Without a command it trains."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import textwrap
import typing

from rich.console import Console

from . import STARTED, __version__, audit, errors
from .cost import profiling, show
from .data import FOLDER, cache_dir, load
from .errors import UserError, exit_status, whole
from .evaluate import evaluate
from .execution import COMPILE, GRAPHS, Execution, apply, available, out_of_memory_explained, resolve
from .files import check_output
from .recipes import DTYPES, RECIPES
from .runs import checkpoint, environment, ledger
from .runs.display import duration, print_table
from .runs.experiment import begin, default, train
from .runs.ledger import DEFAULT as LEDGER
from .settings import recipe
from .study.compare import HELP as COMPARE_HELP
from .study.compare import chosen, compare
from .study.compare import show as show_comparison
from .study.grid import READY
from .study.shard import expect_alone
from .study.sweep import HELP as SWEEP_HELP
from .study.sweep import default_ledger, sweep
from .train import Clock, Trainer

HELP = """\
usage: hlb [train] [options] | hlb eval MODEL | hlb recipes [NAME] | hlb env
       hlb sweep [options] | hlb compare A B | hlb audit   (--help)

Trains a network on CIFAR-10; alone record94, on a CPU cpu94. Reports the time.

  --recipe NAME   {recipes}
  --set FIELD=VALUE   change fields of the recipe (see `hlb recipes NAME`)
  --data WHAT         auto, cifar10, synthetic, or a folder (as torchvision's)
  --device NAME       auto, {devices}
  --dtype NAME        auto, {dtypes}
  --epochs N  --runs N  --seed N      run i trains from seed N + i
  --eval-every N      validate every N epochs, off the clock; 0 is never
  --compile on|off  --graph off|step|run   (GPU: on, step; triton: off, step)
  --kernels NAME      reference, triton, tuned (auto); or triton,sgd=reference
  --channels-last on|off  --threads N  --deterministic  --quiet
  --json FILE|-  --ledger FILE  --save MODEL  --profile FILE (a step, op by op)

  hlb                                              the main job
  hlb --recipe seed --runs 5 --json out.json
  hlb sweep --set lr=0.2,0.24,0.3 --runs 20        which rate is better
  hlb --recipe seed --set base_depth=128 epochs=80     hlb-CIFAR10's long run
  hlb --recipe smoke --data synthetic              seconds, and needs no data
  hlb --save model.pt && hlb eval model.pt --views flip
  hlb recipes seed --kernels triton         what its steps launch, do and move
"""


class Parser(errors.Parser):
    """A command's; its errors say where help is."""

    def error(self, message: str) -> typing.NoReturn:
        raise UserError(f"{message}; `hlb --help` shows what there is")

    def format_help(self) -> str:
        return self.description or HELP.format(
            recipes=textwrap.shorten(", ".join(RECIPES), 62, placeholder=" ..."),
            devices="cpu, cuda, mps",
            dtypes=", ".join(DTYPES),
        )


def parser() -> Parser:
    """The parser of all commands."""
    top = Parser(prog="hlb")
    top.add_argument("--version", action="version", version=f"hlb {__version__}")
    commands = top.add_subparsers(dest="command", parser_class=Parser)

    shared = Parser(add_help=False)
    shared.add_argument("--data", default="auto")
    shared.add_argument("--device", default="auto")
    shared.add_argument("--dtype", choices=("auto", *DTYPES))
    shared.add_argument("--threads", type=whole, default=0)
    shared.add_argument("--channels-last", choices=("on", "off"), default="on")
    shared.add_argument("--quiet", action="store_true")
    shared.add_argument("--json", metavar="FILE|-")

    training = Parser(add_help=False)
    training.add_argument("--recipe")
    training.add_argument("--set", nargs="+", action="extend", default=[], metavar="FIELD=VALUE")
    training.add_argument("--compile", choices=COMPILE, default="auto")
    training.add_argument("--graph", choices=GRAPHS, default="auto")
    training.add_argument("--kernels", default="auto")
    training.add_argument("--seed", type=whole, default=0)
    training.add_argument("--deterministic", action="store_true")

    run = commands.add_parser("train", parents=[shared, training])
    run.add_argument("--runs", type=whole, default=1)
    run.add_argument("--epochs")
    run.add_argument("--eval-every", type=whole, default=1)
    run.add_argument("--ledger", default=str(LEDGER))
    run.add_argument("--save")
    run.add_argument("--profile", metavar="FILE")
    run.set_defaults(run=_train)

    grid = commands.add_parser("sweep", parents=[shared, training], description=SWEEP_HELP)
    grid.add_argument("--runs", type=whole)
    grid.add_argument("--random", type=whole, metavar="K")
    grid.add_argument("--grid", metavar="NAME")
    grid.add_argument("--eval-every", type=whole, default=0)
    grid.add_argument("--ledger")
    grid.add_argument("--shard", action="store_true")
    grid.set_defaults(run=_sweep)

    pair = commands.add_parser("compare", description=COMPARE_HELP)
    pair.add_argument("A")
    pair.add_argument("B")
    pair.add_argument("--pool", action="store_true")
    pair.add_argument("--json", action="store_true")
    pair.set_defaults(run=_compare)

    test = commands.add_parser("eval", parents=[shared])
    test.add_argument("model")
    test.add_argument("--views")
    test.set_defaults(run=_eval)

    clock = commands.add_parser("audit", parents=[shared, training])
    clock.set_defaults(run=_audit)

    costs = commands.add_parser("recipes")
    costs.add_argument("name", nargs="?")
    costs.add_argument("--kernels")
    costs.add_argument("--json", action="store_true")
    costs.set_defaults(run=_recipes)

    commands.add_parser("env").set_defaults(run=_env)
    return top


def main(arguments: list[str] | None = None) -> int:
    """Runs a command line; returns the exit status: 0, 1 (every run failed), 2 (a mistake), 130
    (interrupted).
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["report"]:
        print("hlb: report is now `python -m bench report`", file=sys.stderr)
        return 2
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-h", "--help", "--version")):
        arguments = ["train", *arguments]

    def run() -> int:
        options = parser().parse_args(arguments)
        return options.run(options)

    return exit_status("hlb", run)


def _execution(options: argparse.Namespace) -> Execution:
    """Every field of an execution that the command has an option for."""
    fields = (field.name for field in dataclasses.fields(Execution))
    given = {name: getattr(options, name) for name in fields if hasattr(options, name)}
    return Execution(**{**given, "channels_last": options.channels_last == "on"})


def _settings(options: argparse.Namespace) -> list[str]:
    """What replaces a recipe's fields: --set, and the options that are fields."""
    given = {field: getattr(options, field, None) for field in ("dtype", "epochs")}
    return options.set + [f"{field}={value}" for field, value in given.items() if value is not None]


def _write_json(target: str, content: dict) -> None:
    if target == "-":
        sys.stdout.write(ledger.text(content))
    else:
        ledger.write(target, content)


def _check_outputs(options: argparse.Namespace) -> None:
    paths = [getattr(options, name, None) for name in ("json", "ledger", "save", "profile")]
    outputs = [path for path in paths if path not in (None, "-")]
    outputs = [path for path in outputs if os.path.isfile(path) or not os.path.exists(path)]  # no devices
    if len({os.path.realpath(path) for path in outputs}) < len(outputs):
        raise UserError(f"--json, --ledger, --save, --profile: {', '.join(outputs)} names one file twice")
    check_output(options.json, "--json")


def _train(options: argparse.Namespace) -> int:
    expect_alone()
    _check_outputs(options)
    settings, console = _settings(options), Console(stderr=options.json == "-", quiet=options.quiet)
    if options.profile is not None:
        return _profile(options, settings, console)
    result = train(
        options.recipe,
        settings=settings,
        data=options.data,
        seed=options.seed,
        runs=options.runs,
        eval_every=options.eval_every,
        ledger=options.ledger,
        save=options.save,
        quiet=options.quiet,
        execution=_execution(options),
        console=console,
        started=STARTED,
    )
    if options.json:
        _write_json(options.json, result.json())
    if result.interrupted:
        return 130
    return 0 if any(run.status == "ok" for run in result.runs) else 1


def _profile(options: argparse.Namespace, settings: list[str], console: Console) -> int:
    if options.save is not None:
        raise UserError("--save: with --profile nothing is trained; leave one of them out")
    execution = _execution(options)
    result = profiling.profile(
        options.profile,
        options.recipe,
        settings=settings,
        data=options.data,
        execution=execution,
        console=console,
    )
    profiling.show(console, result)
    if options.json:
        _write_json(options.json, result.json())
    return 0


def _sweep(options: argparse.Namespace) -> int:
    if options.ledger is None:
        ready = READY[options.grid].recipe if options.grid in READY else None
        options.ledger = str(default_ledger(options.recipe or ready or default(_execution(options))))
    _check_outputs(options)
    result = sweep(
        options.recipe,
        _settings(options),
        runs=options.runs,
        seed=options.seed,
        draw=options.random,
        named=options.grid,
        data=options.data,
        execution=_execution(options),
        eval_every=options.eval_every,
        ledger=options.ledger,
        sharded=options.shard,
        console=Console(stderr=options.json == "-", quiet=options.quiet),
    )
    if result is None:  # another process has it
        return 0
    if options.json:
        _write_json(options.json, result.json())
    if result.interrupted:
        return 130
    return 0 if any(sample.ok for sample in result.samples) else 1


def _audit(options: argparse.Namespace) -> int:
    """Trains once under the audit of the clock; status 1 where it finds something wrong."""
    expect_alone()
    _check_outputs(options)
    execution = dataclasses.replace(_execution(options), compile="off")  # compiled code counts no calls
    console = Console(stderr=options.json == "-", quiet=options.quiet, highlight=False)
    resolved, execution, dataset = begin(options.recipe, _settings(options), options.data, execution, console)
    with out_of_memory_explained(resolved):
        trainer = Trainer(resolved, execution, dataset, audit.Audit())
        rows, wrong = audit.run(trainer, options.seed)
    if options.json:
        fields = ("what", "expected", "on_clock", "off_clock")
        _write_json(options.json, {"wrong": wrong, "calls": [dict(zip(fields, row)) for row in rows]})
    if not options.quiet and options.json != "-":
        headings = ("calls in a run", "expected", "on the clock", "off the clock")
        print_table(console, headings, [[*map(str, row)] for row in rows], {0})
        print(f"{resolved.name} on {dataset.name}: " + ("; ".join(wrong) or "the clock is honest"))
    return 1 if wrong else 0


def _compare(options: argparse.Namespace) -> int:
    comparison = compare(chosen(options.A), chosen(options.B), options.pool)
    if options.json:
        _write_json("-", comparison)
    else:
        show_comparison(Console(), comparison)
    return 0


def _eval(options: argparse.Namespace) -> int:
    check_output(options.json, "--json")
    network, made_by, about = checkpoint.load(options.model)
    settings = {"dtype": options.dtype} if options.dtype is not None else {}
    settings |= {"views": options.views, "views_fraction": 1.0} if options.views is not None else {}
    resolved, execution = resolve(recipe(made_by, settings), _execution(options))
    apply(resolved, execution)
    network, _, _ = checkpoint.load(options.model, execution.device, resolved.dtype, execution.channels_last)
    dataset = load(about["dataset"] if options.data == "auto" else options.data)
    images, labels = (tensor.to(execution.device) for tensor in dataset.tensors[2:])
    with out_of_memory_explained(resolved), Clock(execution.device) as clock:
        views = {"views": resolved.views, "fraction": resolved.views_fraction}
        accuracy, loss = evaluate(network, images, labels, **views, mean=dataset.mean, std=dataset.std)
    content = {
        "model": options.model,
        "recipe": made_by.name,
        "dataset": dataset.name,
        "device": execution.device,
        "dtype": resolved.dtype,
        "views": resolved.views,
        "views_fraction": resolved.views_fraction,
        "accuracy": accuracy,
        "loss": loss,
        "eval_seconds": clock.seconds,
        "examples": len(labels),
    }
    if options.json:
        _write_json(options.json, content)
    if not options.quiet and options.json != "-":
        print(
            f"{options.model}: recipe {made_by.name}, {dataset.name}, views {resolved.tested}, "
            f"{resolved.dtype}: accuracy {content['accuracy']:.4f}, loss {content['loss']:.4f}, "
            f"{duration(clock.seconds)}"
        )
    return 0


def _recipes(options: argparse.Namespace) -> int:
    report = show.report(options.name, options.kernels)
    if options.json:
        print(json.dumps(report.content))
    else:
        show.show(report)
    return 0


def _env(options: argparse.Namespace) -> int:
    resolved, execution = resolve(recipe(default(Execution())), Execution())
    cache = cache_dir()
    commit, dirty = environment.commit()
    stored = "as batches" if (cache / FOLDER).is_dir() else "not there"
    if (cache / "cifar10.pt").exists():
        stored = "as tensors"
    lines = {
        **environment.versions(),
        "commit": f"{commit}{' with changes' if dirty else ''}",
        "devices": ", ".join(d for d in ("cuda", "mps", "cpu") if available(d)),
        "default device": f"{execution.device}: {environment.device_name(execution.device)}",
        "default dtype": resolved.dtype,
        "default compile": execution.compile,
        "threads": execution.threads,
        "cache folder": cache,
        "CIFAR-10 there": stored,
        **(environment.gpu_state(execution.device) or {}),
    }
    for name, value in lines.items():
        print(f"{name:>15}  {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
