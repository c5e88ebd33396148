"""The grid of a sweep: its configurations, the order of their runs, and who runs which."""

from __future__ import annotations

import json
import math
import random
import typing
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ..errors import UserError
from ..execution import Execution, resolve
from ..recipes import Recipe
from ..runs.statistics import decisive, identity
from ..settings import fields
from ..settings import recipe as configure

LARGEST = 10_000  # configurations


@dataclass(frozen=True)
class Ready:
    """A predefined grid: the settings of each configuration, and how many runs of each."""

    recipe: str
    runs: int
    settings: tuple[str, ...]


READY = {
    # The recipe, one thing of it changed at a time, and fewer epochs with what might make up for them.
    "record94": Ready(
        recipe="record94",
        runs=50,
        settings=(
            "",
            *("epochs=8.2", "epochs=8.0", "epochs=7.8", "epochs=7.6"),
            *("hard_fraction=0.5", "hard_fraction=0.7"),
            *("sizes=24,24,24,24,28,28,32", "sizes=24,24,24,28,28,32"),
            *("lr=0.205", "lr=0.248"),
            *("bias_lr=0.052", "bias_lr=0.063"),
            *("epochs=8.0 hard_fraction=0.5", "epochs=8.0 lr=0.248"),
        ),
    ),
}
Key = tuple[str, str, int]  # recipe, data set, seed: what tells runs of one device apart


@dataclass(frozen=True)
class Configuration:
    """A point of a grid: its name, the values of the swept fields, the resolved recipe and execution."""

    name: str
    values: dict[str, object]
    recipe: Recipe
    execution: Execution


def alternatives(setting: str) -> tuple[str, list[str]]:
    """`field=value,value,...` as the field and its values; where one is a list they have / between."""
    field, equals, values = setting.partition("=") if isinstance(setting, str) else ("", "", "")
    field = field.strip()
    if not equals:
        raise UserError(f"--set: got {setting!r}, accepted is field=value,value,...")
    kind = typing.get_type_hints(Recipe).get(field)
    listed = typing.get_origin(kind) is tuple or "/" in values  # hard_fraction=0.5,0.7 but 0.8,0.6/0.5
    separator = "/" if listed else ","
    return field, [value.strip() for value in values.split(separator)]


def _listed(settings: list[str] | str) -> list[str]:
    """The settings, of which a string is one. Raises UserError for what is no list."""
    if isinstance(settings, (list, tuple, str)):
        return [settings] if isinstance(settings, str) else [*settings]
    raise UserError(f"--set: got {settings!r}, accepted is a list of field=value,value,...")


def grid(
    recipe: str | Recipe,
    settings: list[str],
    execution: Execution = Execution(),
    draw: int | None = None,
    seed: int = 0,
) -> list[Configuration]:
    """Every combination of the settings' alternatives, resolved; the last field varies fastest. With `draw`,
    that many of them, drawn by the seed. Raises UserError, also where two of them resolve to the same.
    """
    fields: dict[str, list[str]] = {}
    for field, values in map(alternatives, _listed(settings)):
        if field in fields:
            raise UserError(f"--set: got {field} twice; give its values together, {field}=value,value,...")
        fields[field] = values
    size = math.prod(map(len, fields.values()))
    if draw is not None and not (hasattr(draw, "__index__") and 1 <= draw <= size):
        raise UserError(f"--random: got {draw!r}, accepted is 1 to {size}, the configurations of the grid")
    if (draw or size) > LARGEST:
        raise UserError(
            f"--set: got {size:,} configurations, accepted are {LARGEST:,}; take --random K for K of them"
        )
    places = range(size) if draw is None else sorted(random.Random(seed).sample(range(size), draw))
    swept = [field for field, values in fields.items() if len(values) > 1]
    points = []
    for place in places:
        point = {}
        for field, values in reversed(fields.items()):
            place, i = divmod(place, len(values))
            point[field] = values[i]
        points.append({field: point[field] for field in fields})
    return distinct("--set", (configuration(recipe, point, swept, execution) for point in points))


