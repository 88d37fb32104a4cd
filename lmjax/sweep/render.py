"""A report as Markdown and as one HTML page, from sections that know neither."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import NamedTuple

from lmjax.sweep.charts import DARK_SCHEME, LIGHT_SCHEME, STYLE

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>
:root{{color-scheme:light dark;{light}}}
@media(prefers-color-scheme:dark){{:root{{{dark}}}}}
body{{background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,sans-serif;max-width:960px;margin:2rem auto;
padding:0 1rem}}h1{{font-size:1.5rem}}h2{{font-size:1.15rem;margin-top:2rem}}.wide{{overflow-x:auto}}
table{{border-collapse:collapse;font-variant-numeric:tabular-nums}}
th,td{{padding:.25rem .7rem;border-bottom:1px solid var(--rule);text-align:right;white-space:nowrap}}
th:first-child,td:first-child{{text-align:left}}th{{background:var(--soft)}}svg{{max-width:100%;height:auto}}
code{{overflow-wrap:anywhere}}{style}
</style></head><body>
{body}
</body></html>
"""


class Section(NamedTuple):
    """A part of a report.

    Attributes:
        title: its heading.
        text: lines of text before the table.
        table: its rows, the header first; empty: there is none.
        chart: SVG, which only the HTML has; empty: there is none.
    """

    title: str
    text: tuple[str, ...] = ()
    table: tuple[tuple[str, ...], ...] = ()
    chart: str = ""


class Framed(NamedTuple):
    """A page that a notebook shows in a frame, so that its styles change nothing outside of the frame.

    Attributes:
        page: the HTML.
        height: of the frame, in pixels.
    """

    page: str
    height: int = 900

    def __repr__(self) -> str:
        """Returns a short text in place of the page, for what shows no HTML."""
        return f"a page of {len(self.page):,} characters"

    def _repr_html_(self) -> str:
        """Returns what a notebook shows."""
        style = f"width:100%;height:{self.height}px;border:0"
        return f'<div><iframe srcdoc="{html.escape(self.page)}" style="{style}"></iframe></div>'


def markdown(title: str, parts: Sequence[Section]) -> str:
    """Returns a report in Markdown, without its charts."""
    lines = [f"# {title}", ""]
    for part in parts:
        lines += [f"## {part.title}", "", *(f"{line}\n" for line in part.text)]
        if part.table:
            cells = [[cell.replace("|", "\\|") for cell in row] for row in part.table]
            rows = [f"| {' | '.join(row)} |" for row in cells]
            lines += [rows[0], f"|---{'|---:' * (len(cells[0]) - 1)}|", *rows[1:], ""]
    return "\n".join(lines)


def page(title: str, parts: Sequence[Section]) -> str:
    """Returns a report as one HTML page with its charts; it loads nothing from elsewhere."""
    body = [f"<h1>{html.escape(title)}</h1>"]
    for part in parts:
        body += [f"<h2>{html.escape(part.title)}</h2>", *(f"<p>{html.escape(line)}</p>" for line in part.text)]
        body += [part.chart] if part.chart else []
        if part.table:
            cells = [[html.escape(cell) for cell in row] for row in part.table]
            head = "".join(f"<th>{cell}</th>" for cell in cells[0])
            rows = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in cells[1:])
            body.append(f'<div class="wide"><table><tr>{head}</tr>{rows}</table></div>')
    return _PAGE.format(
        title=html.escape(title), light=LIGHT_SCHEME, dark=DARK_SCHEME, style=STYLE, body="\n".join(body)
    )
