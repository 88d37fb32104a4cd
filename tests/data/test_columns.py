"""Named columns: each value is read from the store with its document, and errors name a missing column."""

import json
import pathlib

import numpy as np
import pytest

from lmjax.data.columns import Column, read_columns
from lmjax.data.documents import Document
from lmjax.data.files import Faults
from lmjax.data.sources import DataConfig
from lmjax.data.splits import open_splits
from lmjax.data.store import Store, build_store
from lmjax.errors import DataError, FlagError

ALL = (
    Column("words", "texts"),
    Column("label", "string"),
    Column("text"),
    Column("score", "number"),
    Column("tags", "strings"),
    Column("starts", "integers"),
    Column("count", "integer"),
    Column("note", "text", optional=True),
)
RECORDS = [
    {
        "words": ["The", "old fox", "."] * (i % 3 + 1),
        "label": ("yes", 1, True, "ü")[i % 4],
        "text": f"Number {i}.",
        "score": i / 7,
        "tags": [f"t{j}" for j in range(i % 4)],
        "starts": list(range(i % 3)),
        "count": i - 20,
        "left out": "nothing reads it",
    }
    for i in range(40)
]
LABELS = {"yes": "yes", "1": "1", "True": "true", "ü": "ü"}
LABELLED = (Column("text"), Column("label", "string"))


def store_of(path, tokenizer, folder, columns) -> Store:
    documents = lambda: read_columns(path, Faults("error"), columns)  # noqa: E731
    return build_store(documents, tokenizer, fingerprint_parts={}, cache_dir=str(folder), columns=columns)


def jsonl(records) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


@pytest.fixture
def store(write, tokenizer, tmp_path, monkeypatch):
    """Returns a store of RECORDS that is written in many small batches."""
    monkeypatch.setattr("lmjax.data.store._BATCH_CHARS", 60)
    return store_of(write("a.jsonl", jsonl(RECORDS)), tokenizer, tmp_path / "cache", ALL)


def test_every_column_comes_back_with_its_document(store, tokenizer):
    store = Store(store.path)
    assert store.columns == ALL
    assert store.num_documents == len(RECORDS)
    assert store.num_tokens == store.lengths.sum()
    for i, record in enumerate(RECORDS):
        assert [tokenizer.decode(ids) for ids in store.texts(i, "words")] == record["words"]
        assert [tokenizer.decode(ids) for ids in store.texts(i, "text")] == [record["text"]]
        assert [len(ids) for ids in store.texts(i, "note")] == [0], "an optional text that is missing must be empty"
        assert store.value(i, "label") == LABELS[str(record["label"])]
        assert store.value(i, "score") == record["score"]
        assert store.value(i, "tags") == tuple(record["tags"])
        assert store.value(i, "starts") == tuple(record["starts"])
        assert store.value(i, "count") == record["count"]
        whole = np.concatenate([*store.texts(i, "words"), *store.texts(i, "text")])
        assert np.array_equal(whole, store.document(i))


def test_a_table_holds_the_same_as_json(write, tokenizer, tmp_path):
    columns = tuple(column for column in ALL if column.name in ("text", "words", "label", "score", "starts"))
    lines = ["text\twords\tlabel\tscore\tstarts", "A fox.\tA fox .\tyes\t0.5\t0 2 6", "No.\tNo .\t1\t-3\t0 2"]
    records = [
        {"text": "A fox.", "words": ["A", "fox", "."], "label": "yes", "score": 0.5, "starts": [0, 2, 6]},
        {"text": "No.", "words": ["No", "."], "label": 1, "score": -3, "starts": [0, 2]},
    ]
    paths = (write("a.tsv", "\n".join(lines) + "\n"), write("a.jsonl", jsonl(records)))
    table, objects = (list(read_columns(path, Faults("error"), columns)) for path in paths)
    assert table == objects
    assert table[0].segments == ("A", "fox", ".", "A fox.")


def test_a_document_without_tokens_keeps_its_values(tokenizer, tmp_path):
    """A label belongs to an empty text too; without it, the labels after it would move to other documents."""
    texts = {"A": "a", "B": "", "C": "c"}
    documents = [Document((text,), "", counts=(1,), values=(label,)) for label, text in texts.items()]
    store = build_store(
        lambda: iter(documents), tokenizer, fingerprint_parts={}, cache_dir=str(tmp_path), columns=LABELLED
    )
    found = {store.value(i, "label"): tokenizer.decode(store.document(i)) for i in range(store.num_documents)}
    assert found == texts


