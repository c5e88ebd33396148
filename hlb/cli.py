"""The command line: `hlb train`, sweep, compare, eval, audit, recipes, env. Without a command it trains."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path

from rich.console import Console

from . import STARTED, audit
from .commands.parser import parser
from .cost import profiling, show
from .data import load, stored
from .errors import Options, UserError, exit_status
from .evaluate import evaluate
from .execution import Execution, apply, available, resolve, shortage_explained
from .files import check_output
from .runs import checkpoint, environment, ledger
from .runs.display import duration, line, print_table
from .runs.experiment import begin, default, train
from .settings import recipe
from .study.arms import named
from .study.budget import fastest
from .study.compare import chosen, compare
from .study.compare import show as show_comparison
from .study.grid import READY
from .study.shard import expect_alone
from .study.sweep import asked, default_ledger, sweep
from .train import Clock, Trainer

EXECUTION = tuple(field.name for field in dataclasses.fields(Execution))
# Options that --profile reads; what is of runs and their files is not among them.
PROFILED = (*EXECUTION, "profile", "recipe", "set", "epochs", "dtype", "data", "json", "quiet")


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
        return COMMANDS[options.command](options)

    return exit_status("hlb", run)


def _execution(options: Options) -> Execution:
    """Every field of an execution that the command has an option for."""
    given = {name: getattr(options, name) for name in EXECUTION if hasattr(options, name)}
    return Execution(**{**given, "channels_last": options.channels_last == "on"})


def _settings(options: Options) -> list[str]:
    """What replaces a recipe's fields: --set, and the options that are fields."""
    given = {field: getattr(options, field, None) for field in ("dtype", "epochs")}
    return options.set + [f"{field}={value}" for field, value in given.items() if value is not None]


def _console(options: Options) -> Console:
    """Where a command prints: beside the JSON, if that is on standard output."""
    quiet = getattr(options, "quiet", False)
    return Console(stderr=options.json == "-", quiet=quiet, highlight=False, emoji=False)


def _write_json(target: str, content: dict, console: Console) -> None:
    """Writes it to a file, and says so, or to standard output (-)."""
    ledger.write(target, content)
    if target != "-":
        line(console, f"JSON: {target}")


def _check_outputs(options: Options) -> None:
    """Raises UserError where a file is to be written twice, or read as well, or --json cannot be written."""
    paths = [getattr(options, name, None) for name in ("json", "ledger", "save", "profile")]
    outputs = [path for path in paths if path not in (None, "-")]
    outputs = [path for path in outputs if os.path.isfile(path) or not os.path.exists(path)]  # no devices
    if len({os.path.realpath(path) for path in outputs}) < len(outputs):
        raise UserError(f"--json, --ledger, --save, --profile: {', '.join(outputs)} names one file twice")
    inputs = [getattr(options, name, None) for name in ("arms", "model")]
    inputs += [ledger.file_of(getattr(options, side)) for side in ("A", "B") if hasattr(options, side)]
    read = {os.path.realpath(path) for path in inputs if path is not None}
    for path in outputs:
        if os.path.realpath(path) in read:
            raise UserError(f"{path}: it is to be read and written; name another file for the output")
    check_output(options.json, "--json")


def _check_validation(options: Options) -> None:
    if options.graph == "run":
        options.without(("eval_every",), "a run that is one graph validates nothing")


def _train(options: Options) -> int:
    expect_alone()
    _check_outputs(options)
    _check_validation(options)
    if options.profile is not None:
        options.only(PROFILED, "with --profile nothing is trained")
    settings, console = _settings(options), _console(options)
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
    return _ended(options, console, result, any(run.status == "ok" for run in result.runs))


def _ended(options: Options, console: Console, result: object, good: bool) -> int:
    """Writes a result's JSON; the exit status, 1 where nothing is `good`: every run failed."""
    if options.json:
        _write_json(options.json, result.json(), console)
    if result.interrupted:
        return 130
    if result.unwritten:
        return 2
    return 0 if good else 1


def _profile(options: Options, settings: list[str], console: Console) -> int:
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
        _write_json(options.json, result.json(), console)
    if result.unwritten:
        raise UserError(result.unwritten)
    return 0


def _sweep(options: Options) -> int:
    if options.ledger is None:
        if options.arms is not None:
            varied = named(options.arms)
        elif options.grid in READY:
            varied = READY[options.grid].recipe
        else:
            varied = options.recipe or default(_execution(options))
        options.ledger = str(default_ledger(varied))
    _check_validation(options)
    _check_outputs(options)
    console = _console(options)
    source = {"draw": options.random, "seed": options.seed, "named": options.grid, "arms": options.arms}
    if options.budget is not None:
        return _budget(options, console, source)
    result = sweep(
        options.recipe,
        _settings(options),
        **source,
        runs=options.runs,
        data=options.data,
        execution=_execution(options),
        eval_every=options.eval_every,
        ledger=options.ledger,
        sharded=options.shard,
        console=console,
    )
    if result is None:  # another process has it
        return 0
    return _ended(options, console, result, any(sample.ok for sample in result.samples))


