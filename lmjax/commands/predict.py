"""`lmjax predict`: labels texts with a trained classifier."""

from __future__ import annotations

import collections
from collections.abc import Mapping
from typing import Any

from absl import flags

from lmjax.commands.models import named, opened, prepare
from lmjax.commands.prompts import new_file, write_records
from lmjax.data.records import FieldNames
from lmjax.errors import FlagError
from lmjax.evaluation.labels import predictions, read_labelled
from lmjax.inference.classify import check_classifier, probabilities
from lmjax.phases import phase


def main(values: flags.FlagValues) -> list[Mapping[str, Any]]:
    """Returns a record for each text: its label, the label's probability, and those of all labels."""
    place = values[named(values, "predict")].value
    if not values["data"].value:
        raise FlagError("lmjax predict needs --data=FILE")
    output = new_file(values["output"].value)
    with phase("reading the data"):
        texts = read_labelled(values["data"].value, (), needed=False, names=FieldNames(text=values["text_field"].value))
    prepare()
    loaded = opened(values, place)
    check_classifier(loaded)
    with phase(f"labelling {len(texts):,} text(s)"):
        scores = probabilities(loaded, [(each.text, each.second) for each in texts], values["batch_size"].value)
    found = predictions(texts, scores, loaded.labels)
    if output is None:
        for record in found:
            print(f"{record['label']}\t{record['score']:.4f}")
        return found
    write_records(output, found)
    counts = collections.Counter(record["label"] for record in found)
    print(f"{', '.join(f'{label}: {count:,}' for label, count in counts.most_common())}\nwritten to {output}")
    return found
