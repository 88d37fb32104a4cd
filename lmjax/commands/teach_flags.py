"""The flags of `lmjax teach`: those of `lmjax train`, the teacher and the file. Imports no jax."""

from __future__ import annotations

from absl import flags

from lmjax.commands import train_flags
from lmjax.commands.flags import define_path

DESCRIPTION = """
lmjax teach: writes the likeliest tokens of a trained model at every prediction of the training rows of a run to a file,
once. The run then learns from them (distillation) without the teacher in memory.

  lmjax teach --model=runs/big --to=taught.safetensors --objective=next_token --data='texts/*.txt' --length=128
  lmjax train --objective=next_token --data='texts/*.txt' --length=128 --config.tokenizer.path=runs/big \\
      --config.teacher.place=taught.safetensors

Give the flags of the run: the same data, objective, length, seed and --config.teacher.temperature. Rows that are drawn
anew in each epoch, as for mlm, are refused: name the teacher itself in --config.teacher.place.
"""

SAME = train_flags.SAME


def define() -> flags.FlagValues:
    """Returns the flags of the command, not parsed yet."""
    values = train_flags.define()
    flags.DEFINE_string("model", None, "the teacher: a workdir or a Hugging Face folder", flag_values=values)
    define_path(values, "to", "the new file, FILE.safetensors")
    flags.DEFINE_integer("top_k", 32, "tokens of each prediction that are written", 1, flag_values=values)
    return values