def ready(name: str, settings: list[str], execution: Execution = Execution()) -> list[Configuration]:
    """The configurations of READY[name], each with these settings of one value each. Raises UserError, also
    for a setting of a field that the grid varies.
    """
    chosen = READY[name]
    changes = [dict(setting.split("=") for setting in one.split()) for one in chosen.settings]
    swept = list(dict.fromkeys(field for change in changes for field in change))
    shared = common(settings, swept, f"--grid {name}")
    points = [shared | change for change in changes]
    return distinct("--set", (configuration(chosen.recipe, point, swept, execution) for point in points))


def common(settings: list[str], swept: list[str], source: str) -> dict[str, str]:
    """The settings that all configurations of a source share. Raises UserError for a field that the source
    varies, and for one of several values.
    """
    shared: dict[str, str] = {}
    for field, values in map(alternatives, _listed(settings)):
        if field in swept or field in shared or len(values) > 1:
            why = f"of which {source} has values" if field in swept else "of which one value is accepted"
            raise UserError(f"--set: got {field}={','.join(values)}, {why}")
        shared[field] = values[0]
    return shared


def configuration(
    recipe: str | Recipe, point: dict[str, object], swept: list[str], execution: Execution, name: str = ""
) -> Configuration:
    """That of a point, resolved; without a name it has what the point has of the fields `swept`. Raises
    UserError.
    """
    resolved, how = resolve(configure(recipe, point), execution)
    name = name or " ".join(f"{field}={value}" for field, value in point.items() if field in swept)
    values = {field: getattr(resolved, field) for field in swept}
    return Configuration(name or resolved.name, values, resolved, how)


def distinct(source: str, configurations: Iterable[Configuration]) -> list[Configuration]:
    """All of them. Raises UserError where two train the same."""
    found: dict[str, Configuration] = {}
    for one in configurations:
        same = found.setdefault(text(one.recipe), one)
        if same is not one:
            raise UserError(f"{source}: {same.name} and {one.name} are the same; leave one of them out")
    return list(found.values())


def text(recipe: Recipe) -> str:
    """A recipe as a key has it."""
    return json.dumps(decisive(fields(recipe)), sort_keys=True)


def key(record: dict) -> Key:
    """A ledger record's key: of its identity all but execution and device."""
    run = identity(record)
    return run.recipe, run.dataset, run.seed


def all_runs(configurations: list[Configuration], dataset: str, seeds: range) -> dict[Key, tuple[int, int]]:
    """All runs (configuration, seed) by their keys, in the order of `order`."""
    planned = {}
    names = [text(configuration.recipe) for configuration in configurations]
    for i, seed in order(len(configurations), seeds):
        planned[names[i], dataset, seed] = i, seed
    return planned


def order(configurations: int, seeds: range) -> Iterator[tuple[int, int]]:
    """All runs (configuration, seed): every configuration in turn, forwards and backwards from seed to seed,
    so that a machine's drift affects all of them alike.
    """
    for i, seed in enumerate(seeds):
        turn = range(configurations)
        for configuration in reversed(turn) if i % 2 else turn:
            yield configuration, seed


def shares(runs: list[tuple[int, int]], processes: int) -> list[list[tuple[int, int]]]:
    """Deals `runs` out: each to a process that has the fewest, among these to one with the fewest runs of
    that configuration, so that no configuration is tied to a device.
    """
    dealt: list[list[tuple[int, int]]] = [[] for _ in range(processes)]
    had = [Counter() for _ in range(processes)]
    for configuration, seed in runs:
        least = min(range(processes), key=lambda i: (len(dealt[i]), had[i][configuration]))
        dealt[least].append((configuration, seed))
        had[least][configuration] += 1
    return dealt
