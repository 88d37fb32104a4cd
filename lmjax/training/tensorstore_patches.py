"""Works around two flaws of tensorstore: memory that each save loses, and tracebacks after a save that failed.

Tensorstore up to 0.1.86, the newest, never frees the values inside the objects that it converts from JSON to Python.
Orbax 0.12 calls two such functions in every save: `KvStore.Spec.to_json` once per array (0.26 KiB lost each time),
and `experimental_collect_matching_metrics`, for its log, twice (5 KiB each). A state of 62 arrays lost 28 KiB in each
save. From save 40 to save 280 the process grew by about 19 MiB, and with `reduce_leaks` by 11 MiB; later it grows more
slowly (12 KiB a save over an hour), and about 1 KiB a save stays allocated. To remove it, delete the call of
`reduce_leaks`: tests/training/test_tensorstore_patches.py then passes if tensorstore no longer loses memory.

After a save that failed, tensorstore still reports to the event loop of orbax, which is closed, and Python prints a
traceback for each report. `hide_late_reports` drops these, because the error of the save is raised anyway. To remove
it, delete its call and see whether the test of an unreadable file in a save still passes.
"""

from __future__ import annotations

import copy
import functools
import sys
from typing import Any

import tensorstore as ts

_LATE = "Event loop is closed"
_to_json = ts.KvStore.Spec.to_json


def apply_patches() -> None:
    """Works around both flaws, in the whole process; more than one call has no effect."""
    reduce_leaks()
    hide_late_reports()


def reduce_leaks() -> None:
    """Replaces both functions of tensorstore; more than one call has no effect."""
    ts.KvStore.Spec.to_json = _spec_to_json
    ts.experimental_collect_matching_metrics = _no_metrics


def _spec_to_json(spec: ts.KvStore.Spec, *arguments: Any, **options: Any) -> Any:
    """Returns what `to_json` returns; the original is called once for each spec, and not once for each array."""
    return copy.deepcopy(_converted(_Hashable(spec), arguments, tuple(options.items())))


def hide_late_reports() -> None:
    """Prints no traceback of a report to a closed event loop; more than one call has no effect."""
    if getattr(sys.unraisablehook, "hides_late_reports", False):
        return
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if not (unraisable.exc_type is RuntimeError and str(unraisable.exc_value) == _LATE):
            before(unraisable)

    hook.hides_late_reports = True
    sys.unraisablehook = hook


class _Hashable:
    """A spec as a key of a cache: two specs with one text are equal."""

    def __init__(self, spec: ts.KvStore.Spec):
        self.spec, self._text = spec, repr(spec)

    def __hash__(self) -> int:
        return hash(self._text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Hashable) and self._text == other._text


@functools.lru_cache(maxsize=64)
def _converted(key: _Hashable, arguments: tuple[Any, ...], options: tuple[tuple[str, Any], ...]) -> Any:
    return _to_json(key.spec, *arguments, **dict(options))


def _no_metrics(*_: Any, **__: Any) -> list[dict[str, Any]]:
    """Returns no metrics; orbax uses them only for its log, which lmjax does not show."""
    return []
