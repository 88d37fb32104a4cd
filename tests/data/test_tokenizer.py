"""Tokenizers: no character is lost, no text is encoded as a special token, and byte counts are exact."""

import inspect
import io
import math
import pickle
import textwrap

import numpy as np
import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lmjax.data import sentencepiece_model as model_file
from lmjax.data import tokenizer as module
from lmjax.data.sentencepiece_model import NUM_SENTINELS
from lmjax.data.tokenizer import Tokenizer, TokenizerConfig, train_tokenizer
from lmjax.errors import DataError, FlagError
from tests.texts import sentencepiece_model

SAMPLES = [
    "",
    " ",
    "  two  spaces  ",
    "def f():\n\treturn 1\n\n        deep\r\nCRLF\r\n",
    "Grüße aus Köln 🙂🏳️‍🌈 e\u0301 \u00a0\u3000",
    "快速的棕色狐狸",
    "[MASK] <extra_id_0> </s> [PAD] <0x41> <unk>",
    "\x00\x01\ufffd\ufeff",
]
UNICODE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581"))


@pytest.mark.parametrize("kind", ["unigram", "bpe", "char"])
def test_trained_tokenizers_share_one_layout_of_special_symbols(text, kind):
    tokenizer = train_tokenizer([text] * 20, TokenizerConfig(kind=kind, vocab_size=430))
    ids = [tokenizer.pad_id, tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id]
    ids += [tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id, *tokenizer.sentinel_ids]
    assert ids == list(range(7 + NUM_SENTINELS)), "a special token has another id than in saved models"
    assert tokenizer.special_ids == set(ids)
    assert tokenizer.encode("\n") == [107]
    assert tokenizer.vocab_size == 430 or kind == "char"


