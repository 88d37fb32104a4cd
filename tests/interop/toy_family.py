"""An example of a new Hugging Face family: this file and one call of `register`. It is Llama's with other names."""

import dataclasses

from lmjax.interop.families.llama import TABLE, family
from lmjax.interop.table import TokenizerForm


def _named(name: str) -> str:
    return f"toy.{name.removeprefix('model.')}" if name.startswith("model.") else name


FAMILIES = {
    "toy": family(
        "Toy",
        table=tuple(dataclasses.replace(row, theirs=tuple(map(_named, row.theirs))) for row in TABLE),
        base="toy.",
        copies={"lm_head.weight": "toy.embed_tokens.weight"},
        tokenizer=TokenizerForm(("cls",), ("sep",), types=True, kind="BertTokenizer"),
    )
}
