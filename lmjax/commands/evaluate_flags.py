"""The flags of `lmjax evaluate`. Imports no jax."""

from __future__ import annotations

import ast

from absl import flags

from lmjax.commands import facts
from lmjax.commands.flags import (
    define_choice,
    define_column_names,
    define_help,
    define_model,
    define_path,
    define_processes,
)
from lmjax.data.records import FieldNames

DESCRIPTION = """
lmjax evaluate: scores texts with a trained model. A decoder and an encoder-decoder give log-likelihoods, an encoder
pseudo-log-likelihoods (each token masked in turn, a forward pass for each), or, if it was trained to write by
unmasking, a bound on the log-likelihood from --draws forward passes.

  lmjax evaluate --workdir=runs/mine --data=novel.txt               perplexity and bits per byte
  lmjax evaluate --model=gpt2/ --data=a=a.txt --data=b=b.jsonl      a folder or a hub name; several sets
  lmjax evaluate --model=runs/mine --task=minimal_pairs --data=blimp.jsonl     good, bad
  lmjax evaluate --model=runs/mine --task=choices --data=exam.jsonl    context, choices, answer
  lmjax evaluate --model=runs/mine --task=pairs --data=test.csv                source, target
  lmjax evaluate --workdir=runs/translator --task=generation --beams=5 --data=test.csv      BLEU, chrF, ROUGE
  lmjax evaluate --workdir=runs/classifier --data=dev.tsv           text, label: the metrics of its task
  lmjax evaluate --workdir=runs/a,runs/b,runs/c --data=dev.tsv      an ensemble
  lmjax evaluate --workdir=runs/a --against=runs/b --data=dev.tsv   which is better, and is it chance
  lmjax evaluate --workdir=runs/a --data=dev.tsv --training_data=train.tsv      without contaminated examples too
  lmjax evaluate --model=runs/mine --task=long_context --data=stdlib --lengths=256,512 --figures=maps
  lmjax evaluate --model=runs/mine --harness=lambada_openai         tasks of lm-evaluation-harness
"""

TASKS = {
    "perplexity": "of texts, each token predicted once, in windows where a text is long",
    "minimal_pairs": "share of records whose good text is likelier than their bad one",
    "choices": "share of questions whose likeliest choice is the answer; each directly follows its context",
    "pairs": "log-likelihood of the targets given their sources",
    "generation": "BLEU, chrF, ROUGE and exact match of targets generated for sources (--beams, --max_new_tokens)",
    "long_context": "what a decoder finds again in long texts, by --lengths and --depths, and its loss by position",
    "own": "the metrics of what the model was fine-tuned for, such as a classifier's accuracy, with 95 % intervals",
}
# Fields of ScoreConfig that are flags.
NUMBERS = ("max_length", "stride", "batch_tokens", "draws")
SWITCHES = ("truncate", "end", "within_word")


def define() -> flags.FlagValues:
    """Returns the flags of the command, not parsed yet."""
    values = flags.FlagValues()
    harness = "tasks of lm-evaluation-harness, joined by commas; in place of --task and --data"
    flags.DEFINE_string("harness", None, harness, flag_values=values)
    tasks = "with --harness, a folder of tasks of your own (YAML); only these are known then"
    define_path(values, "include_path", tasks)
    define_path(values, "output", "a new JSON file for the results")
    define_path(
        values,
        "predictions",
        "of a fine-tuned model or of generation, a new JSON Lines file: each record, gold and prediction",
    )
    define_path(
        values,
        "figures",
        "a folder for PNG files: of a fine-tuned model such as its confusion matrix, of long_context heat maps",
    )
    define_path(values, "against", "a second fine-tuned model, compared with the first on the same records")
    flags.DEFINE_multi_string(
        "data",
        [],
        "a file or a quoted glob; or NAME=PATH; may be repeated. Text, JSONL, CSV or TSV, also gzipped; stdlib",
        flag_values=values,
    )
    flags.DEFINE_string(
        "training_data",
        None,
        "training data: the metrics are also given without the examples that stand in it, and of these alone",
        flag_values=values,
    )
    words = "with --training_data, words in a row that make an example contaminated"
    flags.DEFINE_integer("ngram", 13, words, 1, 1000, flag_values=values)
    for name in FieldNames._fields:
        what = "a text" if name == "text" else f"the {name} of a pair"
        flags.DEFINE_string(f"{name}_field", name, f"the field of JSON, or column, of {what}", flag_values=values)
    meanings = "; ".join(f"{name}: {text}" for name, text in TASKS.items())
    define_choice(values, "task", TASKS, f"{meanings} (default: own of a fine-tuned model, else perplexity)")
    define_column_names(values)
    define_model(values)
    flags.DEFINE_integer("limit", None, "with --harness, examples of each task (default: all)", 1, flag_values=values)
    flags.DEFINE_integer("beams", None, "of --task=generation, beams (default: greedy)", 1, flag_values=values)
    flags.DEFINE_float("length_penalty", None, "of beams, as in lmjax generate", flag_values=values)
    flags.DEFINE_integer(
        "max_new_tokens", None, "of --task=generation, tokens of a target (default: 64)", 1, flag_values=values
    )
    suite = facts.fields("lmjax.evaluation.long_context", "LongConfig")
    text = f"of --task=long_context, {suite['lengths'].description}, joined by commas (default: 128,256,512)"
    flags.DEFINE_list("lengths", None, text, flag_values=values)
    for name in ("depths", "examples"):
        text = f"of --task=long_context, {suite[name].description} (default: {suite[name].default})"
        flags.DEFINE_integer(name, None, text, 1, flag_values=values)
    known = facts.fields("lmjax.inference.score.texts", "ScoreConfig")
    for name in (*NUMBERS, *SWITCHES):
        default, text, _ = known[name]
        define = flags.DEFINE_integer if name in NUMBERS else flags.DEFINE_boolean
        define(name, ast.literal_eval(default), text, flag_values=values)
    define_processes(values, "evaluate")
    define_help(values)
    return values
