"""Tokenizers of checkpoints: the library's ids and no others, special tokens by name, and safe reading of bad files."""

import json
import pathlib
import pickle

import numpy as np
import pytest
import sentencepiece
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from lmjax.data.fast_tokenizer import FastTokenizer, load_tokenizer
from lmjax.data.tokenizer import Tokenizer as SentencePieceTokenizer
from lmjax.errors import FlagError
from tests.texts import SAMPLES, library_lines, sentencepiece_model, training_lines

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTES = pre_tokenizers.ByteLevel.alphabet()
BYTE_PIECES = [f"<0x{b:02X}>" for b in range(256)]
BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LOSSLESS = ("gpt2", "llama3", "metaspace_bytes")


def untrained(kind: str) -> tuple[Tokenizer, trainers.Trainer]:
    """Returns an untrained tokenizer of `kind` and its trainer."""
    if kind in ("gpt2", "llama3"):
        fast, decoder = Tokenizer(models.BPE()), decoders.ByteLevel()
        split = [pre_tokenizers.Split(Regex(LLAMA3), "isolated")] if kind == "llama3" else []
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind == "gpt2")
        fast.pre_tokenizer = pre_tokenizers.Sequence([*split, byte_level])
        end = "<|endoftext|>"
        trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=[end], initial_alphabet=BYTES, show_progress=False)
    elif kind == "wordpiece":
        fast, decoder = Tokenizer(models.WordPiece(unk_token="[UNK]")), decoders.WordPiece()
        fast.normalizer = normalizers.BertNormalizer()
        fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=600, special_tokens=BERT, show_progress=False)
    elif kind == "unigram":
        fast, decoder = Tokenizer(models.Unigram()), decoders.Metaspace()
        fast.normalizer = normalizers.NFKC()
        fast.pre_tokenizer = pre_tokenizers.Metaspace()
        special = ["<pad>", "</s>", "<unk>"]
        trainer = trainers.UnigramTrainer(
            vocab_size=400, special_tokens=special, unk_token="<unk>", show_progress=False
        )
    else:
        fast = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        fast.normalizer = normalizers.Replace(" ", "\u2581")
        decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
        special = ["<unk>", "<s>", "</s>"]
        trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=[*special, *BYTE_PIECES], show_progress=False)
    fast.decoder = decoder
    return fast, trainer


def trained(kind: str) -> Tokenizer:
    fast, trainer = untrained(kind)
    lines = training_lines()
    if kind != "metaspace_bytes":
        fast.train_from_iterator(lines, trainer)
        return fast
    # As in SentencePiece, no token is longer than a word, but encoding does not split a text into words.
    fast.pre_tokenizer = pre_tokenizers.Split("\u2581", "merged_with_next")
    fast.train_from_iterator(lines, trainer)
    content = json.loads(fast.to_str())
    # The trainer makes its first tokens special ones, but byte tokens are text.
    content["pre_tokenizer"] = None
    content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] not in BYTE_PIECES]
    return Tokenizer.from_str(json.dumps(content))


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, pathlib.Path]:
    """Returns kind -> a folder that has only its tokenizer.json."""
    found = {}
    for kind in ("gpt2", "llama3", "wordpiece", "unigram", "metaspace_bytes"):
        found[kind] = tmp_path_factory.mktemp(kind)
        trained(kind).save(str(found[kind] / "tokenizer.json"))
    return found


@pytest.fixture(scope="module")
def t5() -> bytes:
    return sentencepiece_model(
        model_type="unigram", vocab_size=400, hard_vocab_limit=False, pad_id=0, eos_id=1, unk_id=2, bos_id=-1
    )


def copied(source: pathlib.Path, target: pathlib.Path, **files: object) -> pathlib.Path:
    """Returns a copy of a folder with more JSON files."""
    target.mkdir(exist_ok=True)
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    for name, content in files.items():
        (target / f"{name}.json").write_text(json.dumps(content))
    return target


