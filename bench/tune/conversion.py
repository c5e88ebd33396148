"""A file of measured passes, such as `python -m bench tune --json` writes, put into measured.json.

    {"run": {...}, "chip": "NVIDIA H200",
     "found": {NAME: {"key": "forward n=512 ...", "seconds": {CONFIG: s}, "cudnn": s}},
     "unpool": {KEY OF A POOLED FORWARD PASS: s},
     "corrected": {"seconds": {LABEL: {"forward": {"cudnn": s}, "backward": {"cudnn": s}}}, "derived": {...}}}

Of each pass the fastest configuration that `fits`, and cuDNN's time, are taken; where `key` is missing, NAME
is it. `corrected` puts right what was measured of cuDNN, by the label that NAME begins with: its forward pass
with what it needs then, its gradients (those `of` which it is) together with the write of the un-pooled one.
An entry that was corrected keeps what was measured beside it, as `measured`.
"""

from __future__ import annotations

import json
from pathlib import Path

from kernels.base.chips import CHIPS
from kernels.convolution import selection
from kernels.convolution.candidates import fits
from kernels.convolution.selection import key, parsed, problem_of

from ..check import check


def converted(content: dict) -> tuple[str, dict]:
    """(the chip's name, its section of measured.json). ValueError for content of another form."""
    try:
        name, run, passes = content["chip"], content["run"], content["found"]
        chip = next((chip for chip in CHIPS if chip.name == name), None)
        if chip is None:
            raise ValueError(f"chip {name!r} is none of {', '.join(chip.name for chip in CHIPS)}")
        corrected = content.get("corrected", {})
        right = corrected.get("derived", {}).get("seconds", {}) | corrected.get("seconds", {})
        entries, unpool = {}, dict(content.get("unpool", {}))
        for title, e in passes.items():
            if not e["seconds"]:
                continue
            seconds = {str(parsed(text)): float(value) for text, value in e["seconds"].items()}
            this, label = problem_of(e.get("key", title)), title.rsplit(" ", 1)[0]
            kept = [text for text in seconds if fits(this, parsed(text), chip)] or seconds
            best, cudnn = min(kept, key=seconds.get), float(e["cudnn"])
            entry = {"config": best, "seconds": seconds[best], "cudnn": cudnn}
            entry |= selection.tried(map(parsed, (*seconds, *e.get("dropped", ()))))
            if this.kind == "forward" and label in right:
                entry |= {"cudnn": float(right[label]["forward"]["cudnn"]), "measured": cudnn}
                if backward := right[label].get("backward"):
                    parts = [
                        passes[f"{label} {kind}"]["cudnn"] for kind in backward.get("of", ("dgrad", "wgrad"))
                    ]
                    unpool[key(this)] = round(backward["cudnn"] - sum(parts), 8)
            entries[key(this)] = entry | {"run": run["date"]}
    except (KeyError, TypeError, AttributeError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"no passes of this form: {what}") from None
    return name, {
        "cc": chip.cc,
        "multiprocessors": chip.multiprocessors,
        "launches": entries,
        "unpool": {each: {"seconds": seconds, "run": run["date"]} for each, seconds in unpool.items()},
        "runs": {run["date"]: run},
    }


def take(path: Path) -> tuple[str, int]:
    """Puts a file's passes into measured.json, in place of what was there of them; returns the chip's name
    and how many. Raises ValueError, naming the file, where it cannot be read or holds none.
    """
    from .tune import text

    try:
        name, section = converted(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    data = json.loads(selection.FILE.read_text()) if selection.FILE.exists() else {}
    there = data.setdefault(name, {})
    for group in ("launches", "unpool", "runs"):
        section[group] = there.get(group, {}) | section[group]
    data[name] = section
    check.write(selection.FILE, text(data))
    selection.forget()
    selection.table()
    return name, len(section["launches"])
