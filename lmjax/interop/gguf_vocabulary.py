"""The tokenizer of a GGUF file: tokens with types and scores or merges, and the special ids."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from lmjax.data.fast_tokenizer import TOKENIZER, FastTokenizer
from lmjax.data.sentencepiece_model import parsed
from lmjax.data.tokenizer import Tokenizer
from lmjax.data.vocabulary import Vocabulary
from lmjax.errors import FlagError
from lmjax.objectives.prompts import PromptFormat

_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = range(1, 7)
_SPACE = "\u2581"
# A part of the regular expression that cuts a text into words -> llama.cpp's name of the whole expression.
_SPLITS = {
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+": "llama-bpe",
    r"\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+": "qwen2",
}


class _Tokens(NamedTuple):
    """The tokens of a tokenizer.

    Attributes:
        model: llama.cpp's name of the algorithm: gpt2 (byte-level BPE), llama (SentencePiece BPE), t5 (unigram) or
            bert (WordPiece).
        texts: of the tokens.
        kinds: normal, unknown, control, user-defined, unused or byte.
        scores: of the tokens; None: the algorithm has none.
        merges: of byte-level BPE.
        pre: llama.cpp's name of the rule that cuts a text into words.
        space_before: whether a space is put before a text.
        charsmap: SentencePiece's compiled normalisation.
        squeezes: whether several spaces become one.
    """

    model: str
    texts: list[str]
    kinds: list[int]
    scores: list[float] | None = None
    merges: list[str] | None = None
    pre: str = "default"
    space_before: bool = False
    charsmap: bytes = b""
    squeezes: bool = False


def write_vocabulary(writer: Any, tokenizer: Vocabulary, prompts: PromptFormat, rows: int, *, causal: bool) -> None:
    """Writes the tokenizer of a model into a GGUF file.

    Args:
        writer: a `gguf.GGUFWriter`.
        tokenizer: of the model.
        prompts: the special tokens around a text.
        rows: of the token table; rows without a token get an unused one.
        causal: whether the model writes text.

    Raises:
        FlagError: llama.cpp does not have this kind of tokenizer.
    """
    found = check_vocabulary(tokenizer)
    surplus = range(len(found.texts), rows)
    writer.add_tokenizer_model(found.model)
    writer.add_tokenizer_pre(found.pre)
    writer.add_token_list([*found.texts, *(f"[PAD{i}]" for i in surplus)][:rows])
    writer.add_token_types([*found.kinds, *(_UNUSED for _ in surplus)][:rows])
    if found.scores is not None:
        writer.add_token_scores([*found.scores, *(-1e4 for _ in surplus)][:rows])
    if found.merges is not None:
        writer.add_token_merges(found.merges)
    if found.model in ("llama", "t5"):
        writer.add_add_space_prefix(found.space_before)
        writer.add_remove_extra_whitespaces(found.squeezes)
    if found.charsmap and found.model == "t5":
        writer.add_precompiled_charsmap(found.charsmap)
    roles = tokenizer.role_ids
    adders = {
        "bos": writer.add_bos_token_id,
        "eos": writer.add_eos_token_id,
        "unk": writer.add_unk_token_id,
        "pad": writer.add_pad_token_id,
        "sep": writer.add_sep_token_id,
        "mask": writer.add_mask_token_id,
    }
    # An encoder's first token, [CLS], is its beginning of a text in llama.cpp, and [SEP] its end.
    first, last = ("bos", "eos") if causal or "cls" not in roles else ("cls", "sep")
    roles = roles | {"bos": roles.get(first), "eos": roles.get(last)}
    for role, add in adders.items():
        if roles.get(role) is not None:
            add(roles[role])
    writer.add_add_bos_token(roles["bos"] is not None and prompts.before[:1] == (roles["bos"],))
    writer.add_add_eos_token(roles["eos"] is not None and prompts.after[-1:] == (roles["eos"],))
    if template := getattr(tokenizer, "chat_template", ""):
        writer.add_chat_template(template)


def check_vocabulary(tokenizer: Vocabulary) -> _Tokens:
    """Returns the tokens of a tokenizer; raises FlagError if llama.cpp does not have its algorithm."""
    return _of_sentencepiece(tokenizer) if isinstance(tokenizer, Tokenizer) else _of_json(tokenizer)


def _of_sentencepiece(tokenizer: Tokenizer) -> _Tokens:
    """Returns the tokens of a SentencePiece model; the numbers of the kinds are SentencePiece's own."""
    model = parsed(tokenizer.proto)
    spec, normal = model.trainer_spec, model.normalizer_spec
    return _Tokens(
        "t5" if spec.model_type == spec.UNIGRAM else "llama",
        [p.piece for p in model.pieces],
        [p.type for p in model.pieces],
        [p.score for p in model.pieces],
        space_before=normal.add_dummy_prefix,
        charsmap=normal.precompiled_charsmap,
        squeezes=normal.remove_extra_whitespaces,
    )


