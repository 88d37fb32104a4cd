"""The flags of `lmjax predict`. Imports no jax."""

from __future__ import annotations

from absl import flags

from lmjax.commands.flags import define_column_names, define_help, define_model, define_path, define_processes

DESCRIPTION = """
lmjax predict: what a fine-tuned model predicts for each record, such as the label of a text and its probability.

  lmjax predict --workdir=runs/classifier --data=new.tsv                            to the terminal
  lmjax predict --model=classifier_folder/ --data=new.jsonl --output=predictions.jsonl
"""


def define() -> flags.FlagValues:
    """Returns the flags of the command, not parsed yet."""
    values = flags.FlagValues()
    flags.DEFINE_string(
        "data",
        None,
        "a file or a quoted glob of JSONL, CSV or TSV, or of CoNLL for words with tags, also gzipped, with the "
        "fields of the task, such as text, and text2 for pairs; a gold value such as label is copied to --output",
        flag_values=values,
    )
    flags.DEFINE_string("text_field", "text", "the field of JSON, or column, of a text", flag_values=values)
    define_path(
        values, "output", "a new JSON Lines file: each record, its gold value, and what is predicted with its scores"
    )
    flags.DEFINE_integer("batch_size", 32, "rows that are computed together", 1, flag_values=values)
    define_column_names(values)
    define_model(values)
    define_processes(values, "predict")
    define_help(values)
    return values
