"""Questions about texts: the files of SQuAD and flat records hold the same, and answers stand where they begin."""

import json

import pytest

from lmjax.data.columns import read_columns
from lmjax.data.files import Faults
from lmjax.data.questions import Questions
from lmjax.errors import DataError
from lmjax.objectives.question_answering import QuestionAnswering

CONTEXT = "Ada Löwe lived in Rome."
ASKED = [
    {"id": "a", "question": "Who?",
     "answers": [{"text": "Ada Löwe", "answer_start": 0}, {"text": "Ada", "answer_start": 0}]},
    {"id": "b", "question": "Where?", "answers": [{"text": "Rome", "answer_start": 18}]},
    {"id": "c", "question": "When?", "answers": [], "is_impossible": True, "plausible_answers": [{"text": "x"}]},
]  # fmt: skip
ROWS = [
    ("Who?", (CONTEXT, "a", ("Ada Löwe", "Ada"), (0, 0))),
    ("Where?", (CONTEXT, "b", ("Rome",), (18,))),
    ("When?", (CONTEXT, "c", (), ())),
]


def squad(asked, context=CONTEXT):
    return {"version": "v2.0", "data": [{"title": "t", "paragraphs": [{"context": context, "qas": asked}]}]}


def read(path, faults=None, no_answer=True, columns=QuestionAnswering.columns, **fields):
    form = Questions(no_answer, **fields)
    found = read_columns(path, faults or Faults("error"), columns, record_format=form)
    return [(*d.segments, d.values) for d in found]


def flat(asked, context=CONTEXT):
    return "".join(json.dumps({"context": context, **each}) + "\n" for each in asked)


def test_all_formats_hold_the_same(write):
    lists = [{**each, "answers": {"text": [x["text"] for x in each["answers"]],
                                  "answer_start": [x["answer_start"] for x in each["answers"]]}}
             for each in ASKED]  # fmt: skip
    paths = [write("a.json", json.dumps(squad(ASKED))), write("indented.json.gz", json.dumps(squad(ASKED), indent=1)),
             write("flat.jsonl", flat(ASKED)), write("lists.jsonl", flat(lists)), write("lines.json", flat(ASKED)),
             write("array.json", json.dumps([{"context": CONTEXT, **each} for each in ASKED]))]  # fmt: skip
    for path in paths:
        assert read(path) == ROWS, path
    single = {"question": "Where?", "context": CONTEXT, "answers": {"text": "Rome", "answer_start": 18}}
    assert read(write("single.jsonl", json.dumps(single))) == [("Where?", (CONTEXT, "", ("Rome",), (18,)))]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"answers": [{"text": "Rome", "answer_start": 17}]},
         r"question 'b': the answer 'Rome' does not stand at character 17 .* where ' Rom' stands \(it begins at 18\)"),
        ({"answers": [{"text": "Oslo", "answer_start": -1}]}, r"'' stands \(it does not occur in the context\)"),
        ({"answers": [{"text": " ", "answer_start": 3}]}, "question 'b': an answer is empty; leave it out"),
        ({"answers": []}, "question 'b': no answers; remove the record, or set no_answer=true"),
        ({"answers": "Rome"}, "'answers' is 'Rome'; answers are"),
        ({"answers": {"text": ["Rome"], "answer_start": 18}}, "'answers' has not one 'answer_start' for each 'text'"),
        ({"answers": [{"text": 5, "answer_start": 18}]}, "a 'text' is no string, or an"),
        ({"answers": [{"text": "Rome", "answer_start": "x"}]}, "an 'answer_start' no whole number"),
        ({"question": " "}, "question 'b': 'question' is empty"),
        ({"question": None}, "no 'question' among the fields"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_its_place(write, change, said):
    asked = [ASKED[0], {k: x for k, x in (ASKED[1] | change).items() if x is not None}]
    for path, place in ((write("a.json", json.dumps(squad(asked))), r"a.json: data\[0\].paragraphs\[0\].qas\[1\]"),
                        (write("a.jsonl", flat(asked)), "a.jsonl:2")):  # fmt: skip
        with pytest.raises(DataError, match=f"(?s){place}.*({said})"):
            read(path, no_answer=False)
        faults = Faults("skip")
        assert read(path, faults, no_answer=False) == ROWS[:1]
        assert faults.first


def test_a_damaged_file_of_squad_is_told(write):
    for content, said in (
        (json.dumps(squad(ASKED))[:-9], "a.json:1: not JSON"),
        ('{"data": [{"title": "t"}]}', r"a.json: data\[0\]: has no list 'paragraphs'"),
        ('{"data": [{"paragraphs": [{"qas": [7]}]}]}', r"qas\[0\] is '7', not an object"),
        ('{"data": [{"paragraphs": [{"qas": [{"question": "a"}]}]}]}', r"qas\[0\]: no 'context' among the fields"),
    ):
        with pytest.raises(DataError, match=said):
            read(write("a.json", content))


def test_without_gold_answers_are_not_needed(write):
    asked = [{"question": "Where?"}, {"question": ""}]
    columns = tuple(
        c._replace(optional=True) if c.name in QuestionAnswering.gold else c for c in QuestionAnswering.columns
    )
    found = read(write("a.jsonl", flat(asked)), columns=columns, no_answer=False, gold=False)
    assert found == [("Where?", (CONTEXT, "", (), ())), ("", (CONTEXT, "", (), ()))]


def test_questions_about_one_context_are_in_one_group(write):
    documents = list(
        read_columns(write("a.jsonl", flat(ASKED)), Faults("error"), QuestionAnswering.columns,
                     record_format=Questions(no_answer=True))
    )  # fmt: skip
    assert len({document.group for document in documents}) == 1