@settings(max_examples=150, deadline=None)
@given(UNICODE)
def test_no_text_is_lost(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_code_scripts_and_white_space_survive(text, sample, kind):
    tokenizer = train_tokenizer([text] * 20, TokenizerConfig(kind=kind, vocab_size=430))
    assert tokenizer.decode(tokenizer.encode(sample)) == sample


def test_the_one_lossy_character_is_the_one_documented(tokenizer):
    assert tokenizer.decode(tokenizer.encode("a\u2581b")) == "a b"


@settings(max_examples=50, deadline=None)
@given(UNICODE)
@example("[MASK] [CLS] <s> <extra_id_7>")
def test_text_never_spells_a_special_symbol(tokenizer, text):
    assert not tokenizer.special_ids & set(tokenizer.encode(text)), "text could place a mask or end a document"


@settings(max_examples=100, deadline=None)
@given(UNICODE)
def test_the_bytes_of_tokens_add_up_to_the_bytes_of_the_text(tokenizer, text):
    assert tokenizer.token_bytes[tokenizer.encode(text)].sum() == len(text.encode()), "bits per byte would be wrong"


def test_special_symbols_stand_for_no_bytes_and_leave_no_text(tokenizer):
    special = sorted(tokenizer.special_ids - {tokenizer.unk_id})
    assert not tokenizer.token_bytes[special].any()
    assert tokenizer.decode([*tokenizer.encode("a b"), *special]) == "a b"


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_indentation_costs_few_tokens(kind):
    code = inspect.getsource(textwrap)
    tokenizer = train_tokenizer([code], TokenizerConfig(kind=kind, vocab_size=600))
    assert len(tokenizer.encode("\n        return")) <= 4, "code would be mostly tokens of white space"


def test_words_begin_at_white_space_punctuation_and_ideographs(tokenizer):
    def words(text):
        ids = tokenizer.encode(text)
        starts = np.flatnonzero([True, *tokenizer.word_start[ids][1:]])
        return [tokenizer.decode(ids[a:b]) for a, b in zip(starts, [*starts[1:], len(ids)], strict=True)]

    assert words("the quickest fox jumped") == ["the", " quickest", " fox", " jumped"]
    assert words("dog, lazy_1") == ["dog", ",", " lazy_1"]
    assert words("快速") == ["快", "速"]
    assert words(" Straße") == [" Straße"]
    assert tokenizer.word_start[[tokenizer.cls_id, tokenizer.mask_id]].all()


def test_characters_are_the_vocabulary_when_bytes_are_off():
    tokenizer = train_tokenizer(["to be, or not"], TokenizerConfig(kind="char", byte_fallback=False))
    assert tokenizer.vocab_size == 108 + len(set("to be, or not"))
    assert tokenizer.decode(tokenizer.encode("not, robe")) == "not, robe"
    assert tokenizer.encode("x") == [tokenizer.unk_id]


def test_the_same_texts_give_the_same_tokenizer(text, tokenizer):
    again = train_tokenizer([text] * 20, TokenizerConfig(vocab_size=430))
    other = train_tokenizer([text] * 20, TokenizerConfig(vocab_size=431))
    assert again.fingerprint == tokenizer.fingerprint
    assert other.fingerprint != tokenizer.fingerprint


def test_a_saved_and_a_pickled_tokenizer_are_the_same(tokenizer, text, tmp_path):
    path = str(tmp_path / "tokenizer.model")
    tokenizer.save(path)
    for copy in (Tokenizer.load(path), pickle.loads(pickle.dumps(tokenizer))):
        assert copy.fingerprint == tokenizer.fingerprint
        assert copy.encode(text) == tokenizer.encode(text)
    assert [file.name for file in tmp_path.iterdir()] == ["tokenizer.model"]


def test_a_loaded_model_gets_the_symbols_that_it_lacks_after_its_own(tmp_path):
    buffer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["hello big world"] * 30),
        model_writer=buffer,
        vocab_size=30,
        hard_vocab_limit=False,
        pad_id=-1,
        user_defined_symbols=["[MASK]"],
        minloglevel=2,
    )
    path = tmp_path / "theirs.model"
    path.write_bytes(buffer.getvalue())
    theirs = sentencepiece.SentencePieceProcessor(model_proto=buffer.getvalue())
    tokenizer = Tokenizer.load(str(path))
    size = theirs.get_piece_size()
    assert tokenizer.encode("hello world") == theirs.encode("hello world"), "the ids of the loaded model changed"
    assert (tokenizer.bos_id, tokenizer.eos_id) == (theirs.bos_id(), theirs.eos_id())
    assert tokenizer.mask_id == theirs.piece_to_id("[MASK]")
    new = {tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id, *tokenizer.sentinel_ids.tolist()}
    assert new == set(range(size, size + 103))
    assert tokenizer.vocab_size == size + 103
    assert tokenizer.mask_id not in tokenizer.encode("hello [MASK]"), "text becomes a special token"


def test_equally_good_ways_to_cut_a_line_stay_so_wherever_the_line_stands(text):
    """Sums of scores must be exact, otherwise the same spaces could be encoded differently in different lines."""
    tokenizer = train_tokenizer([inspect.getsource(textwrap)], TokenizerConfig(kind="unigram", vocab_size=600))
    assert all(piece.score * 512 == int(piece.score * 512) for piece in model_file.parsed(tokenizer.proto).pieces)
    lines = [f"{'x' * n}{' ' * m}y" for n in (0, 100, 1000) for m in range(40)]
    alone = [tokenizer.encode(line) for line in lines]
    together = tokenizer.encode("\n".join([text, *lines]))
    ends = np.flatnonzero(np.array(together) == 107)[-len(lines) :]
    assert [part.tolist()[1:] for part in np.split(together, ends)[1:]] == alone
    spaces = [tokenizer.encode(f"{' ' * 35}y"), tokenizer.encode(f"{'x' * 1000}{' ' * 35}y")]
    assert spaces[1][-len(spaces[0]) :] == spaces[0]


