"""Pieces of a web page in a single file: it opens offline, in light and dark, and prints."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

from .drawing import INK

CSS = """
:root { color-scheme: light dark; --line: #8885; --band: #8881; --link: #0969da; }
@media (prefers-color-scheme: dark) { :root { --link: #58a6ff; } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1180px; margin: 0 auto; padding: 1rem 1.2rem 3rem; }
h1 { font-size: 1.7rem; margin: .6rem 0; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; }
h2 { border-bottom: 1px solid var(--line); padding-bottom: .2rem; }
nav a { margin-right: 1em; } a { color: var(--link); }
code { font: .88em ui-monospace, monospace; background: var(--band); border-radius: 4px; padding: .1em .3em; }
code { overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .87rem; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .35rem .6rem; border-bottom: 1px solid var(--line); }
th { vertical-align: bottom; } td.number, th.number { text-align: right; white-space: nowrap; }
tbody tr:nth-child(even) { background: var(--band); }
td:not(.number) { min-width: 6.5rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; margin: .5rem 0 1.2rem; }
dt { opacity: .7; } dd { margin: 0; } .lead { font-size: 1.1rem; font-weight: 600; margin-bottom: 0; }
figure { margin: 1.2rem 0; } figure svg { max-width: 100%; height: auto; display: block; }
figcaption, .note { font-size: .87rem; opacity: .8; }
@media (max-width: 700px) { figure svg { max-width: none; width: 640px; } figure { overflow-x: auto; } }
@media print {
  body { max-width: none; padding: 0; font-size: 11px; } nav { display: none; }
  figure, tr { break-inside: avoid; } .wide { overflow: visible; }
}
"""


def inline(text: str) -> str:
    """Text as HTML; what is in backticks becomes code, which may break after commas and slashes."""

    def code(match: re.Match) -> str:
        return "<code>" + re.sub("([,/])", r"\1<wbr>", match[1]) + "</code>"

    return re.sub(r"`([^`]*)`", code, escape(text).replace(" %", "&nbsp;%"))


def paragraphs(*texts: str) -> str:
    return "\n".join(f"<p>{inline(text)}</p>" for text in texts)


def items(texts: Sequence[str]) -> str:
    return "<ul>\n" + "\n".join(f"<li>{inline(text)}</li>" for text in texts) + "\n</ul>"


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], words: Sequence[int]) -> str:
    """A table; the columns `words` are words, the others numbers. Newlines in a cell are kept."""
    kinds = ["" if i in words else ' class="number"' for i in range(len(headings))]

    def line(tag: str, cells: Sequence[str]) -> str:
        shown = (f"<{tag}{kind}>{inline(cell)}</{tag}>" for kind, cell in zip(kinds, cells))
        return f"<tr>{''.join(shown)}</tr>".replace("\n", "<br>")

    head, body = line("th", headings), "\n".join(line("td", row) for row in rows)
    return f'<div class="wide"><table>\n<thead>{head}</thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'


def facts(known: dict[str, str]) -> str:
    """A list of names and their texts. Newlines in a text are kept."""
    shown = (
        f"<dt>{inline(name)}</dt><dd>{inline(text)}</dd>".replace("\n", "<br>")
        for name, text in known.items()
    )
    return "\n".join(["<dl>", *shown, "</dl>"])


def figure(svg: Path, says: str) -> str:
    """A plot with its caption, drawn in the page's text colour."""
    drawing = svg.read_text(encoding="utf-8").replace(INK, "currentColor")
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing[drawing.index("<svg") :], flags=re.DOTALL)
    drawing = drawing.replace("<svg", f'<svg role="img" aria-label="{escape(says)}"', 1)
    return f"<figure>\n{drawing}\n<figcaption>{inline(says)}</figcaption>\n</figure>"


def document(title: str, sections: dict[str, str]) -> str:
    """A page of sections, given as heading -> HTML."""
    names = {heading: re.sub(r"\W+", "-", heading.lower()) for heading in sections}
    links = "\n".join(f'<a href="#{name}">{escape(heading)}</a>' for heading, name in names.items())
    body = "\n".join(
        f'<h2 id="{names[heading]}">{escape(heading)}</h2>\n{content}'
        for heading, content in sections.items()
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n<nav>{links}</nav>\n{body}\n</body>\n</html>\n"
    )
