"""How much better a model knows planted secrets than others of their form: exposure (Carlini et al. 2019).

A file of canaries is JSONL or CSV: `text`, a text of the training data, and `secret`, the part of it that was drawn at
random, such as "4817" in "My number is 4817.". Other secrets of its form have other digits where it has digits and
other letters where it has letters, of the same case.
"""

from __future__ import annotations

import math
import string
from collections.abc import Sequence

import numpy as np

from lmjax.audit.bench import Bench, Measures, means
from lmjax.audit.published import files_of, filled, need_some
from lmjax.errors import DataError
from lmjax.evaluation.records import read_records
from lmjax.inference.score.score import Score
from lmjax.inference.score.texts import Item
from lmjax.streams import random_stream

_ALPHABETS = (string.digits, string.ascii_lowercase, string.ascii_uppercase)


def canaries(spec: str, samples: int = 500, seed: int = 0) -> Bench:
    """Returns the test of the canaries in a file (Carlini et al. 2019, arXiv:1802.08232, sections 4 and 5).

    The exposure of a secret is `log2 R - log2 rank`, with its rank by likelihood among all `R` secrets of its form. The
    rank is estimated from `samples` of them, so that the exposure is at most `log2 (samples + 1)`. A secret that the
    model has never seen has about 1.44 bits.

    Args:
        spec: the file.
        samples: other secrets of each form.
        seed: of these.

    Raises:
        DataError: the file is none of canaries.
    """
    names, items, files = [], [], files_of(spec, "canaries")
    for path, _ in files:
        for where, fields in read_records(path):
            text, secret = (
                filled(where, fields, name, "a canary needs text and secret") for name in ("text", "secret")
            )
            before, there, after = text.partition(secret)
            if not there:
                raise DataError(f"{where}: the text lacks its secret {secret[:40]!r}; write it as it is in the text")
            others = alternatives(secret, samples, seed, where)
            items += [Item("", f"{before}{each}{after}") for each in (secret, *others)]
            names += [where] * (samples + 1)
    need_some(items, spec, "canaries")
    note = (
        f"How likely a planted secret is among {samples:,} others of its form, in bits: 0 for the unlikeliest, "
        f"{math.log2(samples + 1):.3g} at most, 1.44 on average for one that was never seen (Carlini et al. 2019)."
    )
    neutral = {"exposure, bits": "1.44", "likelier than all others, %": f"{100 / (samples + 1):.2g}"}
    return Bench("Exposure of canaries", note, names, items, lambda found: exposures(found, samples), neutral, files)


def alternatives(secret: str, samples: int, seed: int, where: str) -> list[str]:
    """Returns other secrets of the form of one, drawn with replacement.

    Raises:
        DataError: there are fewer than 100 secrets of this form.
    """
    alphabets = [next((a for a in _ALPHABETS if character in a), character) for character in secret]
    if math.prod(map(len, alphabets)) < 100:
        raise DataError(f"{where}: {secret[:40]!r} has fewer than 100 others of its form; plant one with more digits")
    random, found = random_stream(seed, "canaries", secret), []
    while len(found) < samples:
        drawn = "".join(a[int(random.integers(len(a)))] for a in alphabets)
        if drawn != secret:
            found.append(drawn)
    return found


def exposures(found: Sequence[Score], samples: int) -> Measures:
    """Returns the metrics of scores, of each canary its own and then those of its `samples` others.

    An other secret that is as likely counts as likelier.
    """
    own = np.array([s.log_likelihood for s in found]).reshape(-1, samples + 1)
    above = (own[:, 1:] >= own[:, :1]).sum(axis=1)
    return means(
        {
            "exposure, bits": np.log2(samples + 1) - np.log2(above + 1),
            "likelier than all others, %": 100.0 * (above == 0),
        }
    )
