"""One HTML page of explanations: coloured texts, grids and maps. It loads nothing from elsewhere."""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

# Blue adds to the number, orange takes from it: colours that people with colour blindness can tell apart (Okabe and
# Ito 2008).
_STYLE = """
:root{color-scheme:light dark;--ink:#1b1f24;--paper:#fff;--soft:#f3f5f7;--rule:#d0d7de;--dim:#59636e;
--up:0,114,178;--down:213,94,0}
@media(prefers-color-scheme:dark){:root{--ink:#e6e8eb;--paper:#15181c;--soft:#20252b;--rule:#3b434b;--dim:#9aa4ae;
--up:86,180,233;--down:255,155,74}}
*{box-sizing:border-box}
body{background:var(--paper);color:var(--ink);font:16px/1.55 system-ui,sans-serif;max-width:1000px;margin:0 auto;
padding:1.2rem 1rem 4rem}
h1{font-size:1.35rem;margin:.2rem 0;overflow-wrap:anywhere}h2{font-size:1.1rem;margin:2.2rem 0 .3rem}
p{margin:.35rem 0}.dim{color:var(--dim);font-size:.9rem}code{overflow-wrap:anywhere;font-size:.85rem}
.facts{display:flex;flex-wrap:wrap;gap:.4rem 1.6rem;margin:.8rem 0;padding:.7rem .9rem;background:var(--soft);
border-radius:.6rem}.facts div{min-width:0}.facts b{display:block;font-size:1.15rem;overflow-wrap:anywhere;
font-variant-numeric:tabular-nums}
.facts span{color:var(--dim);font-size:.85rem}
.text{line-height:2.15;margin:.5rem 0}.text i{font-style:normal;padding:.22rem .1rem;border-radius:.25rem;
white-space:pre-wrap}.text i.kept{color:var(--dim);font-size:.8rem}
.wide{overflow-x:auto;margin:.5rem 0;-webkit-overflow-scrolling:touch}
table{border-collapse:collapse;font-size:.85rem;font-variant-numeric:tabular-nums}
th,td{padding:.22rem .5rem;text-align:right;vertical-align:top;white-space:nowrap;border-bottom:1px solid var(--rule)}
th{font-weight:600;color:var(--dim)}th:first-child,td:first-child{text-align:left;white-space:normal;min-width:9rem}
th.words,td.words{text-align:left;white-space:pre-line;min-width:12rem;overflow-wrap:anywhere}
.grid th,.grid td{border:1px solid var(--paper);padding:.2rem .35rem;text-align:center;min-width:2rem}
.grid th.up{writing-mode:vertical-rl;transform:rotate(180deg);text-align:left;padding:.3rem .1rem}
.grid th:first-child{min-width:0;position:sticky;left:0;background:var(--paper);text-align:right;white-space:nowrap}
.maps{display:grid;gap:4px;margin:.5rem 0;overflow-x:auto}.maps canvas{width:100%;aspect-ratio:1;min-width:24px;
image-rendering:pixelated;background:var(--soft);border-radius:3px;cursor:pointer}
.maps canvas.on{outline:2px solid rgb(var(--down))}.maps span{font-size:.7rem;color:var(--dim);align-self:center}
.zoom{overflow-x:auto}.zoom canvas{display:block;max-width:none}.told{min-height:1.6em}
details{margin:.4rem 0}summary{cursor:pointer;color:var(--dim)}
svg{max-width:100%;height:auto}svg text{fill:var(--ink);font:12px system-ui,sans-serif}
"""
_SCRIPT = """
const rgb=name=>getComputedStyle(document.documentElement).getPropertyValue(name).trim();
function draw(canvas,map,rows,cols,size){const c=canvas.getContext('2d');canvas.width=cols*size;
canvas.height=rows*size;for(let i=0;i<rows*cols;i++){c.fillStyle=`rgba(${rgb('--up')},${map[i]/255})`;
c.fillRect((i%cols)*size,Math.floor(i/cols)*size,size,size)}}
for(const box of document.querySelectorAll('.attention')){
const d=JSON.parse(box.querySelector('script').textContent),bytes=Uint8Array.from(atob(d.data),x=>x.charCodeAt(0));
const rows=d.rows.length,cols=d.cols.length,area=rows*cols,maps=[...box.querySelectorAll('.maps canvas')];
const zoom=box.querySelector('.zoom canvas'),told=box.querySelector('.told'),name=box.querySelector('.name');
const cell=20,font='12px system-ui,sans-serif';let now=d.first,left=0,top=0;
const map=i=>bytes.subarray(i*area,(i+1)*area);
function big(){maps.forEach((x,i)=>x.classList.toggle('on',i===now));name.textContent=d.names[now];
const c=zoom.getContext('2d'),scale=window.devicePixelRatio||1;c.font=font;
left=Math.max(...d.rows.map(x=>c.measureText(x).width))+10;top=Math.max(...d.cols.map(x=>c.measureText(x).width))+10;
const w=left+cols*cell+2,h=top+rows*cell+2;zoom.width=w*scale;zoom.height=h*scale;zoom.style.width=w+'px';
zoom.style.height=h+'px';c.scale(scale,scale);c.font=font;c.textBaseline='middle';c.fillStyle=rgb('--ink');
d.rows.forEach((x,i)=>{c.textAlign='right';c.fillText(x,left-6,top+(i+.5)*cell)});
d.cols.forEach((x,i)=>{c.save();c.translate(left+(i+.5)*cell,top-6);c.rotate(-Math.PI/2);c.textAlign='left';
c.fillText(x,0,0);c.restore()});const m=map(now);for(let i=0;i<area;i++){c.fillStyle=`rgba(${rgb('--up')},${m[i]/255})`;
c.fillRect(left+(i%cols)*cell,top+Math.floor(i/cols)*cell,cell-1,cell-1)}}
function all(){maps.forEach((x,i)=>draw(x,map(i),rows,cols,Math.max(1,Math.floor(48/Math.max(rows,cols)))));big()}
maps.forEach((x,i)=>x.addEventListener('click',()=>{now=i;big()}));
zoom.addEventListener('pointermove',e=>{const b=zoom.getBoundingClientRect(),q=Math.floor((e.clientY-b.top-top)/cell),
k=Math.floor((e.clientX-b.left-left)/cell);told.textContent=q>=0&&k>=0&&q<rows&&k<cols?
`${d.rows[q]} reads ${d.cols[k]}: ${(map(now)[q*cols+k]/255*d.most).toFixed(3)}`:''});
all();matchMedia('(prefers-color-scheme:dark)').addEventListener('change',all)}
"""