@pytest.mark.parametrize("kind", ["gpt2", "llama3", "wordpiece", "unigram", "metaspace_bytes"])
def test_the_ids_are_those_of_the_library(folders, kind):
    theirs = Tokenizer.from_file(str(folders[kind] / "tokenizer.json"))
    ours = load_tokenizer(str(folders[kind]))
    texts = [*SAMPLES, *library_lines(300), "\n".join(library_lines(300))]
    expected = [theirs.encode(text, add_special_tokens=False).ids for text in texts]
    assert [ours.encode(text) for text in texts] == expected
    assert ours.encode_batch(texts, threads=2) == expected
    assert ours.vocab_size == theirs.get_vocab_size(), "an id for which the model has no embedding"


@pytest.mark.parametrize("kind", LOSSLESS)
def test_a_lossless_pipeline_gives_the_text_back_and_its_byte_counts_add_up(folders, kind):
    tokenizer = load_tokenizer(str(folders[kind]))
    for text in [*SAMPLES, *library_lines(200)]:
        ids = tokenizer.encode(text)
        if tokenizer.special_ids & set(ids) or "\u2581" in text:
            continue
        assert tokenizer.decode(ids) == text
        assert tokenizer.token_bytes[ids].sum() == len(text.encode()), "bits per byte would be wrong"


def test_word_pieces_count_their_characters_and_the_space_before_a_word(folders):
    tokenizer = load_tokenizer(str(folders["wordpiece"]))
    for text, size in (("import argparse", 16), ("def area(x)", 13), ("快速", 6)):
        assert tokenizer.token_bytes[tokenizer.encode(text)].sum() == size


def test_a_word_piece_inside_a_word_begins_none_whatever_its_character(tmp_path):
    fast = Tokenizer(models.WordPiece({"[UNK]": 0, "の": 1, "##の": 2}, unk_token="[UNK]"))
    fast.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(str(tmp_path)).word_start.tolist() == [True, True, False]


@pytest.mark.parametrize("kind", ["gpt2", "llama3", "wordpiece", "unigram", "metaspace_bytes"])
def test_words_begin_where_they_do_in_every_pipeline(folders, kind):
    tokenizer = load_tokenizer(str(folders[kind]))
    ids = tokenizer.encode(" the argparse module, deprecated")
    starts = np.flatnonzero(tokenizer.word_start[ids]).tolist()
    words = [tokenizer.decode(ids[a:b]).strip() for a, b in zip(starts, [*starts[1:], len(ids)], strict=True)]
    # In a unigram model a space, or a comma with a space, can be a separate token.
    assert "".join(words) == "theargparsemodule,deprecated"
    assert {"argparse", "module", "deprecated"} <= set(words)
    assert tokenizer.word_start[sorted(tokenizer.special_ids)].all()


def test_a_special_token_that_is_spelled_is_read_as_one_and_stands_for_nothing(folders):
    tokenizer = load_tokenizer(str(folders["wordpiece"]))
    ids = tokenizer.encode("a [MASK] b")
    assert tokenizer.mask_id in ids
    assert tokenizer.special_ids == set(range(5))
    assert not tokenizer.is_text[:5].any()
    assert not tokenizer.token_bytes[:5].any()
    assert 4 not in tokenizer.text_ids
    assert tokenizer.decode(ids) == tokenizer.decode(tokenizer.encode("a b"))


def test_which_token_is_which_comes_from_the_files(folders, tmp_path):
    def load(**files):
        return load_tokenizer(str(copied(folders["metaspace_bytes"], tmp_path / "copy", **files)))

    llama = load(config={"model_type": "llama"})
    assert (llama.unk_id, llama.bos_id, llama.eos_id) == (0, 1, 2)
    swapped = load(tokenizer_config={"bos_token": {"content": "</s>"}, "eos_token": "<s>", "tokenizer_class": "X"})
    assert (swapped.bos_id, swapped.eos_id) == (2, 1)
    mapped = load(special_tokens_map={"bos_token": "</s>", "cls_token": "<s>", "pad_token": "not there"})
    assert (mapped.bos_id, mapped.cls_id, mapped.pad_id) == (2, 1, 1)
    newer = load(tokenizer_config={"bos_token": "<s>", "eos_token": None, "added_tokens_decoder": {}})
    assert (newer.bos_id, newer.pad_id) == (1, 0), "special_tokens_map.json must be read only with an old config"
    more = load(tokenizer_config={"extra_special_tokens": ["de"], "added_tokens_decoder": {}})
    special = more.encode("def")[0]
    assert not more.is_text[special], "a named special token must be matched in text, as in transformers"
    assert special not in newer.encode("def")


