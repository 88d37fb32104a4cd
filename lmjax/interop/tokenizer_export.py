"""A tokenizer of ours as the files that `AutoTokenizer.from_pretrained` of transformers reads."""

import json
import pathlib
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from lmjax.data.fast_tokenizer import TOKENIZER, FastTokenizer
from lmjax.data.special_tokens import CLASS_OF_MODEL
from lmjax.data.tokenizer import Tokenizer, parsed, splits_lines
from lmjax.data.tokenizer_files import byte_pair_merges
from lmjax.data.vocabulary import ROLES, write_whole
from lmjax.errors import FlagError
from lmjax.inference.generate.fill_mask import spaced
from lmjax.interop.families import FAMILIES
from lmjax.interop.immaterial import CODE_FIELDS

CONFIG = "tokenizer_config.json"

_SPACE = "\u2581"
_UNIGRAM, _BPE, _CHAR = 1, 2, 4  # model types of SentencePiece


def export_tokenizer(
    tokenizer: Tokenizer | FastTokenizer, folder: pathlib.Path, model_type: str, max_length: int
) -> None:
    """Writes `tokenizer.json`, `tokenizer_config.json` and what came with a loaded tokenizer into `folder`.

    A loaded fast tokenizer is written as it came, byte for byte. A SentencePiece model becomes a `tokenizer.json` with
    the same ids. A text that spells one of its special tokens, such as "[MASK]", is read as that token, as with every
    published tokenizer and as pipelines need; lmjax's own reads it as text, and so does AutoTokenizer where it is
    called with `split_special_tokens=True`.

    Of a tokenizer that lmjax trained, all ids are the same (a unigram model's in lines of up to 32,768 nats). A loaded
    `.model` differs in two things that the tokenizers library does otherwise: a unigram model's equally good ways to
    cut a text (float32 sums here, float64 there: 2 lines in 1,000 of source code, by spaces in another order), and
    characters that a normaliser maps together with the marks that follow them.

    Args:
      tokenizer: of a run.
      folder: exists; files of these names in it are replaced.
      model_type: of config.json; it decides which special tokens stand around a text.
      max_length: the most tokens that the model takes.

    Raises:
      FlagError: transformers would not give this tokenizer's ids for this type of model.
    """
    if isinstance(tokenizer, FastTokenizer):
        files = _loaded(tokenizer, model_type, max_length)
    else:
        if FAMILIES[model_type].tokenizer.own_pipeline:
            raise FlagError(
                f"--to: AutoTokenizer reads the tokenizer of a {model_type} as byte-level BPE whatever its files say, "
                "so it would not give the ids of this SentencePiece model; give the model a form that exports as "
                "another type (no bias in q, k and v: llama or qwen3)"
            )
        files = {
            TOKENIZER: sentencepiece_json(tokenizer, model_type),
            CONFIG: _encoded(_config(tokenizer, model_type, max_length)),
        }
    for name, content in files.items():
        write_whole(folder / name, content)


