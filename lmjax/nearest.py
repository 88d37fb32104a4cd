"""Suggestions of known names that resemble an unknown one, for error messages."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence

# The least similarity, from 0 to 1, of a suggested name: in general, and to a whole path or a name in another group.
_CUTOFF = 0.6
_SAME_KIND = 0.75
# The most fields in a suggestion; the most names that are listed beside a suggestion; the fewest letters of a name that
# is suggested for being part of a field's name.
_MOST, _LISTED, _PART = 4, 12, 4


def nearest(name: str, known: Collection[str], cutoff: float = _CUTOFF) -> str:
    """Returns "did you mean NAME?", or "" if no known name is similar; case is ignored, and `-` equals `_`."""
    plain: dict[str, str] = {}
    for each in known:
        plain.setdefault(_plain(each), each)
    close = difflib.get_close_matches(_plain(name), plain, 1, cutoff)
    return f"did you mean {plain[close[0]]}?" if close else ""


def choose(kind: str, name: str, known: Sequence[str]) -> str:
    """Returns the error message for a name not in `known`: the most similar name, and all names if they are few."""
    hint = nearest(name, known)
    if hint and len(known) > _LISTED:
        return f"no {kind} {name!r}; {hint} (--help lists all {len(known)})"
    return f"no {kind} {name!r}; {hint}{' ' if hint else ''}choose one of {', '.join(known)}"


def nearest_fields(path: str, known: Collection[str]) -> str:
    """Returns "did you mean --config.PATH?" with the config fields that a wrong dotted path may mean, or "".

    The first of these that exists: the fields of groups of that name, and fields of that name in other groups; a
    similar name in the same group; a similar path; a similar name in any group; names that contain the given name.
    """
    found = _fields(_plain(path), {_plain(p): p for p in known})
    shown = " or ".join(f"--config.{p}" for p in found[:_MOST])
    return f"did you mean {shown}?" if shown else ""


def _fields(path: str, known: dict[str, str]) -> list[str]:
    """Returns the known paths that `path` may mean; `path` and the keys of `known` are in the form of `_plain`."""
    group, _, last = path.rpartition(".")
    names: dict[str, list[str]] = {}
    for plain, whole in known.items():
        names.setdefault(plain.rpartition(".")[2], []).append(whole)
    inside = [whole for plain, whole in known.items() if f".{last}." in f".{plain}"]
    if last in names:
        return [*inside, *names[last]]
    siblings = {plain.rpartition(".")[2]: whole for plain, whole in known.items() if plain.rpartition(".")[0] == group}
    for candidates, given, cutoff in ((siblings, last, _CUTOFF), (known, path, _SAME_KIND)):
        if close := difflib.get_close_matches(given, candidates, 1, cutoff):
            return [candidates[close[0]]]
    if inside:
        return inside
    if close := difflib.get_close_matches(last, names, 1, _SAME_KIND):
        return names[close[0]]
    return [p for name, paths in names.items() if len(last) >= _PART and last in name for p in paths]


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")