def test_columns_decide_which_store_it_is(write, tokenizer, tmp_path):
    path = write("a.jsonl", jsonl(RECORDS))
    one = store_of(path, tokenizer, tmp_path, LABELLED)
    other = store_of(path, tokenizer, tmp_path, (*LABELLED, Column("count", "integer")))
    assert one.fingerprint != other.fingerprint
    assert other.value(3, "count") == -17


def test_a_store_of_running_text_is_what_it_was(tokenizer, tmp_path):
    """Columns do not change the fingerprint and files of a store of running text, so older stores are still found."""
    documents = [Document(("One.", " Two."), "")]
    store = build_store(lambda: iter(documents), tokenizer, fingerprint_parts={}, cache_dir=str(tmp_path))
    meta = json.loads(pathlib.Path(store.path, "meta.json").read_text())
    assert set(meta["sizes"]) == {"tokens.bin", "documents.bin", "document_segments.bin", "segments.bin"}
    assert "columns" not in meta
    assert set(meta["parts"]) == {"format", "tokenizer"}
    assert store.columns == ()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", '{"text": "a", "label": "x"}\n{"text": "b", "lable": "y"}\n', ":2: no 'label' among"),
        ("a.tsv", "text\tlable\na\tx\n", ":1: no 'label' among the fields text, lable; a record needs text and label"),
        ("a.csv", "text,label,label\na,x,y\n", ":1: 2 columns are called 'label'"),
        ("a.jsonl", '{"text": "a", "label": ["x"]}\n', r":1: 'label' is \"\['x'\]\", and must be a string or a whole"),
        ("a.jsonl", '{"text": 3, "label": "x"}\n', ":1: 'text' is '3', and must be a string"),
        ("a.txt", "a\n", "plain text, and a record needs text and label: give JSONL or CSV/TSV"),
    ],
)
def test_what_lacks_a_column_is_named_with_its_line_and_what_is_there(write, name, content, said):
    with pytest.raises(DataError, match=said):
        list(read_columns(write(name, content), Faults("error"), LABELLED))


@pytest.mark.parametrize("value", ["nan", "1e400", "x", None, [1]])
def test_a_score_is_a_finite_number(write, value):
    path = write("a.jsonl", jsonl([{"text": "a", "score": value}]))
    with pytest.raises(DataError, match=r":1: 'score' is .* and must be a finite number"):
        list(read_columns(path, Faults("error"), (Column("text"), Column("score", "number"))))


def test_bad_records_can_be_left_out(write):
    path, faults = write("a.jsonl", '{"text": "a", "label": "x"}\n{"text": "b"}\n'), Faults("skip")
    assert [document.text for document in read_columns(path, faults, LABELLED)] == ["a"]
    assert ":2: no 'label'" in faults.first


def test_equal_texts_stay_on_one_side_of_the_split(write):
    records = [{"sentence": f"Text {i % 30}.", "label": i} for i in range(120)]
    config = DataConfig(train=write("a.jsonl", jsonl(records)), held_out=0.3, text_field="sentence")
    splits = open_splits(config, pairs=False, columns=LABELLED)
    train, held_out = list(splits.train["train"]()), list(splits.evals["heldout"]())
    assert len(train) + len(held_out) == 120
    assert held_out
    assert not {d.text for d in train} & {d.text for d in held_out}
    assert sorted(int(d.values[0]) for d in (*train, *held_out)) == list(range(120))


def test_what_has_no_records_is_refused(write):
    with pytest.raises(FlagError, match="--data=stdlib: it has no records of text, label"):
        list(open_splits(DataConfig(), pairs=False, columns=LABELLED).train["train"]())
    config = DataConfig(train=write("a.jsonl", jsonl(RECORDS)), split="tail")
    with pytest.raises(FlagError, match="tail"):
        open_splits(config, pairs=False, columns=LABELLED)


def test_a_table_without_a_header_has_the_columns_that_are_named(write):
    columns = (Column("text"), Column("score", "number"))
    path = write("x.csv", 'an owl,2.5\n"an elk, old",1\n')
    found = list(read_columns(path, Faults("error"), columns, header=("text", "score")))
    assert [(d.text, d.values) for d in found] == [("an owl", (2.5,)), ("an elk, old", (1.0,))]
    with pytest.raises(DataError, match=r"x.csv: no 'score' among the fields text, y; a record needs text and score"):
        list(read_columns(path, Faults("error"), columns, header=("text", "y")))
    with pytest.raises(DataError, match=r"x.csv:1: 2 fields, but 3 columns are named; correct the row"):
        list(read_columns(path, Faults("error"), columns, header=("text", "score", "more")))
