"""The flags of `lmjax generate`. Imports no jax."""

from __future__ import annotations

from collections.abc import Mapping

from absl import flags

from lmjax.commands import facts
from lmjax.commands.flags import define_choice, define_help, define_model, define_path, define_processes

DESCRIPTION = """
lmjax generate: writes text with a trained model. A decoder continues a prompt, an encoder-decoder answers it, and an
encoder fills its masks, or writes by replacing masks in steps if it was trained on masked diffusion. The likeliest
token is taken at each step unless --temperature or --beams is given, or the model's own generation_config.json sets
something else.

  lmjax generate --workdir=runs/mine --prompt="Once upon"              streams to the terminal
  lmjax generate --model=gpt2/ --temperature=0.8 --top_p=0.95          a conversation
  lmjax generate --model=t5/ --prompts=in.jsonl --output=out.jsonl --beams=4
  lmjax generate --model=gpt2/ --prompt="Date:" --regex=" ?[0-9]{4}-[0-9]{2}-[0-9]{2}"
  lmjax generate --model=qwen/ --conversation                          questions and answers
  lmjax generate --model=bert/ --prompt="The [MASK] sleeps." --top_k=3
  lmjax generate --workdir=runs/mine --prompt=Once --window=1020 --max_new_tokens=100000    in constant memory
  lmjax generate --workdir=runs/mine --prompts=in.txt --temperature=1 --filter=resample --filter_words=bad.txt
  lmjax generate --model=gpt2/ --prompt="I feel" --steer_towards=glad.txt --steer_away=sad.txt --steer_layer=6
  lmjax generate --workdir=runs/diffusion --prompt="Once upon" --unmask_steps=16 --unmask_block=8
"""

# Flag -> field of GenerateConfig; a flag that is not given leaves the field's default.
_SAMPLING = {name: f"sampling.{name}" for name in ("temperature", "top_k", "top_p", "min_p", "typical_p")}
_PROCESSORS = {name: f"processors.{name}" for name in ("repetition_penalty", "no_repeat_ngram", "min_new_tokens")}
BEAMS = {name: f"beams.{name}" for name in ("beams", "length_penalty", "early_stopping", "diversity", "num_return")}
BEAMS |= {"beam_groups": "beams.groups"}
_WHOLE = (
    "max_new_tokens",
    "seed",
    "batch_size",
    "prefill_chunk",
    "regex",
    "json_schema",
    "lookup",
    "draft_tokens",
    "window",
    "sinks",
)
_UNMASK = {f"unmask_{name}": f"unmask.{name}" for name in ("steps", "order", "block")}
FIELDS = _SAMPLING | _PROCESSORS | BEAMS | _UNMASK | {name: name for name in _WHOLE} | {"cache_dtype": "cache"}
# Flags that may be repeated.
LISTS = {"stop": "stop", "stop_id": "stop_ids"}


def define() -> flags.FlagValues:
    """Returns the flags of the command, not parsed yet."""
    values = flags.FlagValues()
    strings = {
        "tokenizer": "with --preset, a .model, a tokenizer.json or a folder with one",
        "draft": "a smaller model with the same tokenizer, whose guesses are checked several at a time",
    }
    for name, text in strings.items():
        flags.DEFINE_string(name, None, text, flag_values=values)
    prompts = "a file of prompts: one a line, or JSONL or CSV with a field prompt, or JSONL with messages"
    define_path(values, "prompts", prompts)
    output = "a new JSONL file for prompt, text, ids, score and finished, in place of the terminal"
    define_path(values, "output", output)
    define_path(values, "prompt_cache", "a file of --save_prompt_cache: only what follows its beginning is read")
    define_path(values, "save_prompt_cache", "a new file for the keys and values of the prompt")
    presets = sorted(facts.names("lmjax.model.presets", "PRESETS"))
    define_choice(values, "preset", presets, "a model of published size with random weights; needs --tokenizer")
    flags.DEFINE_multi_string("prompt", [], "a text to continue; may be repeated", flag_values=values)
    define_generation(values, FIELDS)
    _define_filter(values)
    _define_steering(values)
    split = "devices that split the positions of a decoder's prompt, and then its keys and values"
    flags.DEFINE_integer("sequence", 1, split, 1, flag_values=values)
    define_processes(values, "generate")
    define_help(values)
    return values


def _define_filter(values: flags.FlagValues) -> None:
    """Defines the flags of what finds a text, and what is done with it."""
    how = "what is done with a text that a rule finds: it is refused, written again with another seed, or marked"
    define_choice(values, "filter", ["refuse", "resample", "mark"], how)
    define_path(values, "filter_words", "with --filter, a list of words, one a line; case does not matter")
    define_path(values, "filter_patterns", "with --filter, regular expressions, one a line")
    classifier = "with --filter, a run or a folder that classifies texts"
    flags.DEFINE_string("filter_model", None, classifier, flag_values=values)
    flags.DEFINE_string("filter_label", None, "its label that finds a text (default: the last one)", flag_values=values)
    probability = "the probability of the label from which on a text is found"
    flags.DEFINE_float("filter_threshold", 0.5, probability, 1e-6, 1.0, flag_values=values)
    tries = "with --filter=resample, how often a text is written again; then it is refused"
    flags.DEFINE_integer("filter_tries", 8, tries, 1, 1000, flag_values=values)


def _define_steering(values: flags.FlagValues) -> None:
    """Defines the flags of a direction that is added to the residual stream."""
    for name, text in (("towards", "a file of texts that the model is steered towards"), ("away", "and away from")):
        define_path(values, f"steer_{name}", f"{text}; the direction is the difference of their mean residual streams")
    flags.DEFINE_integer("steer_layer", None, "with these, the layer, from 0", 0, flag_values=values)
    flags.DEFINE_float("steer_strength", None, "with these, the factor (default: 1)", flag_values=values)


def define_generation(values: flags.FlagValues, fields: Mapping[str, str]) -> None:
    """Defines the flags of what generates and how; `fields` are those of GenerateConfig by flag, besides LISTS."""
    for name, path in LISTS.items():
        flags.DEFINE_multi_string(name, [], f"{described(path)} May be repeated.", flag_values=values)
    for name, path in fields.items():
        flags.DEFINE_string(name, None, described(path), flag_values=values)
    conversation = (
        "answer a prompt as a message, in the tokenizer's chat template; on for a run that was trained on conversations"
    )
    flags.DEFINE_bool("conversation", False, conversation, flag_values=values)
    define_model(values)


def described(path: str) -> str:
    """Returns the --help text of a field of GenerateConfig."""
    default, description, _ = facts.fields("lmjax.inference.generate.generate", "GenerateConfig")[path]
    # Without --beams there is no BeamConfig, so the default of its own field does not apply.
    shown = "off" if default == "None" or path == "beams.beams" else default.strip("'")
    return description + ("" if default == "()" else f" (default: {shown})")
