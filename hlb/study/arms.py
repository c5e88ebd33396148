"""A file of arms: named settings of one recipe, from the most promising to the least.

{"recipe": "record94", "arms": {"as it is": {}, "8.0 epochs": {"epochs": 8.0, "hard_fraction": 0.5}}}
"""

from __future__ import annotations

import json
from pathlib import Path

from ..errors import UserError
from ..execution import Execution
from .grid import Configuration, common, configuration, distinct

KEYS = ("recipe", "arms", "about")  # `about` is for whoever reads the file
MOST = 1000


def arms(
    path: str | Path, settings: list[str] = (), execution: Execution = Execution()
) -> list[Configuration]:
    """The configurations of a file, resolved, each with these settings (`--set`) of one value each. Raises
    UserError, which names the arm.
    """
    content = _read(path)
    changes = content["arms"]
    swept = list(dict.fromkeys(field for change in changes.values() for field in change))
    shared = common(settings, swept, f"--arms {path}")

    def arm(name: str) -> Configuration:
        try:
            return configuration(content["recipe"], shared | changes[name], swept, execution, name)
        except UserError as error:
            raise UserError(f"--arms: {path}: {name}: {error}") from None

    return distinct(f"--arms: {path}", map(arm, changes))


def named(path: str | Path) -> str:
    """The recipe that a file of arms changes. Raises UserError."""
    return _read(path)["recipe"]


def _read(path: str | Path) -> dict:
    """The content of a file, checked."""

    def wrong(what: str) -> UserError:
        return UserError(f"--arms: {path}: {what}")

    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"), object_pairs_hook=_once)
    except OSError as error:
        raise UserError(f"--arms: cannot read {str(path)!r}: {error.strerror}; give a file of arms") from None
    except RecursionError:
        raise wrong("nested too deeply") from None
    except ValueError as error:
        raise wrong(f"no JSON: {error}") from None
    shape = '{"recipe": "record94", "arms": {"NAME": {"epochs": 8.0}, ...}}'
    if not isinstance(content, dict) or not isinstance(content.get("recipe"), str):
        raise wrong(f"accepted is {shape}")
    if unknown := [key for key in content if key not in KEYS]:
        raise wrong(f"got {unknown[0]!r}, accepted are {', '.join(KEYS)}")
    found = content.get("arms")
    if not isinstance(found, dict) or not found or not all(isinstance(one, dict) for one in found.values()):
        raise wrong(f"arms: accepted is {shape}")
    if len(found) > MOST:
        raise wrong(f"got {len(found):,} arms, accepted are {MOST:,}")
    for name in found:
        if not name.strip() or not name.isprintable():
            raise wrong(f"got the name {name!r}, accepted is one that can be printed")
    return content


def _once(pairs: list[tuple[str, object]]) -> dict:
    """An object's content. Raises ValueError for a name that it has twice, of which JSON would keep one."""
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} is there twice")
    return content
