"""Tables in Markdown, of everything that writes one."""

from __future__ import annotations

from collections.abc import Container, Sequence


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], numbers: Container[int] = ()) -> str:
    """A table; the columns `numbers` are aligned to the right. Bars in cells are escaped."""
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in (columns, *rows)]
    rule = "|" + "".join("--:|" if i in numbers else "--|" for i in range(len(columns)))
    return "\n".join([lines[0], rule, *lines[1:]])