def test_a_decoder_begins_with_what_config_json_says_where_no_begin_token_has_a_name(t5, tmp_path):
    (tmp_path / "spiece.model").write_bytes(t5)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5", "decoder_start_token_id": 0}))
    tokenizer = load_tokenizer(str(tmp_path))
    assert (tokenizer.bos_id, tokenizer.pad_id, tokenizer.eos_id, tokenizer.unk_id) == (0, 0, 1, 2)


def test_a_symbol_that_is_absent_is_an_error_when_it_is_asked_for(folders):
    tokenizer = load_tokenizer(str(folders["gpt2"]))
    with pytest.raises(FlagError, match=r"tokenizer\.path: .* no mask \(\[MASK\]\) token, and the objective"):
        _ = tokenizer.mask_id
    with pytest.raises(FlagError, match=r"tokenizer\.path: .* no sentinels"):
        _ = tokenizer.sentinel_ids
    assert not tokenizer.sentinels
    assert tokenizer.pad_id == tokenizer.eos_id == tokenizer.bos_id


def test_the_sentinels_of_t5_are_in_their_order_and_not_in_that_of_their_ids(t5, tmp_path):
    (tmp_path / "spiece.model").write_bytes(t5)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5"}))
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer.sentinel_ids.tolist() == list(range(tokenizer.vocab_size - 1, tokenizer.vocab_size - 101, -1))
    assert tokenizer.encode("a<extra_id_0>")[-1] == tokenizer.sentinel_ids[0]


@pytest.mark.parametrize("kind", ["gpt2", "wordpiece"])
def test_a_saved_and_a_pickled_tokenizer_are_the_same_bit_for_bit(folders, tmp_path, kind):
    settings = {"tokenizer_class": "X", "bos_token": "a", "extra_special_tokens": ["b"]}
    source = copied(folders[kind], tmp_path / "source", tokenizer_config=settings, config={"model_type": "gpt2"})
    tokenizer = load_tokenizer(str(source))
    workdir = tmp_path / "workdir"
    workdir.mkdir()
    tokenizer.save_in(workdir)
    # The config.json of a workdir is not that of a checkpoint.
    (workdir / "config.json").write_text('{"model": {}, "tokenizer": {}}')
    paths = (workdir, workdir / "tokenizer.json")
    for copy in (*(load_tokenizer(str(path)) for path in paths), pickle.loads(pickle.dumps(tokenizer))):
        assert copy.fingerprint == tokenizer.fingerprint
        assert copy.encode_batch(SAMPLES) == tokenizer.encode_batch(SAMPLES)
        assert copy.special_ids == tokenizer.special_ids
        assert copy.bos_id == tokenizer.bos_id
        assert copy.files == tokenizer.files
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (workdir / name).read_bytes() == (source / name).read_bytes()
    other = load_tokenizer(str(copied(folders[kind], tmp_path / "other", config={"model_type": "gpt2"})))
    assert other.fingerprint != tokenizer.fingerprint, "another token begins a text"


def test_only_a_bare_model_gets_the_symbols_that_it_lacks(tmp_path):
    model = sentencepiece_model(model_type="bpe", vocab_size=500, byte_fallback=True)
    (tmp_path / "tokenizer.model").write_bytes(model)
    size = sentencepiece.SentencePieceProcessor(model_proto=model).get_piece_size()
    for bare in (tmp_path, tmp_path / "tokenizer.model"):
        tokenizer = load_tokenizer(str(bare))
        assert isinstance(tokenizer, SentencePieceTokenizer)
        assert tokenizer.vocab_size > size
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    checkpoint = load_tokenizer(str(tmp_path))
    assert isinstance(checkpoint, FastTokenizer)
    assert checkpoint.vocab_size == size, "the checkpoint's model has no embedding for another id"


