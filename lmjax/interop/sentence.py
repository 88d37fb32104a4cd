"""The files of sentence-transformers in a checkpoint folder: how the vector of a text is made of hidden states.

`modules.json` lists the steps: the model, the pooling (with a config of its own), and the normalisation if there is
one. `sentence_bert_config.json` says after how many tokens a text is cut.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from lmjax.errors import DataError, FlagError
from lmjax.interop.shards import read_json
from lmjax.model.config import ModelConfig

MODULES = "modules.json"
_LENGTH = "sentence_bert_config.json"
_POOLING = "1_Pooling"
_NAMES = {"mean": "mean_tokens", "first": "cls_token", "last": "lasttoken"}
# Names of the same in the newest files, which have one field for all.
_SHORT = {"mean": "mean", "cls": "first", "lasttoken": "last"}


class Sentence(NamedTuple):
    """How a folder of sentence-transformers makes the vector of a text.

    Attributes:
        fields: of the group `head` of the model's config.
        length: the most tokens of a text; None: no limit but the model's.
    """

    fields: Mapping[str, Any]
    length: int | None


def read_sentence(folder: pathlib.Path) -> Sentence | None:
    """Returns how vectors of texts are made; None if the folder is not one of sentence-transformers.

    Raises:
        FlagError: they are made in a way that lmjax does not implement.
        DataError: a file cannot be read.
    """
    path = folder / MODULES
    if not path.is_file():
        return None
    modules = read_json(path, kind=list)
    if not all(isinstance(module, dict) for module in modules):
        raise DataError(f"{path}: is not a list of modules; copy it again")
    types = [str(module.get("type")).rpartition(".")[2] for module in modules]
    if types[:2] != ["Transformer", "Pooling"] or types[2:] not in ([], ["Normalize"]):
        raise FlagError(
            f"{path}: lmjax implements Transformer, Pooling and Normalize, in this order, and not {', '.join(types)}; "
            "remove the file to load the model alone"
        )
    own = read_json(folder / _LENGTH) if (folder / _LENGTH).is_file() else {}
    if own.get("do_lower_case"):
        raise FlagError(f"{folder / _LENGTH}: do_lower_case: lmjax leaves this to the tokenizer; remove the field")
    length = own.get("max_seq_length")
    if length is not None and (not isinstance(length, int) or length < 8):
        raise DataError(f"{folder / _LENGTH}: max_seq_length={length!r} is not a number of tokens; copy the file again")
    pooling = _pooling(folder / str(modules[1].get("path") or _POOLING) / "config.json")
    return Sentence({"vector_pooling": pooling, "unit_length": "Normalize" in types}, length)


def _pooling(path: pathlib.Path) -> str:
    """Returns our name of the pooling in a config; raises FlagError for one that lmjax does not implement."""
    values = read_json(path)
    if "pooling_mode" in values:
        kinds = [str(values["pooling_mode"])]
        names = _SHORT
    else:
        kinds = [key.removeprefix("pooling_mode_") for key, on in values.items() if on and "pooling_mode_" in key]
        names = {theirs: ours for ours, theirs in _NAMES.items()}
    if len(kinds) != 1 or kinds[0] not in names:
        raise FlagError(f"{path}: pooling {' and '.join(kinds) or 'none'}: lmjax implements one of {', '.join(names)}")
    return names[kinds[0]]


def write_sentence(folder: pathlib.Path, config: ModelConfig, length: int | None) -> None:
    """Writes the files of sentence-transformers for a model of this config; its texts have at most `length` tokens."""
    kinds = ["Transformer", "Pooling", *(["Normalize"] if config.head.unit_length else [])]
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    pooling = {f"pooling_mode_{theirs}": ours == config.vector_pooling for ours, theirs in _NAMES.items()}
    files = {
        MODULES: modules,
        f"{_POOLING}/config.json": {"word_embedding_dimension": config.embed_dim, **pooling},
        _LENGTH: {"max_seq_length": length or config.max_length, "do_lower_case": False},
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
    if config.head.unit_length:
        # The module has no file; sentence-transformers wants its folder.
        (folder / f"{len(kinds) - 1}_{kinds[-1]}").mkdir(exist_ok=True)
