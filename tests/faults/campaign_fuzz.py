"""Files of others, changed at random for so many minutes for each reader: how many are read, refused, or crash it."""

from __future__ import annotations

import collections
import pathlib
import time
import traceback

from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.faults.parsers import PARSERS, Parser, attempt, changes, made

_ROUND = 100


def run(parser: Parser, folder: pathlib.Path, seconds: float) -> tuple[collections.Counter, dict[str, str], float, int]:
    """Returns the counts by outcome, each crash once with its place, the longest read, and the growth of memory."""
    files = made(parser, folder)
    counts: collections.Counter[str] = collections.Counter()
    crashes: dict[str, str] = {}
    longest, grown, end = 0.0, 0, time.monotonic() + seconds

    def changed(change: tuple[pathlib.Path, bytes]) -> None:
        nonlocal longest, grown
        if time.monotonic() > end:
            return
        path, content = change
        try:
            outcome = attempt(parser, path, content)
        except BaseException as e:  # a panic of a library in Rust is no Exception
            if isinstance(e, KeyboardInterrupt | SystemExit):
                raise
            places = [(pathlib.Path(f.filename), f.lineno) for f in traceback.extract_tb(e.__traceback__)]
            file, line = [(file, line) for file, line in places if {"lmjax", "faults"} & {*file.parts}][-1]
            place = f"{type(e).__name__} at {file.name}:{line}"
            counts["crash"] += 1
            if place not in crashes:
                crashes[place] = traceback.format_exc()
                (folder / f"crash-{len(crashes)}-{path.name}").write_bytes(content)
            return
        counts["read" if outcome.accepted else "refused"] += 1
        longest, grown = max(longest, outcome.seconds), grown + outcome.grown

    number = 0
    while time.monotonic() < end:
        number += 1
        each = settings(
            max_examples=_ROUND, deadline=None, database=None, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        seed(number)(each(given(changes(parser, files))(changed)))()
    return counts, crashes, longest, grown


def rows(folder: pathlib.Path, number: int) -> list[str]:
    """Returns the rows of the table of the campaign, after `number` minutes for each reader."""
    lines = []
    for parser in PARSERS:
        counts, crashes, longest, grown = run(parser, folder / parser.name.replace(" ", "_"), 60 * number)
        lines.append(
            f"| {parser.name}, changed at random | {counts.total()} | {counts['read']} read, "
            f"{counts['refused']} refused, {counts['crash']} crashes; "
            f"at most {longest:.2f} s, {grown / 2**20:.0f} MiB more in all |"
        )
        lines += [f"| {parser.name}: {place.replace('|', ' ')} | | |" for place in crashes]
    return lines
