"""The families of checkpoints by `model_type`.

A family is one file with a dictionary FAMILIES, and one line below. The file has everything about the family: functions
that read and write config.json, the table of tensors, the classes with their heads, and the form of its tokenizers.
"""

from collections.abc import Mapping

from lmjax.data.special_tokens import CLASS_OF_MODEL
from lmjax.interop.families import (
    bart,
    bert,
    distilbert,
    gemma,
    gpt2,
    llama,
    mistral,
    modernbert,
    neox,
    olmo,
    opt,
    phi,
    qwen,
    t5,
)
from lmjax.interop.table import Family

# A dict literal, because `commands/facts.py` reads the names for --help from this source file.
FAMILIES: dict[str, Family] = {
    **llama.FAMILIES,
    **gpt2.FAMILIES,
    **t5.FAMILIES,
    **bart.FAMILIES,
    **mistral.FAMILIES,
    **qwen.FAMILIES,
    **gemma.FAMILIES,
    **phi.FAMILIES,
    **olmo.FAMILIES,
    **neox.FAMILIES,
    **opt.FAMILIES,
    **bert.FAMILIES,
    **distilbert.FAMILIES,
    **modernbert.FAMILIES,
}


def register(families: Mapping[str, Family]) -> None:
    """Adds families to FAMILIES by their `model_type`, and their tokenizer classes to CLASS_OF_MODEL."""
    FAMILIES.update(families)
    CLASS_OF_MODEL.update({name: each.tokenizer.kind for name, each in families.items() if each.tokenizer.kind})


register(FAMILIES)
