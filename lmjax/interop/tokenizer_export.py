"""Exports a tokenizer as the files that `AutoTokenizer.from_pretrained` of transformers reads."""

import json
import pathlib
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from lmjax.data.fast_tokenizer import TOKENIZER, FastTokenizer
from lmjax.data.sentencepiece_model import parsed, splits_lines
from lmjax.data.special_tokens import CLASS_OF_MODEL
from lmjax.data.tokenizer import Tokenizer
from lmjax.data.tokenizer_files import byte_pair_merges
from lmjax.data.vocabulary import ROLES, TEMPLATE, write_whole
from lmjax.errors import FlagError
from lmjax.inference.generate.fill_mask import spaced
from lmjax.interop.families import FAMILIES
from lmjax.interop.immaterial import CODE_FIELDS
from lmjax.objectives.prompts import PromptFormat

CONFIG = "tokenizer_config.json"

_SPACE = "\u2581"
_UNIGRAM, _BPE, _CHAR = 1, 2, 4  # model types of SentencePiece


def export_tokenizer(
    tokenizer: Tokenizer | FastTokenizer,
    folder: pathlib.Path,
    model_type: str,
    max_length: int,
    form: PromptFormat | None = None,
) -> None:
    """Writes `tokenizer.json`, `tokenizer_config.json` and the other files of a loaded tokenizer into `folder`.

    The files of a loaded fast tokenizer are copied byte for byte; only tokenizer_config.json may change, as fields that
    name remote code are removed and a missing class is added. A SentencePiece model becomes a `tokenizer.json` with the
    same ids. Text that spells a special token, such as "[MASK]", is then encoded as that token, as in all published
    tokenizers and as pipelines need. lmjax's tokenizer encodes it as text, and so does AutoTokenizer when called with
    `split_special_tokens=True`.

    For a tokenizer that lmjax trained, all ids are equal (for a unigram model, in lines of up to 32,768 nats). For a
    loaded `.model`, the tokenizers library differs in two cases: equally good segmentations of a unigram model, because
    it sums in float64 and SentencePiece in float32 (2 of 1,000 lines of source code, with spaces in another order), and
    characters that a normaliser maps together with the combining marks after them.

    Args:
        tokenizer: of a run.
        folder: must exist; files of these names in it are replaced.
        model_type: of config.json; it decides which special tokens are put before and after a text.
        max_length: the most tokens that the model reads.
        form: the ids that a tokenizer of lmjax shall put before and after a text; None: those of `model_type`.

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
            TOKENIZER: sentencepiece_json(tokenizer, model_type, form),
            CONFIG: _encoded(_config(tokenizer, model_type, max_length)),
        } | ({TEMPLATE: tokenizer.chat_template.encode()} if tokenizer.chat_template else {})
    for name, content in files.items():
        write_whole(folder / name, content)


def _encoded(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _loaded(tokenizer: FastTokenizer, model_type: str, max_length: int) -> dict[str, bytes]:
    """Returns the files of a loaded tokenizer; its class is added if the model type would imply another one."""
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
        # This class uses tokenizer.json as it is; all others rebuild the tokenizer as their own kind.
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{f"{role}_token": pieces[getattr(tokenizer, f"{role}_id")].piece for role in ROLES},
        "additional_special_tokens": [pieces[i].piece for i in tokenizer.sentinel_ids.tolist()],
        "model_max_length": max_length,
        "model_input_names": inputs if FAMILIES[model_type].tokenizer.types else [inputs[0], inputs[2]],
        "padding_side": "right",
        "clean_up_tokenization_spaces": False,
    }


def sentencepiece_json(tokenizer: Tokenizer, model_type: str, form: PromptFormat | None = None) -> bytes:
    """Returns the `tokenizer.json` of a SentencePiece model, with the special tokens of `form`, or of `model_type`."""
    model = parsed(tokenizer.proto)
    kind, spec = model.SentencePiece, model.trainer_spec
    if spec.model_type not in (_UNIGRAM, _BPE, _CHAR) or spec.treat_whitespace_as_suffix:
        raise FlagError(
            "--to: this SentencePiece model has whole words as tokens, or spaces after its words, which tokenizer.json "
            "cannot express; train a tokenizer of kind bpe, unigram or char"
        )
    fast = tokenizers.Tokenizer(_unigram(model) if spec.model_type == _UNIGRAM else _byte_pairs(model))
    if spec.model_type == _UNIGRAM and (apart := _unknown_apart(model)):
        fast.pre_tokenizer = apart
    steps = _normalizers(model)
    fast.normalizer = normalizers.Sequence(steps) if steps else None
    fast.add_special_tokens(
        [
            # If the tokens of words include the space before them, the mask token does too (lstrip).
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
    usual = FAMILIES[model_type].tokenizer
    roles = ([getattr(tokenizer, f"{role}_id") for role in of] for of in (usual.before, usual.after))
    before, after = (form.before, form.after) if form else roles
    # What separates the texts of a pair in tasks on records (`PromptFormat.between`).
    parts = (before, after or (tokenizer.eos_id,), after)
    ids = {model.pieces[i].piece: i for part in parts for i in part}
    before, between, after = ([model.pieces[i].piece for i in part] for part in parts)
    fast.post_processor = processors.TemplateProcessing(
        single=[*before, "$A", *after],
        pair=[*before, "$A", *between, "$B:1", *(f"{token}:1" for token in after)],
        special_tokens=list(ids.items()),
    )
    return fast.to_str().encode()


def _special(kind: Any) -> tuple[int, ...]:
    return (kind.CONTROL, kind.UNKNOWN, kind.UNUSED)


def _unigram(model: Any) -> models.Unigram:
    """Returns the unigram model: the subwords with their scores (Kudo 2018, arXiv:1804.10959).

    The library matches every token of the vocabulary in a text, also special tokens and byte tokens. Those get a score
    worse than that of their single characters. A user-defined token gets the score that SentencePiece's lattice uses.
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
    """Returns a pre-tokenizer that isolates characters of no subword, if a special or byte token has such a character.

    Such a character is unknown in any context, so the split changes nothing else. Without it, the library would match
    the whole special token, because its score for unknown characters is even worse.
    """
    kind = model.SentencePiece
    known = (kind.NORMAL, kind.USER_DEFINED)
    held = {c for p in model.pieces if p.type in known for c in p.piece}
    if all(held.issuperset(p.piece) for p in model.pieces if p.type not in known):
        return None
    others = "".join(rf"\x{{{ord(c):X}}}" for c in sorted(held))
    return pre_tokenizers.Split(Regex(f"[^{others}]+"), behavior="isolated")


def _byte_pairs(model: Any) -> models.BPE:
    """Returns the BPE model with its merges; a character model has no merges."""
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
