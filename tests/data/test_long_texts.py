"""Long texts: a store and encoding in windows give the same tokens as encoding the whole text at once."""

import itertools
import json
import random

import numpy as np
import pytest
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, pre_tokenizers, trainers

from lmjax.data import long_texts
from lmjax.data.documents import Document
from lmjax.data.fast_tokenizer import TOKENIZER, FastTokenizer
from lmjax.data.sentences import split_sentences
from lmjax.data.store import build_store
from lmjax.data.vocabulary import Vocabulary
from tests.data.test_fast_tokenizer import trained
from tests.inference.tokenizers import MAKERS
from tests.inference.tokenizers import tokenizer as made
from tests.texts import SAMPLES, library_lines, training_lines

METASPACES = ("always", "first", "never")
KINDS = (*MAKERS, "llama3", "gpt2", "metaspace_bytes", "prefix_space", *(f"metaspace_{s}" for s in METASPACES))
BLANKS = (" ", "  ", "\n", "\n\n", "\r\n", "\t", ".\n", ".)\n\n", " \n ", "!", "?\n", "...", " 12345 ", "\u3000")
WORDS = ("The", "king", "isn't", "def", "return", "x1", "Straße", "快速", "🙂", "e\u0301", "(a", "b)", "HELLO", "ﬁ")


def library(pre_tokenizer) -> Library:
    """Returns a BPE tokenizer of the library with a pre-tokenizer."""
    fast, levels = Library(models.BPE()), isinstance(pre_tokenizer, pre_tokenizers.ByteLevel)
    fast.pre_tokenizer = pre_tokenizer
    fast.decoder = decoders.ByteLevel() if levels else decoders.Metaspace()
    alphabet = pre_tokenizers.ByteLevel.alphabet() if levels else []
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<s>"], initial_alphabet=alphabet, show_progress=False
    )
    fast.train_from_iterator(training_lines(), trainer)
    return fast


@pytest.fixture(scope="module")
def of_kind():
    """Returns a function from a kind to its tokenizer."""
    kept: dict[str, Vocabulary] = {}

    def give(kind: str) -> Vocabulary:
        if kind in MAKERS:
            return made(kind)
        if kind not in kept:
            if kind == "prefix_space":
                fast = library(pre_tokenizers.ByteLevel(add_prefix_space=True))
            elif kind.removeprefix("metaspace_") in METASPACES:
                scheme = kind.removeprefix("metaspace_")
                fast = library(pre_tokenizers.Metaspace(prepend_scheme=scheme, split=scheme != "never"))
            else:
                fast = trained(kind)
            kept[kind] = FastTokenizer({TOKENIZER: fast.to_str().encode()}, {"extra_special_tokens": []})
        return kept[kind]

    return give


def at_once(tokenizer: Vocabulary, text: str) -> list[int]:
    """Returns the ids of a text, encoded at once by the library."""
    if isinstance(tokenizer, FastTokenizer):
        content = json.loads(tokenizer.files[TOKENIZER])
        return Library.from_str(json.dumps(content)).encode(text, add_special_tokens=False).ids
    return tokenizer._encode([text], 1)[0]


def odd_text(seed: int, pieces: int) -> str:
    """Returns words of many scripts, separated by all kinds of white space, and lines of code."""
    rng, lines = random.Random(seed), library_lines(200)
    parts = itertools.chain.from_iterable((rng.choice(WORDS), rng.choice(BLANKS)) for _ in range(pieces))
    return "".join(part if rng.random() < 0.95 else part + rng.choice(lines) + "\n" for part in parts)


TEXTS = [
    *(sample for sample in SAMPLES if sample.strip()),
    "One. Two!\n\nThree?\nFour.  Five.\r\nSix (seven). Eight: 9.10 11.",
    "\n".join(library_lines(150)),
    *(odd_text(seed, 60) for seed in range(4)),
]


@pytest.mark.parametrize("kind", KINDS)
def test_a_store_holds_the_tokens_of_whole_texts(kind, of_kind, tmp_path):
    """Encoding each sentence separately gives other tokens with Llama 3's pattern, or with a space before each text."""
    tokenizer = of_kind(kind)
    texts = [text for text in TEXTS if at_once(tokenizer, text)]
    documents = [Document(split_sentences(text), "") for text in texts]
    store = build_store(lambda: iter(documents), tokenizer, fingerprint_parts={}, cache_dir=str(tmp_path))
    assert store.num_documents == len(texts)
    for i, text in enumerate(texts):
        found = store.document(i).tolist()
        assert found == tokenizer.encode(text) == at_once(tokenizer, text), text[:40]
        assert tokenizer.decode(found) == tokenizer.decode(at_once(tokenizer, text))
        # The first token of a sentence is the first one that begins in it, or after it.
        (ids, starts), *_ = tokenizer.locate_batch([text])
        assert ids.tolist() == found
        offsets = np.cumsum([len(sentence) for sentence in documents[i].segments])[:-1]
        bounds = {0, *np.searchsorted(starts, offsets).tolist(), len(found)}
        assert set(store.segments(i).tolist()) <= bounds
        assert len(store.segments(i)) >= min(3, len(documents[i].segments) + 1, len(bounds))


@pytest.fixture
def small_windows(monkeypatch):
    monkeypatch.setattr(long_texts, "WINDOW", 1024)
    monkeypatch.setattr(long_texts, "OVERLAP", 256)


@pytest.mark.parametrize("kind", KINDS)
def test_a_long_text_has_the_tokens_that_it_has_at_once(kind, of_kind, small_windows):
    """Encoding parts of a fixed length separately gives other tokens where they meet."""
    tokenizer = of_kind(kind)
    texts = [odd_text(seed, 1500) for seed in range(3)]
    texts += ["\n".join(library_lines(400)), "a" * 5000 + " b", " " * 3000 + "x.\n" * 900, "快速的棕色" * 900]
    # Sequences of one character, whose tokens depend on where a window begins.
    texts += [start + run * 3000 + "end" for start in ("x", "xyz", "xyz12") for run in " -=#"]
    for text in texts:
        assert len(text) > 2 * long_texts.WINDOW
        expected = at_once(tokenizer, text)
        assert tokenizer.encode(text) == expected, text[:30]
        ids, starts = tokenizer.locate_batch([text, "short"], threads=2)[0]
        assert ids.tolist() == expected
        assert (np.diff(starts) >= 0).all()
        assert starts[-1] < len(text)


def test_the_texts_would_show_parts_of_a_fixed_length(of_kind):
    """Control of the test above: in parts of a fixed length, most kinds of tokenizers give this text other tokens."""
    text = odd_text(0, 1500)
    parts = [text[start : start + 1024] for start in range(0, len(text), 1024)]
    joined = {kind: [i for part in parts for i in at_once(of_kind(kind), part)] for kind in KINDS}
    same = [kind for kind in KINDS if joined[kind] == at_once(of_kind(kind), text)]
    assert set(same) <= {"char", "unigram", "bpe", "word_piece"}


def test_a_megabyte_is_encoded_as_it_is_at_once(of_kind):
    """With windows of the real length, of which there are several."""
    tokenizer = of_kind("llama3")
    text = odd_text(1, 100_000)
    assert len(text) > 3 * long_texts.WINDOW
    assert tokenizer.encode(text) == at_once(tokenizer, text)
