"""Stores: exact texts and sentences, reuse of complete stores only, and killed or simultaneous builders."""

import itertools
import json
import os
import pathlib
import pickle
import signal
import subprocess
import sys

import numpy as np
import pytest

from lmjax.data.documents import Document
from lmjax.data.sentences import split_sentences
from lmjax.data.store import Store, _mapped, build_store
from lmjax.errors import DataError, SaveError

BUILDER = """
import pathlib, sys
from lmjax.data.documents import Document
from lmjax.data.store import build_store
from lmjax.data.tokenizer import Tokenizer

def documents():
    for i in range(200):
        yield Document((f"text {i}.",), str(i))
        if i == 100:
            print("half", flush=True)
            sys.stdin.readline()

store = build_store(documents, Tokenizer.load(sys.argv[1]), fingerprint_parts={}, cache_dir=sys.argv[2])
print(store.num_documents, sum(store.lengths) == store.num_tokens, flush=True)
"""


@pytest.fixture
def documents(text):
    texts = [
        text,
        "A single sentence.",
        "Ä.",
        *(f"Number {i}. It is followed by {i + 1}." * (i % 5 + 1) for i in range(50)),
    ]
    return [Document(split_sentences(t), str(i)) for i, t in enumerate(texts)]


def build(documents, tokenizer, folder, **parts):
    return build_store(lambda: iter(documents), tokenizer, fingerprint_parts=parts, cache_dir=str(folder))


def test_documents_and_sentences_come_back_exactly(documents, tokenizer, tmp_path):
    store = build(documents, tokenizer, tmp_path)
    assert store.num_documents == len(documents)
    assert store.num_bytes == sum(len(document.text.encode()) for document in documents)
    assert store.num_tokens == store.lengths.sum()
    assert not store.pairs
    for i, document in enumerate(documents):
        tokens, bounds = store.document(i), store.segments(i)
        assert tokens.dtype == np.int32
        assert tokenizer.decode(tokens) == document.text
        assert (bounds[0], bounds[-1]) == (0, store.lengths[i])
        pieces = [tokenizer.decode(tokens[a:b]) for a, b in itertools.pairwise(bounds)]
        assert pieces == list(document.segments), "a sentence boundary is at the wrong position"
        assert np.array_equal(store.tokens(i, 1, len(tokens) - 1), tokens[1:])


def test_the_batches_of_the_builder_leave_no_trace(documents, tokenizer, tmp_path, monkeypatch):
    whole = build(documents, tokenizer, tmp_path / "a")
    monkeypatch.setattr("lmjax.data.store._BATCH_CHARS", 40)
    parts = build(documents, tokenizer, tmp_path / "b")
    for name in ("tokens.bin", "documents.bin", "document_segments.bin", "segments.bin", "meta.json"):
        contents = [pathlib.Path(store.path, name).read_bytes() for store in (whole, parts)]
        assert contents[0] == contents[1]


def test_pairs_keep_their_two_sides(tokenizer, tmp_path):
    store = build(
        [Document(("a b", "c"), "0", pair=True), Document(("d", "e. F"), "1", pair=True)], tokenizer, tmp_path
    )
    assert store.pairs
    tokens, bounds = store.document(1), store.segments(1)
    assert [tokenizer.decode(tokens[a:b]) for a, b in itertools.pairwise(bounds)] == ["d", "e. F"]


def test_documents_without_tokens_are_left_out_and_none_at_all_is_an_error(tokenizer, tmp_path):
    store = build([Document((), "0"), Document(("", "a"), "1"), Document(("",), "2")], tokenizer, tmp_path)
    assert store.num_documents == 1
    assert store.segments(0).tolist() == [0, store.num_tokens]
    with pytest.raises(DataError, match="no tokens"):
        build([], tokenizer, tmp_path, other=1)
    assert sorted(name for name in os.listdir(tmp_path) if not name.startswith(".publish")) == [
        os.path.basename(store.path)
    ], "a failed build left something behind"


