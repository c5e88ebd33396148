"""How the passes of batch norm are cut: tiles of rows and columns, and how many of them a program walks.

Streaming [m, c] is bound by what is in flight: tiles of BLOCK values, STAGES of them loaded or asked for, and
as many programs as the multiprocessors hold at once.
"""

from __future__ import annotations

from ..base.launch import cdiv, power_of_2

BLOCK = 2048  # values of a tile
# About as many programs at most, and columns of each, where each leaves a partial result.
STATISTICS = {"programs": 512, "widest": 64}
SUMS = {"programs": 396, "widest": 32}  # three on each multiprocessor of an H200, all of them at once
SUMS_OF_IMAGES = SUMS | {"programs": 264}  # two: what is read per image takes registers
TILES = 4  # of a program that leaves none, at most
MANY = 2048  # of such programs, at least, where each has several tiles
MERGED = 128  # tiles that a program merges, at most
STAGES = 3  # tiles that a program has loaded or asked for
WARPS = 8


def spans(m: int, c: int, programs: int, widest: int) -> dict[str, int]:
    """SPAN, ROWS and COLS of a kernel that leaves a partial result per program: few programs, long spans. Of
    what would be spans of two tiles each is one: without a loop, programs need half as many registers.
    """
    cols = min(widest, power_of_2(c))
    rows = BLOCK // cols
    steps = cdiv(cdiv(m, rows) * cdiv(c, cols), programs)
    steps = 1 if steps == 2 else steps
    return {"SPAN": rows * steps, "ROWS": rows, "COLS": cols}


def tiles_of(m: int, c: int, image: int = 0) -> dict[str, int]:
    """Those of a kernel that leaves none, or one per image: spans of a few tiles, or of its `image` rows."""
    cols = min(64, power_of_2(c))
    if not image:
        rows = BLOCK // cols
        tiles = cdiv(m, rows) * cdiv(c, cols)
        return {"SPAN": rows * max(1, min(TILES, tiles // MANY)), "ROWS": rows, "COLS": cols}
    rows = min(BLOCK // cols, power_of_2(image))
    return {"SPAN": image, "ROWS": rows, "COLS": min(power_of_2(c), max(cols, BLOCK // rows))}


def groups_of(tiles: int, c: int) -> dict[str, int]:
    """TILES, GROUPS and COLS of a merge: about as many tiles in a group as there are groups."""
    together = min(MERGED, 1 << power_of_2(tiles).bit_length() // 2)
    groups = min(MERGED, power_of_2(cdiv(tiles, together)))
    return {"TILES": together, "GROUPS": groups, "COLS": min(16, power_of_2(c))}


def grid(m: int, c: int, blocks: dict[str, int]) -> tuple[int, int]:
    """Programs by rows and by columns."""
    return cdiv(m, blocks["SPAN"]), cdiv(c, blocks["COLS"])
