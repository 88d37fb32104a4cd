"""Synthetic tasks in long texts, by length and depth: what a model finds again in a text, and where in it.

A needle in a haystack (Kamradt 2023), several needles, variable tracking and counting as in RULER (Hsieh et al. 2024,
arXiv:2404.06654, section 3), and copying. The text around what is asked is real; the answer stands in the text alone,
and cannot be known otherwise. Prompts end where the answer begins, so that a model without instructions can go on.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from pydantic import Field

from lmjax.errors import FlagError
from lmjax.inference.generate.config import GenerateConfig
from lmjax.inference.generate.generate import generate
from lmjax.inference.loaded import LoadedModel
from lmjax.inference.row_lengths import longest_row
from lmjax.inference.score.rows import Piece, RowConfig, token_scores
from lmjax.schema import Schema
from lmjax.streams import random_stream

LONG = "long_context"
_NAMES = tuple(
    "amber birch cedar dune ember fjord grove heron iris jade kelp lotus maple nettle onyx pearl quartz reed".split(" ")  # noqa: SIM905
)
_HOPS, _NEEDLES, _MOST = 3, 4, 9
# The texts that fill a prompt are cut into pieces of at most so many words.
_WORDS = 12
# Parts of a row for which the likelihood is measured apart.
_PARTS = 8


class LongConfig(Schema):
    """The lengths, the depths and the number of examples of the suite."""

    lengths: tuple[int, ...] = Field((128, 256, 512), min_length=1, description="tokens of the prompts")
    depths: int = Field(5, ge=1, description="places of what is asked, from the beginning of a prompt to its end")
    examples: int = Field(4, ge=1, description="prompts for each task, length and depth")
    seed: int = Field(0, ge=0, description="seed of the examples")


class Example(NamedTuple):
    """A prompt and what a right continuation contains.

    Attributes:
        task: a key of TASKS.
        length: index of its length.
        depth: index of its depth.
        prompt: the text, which ends where the answer begins.
        answers: texts that the continuation should contain.
    """

    task: str
    length: int
    depth: int
    prompt: str
    answers: tuple[str, ...]


class Asked(NamedTuple):
    """What a task puts into a text.

    Attributes:
        first: the sentence at the depth that is measured.
        others: sentences at places of their own after the first or anywhere.
        ordered: whether the others follow the first, in this order.
        question: the end of the prompt.
        answers: as of `Example`.
    """

    first: str
    others: tuple[str, ...]
    ordered: bool
    question: str
    answers: tuple[str, ...]


def _chosen(rng: np.random.Generator, count: int) -> list[str]:
    """Returns different names."""
    return [_NAMES[i] for i in rng.choice(len(_NAMES), count, replace=False)]


def _number(rng: np.random.Generator) -> str:
    return str(rng.integers(100_000, 1_000_000))


def _needle(rng: np.random.Generator) -> Asked:
    name, number = *_chosen(rng, 1), _number(rng)
    return Asked(f"The secret number of {name} is {number}.", (), False, f"The secret number of {name} is", (number,))


def _needles(rng: np.random.Generator) -> Asked:
    names = _chosen(rng, _NEEDLES)
    said = [(f"The secret number of {name} is", _number(rng)) for name in names]
    first, *others = (f"{question} {number}." for question, number in said)
    return Asked(first, tuple(others), False, said[0][0], (said[0][1],))


def _variables(rng: np.random.Generator) -> Asked:
    names, number = [name.upper() for name in _chosen(rng, _HOPS + 1)], _number(rng)
    chain = tuple(f"VAR {new} = VAR {old}." for old, new in itertools.pairwise(names))
    return Asked(f"VAR {names[0]} = {number}.", chain, True, f"The variables that are {number}:", tuple(names))


def _counting(rng: np.random.Generator) -> Asked:
    name, count = *_chosen(rng, 1), int(rng.integers(2, _MOST + 1))
    said = f"A mark of {name}."
    return Asked(said, (said,) * (count - 1), False, f"The number of marks of {name} is", (str(count),))


def _copying(rng: np.random.Generator) -> Asked:
    words = " ".join(_chosen(rng, 6))
    return Asked(f"Remember this list: {words}.", (), False, "Remember this list:", (words,))


TASKS: dict[str, Callable[[np.random.Generator], Asked]] = {
    "needle": _needle,
    "needles": _needles,
    "variables": _variables,
    "counting": _counting,
    "copying": _copying,
}


def examples(config: LongConfig, texts: Sequence[str], count: Callable[[str], int]) -> list[Example]:
    """Returns the examples of all tasks, lengths and depths.

    Args:
        config: the suite.
        texts: from which the sentences around what is asked are taken; they are repeated if they are short.
        count: the number of tokens of a text.

    Raises:
        FlagError: a length has no room for what is asked, or there is no text.
    """
    hay = [piece for text in texts for piece in _pieces(text)]
    if not hay:
        raise FlagError("--data: has no text to put between what is asked; give one")
    sizes = [count(f" {sentence}") for sentence in hay]
    found = []
    for task, make in TASKS.items():
        for i, length in enumerate(config.lengths):
            for depth in range(config.depths):
                for number in range(config.examples):
                    rng = random_stream(config.seed, "long context", task, length, depth, number)
                    asked = make(rng)
                    share = depth / max(config.depths - 1, 1)
                    prompt = _prompt(asked, share, length, hay, sizes, count, rng)
                    found.append(Example(task, i, depth, prompt, asked.answers))
    return found


def _pieces(text: str) -> list[str]:
    """Returns the sentences of a text; long ones, as in code, are cut, because a prompt has whole pieces alone."""
    sentences = (part.strip() for part in " ".join(text.split()).split(". "))
    words = (f"{sentence}.".split(" ") for sentence in sentences if sentence)
    return [" ".join(each[i : i + _WORDS]) for each in words for i in range(0, len(each), _WORDS)]


def _prompt(
    asked: Asked,
    depth: float,
    length: int,
    hay: Sequence[str],
    sizes: Sequence[int],
    count: Callable[[str], int],
    rng: np.random.Generator,
) -> str:
    """Returns a prompt of at most `length` tokens.

    The sentence with the answer is at the beginning of the prompt if `depth` is 0, and at its end if it is 1.
    """
    room = length - sum(count(f" {part}") + 1 for part in (asked.first, *asked.others, asked.question))
    if room < 0:
        raise FlagError(
            f"--lengths={length}: has no room for {asked.first!r} and {asked.question!r}; give {2 * length}"
        )
    parts, at = [], int(rng.integers(len(hay)))
    while sizes[at % len(hay)] <= room:
        parts.append(hay[at % len(hay)])
        room -= sizes[at % len(hay)]
        at += 1
    first = round(depth * len(parts))
    places = sorted(rng.integers(first if asked.ordered else 0, len(parts) + 1, len(asked.others)).tolist())
    # From the last to the first, so that places stay valid; -1 puts what is measured before others at its place.
    inserted = [(first, -1, asked.first), *((place, i, asked.others[i]) for i, place in enumerate(places))]
    for place, _, said in sorted(inserted, reverse=True):
        parts.insert(place, said)
    return " ".join([*parts, asked.question])


def shares(config: LongConfig, found: Sequence[Example], texts: Sequence[str]) -> dict[str, np.ndarray]:
    """Returns the mean share of answers that the texts contain, by task `[lengths, depths]`.

    Args:
        config: the suite.
        found: the examples.
        texts: the continuation of each prompt.
    """
    shape = len(config.lengths), config.depths
    sums = {task: np.zeros(shape) for task in TASKS}
    for example, text in zip(found, texts, strict=True):
        sums[example.task][example.length, example.depth] += answered(example.answers, text) / config.examples
    return sums


def answered(answers: Sequence[str], text: str) -> float:
    """Returns the share of answers that a continuation contains."""
    return sum(answer in text for answer in answers) / len(answers)


def check_lengths(loaded: LoadedModel, config: LongConfig) -> None:
    """Raises FlagError, before anything is generated, if the model does not write or a length is above its rows."""
    if loaded.config.family.paired or not loaded.config.family.causal:
        raise FlagError(f"--task={LONG}: is for decoders, and this is an {loaded.config.family.label}")
    loaded.check_vocabulary()
    limit, most = longest_row(loaded.config, decoder=True), max(config.lengths)
    if limit is not None and most + _new(loaded) > limit:
        raise FlagError(
            f"--lengths={most}: with {_new(loaded)} new tokens is above the model's rows of {limit}; lower it"
        )


def _new(loaded: LoadedModel) -> int:
    """Returns the most tokens of an answer."""
    longest = (" ".join(_NAMES[:6]), " ".join(_NAMES[: _HOPS + 1]).upper())
    return 4 + max(len(loaded.tokenizer.encode(f" {text}")) for text in longest)


def written(loaded: LoadedModel, found: Sequence[Example]) -> list[str]:
    """Returns the greedy continuation of each prompt."""
    config = GenerateConfig(max_new_tokens=_new(loaded))
    return [texts[0].text for texts in generate(loaded, [example.prompt for example in found], config)]


def long_shares(loaded: LoadedModel, texts: Sequence[str], config: LongConfig | None = None) -> dict[str, float]:
    """Returns the mean share of right answers of each task, over all lengths and depths."""
    config = config or LongConfig()
    check_lengths(loaded, config)
    found = examples(config, texts, lambda text: len(loaded.tokenizer.encode(text)))
    return {task: float(grid.mean()) for task, grid in shares(config, found, written(loaded, found)).items()}


def loss_by_position(loaded: LoadedModel, texts: Sequence[str], length: int) -> dict[str, float]:
    """Returns the mean nats per token in each eighth of rows of `length` tokens; empty: the texts fill no row."""
    ids = [i for text in texts for i in loaded.tokenizer.encode(text)]
    before = list(loaded.prompts.before)
    step = length - len(before)
    rows = [before + ids[start : start + step] for start in range(0, len(ids) - step + 1, step)][:32]
    pieces = [Piece(row[:-1], range(length - 1), row[1:]) for row in rows]
    nats = np.array([-scores for scores, _ in token_scores(loaded, pieces, RowConfig())])
    if not len(nats):
        return {}
    edges = np.linspace(0, length - 1, _PARTS + 1).astype(int)
    return {f"{a + 1}-{b}": float(nats[:, a:b].mean()) for a, b in itertools.pairwise(edges.tolist()) if b > a}
