"""The readers of records of tasks and of chat templates: sound files for them, and what must hold of what is read."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from hypothesis import strategies as st

from lmjax.data.chat import DEFAULT, ChatTemplate
from lmjax.data.columns import read_columns
from lmjax.data.documents import Document
from lmjax.data.files import Faults
from lmjax.data.messages import Message
from lmjax.data.preferences import messages_of
from lmjax.objectives import registry
from lmjax.objectives.registry import OBJECTIVES
from tests.faults.fuzzing import changed_bytes, changed_json
from tests.inference.scoring import tokenizer

MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes, \u00e9"}]
CONLL = "-DOCSTART- -X- O\n\nThe\tDT\tO\nking\tNN\tB-PER\n\n# a comment of more words\nOslo\tNN\tB-LOC\n.\t.\tO\n\n"
ANSWERED = {"text": ["queen"], "answer_start": [2]}
QUESTIONS = [
    {"id": "a", "question": "Who?", "context": "A queen goes.", "answers": ANSWERED},
    {"id": "b", "question": "Why?", "context": "\u00e9. A queen", "answers": [{"text": "A", "answer_start": 3}]},
    {"id": "c", "question": "When?", "context": "No.", "answers": {"text": [], "answer_start": []}},
]
CHOICES = [
    {"context": "The king", "question": "Who?", "choices": ["goes", "a queen", ""], "label": 1},
    {"article": "A queen", "question": "Why?", "options": ["so", "not"], "answer": "B"},
    {"question": "When?", "choices": {"text": ["now", "then"], "label": ["A", "B"]}, "answerKey": "A"},
    {"context": "c", "ending0": "x", "ending1": "y", "label": "y"},
]
CHAT_ML = (
    "{% for message in messages %}{{ '<s>' + message['role'] + '\\n' + message['content'] | trim + '</s>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<s>assistant\\n' }}{% endif %}"
)
# By the name of a file: the objective that reads it, and settings that make as many checks as there are.
READ_BY: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "tags": ("tagging", {"scheme": "bio", "repair": True}),
    "words": ("tagging", {"scheme": "bio"}),
    "squad": ("question_answering", {"no_answer": True}),
    "asked": ("question_answering", {"no_answer": True}),
    "choices": ("multiple_choice", {}),
    "swag": ("multiple_choice", {}),
    "chats": ("chat", {}),
    "labels": ("classification", {"kind": "multiple"}),
    "scores": ("regression", {}),
    "triples": ("dpo", {"chat": True}),
    "rated": ("kto", {}),
}


def records(folder: pathlib.Path) -> list[pathlib.Path]:
    """Writes files of records of every task on records, and returns them."""
    nested = [{"title": "t", "paragraphs": [{"context": q["context"], "qas": [q]} for q in QUESTIONS[:1]]}]
    lines = {
        "words.jsonl": [{"words": ["The", "king"], "tags": ["O", "B-PER"]}, {"words": [], "tags": []}],
        "asked.jsonl": QUESTIONS,
        "choices.jsonl": CHOICES,
        "chats.jsonl": [{"messages": MESSAGES}, {"messages": [{"role": "system", "content": ""}, *MESSAGES]}],
        "triples.jsonl": [
            {"prompt": MESSAGES[:1], "chosen": MESSAGES[1:], "rejected": "No"},
            {"prompt": "Hi", "chosen": "\u00e9", "rejected": " No"},
        ],
        "rated.jsonl": [
            {"prompt": "Hi", "completion": "Yes", "label": True},
            {"prompt": "a", "completion": "b", "label": 0},
        ],
        "labels.jsonl": [{"text": "a", "labels": ["x", "y"]}, {"text": "", "text2": "b", "labels": []}],
    }
    texts = {name: "".join(json.dumps(each) + "\n" for each in values) for name, values in lines.items()}
    texts |= {
        "tags.conll": CONLL * 2,
        "squad.json": json.dumps({"version": "v2.0", "data": nested}),
        "swag.csv": 'sent1,sent2,ending0,ending1,ending2,label\nA,He,"x, y",z,,1\nB,,"p ""q""",r,s,2\n',
        "choices.tsv": 'question\tchoices\tlabel\nWhy?\t["a", "b"]\ta\n',
        "scores.csv": "text,text2,score\na,b,1.5\n,c,-2\n",
    }
    for name, content in texts.items():
        (folder / name).write_text(content)
    return sorted(folder.iterdir())


def changed_records(name: str, content: bytes) -> st.SearchStrategy[bytes]:
    """Returns records some of whose values change, or bytes of any format."""
    if not name.startswith("squad") and not name.endswith(".jsonl"):
        return changed_bytes(content)
    if name.startswith("squad"):
        return st.one_of(changed_json(json.loads(content)), changed_bytes(content))
    values = [json.loads(line) for line in content.splitlines()]
    lines = lambda tree: b"\n".join(json.dumps(v).encode() for v in (tree if isinstance(tree, list) else [tree]))  # noqa: E731
    return st.one_of(changed_json(values, lines), changed_bytes(content))


def read_records(path: pathlib.Path) -> None:
    """Reads records as training, and as prediction does; what is read has the types of its columns."""
    name, fields = READ_BY[path.name.partition(".")[0]]
    objective = OBJECTIVES[name]
    config = registry.settings(objective)(**fields)
    columns, form = objective.known_columns(config), objective.record_format(config)
    for action in ("skip", "error"):
        for document in read_columns(str(path), Faults(action), columns, record_format=form, max_bytes=3000):
            _check(name, document)


def _check(name: str, document: Document) -> None:
    for text in (*document.segments, *(x for x in document.values if isinstance(x, str))):
        assert "\0" not in text
        assert text.encode() or not text
    if name == "tagging":
        assert len(document.segments) == len(document.values[0])
    if name == "question_answering":
        context, _, answers, starts = document.values
        assert all(context[at:].startswith(answer) and at >= 0 for answer, at in zip(answers, starts, strict=True))
    if name == "multiple_choice":
        _, choices, label = document.values
        assert 2 <= len(choices) <= 8
        assert 0 <= label < len(choices)
    if name == "dpo":
        assert len({*document.segments[1:]}) == 2
        assert messages_of(document.segments[0])[-1].role != "assistant"
    if name == "kto":
        assert document.values[0] in (0, 1)
    if name == "regression":
        assert np.isfinite(document.values[0])


def templates(folder: pathlib.Path) -> list[pathlib.Path]:
    """Writes chat templates, and returns them."""
    (folder / "default.jinja").write_text(DEFAULT)
    (folder / "chat_ml.jinja").write_text(CHAT_ML)
    return sorted(folder.iterdir())


def read_template(path: pathlib.Path) -> None:
    """Renders a conversation; what the assistant writes is a part of it."""
    config = registry.settings(OBJECTIVES["chat"])(template=str(path))
    template = OBJECTIVES["chat"].encoder(config, tokenizer()).template
    conversation = tuple(Message(**each) for each in MESSAGES)
    (found,) = ChatTemplate.of(template.tokenizer, template.source).encode([conversation], ["f:1"])
    assert ((found.ids >= 0) & (found.ids < tokenizer().vocab_size)).all()
    assert (found.spans[:, 0] < found.spans[:, 1]).all()
    assert found.spans.size == 0 or found.spans.max() <= len(found.ids)