def test_older_files_make_the_tokenizer_that_tokenizer_json_holds(folders, tmp_path):
    fast = Tokenizer.from_file(str(folders["gpt2"] / "tokenizer.json"))
    for kind, names in (("gpt2", ("vocab.json", "merges.txt")), ("wordpiece", ("vocab.txt",))):
        fast, folder = Tokenizer.from_file(str(folders[kind] / "tokenizer.json")), tmp_path / kind
        folder.mkdir()
        fast.model.save(str(folder))
        assert {path.name for path in folder.iterdir()} == set(names)
        (folder / "config.json").write_text(json.dumps({"model_type": "bert" if kind == "wordpiece" else "gpt2"}))
        tokenizer = load_tokenizer(str(folder))
        assert tokenizer.encode_batch(SAMPLES) == load_tokenizer(str(folders[kind])).encode_batch(SAMPLES)
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert load_tokenizer(str(folder)).encode("A") != tokenizer.encode("A"), "a cased model would read lower case"


def damaged(content: bytes, how: str) -> bytes:
    """Returns a tokenizer.json that is incomplete or inconsistent."""
    data = json.loads(content)
    if how == "deep":
        return b'{"model":' * 100_000
    if how == "list":
        return b"[1, 2]"
    if how == "binary":
        return b"\xff\xfe" + content
    if how == "types":
        data["model"]["vocab"] = "many"
    if how == "moved":
        data["added_tokens"][0]["id"] += 1
    if how == "shared":
        first, second = list(data["model"]["vocab"])[300:302]
        data["model"]["vocab"][first] = data["model"]["vocab"][second]
    if how == "claims":
        data["model"]["vocab"]["far"] = 4_000_000_000
    if how == "charsmap":
        data["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": "////fwAA"}
    return json.dumps(data).encode()


@pytest.mark.parametrize("how", ["deep", "list", "binary", "types", "moved", "shared", "claims", "charsmap"])
def test_a_hostile_tokenizer_json_is_refused_by_name(folders, tmp_path, how):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(damaged((folders["gpt2"] / "tokenizer.json").read_bytes(), how))
    with pytest.raises(FlagError, match=r"tokenizer\.path: .*tokenizer\.json.*again"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_tokenizer_json_is_refused(folders, tmp_path, share):
    content = (folders["gpt2"] / "tokenizer.json").read_bytes()
    (tmp_path / "tokenizer.json").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(FlagError, match=r"tokenizer\.json.*not whole JSON"):
        load_tokenizer(str(tmp_path))


def test_a_huge_file_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "tokenizer.json"
    with path.open("wb") as file:
        file.truncate(2_000_000_000)
    with pytest.raises(FlagError, match="2,000,000,000 bytes"):
        load_tokenizer(str(path))


def test_padding_and_truncation_that_a_file_asks_for_change_no_ids(folders, tmp_path):
    data = json.loads((folders["gpt2"] / "tokenizer.json").read_bytes())
    padding = {"direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": "x"}
    data["padding"] = {"strategy": {"Fixed": 1000}, **padding}
    data["truncation"] = {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0}
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    assert load_tokenizer(str(tmp_path)).encode("import sys") == load_tokenizer(str(folders["gpt2"])).encode(
        "import sys"
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bos_token": 3}, "bos_token is 3"),
        ({"added_tokens_decoder": [1]}, r"added_tokens_decoder is '\[1\]'.* must be dict"),
        ({"extra_special_tokens": "abc"}, "extra_special_tokens is 'abc'.* must be list or dict"),
        ({"tokenizer_class": ["a"]}, "tokenizer_class is"),
    ],
)
def test_settings_of_a_wrong_type_name_the_field(folders, tmp_path, settings, message):
    folder = copied(folders["gpt2"], tmp_path, tokenizer_config=settings)
    with pytest.raises(FlagError, match=message):
        load_tokenizer(str(folder))


