"""What `hlb recipes` prints: recipes side by side; of one its fields, what a step launches, the floor and the
expected time of a run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from kernels.base import chips

from .. import settings
from ..errors import UserError
from ..execution import Execution, device_of, expect_operands
from ..recipes import RECIPES, Recipe
from ..runs.display import fitting
from . import complexity, expected, fields, floor
from .passes import Pass, launched

RECIPE_COLUMNS = {  # heading -> cell, from a recipe's name and its `complexity.report`; GFLOPs are per image
    "recipe": lambda name, r: name,
    "trainable": lambda name, r: f"{r['parameters']['trainable']:,}",
    "frozen": lambda name, r: f"{r['parameters']['frozen']:,}",
    "GFLOP fwd": lambda name, r: f"{r['gflop_per_image']['forward']:.3f}",
    "+ bwd": lambda name, r: f"{r['gflop_per_image']['train']:.3f}",
    "TFLOP/run": lambda name, r: f"{r['tflop_per_run']:.1f}",
    "steps": lambda name, r: str(r["steps"]),
    "epochs": lambda name, r: f"{r['epochs']:g}",
    "batch": lambda name, r: str(r["batch_size"]).strip("()"),
}
PASS_COLUMNS = {  # heading -> cell, from a `passes.Pass` on a chip; GFLOP, MB and µs are per step
    "layer": lambda p, chip: p.layer,
    "pass or kernel": lambda p, chip: p.name,
    "form": lambda p, chip: p.form,
    "GFLOP": lambda p, chip: f"{p.flops / 1e9:.2f}" if p.flops else "",
    "MB": lambda p, chip: f"{p.bytes / 1e6:.1f}",
    "issued / useful": lambda p, chip: f"{p.flops / p.useful:.2f}" if p.useful else "",
    "µs": lambda p, chip: f"{p.seconds(chip) * 1e6:.1f}",
    "bound by": lambda p, chip: p.bound(chip),
}
PHASE_COLUMNS = {  # heading -> cell, from an entry of `floor.summary`
    "phase": lambda e: e["phase"],
    "steps": lambda e: str(e["steps"]),
    "TFLOP": lambda e: f"{e['flops'] / 1e12:.2f}",
    "GB": lambda e: f"{e['bytes'] / 1e9:.2f}",
    "launches": lambda e: str(e["launches"]),
    "floor s": lambda e: f"{e['seconds']:.4f}",
    "expected s": lambda e: f"{e['expected']:.4f}",
}
# Columns that a narrow terminal does without, the first of them first.
EXPENDABLE = (
    *("frozen", "batch", "epochs", "GFLOP fwd", "TFLOP/run", "+ bwd"),
    *("form", "issued / useful", "MB", "bound by", "GFLOP", "layer", "GB", "TFLOP", "launches"),
)
LEFT = ("recipe", "layer", "pass or kernel", "form", "bound by", "phase")  # columns of words


@dataclass(frozen=True)
class Launched:
    """What a choice of kernels launches in a step of a recipe, and what a run of it takes on a chip."""

    kernels: str
    chip: chips.Chip
    step: list[Pass]
    floor: dict  # `floor.summary`
    expectation: expected.Expectation

    def json(self) -> dict:
        chip, of_run = self.chip, expected.summary(self.expectation)
        return {
            "kernels": self.kernels,
            "launched": [p.row() | {"seconds": p.seconds(chip), "bound": p.bound(chip)} for p in self.step],
            "floor": self.floor,
            "expected": of_run,
            "expected_seconds": of_run["expected_seconds"],
            "measured_share": of_run["measured_share"],
        }


@dataclass(frozen=True)
class Report:
    """`content` is what `hlb recipes --json` prints, by recipe. `recipe` is the one that was named, if any;
    `launched` is of it, where kernels were chosen.
    """

    content: dict[str, dict]
    recipe: Recipe | None
    launched: Launched | None


def report(name: str | None, choice: str | None, changed: list[str] = ()) -> Report:
    """Of a recipe, with fields changed as by `--set`, or of all; with a choice of kernels also what it
    launches. Raises UserError.
    """
    for option, given in (("--kernels CHOICE", choice is not None), ("--set FIELD=VALUE", changed)):
        if given and name is None:
            raise UserError(f"{option.split()[0]}: of which recipe? take `hlb recipes NAME {option}`")
    recipes = [settings.recipe(one, changed) for one in (RECIPES if name is None else [name])]
    content = {recipe.name: complexity.report(recipe) for recipe in recipes}
    named, what = None if name is None else recipes[0], None
    if choice is not None:
        what = _launched(named, choice)
        content[named.name] |= what.json()
    return Report(content, named, what)


def _launched(recipe: Recipe, choice: str) -> Launched:
    chip = chips.here()
    try:
        expect_operands(recipe, "float16", choice, device_of(Execution()))
        step, parts = launched(recipe, choice), floor.phases(recipe, choice)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"--{error}") from None
    return Launched(choice, chip, step, floor.summary(parts, chip), expected.of(recipe, choice, chip, parts))


def show(report: Report) -> None:
    """Prints a report."""
    _print_table(RECIPE_COLUMNS, list(report.content.items()))
    if report.recipe is not None:
        _show_recipe(report.recipe, report.content[report.recipe.name])
    if report.launched is not None:
        _show_launched(report.recipe, report.launched)


def _show_recipe(recipe: Recipe, content: dict) -> None:
    """Its schedule and its fields."""
    starts = recipe.epoch_starts(50000)
    multipliers = [content["lr_multiplier"][step] for step in (*starts[:-1], starts[-1] - 1)]
    print("\nlearning-rate multiplier at the start of each epoch and at the last step:")
    print(" ", *(f"{m:.3f}" for m in multipliers))
    print("\nfields, for --set:")
    values = {field: value for field, value in settings.fields(recipe).items() if field != "name"}
    print("\n".join(fields.explained(values)))


def _show_launched(recipe: Recipe, launched: Launched) -> None:
    """A step, pass by pass, and a run, phase by phase."""
    chip, run, expectation = launched.chip, launched.floor, launched.expectation
    size = recipe.sizes[-1]
    print(f"\na training step with --kernels {launched.kernels}, in float16, as launched on {chip.name},")
    print(f"of {size}x{size} images; µs are the least that FLOPs or bytes, and launches, can take:")
    _print_passes(launched.step, chip)
    print("\na whole run: its floor, by the same arithmetic, and what is expected; no measurement:")
    phases = zip(run["phases"], expectation.phases)
    _print_table(PHASE_COLUMNS, [(entry | {"expected": phase.seconds},) for entry, phase in phases])
    name = chip.name.removeprefix("NVIDIA ")
    print(f"modelled floor on {name}: {run['seconds']:.3f} s (launches {run['launch_seconds']:.3f} s of it)")
    shares = ", ".join(f"{100 * share:.0f} % {how}" for how, share in expectation.shares.items())
    print(f"expected on {name}: {expectation.seconds:.3f} s ({shares}); no measurement of this run")
    print(
        f"of it convolutions: {expectation.convolutions:.3f} s; "
        f"with all else at its floor: {expectation.reachable:.3f} s"
    )


def _print_passes(passes: list[Pass], chip: chips.Chip) -> None:
    """A row each, and the totals."""
    convolutions = [p for p in passes if p.useful]
    totals = {
        "layer": "total",
        "GFLOP": f"{sum(p.flops for p in passes) / 1e9:.2f}",
        "MB": f"{sum(p.bytes for p in passes) / 1e6:.1f}",
        "issued / useful": f"{sum(p.flops for p in convolutions) / sum(p.useful for p in convolutions):.2f}",
        "µs": f"{sum(p.seconds(chip) for p in passes) * 1e6:.1f}",
    }
    _print_table(PASS_COLUMNS, [(p, chip) for p in passes], totals)


def _print_table(columns: dict, rows: list[tuple], totals: dict[str, str] | None = None) -> None:
    """A row each, of the cells that the columns make of it, and the totals; whole, however narrow the
    terminal, which some columns may not fit in.
    """
    console = Console(highlight=False, markup=False, emoji=False)
    cells = [[cell(*row) for cell in columns.values()] for row in rows]
    totals, headings = totals or {}, list(columns)
    every = [headings, *cells, [totals.get(heading, "") for heading in headings]]
    widths = [max(map(len, column)) for column in zip(*every)]
    expendable = [headings.index(heading) for heading in EXPENDABLE if heading in headings]
    table = Table(box=None, pad_edge=False, show_footer=bool(totals))
    kept = fitting(widths, expendable, console.width if console.is_terminal else math.inf)
    for heading in (headings[i] for i in kept):
        justify = "left" if heading in LEFT else "right"
        table.add_column(heading, totals.get(heading, ""), justify=justify, no_wrap=True)
    for row in cells:
        table.add_row(*(row[i] for i in kept))
    console.width = max(console.width, 150)
    console.print(table)
