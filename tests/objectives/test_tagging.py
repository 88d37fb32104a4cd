"""Tagging: rows of words with their labels, what is refused, long sentences, and a model that learns 32 of them."""

import json

import numpy as np
import pytest

import lmjax
from lmjax.data.pipeline import example_stream
from lmjax.errors import DataError
from lmjax.evaluation.measures import MEASURES
from lmjax.evaluation.predicted import as_documents, encoded
from lmjax.inference.predict import predict
from lmjax.objectives.tagging import WORD_IDS, Window, windows
from lmjax.runs.build import build
from lmjax.runs.trained import load_model
from lmjax.training.metrics import read_lines

PLACES, PEOPLE = ("rome", "oslo"), ("ada", "bob")
SENTENCES = [
    (words, tags)
    for a in PLACES
    for b in PEOPLE
    for words, tags in (
        (["in", a, b], ["O", "B-place", "B-person"]),
        ([b, "jr", "sees", a], ["B-person", "I-person", "O", "B-place"]),
        ([b, "is", "in", a], ["B-person", "O", "O", "B-place"]),
        (["go", "to", a], ["O", "O", "B-place"]),
        ([a, "by", "night"], ["B-place", "O", "O"]),
        (["no", b], ["O", "B-person"]),
        ([b, "to", b], ["B-person", "O", "B-person"]),
        (["a", "b"], ["O", "O"]),
    )
]


def jsonl(path, sentences):
    path.write_text("".join(json.dumps({"words": w, "tags": t}) + "\n" for w, t in sentences))
    return path


def conll(path, sentences):
    path.write_text("\n\n".join("\n".join(map("\t".join, zip(w, t, strict=True))) for w, t in sentences) + "\n")
    return path


@pytest.fixture
def tag(tiny, tmp_path):
    """A function from sentences, those to evaluate on, and fields to a config."""

    def make(sentences=SENTENCES, held=SENTENCES[:4], write=jsonl, kind="jsonl", **fields):
        paths = [write(tmp_path / f"{name}.{kind}", r) for name, r in (("train", sentences), ("dev", held))]
        values = {"data__train": paths[0], "data__eval": f"dev={paths[1]}", "model__architecture": "encoder"}
        return tiny("tagging", **values | fields)

    return make


def rows(run):
    return [run.train_examples(i, example_stream(0, 0, i)) for i in range(len(run.train_examples))]


@pytest.mark.parametrize("subwords", ["first", "all"])
def test_a_row_reads_the_sentence_and_labels_the_tokens_of_words(tag, tmp_path, subwords):
    """The tokens are those of the words with spaces between them; the space before a word is its first token."""
    sentences = [(["go", "to", "oslo"], ["O", "O", "B-place"]), ([], []), (["ada"], ["B-person"])]
    config = tag(sentences, sentences[:1], batch_size=8, task__tagging__subwords=subwords)
    run = build(config, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "labels.json").read_text()) == {"labels": ["B-person", "B-place", "O"]}
    assert run.config.model.head.labels == 3
    t, (row, empty, single) = run.tokenizer, rows(run)
    for each, text in ((row, "go to oslo"), (empty, ""), (single, "ada")):
        ids = [t.cls_id, *t.encode(text), t.sep_id]
        assert each["tokens"][each["segment_ids"] > 0].tolist() == ids
    expected = [2] * 2 + [2] * 3 + [1] * 5 if subwords == "all" else {0: 2, 2: 2, 5: 1}
    for at in range(len(row["tokens"])):
        wanted = dict(enumerate(expected)) if subwords == "all" else expected
        assert row["label_weights"][at] == (at - 1 in wanted)
        assert row["labels"][at] == wanted.get(at - 1, 0)
    assert not empty["label_weights"].any()
    assert single["label_weights"].sum() == (3 if subwords == "all" else 1)


def test_a_word_without_tokens_is_read_as_unknown(tag, tmp_path):
    """So it has a label, and the words after it keep theirs."""
    sentences = [(["", "ada"], ["O", "B-person"])]
    run = build(tag(sentences, sentences), tmp_path / "run")
    (row,) = rows(run)
    t = run.tokenizer
    assert row["tokens"][:6].tolist() == [t.cls_id, t.unk_id, *t.encode(" ada")]
    assert row[WORD_IDS][:6].tolist() == [0, 1, 2, 2, 2, 2]
    assert row["label_weights"][:4].tolist() == [0, 1, 1, 0]


def test_windows_label_each_word_once_with_context_on_both_sides():
    assert windows([1, 2, 3], 6, 2) == [Window(0, 0, 3, 3)]
    assert windows([1] * 10, 6, 1) == [Window(0, 0, 4, 5), Window(3, 4, 8, 9), Window(7, 8, 10, 10)]
    assert windows([9, 1], 4, 1) == [Window(0, 0, 1, 1), Window(1, 1, 2, 2)], "a word that is longer than a row"
    rng = np.random.default_rng(0)
    for _ in range(50):
        sizes = rng.integers(1, 9, rng.integers(1, 30)).tolist()
        found = windows(sizes, 12, 4)
        assert [i for w in found for i in range(w.begin, w.end)] == [*range(len(sizes))]
        for w in found:
            assert w.first <= w.begin < w.end <= w.last
            assert sum(sizes[w.first : w.last]) <= 12
            assert sum(sizes[w.first : w.begin]) <= 3, "a quarter of the row"


