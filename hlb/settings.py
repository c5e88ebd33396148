"""Recipes with fields replaced: what `--set field=value` does, and what ledgers and checkpoints are read
back with.
"""

from __future__ import annotations

import dataclasses
import difflib
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
        base = (isinstance(base, str) and RECIPES.get(base)) or _unknown("recipe", base, RECIPES)
    if isinstance(settings, str):
        settings = [settings]
    if not isinstance(settings, dict):
        try:
            settings = _merged(settings)
        except TypeError:
            raise UserError(
                f"settings: got {settings!r}, accepted is a dict or a list of field=value"
            ) from None
    known = [field.name for field in dataclasses.fields(Recipe) if field.name != "name"]
    for field in settings:
        if field not in known:
            _unknown("field", field, known)
    changed = dataclasses.replace(base, **settings)
    if "optimizer" in settings and changed.optimizer not in OPTIMIZERS:
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
            both = f"{field}={merged[field]} and {field}={value}"
            raise UserError(f"--set: got {both}; give one of them (`hlb sweep` tries several)")
        merged[field] = value
    return merged


def _split(setting: str) -> tuple[str, str]:
    field, equals, value = setting.partition("=") if isinstance(setting, str) else (setting, "", "")
    if not equals:
        raise UserError(f"--set: got {setting!r}, accepted is field=value")
    return field.strip(), value.strip()


def _unknown(what: str, name: str, known) -> typing.NoReturn:
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"`hlb recipes` shows them: {', '.join(known)}"
    raise UserError(f"no {what} {name!r}; {hint}")
