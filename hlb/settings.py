"""Recipes with fields replaced: what `--set field=value` does, and what ledgers and checkpoints are read
back with.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import typing

from .errors import UserError
from .optimizer import OPTIMIZERS, factory, name_of
from .recipes import RECIPES, Recipe


def recipe(base: str | Recipe, settings: dict[str, object] | list[str] = ()) -> Recipe:
    """A recipe, by name or itself, with fields replaced: `recipe("seed", ["epochs=80", "base_depth=128"])`,
    or a dict.

    Strings are read by the field's type. Raises UserError for an unknown recipe or field (with the nearest
    name) and for a value that does not fit.
    """
    if not isinstance(base, Recipe):
        base = RECIPES.get(base) or _unknown("recipe", base, RECIPES)
    if not isinstance(settings, dict):
        settings = _merged(settings)
    types = typing.get_type_hints(Recipe)
    types.pop("name")
    values = {}
    for field, value in settings.items():
        if field not in types:
            _unknown("field", field, types)
        values[field] = value if field == "optimizer" else read(field, value, types[field])
    changed = dataclasses.replace(base, **values)
    if "optimizer" in values and changed.optimizer not in OPTIMIZERS:
        factory(changed.optimizer)  # UserError where there is no such class
    return changed


def fields(recipe: Recipe) -> dict[str, object]:
    """All fields of a recipe as ledgers and checkpoints hold them: an optimizer by its name."""
    return dataclasses.asdict(dataclasses.replace(recipe, optimizer=name_of(recipe.optimizer)))


def from_fields(fields: dict[str, object]) -> Recipe:
    """The recipe of such fields; one that was recorded before a field came has its default. An optimizer need
    not be there: reading a record trains nothing.
    """
    if not isinstance(fields, dict) or not isinstance(fields.get("name"), str):
        raise UserError("recipe: not the fields of a recipe")
    plain = {field: value for field, value in fields.items() if field not in ("name", "optimizer")}
    plain = recipe(Recipe(fields["name"]), plain)
    return dataclasses.replace(plain, optimizer=fields.get("optimizer", Recipe.optimizer))


def _merged(settings: list[str]) -> dict[str, str]:
    """The fields of some field=value. Raises UserError for a field that has two values."""
    merged: dict[str, str] = {}
    for field, value in map(_split, settings):
        if field in merged:
            raise UserError(
                f"--set: got {field}={merged[field]} and {field}={value}; give one (`hlb sweep` tries several)"
            )
        merged[field] = value
    return merged


def _split(setting: str) -> tuple[str, str]:
    field, equals, value = setting.partition("=")
    if not equals:
        raise UserError(f"--set: got {setting!r}, accepted is field=value")
    return field.strip(), value.strip()


def _unknown(what: str, name: str, known) -> typing.NoReturn:
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"`hlb recipes` shows them: {', '.join(known)}"
    raise UserError(f"no {what} {name!r}; {hint}")


def read(field: str, value: object, kind: type) -> object:
    """A field's value from a string or a Python value. Raises UserError that says what the field takes."""
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
        except ValueError:
            number = math.nan
        if math.isfinite(number) and (kind is float or number.is_integer()):
            value = kind(number)
    if type(value) is not kind:
        name = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}[kind]
        raise UserError(f"{field}: got {value!r}, accepted is {name}")
    return value
