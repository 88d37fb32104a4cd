"""The flags of `lmjax compress`. Imports no jax."""

from __future__ import annotations

from absl import flags

from lmjax.commands import facts
from lmjax.commands.flags import (
    define_accept_fields,
    define_choice,
    define_column_names,
    define_help,
    define_path,
    define_step,
)

FORMS = facts.names("lmjax.model.codes", "FORMS")
METHODS = facts.names("lmjax.compress.methods", "METHODS")

DESCRIPTION = """
lmjax compress: makes a trained model smaller, and writes a workdir that generates, evaluates, predicts, serves and
explains like any other.

  lmjax compress --model=runs/gpt2 --method=int8 --to=runs/gpt2-int8             a byte for each number in layers
  lmjax compress --model=bert/ --method=nf4 --group=32 --to=runs/bert-nf4        half a byte, a scale for 32 inputs
  lmjax compress --model=runs/gpt2 --method=gptq --data=text.txt --to=runs/gpt2-4bit
  lmjax compress --model=runs/gpt2 --method=sparsegpt --pattern=2:4 --data=text.txt --to=runs/gpt2-sparse
  lmjax compress --model=runs/gpt2 --method=heads --amount=0.25 --data=text.txt --to=runs/gpt2-9   a smaller config
"""


def define() -> flags.FlagValues:
    """Returns the flags of the command, not parsed yet."""
    values = flags.FlagValues()
    flags.DEFINE_string("model", None, "a workdir, a folder of Hugging Face, or a name on its hub", flag_values=values)
    define_choice(
        values,
        "method",
        METHODS,
        "how: int8, int4, nf4, fp8: the kernels in layers are rounded to the nearest codes; int8_activations: to 8-bit "
        "integers, and products round their inputs too; with --data: smoothquant, which moves outliers of the inputs "
        "to the kernels, gptq, whose errors make up for each other, awq, which is finer where inputs are large; "
        "zeros: magnitude, and with --data wanda and sparsegpt; fewer parts, with --data: heads, neurons, layers; "
        "vocabulary: without the rows of the token table that no token has",
    )
    flags.DEFINE_integer(
        "group", None, "inputs that share a scale; 0: all of an output (default: 64 for 4 bits, else 0)", 0,
        flag_values=values,
    )  # fmt: skip
    define_choice(values, "weights", FORMS, "with gptq and awq, the form of kernels (default: int4)")
    flags.DEFINE_string(
        "data", None, "for a calibrated method, a file or a quoted glob of texts like those that the model reads",
        flag_values=values,
    )  # fmt: skip
    define_column_names(values)
    flags.DEFINE_integer("texts", 128, "with --data, the most texts", 1, flag_values=values)
    flags.DEFINE_integer("length", 128, "with --data, the most tokens of a text", 3, flag_values=values)
    flags.DEFINE_float("amount", None, "share that becomes zero or leaves (default: 0.5)", 0, 0.999, flag_values=values)
    define_choice(values, "pattern", ["2:4"], "zeros in two of each four inputs of an output, in place of --amount")
    define_choice(
        values, "scope", ["layer", "global"], "with magnitude, whether each kernel or all together get --amount"
    )
    flags.DEFINE_integer(
        "rewind", None, "the checkpoint whose numbers those get that are not zero: a lottery ticket", 0,
        flag_values=values,
    )  # fmt: skip
    define_path(
        values, "sensitivity", "with --data, a new file for a figure: what each kernel alone does to the outputs"
    )
    define_path(values, "to", "the new workdir")
    define_step(values, "of a workdir's checkpoint")
    define_accept_fields(values)
    define_help(values)
    return values