# A cell with more letters is a text: an interval has fewer.
_LETTERS = 10


class Part(NamedTuple):
    """A part of a page.

    Attributes:
        title: its heading.
        note: what it shows and how to read it.
        body: its HTML.
        summary: lines for a terminal.
    """

    title: str
    note: str
    body: str
    summary: tuple[str, ...] = ()


def page(title: str, facts: Sequence[tuple[str, str]], parts: Sequence[Part], command: str) -> str:
    """Returns the page.

    Args:
        title: what is explained.
        facts: names and values that stand at its top.
        parts: in their order.
        command: that made it.
    """
    shown = "".join(f"<div><span>{_text(name)}</span><b>{_words(value)}</b></div>" for name, value in facts)
    body = "".join(f'<h2>{_text(p.title)}</h2><p class="dim">{_words(p.note)}</p>{p.body}' for p in parts)
    script = f"<script>{_SCRIPT}</script>" if 'class="attention"' in body else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(title)}</title><style>{_STYLE}</style></head><body><h1>{_text(title)}</h1>"
        f'<div class="facts">{shown}</div>{body}<p class="dim">Made by <code>{_text(command)}</code></p>'
        f"{script}</body></html>\n"
    )


def coloured_text(
    tokens: Sequence[str],
    scores: Sequence[float],
    kept: Sequence[bool] | None = None,
    most: float | None = None,
) -> str:
    """Returns a text whose tokens are coloured by their scores: blue for more, orange for less.

    Args:
        tokens: as `token_texts` gives them.
        scores: of the tokens.
        kept: tokens that are shown small: they are no part of the text.
        most: the score with the full colour; None: the largest one.
    """
    most = max([abs(float(x)) for x in scores] + [1e-12]) if most is None else most
    spans = []
    for i, (token, score) in enumerate(zip(tokens, scores, strict=True)):
        small = ' class="kept"' if kept is not None and kept[i] else ""
        spans.append(
            f'<i{small} style="{_colour(float(score), most)}" title="{float(score):+.3f}">{_spaced(token)}</i>'
        )
    return f'<div class="text">{"".join(spans)}</div>'


