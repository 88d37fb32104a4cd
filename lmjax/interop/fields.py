"""The fields of a checkpoint's config.json: each one is read, known not to matter, or refused; none is passed over."""

from __future__ import annotations

import pathlib
from collections.abc import Collection, Mapping
from typing import Any

from lmjax.errors import FlagError

# What says nothing of the function that the weights compute: provenance, defaults of generation and of reports.
IMMATERIAL = {
    "_name_or_path",
    "_attn_implementation_autoset",
    "_commit_hash",
    "architectures",
    "auto_map",
    "model_type",
    "name_or_path",
    "transformers_version",
    "tokenizer_class",
    "torch_dtype",
    "dtype",
    "torchscript",
    "use_bfloat16",
    "tf_legacy_loss",
    "use_cache",
    "use_return_dict",
    "return_dict",
    "return_dict_in_generate",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "gradient_checkpointing",
    "initializer_factor",
    "finetuning_task",
    "task_specific_params",
    "problem_type",
    "label2id",
    "classifier_dropout",
    "pruned_heads",
    "prefix",
    "cross_attention_hidden_size",
    "add_cross_attention",
    "is_decoder",
    "is_encoder_decoder",
    "tie_encoder_decoder",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "sep_token_id",
    "cls_token_id",
    "mask_token_id",
    "unk_token_id",
    "decoder_start_token_id",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "bad_words_ids",
    "begin_suppress_tokens",
    "suppress_tokens",
    "max_length",
    "min_length",
    "do_sample",
    "early_stopping",
    "num_beams",
    "num_beam_groups",
    "diversity_penalty",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
    "repetition_penalty",
    "length_penalty",
    "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size",
    "num_return_sequences",
    "remove_invalid_values",
    "exponential_decay_length_penalty",
    "extra_special_tokens",
    "n_positions_ctx",
    "gradient_checkpointing_kwargs",
}

_REQUIRED = object()
# Bounds on what a hostile file can make a reader loop over or multiply.
_MOST_LAYERS, _LARGEST = 10_000, 2**40


class Fields:
    """The values of a config.json, handed out once each.

    Attributes:
        path: of the file, for messages.
        tensors: names of those that the checkpoint has, where they tell what its fields do not.
    """

    def __init__(self, values: Mapping[str, Any], path: pathlib.Path, tensors: Collection[str] = ()):
        """Takes what is in the file."""
        self._values, self.path, self.tensors = dict(values), path, tensors
        self._read: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return self._values.get(name) is not None

    def take(self, name: str, default: Any = _REQUIRED) -> Any:
        """Returns a value, or where the file has none (or null) the default of transformers, which leaves it out.

        Raises:
            FlagError: the file has none, and nothing is right without it; or it is of another kind than the default.
        """
        self._read.add(name)
        value = self._values.get(name)
        if value is None:
            if default is _REQUIRED:
                raise self.error(name, "the file does not say, and there is no value that would be right for all")
            return default
        numbers = (int, float)
        kind = numbers if isinstance(default, numbers) and not isinstance(default, bool) else type(default)
        if default not in (None, _REQUIRED) and not isinstance(value, kind):
            raise self.error(name, f"must be of the kind of {default!r}")
        return value

    def integer(self, name: str, default: Any = _REQUIRED) -> Any:
        """Returns a positive whole number, or the default."""
        value = self.take(name, default)
        if value is not default and (isinstance(value, bool) or not isinstance(value, int) or value <= 0):
            raise self.error(name, "must be a positive whole number")
        if value is not default and value > (_MOST_LAYERS if "layer" in name else _LARGEST):
            raise self.error(name, "is larger than any model's")
        return value

    def number(self, name: str, default: Any = _REQUIRED) -> Any:
        """Returns a number as a float, or the default."""
        value = self.take(name, default)
        if value is not default and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise self.error(name, "must be a number")
        return value if value is None else float(value)

    def is_null(self, name: str) -> bool:
        """Returns whether the file says null, where that is something else than to say nothing."""
        return name in self._values and self._values[name] is None

    def choose(self, name: str, choices: Mapping[Any, Any], default: Any = _REQUIRED) -> Any:
        """Returns what a value stands for; raises FlagError for one that lmjax does not implement."""
        value = self.take(name, default)
        try:
            return choices[value]
        except (KeyError, TypeError) as e:
            known = ", ".join(map(repr, choices))
            raise self.error(name, f"lmjax implements {known}") from e

    def expect(self, **values: Any) -> None:
        """Raises FlagError unless each of these fields is absent or has this value: lmjax implements no other."""
        for name, value in values.items():
            self.choose(name, {value: value, None: value}, None)

    def skip(self, *names: str) -> None:
        """Marks fields that this family's weights do not depend on."""
        self._read.update(names)

    def group(self, name: str) -> Fields | None:
        """Returns the fields of a nested object, or None; whoever asks must see that they are all read."""
        self._read.add(name)
        value = self._values.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.error(name, "must be an object")
        return Fields(value, pathlib.Path(f"{self.path}: {name}"))

    def finish(self) -> None:
        """Raises FlagError if there is a field that nobody has read and that may matter."""
        left = {n: v for n, v in self._values.items() if n not in self._read | IMMATERIAL and v is not None}
        if left:
            name = sorted(left)[0]
            raise self.error(name, "lmjax does not know this field of this family, and does not guess")

    def error(self, name: str, problem: str) -> FlagError:
        """Returns the error about one field."""
        shown = f"={self._values[name]!r}" if name in self._values else ""
        return FlagError(f"{self.path}: {name}{shown[:200]}: {problem}")


