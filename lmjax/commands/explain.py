"""`lmjax explain`: why a model says what it says, as one HTML page and a short text."""

from __future__ import annotations

import dataclasses
import shlex
import sys

from absl import flags

from lmjax.analysis.attribution import AttributionConfig
from lmjax.analysis.case import Case
from lmjax.analysis.page import Part, page
from lmjax.analysis.studies import STUDIES
from lmjax.analysis.subject import Subject, answer, decision, likeness, masked_token, next_token, sentence
from lmjax.analysis.views import view
from lmjax.commands.explain_texts import case_of_texts, read_given, study_of
from lmjax.commands.models import named, opened, prepare
from lmjax.commands.prompts import new_file, unspeakable
from lmjax.errors import FlagError
from lmjax.inference.generate.fill_mask import ids_of, mask_text
from lmjax.inference.loaded import LoadedModel
from lmjax.inference.row_lengths import check_length
from lmjax.objectives.classification import Classification
from lmjax.objectives.question_answering import QuestionAnswering
from lmjax.objectives.regression import Regression
from lmjax.phases import phase

_TEXTS = ("text", "text2", "question", "compare", "target", "token", "label", "against", "corrupted")


def main(values: flags.FlagValues) -> list[Part]:
    """Returns the parts of the page."""
    place = values[named(values, "explain")].value
    for name in _TEXTS:
        given = values[name].value
        if given is not None and (wrong := unspeakable(given) or ("" if given.strip() else "an empty text; write one")):
            raise FlagError(f"--{name}: {wrong}")
    methods = tuple(dict.fromkeys(values["method"].value or ()))
    alone = bool(methods) and all(method in STUDIES for method in methods)
    if not values["text"].value and not alone:
        raise FlagError(
            f"lmjax explain needs --text=TEXT, what the model reads; only --method={','.join(STUDIES)} needs none"
        )
    path = values["output"].value
    output = None if path == "-" else new_file(path)
    given = read_given(values, methods)
    prepare()
    loaded = opened(values, place)
    study = study_of(values, given, loaded)
    case = None
    if not alone:
        _check_lengths(loaded, values)
        case = dataclasses.replace(_case(loaded, values), **case_of_texts(values, given, loaded, methods))
    parts = []
    for method in methods or _usual(case):
        with phase(f"explaining by {method}"):
            parts.append(STUDIES[method](study) if method in STUDIES else view(method, case))
    facts = _facts(loaded, case, place)
    print("\n".join(f"{name}: {value}" for name, value in facts))
    for part in parts:
        print("\n".join([f"\n{part.title}", *(f"  {line}" for line in part.summary)]))
    if output is not None:
        command = shlex.join(["lmjax", "explain", *(a for a in sys.argv[2:] if sys.argv[1:2] == ["explain"])])
        title = f"Inside {place}" if case is None else _title(case, values["text"].value)
        output.write_text(page(title, facts, parts, command), encoding="utf-8")
        print(f"\nwritten to {output}")
    return parts


def _check_lengths(loaded: LoadedModel, values: flags.FlagValues) -> None:
    """Raises FlagError, with the flag, for a text that does not fit into a row; a task cuts its texts itself."""
    family = loaded.config.family
    for name in ("text", "compare", "corrupted", "target"):
        given = values[name].value
        if given is None or (loaded.has_task and name != "target"):
            continue
        ids = loaded.ids(given, f"--{name}", around=name != "target")
        decoder = name == "target" or family.continues
        check_length(loaded.config, len(ids), 0, f"--{name}", decoder=decoder)


