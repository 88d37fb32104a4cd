"""The flags of `lmjax audit`. Imports no jax."""

from __future__ import annotations

from absl import flags

from lmjax.commands.flags import define_column_names, define_help, define_model, define_path

DESCRIPTION = """
lmjax audit: what a model has learned and must not say, as one page that loads nothing from elsewhere. Each check reads
a file that you name, in the format in which it was published; a quoted glob names several.

  lmjax audit --model=gpt2/ --winobias='winobias/*.txt' --crows_pairs=crows_pairs_anonymized.csv --stereoset=dev.json
  lmjax audit --workdir=runs/sentiment --templates=own                                  gaps of a classifier
  lmjax audit --model=gpt2/ --prompts=prompts.txt --rater=runs/toxic --words=words.txt  what it writes
  lmjax audit --workdir=runs/mine --card=MODEL_CARD.md --templates=own                  a model card
  lmjax audit --workdir=runs/mine --evaluation=test.txt --prompts=prompts.txt --memorised      leaks of its data
  lmjax audit --model=gpt2/ --templates=own --against=runs/tuned                        two models, paired
"""
# Each names the files of a check.
CHECKS = ("crows_pairs", "winobias", "stereoset", "bbq", "templates", "weat", "canaries", "evaluation", "prompts")


def define() -> flags.FlagValues:
    """Returns the flags of the command, not parsed yet."""
    values = flags.FlagValues()
    texts = {
        "crows_pairs": "CSV of CrowS-Pairs: which sentence of a pair is likelier",
        "winobias": "files of WinoBias, pro_*.txt and anti_*.txt: which pronoun is likelier",
        "stereoset": "JSON of StereoSet: LMS, SS and ICAT",
        "bbq": "JSONL of BBQ: accuracy and bias of answers",
        "templates": "JSON of counterfactual templates, or own: those of lmjax; gaps of labels or of likelihoods",
        "weat": "JSON of WEAT or SEAT tests, on the vectors of texts",
        "canaries": "JSONL or CSV of planted texts and the secret in each: exposure",
        "evaluation": "an evaluation set: how much of it stands in the training data, metrics with and without",
        "prompts": "prompts that the model continues: one a line, or JSONL or CSV with a field prompt",
    }
    for name, text in texts.items():
        flags.DEFINE_string(name, None, text, flag_values=values)
    define_path(
        values, "templates_to", "write the templates of lmjax to a new JSON file, to be edited, and nothing else"
    )
    flags.DEFINE_string("against", None, "a second model, which is audited on the same examples", flag_values=values)
    flags.DEFINE_string("rater", None, "with --prompts, a classifier that rates what is written", flag_values=values)
    flags.DEFINE_string("rater_label", None, "its label that is counted (default: the last one)", flag_values=values)
    define_path(values, "words", "with --prompts, a list of words that are counted, one a line")
    define_path(values, "patterns", "with --prompts, regular expressions that are counted, one a line")
    flags.DEFINE_integer("samples", 25, "texts for each prompt", 1, 10_000, flag_values=values)
    flags.DEFINE_integer("max_new_tokens", 20, "of each text", 1, 100_000, flag_values=values)
    flags.DEFINE_float("temperature", 1.0, "of sampling", 1e-3, 100.0, flag_values=values)
    flags.DEFINE_float("top_p", None, "of sampling", 1e-6, 1.0, flag_values=values)
    flags.DEFINE_integer("seed", 0, "of sampling", 0, 2**62, flag_values=values)
    flags.DEFINE_boolean(
        "show", False, "show the worst texts as they are, in place of masked words", flag_values=values
    )
    flags.DEFINE_boolean(
        "memorised",
        False,
        "with --prompts, count spans of the texts that stand in the training data",
        flag_values=values,
    )
    secrets = "with --canaries, other secrets that each is compared with"
    flags.DEFINE_integer("canary_samples", 500, secrets, 99, 1_000_000, flag_values=values)
    flags.DEFINE_integer("span", 16, "with --memorised, tokens of a span", 2, 10_000, flag_values=values)
    training = "with --evaluation, the training data (default: that of --workdir)"
    flags.DEFINE_string("training_data", None, training, flag_values=values)
    ngram = "with --evaluation, words in a row that make an example known"
    flags.DEFINE_integer("ngram", 13, ngram, 1, 1000, flag_values=values)
    field = "of --evaluation, the field of JSON, or column, of a text"
    flags.DEFINE_string("text_field", "text", field, flag_values=values)
    define_column_names(values)
    flags.DEFINE_integer("batch_size", 32, "rows that are computed together", 1, 4096, flag_values=values)
    card = "a new file for a model card from the files of --workdir, with the checks that are given"
    define_path(values, "card", card)
    define_path(values, "output", "a new .html or .md file (default: audit.html; - : none)", "audit.html")
    define_model(values)
    define_help(values)
    return values
