"""Builds a `tokenizer.json` for a checkpoint that has only older files, as transformers 5 does from the same files."""

import io
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from lmjax.data.sentencepiece_model import SPACE, parsed
from lmjax.data.special_tokens import content_of, parse_object, read_bounded
from lmjax.data.vocabulary import ROLES
from lmjax.errors import FlagError

MODEL_FILES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")

_QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def build(folder: pathlib.Path, model: pathlib.Path | None, settings: Mapping[str, Any]) -> bytes:
    """Returns the content of the `tokenizer.json` that transformers makes from a folder's older files.

    Args:
        folder: has `vocab.json` and `merges.txt`, or `vocab.txt`, or the SentencePiece `model`.
        model: the SentencePiece model, if there is one.
        settings: the result of `settings_of`.

    Raises:
        FlagError: there are no such files, or no tokenizer can be built from them.
    """
    kind, files = settings.get("tokenizer_class", ""), [folder / name for name in ("vocab.json", "merges.txt")]
    if model:
        make = _FROM_SENTENCEPIECE.get(kind)
        if make is None:
            raise FlagError(
                f"tokenizer.path: {str(folder)!r} has {model.name} and no tokenizer.json, and the ids of a "
                f"{kind or 'tokenizer of no known class'} are not those of its SentencePiece model; save a "
                "tokenizer.json there: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
            )
        return _guarded(model, settings, lambda content: _from_pieces(parsed(content), settings, make))
    if not settings:
        raise FlagError(
            f"tokenizer.path: {str(folder)!r} has neither a tokenizer.json nor a {', '.join(MODEL_FILES)}, and no "
            "config.json or tokenizer_config.json that says what else to read; name a checkpoint's folder"
        )
    if all(file.exists() for file in files):
        vocab = parse_object(files[0], read_bounded(files[0]))
        return _guarded(files[1], settings, lambda content: _byte_pairs(vocab, content, settings))
    if (folder / "vocab.txt").exists():
        return _guarded(folder / "vocab.txt", settings, lambda content: _word_pieces(content, settings))
    raise FlagError(
        f"tokenizer.path: {str(folder)!r} has no tokenizer: none of tokenizer.json, {', '.join(MODEL_FILES)}, "
        "vocab.json with merges.txt, vocab.txt"
    )


def _guarded(path: pathlib.Path, settings: Mapping[str, Any], make: Callable[[bytes], Tokenizer]) -> bytes:
    """Returns the JSON of the tokenizer that `make` builds from a file; an error of the library becomes a FlagError."""
    content = read_bounded(path)
    try:
        return _finished(make(content), settings)
    except FlagError:
        raise
    except Exception as error:  # the library raises no narrower class
        raise FlagError(
            f"tokenizer.path: no tokenizer can be built from {str(path)!r} and the files next to it "
            f"({repr(error)[:200]}); copy them again"
        ) from error


def _finished(tokenizer: Tokenizer, settings: Mapping[str, Any]) -> bytes:
    """Returns the JSON of a tokenizer after adding the checkpoint's tokens and the template of special tokens."""
    size = tokenizer.get_vocab_size()
    for i, token in sorted((int(i), t) for i, t in settings["added_tokens_decoder"].items()):
        flags = {k: v for k, v in token.items() if k != "__type"} if isinstance(token, dict) else {"content": token}
        added = AddedToken(**flags)
        (tokenizer.add_special_tokens if added.special else tokenizer.add_tokens)([added])
        if tokenizer.token_to_id(added.content) != i:
            raise FlagError(
                f"tokenizer.path: {settings['folder']!r} gives {added.content!r} the id {i}, and the vocabulary has "
                f"{size} tokens; the files do not belong together"
            )
    names = (content_of(settings, f, settings.get(f)) for f in (f"{role}_token" for role in ROLES))
    tokenizer.add_special_tokens(sorted({n for n in names if n and tokenizer.token_to_id(n) is not None}))
    before, after = _AROUND.get(settings["tokenizer_class"], ((), ()))
    before, after = ([content_of(settings, r, settings[f"{r}_token"]) for r in roles] for roles in (before, after))
    if all(token and tokenizer.token_to_id(token) is not None for token in (*before, *after)):
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[*before, "$A", *after],
            pair=[*before, "$A", *after, "$B:1", *(f"{token}:1" for token in after)],
            special_tokens=[(token, tokenizer.token_to_id(token)) for token in {*before, *after}],
        )
    return tokenizer.to_str().encode()


# The special tokens that each class adds before and after a text.
_AROUND = {
    "BertTokenizer": (("cls",), ("sep",)),
    "DistilBertTokenizer": (("cls",), ("sep",)),
    "ElectraTokenizer": (("cls",), ("sep",)),
    "AlbertTokenizer": (("cls",), ("sep",)),
    "RobertaTokenizer": (("cls",), ("sep",)),
    "BartTokenizer": (("cls",), ("sep",)),
    "T5Tokenizer": ((), ("eos",)),
    "LlamaTokenizer": (("bos",), ()),
}


