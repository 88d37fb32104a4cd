"""The flags of `lmjax convert`. Imports no jax."""

from __future__ import annotations

from absl import flags

from lmjax.commands import facts
from lmjax.commands.flags import define_accept_fields, define_choice, define_help, define_path, define_step

FORMATS = facts.names("lmjax.commands.convert_formats", "FORMATS")
FAMILIES = facts.names("lmjax.interop.families", "FAMILIES")
_INSTEAD = {
    "onnx": "lmjax itself writes no ONNX; leave out --format, and give the checkpoint of Hugging Face to torch.onnx,"
    " as experiments/bench/onnx_encoder.py does for encoders"
}

DESCRIPTION = f"""
lmjax convert: imports a Hugging Face checkpoint into a workdir, and exports a trained model to a folder that
`AutoModel.from_pretrained` and `AutoTokenizer.from_pretrained` load. Reads safetensors and JSON, never code.

  lmjax convert --from=gpt2/ --workdir=runs/gpt2           import a folder (or a name on the hub)
  lmjax convert --workdir=runs/mine --to=mine-hf/          export a run: its newest checkpoint, or --step
  lmjax convert --workdir=runs/lora --to=peft/             the adapter of a run, in PEFT's format
  lmjax convert --workdir=runs/lora --merge --to=whole/    its base with the adapter merged
  lmjax convert --from=llama/ --to=half/ --dtype=bfloat16  from folder to folder
  lmjax convert --workdir=runs/mine --to=out/ --format=stablehlo   programs that need only jax and flatbuffers
  lmjax convert --workdir=runs/mine --to=out/ --format=gguf --dtype=q8_0    a file for llama.cpp
  lmjax train --init_from=runs/gpt2 --data=input.txt       train on from either

Families: {", ".join(sorted(FAMILIES))}.
"""


def define() -> flags.FlagValues:
    """Returns the flags of the command, not parsed yet."""
    values = flags.FlagValues()
    flags.DEFINE_string("from", None, "a folder of Hugging Face, or a name on its hub", flag_values=values)
    define_path(values, "workdir", "with --from, the workdir to make; else the run to write out")
    define_path(values, "to", "the new folder for a checkpoint of Hugging Face, or for what --format says")
    text = "with --to, what to write (default: a checkpoint of Hugging Face)"
    define_choice(values, "format", FORMATS, text, instead=_INSTEAD)
    define_choice(
        values,
        "family",
        sorted(FAMILIES),
        "with --to, the model_type to write (default: the one it came from, else the first that can express the model)",
    )
    dtypes = facts.names("lmjax.interop.gguf_model", "DTYPES")
    text = "with --to, of the tensors; q8_0 and q4_0 are for --format=gguf (default: as stored)"
    define_choice(values, "dtype", dtypes, text)
    flags.DEFINE_bool("merge", False, "with --to, merge the adapter of a run into its base", flag_values=values)
    define_step(values, "of the checkpoint to write out")
    most = facts.constant("lmjax.interop.shards", "SHARD_BYTES") / 1e9
    flags.DEFINE_float("shard_gb", most, "with --to, most gigabytes of one file", 0.001, flag_values=values)
    define_accept_fields(values)
    define_help(values)
    return values
