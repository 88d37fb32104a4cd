"""The registry of objectives: a new objective needs its own file and one line here."""

import importlib
import typing
from collections.abc import Iterable

from lmjax.errors import FlagError
from lmjax.model.traits import FAMILIES
from lmjax.nearest import choose
from lmjax.objectives.base import Objective, ObjectiveConfig

# Help and configs list them in this order; the first one is trained if none is named.
CLASSES = (
    "next_token.NextToken",
    "masked_lm.MaskedLM",
    "next_sentence.NextSentence",
    "span_corruption.SpanCorruption",
    "seq2seq.Seq2Seq",
    "prefix_lm.PrefixLM",
    "denoise.Denoise",
    "infilling.Infilling",
    "sentence_order.SentenceOrder",
    "replaced_token.ReplacedToken",
    "masked_diffusion.MaskedDiffusion",
    "classification.Classification",
    "text_to_text.TextToText",
    "tagging.Tagging",
    "chat.Chat",
    "question_answering.QuestionAnswering",
    "regression.Regression",
    "multiple_choice.MultipleChoice",
    "embedding.Embedding",
    "dpo.DPO",
    "orpo.ORPO",
    "simpo.SimPO",
    "kto.KTO",
    "reward.Reward",
)


def _load(place: str) -> type[Objective]:
    module, name = place.split(".")
    return getattr(importlib.import_module(f"lmjax.objectives.{module}"), name)


OBJECTIVES: dict[str, type[Objective]] = {o.name: o for o in map(_load, CLASSES)}
DEFAULT: tuple[str, ...] = tuple(OBJECTIVES)[:1]


def settings(objective: type[Objective]) -> type[ObjectiveConfig]:
    """Returns the config class of an objective: the type of its field `config`."""
    return typing.get_type_hints(objective)["config"]


def combinations() -> tuple[tuple[str, str], ...]:
    """Returns the pairs of objectives that can share their rows; the second of each pair makes the rows."""
    return tuple((guest.name, host.name) for host in OBJECTIVES.values() for guest in host.rows_for)


def usual_objective(architecture: str) -> str:
    """Returns the objective that a model of this family is trained on if none is named."""
    return next(name for name, o in OBJECTIVES.items() if architecture in o.usual_for)


def usual_objectives() -> tuple[tuple[str, ...], ...]:
    """Returns the default objectives of the families, each with the objective that makes its rows, if there is one."""
    usual = (name for name, o in OBJECTIVES.items() if o.usual_for)
    hosts = dict(reversed(combinations()))
    return tuple((name, hosts[name]) if name in hosts else (name,) for name in usual)


def objective_types(names: tuple[str, ...]) -> tuple[type[Objective], ...]:
    """Returns the classes of these objectives, sorted by name, the order in which their features are made.

    Raises:
        FlagError: a name is unknown or given twice, or the objectives cannot be trained together.
    """
    flag = f"--objective={','.join(names)}"
    for name in names:
        if name not in OBJECTIVES:
            raise FlagError(f"{flag}: {choose('objective', name, list(OBJECTIVES))}")
    if not names or len(set(names)) < len(names):
        raise FlagError(f"{flag}: give one or several of {', '.join(OBJECTIVES)}, each once")
    types = tuple(OBJECTIVES[name] for name in sorted(names))
    reads = {_documents(t): t.name for t in types}
    if len(reads) > 1:
        said = " and ".join(f"{name} reads {documents}" for documents, name in reads.items())
        raise FlagError(f"{flag}: {said}; train one of them")
    vocabulary = {head for family in FAMILIES.values() for head in family.vocabulary_heads}
    for number, one in enumerate(types):
        for other in types[number + 1 :]:
            # A head over the vocabulary has the tokens as its labels, whatever it is trained on.
            if set(one.heads) & set(other.heads) - vocabulary:
                raise FlagError(
                    f"{flag}: {one.name} and {other.name} train the same head on different labels; leave one out"
                )
    if not _common(types):
        families = "; ".join(f"{t.name} needs {' or '.join(t.architectures)}" for t in types)
        raise FlagError(f"{flag}: no family trains all of these: {families}; leave one out")
    places = {t.predicts_at: t.name for t in types if t.shares_logits}
    if len(places) > 1:
        said = "; ".join(f"{name} predicts at {at or 'all positions'}" for at, name in places.items())
        raise FlagError(f"{flag}: all must predict at the same positions, but {said}; train one of them")
    return types


def _documents(objective: type[Objective]) -> str:
    """Returns, for messages, what an objective reads; objectives that read the same documents give the same string."""
    if objective.columns:
        return f"records of {', '.join(f'{c.name} ({c.type})' for c in objective.columns)}"
    return "pairs" if objective.wants_pairs else "running text"


def _common(types: tuple[type[Objective], ...]) -> tuple[str, ...]:
    return tuple(a for a in types[0].architectures if all(a in t.architectures for t in types))


def architectures(names: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the families that can train all these objectives, in the order that the first of them declares."""
    objective_types(names)
    return _common(tuple(OBJECTIVES[name] for name in names))


def check_family(names: tuple[str, ...], architecture: str) -> None:
    """Raises FlagError if a family cannot train these objectives; the message says what it trains in their place."""
    can = architectures(names)
    if architecture not in can:
        instead = "".join(f"; {OBJECTIVES[name].instead}" for name in names if OBJECTIVES[name].instead)
        raise FlagError(
            f"--architecture={architecture} cannot train --objective={','.join(names)}; "
            f"it needs {' or '.join(can)}{instead}"
        )


def unmasks(names: Iterable[str]) -> bool:
    """Returns whether an encoder that was trained on these objectives writes text by replacing masks."""
    return any(OBJECTIVES[name].unmasks for name in names)


def heads(objectives: tuple[Objective | type[Objective], ...]) -> tuple[str, ...]:
    """Returns the heads that a model needs for these objectives, each once."""
    return tuple(dict.fromkeys(head for o in objectives for head in o.heads))