def test_large_vocabularies_get_wide_tokens(tokenizer, documents, tmp_path, monkeypatch):
    narrow = build(documents, tokenizer, tmp_path / "a")
    monkeypatch.setattr(tokenizer, "vocab_size", 2**16 + 1)
    wide = build(documents, tokenizer, tmp_path / "b")
    assert os.path.getsize(wide.path + "/tokens.bin") == 2 * os.path.getsize(narrow.path + "/tokens.bin")
    assert np.array_equal(wide.document(0), narrow.document(0))


def test_a_pickled_store_travels_as_its_path(documents, tokenizer, tmp_path):
    store = build(documents, tokenizer, tmp_path)
    store.document(0)
    data = pickle.dumps(store)
    assert len(data) < 500, "every worker would get a copy of the corpus"
    assert np.array_equal(pickle.loads(data).document(3), store.document(3))


def test_a_whole_store_is_reused_and_other_parts_or_tokenizers_have_their_own(documents, tokenizer, tmp_path):
    first = build(documents, tokenizer, tmp_path, corpus="x")
    assert build([], tokenizer, tmp_path, corpus="x").path == first.path
    assert build(documents, tokenizer, tmp_path, corpus="y").path != first.path
    other = pickle.loads(pickle.dumps(tokenizer))
    other.fingerprint = "other"
    assert build(documents, other, tmp_path, corpus="x").path != first.path


@pytest.mark.parametrize("name", ["tokens.bin", "documents.bin", "document_segments.bin", "segments.bin", "meta.json"])
@pytest.mark.parametrize("damage", ["truncate", "remove"])
def test_a_damaged_store_is_built_anew(documents, tokenizer, tmp_path, name, damage):
    store = build(documents, tokenizer, tmp_path)
    path = os.path.join(store.path, name)
    if damage == "truncate":
        os.truncate(path, os.path.getsize(path) - 2)
    else:
        os.remove(path)
    with pytest.raises(DataError, match="not a whole token store"):
        Store(store.path)
    again = build(documents, tokenizer, tmp_path)
    assert tokenizer.decode(again.document(0)) == documents[0].text


def start(tokenizer, folder):
    """Starts a builder that stops in the middle until it reads a line."""
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.model"))
    command = [sys.executable, "-c", BUILDER, str(folder / "tokenizer.model"), str(folder / "cache")]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def stores(folder):
    return sorted(os.listdir(folder / "cache"))


def test_a_killed_build_leaves_nothing_that_is_trusted_and_the_next_one_cleans_up(tokenizer, tmp_path):
    with start(tokenizer, tmp_path) as killed:
        assert killed.stdout.readline() == "half\n"
        killed.send_signal(signal.SIGKILL)
    left = stores(tmp_path)
    assert any(name.startswith(".tmp-store-") for name in left)
    assert not any(name.startswith("store-") for name in left)
    with start(tokenizer, tmp_path) as second:
        assert second.communicate("\n")[0] == "half\n200 True\n"
    assert [name[:6] for name in stores(tmp_path)] == [".publi", "store-"]


def test_two_builders_at_once_both_end_with_a_good_store(tokenizer, tmp_path):
    with start(tokenizer, tmp_path) as first:
        assert first.stdout.readline() == "half\n"
        with start(tokenizer, tmp_path) as second:
            assert second.communicate("\n")[0] == "half\n200 True\n"
        assert first.communicate("\n")[0] == "200 True\n"
    assert [name[:6] for name in stores(tmp_path)] == [".publi", "store-"]


def test_a_folder_that_cannot_be_written_is_named(documents, tokenizer, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SaveError, match=r"data\.cache_dir: cannot write a token store in .*file"):
        build(documents, tokenizer, tmp_path / "file")


def test_the_meta_data_says_what_the_store_was_built_from(documents, tokenizer, tmp_path):
    store = build(documents, tokenizer, tmp_path, corpus="abc", split="hash")
    with open(os.path.join(store.path, "meta.json")) as file:
        parts = json.load(file)["parts"]
    assert parts == {"format": 2, "tokenizer": tokenizer.fingerprint, "corpus": "abc", "split": "hash"}


def test_a_cache_that_cannot_be_opened_is_one_message(tmp_path):
    with pytest.raises(DataError, match=r"tokens\.bin: cannot be read: No such file.*built again"):
        _mapped(str(tmp_path / "tokens.bin"), np.int32)
