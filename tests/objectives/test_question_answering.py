"""Question answering: rows, windows, spans of characters and tokens, and a model that learns 32 questions."""

import json

import numpy as np
import pytest

import lmjax
from lmjax.data.pipeline import example_stream
from lmjax.errors import DataError
from lmjax.evaluation.measures import MEASURES
from lmjax.evaluation.predicted import as_documents, encoded
from lmjax.inference.predict import predict
from lmjax.objectives.answer_spans import best_spans, spans_of
from lmjax.objectives.question_answering import CONTEXT_IDS, windows
from lmjax.runs.build import build
from lmjax.runs.trained import load_model
from lmjax.training.metrics import read_lines


def asked(context, question, *answers):
    starts = [context.index(answer) for answer in answers]
    return {"context": context, "question": question, "answers": {"text": list(answers), "answer_start": starts}}


AGES = (("12", "47"), ("5", "66"), ("88", "3"), ("9", "20"), ("31", "7"), ("6", "54"), ("70", "1"), ("2", "99"))
LETTERS = str.maketrans("0123456789", "klmnopqrst")
# The tokenizer knows no digits, so all numbers are the same to the model. "a" asks for the first, "z" for the second.
CONTEXTS = [f"{n} or {m}" for pair in AGES for n, m in (pair, pair[::-1])]
QUESTIONS = [asked(c, "az"[i], c.split()[2 * i]) for c in CONTEXTS for i in range(2)]


@pytest.fixture
def answer(tiny, tmp_path, tokenizer):
    """A function from records, those to evaluate on, and fields to a config."""
    tokenizer.save(str(tmp_path / "letters.model"))

    def make(records=QUESTIONS, held=QUESTIONS[:4], **fields):
        paths = [tmp_path / f"{name}.jsonl" for name in ("train", "dev")]
        for path, each in zip(paths, (records, held), strict=True):
            path.write_text("".join(json.dumps(record) + "\n" for record in each))
        values = {"data__train": paths[0], "data__eval": f"dev={paths[1]}", "model__architecture": "encoder",
                  "tokenizer__path": tmp_path / "letters.model"}  # fmt: skip
        return tiny("question_answering", **values | fields)

    return make


def rows(run):
    return [run.train_examples(i, example_stream(0, 0, i)) for i in range(len(run.train_examples))]


def test_a_row_holds_question_and_context_and_where_the_answer_is(answer, tmp_path):
    records = [asked("ab oslo cd", "where", "oslo", "cd"), {**asked("", "why"), "is_impossible": True}]
    run = build(answer(records, records, task__question_answering__no_answer=True), tmp_path / "run")
    t, (row, empty) = run.tokenizer, rows(run)
    q, c = t.encode("where"), t.encode("ab oslo cd")
    ids = [t.cls_id, *q, t.sep_id, *c, t.sep_id]
    assert row["tokens"][row["segment_ids"] > 0].tolist() == ids
    assert row["type_ids"][: len(ids)].tolist() == [0] * (len(q) + 2) + [1] * (len(c) + 1)
    assert row[CONTEXT_IDS][: len(ids)].tolist() == [0] * (len(q) + 2) + [*range(1, len(c) + 1)] + [0]
    assert t.decode(row["tokens"][row["first"] : row["last"] + 1]) == "oslo", "the first answer is learned"
    assert empty["tokens"][:5].tolist() == [t.cls_id, *t.encode("why"), t.sep_id]
    assert (empty["first"], empty["last"], empty["span_weights"]) == (0, 0, 1)


def test_a_tokenizer_of_its_own_knows_the_contexts(answer, tmp_path):
    run = build(answer(tokenizer__path=""), tmp_path / "run")
    text = QUESTIONS[0]["context"]
    assert run.tokenizer.decode(run.tokenizer.encode(text)) == text


def test_a_long_context_has_several_rows_and_a_long_question_is_cut(answer, tmp_path):
    """An answer is learned in each row that has all of it; in the others the answer is [CLS]."""
    context, wanted = "".join(f"{i:03}" for i in range(20)).translate(LETTERS), "006007".translate(LETTERS)
    records = [asked(context, "x" * 40, wanted), asked(context, "y", wanted)]
    fields = {"task__question_answering__overlap": 8, "task__question_answering__max_question": 9}
    run = build(answer(records, records, **fields), tmp_path / "run")
    found, (x,) = rows(run), run.tokenizer.encode("x")
    cut = [row for row in found if (row["tokens"] == x).any()]
    assert {int((row["tokens"] == x).sum()) for row in cut} == {9}
    assert [row[CONTEXT_IDS].max() for row in cut] == [20, 32, 44, 56, 60]
    for row in found:
        text = run.tokenizer.decode(row["tokens"][row["first"] : row["last"] + 1])
        ids = row[CONTEXT_IDS][row[CONTEXT_IDS] > 0]
        inside = ids.min() <= 19 and ids.max() >= 24
        assert text == (wanted if inside else "")
        assert inside == (row["first"] > 0)
    assert sum(row["first"] > 0 for row in cut) == 1


