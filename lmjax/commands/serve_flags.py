"""The flags of `lmjax serve`. Imports no jax."""

from __future__ import annotations

from absl import flags

from lmjax.commands import facts
from lmjax.commands.flags import define_accept_fields, define_choice, define_help

DESCRIPTION = """
lmjax serve: answers requests over HTTP in the form of OpenAI's API, for decoders, encoder-decoders and encoders, with a
page to try the model at its address. Many requests are written at once, and none changes the text of another.

  lmjax serve --model=runs/mine                                        http://127.0.0.1:8000
  lmjax serve --model=gpt2/ --rows=16 --port=9000
  lmjax serve --model=qwen/ --adapter=polite=runs/polite               two models: qwen and polite
  lmjax serve --model=small=gpt2/ --model=large=gpt2-xl/
  LMJAX_TOKEN=... lmjax serve --model=gpt2/ --host=0.0.0.0

SIGTERM ends it after what was asked is answered.
"""

# Flag -> field of EngineConfig.
FIELDS = {name: name for name in ("rows", "max_length", "queue", "prefixes", "beams", "timeout", "stuck_after")}
FIELDS |= {"prefill_chunk": "chunk", "cache_dtype": "cache"}


def define() -> flags.FlagValues:
    """Returns the flags of the command, not parsed yet."""
    values = flags.FlagValues()
    model = "a workdir, a folder of Hugging Face, or a name on its hub; NAME=PLACE gives it a name; may be repeated"
    flags.DEFINE_multi_string("model", [], model, flag_values=values)
    adapter = "NAME=PLACE: an adapter of the only --model, asked for by its name; may be repeated"
    flags.DEFINE_multi_string("adapter", [], adapter, flag_values=values)
    flags.DEFINE_string("host", "127.0.0.1", "the address; one that others can reach needs --token", flag_values=values)
    flags.DEFINE_integer("port", 8000, "of the address; 0: any that is free", 0, 65535, flag_values=values)
    token = "the secret that requests must have (Authorization: Bearer); better in the environment, as LMJAX_TOKEN"
    flags.DEFINE_string("token", None, token, flag_values=values)
    for name, path in FIELDS.items():
        default, description, _ = facts.fields("lmjax.serving.config", "EngineConfig")[path]
        shown = default.strip("'")
        text = description + ("" if shown == "None" else f" (default: {shown})")
        flags.DEFINE_string(name, None, text, flag_values=values)
    body = "megabytes of the largest body of a request"
    flags.DEFINE_integer("max_body", 4, body, 1, 1024, flag_values=values)
    drain = "seconds after SIGTERM for what was asked"
    flags.DEFINE_float("drain", 30.0, drain, 0.0, 3600.0, flag_values=values)
    define_choice(values, "dtype", ["float32", "bfloat16"], "of parameters and compute (default: the model's)")
    flags.DEFINE_integer("tensor", 1, "devices that split the model", 1, flag_values=values)
    define_accept_fields(values)
    define_help(values)
    return values
