"""The flags of `lmjax tokenizer`. Imports no jax."""

from __future__ import annotations

from absl import flags

from lmjax.commands import facts
from lmjax.commands.flags import define_choice, define_data, define_help, define_path

DESCRIPTION = """
lmjax tokenizer: trains a SentencePiece tokenizer on the training part of the data and writes it to a file.

  lmjax tokenizer --data='texts/*.txt' --vocab_size=8192 --output=my.model
  lmjax train --data='texts/*.txt' --config.tokenizer.path=my.model
"""

# Flags that stand for one field of the config.
FIELDS = {"vocab_size": "tokenizer.vocab_size", "kind": "tokenizer.kind"}
SAME = FIELDS | {"data": "data.train"}


def define() -> flags.FlagValues:
    """Returns the flags of the command, not parsed yet."""
    values = flags.FlagValues()
    define_data(values)
    flags.DEFINE_integer("vocab_size", None, "number of tokens, with special tokens and bytes", flag_values=values)
    define_choice(values, "kind", facts.fields(*facts.CONFIG)["tokenizer.kind"].choices, "the algorithm")
    define_path(values, "output", "the file to write; it must not exist", "tokenizer.model")
    define_help(values)
    return values
