"""Entities in sequences of tags: precision, recall and F1 of exact spans, as conlleval counts them.

conlleval is the script of the CoNLL-2000 and CoNLL-2003 tasks (Tjong Kim Sang and De Meulder 2003, section 2.4): an
entity is right if its type, its first and its last word are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lmjax.data.tag_schemes import entities
from lmjax.errors import DataError
from lmjax.evaluation.classes import of_hits
from lmjax.evaluation.intervals import Measurement, check_examples, of_sums


def entity_f1(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> Measurement:
    """Returns `precision`, `recall` and `f1` of entities: `micro`, `macro`, and of each type, such as "f1 person".

    conlleval's overall figures are the micro averages; macro averages are over the types of both sides. The intervals
    are over sentences.

    Args:
        gold: the tags of each sentence.
        predicted: likewise.

    Raises:
        DataError: no sentences, not as many or not of the same lengths, an unknown tag, or no entity on either side.
    """
    check_examples(gold, predicted)
    for i, (one, other) in enumerate(zip(gold, predicted, strict=True)):
        if len(one) != len(other):
            raise DataError(f"sentence {i}: {len(one)} gold and {len(other)} predicted tags; give one for each word")
    sides = [[set(entities(tags)) for tags in side] for side in (gold, predicted)]
    types = sorted({entity.type for side in sides for found in side for entity in found})
    if not types:
        raise DataError(f"no entity in {len(gold)} sentences, neither in the gold tags nor in the predictions")
    column = {name: i for i, name in enumerate(types)}
    rows = np.zeros((len(gold), 3, len(types)))
    for row, there, found in zip(rows, *sides, strict=True):
        for part, of in zip(row, (there & found, found, there), strict=True):
            for entity in of:
                part[column[entity.type]] += 1

    def of(sums: np.ndarray) -> dict[str, np.ndarray]:
        return of_hits(*sums.reshape(-1, 3, len(types)).transpose(1, 0, 2), types)

    return of_sums(rows.reshape(len(gold), -1), of)
