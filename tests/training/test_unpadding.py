"""Packed rows change neither losses nor gradients: of any task on records, with microbatches, and over a whole run."""

import json

import jax
import numpy as np
import pytest

import lmjax
from lmjax.data.unpadding import Layout, size_of
from lmjax.parallel.mesh import to_device
from lmjax.runs.build import build
from lmjax.training.metrics import read_lines
from lmjax.training.state import state_maker
from lmjax.training.step import loss_and_gradients

WORDS = ("old", "king", "river", "tree", "sees", "never", "house", "young")
NO_DROPOUT = {"model__dropout__residual": 0, "model__dropout__attention": 0}
RECORDS = {
    "classification": lambda text, i: {"text": text(), "text2": text() if i % 2 else "", "label": i % 3},
    "regression": lambda text, i: {"text": text(), "score": i % 5},
    "tagging": lambda text, i: {"words": (words := text().split()), "tags": ["O"] + ["B-X"] * (len(words) - 1)},
    "multiple_choice": lambda text, i: {"question": text(), "choices": [text(), text()], "label": i % 2},
    "embedding": lambda text, i: {"text": text(), "text2": text()},
}
CASES = [
    ("classification", "encoder", {"model__positions": "learned"}),
    ("classification", "encoder", {"model__positions": "relative", "model__head__pooling": "mean"}),
    ("classification", "encoder", {"model__attention__window": 4, "model__attention__global_every": 2}),
    ("classification", "decoder", {"model__positions": "alibi"}),
    ("regression", "decoder", {}),
    ("tagging", "encoder", {}),
    ("multiple_choice", "encoder", {}),
    ("embedding", "encoder", {}),
]


def written(folder, objective, count=40):
    """Returns a file of records with texts of 1 to 7 words."""
    rng = np.random.default_rng(0)
    text = lambda: " ".join(rng.choice(WORDS, rng.integers(1, 8)))  # noqa: E731
    path = folder / f"{objective}.jsonl"
    path.write_text("".join(json.dumps(RECORDS[objective](text, i)) + "\n" for i in range(count)))
    return path


def gradients(run, batch, accumulation):
    with jax.set_mesh(run.mesh):
        make_state, _ = state_maker(run.model, run.config.optimizer, run.hparams, 0, run.mesh)
        state = make_state()
        compute = jax.jit(lambda s, b: loss_and_gradients(run.model, run.task, s, b, run.hparams, accumulation))
        return jax.device_get(compute(state, to_device(batch, run.mesh)))


@pytest.mark.parametrize(
    ("objective", "architecture", "fields", "accumulation"),
    [(*case, 1) for case in CASES] + [(*CASES[0], 2), (*CASES[-1], 2)],
)
def test_packed_rows_leave_losses_and_gradients(tiny, tmp_path, objective, architecture, fields, accumulation):
    path = written(tmp_path, objective)
    values = NO_DROPOUT | {"model__architecture": architecture, "task__length": 64, "model__max_length": 128,
                           "data__train": path, "accumulation": accumulation} | fields  # fmt: skip
    run = build(tiny(objective, **values), tmp_path / "run")
    (stage,) = run.stages
    rows = [stage.example(position)[-1] for position in range(8)]
    plain = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    packed = Layout(128, (8 // accumulation,), accumulation)(plain)
    assert size_of(packed, accumulation)
    (sums, grads), (expected_sums, expected) = (gradients(run, b, accumulation) for b in (packed, plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), sums, expected_sums)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=5e-6), grads, expected)


def test_a_run_with_packed_rows_has_the_same_curve(tiny, tmp_path):
    """Its batches have several sizes, and some are not packed at all."""
    path, curves = written(tmp_path, "classification"), {}
    for unpad in ("true", "false"):
        config = tiny("classification", **NO_DROPOUT, model__architecture="encoder", task__length=64, data__train=path,
                      model__max_length=128, data__unpad=unpad, steps=12, batch_size=4)  # fmt: skip
        lmjax.train(config, tmp_path / unpad, progress=False)
        curves[unpad] = [line["train/loss"] for line in read_lines(tmp_path / unpad) if "train/loss" in line]
    np.testing.assert_allclose(curves["true"], curves["false"], rtol=1e-5)


def test_full_rows_are_read_as_they_are(tiny, tmp_path):
    """Rows of running text are packed by their objective, so that layers read them as they are."""
    assert [stage.layout for stage in build(tiny(), tmp_path).stages] == [None]
