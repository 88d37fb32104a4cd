"""`lmjax tokenizer`: trains a SentencePiece tokenizer alone, and says how well it compresses."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from absl import flags

from lmjax.commands.flags import data_fields, define_data, help_text, parse
from lmjax.config import resolve
from lmjax.data.sources import open_splits
from lmjax.data.tokenizer import Tokenizer, train_tokenizer
from lmjax.errors import FlagError

DESCRIPTION = """
lmjax tokenizer: trains a SentencePiece tokenizer on the training part of the data and writes it to a file.

  lmjax tokenizer --data='texts/*.txt' --vocab_size=8192 --output=my.model
  lmjax train --data='texts/*.txt' --config.tokenizer.path=my.model
"""


def _flags() -> flags.FlagValues:
    values = flags.FlagValues()
    define_data(values)
    flags.DEFINE_integer("vocab_size", None, "pieces, special ones and bytes included", flag_values=values)
    flags.DEFINE_enum("kind", None, ["unigram", "bpe", "char"], "the algorithm", flag_values=values)
    flags.DEFINE_string("output", "tokenizer.model", "where it is written; must not exist", flag_values=values)
    flags.DEFINE_boolean("help", False, "show this", short_name="h", flag_values=values)
    return values


def main(argv: Sequence[str]) -> Tokenizer | None:
    """Returns the tokenizer that the flags ask for, written to --output."""
    values = _flags()
    overrides = parse(values, argv)
    if values["help"].value:
        print(help_text(values, DESCRIPTION))
        return None
    output = pathlib.Path(values["output"].value)
    if output.exists():
        raise FlagError(f"--output={output} exists already; remove it or give another name")
    if not output.parent.is_dir():
        raise FlagError(f"--output={output}: there is no folder {output.parent}; make it first")
    fields = {
        **data_fields(values["data"].value),
        "tokenizer.vocab_size": values["vocab_size"].value,
        "tokenizer.kind": values["kind"].value,
    }
    config = resolve(overrides=overrides, fields={k: v for k, v in fields.items() if v is not None})
    train, evals = open_splits(config.data, pairs=False)
    tokenizer = train_tokenizer((d.text for read in train.values() for d in read()), config.tokenizer)
    tokenizer.save(str(output))
    print(f"{output}: {tokenizer.vocab_size} pieces")
    named = [*train.items(), *((f"held out of {name}" if name in train else name, e) for name, e in evals.items())]
    for name, documents in named:
        num_bytes = num_tokens = 0
        for document in documents():
            text = document.text
            num_bytes += len(text.encode())
            num_tokens += len(tokenizer.encode(text))
        print(
            f"{name}: {num_tokens:,} tokens, {num_bytes:,} bytes, {num_tokens / max(num_bytes, 1):.4f} tokens per byte"
        )
    return tokenizer
