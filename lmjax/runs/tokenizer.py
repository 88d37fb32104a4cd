"""The tokenizer of a run: its own, the one that the config names, or one trained on the training data."""

from __future__ import annotations

import hashlib
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from lmjax.config import Config
from lmjax.data.documents import Document
from lmjax.data.fast_tokenizer import load_tokenizer
from lmjax.data.tokenizer import Tokenizer, train_tokenizer
from lmjax.data.vocabulary import Vocabulary
from lmjax.errors import DataError, FlagError, SaveError
from lmjax.objectives.base import Objective
from lmjax.objectives.registry import objective_types
from lmjax.phases import phase


def tokenizer_of(
    config: Config, workdir: pathlib.Path, train: Mapping[str, Callable[[], Iterator[Document]]], identity: dict
) -> Vocabulary:
    """Returns the workdir's tokenizer, else the one that the config names, else one trained on the training data."""
    for own in (workdir / "tokenizer.json", workdir / "tokenizer.model"):
        if own.exists():
            try:
                return load_tokenizer(str(workdir))
            except (DataError, FlagError) as e:
                raise DataError(f"{own}: the run's own tokenizer cannot be read; restore it from a copy ({e})") from e
    if config.tokenizer.path:
        return load_tokenizer(config.tokenizer.path).with_special(config.tokenizer.added)
    return _trained_tokenizer(config, train, identity)


def _trained_tokenizer(
    config: Config, train: Mapping[str, Callable[[], Iterator[Document]]], identity: dict
) -> Tokenizer:
    """Returns a tokenizer trained on the training data, or that of an earlier run with the same data and config."""
    objective = objective_types(config.task.objective)[0]
    own = getattr(config.task, objective.name)
    parts: list[Any] = [identity, config.tokenizer.model_dump()]
    if objective.running_text.__func__ is not Objective.running_text.__func__:
        # Objectives that train a tokenizer on other text of the same documents, such as labels, do not share it.
        parts.append([objective.name, own.model_dump()])
    key = json.dumps(parts, sort_keys=True)
    digest = hashlib.blake2b(key.encode(), digest_size=16).hexdigest()
    cached = pathlib.Path(config.data.cache_path) / f"tokenizer-{digest}.model"
    if cached.exists():
        return Tokenizer.load(str(cached))
    with phase(f"training a tokenizer of {config.tokenizer.vocab_size:,} tokens"):
        texts = (objective.running_text(own, d) for read in train.values() for d in read())
        tokenizer = train_tokenizer(texts, config.tokenizer)
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        tokenizer.save(str(cached))
    except OSError as e:
        raise SaveError(f"data.cache_dir: cannot write a tokenizer to {str(cached.parent)!r} ({e.strerror})") from e
    return tokenizer
