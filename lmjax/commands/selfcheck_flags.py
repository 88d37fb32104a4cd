"""The flags of `lmjax selfcheck`: those of `lmjax train` that say what is trained, and its own. Imports no jax."""

from __future__ import annotations

from absl import flags

from lmjax.commands import train_flags

DESCRIPTION = """
lmjax selfcheck: checks that this run computes the same however it is laid out. On 8 CPU devices that need not exist, in
float32, the gradient and three training steps with 2 and 4 microbatches, rows with one text each, meshes of data, fsdp,
tensor and sequence, pmap, each remat, and scanned or unrolled layers are compared with those of one device: 1e-5
relative. Compiled steps may send only what the rules of the mesh imply, and each device computes its share. Texts are
generated alone and eight together, and scored without a cache.

  lmjax selfcheck --objective=mlm,nsp
  lmjax selfcheck --config=experiments/gpt2_small.py
  lmjax selfcheck --config=mine.py:wide --whole                       the sizes of the config, not small ones

Exit codes: 0 all agree, 64 bad flag, 65 bad data, 76 a layout differs; the first parameter and step are named.
"""

SAME = train_flags.SAME


def define() -> flags.FlagValues:
    """Returns the flags of the command, not parsed yet."""
    values = train_flags.define_trained()
    flags.DEFINE_boolean(
        "whole",
        False,
        "keep the sizes of the model and the length of the rows; else width, depth, length and vocabulary are made "
        "small, and all other fields stay",
        flag_values=values,
    )
    text = "compare only the layouts with this in their names, such as mesh or microbatches (default: all)"
    flags.DEFINE_string("only", None, text, flag_values=values)
    flags.DEFINE_integer("rows", 16, "rows of a batch, a multiple of 8", 8, 2**16, flag_values=values)
    return values
