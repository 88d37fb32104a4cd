"""The flags of `lmjax rate`. Imports no jax."""

from __future__ import annotations

from absl import flags

from lmjax.commands import generate_flags
from lmjax.commands.flags import define_help, define_path

DESCRIPTION = """
lmjax rate: makes preferences from a trained model's answers. It samples two answers to each prompt, shows them side by
side, reads which one is better, and appends it to a file of prompt, chosen and rejected that --objective=dpo trains on.
Prompts that the file has already are left out, so that it can be stopped at any time and goes on with the same command.

  lmjax rate --workdir=runs/mine --prompts=prompts.txt --to=preferences.jsonl            you choose, at the terminal
  lmjax train --init_from=runs/mine --objective=dpo --data=preferences.jsonl --workdir=runs/better

  lmjax rate --workdir=runs/mine --prompts=prompts.txt --answers=pairs.jsonl             only samples: prompt, a and b
  lmjax rate --ratings=rated.jsonl --to=preferences.jsonl                                a program has added choice

Ratings are JSONL with prompt (or messages), choice (a, b or skip), and a and b, the two answers; without these, answers
are sampled as at the terminal. Answers depend on --seed, the place of a prompt in its file, and the model alone.
"""

# The flags of `lmjax generate` for two answers that are sampled together; each sets a field of GenerateConfig.
_WHOLE = ("max_new_tokens", "seed", "batch_size", "cache_dtype")
_NOT = ("beams.", "unmask.")
FIELDS = {
    name: path
    for name, path in generate_flags.FIELDS.items()
    if name in _WHOLE or ("." in path and not path.startswith(_NOT))
}


def define() -> flags.FlagValues:
    """Returns the flags of the command, not parsed yet."""
    values = flags.FlagValues()
    define_path(values, "prompts", "a file of prompts: one a line, or JSONL or CSV with a field prompt, or messages")
    define_path(values, "ratings", "JSONL with prompt, choice and perhaps a and b, in place of the terminal")
    define_path(values, "to", "the JSONL file of preferences, to which new ones are appended")
    define_path(values, "answers", "a new JSONL file for the two answers to each prompt, to be rated elsewhere")
    generate_flags.define_generation(values, FIELDS)
    define_help(values)
    return values
