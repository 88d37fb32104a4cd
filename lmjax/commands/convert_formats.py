"""The formats in which `lmjax convert` writes a model, besides checkpoints of Hugging Face."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import NamedTuple

from absl import flags

from lmjax.data.fast_tokenizer import load_tokenizer
from lmjax.errors import FlagError
from lmjax.interop import gguf_model, stablehlo
from lmjax.interop.export import check_free, choose_family, exported_heads
from lmjax.interop.gguf_vocabulary import check_vocabulary
from lmjax.runs.pretrained import Pretrained, storage_mesh
from lmjax.runs.trained import loaded_model

# Flags of checkpoints of Hugging Face, which have no meaning in other formats.
_OF_CHECKPOINTS = ("family", "shard_gb")


class Format(NamedTuple):
    """A format.

    Attributes:
        check: raises FlagError, before any file of the model is read, if a library is missing or a flag does not fit.
        write: writes a model into a new place and returns the lines of the report.
    """

    check: Callable[[flags.FlagValues], None]
    write: Callable[[Pretrained, pathlib.Path, flags.FlagValues], dict[str, str]]


def check_format(values: flags.FlagValues) -> None:
    """Raises FlagError, before the model is opened, if a flag contradicts --format."""
    form = values["format"].value
    if not values["to"].value:
        raise FlagError(f"--format={form}: is for --to; give the new place")
    if given := [name for name in _OF_CHECKPOINTS if values[name].present]:
        raise FlagError(f"--{given[0]}={values[given[0]].value}: is for checkpoints of Hugging Face; leave it out")
    FORMATS[form].check(values)
    check_free(pathlib.Path(values["to"].value))


def check_whole(source: Pretrained, values: flags.FlagValues) -> None:
    """Raises FlagError if the model has an adapter that is not to be merged."""
    if source.adapted is not None and not values["merge"].value:
        form = values["format"].value
        raise FlagError(
            f"--format={form}: an adapter alone has no such form; give --merge, which writes the whole model"
        )


def _check_stablehlo(values: flags.FlagValues) -> None:
    stablehlo.check_installed()
    if (given := values["dtype"].value) not in (None, "float32", "bfloat16"):
        raise FlagError(f"--dtype={given}: lmjax computes in float32 or bfloat16; choose one of them")


def write_stablehlo(source: Pretrained, folder: pathlib.Path, values: flags.FlagValues) -> dict[str, str]:
    """Writes StableHLO programs with their weights, and returns the lines of the report."""
    loaded = loaded_model(source, dtype=values["dtype"].value)
    sizes = stablehlo.write_programs(loaded, folder, loaded.tokenizer.save_in)
    return {
        "model": loaded.config.family.label,
        "as": f"StableHLO for {', '.join(name for name in sizes)}, {sum(sizes.values()) / 2**20:.2f} MiB",
        "next": f"PYTHONPATH={folder} python -c 'import portable; portable.load(...)'  (see {folder}/portable.py)",
    }


def _check_gguf(values: flags.FlagValues) -> None:
    del values
    gguf_model.check_installed()


def write_gguf(source: Pretrained, folder: pathlib.Path, values: flags.FlagValues) -> dict[str, str]:
    """Writes a GGUF file, and returns the lines of the report."""
    description = choose_family(source.config, exported_heads(source.config, source.heads), None, source.origin)
    gguf_model.check_expressible(description)
    tokenizer = load_tokenizer(str(source.folder))
    check_vocabulary(tokenizer)
    dtype = values["dtype"].value or source.config.param_dtype
    params = source.params(source.config, storage_mesh(source.config, source.heads))
    others = gguf_model.write_gguf(
        description, source.config, params, tokenizer, source.prompts(tokenizer), folder, dtype
    )
    file = folder / gguf_model.FILE
    lines = {
        "as": f"{gguf_model.FORMS[description.model_type].architecture}, {dtype}, {file.stat().st_size / 2**30:.2f} GiB"
    }
    if others:
        lines["in float16"] = f"{len(others)} matrices whose rows are no multiple of 32, such as {others[0]}"
    return lines | {"next": f"llama-cli -m {file} -p ..."}


FORMATS = {"stablehlo": Format(_check_stablehlo, write_stablehlo), "gguf": Format(_check_gguf, write_gguf)}
