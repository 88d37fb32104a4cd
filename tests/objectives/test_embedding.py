"""Embedding: rows of separate texts, losses against written-out ones, what is refused, and models that learn."""

import json
import pathlib
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

import lmjax
from lmjax.data.fast_tokenizer import load_tokenizer
from lmjax.data.pipeline import example_stream
from lmjax.errors import DataError, FlagError
from lmjax.objectives.contrastive import in_batch_loss, score_order_loss
from lmjax.objectives.embedding import NEGATIVE, SCORE, SECOND, TEXT, Embedding, EmbeddingConfig
from lmjax.objectives.prompts import PromptFormat
from lmjax.objectives.rows import separate_texts
from lmjax.runs.build import build
from lmjax.runs.trained import load_model
from lmjax.training.metrics import read_lines

RECORDED = pathlib.Path(__file__).parents[1] / "interop" / "recorded"
NOUNS = ("fox", "cow", "owl", "eel", "oak", "fir", "elm", "ivy")
PAIRS = [{TEXT: f"{a}{b}", SECOND: f"{b}. {a}"} for a in NOUNS for b in NOUNS[:4]]
TRIPLETS = [pair | {NEGATIVE: f"no {pair[TEXT]}"} for pair in PAIRS]
SCORED = [{TEXT: a, SECOND: b, SCORE: 5 if a == b else (a[0] == b[0])} for a in NOUNS[:6] for b in NOUNS[:6]][:32]


@pytest.fixture
def embedding(tiny, tmp_path):
    """A function from records and fields to a config."""

    def make(records=PAIRS, held=None, architecture="encoder", **fields):
        paths = []
        for name, of in (("train", records), ("dev", records[:8] if held is None else held)):
            paths.append(tmp_path / f"{name}.jsonl")
            paths[-1].write_text("".join(json.dumps(record) + "\n" for record in of))
        values = {"data__train": paths[0], "data__eval": f"dev={paths[1]}", "model__architecture": architecture}
        return tiny("embedding", **values | fields)

    return make


@pytest.mark.parametrize("architecture", ["encoder", "decoder"])
def test_texts_of_a_record_are_segments_of_one_row(embedding, tmp_path, architecture):
    records = [{TEXT: "an owl", SECOND: "so", NEGATIVE: "elm"}, {TEXT: "", SECOND: "", NEGATIVE: ""}]
    run = build(embedding(records, architecture=architecture), tmp_path / "run")
    assert run.task.objectives[0].config.form == "triplets"
    assert len(run.train_examples) == 2, "empty texts are kept"
    t, row = run.tokenizer, run.train_examples(0, example_stream(0, 0, 0))
    before, after = (t.cls_id, t.sep_id) if architecture == "encoder" else (t.bos_id, t.eos_id)
    for number, text in enumerate(("an owl", "so", "elm"), start=1):
        ids = [before, *t.encode(text), after]
        assert row["tokens"][row["segment_ids"] == number].tolist() == ids
        assert row["positions"][row["segment_ids"] == number].tolist() == [*range(len(ids))]
    assert row["text_ids"].tolist() == [1, 2, 3]
    empty = run.train_examples(1, example_stream(0, 0, 1))
    assert empty["tokens"][:6].tolist() == [before, after] * 3


def test_the_longest_text_is_cut_and_every_text_has_a_token():
    row = separate_texts(PromptFormat(before=(7,)), [np.full(9, 1), np.full(2, 2), np.full(5, 3)], length=12, pad_id=0)
    assert row["tokens"].tolist() == [7, 1, 1, 1, 1, 7, 2, 2, 7, 3, 3, 3]
    row = separate_texts(PromptFormat(), [np.full(1, 1), np.full(0, 2)], length=4, pad_id=9)
    assert (row["tokens"].tolist(), row["segment_ids"].tolist()) == ([1, 9, 9, 9], [1, 2, 0, 0])


@pytest.mark.parametrize(
    ("records", "form"), [(PAIRS, "pairs"), (SCORED, "scored"), (TRIPLETS, "triplets"), ([{TEXT: "a b"}] * 9, "texts")]
)
def test_the_form_is_that_of_the_columns(embedding, tmp_path, records, form):
    run = build(embedding(records, records), tmp_path / "run")
    assert run.task.objectives[0].config.form == form
    row = run.train_examples(1, example_stream(0, 0, 1))
    assert row["scores"] == (records[1].get(SCORE, 0))
    if form == "texts":
        first, second = (row["tokens"][row["segment_ids"] == i].tolist() for i in (1, 2))
        assert first == second, "a text is compared with itself"


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ([*SCORED[:3], {TEXT: "a", SECOND: "b"}], "train.jsonl:4: has no 'score', and .*train.jsonl:1 has one"),
        ([*PAIRS[:1], *TRIPLETS[:1]], "train.jsonl:2: has a 'negative', and .*train.jsonl:1 has none"),
        ([*SCORED[:1], SCORED[1] | {SCORE: "much"}], "train.jsonl:2: 'score' is 'much', and must be a finite number"),
        ([SCORED[0] | {SCORE: float("nan")}], "train.jsonl:1: 'score' is 'nan', and must be a finite number"),
        ([{SECOND: "b"}], "train.jsonl:1: no 'text' among the fields text2; a record needs text"),
    ],
)
def test_records_that_cannot_be_are_refused_with_file_and_line(embedding, tmp_path, records, said):
    with pytest.raises(DataError, match=said):
        build(embedding(records), tmp_path / "run")


