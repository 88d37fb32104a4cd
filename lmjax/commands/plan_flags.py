"""The flags of `lmjax plan`: those of `lmjax train`, the devices, and the mesh. Imports no jax."""

from __future__ import annotations

from absl import flags

from lmjax.commands import train_flags

DESCRIPTION = """
lmjax plan: compiles the training step of a run for devices that are not here, and says what it needs there: memory,
FLOPs, traffic and collectives of each device, the time that a step takes at least, and so the days of the run. Nothing
is trained. For TPUs it needs libtpu (pip install 'lmjax[tpu]') and no TPU.

  lmjax plan --preset=gpt2 --topology=v5e:4x4 --length=1024 --batch_size=64 --config.model.dtype=bfloat16
  lmjax plan --config=experiments/bert_base.py --topology=v5e:4x4
  lmjax plan --config=experiments/gpt2_small.py --topology=v5p:4x4x4 --mesh=data=8,fsdp=8
  lmjax plan --config=experiments/gpt2_small.py --topology=v5p:4x4x4 --mesh=auto       searches meshes and ranks them
  lmjax plan --preset=llama3_2_1b --topology=v5e:2x2 --mesh=tensor=4 --decode=8        also a step of generation
  lmjax plan --preset=bert_large --topology=v5e:1x1 --sources=20                       where memory traffic goes
  lmjax plan --objective=mlm --topology=cpu:8 --mesh=fsdp=8                            CPU devices: no times

A run that does not fit is an error, which says by how much and what to change. Exit codes: 0 it fits, 64 it does not,
or a bad flag, 65 bad data.
"""

SAME = train_flags.SAME


def define() -> flags.FlagValues:
    """Returns the flags of the command, not parsed yet."""
    values = train_flags.define_trained()
    text = "the devices: a TPU slice such as v5e:4x4, v6e:16x16 or v5p:8x8x8, or cpu:NUMBER"
    flags.DEFINE_string("topology", None, text, flag_values=values)
    text = (
        "devices of each axis of the mesh, as data=4,fsdp=4, in place of --config.parallel.*; auto: compile the most "
        "promising meshes, with remat and microbatches, and rank them"
    )
    flags.DEFINE_string("mesh", None, text, flag_values=values)
    text = "tokens to train on, padding included, such as 300e9 (default: the steps of the config)"
    flags.DEFINE_float("tokens", None, text, 1.0, flag_values=values)
    text = "also name the parts of the step with the most memory traffic, so many of them"
    flags.DEFINE_integer("sources", None, text, 1, 10_000, flag_values=values)
    text = "also compile the step that generates a token, for so many texts of --length slots"
    flags.DEFINE_integer("decode", None, text, 1, 2**20, flag_values=values)
    flags.DEFINE_integer("candidates", 3, "with --mesh=auto, how many meshes are compiled", 1, 1000, flag_values=values)
    return values
