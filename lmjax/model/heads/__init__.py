"""Heads: modules that predict from hidden states, and the registry of all of them.

To add a head: a subclass of `Head` in a file of this package, and a line in HEADS. Its name appears in no other file
except those of the objectives that use it (`Objective.heads`, `Forward.head`). A head may import the rest of `model`.
"""

from lmjax.model.heads import electra, rows, tokens, vocabulary
from lmjax.model.heads.base import Head

BARE = "bare"
# The heads by name, as in `LanguageModel.heads` and `Objective.heads`.
HEADS: dict[str, type[Head]] = {
    "vocabulary": vocabulary.VocabularyHead,
    "masked_lm": vocabulary.MaskedLMHead,
    "next_sentence": rows.NextSentenceHead,
    "replaced_token": electra.ReplacedTokenHead,
    "generator": electra.GeneratorHead,
    "pooler": rows.PoolerHead,
    "classifier": rows.ClassifierHead,
    "choice": rows.ChoiceHead,
    "embedding": rows.EmbeddingHead,
    "tagger": tokens.TaggerHead,
    "span": tokens.SpanHead,
    BARE: vocabulary.BareHead,
}


def heads_of(architecture: str) -> tuple[str, ...]:
    """Returns the names of the heads that a family can have."""
    return tuple(name for name, head in HEADS.items() if architecture in head.families)


def head_types(architecture: str, names: tuple[str, ...]) -> dict[str, type[Head]]:
    """Returns the classes of a model's heads by name: those in `names`, or the default of its family if it is empty.

    Raises:
        ValueError: there is no such head, or the family cannot have it.
    """
    can = heads_of(architecture)
    if wrong := [name for name in names if name not in can]:
        families = "; ".join(f"{n!r} is for {' or '.join(HEADS[n].families)}" for n in wrong if n in HEADS)
        raise ValueError(
            f"heads={names}: {families or f'there is no head {wrong[0]!r}'}; architecture={architecture!r} can have"
            f" {', '.join(can)}"
        )
    return {name: HEADS[name] for name in names or (("vocabulary",) if "vocabulary" in can else ())}
