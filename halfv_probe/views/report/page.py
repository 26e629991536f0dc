"""Pieces of a web page that stands in one file: everything it shows is inside it, and every text is escaped here.

Functions take plain text and bytes and return HTML; only `section` and `page` take HTML, which must come from here.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from string import Template

import pandas as pd

from halfv_probe.views import tables

STYLE = """
:root { --ink: #1a1a1a; --soft: #555; --line: #c8c8c8; --accent: #10558c; }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: #fff; font: 1rem/1.5 system-ui, Helvetica, Arial, sans-serif; }
header, main, footer { max-width: 70rem; margin: 0 auto; padding: 0 1rem; overflow-wrap: anywhere; }
header { padding-top: 1.5rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .4rem; }
h2 { font-size: 1.25rem; margin: 2.4rem 0 .5rem; padding-top: .8rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 1.6rem 0 .4rem; }
p, ul { max-width: 46rem; margin: .5rem 0; }
ul { padding-left: 1.2rem; }
a { color: var(--accent); }
.kicker { color: var(--soft); margin: 0; }
.lead { font-size: 1.15rem; max-width: 50rem; }
.warning { border-left: .35rem solid #b5452c; padding: .4rem .8rem; background: #f7efed; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .75rem; }
.cards { max-width: none; margin: 1rem 0; padding: 0; }
.cards li { list-style: none; border: 1px solid var(--line); border-radius: .4rem; padding: .6rem .8rem; }
.cards strong { display: block; font-size: 1.7rem; line-height: 1.2; }
nav { margin-top: 1rem; }
nav a { display: inline-block; margin-right: .9rem; }
figure { margin: 1rem 0 1.6rem; }
figure img { display: block; width: 100%; height: auto; }
figcaption { color: var(--soft); font-size: .92rem; margin-top: .4rem; max-width: 46rem; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(17rem, 45%), 1fr)); gap: .75rem; }
.pictures p { font-size: .88rem; margin: .25rem 0 0; }
.plot > img { max-width: 38rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; margin: .5rem 0; overflow-wrap: normal; }
th, td { text-align: left; vertical-align: top; padding: .35rem .7rem .35rem 0; border-bottom: 1px solid var(--line); }
td { white-space: nowrap; }
.group th { padding: .5rem .5rem .3rem; background: #f3f3f3; }
td:last-child { min-width: 17rem; white-space: normal; }
dl { display: grid; grid-template-columns: minmax(7rem, 13rem) minmax(0, 1fr); gap: .35rem 1rem; max-width: 58rem; }
dt { font-weight: 600; }
dd { margin: 0; }
footer { padding-bottom: 2rem; }
@media (min-width: 64rem) {
  .plot { display: grid; grid-template-columns: minmax(0, 38rem) minmax(0, 1fr); gap: 1.5rem; align-items: start; }
}
@media (max-width: 30rem) {
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: .6rem; }
  .cards { grid-template-columns: 1fr 1fr; }
  .cards strong { font-size: 1.4rem; }
  .pictures > .wide { grid-column: 1 / -1; }
}
@media print {
  body { font-size: 10pt; }
  nav, .csv { display: none; }
  figure, .cards li, tr { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  .plot > img { max-width: 24rem; }
  .scroll { overflow: visible; }
  .pictures { grid-template-columns: repeat(3, 1fr); }
  td { white-space: normal; }
}
"""
PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<link rel="icon" href="data:,">
<style>$style</style>
</head>
<body>
$body
</body>
</html>
""")


class Strong(str):
    """A cell that must not be overlooked."""


@dataclass(frozen=True)
class Picture:
    """An image file with its text for those who do not see it, and perhaps a line under it."""

    content: bytes
    alt: str
    label: str = ""
    wide: bool = False

    @property
    def kind(self) -> str:
        return "image/png" if self.content.startswith(b"\x89PNG") else "image/svg+xml"


def page(title: str, *parts: str) -> str:
    """The whole document."""
    return PAGE.substitute(title=escape(title), style=STYLE, body="\n".join(parts))


def section(anchor: str, title: str, content: str) -> str:
    """A heading and HTML below it."""
    return f'<section id="{anchor}">\n<h2>{escape(title)}</h2>\n{content}\n</section>'


def title(text: str) -> str:
    return f"<h1>{escape(text)}</h1>"