def _byte_pairs(vocab: Mapping[str, int], merges: bytes, settings: Mapping[str, Any]) -> Tokenizer:
    """Returns byte-level BPE, in the form of GPT-2 and RoBERTa or in that of Qwen."""
    lines = [line.rstrip("\r") for line in merges.decode().split("\n")]
    pairs = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    tokenizer = Tokenizer(models.BPE(vocab, pairs, continuing_subword_prefix="", end_of_word_suffix=""))
    prefix = bool(settings.get("add_prefix_space"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    if settings.get("tokenizer_class") == "Qwen2Tokenizer":
        tokenizer.normalizer = normalizers.NFC()
        split = pre_tokenizers.Split(Regex(_QWEN_SPLIT), behavior="isolated")
        whole = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, whole])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _word_pieces(content: bytes, settings: Mapping[str, Any]) -> Tokenizer:
    """Returns WordPiece with BERT's normaliser (Devlin et al. 2018, arXiv:1810.04805, section 3)."""
    vocab = {line.rstrip("\n"): i for i, line in enumerate(io.StringIO(content.decode(), newline=None))}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token=content_of(settings, "unk_token", settings["unk_token"])))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
        strip_accents=settings.get("strip_accents"),
        lowercase=settings.get("do_lower_case", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    return tokenizer


def byte_pair_merges(model: Any) -> list[tuple[str, str]]:
    """Returns the merges of a SentencePiece BPE model, best first: all pairs of learned tokens that form a third."""
    normal = model.SentencePiece.NORMAL
    rank = {p.piece: (-p.score, i) for i, p in enumerate(model.pieces) if p.type == normal}
    pairs = [(rank[p], n, (p[:n], p[n:])) for p in rank for n in range(1, len(p)) if p[:n] in rank and p[n:] in rank]
    return [pair for _, _, pair in sorted(pairs)]


def _from_pieces(model: Any, settings: Mapping[str, Any], make: Callable[..., Tokenizer]) -> Tokenizer:
    """Returns the tokenizer that `make` builds; it matches the model's control and user-defined tokens first."""
    tokenizer = make(model, settings)
    kind = model.SentencePiece
    tokenizer.add_special_tokens([p.piece for p in model.pieces if p.type == kind.CONTROL])
    user_defined = [p.piece for p in model.pieces if p.type == kind.USER_DEFINED]
    tokenizer.add_tokens([AddedToken(piece, normalized=False) for piece in user_defined])
    return tokenizer


def _metaspace(tokenizer: Tokenizer, charsmap: bytes, before: Sequence[Any] = ()) -> Tokenizer:
    """Returns the tokenizer after setting it to words with U+2581 before each; `before` are the first normalisers."""
    own = [normalizers.Precompiled(charsmap)] if charsmap else []
    if before or own:
        tokenizer.normalizer = normalizers.Sequence([*before, *own])
    spaces = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="always")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), spaces])
    tokenizer.decoder = decoders.Metaspace(replacement=SPACE, prepend_scheme="always")
    return tokenizer


def _t5(model: Any, settings: Mapping[str, Any]) -> Tokenizer:
    """Returns T5's tokenizer: the tokens of the model, then the sentinels in descending order."""
    pieces = [(p.piece, p.score) for p in model.pieces]
    pieces += [(f"<extra_id_{i}>", 0.0) for i in reversed(range(settings.get("extra_ids", 100)))]
    tokenizer = Tokenizer(models.Unigram(pieces, model.trainer_spec.unk_id, False))
    tokenizer.add_special_tokens([piece for piece, _ in pieces if piece.startswith("<extra_id_")])
    return _metaspace(tokenizer, model.normalizer_spec.precompiled_charsmap)


def _albert(model: Any, settings: Mapping[str, Any]) -> Tokenizer:
    before = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
    if not settings.get("keep_accents", False):
        before += [normalizers.NFKD(), normalizers.StripAccents()]
    if settings.get("do_lower_case", True):
        before.append(normalizers.Lowercase())
    pieces = [(p.piece, p.score) for p in model.pieces]
    tokenizer = Tokenizer(models.Unigram(pieces, model.trainer_spec.unk_id, False))
    return _metaspace(tokenizer, model.normalizer_spec.precompiled_charsmap, before)


def _llama(model: Any, settings: Mapping[str, Any]) -> Tokenizer:
    """Returns BPE with U+2581 for spaces and one before the text; with `legacy` also after each special token."""
    vocab = {p.piece: i for i, p in enumerate(model.pieces)}
    tokenizer = Tokenizer(models.BPE(vocab, byte_pair_merges(model), fuse_unk=True, byte_fallback=True))
    scheme = "never" if settings.get("add_prefix_space") is False else "always" if settings.get("legacy") else "first"
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme=scheme, split=False)
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(steps if scheme == "never" else [*steps, decoders.Strip(content=" ", left=1)])
    return tokenizer


_FROM_SENTENCEPIECE = {"T5Tokenizer": _t5, "AlbertTokenizer": _albert, "LlamaTokenizer": _llama}
