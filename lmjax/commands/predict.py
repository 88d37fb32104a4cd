"""`lmjax predict`: what a fine-tuned model predicts for each record of a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from absl import flags

from lmjax.commands.models import described, in_processes, named, opened, prepare
from lmjax.commands.prompts import new_file, write_records
from lmjax.data.files import find_files
from lmjax.errors import FlagError
from lmjax.evaluation.predicted import predict_documents, read_documents
from lmjax.phases import phase


@in_processes
def main(values: flags.FlagValues) -> list[Mapping[str, Any]]:
    """Returns a record for each record of the data: what it holds, and what the model predicts."""
    place = values[named(values, "predict")].value
    if not values["data"].value:
        raise FlagError("lmjax predict needs --data=FILE")
    # A missing file is told before the model is looked for.
    find_files(values["data"].value)
    output = new_file(values["output"].value)
    prepare()
    # Errors in the data are told before the parameters are read.
    task = described(values, place).task
    with phase("reading the data"):
        names = {"text": values["text_field"].value}
        documents = read_documents(
            values["data"].value, task, gold=False, names=names, header=values["column_names"].value
        )
    loaded = opened(values, place)
    with phase(f"predicting for {len(documents):,} record(s)"):
        found = predict_documents(loaded, documents, values["batch_size"].value)
    if output is None:
        for record in found:
            print(task.shown(record))
        return found
    write_records(output, found)
    print(f"{len(found):,} record(s) written to {output}")
    return found