def grid(
    values: np.ndarray, rows: Sequence[str], columns: Sequence[str], texts: Sequence[Sequence[str]] | None = None
) -> str:
    """Returns a table of coloured cells.

    Args:
        values: `[rows, columns]`; NaN: an empty cell.
        rows: their names.
        columns: their names.
        texts: what stands in the cells; None: nothing, and a cell tells its value when it is pointed at.
    """
    most = float(np.nanmax(np.abs(values))) if np.isfinite(values).any() else 1.0
    upright = ' class="up"' if max(map(len, columns), default=0) > 3 else ""
    head = "".join(f"<th{upright}>{_text(_plain(c))}</th>" for c in columns)
    lines = []
    for i, row in enumerate(values):
        cells = "".join(
            f'<td style="{_colour(float(x), most)}" title="{_text(rows[i])}, {_text(_plain(columns[j]))}: {x:+.3f}">'
            f"{'' if texts is None else _text(_plain(texts[i][j]))}</td>"
            if np.isfinite(x)
            else "<td></td>"
            for j, x in enumerate(row)
        )
        lines.append(f"<tr><th>{_text(_plain(rows[i]))}</th>{cells}</tr>")
    return f'<div class="wide"><table class="grid"><tr><th></th>{head}</tr>{"".join(lines)}</table></div>'


def maps(weights: np.ndarray, queries: Sequence[str], keys: Sequence[str], first: tuple[int, int] | None = None) -> str:
    """Returns a small map for each layer and head, of which one is shown large; the script of the page draws them.

    Args:
        weights: `[layers, heads, queries, keys]`, not negative.
        queries: names of the rows of a map.
        keys: names of its columns.
        first: the layer and the head that is large at first; None: of the last layer, the first.
    """
    layers, heads = weights.shape[:2]
    most = float(weights.max()) or 1.0
    data = base64.b64encode(np.rint(weights / most * 255).astype(np.uint8).tobytes()).decode()
    names = [f"layer {i}, head {j}" for i in range(layers) for j in range(heads)]
    start = (layers - 1) * heads if first is None else first[0] * heads + first[1]
    told = {
        "data": data,
        "rows": [_plain(x) for x in queries],
        "cols": [_plain(x) for x in keys],
        "names": names,
        "first": start,
        "most": most,
    }
    small = "".join(
        f"<span>{i}</span>" + "".join(f'<canvas title="layer {i}, head {j}"></canvas>' for j in range(heads))
        for i in range(layers)
    )
    style = f"grid-template-columns:1.4rem repeat({heads},minmax(24px,64px))"
    # Nothing in a text can end the script.
    blob = re.sub("[<>&]", lambda x: f"\\u{ord(x[0]):04x}", json.dumps(told))
    return (
        f'<div class="attention"><div class="maps" style="{style}">{small}</div><p><b class="name"></b></p>'
        f'<div class="zoom"><canvas></canvas></div><p class="dim told"></p>'
        f'<script type="application/json">{blob}</script></div>'
    )


def table(rows: Sequence[Sequence[str]]) -> str:
    """Returns a table; its first row is the header. Columns of words are left-aligned, and those of numbers right."""
    words = [any(sum(map(str.isalpha, row[i])) > _LETTERS for row in rows[1:]) for i in range(len(rows[0]))]

    def line(row: Sequence[str], tag: str) -> str:
        kinds = (' class="words"' if word else "" for word in words)
        return "".join(f"<{tag}{kind}>{_text(cell)}</{tag}>" for cell, kind in zip(row, kinds, strict=True))

    head, body = line(rows[0], "th"), "".join(f"<tr>{line(row, 'td')}</tr>" for row in rows[1:])
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def bars(values: Sequence[float], names: Sequence[str]) -> str:
    """Returns horizontal bars: blue to the right for more, orange to the left for less."""
    height, low, high = 20, min(0.0, *values), max(0.0, *values)
    scale = 400 / max(high - low, 1e-12)
    zero = 160 - low * scale
    lines = []
    for i, (value, name) in enumerate(zip(values, names, strict=True)):
        width, y = abs(value) * scale, i * height
        x = zero if value >= 0 else zero - width
        kind = "up" if value >= 0 else "down"
        lines.append(
            f'<text x="150" y="{y + 14}" text-anchor="end">{_text(_plain(name))}</text>'
            f'<rect x="{x:.1f}" y="{y + 3}" width="{width:.1f}" height="14" rx="2" fill="rgb(var(--{kind}))"/>'
            f'<text x="{570}" y="{y + 14}">{value:+.3f}</text>'
        )
    return f'<svg viewBox="0 0 640 {height * len(lines)}" width="640" role="img">{"".join(lines)}</svg>'


