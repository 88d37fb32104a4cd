"""The flags of `lmjax explain`. Imports no jax."""

from __future__ import annotations

from absl import flags

from lmjax.commands import facts
from lmjax.commands.flags import (
    define_choice,
    define_choices,
    define_column_names,
    define_help,
    define_model,
    define_path,
)

DESCRIPTION = """
lmjax explain: why a model says what it says, as one HTML page that loads nothing from elsewhere. What is explained
follows from the model: the next token or a sentence of a decoder, a translation, a masked token, a label, an answer, or
the likeness of two texts. Or many texts are looked at: what layers know (probe), how similar layers are (cka), and
which features a layer has (a sparse autoencoder).

  lmjax explain --model=gpt2/ --text="The capital of France is" --method=integrated,lens,direct
  lmjax explain --model=gpt2/ --text="The old king" --corrupted="The old queen" --token=" his" --method=patching
  lmjax explain --workdir=runs/classifier --text="A fine film." --method=integrated,occlusion --judge
  lmjax explain --model=MiniLM/ --text="A fine film." --compare="A good movie."
  lmjax explain --model=t5/ --text="translate English to German: A house." --method=attention,occlusion
  lmjax explain --model=gpt2/ --method=probe --labels=sentiment.tsv              accuracy of each layer
  lmjax explain --model=gpt2/ --method=cka --data=texts.txt --other=runs/mine     layers of two models
  lmjax explain --model=gpt2/ --method=features --data=texts.txt --layer=6
  lmjax explain --model=gpt2/ --text="The capital of France is" --method=lens,tuned_lens --data=texts.txt
  lmjax explain --model=gpt2/ --text="The weather is" --method=steering --towards=glad.txt --away=sad.txt --layer=6
"""


def define() -> flags.FlagValues:
    """Returns the flags of the command, not parsed yet."""
    values = flags.FlagValues()
    flags.DEFINE_string("text", None, "what the model reads", flag_values=values)
    flags.DEFINE_string("text2", None, "of a classifier of pairs, the second text", flag_values=values)
    flags.DEFINE_string(
        "question", None, "of a model that answers questions: --text is the context", flag_values=values
    )
    flags.DEFINE_string("compare", None, "explain the cosine of the text's vector and this text's", flag_values=values)
    flags.DEFINE_string(
        "target",
        None,
        "explain each token of this text, which follows (default: what is generated)",
        flag_values=values,
    )
    flags.DEFINE_string("token", None, "the token that is explained (default: the likeliest)", flag_values=values)
    flags.DEFINE_string("label", None, "the label that is explained (default: the likeliest)", flag_values=values)
    flags.DEFINE_string("against", None, "explain the difference from this token or label", flag_values=values)
    flags.DEFINE_string(
        "corrupted", None, "for patching: a text with as many tokens and another answer", flag_values=values
    )
    known = (
        *facts.names("lmjax.analysis.views", "VIEWS"),
        *facts.names("lmjax.analysis.attribution", "METHODS"),
        *facts.names("lmjax.analysis.studies", "STUDIES"),
    )
    define_choices(
        values,
        "method",
        known,
        f"one or several, joined by commas: {', '.join(known)} (default: integrated,attention, and lens of tokens)",
    )
    flags.DEFINE_integer(
        "max_new_tokens",
        None,
        "of a decoder: explain each token of what it generates, at most so many (default: the next token alone; of an "
        "encoder-decoder: 16)",
        1,
        512,
        flag_values=values,
    )
    flags.DEFINE_boolean(
        "judge", False, "compare attributions with random orders, and with shuffled weights", flag_values=values
    )
    define_choice(
        values,
        "baseline",
        ["auto", "mask", "pad", "zero"],
        "the vector in the place of a token that is left out: auto: of the mask, or else zeros",
        "auto",
    )
    flags.DEFINE_integer(
        "samples",
        0,
        "inputs of smoothgrad, rows of lime and shap (0: 32; 64 + 8 for each token)",
        0,
        100_000,
        flag_values=values,
    )
    flags.DEFINE_integer("seed", 0, "of random draws", 0, flag_values=values)
    _define_texts(values)
    define_path(values, "output", "a new HTML file (default: explain.html; - : none)", "explain.html")
    define_model(values)
    define_help(values)
    return values


def _define_texts(values: flags.FlagValues) -> None:
    """Defines the flags of methods that read many texts."""
    files = {
        "data": "for cka, features and tuned_lens: a file or a quoted glob of texts, of lines or of records",
        "labels": "for probe: JSONL, CSV or TSV with text and label, and group if the control task has one",
        "other": "for cka: a second model, whose layers are compared with those of the first",
        "towards": "for steering: texts that the direction leads to",
        "away": "for steering: texts that the direction leads away from",
    }
    for name, text in files.items():
        flags.DEFINE_string(name, None, text, flag_values=values)
    flags.DEFINE_string("text_field", "text", "the field of JSON, or column, of a text", flag_values=values)
    define_column_names(values)
    which = "the tokens whose residual stream stands for a text (default: the last for steering, else the mean of all)"
    define_choice(values, "tokens", ["mean", "first", "last"], which)
    flags.DEFINE_integer(
        "layer", None, "for features and steering, from 0 (default: in the middle)", 0, flag_values=values
    )
    flags.DEFINE_list("strengths", ["0", "1", "2", "4"], "for steering: factors of the direction", flag_values=values)
    flags.DEFINE_integer("seeds", 5, "for probe: splits into trained and tested texts", 1, 1000, flag_values=values)
    flags.DEFINE_integer("features", 512, "for features: how many there are", 2, 1_000_000, flag_values=values)
    flags.DEFINE_integer("active", 8, "for features: of one token", 1, 10_000, flag_values=values)
    steps = "steps of training (default: 2000 for features, 250 for tuned_lens)"
    flags.DEFINE_integer("train_steps", None, steps, 1, 10_000_000, flag_values=values)
