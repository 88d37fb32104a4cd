"""Generation settings of a checkpoint, from its generation_config.json or, for older ones, from its config.json.

Fields have the meaning that `generate` of transformers 5 gives them. If both files exist, config.json is only used for
the ids that begin and end a text.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError

from lmjax.data.vocabulary import Vocabulary
from lmjax.errors import DataError
from lmjax.inference.defaults import GenerationDefaults
from lmjax.inference.generate.beam import BeamConfig
from lmjax.inference.generate.processors import ProcessorConfig
from lmjax.inference.generate.sampling import SamplingConfig
from lmjax.inference.loaded import PromptFormat
from lmjax.inference.row_lengths import longest_row
from lmjax.interop.families import FAMILIES
from lmjax.interop.shards import read_json
from lmjax.model.config import ModelConfig
from lmjax.model.traits import Family

GENERATION = "generation_config.json"
# Their fields and our fields of ProcessorConfig, SamplingConfig and BeamConfig; _NEUTRAL: the values without effect.
_PROCESSORS = {"repetition_penalty": "repetition_penalty", "no_repeat_ngram_size": "no_repeat_ngram"}
_PROCESSORS |= {name: name for name in ("min_length", "min_new_tokens")}
_SAMPLING = {name: name for name in ("temperature", "top_k", "top_p", "min_p", "typical_p")}
_BEAMS = {
    "num_beams": "beams",
    "length_penalty": "length_penalty",
    "early_stopping": "early_stopping",
    "num_beam_groups": "groups",
    "diversity_penalty": "diversity",
    "num_return_sequences": "num_return",
}
_NEUTRAL = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "min_length": 0, "min_new_tokens": 0}
_NEUTRAL |= {"top_k": 0, "top_p": 1.0, "typical_p": 1.0, "min_p": 0.0}
_NEUTRAL |= {"num_beam_groups": 1, "diversity_penalty": 0.0, "num_return_sequences": 1}
# The top_k of transformers if a file turns on sampling without a top_k.
_TOP_K = 50
# The default max_length of the config class. Early files contain it, also if it was never set.
_UNCHOSEN = 20
# Fields that lmjax does not implement, and the values without effect.
_FOREIGN: dict[str, tuple[Any, ...]] = {
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1.0,),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
    "exponential_decay_length_penalty": (),
    "guidance_scale": (1.0,),
    "sequence_bias": (),
    "top_h": (),
    "penalty_alpha": (0.0,),
    "dola_layers": (),
    "constraints": (),
    "force_words_ids": (),
    "forced_decoder_ids": (),
    "watermarking_config": (),
    "max_time": (),
    "token_healing": (False,),
}


def said(folder: pathlib.Path, origin: Mapping[str, Any]) -> tuple[pathlib.Path, dict[str, Any]]:
    """Returns the file with a checkpoint's generation settings, and its values.

    Args:
        folder: of the checkpoint.
        origin: its config.json.
    """
    path = folder / GENERATION
    if path.is_file():
        return path, {k: v for k, v in read_json(path).items() if v is not None}
    family = FAMILIES.get(str(origin.get("model_type")))
    values = {**(family.generation if family else {}), **origin}
    if values.get("force_bos_token_to_be_generated"):
        values.setdefault("forced_bos_token_id", values.get("bos_token_id"))
    if values.get("max_length") == _UNCHOSEN:
        del values["max_length"]
    return folder / "config.json", {k: v for k, v in values.items() if v is not None}


def read_defaults(folder: pathlib.Path, origin: Mapping[str, Any], config: ModelConfig) -> GenerationDefaults:
    """Returns the generation settings of a Hugging Face checkpoint; empty for an encoder, which generates no text.

    Args:
        folder: of the checkpoint.
        origin: its config.json.
        config: of the model.

    Raises:
        DataError: a value of the wrong type, or one that cannot be used.
    """
    if not config.family.causal:
        return GenerationDefaults()
    path, values = said(folder, origin)
    draws, searches = bool(values.get("do_sample")), values.get("num_beams", 1) != 1
    sampling = _fields(path, values, _SAMPLING)
    if draws:
        sampling = {"temperature": 1.0} | ({} if "top_k" in values else {"top_k": _TOP_K}) | sampling
    processors = _fields(path, values, _PROCESSORS)
    if "min_new_tokens" in processors:
        processors.pop("min_length", None)
    ignored = {k: v for k, v in values.items() if k in _FOREIGN and v not in (*_FOREIGN[k], None, [], {})}
    if draws and searches:
        ignored["do_sample"] = True
    if values.get("num_return_sequences", 1) != 1 and not searches:
        ignored["num_return_sequences"] = values["num_return_sequences"]
    if values.get("renormalize_logits"):
        processors["renormalize"] = True
    beams = _fields(path, values, _BEAMS)
    _check(path, processors, sampling, beams)
    return GenerationDefaults(
        source=path.name,
        whole=_whole(path, values, config),
        processors=processors,
        sampling=sampling,
        draws=draws and not searches,
        beams=beams,
        searches=searches,
        ignored=ignored,
    )


def _fields(path: pathlib.Path, values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Returns our fields, for the values that have an effect; raises DataError for a value that is not a number."""
    found = {}
    for theirs, ours in names.items():
        value = values.get(theirs)
        if value is None or value == _NEUTRAL.get(theirs):
            continue
        if isinstance(value, bool) != (theirs == "early_stopping" and value != "never"):
            raise DataError(f"{path}: {theirs}={value!r} has the wrong type; correct it")
        if not isinstance(value, int | float) and value != "never":
            raise DataError(f"{path}: {theirs}={value!r} is not a number; correct it")
        found[ours] = value
    return found


