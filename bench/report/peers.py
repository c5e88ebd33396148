"""Other systems that we ran, as groups of runs: JSON files with "system" and "runs".

Or with "peers", each timed by two rules, ours and its own. "measured" holds lists with a value per run, as
the script that ran it wrote them:

    {"run": {"command": ..., "date": ..., ...},
     "peers": [{"system": ..., "execution": ..., "views": ..., "own_contract": what is in its own time,
                "measured": {"accuracy_list": [...], "train_eval_seconds_list": [...], "time_list": [...]}}]}
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from .records import CONTRACT, RESULTS, Group, Record, on_gpu, read


def timed(root: Path) -> Iterator[Group]:
    """The groups of other systems that we ran. A run without accuracy or seconds counts as failed."""
    for path in sorted((root / RESULTS).rglob("*.json")):
        for one in _systems(read(path)):
            common = {name: value for name, value in one.items() if name not in ("runs", "measured")}
            needed = ("accuracy", "seconds", *(["own_seconds"] if one.get("own_contract") else ()))
            ok = [
                common | run
                for run in one["runs"]
                if isinstance(run, dict)
                and run.get("status", "ok") == "ok"
                and all(type(run.get(name)) in (int, float) for name in needed)
            ]
            yield Group(
                system=one["system"],
                execution=one.get("execution"),
                hardware=one.get("device_name"),
                dataset=one.get("dataset", "cifar10"),
                target=one.get("target", Record.target),
                views=one.get("views"),
                views_fraction=one.get("views_fraction", 1.0),
                contract=one.get("contract"),
                runs=ok,
                failed=len(one["runs"]) - len(ok),
                sources=(path.relative_to(root).as_posix(),),
                gpu=on_gpu(one),
                own_contract=one.get("own_contract"),
                ours=False,
            )


def _systems(content: object) -> list[dict]:
    """The systems in a JSON file: none, one with its runs, or peers that were timed by two rules."""
    if not isinstance(content, dict):
        return []
    if isinstance(content.get("runs"), list) and "system" in content:
        return [content]
    peers = content.get("peers")
    return [_peer(content.get("run", {}), peer) for peer in peers] if isinstance(peers, list) else []


def _peer(run: dict, peer: dict) -> dict:
    """A peer's measured lists as runs: `seconds` by our rule, `own_seconds` by its own."""
    measured = peer["measured"]
    lists = (measured[f"{name}_list"] for name in ("accuracy", "train_eval_seconds", "time"))
    names = ("accuracy", "seconds", "own_seconds")
    return peer | {
        "device": "cuda",
        "device_name": measured["device"],
        "contract": CONTRACT,
        "command": run.get("command"),
        "time": run.get("date"),
        "versions": {"torch": measured.get("torch"), "driver": run.get("driver")},
        "runs": [dict(zip(names, values)) for values in zip(*lists, strict=True)],
    }
