"""Counterfactual templates: how a model's output changes if a sentence names another group.

A file is JSON: `slots`, from the name of each slot to its groups, each a list of words; and `templates`, texts with one
slot in braces. `lists.OWN` is one.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lmjax.audit.findings import Section, findings_of
from lmjax.audit.lists import OWN
from lmjax.audit.published import files_of, read_json
from lmjax.data.fields import Fields, check_text
from lmjax.errors import DataError
from lmjax.evaluation.intervals import Measurement, of_means

_NEED = 'templates are JSON as {"slots": {"name": {"female": ["Anna"], "male": ["Paul"]}}, "templates": ["{name} ..."]}'


class Filled(NamedTuple):
    """A template with a word in its slot: the text up to the end of the word, and the text after it."""

    before: str
    after: str

    @property
    def text(self) -> str:
        """Returns the whole text."""
        return self.before + self.after


class Template(NamedTuple):
    """A template: its slot, and its filled texts by group."""

    name: str
    slot: str
    groups: Mapping[str, Sequence[Filled]]


# From texts to numbers by name, and a label for each; no labels: the numbers belong to no classes.
Rate = Callable[[Sequence[Filled]], tuple[Mapping[str, np.ndarray], Sequence[str]]]


def read_templates(spec: str) -> tuple[list[Template], list[tuple[str, str]]]:
    """Returns the templates in files or, for "own", those of lmjax; and the files with their fingerprints.

    Raises:
        DataError: a file holds no templates.
    """
    if spec == "own":
        return _templates("own", json.loads(json.dumps(OWN), object_pairs_hook=Fields)), []
    files = files_of(spec, "templates")
    return [t for path, _ in files for t in _templates(path, read_json(path, "templates"))], files


def _templates(path: str, given: Fields) -> list[Template]:
    where, slots, texts = f"--templates={path}", given.get("slots"), given.get("templates")
    if not isinstance(slots, Fields) or not isinstance(texts, list) or not texts:
        raise DataError(f"{where}: has no slots and templates; {_NEED}")
    for slot, groups in slots.items():
        words = groups.values() if isinstance(groups, Fields) else ()
        if len(words) < 2 or not all(isinstance(w, list) and w and all(isinstance(x, str) for x in w) for w in words):
            raise DataError(f"{where}: the slot {slot[:40]!r} needs two or more groups, each a list of words; {_NEED}")
        for word in itertools.chain(*words):
            check_text(where, f"slots.{slot}", word)
    found = []
    for number, text in enumerate(texts):
        place = f"{where}: templates[{number}]"
        if not isinstance(text, str):
            raise DataError(f"{place} is {str(text)[:40]!r}, not a text; {_NEED}")
        check_text(place, "template", text)
        used = re.findall(r"\{(.*?)\}", text)
        if len(used) != 1 or used[0] not in slots:
            raise DataError(f"{place}, {text[:60]!r}, needs one of the slots {', '.join(slots)} in braces, once")
        start, end = text.split("{" + used[0] + "}")
        groups = {group: [Filled(start + word, end) for word in words] for group, words in slots[used[0]].items()}
        found.append(Template(text, used[0], groups))
    return found


def section(
    templates: Sequence[Template], files: Sequence[tuple[str, str]], note: str, rate: Rate, against: Rate | None = None
) -> Section:
    """Returns the gaps between groups of one model, or of two.

    Args:
        templates: the templates.
        files: where they come from.
        note: what the numbers are.
        rate: from texts to what the model says of them.
        against: the same of another model; None: there is none.
    """
    first = gaps(templates, rate)
    second = None if against is None else gaps(templates, against)
    found, rows = [], []
    for slot, (measurement, columns) in first.items():
        other = None if second is None else second[slot][0]
        own = [t for t in templates if t.slot == slot]
        counts = dict.fromkeys(measurement.values, len(own))
        found += findings_of(measurement, other, counts, dict.fromkeys((n.partition(":")[0] for n in counts), "0"))
        name = max(columns, key=lambda n: np.abs(columns[n]).max())
        rows += [(abs(x), t.name, name, f"{x:+.3f}") for t, x in zip(own, columns[name], strict=True)]
    worst = [row[1:] for row in sorted(rows, reverse=True)[:10]]
    text = (
        f"{note} Each template is filled with every word of each group; a gap is the mean of one group minus that of "
        "the other, or, of more than two, minus the mean of all groups. The bootstrap draws templates and not words: "
        "an interval says nothing of other words, of which a small model has rare ones for other reasons than groups."
    )
    table = [("template", "gap", "value"), *worst]
    return Section("Counterfactual templates", text, found, files, table, "Templates with the largest gaps")


def gaps(templates: Sequence[Template], rate: Rate) -> dict[str, tuple[Measurement, dict[str, np.ndarray]]]:
    """Returns by slot the mean gaps over its templates, and the gap of each template by name."""
    texts = [text for t in templates for words in t.groups.values() for text in words]
    numbers, labels = rate(texts)
    made: dict[str, dict[str, list[float]]] = {}
    start = 0
    for t in templates:
        own, columns = {}, made.setdefault(t.slot, {})
        for group, words in t.groups.items():
            own[group] = slice(start, start + len(words))
            start += len(words)
        for name, values in numbers.items():
            means = {group: float(np.mean(values[part])) for group, part in own.items()}
            for label, gap in _gaps(means).items():
                columns.setdefault(f"{name}, {t.slot}: {label}", []).append(gap)
        if labels:
            said = [label for part in own.values() for label in labels[part]]
            most = max(said.count(label) for label in set(said))
            columns.setdefault(f"other labels, {t.slot}, %", []).append(100 * (1 - most / len(said)))
    arrays = {slot: {n: np.array(c) for n, c in columns.items()} for slot, columns in made.items()}
    return {slot: (of_means(columns), columns) for slot, columns in arrays.items()}


def _gaps(means: Mapping[str, float]) -> dict[str, float]:
    """Returns the differences of groups: of two from each other, of more from the mean of all."""
    if len(means) == 2:
        (one, x), (other, y) = means.items()
        return {f"{one} - {other}": x - y}
    middle = sum(means.values()) / len(means)
    return {f"{group} - all": x - middle for group, x in means.items()}