def _budget(options: Options, console: Console, source: dict) -> int:
    options.without(("runs",), "with --budget the time decides how many")
    options.without(("shard",), "a budget is spent by one process")
    expect_alone()
    configurations = asked(options.recipe, _settings(options), _execution(options), **source)
    found = fastest(
        configurations,
        options.budget,
        seed=options.seed,
        data=options.data,
        eval_every=options.eval_every,
        ledger=options.ledger,
        console=console,
        started=STARTED,
    )
    return _ended(options, console, found, len(found.dropped) < len(configurations))


def _audit(options: Options) -> int:
    """Trains once under the audit of the clock; status 1 where it finds something wrong."""
    expect_alone()
    options.only(
        vars(options).keys() - {"compile"}, "the audit counts calls, of which compiled code has none"
    )
    _check_outputs(options)
    execution = dataclasses.replace(_execution(options), compile="off")  # compiled code counts no calls
    console = _console(options)
    resolved, execution, dataset = begin(options.recipe, _settings(options), options.data, execution, console)
    with shortage_explained(resolved):
        trainer = Trainer(resolved, execution, dataset, audit.Audit())
        rows, wrong = audit.run(trainer, options.seed)
    if options.json:
        fields = ("what", "expected", "on_clock", "off_clock")
        calls = [dict(zip(fields, row)) for row in rows]
        _write_json(options.json, {"wrong": wrong, "calls": calls}, console)
    headings = ("calls in a run", "expected", "on the clock", "off the clock")
    print_table(console, headings, [[*map(str, row)] for row in rows], {0}, expendable=[1])
    line(console, f"{resolved.name} on {dataset.name}: " + ("; ".join(wrong) or "the clock is honest"))
    return 1 if wrong else 0


def _compare(options: Options) -> int:
    _check_outputs(options)
    console = _console(options)
    comparison = compare(chosen(options.A), chosen(options.B), options.pool)
    if options.json:
        _write_json(options.json, comparison, console)
    if options.json != "-":
        show_comparison(console, comparison)
    return 0


def _eval(options: Options) -> int:
    _check_outputs(options)
    network, made_by, about = checkpoint.load(options.model)
    settings = {"dtype": options.dtype} if options.dtype is not None else {}
    settings |= {"views": options.views, "views_fraction": 1.0} if options.views is not None else {}
    resolved, execution = resolve(recipe(made_by, settings), _execution(options))
    apply(resolved, execution)
    network, _, _ = checkpoint.load(options.model, execution.device, resolved.dtype, execution.channels_last)
    dataset = load(about["dataset"] if options.data == "auto" else options.data)
    checkpoint.check_classes(network, about, dataset)
    # Of the images that it was trained on, if the file says them.
    colours = {name: about.get(name, getattr(dataset, name)) for name in ("mean", "std")}
    images, labels = (tensor.to(execution.device) for tensor in dataset.tensors[2:])
    with shortage_explained(resolved), Clock(execution.device) as clock:
        views = {"views": resolved.views, "fraction": resolved.views_fraction}
        accuracy, loss = evaluate(network, images, labels, **views, **colours)
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
    console = _console(options)
    if options.json:
        _write_json(options.json, content, console)
    if options.json != "-":
        line(
            console,
            f"{options.model}: recipe {made_by.name}, {dataset.name}, views {resolved.tested}, "
            f"{resolved.dtype}: accuracy {content['accuracy']:.4f}, loss {content['loss']:.4f}, "
            f"{duration(clock.seconds)}",
        )
    return 0


def _recipes(options: Options) -> int:
    check_output(options.json, "--json")
    report = show.report(options.name, options.kernels, options.set)
    if options.json == "-":
        print(json.dumps(report.content))  # in a line
        return 0
    if options.json:
        _write_json(options.json, report.content, _console(options))
    show.show(report)
    return 0


def _env(options: Options) -> int:
    check_output(options.json, "--json")
    resolved, execution = resolve(recipe(default(Execution())), Execution())
    commit, dirty = environment.commit()
    cache, there = stored()
    lines = {
        **environment.versions(),
        "commit": f"{commit}{' with changes' if dirty else ''}",
        "devices": ", ".join(d for d in ("cuda", "mps", "cpu") if available(d)),
        "default device": f"{execution.device}: {environment.device_name(execution.device)}",
        "default dtype": resolved.dtype,
        "default compile": execution.compile,
        "threads": execution.threads,
        "cache folder": cache,
        "CIFAR-10 there": there,
        **(environment.gpu_state(execution.device) or {}),
    }
    if options.json:
        content = {name: str(value) if isinstance(value, Path) else value for name, value in lines.items()}
        _write_json(options.json, content, _console(options))
    if options.json != "-":
        for name, value in lines.items():
            print(f"{name:>15}  {value}")
    return 0


COMMANDS = {
    "train": _train,
    "sweep": _sweep,
    "compare": _compare,
    "eval": _eval,
    "audit": _audit,
    "recipes": _recipes,
    "env": _env,
}


if __name__ == "__main__":
    sys.exit(main())