@pytest.mark.parametrize("threads", [1, 2])
def test_a_text_that_the_library_fails_on_is_one_error(folders, tmp_path, threads):
    """A regular expression that needs exponentially many steps ends by the library's limit, in a panic."""
    data = json.loads((folders["gpt2"] / "tokenizer.json").read_bytes())
    data["pre_tokenizer"] = {"type": "Split", "pattern": {"Regex": "(a+)+c"}, "behavior": "Isolated", "invert": False}
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    tokenizer = load_tokenizer(str(tmp_path / "tokenizer.json"))
    with pytest.raises(FlagError, match=r"cannot encode or decode a text \(.*limit.*\); choose another"):
        tokenizer.encode_batch(["a" * 30 + "b"], threads)


@pytest.mark.parametrize("added", ['{"new": {}}', '{"new": 7, "other": 7}'])
def test_added_tokens_without_an_id_of_their_own_are_refused(tmp_path, added):
    (tmp_path / "vocab.txt").write_text("\n".join([*BERT, "a", "b"]))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "added_tokens.json").write_text(added)
    with pytest.raises(FlagError, match=r"added_tokens\.json' gives '.*' the id .* copy it again"):
        load_tokenizer(str(tmp_path))


def test_added_tokens_that_do_not_fit_the_vocabulary_are_refused(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join([*BERT, "a", "b"]))
    settings = {"tokenizer_class": "BertTokenizer", "added_tokens_decoder": {"9": {"content": "new", "special": True}}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(FlagError, match=r"gives 'new' the id 9.* 7 tokens"):
        load_tokenizer(str(tmp_path))
    settings["added_tokens_decoder"] = {"7": {"content": "new", "special": True}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert load_tokenizer(str(tmp_path)).encode("a new b") == [5, 7, 6]


def test_families_whose_ids_are_shifted_are_refused_with_the_remedy(t5, tmp_path):
    (tmp_path / "sentencepiece.bpe.model").write_bytes(t5)
    (tmp_path / "config.json").write_text('{"model_type": "xlm-roberta"}')
    with pytest.raises(FlagError, match=r"XLMRobertaTokenizer are not those .* save a tokenizer\.json"):
        load_tokenizer(str(tmp_path))


def test_a_folder_without_a_tokenizer_says_what_was_looked_for(tmp_path):
    with pytest.raises(FlagError, match=r"has neither a tokenizer\.json nor a tokenizer\.model, spiece\.model"):
        load_tokenizer(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(FlagError, match=r"vocab\.json with merges\.txt, vocab\.txt"):
        load_tokenizer(str(tmp_path))
    with pytest.raises(FlagError, match=r"cannot read .*none\.json.*No such file"):
        load_tokenizer(str(tmp_path / "none.json"))


@pytest.mark.parametrize("content", [b"", b"\x00\xff", b"[]", b'{"a": -1}'])
def test_damaged_older_files_are_refused(tmp_path, content):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    (tmp_path / "vocab.json").write_bytes(content)
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    with pytest.raises(FlagError, match=r"tokenizer\.path: .*(vocab\.json|merges\.txt).*again"):
        load_tokenizer(str(tmp_path))
    (tmp_path / "vocab.json").unlink()
    (tmp_path / "spiece.model").write_bytes(content)
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    with pytest.raises(FlagError, match=r"tokenizer\.path: .*spiece\.model.*again"):
        load_tokenizer(str(tmp_path))


def test_added_special_tokens_get_the_next_ids_and_change_no_other(folders, tmp_path):
    old = load_tokenizer(str(folders["gpt2"]))
    new = old.with_special(("cls", "sep", "mask", "eos"))
    assert (new.cls_id, new.sep_id, new.mask_id) == tuple(range(old.vocab_size, old.vocab_size + 3))
    assert new.eos_id == old.eos_id, "a token that is there stays"
    assert not new.is_text[old.vocab_size :].any()
    plain = [text for text in SAMPLES if "[" not in text]
    assert new.encode_batch(plain) == old.encode_batch(plain)
    assert new.encode("a[MASK]b")[1] == new.mask_id
    new.save_in(tmp_path)
    again = load_tokenizer(str(tmp_path))
    assert (again.mask_id, again.fingerprint) == (new.mask_id, new.fingerprint)
    assert old.with_special(("eos",)) is old
    with pytest.raises(FlagError, match=r"or add it: --config\.tokenizer\.added=mask"):
        _ = old.mask_id
