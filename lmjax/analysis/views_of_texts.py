"""The parts of a page for methods that read other texts beside the one that is explained: tuned lens, steering."""

from __future__ import annotations

import dataclasses

import numpy as np

from lmjax.analysis.case import Case, unit_of
from lmjax.analysis.lens import logit_lens
from lmjax.analysis.page import Part, bars, curves, table
from lmjax.analysis.steering import steer
from lmjax.analysis.tuned_lens import tune, tuned_values
from lmjax.errors import FlagError
from lmjax.inference.generate.generate import GenerateConfig, generate


def tuned_view(case: Case) -> Part:
    """Returns what the residual stream says after each layer by the tuned lens, beside the logit lens."""
    if not case.texts:
        raise FlagError("--method=tuned_lens needs --data=FILE, texts like those that are explained")
    subject = case.subject
    trained = tune(case.loaded, case.texts, steps=case.steps)
    plain, tuned = logit_lens(subject), tuned_values(subject, trained)
    part = max(1, len(trained.losses) // 10)
    before, after = trained.losses[:part].mean(axis=0), trained.losses[-part:].mean(axis=0)
    rows = [("after", "logit lens", "tuned lens", "nats from the model, untrained", "trained")]
    for i, name in enumerate(plain.layers):
        nats = [f"{x[i]:.3f}" if i < len(x) else "0" for x in (before, after)]
        rows.append((name, f"{plain.values[i]:+.3f}", f"{tuned[i]:+.3f}", *nats))
    body = curves({"logit lens": plain.values, "tuned lens": tuned}, (plain.layers[0], plain.layers[-1]))
    body += table(rows)
    note = (
        f"What the model would say if it ended after each layer ({unit_of(subject)}), read directly and through a map "
        f"of each layer (Belrose et al. 2023) that was trained on {len(case.texts):,} texts in {case.steps:,} steps; "
        "nats are the divergence from what the model says in the end, in the first and the last tenth of these steps."
    )
    said = ", ".join(f"{value:+.2f}" for value in tuned)
    nats = ", ".join(f"{x:.2f} to {y:.2f}" for x, y in zip(before, after, strict=True))
    return Part("tuned lens", note, body, (f"after each layer: {said}", f"nats from the model, trained: {nats}"))


def steering_view(case: Case) -> Part:
    """Returns what a model says, and writes, with a direction added to its residual stream."""
    push, subject = case.push, case.subject
    if push is None:
        raise FlagError("--method=steering needs --towards=FILE and --away=FILE, texts of two kinds")
    shown, values, lines = [("strength", unit_of(subject), "probability", "it writes")], [], []
    for strength in push.strengths:
        model = steer(case.loaded, {push.name: np.float32(strength) * push.vector})
        own = dataclasses.replace(subject, loaded=model)
        values.append(own.value)
        written = ""
        if push.prompt:
            config = GenerateConfig(max_new_tokens=push.max_new_tokens)
            written = generate(model, [push.prompt], config)[0][0].text.strip()
        chance = "" if own.probability is None else f"{own.probability:.3f}"
        shown.append((f"{strength:+g}", f"{own.value:+.3f}", chance, written))
        lines.append(f"{strength:+g}: {own.value:+.3f} {chance} {' '.join(written.split())}".rstrip())
    size = float(np.linalg.norm(push.vector))
    note = (
        f"{subject.name!r} with a multiple of a direction (length {size:.2f}) added to {push.name} at every token: the "
        "difference of the mean residual streams of the texts of --towards and of --away."
    )
    body = bars(values, [f"{strength:+g}" for strength in push.strengths]) + table(shown)
    return Part("steering", note, body, tuple(lines))
