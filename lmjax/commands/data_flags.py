"""The flags of `lmjax data`. Imports no jax."""

from __future__ import annotations

from absl import flags

from lmjax.commands.flags import define_choice, define_column_names, define_help, define_path

DESCRIPTION = """
lmjax data: what stands in data: lengths, copies, personal data, languages, and how much of an evaluation set.

  lmjax data --data='texts/*.txt' --near --languages     near duplicates and languages (pip install 'lmjax[audit]')
  lmjax data --data=train.csv --against=test.csv         contamination of an evaluation set
"""


def define() -> flags.FlagValues:
    """Returns the flags of the command, not parsed yet."""
    values = flags.FlagValues()
    text = "a file or a quoted glob of text, JSONL, CSV or TSV, also gzipped, or stdlib"
    flags.DEFINE_string("data", None, text, flag_values=values)
    flags.DEFINE_string("against", None, "an evaluation set: how much of it stands in the data", flag_values=values)
    flags.DEFINE_string("text_field", "text", "the field of JSON, or column, of a text", flag_values=values)
    define_column_names(values)
    kinds = ["auto", "files", "paragraphs", "lines"]
    define_choice(values, "documents", kinds, "how running text is split, as data.documents of a run", "auto")
    flags.DEFINE_float("held_out", 0.05, "share that a run holds out, as data.held_out", 0.0, 0.5, flag_values=values)
    flags.DEFINE_boolean("near", False, "look for near duplicates too, by MinHash", flag_values=values)
    flags.DEFINE_float("threshold", 0.8, "Jaccard similarity of near duplicates", 0.2, 1.0, flag_values=values)
    flags.DEFINE_integer(
        "ngram", 13, "with --against, words in a row that make a text known", 1, 1000, flag_values=values
    )
    flags.DEFINE_boolean("languages", False, "count documents by language too, by py3langid", flag_values=values)
    flags.DEFINE_boolean("show", False, "show personal data as it is, in place of masked", flag_values=values)
    define_path(values, "output", "a new .html or .md file (default: none)")
    define_help(values)
    return values