def test_a_form_that_the_data_lack_is_refused(embedding, tmp_path):
    with pytest.raises(DataError, match="--data: scored need text, text2 and score, and 'score' is missing"):
        build(embedding(task__embedding__form="scored"), tmp_path / "run")
    with pytest.raises(FlagError, match="symmetric=true: texts with scores are not searched"):
        build(embedding(SCORED, task__embedding__symmetric=True), tmp_path / "run")
    with pytest.raises(ValueError, match="give numbers from 1 to the width of the model"):
        EmbeddingConfig(widths=(8, 8))


def rows_of(count, texts, seed=0):
    return np.random.default_rng(seed).normal(size=(count, texts, 5)).astype(np.float32)


def cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_row_finds_its_second_text_among_all(symmetric):
    """InfoNCE, row by row; the fourth row is padding, whose vectors may be anything."""
    vectors, weights = rows_of(4, 3), np.array([1, 1, 1, 0], np.float32)
    vectors[3] = 0
    expected = 0.0
    for i in range(3):
        scores = np.array([cosine(vectors[i, 0], vectors[j, k]) / 0.1 for k in (1, 2) for j in range(3)])
        one = np.log(np.exp(scores).sum()) - scores[i]
        back = np.array([cosine(vectors[i, 1], vectors[j, 0]) / 0.1 for j in range(3)])
        expected += (one + np.log(np.exp(back).sum()) - back[i]) / 2 if symmetric else one
    found = in_batch_loss(jnp.array(vectors), jnp.array(weights), 0.1, symmetric=symmetric)
    np.testing.assert_allclose(found.loss, expected, rtol=1e-5)
    assert found.weight == 3


def test_cosines_are_brought_into_the_order_of_the_scores():
    """CoSENT, pair by pair."""
    vectors, scores, weights = rows_of(4, 2), np.array([3, 1, 1, 9], np.float32), np.array([1, 1, 1, 0], np.float32)
    cosines = [cosine(*row) for row in vectors]
    terms = [np.exp((cosines[low] - cosines[0]) / 0.1) for low in (1, 2)]
    found = score_order_loss(jnp.array(vectors), jnp.array(scores), jnp.array(weights), 0.1)
    np.testing.assert_allclose(found.loss, 3 * np.log(1 + sum(terms)), rtol=1e-5)
    assert found.weight == 3
    np.testing.assert_allclose(found.correct, 3 * np.mean([cosines[low] < cosines[0] for low in (1, 2)]), rtol=1e-6)


@pytest.mark.parametrize(
    ("records", "architecture"), [(PAIRS, "encoder"), (SCORED, "decoder")], ids=["pairs", "scored"]
)
def test_a_tiny_model_learns_32_examples_whatever_the_padding(
    embedding, tmp_path, records, architecture, evaluated_in_rows
):
    """To near-zero loss; then rows twice as long give the same loss."""
    fields = {"epochs": 80, "optimizer__learning_rate": 0.01, "optimizer__warmup_steps": 5, "evaluation__batches": 1,
              "model__dropout__residual": 0.0, "model__dropout__attention": 0.0, "batch_size": 32}  # fmt: skip
    config = embedding(records, records, architecture=architecture, **fields)
    workdir = lmjax.train(config, tmp_path / "run", progress=False)
    last = read_lines(workdir)[-1]
    assert last["eval/dev/embedding/loss"] < 0.1
    assert last["eval/dev/embedding/accuracy"] == 1
    again = evaluated_in_rows(workdir, config, 64)
    np.testing.assert_allclose(again["eval/dev/embedding/loss"], last["eval/dev/embedding/loss"], rtol=1e-4)
    assert ("eval/dev/embedding/spearman" in last) == (records is SCORED)
    if records is SCORED:
        metrics = lmjax.evaluate(load_model(workdir), records, task="own")
        # Records of one score have different cosines, so it cannot be 1.
        assert metrics["spearman"] > 0.7
        assert metrics["spearman"].low <= metrics["spearman"] <= metrics["spearman"].high


def test_texts_have_the_tokens_of_a_checkpoints_tokenizer_around_them(tmp_path):
    """Training from a checkpoint reads its template, which also has what stands between two texts."""
    made = Tokenizer(models.WordLevel({"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "[PAD]": 3, "a": 4}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    made.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(str(tmp_path))
    form = Embedding(EmbeddingConfig(form="pairs"), tokenizer, "encoder", 16, 16, 0).prompt_format()
    assert (form.before, form.after) == ((1,), (2,))
    assert form.around(tokenizer.encode("a")) == [1, 4, 2]


def test_a_checkpoint_with_its_own_tokenizer_is_trained_on(tmp_path):
    """A folder of Hugging Face: its template around every text, its widths, and rows without types."""
    folder = tmp_path / "bert"
    shutil.copytree(RECORDED / "bert_bare", folder)
    words = ("[UNK]", "[CLS]", "[SEP]", "[PAD]", *NOUNS)
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    made.save(str(folder / "tokenizer.json"))
    train, dev = (tmp_path / f"{name}.jsonl" for name in ("train", "dev"))
    for data in (train, dev):
        data.write_text(
            "".join(json.dumps({TEXT: f"{a} {b}", SECOND: f"{b} {a}"}) + "\n" for a in NOUNS for b in NOUNS)
        )
    fields = {"data.train": str(train), "data.eval": [{"name": "dev", "path": str(dev)}], "task.length": 12,
              "batch_size": 16, "steps": 2, "epochs": None, "evaluation.batches": 2}  # fmt: skip
    config = lmjax.resolve(objective=("embedding",), init_from=str(folder), fields=fields)
    workdir = lmjax.train(config, tmp_path / "run", progress=False)
    assert np.isfinite(read_lines(workdir)[-1]["eval/dev/embedding/loss"])
    run = build(config, tmp_path / "again")
    row = run.train_examples(0, example_stream(0, 0, 0))
    first = row["tokens"][row["segment_ids"] == 1].tolist()
    assert (first[0], first[-1], len(first)) == (1, 2, 4)