def test_lines_are_encoded_apart_only_where_no_other_token_holds_a_line_feed(tmp_path):
    path = tmp_path / "theirs.model"
    symbols = {"user_defined_symbols": ["\n", "\n\n"], "normalization_rule_name": "identity", "add_dummy_prefix": False}
    path.write_bytes(sentencepiece_model(model_type="bpe", vocab_size=400, remove_extra_whitespaces=False, **symbols))
    theirs = sentencepiece.SentencePieceProcessor(model_proto=path.read_bytes())
    assert Tokenizer.load(str(path)).encode("a\n\nb\nc") == theirs.encode("a\n\nb\nc")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.999])
def test_a_truncated_model_is_refused(tokenizer, tmp_path, share):
    path = tmp_path / "cut.model"
    tokenizer.save(str(path))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(FlagError, match=r"cut\.model.*not a whole SentencePiece model"):
        Tokenizer.load(str(path))


def test_a_model_that_crashes_the_library_is_refused(tokenizer, tmp_path, monkeypatch):
    path = str(tmp_path / "hostile.model")
    tokenizer.save(path)
    monkeypatch.setattr(model_file, "_TRIAL", "import os; os.abort()")
    with pytest.raises(FlagError, match=r"hostile\.model"):
        Tokenizer.load(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda pieces: setattr(pieces[200], "score", math.nan), r"the score of its piece '.*' is nan"),
        (lambda pieces: setattr(pieces[200], "score", -math.inf), r"the score of its piece '.*' is -inf"),
        (lambda pieces: setattr(pieces[200], "piece", pieces[201].piece), "two of its ids have one piece"),
    ],
)
def test_a_model_whose_ids_are_in_doubt_is_refused(tokenizer, tmp_path, change, said):
    model = model_file.parsed(tokenizer.proto)
    change(model.pieces)
    (tmp_path / "odd.model").write_bytes(model.SerializeToString())
    with pytest.raises(FlagError, match=rf"odd\.model.*{said}"):
        Tokenizer.load(str(tmp_path / "odd.model"))


def test_an_absent_model_is_named(tmp_path):
    with pytest.raises(FlagError, match=r"tokenizer\.path: cannot read .*none\.model.*No such file"):
        Tokenizer.load(str(tmp_path / "none.model"))
    with pytest.raises(FlagError, match="directory"):
        Tokenizer.load(str(tmp_path))


def test_impossible_sizes_name_the_bound(text):
    with pytest.raises(FlagError, match=r"--config\.tokenizer\.vocab_size=200: too small.* at least (4\d\d)"):
        train_tokenizer([text], TokenizerConfig(vocab_size=200))
    with pytest.raises(FlagError, match=r"--config\.tokenizer\.vocab_size=90000: more .* at most \d+"):
        train_tokenizer([text], TokenizerConfig(vocab_size=90000))


@pytest.mark.parametrize("texts", [[], [""], ["\n\n", " \n"]])
def test_training_on_nothing_is_an_error_of_the_data(texts):
    with pytest.raises(DataError, match="empty"):
        train_tokenizer(texts, TokenizerConfig())


def test_the_sample_is_bounded_and_spread_over_all_documents():
    texts = [f"{i:06d} " * 1000 for i in range(400)]
    sample = module._sample(iter(texts), 300_000)
    assert 250_000 < sum(map(len, sample)) <= 300_000
    numbers = [int(chunk[:6]) for chunk in sample]
    assert numbers == sorted(numbers)
    assert abs(np.mean(numbers) - 200) < 60, "the sample has more of one end of the corpus"
    assert "".join(module._sample(iter(texts), 10**9)) == "".join(texts)


def test_a_very_long_text_is_encoded_in_parts_without_loss(tokenizer, text):
    long = text * 1000 + "x" * 200_000
    assert tokenizer.decode(tokenizer.encode(long)) == long
    assert tokenizer.encode_batch([long, "", text], threads=2) == [tokenizer.encode(long), [], tokenizer.encode(text)]