def _of_json(tokenizer: FastTokenizer) -> _Tokens:
    """Returns the tokens of a `tokenizer.json`."""
    content = json.loads(tokenizer.files[TOKENIZER])
    model = content["model"]
    texts = [f"[PAD{i}]" for i in range(tokenizer.vocab_size)]
    kinds = [_UNUSED] * len(texts)
    ordinary = model["vocab"]
    if model.get("type") == "Unigram":
        ordinary = {text: i for i, (text, _) in enumerate(ordinary)}
    for text, i in ordinary.items():
        texts[i] = text
        byte = model.get("byte_fallback") and len(text) == 6 and text.startswith("<0x")
        kinds[i] = _BYTE if byte else _NORMAL
    for added in content.get("added_tokens") or ():
        texts[added["id"]] = added["content"]
        kinds[added["id"]] = _CONTROL if added["special"] else _USER
    for i in tokenizer.special_ids:
        kinds[i] = _CONTROL if kinds[i] == _NORMAL else kinds[i]
    if (unknown := tokenizer.role_ids.get("unk")) is not None and model.get("type") != "BPE":
        kinds[unknown] = _UNKNOWN
    if model.get("type") == "WordPiece":
        if not (content.get("normalizer") or {}).get("lowercase"):
            raise FlagError(
                "--format=gguf: llama.cpp has WordPiece in lower case alone, and this tokenizer keeps capitals; give"
                " --format=stablehlo"
            )
        return _Tokens("bert", [_word_piece(t, k) for t, k in zip(texts, kinds, strict=True)], kinds)
    if model.get("type") == "Unigram":
        known = dict(model["vocab"])
        return _Tokens("t5", texts, kinds, [known.get(t, -1e4) for t in texts], space_before=True, squeezes=True)
    if model.get("type") == "BPE":
        merges = [" ".join(m) if isinstance(m, list) else m for m in model["merges"]]
        if "ByteLevel" in json.dumps(content.get("pre_tokenizer")):
            return _Tokens("gpt2", texts, kinds, merges=merges, pre=_split(content["pre_tokenizer"]))
        # The rank of the merge that makes a token is its score: llama.cpp merges the pair with the best score first.
        rank = {merge.replace(" ", "", 1): -float(i) for i, merge in reversed(list(enumerate(merges)))}
        before = "prepend" in json.dumps(content.get("normalizer") or content.get("pre_tokenizer")).lower()
        return _Tokens("llama", texts, kinds, [rank.get(t, -1e6) for t in texts], space_before=before)
    raise FlagError(
        f"--format=gguf: llama.cpp has no tokenizer of the kind {model.get('type')!r}; give --format=stablehlo"
    )


def _split(pre_tokenizer: dict[str, Any]) -> str:
    """Returns llama.cpp's name of the rule by which byte-level BPE cuts a text into words."""
    steps = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    patterns = [step["pattern"].get("Regex", "") for step in steps if step["type"] == "Split"]
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"] and steps[0].get("use_regex", True):
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits"):
        return "smollm"
    if kinds == ["Split", "ByteLevel"]:
        for part, name in _SPLITS.items():
            if patterns[0].endswith(part):
                return name
    raise FlagError(
        f"--format=gguf: the tokenizer cuts texts into words by a rule that llama.cpp does not name"
        f" ({patterns or kinds}); give --format=stablehlo"
    )


def _word_piece(text: str, kind: int) -> str:
    """Returns a token of WordPiece as llama.cpp writes it: U+2581 begins a word, and what goes on has no ##."""
    if kind not in (_NORMAL, _USER):
        return text
    return text[2:] if text.startswith("##") else _SPACE + text
