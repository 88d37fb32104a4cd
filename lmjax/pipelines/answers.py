"""Answers to questions, from a context."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmjax.errors import FlagError
from lmjax.objectives.question_answering import CONTEXT, QUESTION
from lmjax.objectives.question_answering import QuestionAnswering as Task
from lmjax.pipelines.base import Pipeline, check_texts


class QuestionAnswering(Pipeline):
    """The span of the context that answers a question."""

    def check(self) -> None:
        """Raises FlagError unless the model was trained to answer."""
        self.need_task(Task.name)

    def __call__(self, inputs: Any = None, *, question: str | None = None, context: str | None = None) -> Any:
        """Returns {"score", "start", "end", "answer"}, or a list of them.

        Args:
            inputs: {"question", "context"} or a list of them.
            question: with `context`, in place of `inputs`.
            context: the text with the answer.
        """
        return super().__call__({"question": question, "context": context} if inputs is None else inputs)

    def results(self, inputs: list[Mapping[str, str]]) -> list[dict[str, Any]]:
        """Returns for each question its answer, from `start` to `end` - 1 in the context; empty: there is none."""
        for i, given in enumerate(inputs):
            if not isinstance(given, Mapping) or not {"question", "context"} <= set(given):
                raise FlagError(f"inputs[{i}]: {str(given)[:80]!r}; give {{'question', 'context'}}")
            check_texts([given["question"], given["context"]])
        found = self.predicted([{QUESTION: given["question"], CONTEXT: given["context"]} for given in inputs])
        return [{name: each[name] for name in ("score", "start", "end", "answer")} for each in found]
