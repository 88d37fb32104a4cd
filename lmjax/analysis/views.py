"""The parts of a page that explains what a model does with a text: one function for each method.

To add one: a function from a `Case` to a `Part`, and a line in `VIEWS`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from lmjax.analysis.attention import all_attention
from lmjax.analysis.attribution import Attribution, attribute
from lmjax.analysis.case import Case, unit_of
from lmjax.analysis.causal import ablation, patching
from lmjax.analysis.faithfulness import chance, judge, randomised
from lmjax.analysis.flow import flow, rollout
from lmjax.analysis.lens import direct, logit_lens
from lmjax.analysis.page import Part, bars, coloured_text, curves, grid, maps, table
from lmjax.analysis.subject import Subject
from lmjax.analysis.views_of_texts import steering_view, tuned_view
from lmjax.errors import FlagError

# The most tokens that a summary for a terminal names.
_BEST = 5


def attributions(method: str, case: Case) -> Part:
    """Returns the part of an attribution method: a coloured text, or a grid with a row for each generated token."""
    subject = case.subject
    found = [attribute(each, method, case.config) for each in case.subjects]
    gaps = [each.gap for each in found if each.gap is not None]
    note = (
        f"Blue tokens raise the number, orange ones lower it; {sum(each.passes for each in found)} rows were computed."
    )
    if gaps:
        note += f" Completeness: the scores sum to the change of the number up to {max(gaps):.1e}."
    if len(case.subjects) > 1:
        last = case.subjects[-1].tokens
        values = np.full((len(found), len(last)), np.nan)
        for row, each in zip(values, found, strict=True):
            row[: len(each.scores)] = each.scores
        body = grid(values, [each.name for each in case.subjects], [token.text for token in last])
        summary = [_best(each, one) for each, one in zip(case.subjects, found, strict=True)]
        return Part(f"{method} of each token", note + " A row is a generated token.", body, tuple(summary))
    body, scores = "", found[0].scores
    for side in case.loaded.config.family.sides:
        mine = [i for i, token in enumerate(subject.tokens) if token.side == side.prefix]
        tokens = [subject.tokens[i] for i in mine]
        body += coloured_text([t.text for t in tokens], scores[mine], [t.kept for t in tokens])
    if case.judged:
        body += _judged(case, method, found[0])
    return Part(method, note, body, (_best(subject, found[0]),))


def _best(subject: Subject, found: Attribution) -> str:
    """Returns a line with the tokens that count most."""
    order = np.argsort(-np.abs(found.scores), kind="stable")[:_BEST]
    tokens = ", ".join(f"{subject.tokens[i].text} {found.scores[i]:+.2f}" for i in order)
    return f"{subject.name}: {tokens}"


def _judged(case: Case, method: str, found: Attribution) -> str:
    """Returns a table that compares an attribution with random orders, and with shuffled weights."""
    subject, own = case.subject, judge(case.subject, found.scores, case.config)
    random = chance(subject, case.config)
    rows = [("judged", method, "random orders (95 %)")]
    for name, better in (("comprehensiveness", "higher is better"), ("sufficiency", "lower is better")):
        other = random[name]
        mine = f"{getattr(own, name):.3f}"
        rows.append((f"{name} ({better})", mine, f"{other.mean:.3f} ({other.low:.3f} to {other.high:.3f})"))
    rows.append(("mean without the best 0, 1, 2 ... tokens (lower is better)", f"{own.deletion.mean():.3f}", ""))
    rows.append(("mean with the best 0, 1, 2 ... tokens alone (higher is better)", f"{own.insertion.mean():.3f}", ""))
    for name, value in randomised(subject, method, case.config):
        rows.append((f"rank correlation, weights shuffled from the top {name}", f"{value:.2f}", ""))
    drawn = curves({"without the best tokens": own.deletion, "with the best tokens alone": own.insertion})
    return f"<details open><summary>Judged</summary>{table(rows)}{drawn}</details>"


def attention(case: Case) -> Part:
    """Returns maps of the attention of all layers and heads; of an encoder-decoder, of its cross-attention too."""
    body, summary = "", []
    for each in all_attention(case.loaded, case.fields):
        cross = each.name == "cross-attention"
        body += f"<p>{each.name}{': what is read to predict each token' if cross else ''}</p>"
        body += maps(each.weights, each.queries, each.keys)
        if cross:
            mean = each.weights.mean(axis=(0, 1))
            best = (f"{row} - {each.keys[int(at)]}" for row, at in zip(each.queries, mean.argmax(axis=1), strict=True))
            summary = [f"alignment (mean of all heads): {', '.join(best)}"]
    note = (
        "A small map for each layer (row) and head (column): a query in each row, a key in each column. "
        "Choose one to see it large. Attention shows what is mixed, and is no proof of what decides."
    )
    return Part("attention", note, body, tuple(summary))


def rollout_view(case: Case) -> Part:
    """Returns how much of each input token is in the token that predicts, after each layer."""
    prefix, tokens, at = _first_side(case)
    found = rollout(list(case.weights(prefix)))[:, at]
    body = coloured_text(tokens, found[-1]) + grid(found, [f"layer {i}" for i in range(len(found))], tokens)
    note = f"{_side_title(prefix)}attention rollout: the share of each input token in {tokens[at]!r} after each layer."
    return Part("rollout", note, body, (_shares(tokens, found[-1]),))


def flow_view(case: Case) -> Part:
    """Returns how much can flow from each input token to the token that predicts."""
    prefix, tokens, at = _first_side(case)
    (found,) = flow(list(case.weights(prefix)), [at])
    note = f"{_side_title(prefix)}attention flow: the most that can flow from each input token to {tokens[at]!r}."
    return Part("flow", note, coloured_text(tokens, found), (_shares(tokens, found),))


def lens(case: Case) -> Part:
    """Returns what the residual stream says after each layer."""
    found = logit_lens(case.subject)
    note = "What the model would say if it ended after each layer"
    body = bars(found.values, found.layers)
    if found.likeliest:
        note += "; in the grid, the likeliest token at each position, darker where it is more probable"
        rows = [[token.replace("▁", " ").strip() or token for token in row] for row in found.likeliest]
        body += grid(found.shares, found.layers, found.tokens, rows)
    said = ", ".join(f"{value:+.2f}" for value in found.values)
    return Part("logit lens", f"{note}. Bars: {unit_of(case.subject)}.", body, (f"after each layer: {said}",))


def direct_view(case: Case) -> Part:
    """Returns what each head and MLP writes into the logit."""
    found = direct(case.subject)
    body = grid(found.heads, _layers(found.heads), [f"{i}" for i in range(found.heads.shape[1])])
    if found.cross.size:
        body += "<p>cross-attention</p>" + grid(found.cross, _layers(found.cross), _layers(found.cross.T, ""))
    parts = [found.inputs, *found.mlp, found.constant]
    body += bars(parts, ["inputs", *(f"MLP {i}" for i in range(len(found.mlp))), "biases"])
    layer, head = np.unravel_index(np.abs(found.heads).argmax(), found.heads.shape)
    note = f"The logit ({found.total:+.2f}) as a sum: of the heads (grid), of the inputs, MLPs and biases (bars)."
    return Part(
        "direct logit attribution", note, body, (f"largest head: {layer}.{head} {found.heads[layer, head]:+.2f}",)
    )


def heads(case: Case) -> Part:
    """Returns by how much the number falls without each head."""
    found = ablation(case.subject)
    effects = found.effects
    layer, head = np.unravel_index(np.abs(effects).argmax(), effects.shape)
    note = f"How much the {unit_of(case.subject)} falls when the output of a head is set to 0 (blue: it falls)."
    body = grid(effects, _layers(effects), found.columns)
    return Part("ablation of heads", note, body, (f"largest: head {layer}.{head} {effects[layer, head]:+.2f}",))


def patching_view(case: Case) -> Part:
    """Returns how much of the difference between two texts each activation restores."""
    if case.corrupted is None:
        raise FlagError("--method=patching needs --corrupted=TEXT, a text with as many tokens and another answer")
    body, summary = "", []
    for what in ("residual", "attention", "mlp", "heads"):
        found = patching(case.subject, case.corrupted, what)
        effects = found.effects
        body += f"<p>{what}</p>" + grid(effects, _layers(effects), found.columns)
        layer, column = np.unravel_index(np.abs(effects).argmax(), effects.shape)
        summary.append(f"{what}: layer {layer}, {found.columns[column]} restores {effects[layer, column]:.0%}")
    note = (
        "Activations of the clean text in a run of the corrupted text: the share of the difference between both that "
        "each restores (1: all of it)."
    )
    return Part("activation patching", note, body, tuple(summary))


VIEWS: Mapping[str, Callable[[Case], Part]] = {
    "attention": attention,
    "rollout": rollout_view,
    "flow": flow_view,
    "lens": lens,
    "tuned_lens": tuned_view,
    "steering": steering_view,
    "direct": direct_view,
    "heads": heads,
    "patching": patching_view,
}


def view(method: str, case: Case) -> Part:
    """Returns the part of a method: a name in `VIEWS` or in `attribution.METHODS`."""
    return VIEWS[method](case) if method in VIEWS else functools.partial(attributions, method)(case)


def _first_side(case: Case) -> tuple[str, list[str], int]:
    """Returns the side whose self-attention is followed, its tokens, and the number of the one that predicts.

    This is the position of the subject, of a label the first token of an encoder or the last of a decoder.
    """
    prefix = case.loaded.config.family.sides[0].prefix
    tokens = case.tokens(prefix)
    if case.subjects and case.subject.ask.kind in ("logits", "span") and not case.loaded.config.family.paired:
        return prefix, tokens, min(int(case.subject.ask.position), len(tokens) - 1)
    return prefix, tokens, len(tokens) - 1 if case.loaded.config.family.causal else 0


def _layers(values: np.ndarray, word: str = "layer ") -> list[str]:
    return [f"{word}{i}" for i in range(len(values))]


def _side_title(prefix: str) -> str:
    return f"{prefix.removesuffix('_')}: " if prefix else ""


def _shares(tokens: Sequence[str], found: np.ndarray) -> str:
    """Returns a line with the tokens of the largest shares."""
    order = np.argsort(-found, kind="stable")[:_BEST]
    return ", ".join(f"{tokens[i]} {found[i]:.2f}" for i in order)