def _check(path: pathlib.Path, processors: Any, sampling: Any, beams: Any) -> None:
    """Raises DataError for values that our configs reject."""
    parts = ((ProcessorConfig, processors), (SamplingConfig, {"temperature": 1.0} | sampling), (BeamConfig, beams))
    for part, values in parts:
        try:
            part.model_validate(values)
        except ValidationError as e:
            first = e.errors()[0]
            name = ".".join(map(str, first["loc"])) or "its fields"
            message = first["msg"].removeprefix("Value error, ")
            raise DataError(f"{path}: {name}: {message}; correct it") from e


def _whole(path: pathlib.Path, values: Mapping[str, Any], config: ModelConfig) -> dict[str, Any]:
    """Returns the fields of GenerateConfig itself: the most new tokens, and the strings that end a text."""
    found: dict[str, Any] = {}
    name = "max_new_tokens" if "max_new_tokens" in values or not config.family.paired else "max_length"
    longest = values.get(name)
    if longest is not None:
        # Their max_length counts the decoder's start id.
        begun = int(name == "max_length")
        if isinstance(longest, bool) or not isinstance(longest, int) or longest <= begun:
            raise DataError(f"{path}: {name}={str(longest)[:80]} is not a number of tokens above {begun}; correct it")
        longest -= begun
        limit = longest_row(config, decoder=True)
        found["max_new_tokens"] = longest if limit is None else min(longest, limit)
    strings = values.get("stop_strings") or ()
    if strings:
        found["stop"] = (
            (strings,) if isinstance(strings, str) else tuple(strings) if isinstance(strings, list) else None
        )
        if not found["stop"] or not all(isinstance(each, str) and each for each in found["stop"]):
            raise DataError(f"{path}: stop_strings={str(strings)[:80]} is not a list of texts; correct it")
    return found


def read_prompts(
    folder: pathlib.Path, origin: Mapping[str, Any], family: Family, tokenizer: Vocabulary
) -> PromptFormat:
    """Returns the prompt format of a Hugging Face checkpoint, with the ids that it forces or bans.

    Raises:
        DataError: an id outside the tokenizer's vocabulary.
    """
    path, values = said(folder, origin)
    # The ids that begin and end a text may be in either file.
    either = {k: v for k, v in origin.items() if v is not None} | (read_json(path) if path.name == GENERATION else {})
    reader = _ids(folder, values, tokenizer)
    template = tokenizer.template()
    around = {} if template is None else template._asdict()
    roles = tokenizer.role_ids
    stop = reader("eos_token_id", either, (roles["eos"],) if "eos" in roles else ())
    if not family.causal:
        return PromptFormat(**around)
    words = values.get("bad_words_ids") or []
    if not isinstance(words, list) or not all(isinstance(word, list) and word for word in words):
        raise DataError(f"{path}: bad_words_ids={words!r} must be a list of lists of ids; correct it")
    words = [reader("bad_words_ids", {"bad_words_ids": word}) for word in words]
    form = PromptFormat(
        **around,
        stop=stop,
        # As in transformers, a stop id is not banned as a bad word.
        never=(*(w[0] for w in words if len(w) == 1 and w[0] not in stop), *reader("suppress_tokens", values)),
        never_first=reader("begin_suppress_tokens", values),
        never_words=tuple(word for word in words if len(word) > 1),
        last=reader("forced_eos_token_id", values),
    )
    if not family.paired:
        return form
    start = reader("decoder_start_token_id", either, reader("bos_token_id", either, (tokenizer.pad_id,)))
    return dataclasses.replace(form, start=start, forced=reader("forced_bos_token_id", values))


def _ids(folder: pathlib.Path, own: Mapping[str, Any], tokenizer: Vocabulary) -> Callable[..., tuple[int, ...]]:
    """Returns a function that returns the ids of a field, or a default if the field is absent.

    Args:
        folder: of the checkpoint, for messages.
        own: the generation settings, to name the right file in messages.
        tokenizer: of the ids.
    """

    def ids(name: str, values: Mapping[str, Any], default: tuple[int, ...] = ()) -> tuple[int, ...]:
        given = values.get(name)
        found = default if given is None else tuple(given) if isinstance(given, list) else (given,)
        for i in found:
            if not isinstance(i, int) or isinstance(i, bool) or not 0 <= i < tokenizer.vocab_size:
                file = GENERATION if name in own and (folder / GENERATION).is_file() else "config.json"
                raise DataError(f"{folder / file}: {name}={given} is not an id of the tokenizer; correct it")
        return found

    return ids
