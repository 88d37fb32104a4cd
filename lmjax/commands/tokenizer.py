"""`lmjax tokenizer`: trains only a SentencePiece tokenizer, and prints how many tokens per byte it makes."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping

from absl import flags

from lmjax.commands.flags import data_fields
from lmjax.commands.tokenizer_flags import FIELDS
from lmjax.config import resolve
from lmjax.data.splits import open_splits
from lmjax.data.tokenizer import Tokenizer, train_tokenizer
from lmjax.errors import FlagError
from lmjax.phases import phase


def main(values: flags.FlagValues, overrides: Mapping[str, str]) -> Tokenizer:
    """Returns the tokenizer that the flags ask for, written to --output."""
    output = pathlib.Path(values["output"].value)
    if output.exists():
        raise FlagError(f"--output={output} exists already; remove it or give another name")
    if not output.parent.is_dir():
        raise FlagError(f"--output={output}: there is no folder {output.parent}; make it first")
    fields = data_fields(values["data"].value)
    fields |= {path: values[name].value for name, path in FIELDS.items() if values[name].value is not None}
    config = resolve(overrides=overrides, fields=fields)
    train, evals = open_splits(config.data, pairs=False, subset_seed=config.seed_of("subset"))
    with phase("training the tokenizer"):
        tokenizer = train_tokenizer((d.text for read in train.values() for d in read()), config.tokenizer)
    tokenizer.save(str(output))
    print(f"{output}: {tokenizer.vocab_size} tokens")
    named = [*train.items(), *((f"held out of {name}" if name in train else name, e) for name, e in evals.items())]
    for name, documents in named:
        num_bytes = num_tokens = 0
        with phase(f"counting the tokens of {name}"):
            for document in documents():
                text = document.text
                num_bytes += len(text.encode())
                num_tokens += len(tokenizer.encode(text))
        print(
            f"{name}: {num_tokens:,} tokens, {num_bytes:,} bytes, {num_tokens / max(num_bytes, 1):.4f} tokens per byte"
        )
    return tokenizer