def test_windows_cover_all_tokens_and_share_the_overlap():
    assert windows(10, 10, 4) == [(0, 10)]
    assert windows(0, 5, 2) == [(0, 0)]
    assert windows(11, 10, 4) == [(0, 10), (6, 11)]
    assert windows(16, 10, 4) == [(0, 10), (6, 16)], "the last row must not lie within the row before it"
    assert windows(30, 10, 4) == [(0, 10), (6, 16), (12, 22), (18, 28), (24, 30)]
    assert windows(30, 10, 99) == windows(30, 10, 5)


def test_characters_and_tokens():
    """Tokens with the space before them, and several tokens of one character, as bytes are."""
    starts = np.array([0, 3, 8, 8, 8, 9])
    context = "the dogs\u20ac."
    assert spans_of(starts, 0, 3) == (0, 0)
    assert spans_of(starts, 4, 8) == (1, 1)
    assert spans_of(starts, 8, 9) == (2, 4)
    assert spans_of(starts, 4, 10) == (1, 5)
    assert spans_of(starts, 5, 6) == (1, 1), "a part of a token"
    numbers, low = np.array([0, 1, 2, 3, 4, 5, 6, 0]), np.full(8, -9.0)

    def best(start, end, longest=9, count=3):
        one, other = low.copy(), low.copy()
        one[start], other[end] = 1, 1
        return best_spans([(numbers, one, other)], context, starts, longest, count)

    assert best(2, 2)[0] == ("dogs", 2.0, 4, 8)
    assert best(2, 4)[0].text == "dogs\u20ac"
    assert best(1, 6)[0] == (context, 2.0, 0, 10)
    assert best(1, 6, longest=5)[0].score < 2
    assert best(4, 2)[0].score < 2, "the end is before the start"
    assert best(7, 7)[0].score < 2, "not of the context"
    assert len({each.text for each in best(2, 2)}) == 3


def test_the_best_answer_of_all_rows_wins():
    starts = np.arange(4)
    one = (np.array([1, 2, 3]), np.array([0.0, 2.0, 0.0]), np.array([0.0, 1.0, 0.0]))
    other = (np.array([2, 3, 4]), np.array([3.0, 0.0, 0.0]), np.array([2.0, 0.0, 0.0]))
    for order in ((one, other), (other, one)):
        assert best_spans(order, "abcd", starts, 1, 1) == [("b", 5.0, 1, 2)]


def test_a_misplaced_answer_is_refused_with_file_and_line(answer, tmp_path):
    wrong = json.loads(json.dumps(QUESTIONS[1]))
    wrong["answers"]["answer_start"][0] += 1
    with pytest.raises(DataError, match=r"train.jsonl:2: the answer '47' does not stand at character 7"):
        build(answer([QUESTIONS[0], wrong]), tmp_path / "run")
    with pytest.raises(DataError, match=r"train.jsonl:1: no answers; remove the record, or set no_answer=true"):
        build(answer([asked("a", "b")]), tmp_path / "run")


def test_a_tiny_model_learns_32_questions_whatever_the_padding_and_the_batch(answer, tmp_path, evaluated_in_rows):
    """To near-zero loss; rows twice as long give the same loss, and batches of any size the same answers."""
    fields = {"epochs": 60, "optimizer__learning_rate": 0.01, "optimizer__warmup_steps": 10, "evaluation__batches": 8,
              "model__dropout__residual": 0.0, "model__dropout__attention": 0.0, "evaluation__every": 1000,
              "task__question_answering__no_answer": True, "model__embedding__types": 2}  # fmt: skip
    config = answer(held=QUESTIONS, **fields)
    workdir = lmjax.train(config, tmp_path / "run", progress=False)
    last = read_lines(workdir)[-1]
    assert last["eval/dev/question_answering/loss"] < 0.05
    assert last["eval/dev/question_answering/exact_match"] == 1
    again = evaluated_in_rows(workdir, config, 64)
    np.testing.assert_allclose(
        again["eval/dev/question_answering/loss"], last["eval/dev/question_answering/loss"], rtol=1e-4
    )
    loaded = load_model(workdir)
    long = asked(" or ".join(CONTEXTS), "a", "12")
    given = [*QUESTIONS, {**asked("", "a"), "answers": []}, long]
    records = encoded(loaded, as_documents(given, loaded.task))
    truths = [loaded.task.truth(record) for record in records]
    found = [predict(loaded, records, size) for size in (1, 7, 64)]
    one, *others = (MEASURES["question_answering"].metrics(loaded.task, truths, each).measured(20) for each in found)
    assert others == [one, one]
    for record, each in zip(given, found[0], strict=True):
        assert record["context"][each["start"] : each["end"]] == each["answer"]
        assert 0 < each["score"] <= 1
        assert each["answer"] == "" or each["answer"] == each["candidates"][0]["answer"]
    assert [each["answer"] for each in found[0][:32]] == [record["answers"]["text"][0] for record in QUESTIONS]
    assert found[0][32]["answer"] == ""
