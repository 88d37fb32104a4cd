"""The embedded corpus: prose, code and pairs of this Python, without duplicates and without leaks over the split."""

import ast
import collections

import pytest

from lmjax.data import stdlib
from lmjax.data.sources import DataConfig
from lmjax.data.splits import open_splits
from lmjax.errors import DataError


@pytest.fixture
def few(monkeypatch):
    """Returns a corpus of a few modules, because parsing the whole library is slow."""
    names = {"textwrap", "json.decoder", "json.encoder", "heapq", "bisect"}
    modules = [(name, source) for name, source in stdlib._modules() if name in names]
    monkeypatch.setattr(stdlib, "_modules", lambda: iter(modules))
    stdlib._documents.cache_clear()
    yield dict(modules)
    stdlib._documents.cache_clear()


def test_the_library_gives_prose_code_and_no_tests():
    names = [name for name, _ in stdlib._modules()]
    assert len(names) > 300
    assert len(set(names)) == len(names)
    parts = {part for name in names for part in name.split(".")}
    assert not parts & {"test", "tests", "idle_test", "site-packages", "pydoc_data", "_bundled"}
    assert not any("sysconfigdata" in name for name in names), "the corpus has paths of this machine"
    assert {"argparse", "asyncio.tasks", "textwrap"} <= set(names)
    assert len(stdlib._topics()) > 50


def test_documents_are_exact_texts_with_real_sentences(few):
    documents = list(stdlib.documents(pairs=False))
    texts = [document.text for document in documents]
    assert set(few.values()) <= set(texts), "a module's source is incomplete"
    wrap = next(
        document for document in documents if document.text.startswith("Wrap a single paragraph of text, returning")
    )
    assert wrap.segments[0] == "Wrap a single paragraph of text, returning a list of wrapped lines."
    assert wrap.group == "module textwrap"
    assert max(collections.Counter(texts).values()) == 1, "a text that occurs twice could be in both parts of the split"


def test_pairs_are_sources_without_their_docstrings(few):
    pairs = {document.segments for document in stdlib.documents(pairs=True)}
    assert len(pairs) > 20
    shorten = next(source for source, _ in pairs if source.startswith("def shorten("))
    assert (shorten, "Collapse and truncate the given text to fit in the given width.") in pairs
    for source, target in pairs:
        assert target == target.strip() != ""
        assert "\n" not in target
        assert target not in source, "the source contains its target"
        node = ast.parse(source).body[0]
        assert ast.get_docstring(node) is None


def test_a_docstring_and_the_source_that_holds_it_are_on_one_side(few):
    for pairs in (False, True):
        train, evals = open_splits(DataConfig(held_out=0.4), pairs=pairs)
        training, held_out = ({d.group for d in read()} for read in (train["train"], evals["heldout"]))
        assert training
        assert held_out
        assert not training & held_out


def test_texts_and_pairs_hold_out_the_same_modules(few):
    sides = [open_splits(DataConfig(held_out=0.4), pairs=pairs) for pairs in (False, True)]
    trained = {d.group for d in sides[0].train["train"]()}
    assert not trained & {d.group for d in sides[1].evals["heldout"]()}, "the tokenizer was trained on held-out pairs"


def test_the_fingerprint_follows_the_texts(few, monkeypatch):
    before = stdlib.fingerprint()
    assert stdlib.fingerprint() == before
    changed = [(name, source + "# changed\n") for name, source in few.items()]
    monkeypatch.setattr(stdlib, "_modules", lambda: iter(changed))
    assert stdlib.fingerprint() != before


def test_a_python_without_sources_says_what_to_do(monkeypatch):
    monkeypatch.setattr(stdlib, "_modules", lambda: iter(()))
    monkeypatch.setattr(stdlib, "_topics", dict)
    stdlib._documents.cache_clear()
    with pytest.raises(DataError, match=r"has none; give --data a path"):
        list(stdlib.documents(pairs=False))
