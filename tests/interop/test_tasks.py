"""What a model was fine-tuned on survives the export: in the fields of transformers, and in lmjax's own field."""

import json
import pathlib

import pytest

from lmjax.errors import DataError
from lmjax.interop.tasks import read_length, read_tasks, shown_labels, task_fields
from lmjax.objectives import registry
from lmjax.objectives.registry import OBJECTIVES

PATH = pathlib.Path("config.json")
LABELS = ("low", "middle", "high")
# By objective: settings that differ from the defaults, and what else the head of a checkpoint says.
CASES = [
    ("classification", {"labels": LABELS, "kind": "ordered", "falloff": 0.5, "class_weights": (1.0, 2.0, 3.0)}),
    ("classification", {"labels": LABELS, "kind": "multiple", "threshold": 0.3}),
    ("tagging", {"labels": ("B-X", "I-X", "O"), "scheme": "bio", "repair": True, "subwords": "all", "overlap": 3}),
    ("question_answering", {"no_answer": True, "threshold": 1.5, "max_answer": 7, "candidates": 2}),
    ("multiple_choice", {"most_choices": 3}),
    ("embedding", {"form": "pairs", "temperature": 0.1, "widths": (8, 4)}),
    # What writes text by replacing masks, and does not only fill single ones.
    ("masked_diffusion", {}),
    ("text_to_text", {"labels": LABELS, "prefix": "rate: ", "between": " | "}),
]


def written(name, fields, length=77):
    made = registry.settings(OBJECTIVES[name])(**fields)
    return made, json.loads(json.dumps(task_fields({name: made}, length)))


@pytest.mark.parametrize(("name", "fields"), CASES, ids=lambda x: x if isinstance(x, str) else "")
def test_settings_come_back(name, fields):
    made, values = written(name, fields)
    assert read_tasks(PATH, values, OBJECTIVES[name].heads or ("vocabulary",)) == {name: made}
    assert read_length(PATH, values) == 77


def test_regression_comes_back_in_the_units_of_the_export():
    """Means and deviations are in the parameters of the last layer."""
    made, values = written("regression", {"targets": ("a", "b"), "means": (3.0, 4.0), "deviations": (2.0, 2.0)})
    (back,) = read_tasks(PATH, values, ("classifier",)).values()
    assert back == made.with_fields({"means": (0.0, 0.0), "deviations": (1.0, 1.0)})


def test_labels_are_those_that_other_programs_read():
    """A label that was renamed by hand keeps its new name; a folder with another head has another task."""
    _, values = written("classification", {"labels": LABELS, "kind": "ordered"})
    values["id2label"]["0"] = "bad"
    (back,) = read_tasks(PATH, values, ("classifier",)).values()
    assert (back.labels, back.kind) == (("bad", "middle", "high"), "ordered")
    assert list(read_tasks(PATH, values, ("span",))) == ["question_answering"]
    assert read_tasks(PATH, values, ("masked_lm",)) == {}
    _, values = written("regression", {"targets": ("a", "b"), "means": (0.0, 0.0), "deviations": (1.0, 1.0)})
    values["problem_type"] = "single_label_classification"
    assert list(read_tasks(PATH, values, ("classifier",))) == ["classification"]


def test_a_model_that_was_not_fine_tuned_has_no_such_field():
    assert task_fields({"mlm": registry.settings(OBJECTIVES["mlm"])()}, 128) == {}
    assert read_length(PATH, {}) is None


@pytest.mark.parametrize(
    ("own", "said"),
    [
        (7, "lmjax: '7' is not an object"),
        ({"tasks": [1]}, r"lmjax: tasks='\[1\]' is not an object"),
        ({"tasks": {"question_answering": 3}}, "lmjax: tasks.question_answering='3' is not an object"),
        (
            {"tasks": {"question_answering": {"max_answer": 0}}},
            "lmjax: tasks.question_answering.max_answer: Input should",
        ),
        ({"tasks": {"question_answering": {"future": 1}}}, "lmjax: tasks.question_answering.future: Extra"),
    ],
)
def test_a_damaged_field_is_named(own, said):
    with pytest.raises(DataError, match=rf"config.json: {said}.*; correct it, or remove the field"):
        read_tasks(PATH, {"lmjax": own}, ("span",))
    for length in (0, "7", True, [1]):
        with pytest.raises(DataError, match=r"lmjax: length=.* is not a number of tokens"):
            read_length(PATH, {"lmjax": {"length": length}})


def test_labels_without_names_are_numbers_and_are_shown_as_transformers_names_them():
    for values in ({}, {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}):
        (settings,) = read_tasks(PATH, values, ("classifier",)).values()
        assert settings.labels == ("0", "1"), "data name them so"
        assert shown_labels(PATH, values, ("classifier",)) == {"0": "LABEL_0", "1": "LABEL_1"}
        assert shown_labels(PATH, values, ("masked_lm",)) == {}
    assert shown_labels(PATH, {"id2label": {"0": "0", "1": "1"}}, ("classifier",)) == {}
