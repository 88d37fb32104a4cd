"""Opens the data of a run: its documents are tokenised into stores, and its config learns from them."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lmjax.config import Config
from lmjax.data.columns import Column
from lmjax.data.control import ShuffledTokens, shuffled_labels
from lmjax.data.encoding import Encoder
from lmjax.data.sources import corpus_fingerprint
from lmjax.data.splits import Splits, open_splits
from lmjax.data.store import Store, build_store
from lmjax.data.vocabulary import Vocabulary
from lmjax.errors import FlagError
from lmjax.objectives.base import Objective
from lmjax.objectives.registry import objective_types
from lmjax.phases import phase
from lmjax.runs.cleaning import check_removed, cleaning
from lmjax.runs.identity import check_identity, identity_of
from lmjax.runs.learned import learn
from lmjax.runs.tokenizer import tokenizer_of

# The number of rows of the token table is a multiple of this, so that a mesh divides it and it fills matrix units.
VOCAB_MULTIPLE = 64


@dataclasses.dataclass(frozen=True)
class OpenData:
    """The data of a run.

    Attributes:
        config: the config, with the vocabulary size and with what it learned from the training data.
        tokenizer: the run's own tokenizer.
        train: the stores of the training sets by name.
        evaluated: those of the evaluation sets.
        identity: what the data and the tokenizer are, by which a workdir recognises them.
        removed: what was left out of each training set; empty: nothing was.
    """

    config: Config
    tokenizer: Vocabulary
    train: Mapping[str, Store]
    evaluated: Mapping[str, Store]
    identity: Mapping[str, Any]
    removed: Mapping[str, Any]


def open_data(config: Config, workdir: pathlib.Path) -> OpenData:
    """Returns the data of a run; it is tokenised if no earlier run has done so.

    Args:
        config: the run's config.
        workdir: the folder of the run.

    Raises:
        FlagError: sizes that do not fit the tokenizer.
        DataError: data that cannot be read.
        ConfigMismatchError: the workdir was trained on other data.
    """
    splits = _splits(config)
    prints = {name: corpus_fingerprint(path) for name, path in config.data.train_sets.items()}
    identity = _identity(config, prints)
    clean = cleaning(config.data, splits, prints)
    if clean is not None:
        splits, identity = clean.cleaned(), identity | {"cleaning": clean.parts}
    tokenizer = tokenizer_of(config, workdir, splits.train, identity)
    # After the tokenizer, which is that of the texts as they are.
    identity |= {} if config.data.control == "none" else {"control": [config.data.control, config.seed_of("subset")]}
    encoder = _objective(config).encoder(getattr(config.task, _objective(config).name), tokenizer) or Encoder(tokenizer)
    if config.data.control == "shuffled_tokens":
        encoder = ShuffledTokens(encoder, config.seed_of("subset"))
    tokenizer = encoder.tokenizer
    config = _with_vocabulary(config, tokenizer)
    whole = identity | {"tokenizer": tokenizer.fingerprint} | encoder.parts
    check_identity(workdir, whole)

    def store(documents: Any, name: str, part_of: str, columns: Sequence[Column]) -> Store:
        # The store of a data set depends only on this set, so that other mixtures with it can reuse the store.
        own = {"train": prints[part_of]} if part_of in prints else {}
        with phase(f"tokenizing the documents of {name}"):
            return build_store(
                documents,
                tokenizer,
                fingerprint_parts=identity | own | {"set": name},
                cache_dir=config.data.cache_path,
                columns=columns,
                encoder=encoder,
            )

    learned, train, evaluated = _stores(config, splits, store)
    removed = {} if clean is None else clean.removed()
    check_removed(workdir, removed)
    return OpenData(learned, tokenizer, train, evaluated, whole, removed)


def _objective(config: Config) -> type[Objective]:
    """Returns the first objective; all objectives of a run read the same columns."""
    return objective_types(config.task.objective)[0]


def _identity(config: Config, prints: Mapping[str, str]) -> dict[str, Any]:
    """Returns what the documents are, and how they are read; `prints` are the fingerprints of the training sets."""
    objective = _objective(config)
    found = identity_of(config, prints, objective.wants_pairs)
    if objective.columns:
        found |= {"columns": [list(column) for column in objective.columns]}
    if parts := objective.record_format(getattr(config.task, objective.name)).parts:
        found |= {"record_format": parts}
    return found


def _columns(config: Config) -> tuple[Column, ...]:
    """Returns the columns of the records, with what the settings of the objective know of their values."""
    objective = _objective(config)
    return objective.known_columns(getattr(config.task, objective.name))


def _splits(config: Config) -> Splits:
    """Returns the training and evaluation sets, with what the settings of the objective know of their records."""
    objective = _objective(config)
    splits = open_splits(
        config.data,
        pairs=objective.wants_pairs,
        columns=_columns(config),
        record_format=objective.record_format(getattr(config.task, objective.name)),
        subset_seed=config.seed_of("subset"),
    )
    if config.data.control != "shuffled_labels":
        return splits
    seed = config.seed_of("subset")
    return splits._replace(train={name: shuffled_labels(read, name, seed) for name, read in splits.train.items()})


def _stores(
    config: Config, splits: Splits, store: Callable[[Any, str, str, Sequence[Column]], Store]
) -> tuple[Config, dict[str, Store], dict[str, Store]]:
    """Returns the config with what it learns from the training data, and the stores of training and evaluation sets.

    Args:
        config: the config.
        splits: the documents of all sets.
        store: a function from documents, the name of the part, the name of the set, and columns to a store.
    """
    columns = _columns(config)
    train = {name: store(documents, "train", name, columns) for name, documents in splits.train.items()}

    def evaluated(evals: Mapping[str, Any], columns: Sequence[Column]) -> dict[str, Store]:
        return {n: store(read, "heldout" if n in train else n, n, columns) for n, read in evals.items()}

    # Parts held out of the training data are learned from too: a rare label may be in one of them alone.
    held_out = {} if config.data.eval else evaluated(splits.evals, columns)
    config = learn(config, [*train.values(), *held_out.values()])
    known = _columns(config)
    if config.data.eval and known != columns:
        splits = _splits(config)
    return config, train, held_out or evaluated(splits.evals, known)


def vocabulary_rows(config: Config, num_ids: int) -> int:
    """Returns the rows of the token table: the config's, or, if that is 0, those that `num_ids` ids need."""
    return config.model.vocab_size or -(-num_ids // VOCAB_MULTIPLE) * VOCAB_MULTIPLE


def _with_vocabulary(config: Config, tokenizer: Vocabulary) -> Config:
    size = vocabulary_rows(config, tokenizer.vocab_size)
    if size < tokenizer.vocab_size:
        raise FlagError(
            f"--config.model.vocab_size={size} is below the tokenizer's {tokenizer.vocab_size} ids; "
            "raise it, or leave it 0 to follow the tokenizer"
        )
    return config.with_fields({"model": config.model.with_fields({"vocab_size": size})})
