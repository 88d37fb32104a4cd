"""Which checks of an audit a model can be given, and why not the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lmjax.audit.findings import Section
from lmjax.audit.raters import is_classifier
from lmjax.errors import FlagError
from lmjax.inference.loaded import LoadedModel

# Checks by what the model must do for them.
_OF_LIKELIHOODS = ("crows_pairs", "winobias", "stereoset", "bbq", "canaries")


def unfit(loaded: LoadedModel, check: str) -> str:
    """Returns why a check does not apply to a model; empty: it does.

    Args:
        loaded: the model.
        check: the name of a check, such as "crows_pairs".
    """
    family = loaded.config.family
    try:
        if check in _OF_LIKELIHOODS or (check == "evaluation" and not loaded.has_task):
            loaded.check_vocabulary()
        if check == "templates" and not is_classifier(loaded):
            loaded.check_vocabulary()
    except FlagError as e:
        return str(e)
    if check == "weat" and family.paired:
        return f"this {family.label} has no vectors of texts"
    if check == "prompts" and not (family.causal or loaded.unmasks):
        return f"this {family.label} writes no text"
    return ""


def table(checks: Sequence[str], given: Sequence[str], reasons: Mapping[str, str]) -> Section:
    """Returns what was checked, what was not, and what does not apply.

    Args:
        checks: all there are.
        given: those that were asked for.
        reasons: why a check does not apply, by its name; those that do are absent.
    """
    rows = [("check", "state")]
    for check in checks:
        done = "done" if check in given else "not asked for"
        rows.append((check, f"does not apply: {reasons[check]}" if check in reasons else done))
    note = "What was not measured is not known to be harmless. A check that does not apply says nothing of this model."
    return Section("What was checked", note, [], (), rows)
