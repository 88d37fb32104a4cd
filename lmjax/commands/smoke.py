"""Commands that are small enough for a test of a notebook: seconds instead of minutes.

A notebook is the same text for a reader and for the tests: its commands pass through `small`, which changes them if
the environment says LMJAX_SMOKE=1, and only then.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence
from pydoc_data.topics import topics

from lmjax.commands.train_flags import SAME
from lmjax.data.sources import STDLIB

_RUN = {"steps": 3, "batch_size": 8, "evaluation.batches": 1, "logging.every": 1, "logging.tensorboard": "false"}
# Of a run on the embedded corpus: a part of it has short documents.
_TEXT = {"task.length": 64, "task.target_length": 32, "data.held_out": 0.2}
# Of a run that makes its model and its tokenizer; a fine-tuned model is as large as its checkpoint.
_MODEL = {"model.embed_dim": 16, "model.num_heads": 2, "model.mlp_dim": 16, "model.num_layers": 1}
_TOKENIZER = {"tokenizer.kind": "char", "tokenizer.byte_fallback": "false"}
# Documents of the small text, and characters of each.
_DOCUMENTS, _CHARACTERS = 40, 600


def is_smoke() -> bool:
    """Returns whether LMJAX_SMOKE=1 asks for small runs."""
    return os.environ.get("LMJAX_SMOKE") == "1"


def small(argv: Sequence[str]) -> list[str]:
    """Returns a command of `lmjax train` or `lmjax sweep`, made small if LMJAX_SMOKE=1.

    Flags that set the size are replaced. The embedded corpus becomes a small part of it; other data, and the
    lengths of their rows, stay.

    Args:
        argv: the command and its flags, each as one text, `--flag=value`.
    """
    if not is_smoke():
        return list(argv)
    given = {_field(argument): argument.partition("=")[2] for argument in argv}
    fields = dict(_RUN)
    if "init_from" not in given:
        fields |= _MODEL | ({} if "tokenizer.path" in given else _TOKENIZER)
    if given.get("data.train", STDLIB) == STDLIB:
        fields |= _TEXT | {"data.train": _small_text()}
    kept = [argument for argument in argv if _field(argument) not in fields]
    return [*kept, *(f"--config.{field}={value}" for field, value in fields.items())]


def _field(argument: str) -> str:
    """Returns the field of the config that a flag sets, or the flag's own name."""
    name = argument.partition("=")[0].removeprefix("--")
    return {"lr": "optimizer.learning_rate", **SAME}.get(name, name.removeprefix("config."))


def _small_text() -> pathlib.Path:
    """Returns a file in the working directory with the beginnings of some topics of Python's reference."""
    path = pathlib.Path("smoke.txt")
    beginnings = (" ".join(topics[name].split())[:_CHARACTERS] for name in sorted(topics)[:_DOCUMENTS])
    path.write_text("\n\n".join(beginnings) + "\n")
    return path