ACTIVATIONS = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_new",
    "gelu_pytorch_tanh": "gelu_new",
    "gelu_python": "gelu",
    "gelu_fast": "gelu_new",
    "silu": "silu",
    "swish": "silu",
    "relu2": "relu2",
}
GATED = {"silu": "swiglu", "swish": "swiglu", "gelu": "geglu", "gelu_new": "geglu_new", "relu": "reglu"}
GATED |= {"gelu_pytorch_tanh": "geglu_new"}


def rope_fields(fields: Fields, theta: float = 10_000.0, fraction: float | None = None) -> dict[str, Any]:
    """Returns the fields of a RopeConfig, from `rope_parameters` or from `rope_theta` and `rope_scaling`.

    Args:
        fields: of the model.
        theta: where they do not say.
        fraction: of a head that rotates, where they do not say; None: in this family it is all of it.
    """
    # Both may be there, as in a file that transformers 5 wrote anew; it prefers the older.
    scaling = fields.group("rope_scaling") or fields.group("rope_parameters")
    fields.skip("rope_parameters", "rope_scaling")
    base = fields.number("rope_theta", theta)
    if scaling is None:
        return {"theta": base, "fraction": 1.0 if fraction is None else fraction}
    return rope_scaling(scaling, base, fields.integer("max_position_embeddings"), fraction)


def rope_scaling(scaling: Fields, theta: float, length: int, fraction: float | None = None) -> dict[str, Any]:
    """Returns the fields of a RopeConfig from one object of rotary parameters.

    Args:
        scaling: the object, all of which is read.
        theta: where it does not say.
        length: max_position_embeddings.
        fraction: as of `rope_fields`.
    """
    kinds = {name: name for name in ("linear", "dynamic", "yarn", "llama3")} | {"default": "none"}
    # Files before transformers 4.43 say `type`.
    kind = scaling.choose("rope_type" if "rope_type" in scaling else "type", kinds, "default")
    scaling.skip("type", "rope_type")
    if fraction is None:
        scaling.expect(partial_rotary_factor=1.0)
    values: dict[str, Any] = {
        "theta": scaling.number("rope_theta", theta),
        "fraction": 1.0 if fraction is None else scaling.number("partial_rotary_factor", fraction),
        "scaling": kind,
    }
    if kind == "none":
        scaling.skip("factor")
    else:
        values["factor"] = scaling.number("factor")
    if kind in ("yarn", "llama3"):
        values["original_length"] = scaling.integer("original_max_position_embeddings", None)
    elif kind == "dynamic":
        # In transformers the length it starts from is always this one.
        scaling.expect(original_max_position_embeddings=length)
    else:
        scaling.skip("original_max_position_embeddings")
    if kind == "llama3":
        values["low_frequency"] = scaling.number("low_freq_factor")
        values["high_frequency"] = scaling.number("high_freq_factor")
    if kind == "yarn":
        values["beta_fast"] = scaling.number("beta_fast", 32.0)
        values["beta_slow"] = scaling.number("beta_slow", 1.0)
        values["attention_factor"] = scaling.number("attention_factor", None)
        scaling.expect(mscale=None, mscale_all_dim=None, truncate=True)
    scaling.finish()
    return values


def rope_json(rope: Any, fraction: bool = False) -> dict[str, Any]:
    """Returns `rope_theta`, `rope_scaling` and `rope_parameters` of a RopeConfig; the opposite of `rope_fields`.

    Args:
        rope: the config.
        fraction: whether this family says how much of a head rotates.
    """
    scaling = scaling_json(rope, fraction)
    parameters = {"rope_theta": rope.theta} | scaling
    return {
        "rope_theta": rope.theta,
        # As transformers 4 reads it; 5 reads the other.
        "rope_scaling": None if rope.scaling == "none" else parameters,
        "rope_parameters": parameters,
    }


def scaling_json(rope: Any, fraction: bool = False) -> dict[str, Any]:
    """Returns the object that `rope_scaling` reads, but for theta."""
    values: dict[str, Any] = {"rope_type": "default" if rope.scaling == "none" else rope.scaling}
    if fraction:
        values["partial_rotary_factor"] = rope.fraction
    if rope.scaling != "none":
        values["factor"] = rope.factor
    if rope.scaling in ("yarn", "llama3") and rope.original_length is not None:
        values["original_max_position_embeddings"] = rope.original_length
    if rope.scaling == "llama3":
        values |= {"low_freq_factor": rope.low_frequency, "high_freq_factor": rope.high_frequency}
    if rope.scaling == "yarn":
        values |= {"beta_fast": rope.beta_fast, "beta_slow": rope.beta_slow}
        if rope.attention_factor is not None:
            values["attention_factor"] = rope.attention_factor
    return values
