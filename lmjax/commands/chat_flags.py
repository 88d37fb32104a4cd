"""The flags of `lmjax chat`. Imports no jax."""

from __future__ import annotations

from absl import flags

from lmjax.commands.flags import define_help, define_model, define_path

DESCRIPTION = """
lmjax chat: a conversation with a trained model at a terminal: a decoder with a chat template, or an encoder-decoder.
The engine is that of lmjax serve. /help lists the commands of a conversation; Ctrl-C stops an answer, Ctrl-D leaves.

  lmjax chat --workdir=runs/chat
  lmjax chat --model=qwen/ --system="Answer in one sentence." --temperature=0.7
  lmjax chat --model=qwen/ --load=talk.json
"""

# Flag -> what it is; the names are those of a body of /v1/chat/completions.
SETTINGS = {
    "temperature": "divides the logits; 0: the likeliest token",
    "top_p": "draw among the likeliest tokens with this total probability",
    "top_k": "draw among this many of the likeliest tokens",
    "min_p": "draw among tokens with at least this share of the largest probability",
    "repetition_penalty": "above 1, tokens that occurred become less likely",
    "max_tokens": "the most tokens of an answer (default: what there is room for)",
    "seed": "of random draws; each answer adds 1 (default: another one each time)",
}


def define() -> flags.FlagValues:
    """Returns the flags of the command, not parsed yet."""
    values = flags.FlagValues()
    for name, text in SETTINGS.items():
        flags.DEFINE_string(name, None, text, flag_values=values)
    flags.DEFINE_string("system", None, "what the model is told first", flag_values=values)
    define_path(values, "load", "a conversation that /save has written")
    flags.DEFINE_integer("max_length", None, "the most tokens of a conversation", 2, flag_values=values)
    define_model(values)
    define_help(values)
    return values
