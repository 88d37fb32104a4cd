"""Cases of which most are slow, where every case takes long and a few find most faults."""

from collections.abc import Iterable

import pytest


def thinned(cases: Iterable[object], every: int) -> list[object]:
    """Returns the cases for `pytest.mark.parametrize`; all but every `every`-th run with `pytest -m slow` only."""
    return [
        case if i % every == 0 else pytest.param(*case if isinstance(case, tuple) else (case,), marks=pytest.mark.slow)
        for i, case in enumerate(cases)
    ]
