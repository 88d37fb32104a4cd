"""Baselines of tagging and of question answering, without a model.

    python experiments/bench/task_baselines.py --tagging=TRAIN.conll,DEV.conll --questions=DEV.json

Tagging: each word gets the tag that it has most often in the training data, and a word that is not there the tag O.
Question answering: the answer is the sentence of the context that shares the most words with the question. Both are
measured as `lmjax evaluate` measures a model, with 95 % bootstrap intervals. README.md has the results.
"""

from __future__ import annotations

import collections
from collections.abc import Sequence

from absl import app, flags

from lmjax.data.columns import read_columns
from lmjax.data.documents import unspaced
from lmjax.data.files import Faults
from lmjax.data.questions import Questions
from lmjax.data.sentences import split_sentences
from lmjax.data.tagged_words import TaggedWords
from lmjax.evaluation.answers import normalised, squad
from lmjax.evaluation.entities import entity_f1
from lmjax.evaluation.intervals import Measurement
from lmjax.objectives.question_answering import QuestionAnswering
from lmjax.objectives.tagging import Tagging

TAGGING = flags.DEFINE_list("tagging", [], "CoNLL files of training and evaluation, in BIO")
QUESTIONS = flags.DEFINE_string("questions", None, "a file of SQuAD")


def tagged(path: str) -> list[tuple[list[str], Sequence[str]]]:
    """Returns the words and the tags of each sentence."""
    form = TaggedWords("bio", False)
    found = read_columns(path, Faults("error"), Tagging.columns, record_format=form)
    return [(unspaced(each.segments), each.values[0]) for each in found]


def most_frequent_tags(train: str, dev: str) -> Measurement:
    """Returns the metrics of the tags that words have most often in the training data."""
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for words, tags in tagged(train):
        for word, tag in zip(words, tags, strict=True):
            counts[word][tag] += 1
    best = {word: count.most_common(1)[0][0] for word, count in counts.items()}
    sentences = tagged(dev)
    return entity_f1(
        [tags for _, tags in sentences], [[best.get(word, "O") for word in words] for words, _ in sentences]
    )


def most_similar_sentence(path: str) -> Measurement:
    """Returns the metrics of the sentences that share the most words with their questions."""
    form = Questions(no_answer=True)
    gold, found = [], []
    for each in read_columns(path, Faults("error"), QuestionAnswering.columns, record_format=form):
        context, _, answers, _ = each.values
        asked = set(normalised(each.segments[0]).split())
        found.append(max(split_sentences(context), key=lambda text: len(asked & set(normalised(text).split()))).strip())
        gold.append(answers)
    return squad(gold, found)


def main(argv: Sequence[str]) -> None:
    """Prints the metrics of the baselines whose data are given."""
    del argv
    if TAGGING.value:
        show("tagging", most_frequent_tags(*TAGGING.value), ("precision micro", "recall micro", "f1 micro", "f1 macro"))
    if QUESTIONS.value:
        show("question answering", most_similar_sentence(QUESTIONS.value), ("exact_match", "f1"))


def show(name: str, measurement: Measurement, metrics: Sequence[str]) -> None:
    """Prints some metrics with their intervals."""
    measured = measurement.measured()
    for metric in metrics:
        x = measured[metric]
        print(f"{name}\t{metric}\t{x:.4f}\t{x.low:.4f}\t{x.high:.4f}")


if __name__ == "__main__":
    app.run(main)
