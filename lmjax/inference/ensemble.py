"""Joins loaded models into one that generates by their mean logits."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from lmjax.errors import FlagError
from lmjax.inference.loaded import LoadedModel
from lmjax.model.ensemble import Ensemble


def joined(models: Sequence[LoadedModel]) -> LoadedModel:
    """Returns one model that generates by the mean logits of several; a single one is returned as it is.

    Texts are prompted as those of the first model, and its generation settings count.

    Raises:
        FlagError: the models cannot be combined: their families, tokenizers or numbers of logits differ, or one of them
            predicts no tokens or writes by unmasking.
    """
    first, *others = models
    if not others:
        return first
    for number, model in enumerate(models, 1):
        model.check_vocabulary()
        kinds = {
            "family": (model.config.architecture, first.config.architecture),
            "tokenizer": (model.tokenizer.fingerprint, first.tokenizer.fingerprint),
            "number of vocabulary rows": (model.config.vocab_size, first.config.vocab_size),
        }
        for what, (own, wanted) in kinds.items():
            if own != wanted:
                raise FlagError(
                    f"model {number} of the ensemble has the {what} {own}, and the first one {wanted}; their logits "
                    "cannot be averaged: leave it out"
                )
        if model.unmasks:
            raise FlagError(f"model {number} of the ensemble writes by unmasking, which ensembles cannot; leave it out")
    params = {f"members_{i}": model.params for i, model in enumerate(models)}
    return dataclasses.replace(first, model=Ensemble(tuple(model.model for model in models)), params=params)
