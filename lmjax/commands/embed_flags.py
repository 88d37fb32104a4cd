"""The flags of `lmjax embed`. Imports no jax."""

from __future__ import annotations

from absl import flags

from lmjax.commands.flags import define_choice, define_help, define_model, define_path

DESCRIPTION = """
lmjax embed: the vectors of texts or words: their neighbours, analogies, the odd one out, and a picture of all of them.

  lmjax embed --model=MiniLM/ --data=texts.txt --near="a good film"              the most similar texts
  lmjax embed --model=MiniLM/ --data=texts.txt --output=vectors/                 vectors, picture, files of a projector
  lmjax embed --model=gpt2/ --of=tokens --near=king --analogy=man,king,woman     of the whole vocabulary
"""


def define() -> flags.FlagValues:
    """Returns the flags of the command, not parsed yet."""
    values = flags.FlagValues()
    flags.DEFINE_string(
        "data",
        None,
        "texts or words: a file or a quoted glob, of lines, or of JSONL, CSV or TSV with the field of --text_field",
        flag_values=values,
    )
    flags.DEFINE_string("text_field", "text", "the field of JSON, or column, of a text", flag_values=values)
    define_choice(
        values,
        "of",
        ["texts", "words", "tokens"],
        "vectors of whole texts from the hidden states; of words, or of all tokens, from the token table",
        "texts",
    )
    flags.DEFINE_string("near", None, "a text or word: what is most similar to it", flag_values=values)
    flags.DEFINE_list("analogy", [], "A,B,C of the data: what is to C as B is to A", flag_values=values)
    flags.DEFINE_list("odd", [], "three or more, joined by commas: which does not belong there", flag_values=values)
    flags.DEFINE_integer("count", 10, "of what is listed", 1, 10_000, flag_values=values)
    define_choice(
        values, "projection", ["pca", "tsne", "umap"], "of the picture (umap: pip install 'lmjax[umap]')", "pca"
    )
    flags.DEFINE_integer("most", 5000, "of the tokens, the first so many", 3, flag_values=values)
    flags.DEFINE_integer("batch_size", 32, "texts that are computed together", 1, 4096, flag_values=values)
    define_path(
        values,
        "output",
        "a new folder: vectors.npy, picture.html and .png (needs matplotlib), and the files of TensorBoard's projector",
    )
    define_model(values)
    define_help(values)
    return values
