"""The results of an audit: numbers with intervals and sample sizes, and the page or Markdown that shows them."""

from __future__ import annotations

import hashlib
import html
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from lmjax.analysis.page import Part, table
from lmjax.errors import DataError
from lmjax.evaluation.intervals import Difference, Measured, Measurement, compare


class Finding(NamedTuple):
    """A number of an audit.

    Attributes:
        name: of the number.
        value: of the audited model, with its interval if it has one.
        examples: it is computed from.
        neutral: the value of a model without the bias, as a text; empty: there is none.
        against: the value of the other model; None: one model is audited.
        difference: first minus second, by the paired bootstrap; None: there is none.
        p: the p-value of a permutation test; None: there was none.
    """

    name: str
    value: Measured
    examples: int
    neutral: str = ""
    against: Measured | None = None
    difference: Difference | None = None
    p: float | None = None


class Section(NamedTuple):
    """A part of an audit.

    Attributes:
        title: its heading.
        note: what was computed, from which source, and how to read it.
        findings: its numbers.
        files: that were read, with their fingerprints.
        rows: a table, its first row the header; empty: there is none.
        rows_title: what the table shows.
    """

    title: str
    note: str
    findings: Sequence[Finding]
    files: Sequence[tuple[str, str]] = ()
    rows: Sequence[Sequence[str]] = ()
    rows_title: str = ""


def findings_of(
    first: Measurement,
    second: Measurement | None,
    counts: Mapping[str, int],
    neutral: Mapping[str, str] | None = None,
) -> list[Finding]:
    """Returns the metrics of one model, or of two on the same examples.

    Args:
        first: of the audited model.
        second: of the other one; None: there is none.
        counts: the examples of each metric.
        neutral: the values of models without bias, by the name of the metric before its colon.
    """
    values = first.measured()
    others = second.measured() if second is not None else {}
    differences = compare(first, second) if second is not None else {}
    return [
        Finding(
            name,
            value,
            counts[name],
            (neutral or {}).get(name.partition(":")[0], ""),
            others.get(name),
            differences.get(name),
        )
        for name, value in values.items()
    ]


def fingerprint(path: str) -> str:
    """Returns the first 16 hex digits of the SHA-256 of a file; raises DataError if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError as e:
        raise DataError(f"{path}: cannot be read ({e.strerror})") from e


def part(section: Section) -> Part:
    """Returns a section as a part of a page."""
    tables = [table(_rows(section))] if section.findings else []
    if len(section.rows) > 1:
        tables += [f"<p><b>{section.rows_title}</b></p>" if section.rows_title else "", table(section.rows)]
    if section.files:
        tables.append(table([("file", "fingerprint"), *section.files]))
    return Part(section.title, section.note, "".join(tables), tuple(_lines(section)))


def markdown(title: str, facts: Sequence[tuple[str, str]], sections: Sequence[Section], command: str) -> str:
    """Returns an audit as Markdown; arguments as those of `page.page`."""
    lines = [f"# {title}", "", *(f"* {name}: {value}" for name, value in facts)]
    for section in sections:
        lines += ["", *lines_of(section, "##")]
    return "\n".join([*lines, "", f"Made by `{command}`", ""])


def lines_of(section: Section, mark: str) -> list[str]:
    """Returns a section as lines of Markdown; `mark` begins its heading."""
    lines = [f"{mark} {section.title}", "", section.note, ""]
    lines += _pipes(_rows(section)) if section.findings else []
    if len(section.rows) > 1:
        lines += ["", *([section.rows_title, ""] if section.rows_title else []), *_pipes(section.rows)]
    return [*lines, "", *(f"* `{name}` fingerprint `{digest}`" for name, digest in section.files)]


def chart(counts: Sequence[int], names: Sequence[str]) -> str:
    """Returns horizontal bars of counts."""
    most, lines = max(counts, default=0) or 1, []
    for i, (count, name) in enumerate(zip(counts, names, strict=True)):
        y, width = 20 * i, 300 * count / most
        lines.append(
            f'<text x="170" y="{y + 14}" text-anchor="end">{html.escape(name)}</text>'
            f'<rect x="180" y="{y + 3}" width="{width:.1f}" height="14" rx="2" fill="rgb(var(--up))"/>'
            f'<text x="{186 + width:.1f}" y="{y + 14}">{count:,}</text>'
        )
    return f'<svg viewBox="0 0 560 {20 * len(lines)}" width="560" role="img">{"".join(lines)}</svg>'


def _rows(section: Section) -> list[list[str]]:
    """Returns the table of the findings, with the columns that any of them has."""
    found = section.findings
    two, tested = any(f.against is not None for f in found), any(f.p is not None for f in found)
    unbiased = any(f.neutral for f in found)
    ranged = any(f.value.low is not None for f in found)
    head = [
        "",
        "value",
        *(["95 % interval"] if ranged else []),
        *(["unbiased"] if unbiased else []),
        *(["p"] if tested else []),
    ]
    rows = [[*head, *(["against", "difference"] if two else []), "examples"]]
    for f in found:
        row = [f.name, number(f.value), *([interval(f.value.low, f.value.high)] if ranged else [])]
        row += [f.neutral] if unbiased else []
        row += [f"{f.p:.3g}" if f.p is not None else ""] if tested else []
        row += [number(f.against) if f.against is not None else "", _difference(f.difference)] if two else []
        rows.append([*row, f"{f.examples:,}"])
    return rows


def _lines(section: Section) -> list[str]:
    """Returns the findings as lines for a terminal; of a section that has a table alone, its rows."""
    if not section.findings:
        return [": ".join(map(str, row)) for row in section.rows[1:]]
    width = max((len(f.name) for f in section.findings), default=0)
    lines = []
    for f in section.findings:
        line = f"{f.name:<{width}}  {number(f.value)}"
        line += f" ({text})" if (text := interval(f.value.low, f.value.high)) else ""
        line += f", unbiased {f.neutral}" if f.neutral else ""
        line += f", p {f.p:.3g}" if f.p is not None else ""
        line += f", against {number(f.against)}" if f.against is not None else ""
        line += f", difference {_difference(f.difference)}" if f.difference is not None else ""
        lines.append(f"{line}, {f.examples:,} examples")
    return lines


def _difference(found: Difference | None) -> str:
    return "" if found is None else f"{found.value:+.3g} ({interval(found.low, found.high)}; p {found.p:.2g})"


def number(value: float) -> str:
    """Returns a number with the digits that a reader needs."""
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) >= 1000 else f"{value:.4g}"


def interval(low: float | None, high: float | None) -> str:
    """Returns an interval as a text; empty if there is none."""
    return "" if low is None or high is None else f"{low:.3g} to {high:.3g}"


def _pipes(rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns a Markdown table; its first row is the header."""
    lines = ["| " + " | ".join(str(c).replace("|", "\\|").replace("\n", " ") for c in row) + " |" for row in rows]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]