def test_a_long_sentence_has_several_rows_and_loses_no_word(tag, tmp_path):
    words, tags = ["go", "oslo"] * 10 + ["x" * 50], ["O", "B-place"] * 10 + ["O"]
    run = build(tag([(words, tags), SENTENCES[0]], SENTENCES[:1], task__tagging__overlap=6), tmp_path / "run")
    found = rows(run)
    assert len(found) > 4
    labels = [run.config.task.tagging.labels[i] for r in found for i in r["labels"][r["label_weights"] > 0]]
    assert labels == [*tags, *SENTENCES[0][1]]
    assert found[1]["tokens"][0] == run.tokenizer.cls_id
    assert found[1][WORD_IDS][1] == 0, "the row begins with context"
    assert max(row[WORD_IDS].max() for row in found) == 21


@pytest.mark.parametrize(
    ("write", "kind", "held", "said"),
    [
        (jsonl, "jsonl", [*SENTENCES[:2], (["a"], ["B-x"])], r"dev.jsonl:3: 'tags' is 'B-x'; the known ones are B-pe"),
        (jsonl, "jsonl", [(["a"], [""])], r"dev.jsonl:1: word 1 \('a'\): the tag '' is no tag of bio"),
        (jsonl, "jsonl", [(["a", "b"], ["O"])], "dev.jsonl:1: 2 words and 1 tags; give one tag for each word"),
        (jsonl, "jsonl", [("a", ["O"])], "dev.jsonl:1: 'words' is 'a', and must be a list of strings"),
        (conll, "conll", [*SENTENCES[:2], (["a"], ["B-x"])], r"dev.conll:10: 'tags' is 'B-x'; the known ones"),
        (conll, "txt", [(["a", "b"], ["O", "I-place"])], r"dev.txt:1: word 2 \('b'\): the tag 'I-place' stands"),
    ],
)  # fmt: skip
def test_tags_that_cannot_be_are_refused_with_file_and_line(tag, tmp_path, write, kind, held, said):
    config = tag(held=held, write=write, kind=kind, task__tagging__scheme="bio")
    with pytest.raises(DataError, match=said):
        build(config, tmp_path / "run")


def test_the_training_data_says_which_labels_there_are(tag, tmp_path):
    with pytest.raises(DataError, match="the only tag of all words is 'O'; give words of two tags or more"):
        build(tag([(["a"], ["O"])]), tmp_path / "run")
    config = tag()
    (tmp_path / "train.jsonl").write_text('{"words": ["a"]}\n')
    with pytest.raises(DataError, match=r"train.jsonl:1: no 'tags' among the fields words; a record needs words and"):
        build(config, tmp_path / "run")


def test_another_scheme_is_read_anew(tag, tmp_path):
    """A store of tags that were not checked is not taken for one of checked tags."""
    wrong = [*SENTENCES, (["ada", "b"], ["O", "I-person"])]
    build(tag(wrong), tmp_path / "none")
    with pytest.raises(DataError, match=r"train.jsonl:33: word 2"):
        build(tag(wrong, task__tagging__scheme="bio"), tmp_path / "bio")
    repaired = build(tag(wrong, task__tagging__scheme="bioes", task__tagging__repair=True), tmp_path / "repaired")
    assert repaired.config.task.tagging.labels == ("B-person", "E-person", "O", "S-person", "S-place")


def test_a_tiny_model_learns_32_sentences_whatever_the_padding_and_the_batch(tag, tmp_path, evaluated_in_rows):
    """To near-zero loss; rows twice as long give the same loss, and batches of any size the same metrics."""
    fields = {"epochs": 40, "optimizer__learning_rate": 0.01, "optimizer__warmup_steps": 5, "evaluation__batches": 8,
              "model__dropout__residual": 0.0, "model__dropout__attention": 0.0, "model__num_layers": 2}  # fmt: skip
    config = tag(held=SENTENCES, **fields)
    workdir = lmjax.train(config, tmp_path / "run", progress=False)
    last = read_lines(workdir)[-1]
    assert last["eval/dev/tagging/loss"] < 0.02
    assert last["eval/dev/tagging/accuracy"] == 1
    again = evaluated_in_rows(workdir, config, 64)
    np.testing.assert_allclose(again["eval/dev/tagging/loss"], last["eval/dev/tagging/loss"], rtol=1e-4)
    loaded = load_model(workdir)
    long = [[x for sentence in SENTENCES[:8] for x in sentence[side]] for side in (0, 1)]
    given = [{"words": w, "tags": t} for w, t in [*SENTENCES, ([], []), long]]
    records = encoded(loaded, as_documents(given, loaded.task))
    truths = [loaded.task.truth(record) for record in records]
    found = [predict(loaded, records, size) for size in (1, 7, 64)]
    one, *others = (MEASURES["tagging"].metrics(loaded.task, truths, each).measured(20) for each in found)
    assert others == [one, one]
    assert [len(each["tags"]) for each in found[0]] == [len(each["words"]) for each in given]
    assert [each["tags"] for each in found[0][:32]] == [list(t) for _, t in SENTENCES]
    assert found[0][1]["entities"][0] | {"score": 0} == {"type": "person", "start": 0, "end": 2, "score": 0}
    assert one["f1 micro"] > 0.9