def paragraph(text: str, style: str = "") -> str:
    return f"<p{_class(style)}>{escape(text)}</p>" if text else ""


def heading(text: str) -> str:
    return f"<h3>{escape(text)}</h3>"


def bullets(items: Sequence[str]) -> str:
    return "<ul>\n" + "\n".join(f"<li>{escape(item)}</li>" for item in items) + "\n</ul>" if items else ""


def cards(items: Sequence[tuple[str, str]]) -> str:
    """Large values with what they mean."""
    rows = (f"<li><strong>{escape(value)}</strong> {escape(meaning)}</li>" for value, meaning in items)
    return '<ul class="cards">\n' + "\n".join(rows) + "\n</ul>" if items else ""


def terms(items: Sequence[tuple[str, str]]) -> str:
    """Words and what they stand for."""
    rows = (f"<dt>{escape(term)}</dt><dd>{escape(meaning)}</dd>" for term, meaning in items)
    return "<dl>\n" + "\n".join(rows) + "\n</dl>"


def grid(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table that scrolls inside its own box where it is wider than the screen; `Strong` cells are in bold type."""
    return _table(title, header, f"<tbody>\n{_rows(rows)}\n</tbody>")


def grouped_grid(title: str, header: Sequence[str], groups: Sequence[tuple[str, Sequence[Sequence[str]]]]) -> str:
    """A table whose rows stand in groups, each under its name."""
    bodies = (
        f'<tbody>\n<tr class="group"><th scope="rowgroup" colspan="{len(header)}">{escape(name)}</th></tr>\n'
        f"{_rows(rows)}\n</tbody>"
        for name, rows in groups
    )
    return _table(title, header, "\n".join(bodies))


def plot(content: bytes, alt: str, caption: str, name: str, numbers: pd.DataFrame) -> str:
    """One plot, its caption, and its numbers to download as ``name``.csv."""
    below = f"<figcaption>{escape(caption)} {download(name, numbers)}</figcaption>"
    return f'<figure class="plot">\n{_image(Picture(content, alt))}\n{below}\n</figure>'


def gallery(pictures: Sequence[Picture], caption: str, name: str, numbers: pd.DataFrame) -> str:
    """Several pictures of one thing side by side, with one caption and one table."""
    boxes = "\n".join(
        f"<div{_class('wide' if picture.wide else '')}>{_image(picture)}{paragraph(picture.label)}</div>"
        for picture in pictures
    )
    below = f"<figcaption>{escape(caption)} {download(name, numbers)}</figcaption>"
    return f'<figure>\n<div class="pictures">\n{boxes}\n</div>\n{below}\n</figure>'


def links(items: Sequence[tuple[str, str]]) -> str:
    """A line of links to sections of this page."""
    inner = "\n".join(f'<a href="#{anchor}">{escape(title)}</a>' for anchor, title in items)
    return f'<nav aria-label="Sections">\n{inner}\n</nav>'


def numbers(name: str, table: pd.DataFrame) -> str:
    """The numbers of a table on the page, to download as ``name``.csv."""
    return f"<p>{download(name, table)}</p>"


def download(name: str, numbers: pd.DataFrame) -> str:
    """A link that holds a table as ``name``.csv."""
    file = escape(f"{name}.csv")
    href = _data("text/csv;charset=utf-8", tables.csv(numbers).encode())
    return f'<a class="csv" download="{file}" href="{href}">Numbers: {file}</a>'


def _table(title: str, header: Sequence[str], bodies: str) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in header)
    box = f'<div class="scroll" role="region" aria-label="{escape(title)}" tabindex="0">'
    return f"{box}\n<table>\n<thead><tr>{head}</tr></thead>\n{bodies}\n</table>\n</div>"


def _rows(rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(
        f'<tr><th scope="row">{_cell(first)}</th>' + "".join(f"<td>{_cell(cell)}</td>" for cell in rest) + "</tr>"
        for first, *rest in rows
    )


def _cell(text: str) -> str:
    return f"<strong>{escape(text)}</strong>" if isinstance(text, Strong) else escape(text)


def _image(picture: Picture) -> str:
    return f'<img src="{_data(picture.kind, picture.content)}" alt="{escape(picture.alt)}">'


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _class(name: str) -> str:
    return f' class="{name}"' if name else ""