def curves(lines: Mapping[str, Sequence[float]], ends: tuple[str, str] | None = None) -> str:
    """Returns up to two curves with their names, blue, then orange.

    Args:
        lines: the curves by name.
        ends: what stands below the first and the last point; None: the curves are over 0, 1, 2 ... tokens.
    """
    every = np.concatenate([np.asarray(line, float) for line in lines.values()])
    low, high = float(every.min()), float(every.max())
    spread, drawn = high - low or 1.0, []
    for number, (name, line) in enumerate(lines.items()):
        colour = f"rgb(var(--{('up', 'down')[number]}))"
        steps = max(1, len(line) - 1)
        points = " ".join(
            f"{60 + 400 * i / steps:.1f},{150 - 130 * (y - low) / spread:.1f}" for i, y in enumerate(line)
        )
        drawn.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        drawn.append(f'<text x="60" y="{186 + 16 * number}" style="fill:{colour}">{_text(name)}</text>')
    first, last = map(_text, ends or ("0", f"{len(line) - 1} tokens"))
    marks = f'<text x="52" y="24" text-anchor="end">{high:.2f}</text>'
    marks += f'<text x="52" y="154" text-anchor="end">{low:.2f}</text>'
    marks += f'<text x="60" y="168">{first}</text><text x="460" y="168" text-anchor="end">{last}</text>'
    return f'<svg viewBox="0 0 480 208" width="480" role="img">{marks}{"".join(drawn)}</svg>'


def ranges(lines: Mapping[str, Sequence[tuple[float, float, float]]], names: Sequence[str]) -> str:
    """Returns a row for each name with up to two points, blue and orange, on a line from the low to the high end.

    Args:
        lines: by what is measured, a value, its low and its high end for each name; NaN ends: none is drawn.
        names: of the rows.
    """
    every = np.array([numbers for line in lines.values() for numbers in line], float).reshape(-1, 3)
    low, high = float(np.nanmin(every)), float(np.nanmax(every))
    spread, height, drawn = high - low or 1.0, 26, []

    def place(x: float) -> float:
        return 160 + 400 * (x - low) / spread

    for i, name in enumerate(names):
        drawn.append(f'<text x="150" y="{height * i + 17}" text-anchor="end">{_text(_plain(name))}</text>')
        for number, line in enumerate(lines.values()):
            value, start, end = map(float, line[i])
            y, colour = height * i + 8 + 9 * number, f"rgb(var(--{('up', 'down')[number]}))"
            if np.isfinite([start, end]).all():
                drawn.append(
                    f'<path d="M{place(start):.1f} {y}H{place(end):.1f}" stroke="{colour}" stroke-width="2" '
                    'stroke-opacity="0.5"/>'
                )
            told = f"<title>{value:.3f} ({start:.3f} to {end:.3f})</title>"
            drawn.append(f'<circle cx="{place(value):.1f}" cy="{y}" r="4" fill="{colour}">{told}</circle>')
    bottom = height * len(names)
    ends = f'<text x="160" y="{bottom + 18}">{low:.2f}</text>'
    ends += f'<text x="560" y="{bottom + 18}" text-anchor="end">{high:.2f}</text>'
    for number, name in enumerate(lines):
        colour = f"rgb(var(--{('up', 'down')[number]}))"
        ends += f'<text x="160" y="{bottom + 36 + 16 * number}" style="fill:{colour}">{_text(name)}</text>'
    return f'<svg viewBox="0 0 640 {bottom + 60}" width="640" role="img">{"".join(drawn)}{ends}</svg>'


def _colour(score: float, most: float) -> str:
    """Returns the style of a score's background."""
    share = min(1.0, abs(score) / most)
    return f"background:rgba(var(--{'up' if score >= 0 else 'down'}),{0.75 * share:.3f})"


def _spaced(token: str) -> str:
    """Returns a token in a text: with a space for the mark of one."""
    return _text(token.replace("▁", " "))


def _plain(token: str) -> str:
    """Returns a token in a cell: without the mark of a space before it, unless that is all."""
    return token.removeprefix("▁") or token


def _words(text: str) -> str:
    """Returns a sentence that quotes tokens, without the marks of spaces before them."""
    return _text(re.sub("▁(?=[^\\W_])", "", text))


def _text(text: str) -> str:
    return html.escape(str(text))