def _case(loaded: LoadedModel, values: flags.FlagValues) -> Case:
    """Returns what the flags name."""
    config = AttributionConfig(**{name: values[name].value for name in ("baseline", "samples", "seed")})
    text, corrupted = values["text"].value, values["corrupted"].value
    subjects = _subjects(loaded, values, text)
    other = None
    if corrupted is not None:
        for name in ("target", "max_new_tokens"):
            if values[name].value is not None:
                raise FlagError(f"--corrupted and --{name}: patching explains one token; leave out --{name}")
        given = _subjects(loaded, values, corrupted)
        if len(subjects) != 1 or len(given) != 1:
            raise FlagError("--corrupted: patching explains one token or label; name it, as --token=TEXT")
        other = given[0]
        if subjects[0].against == "" and not values["against"].value:
            # The answer to the corrupted text is what the clean one is told apart from.
            subjects = [_against(subjects[0], other)]
    fields = (
        subjects[0].fields if subjects else {k: x[:1] for k, x in loaded.rows([ids_of(loaded, text, "--text")]).items()}
    )
    return Case(loaded, fields, subjects, config, other, values["judge"].value)


def _subjects(loaded: LoadedModel, values: flags.FlagValues, text: str) -> list[Subject]:
    """Returns what is explained of a text; empty if the model predicts nothing for it."""
    given = {name: values[name].value for name in _TEXTS}
    token, against, family = given["token"], given["against"], loaded.config.family
    if given["compare"] is not None:
        return [likeness(loaded, text, given["compare"])]
    if loaded.has_task and isinstance(loaded.task, QuestionAnswering):
        if given["question"] is None:
            raise FlagError("this model answers questions: give --question=TEXT, with --text as the context")
        return [answer(loaded, {"question": given["question"], "context": text})]
    if given["question"] is not None:
        raise FlagError("--question: this model answers no questions; leave it out")
    if loaded.has_task and isinstance(loaded.task, Classification | Regression):
        record = {"text": text} | ({} if given["text2"] is None else {"text2": given["text2"]})
        return [decision(loaded, record, given["label"], against)]
    if given["label"] is not None or given["text2"] is not None:
        raise FlagError("--label and --text2 are for a classifier, and this model is none; leave them out")
    if not loaded.model.has_vocabulary:
        return []
    if not family.causal:
        if mask_text(loaded.tokenizer) not in text:
            raise FlagError(
                f"--text={text[:60]!r}: an encoder predicts masked tokens; write {mask_text(loaded.tokenizer)} in the "
                "place of one, or give --compare=TEXT"
            )
        return [masked_token(loaded, text, token, against)]
    count = values["max_new_tokens"].value
    if token is not None or against is not None or (not family.paired and given["target"] is None and count is None):
        return [next_token(loaded, text, token, against)]
    return sentence(loaded, text, given["target"], count or 16)


def _against(clean: Subject, corrupted: Subject) -> Subject:
    """Returns the clean subject as the difference from the answer to the corrupted text, if that is another one."""
    if clean.ask.kind not in ("logits", "classifier") or clean.ask.index == corrupted.ask.index:
        return clean
    return dataclasses.replace(clean, ask=clean.ask.replace(against=corrupted.ask.index), against=corrupted.name)


def _usual(case: Case) -> list[str]:
    """Returns the methods for a model when none is named."""
    if case.corrupted is not None:
        return ["patching"]
    if not case.subjects:
        return ["attention", "rollout"]
    lens = len(case.subjects) == 1 and case.subject.ask.kind == "logits"
    return ["integrated", *(["lens"] if lens else []), "attention"]


def _facts(loaded: LoadedModel, case: Case | None, place: str) -> list[tuple[str, str]]:
    """Returns what stands at the top of the page, and first in the terminal; without a text, no more than the model."""
    found = [("model", place), ("family", loaded.config.family.label)]
    if case is None:
        return found
    if len(case.subjects) > 1:
        return [*found, ("explained", _said(case))]
    for subject in case.subjects:
        found.append(("explained", subject.name + (f" against {subject.against}" if subject.against else "")))
        if subject.probability is not None:
            found.append(("probability", f"{subject.probability:.3f}"))
        found.append(("number", f"{subject.value:+.3f}"))
    return found


def _said(case: Case) -> str:
    """Returns the token, label or text that is explained, as a reader sees it."""
    return "".join(subject.name for subject in case.subjects).replace("▁", " ").strip()


def _title(case: Case, text: str) -> str:
    short = text if len(text) <= 80 else f"{text[:77]}..."
    return f"{_said(case) if case.subjects else 'Inside'}: {short}"
