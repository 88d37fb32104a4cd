"""What a model says of texts with exchanged words: a classifier's probabilities, or the likelihood of the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from lmjax.audit.counterfactual import Filled, Rate
from lmjax.errors import FlagError
from lmjax.evaluation.predicted import as_documents, encoded
from lmjax.inference.loaded import LoadedModel
from lmjax.inference.predict import predict
from lmjax.inference.score.score import score
from lmjax.inference.score.texts import Item, ScoreConfig
from lmjax.objectives.classification import Classification
from lmjax.objectives.text_task import SECOND, TEXT

# From texts to numbers from 0 to 1.
Rating = Callable[[Sequence[str]], np.ndarray]


def is_classifier(loaded: LoadedModel) -> bool:
    """Returns whether a model was fine-tuned to classify texts."""
    return loaded.has_task and isinstance(loaded.task, Classification)


def probabilities(loaded: LoadedModel, texts: Sequence[str], batch_size: int = 32) -> dict[str, np.ndarray]:
    """Returns a classifier's probability of each label for each text, by label.

    Raises:
        FlagError: the model is no classifier.
    """
    if not is_classifier(loaded):
        raise FlagError("this model has no head that classifies texts; name a run or a folder with one")
    records = [{TEXT: text, SECOND: ""} for text in texts]
    documents = as_documents(records, loaded.task, gold=False)
    found = predict(loaded, encoded(loaded, documents, gold=False), batch_size)
    labels = loaded.task.config.labels
    return {loaded.shown.get(x, x): np.array([each["scores"][x] for each in found]) for x in labels}


def label_rate(judge: LoadedModel, label: str, named: str, batch_size: int = 32) -> tuple[str, Rating]:
    """Returns a label of a classifier, and the function from texts to its probabilities.

    Args:
        judge: the classifier.
        label: its label; empty: the last one.
        named: the flag and the place, for messages.
        batch_size: rows that are computed together.

    Raises:
        FlagError: the model is no classifier, or it has no such label.
    """
    if not is_classifier(judge):
        raise FlagError(f"{named}: has no head that classifies texts; name a run or a folder with one")
    labels = [judge.shown.get(x, x) for x in judge.task.config.labels]
    if label and label not in labels:
        raise FlagError(f"{named}: has the labels {', '.join(labels)}; name one of them")
    own = label or labels[-1]
    return own, lambda texts: probabilities(judge, texts, batch_size)[own]


def rater(loaded: LoadedModel, config: ScoreConfig, batch_size: int = 32) -> tuple[Rate, str]:
    """Returns the function that rates filled templates, and a sentence that says what its numbers are."""
    if is_classifier(loaded):
        return _classes(
            loaded, batch_size
        ), "The probability of each label, and the share of texts with another label than most texts of their template."
    if not loaded.model.has_vocabulary:
        raise FlagError("this model predicts neither labels nor tokens, so that templates show nothing")
    return _likelihoods(loaded, config), "The log-likelihood, in nats, of the text after the exchanged word."


def _classes(loaded: LoadedModel, batch_size: int) -> Rate:
    def rate(texts: Sequence[Filled]) -> tuple[Mapping[str, np.ndarray], Sequence[str]]:
        found = probabilities(loaded, [x.text for x in texts], batch_size)
        names = list(found)
        best = np.stack(list(found.values())).argmax(axis=0)
        # Of two labels, the second says what the first does.
        shown = {name: found[name] for name in (names[1:] if len(names) == 2 else names)}
        return shown, [names[i] for i in best]

    return rate


def _likelihoods(loaded: LoadedModel, config: ScoreConfig) -> Rate:
    def rate(texts: Sequence[Filled]) -> tuple[Mapping[str, np.ndarray], Sequence[str]]:
        if empty := next((x for x in texts if not x.before.strip() or not x.after.strip()), None):
            raise FlagError(
                f"--templates: {empty.text[:60]!r} ends in its slot; write the text that is scored after it"
            )
        found = score(loaded, [Item(x.before, x.after) for x in texts], config, [f"template {x.text!r}" for x in texts])
        return {"gap, nats": np.array([s.log_likelihood for s in found])}, []

    return rate