def _encoded(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _loaded(tokenizer: FastTokenizer, model_type: str, max_length: int) -> dict[str, bytes]:
    """The files of a loaded tokenizer; its class is filled in where the type of the model would say another one."""
    files = tokenizer.files
    config = json.loads(files.get(CONFIG, b"{}"))
    if config.keys() & CODE_FIELDS:
        config = {field: value for field, value in config.items() if field not in CODE_FIELDS}
        files = {**files, CONFIG: _encoded(config)}
    kind = tokenizer.names.get("tokenizer_class")
    if config.get("tokenizer_class") or (config and kind == CLASS_OF_MODEL.get(model_type)):
        return files
    names = {field: name for field, name in tokenizer.names.items() if field.endswith("_token")}
    config = {**names, "model_max_length": max_length, **config, "tokenizer_class": kind or "PreTrainedTokenizerFast"}
    return {**files, CONFIG: _encoded(config)}


def _config(tokenizer: Tokenizer, model_type: str, max_length: int) -> dict[str, Any]:
    pieces = parsed(tokenizer.proto).pieces
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return {
        # The class that takes tokenizer.json for what it is; every other rebuilds it as its own kind.
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{f"{role}_token": pieces[getattr(tokenizer, f"{role}_id")].piece for role in ROLES},
        "additional_special_tokens": [pieces[i].piece for i in tokenizer.sentinel_ids.tolist()],
        "model_max_length": max_length,
        "model_input_names": inputs if FAMILIES[model_type].tokenizer.types else [inputs[0], inputs[2]],
        "padding_side": "right",
        "clean_up_tokenization_spaces": False,
    }


def sentencepiece_json(tokenizer: Tokenizer, model_type: str) -> bytes:
    """The `tokenizer.json` of a SentencePiece model, with the special tokens of `model_type` around a text."""
    model = parsed(tokenizer.proto)
    kind, spec = model.SentencePiece, model.trainer_spec
    if spec.model_type not in (_UNIGRAM, _BPE, _CHAR) or spec.treat_whitespace_as_suffix:
        raise FlagError(
            "--to: this SentencePiece model is one of whole words, or has spaces behind its words; tokenizer.json has "
            "no such kind: train a tokenizer of kind bpe, unigram or char"
        )
    fast = tokenizers.Tokenizer(_unigram(model) if spec.model_type == _UNIGRAM else _byte_pairs(model))
    if spec.model_type == _UNIGRAM and (apart := _unknown_apart(model)):
        fast.pre_tokenizer = apart
    steps = _normalizers(model)
    fast.normalizer = normalizers.Sequence(steps) if steps else None
    fast.add_special_tokens(
        [
            # What is masked has its space in front of it, where tokens do: the mask takes it in.
            AddedToken(p.piece, special=True, normalized=False, lstrip=i == tokenizer.mask_id and spaced(tokenizer))
            for i, p in enumerate(model.pieces)
            if p.type in _special(kind)
        ]
    )
    if spec.model_type != _UNIGRAM or splits_lines(model):
        user_defined = [p.piece for p in model.pieces if p.type == kind.USER_DEFINED]
        fast.add_tokens([AddedToken(piece, special=False, normalized=False) for piece in user_defined])
    end = [decoders.Strip(content=" ", left=1, right=0)] if model.normalizer_spec.add_dummy_prefix else []
    fast.decoder = decoders.Sequence([decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *end])
    form = FAMILIES[model_type].tokenizer
    before, after = form.before, form.after
    ids = {model.pieces[i].piece: i for i in (getattr(tokenizer, f"{role}_id") for role in (*before, *after))}
    before, after = ([model.pieces[getattr(tokenizer, f"{role}_id")].piece for role in r] for r in (before, after))
    fast.post_processor = processors.TemplateProcessing(
        single=[*before, "$A", *after],
        pair=[*before, "$A", *after, "$B:1", *(f"{token}:1" for token in after)],
        special_tokens=list(ids.items()),
    )
    return fast.to_str().encode()


def _special(kind: Any) -> tuple[int, ...]:
    return (kind.CONTROL, kind.UNKNOWN, kind.UNUSED)


def _unigram(model: Any) -> models.Unigram:
    """The lattice's pieces with their scores (Kudo 2018, arXiv:1804.10959).

    The library looks for every piece in a text, special ones and byte pieces too: those get a score that is worse than
    that of their characters one by one. A user-defined one gets the score that SentencePiece's lattice gives it.
    """
    kind = model.SentencePiece
    scores = [p.score for p in model.pieces if p.type == kind.NORMAL]
    worst, best = min(scores), max(scores)

    def score(piece: Any) -> float:
        if piece.type == kind.USER_DEFINED:
            return len(piece.piece.encode()) * best - 0.1
        return piece.score if piece.type == kind.NORMAL else (len(piece.piece) + 1) * (worst - 1.0)

    spec = model.trainer_spec
    return models.Unigram([(p.piece, score(p)) for p in model.pieces], spec.unk_id, spec.byte_fallback)


def _unknown_apart(model: Any) -> pre_tokenizers.PreTokenizer | None:
    """Cuts a text around characters that no piece holds, where a special piece or a byte piece has one of them.

    Such a character is unknown whatever stands around it, so the cut changes nothing else. Without it the library, to
    which it is worse than all pieces, would rather take the whole special piece.
    """
    kind = model.SentencePiece
    known = (kind.NORMAL, kind.USER_DEFINED)
    held = {c for p in model.pieces if p.type in known for c in p.piece}
    if all(held.issuperset(p.piece) for p in model.pieces if p.type not in known):
        return None
    others = "".join(rf"\x{{{ord(c):X}}}" for c in sorted(held))
    return pre_tokenizers.Split(Regex(f"[^{others}]+"), behavior="isolated")


def _byte_pairs(model: Any) -> models.BPE:
    """The merges of a BPE model; a character model has none."""
    spec = model.trainer_spec
    return models.BPE(
        {p.piece: i for i, p in enumerate(model.pieces)},
        byte_pair_merges(model) if spec.model_type == _BPE else [],
        unk_token=model.pieces[spec.unk_id].piece,
        fuse_unk=True,
        byte_fallback=spec.byte_fallback,
    )


def _normalizers(model: Any) -> list[Any]:
    spec = model.normalizer_spec
    steps = [normalizers.Precompiled(spec.precompiled_charsmap)] if spec.precompiled_charsmap else []
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(_SPACE))
    if spec.escape_whitespaces:
        steps.append(normalizers.Replace(" ", _SPACE))
    return steps
