"""Finds the special tokens of a checkpoint's tokenizer, from its files or else from the defaults of transformers.

Names are those of Hugging Face. Files are read as data only, never executed; one that is too large or damaged is an
error that names it.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from lmjax.data.vocabulary import ROLES
from lmjax.errors import FlagError
from lmjax.paths import read_regular

_END = "<|endoftext|>"


def _named(**tokens: str) -> dict[str, str]:
    return {f"{role}_token": token for role, token in tokens.items()}


_BERT = _named(unk="[UNK]", sep="[SEP]", pad="[PAD]", cls="[CLS]", mask="[MASK]")
_ROBERTA = _named(bos="<s>", eos="</s>", sep="</s>", cls="<s>", unk="<unk>", pad="<pad>", mask="<mask>")
_GPT2 = _named(bos=_END, eos=_END, unk=_END)
_LLAMA = _named(unk="<unk>", bos="<s>", eos="</s>")
_ALBERT = _named(bos="[CLS]", eos="[SEP]", unk="<unk>", sep="[SEP]", pad="<pad>", cls="[CLS]", mask="[MASK]")

# The special tokens of each tokenizer class, used where the files of a checkpoint do not name them.
_CLASSES = {
    "BertTokenizer": _BERT,
    "DistilBertTokenizer": _BERT,
    "ElectraTokenizer": _BERT,
    "RobertaTokenizer": _ROBERTA,
    "BartTokenizer": _ROBERTA,
    "XLMRobertaTokenizer": _ROBERTA,
    "CamembertTokenizer": _ROBERTA,
    "MBartTokenizer": _ROBERTA,
    "DebertaV2Tokenizer": _BERT | _named(bos="[CLS]", eos="[SEP]"),
    "AlbertTokenizer": _ALBERT,
    "GPT2Tokenizer": _GPT2,
    "GPTNeoXTokenizer": _GPT2 | _named(pad="<|padding|>"),
    "Qwen2Tokenizer": _named(unk=_END, eos=_END, pad=_END),
    "LlamaTokenizer": _LLAMA,
    "GemmaTokenizer": _named(unk="<unk>", bos="<bos>", eos="<eos>", pad="<pad>", mask="<mask>"),
    "T5Tokenizer": _named(eos="</s>", unk="<unk>", pad="<pad>"),
    "PegasusTokenizer": _named(pad="<pad>", eos="</s>", unk="<unk>", mask="<mask_2>"),
}

# The tokenizer class of each model type, used if tokenizer_config.json names no class.
CLASS_OF_MODEL = {
    "bert": "BertTokenizer",
    "distilbert": "BertTokenizer",
    "electra": "BertTokenizer",
    "roberta": "RobertaTokenizer",
    "bart": "RobertaTokenizer",
    "xlm-roberta": "XLMRobertaTokenizer",
    "camembert": "CamembertTokenizer",
    "mbart": "MBartTokenizer",
    "deberta-v2": "DebertaV2Tokenizer",
    "albert": "AlbertTokenizer",
    "gpt2": "GPT2Tokenizer",
    "opt": "GPT2Tokenizer",
    "phi": "GPT2Tokenizer",
    "gpt_neox": "GPTNeoXTokenizer",
    "qwen2": "Qwen2Tokenizer",
    "qwen3": "Qwen2Tokenizer",
    "llama": "LlamaTokenizer",
    "gemma": "GemmaTokenizer",
    "gemma2": "GemmaTokenizer",
    "gemma3_text": "GemmaTokenizer",
    "t5": "T5Tokenizer",
    "mt5": "T5Tokenizer",
    "pegasus": "PegasusTokenizer",
}

# The usual names of the special tokens, for a tokenizer.json without other files.
_USUAL = {
    "pad": ("[PAD]", "<pad>", "<|pad|>", "<|padding|>"),
    "unk": ("[UNK]", "<unk>"),
    "bos": ("<s>", "<bos>", "<|begin_of_text|>", _END),
    "eos": ("</s>", "<eos>", "<|end_of_text|>", _END),
    "cls": ("[CLS]",),
    "sep": ("[SEP]",),
    "mask": ("[MASK]", "<mask>"),
}


_TYPES = {
    "tokenizer_class": (str,),
    "added_tokens_decoder": (dict,),
    "additional_special_tokens": (list, dict),
    "extra_special_tokens": (list, dict),
    "extra_ids": (int,),
    "do_lower_case": (bool,),
    "strip_accents": (bool,),
    "tokenize_chinese_chars": (bool,),
    "keep_accents": (bool,),
    "add_prefix_space": (bool,),
    "legacy": (bool,),
}


def read_bounded(path: pathlib.Path) -> bytes:
    """Returns the content of a file; raises FlagError if it cannot be read or is too large for a tokenizer."""
    try:
        return read_regular(path)
    except OSError as error:
        raise FlagError(
            f"tokenizer.path: cannot read {str(path)!r} ({error.strerror}); name a .model, a tokenizer.json or a "
            "folder with one of them"
        ) from error


def parse_object(path: pathlib.Path, content: bytes) -> dict[str, Any]:
    """Returns the JSON object in the content of a file; raises FlagError if the content is anything else."""
    try:
        found = json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise FlagError(
            f"tokenizer.path: {str(path)!r} ({len(content)} bytes) is not whole JSON ({error}); copy it again"
        ) from error
    if not isinstance(found, dict):
        kind = type(found).__name__
        raise FlagError(f"tokenizer.path: {str(path)!r} holds a {kind} and no JSON object; copy it again")
    return found


def settings_of(folder: pathlib.Path) -> dict[str, Any]:
    """Returns a checkpoint's settings of its tokenizer, as one `tokenizer_config.json`; empty if it is no checkpoint.

    As in transformers, `special_tokens_map.json` is read only if `tokenizer_config.json` is an old one, without
    `added_tokens_decoder`. `start_id` is the decoder's start token of config.json, or else its begin-of-text token.

    Raises:
        FlagError: a file is damaged, or a setting has a wrong type.
    """

    def read(name: str) -> dict[str, Any]:
        path = folder / name
        return parse_object(path, read_bounded(path)) if path.exists() else {}

    model, settings, named = (read(n) for n in ("config.json", "tokenizer_config.json", "special_tokens_map.json"))
    if "model_type" not in model and not settings and not named:
        return {}
    if "added_tokens_decoder" not in settings:
        settings |= named
        settings["added_tokens_decoder"] = _by_id(folder, read("added_tokens.json"))
    for field, kinds in _TYPES.items():
        if settings.get(field) is not None and not isinstance(settings[field], kinds):
            raise FlagError(
                f"tokenizer.path: {field} is {str(settings[field])[:80]!r} in the tokenizer_config.json of "
                f"{str(folder)!r}; it must be {' or '.join(k.__name__ for k in kinds)}"
            )
    of_model = model.get("tokenizer_class") or CLASS_OF_MODEL.get(str(model.get("model_type")), "")
    kind = str(settings.get("tokenizer_class") or of_model).removesuffix("Fast")
    start = model.get("decoder_start_token_id", model.get("bos_token_id"))
    given = {**_CLASSES.get(kind, {}), **settings}
    return {**given, "tokenizer_class": kind, "start_id": start, "folder": str(folder)}


def _by_id(folder: pathlib.Path, ids: Mapping[str, Any]) -> dict[int, str]:
    """Returns the added tokens by their ids; raises FlagError for what is no id, or is that of two tokens."""
    found: dict[int, str] = {}
    for token, i in ids.items():
        if not isinstance(i, int) or i in found:
            raise FlagError(
                f"tokenizer.path: {str(folder / 'added_tokens.json')!r} gives {token!r} the id {str(i)[:80]}, which is "
                "no number or another token's; copy it again"
            )
        found[i] = token
    return found


def content_of(settings: Mapping[str, Any], field: str, token: Any) -> str | None:
    """Returns the text of a token that is given as a string or as an object; raises FlagError for anything else."""
    text = token.get("content") if isinstance(token, dict) else token
    if text is not None and not isinstance(text, str):
        raise FlagError(
            f"tokenizer.path: {field} is {token!r} in the tokenizer_config.json or special_tokens_map.json of "
            f"{settings.get('folder')!r}; it must be a token's text"
        )
    return text


def special_names(content: Mapping[str, Any], settings: Mapping[str, Any], vocab: Mapping[str, int]) -> dict[str, Any]:
    """Returns the names of the special tokens that a tokenizer has, as the checkpoint or else `_USUAL` names them.

    If the checkpoint names no begin-of-text token, it is the token with the id `start_id`.

    Args:
        content: parsed content of `tokenizer.json`.
        settings: the result of `settings_of`; empty for a `tokenizer.json` without other files.
        vocab: token -> id.
    """
    model = content["model"]
    names = {f: content_of(settings, f, settings[f]) for f in (f"{role}_token" for role in ROLES) if f in settings}
    if not settings:
        for role, usual in _USUAL.items():
            names[f"{role}_token"] = next((token for token in usual if token in vocab), None)
    unknown = model["vocab"][model["unk_id"]][0] if model.get("unk_id") is not None else model.get("unk_token")
    names["unk_token"] = names.get("unk_token") or unknown
    start = settings.get("start_id")
    if names.get("bos_token") is None and isinstance(start, int):
        names["bos_token"] = next((token for token, i in vocab.items() if i == start), None)
    extra = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or []
    extra = extra.values() if isinstance(extra, dict) else extra
    extra = [content_of(settings, "extra_special_tokens", token) for token in extra]
    return {
        **{field: name for field, name in names.items() if name in vocab},
        "extra_special_tokens": [token for token in extra if token in vocab],
        "tokenizer_class": settings.get("tokenizer_class", ""),
    }


def chat_template(file: bytes | None, config: bytes | None) -> str:
    """Returns the chat template of a tokenizer; empty if it has none.

    Args:
        file: content of its chat_template.jinja, which wins.
        config: content of its tokenizer_config.json, in which it is a text, or one of several with names.

    Raises:
        FlagError: it is no text.
    """
    if file is not None:
        return _text("chat_template.jinja", file)
    found = json.loads(config).get("chat_template") if config else None
    if isinstance(found, list):
        named = {each.get("name"): each.get("template") for each in found if isinstance(each, dict)}
        found = named.get("default")
    if found is not None and not isinstance(found, str):
        raise FlagError(
            f"tokenizer.path: chat_template is {str(found)[:80]!r} in tokenizer_config.json; it must be a text"
        )
    return found or ""


def read_template(path: pathlib.Path) -> str:
    """Returns the chat template in a file; raises FlagError if it cannot be read."""
    return _text(str(path), read_bounded(path))


def _text(name: str, content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise FlagError(f"{name}: a chat template that is not UTF-8 ({error.reason}); copy it again") from error
