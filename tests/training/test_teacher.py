"""Distillation: the loss against numpy in float64, invariance of the gradient, and what a teacher may not change."""

import functools
import hashlib
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lmjax
from lmjax import cli
from lmjax.config import replace
from lmjax.errors import ConfigMismatchError, FlagError
from lmjax.model.language_model import LanguageModel, init_params
from lmjax.model.parameters import unboxed
from lmjax.runs.build import build
from lmjax.runs.fit import layout
from lmjax.runs.teacher import open_teacher
from lmjax.streams import prng_key
from lmjax.training.fixed import Fixed
from lmjax.training.state import state_maker
from lmjax.training.step import loss_and_gradients, make_train_step
from lmjax.training.teacher import Teacher
from tests.workdirs import bits, losses, resumed_from

PLAIN = {"model__dropout__residual": 0, "model__dropout__attention": 0}


def taught(config, workdir, **fields):
    """Returns a run with a wider teacher of random weights, its state, and its arrays that are not trained."""
    run = build(replace(config, {"teacher.place": "random", **fields}), workdir)
    wide = run.config.model.with_fields({"embed_dim": 24, "num_layers": 3})
    model = LanguageModel(wide, run.model.heads)
    params = jax.tree.map(lambda x: 5 * x, unboxed(init_params(model, prng_key(7, "teacher"))))
    make_state, _ = state_maker(run.model, run.config.optimizer, run.hparams, 0, run.mesh)
    return run, make_state(), Fixed(teacher=Teacher(params, run.config.teacher, model))


def log_softmax(x):
    x = np.asarray(x, np.float64)
    return x - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True)) - x.max(-1, keepdims=True)


def divergence(kind, student, teacher, heat):
    p, q = log_softmax(np.asarray(student, np.float64) / heat), log_softmax(np.asarray(teacher, np.float64) / heat)
    mean = np.logaddexp(p, q) - np.log(2)
    kl = lambda a, b: (np.exp(a) * (a - b)).sum(-1)  # noqa: E731
    return heat**2 * {"forward": kl(q, p), "reverse": kl(p, q), "js": (kl(p, mean) + kl(q, mean)) / 2}[kind]


@pytest.mark.parametrize("kind", ["forward", "reverse", "js"])
def test_the_loss_is_the_labels_and_the_teachers_distribution(tiny, tmp_path, kind):
    fields = {"kind": kind, "temperature": 3.0, "weight": 0.7, "hard_weight": 0.2}
    run, state, fixed = taught(tiny("mlm", **PLAIN), tmp_path, **{f"teacher.{k}": x for k, x in fields.items()})
    batch = jax.tree.map(jnp.asarray, run.stages[0].local_batch())
    step = jax.jit(make_train_step(run.model, run.task, run.config.optimizer, 1))
    _, metrics = step(state, batch, run.hparams, fixed)
    at = batch["prediction_positions"][..., None]
    logits = [
        model.apply(
            {"params": p}, jnp.take_along_axis(model.apply({"params": p}, batch), at, 1), method=LanguageModel.logits
        )
        for model, p in ((run.model, state.params), (fixed.teacher.model, fixed.teacher.params))
    ]
    weights = np.asarray(batch["weights"], np.float64)
    soft = (weights * divergence(kind, *logits, 3.0)).sum() / weights.sum()
    logs = np.take_along_axis(log_softmax(logits[0]), np.asarray(batch["targets"])[..., None], -1)[..., 0]
    hard = -(weights * logs).sum() / weights.sum()
    assert soft > 0.1
    np.testing.assert_allclose(metrics["mlm_teacher/loss"], soft, rtol=1e-4)
    np.testing.assert_allclose(metrics["mlm/loss"], hard, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], 0.2 * hard + 0.7 * soft, rtol=1e-4)


@pytest.mark.parametrize(
    "objective", ["mlm", "next_token", pytest.param("span_corruption", marks=pytest.mark.slow), "masked_diffusion"]
)
def test_microbatches_and_chunks_of_logits_change_no_gradient(tiny, tmp_path, objective):
    def gradients(accumulation, name, **fields):
        run, state, fixed = taught(tiny(objective, **PLAIN), tmp_path / name, **fields)
        batch = jax.tree.map(jnp.asarray, run.stages[0].local_batch())
        of = functools.partial(loss_and_gradients, run.model, run.task, accumulation=accumulation, fixed=fixed)
        sums, grads = jax.jit(of)(state, batch, run.hparams)
        assert f"{objective}_teacher" in sums
        return sums, grads

    whole = gradients(1, "whole")
    for name, found in (
        ("parts", gradients(4, "parts")),
        ("chunks", gradients(1, "chunks", **{"task.vocab_chunk": 5})),
    ):
        same = functools.partial(np.testing.assert_allclose, rtol=2e-3, atol=2e-4, err_msg=name)
        jax.tree.map(same, found, whole)


def test_a_neighbour_in_a_packed_row_changes_nothing_of_what_a_document_learns(tiny, tmp_path):
    run, state, fixed = taught(tiny("next_token", **PLAIN), tmp_path)
    batch = {k: np.array(v) for k, v in run.stages[0].local_batch().items()}
    half = batch["tokens"].shape[1] // 2
    batch["segment_ids"] = np.broadcast_to(np.repeat([1, 2], half), batch["tokens"].shape).copy()
    batch["positions"] = np.broadcast_to(np.tile(np.arange(half), 2), batch["tokens"].shape).copy()
    batch["weights"][:, half:] = 0
    changed = {**batch, "tokens": np.where(batch["segment_ids"] == 2, 5, batch["tokens"])}
    assert (changed["tokens"] != batch["tokens"]).any()
    of = jax.jit(functools.partial(loss_and_gradients, run.model, run.task, accumulation=1, fixed=fixed))
    one, other = (of(state, jax.tree.map(jnp.asarray, b), run.hparams)[0] for b in (batch, changed))
    np.testing.assert_allclose(one["next_token_teacher"].loss, other["next_token_teacher"].loss, rtol=1e-5)


def test_a_mesh_changes_no_gradient(tiny, tmp_path, every_device):
    def gradients(name, **parallel):
        run, _, fixed = taught(tiny("mlm", **PLAIN), tmp_path / name, **parallel)
        make_state, _ = state_maker(run.model, run.config.optimizer, run.hparams, 0, run.mesh)
        of = jax.jit(functools.partial(loss_and_gradients, run.model, run.task, accumulation=1))
        with layout(run):
            batch = jax.tree.map(jnp.asarray, run.stages[0].local_batch())
            return jax.device_get(of(make_state(), batch, run.hparams, fixed=fixed)[1])

    one, many = (
        gradients("one", **{"parallel.data": 8}),
        gradients("many", **{"parallel.fsdp": 2, "parallel.tensor": 2}),
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5), one, many)


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory):
    """A trained classifier, its data, and the config of a student with one of its layers."""
    folder = tmp_path_factory.mktemp("runs")
    for name in ("a", "dev"):
        lines = [json.dumps({"text": f"{'no' if i % 2 else 'yes'} {i}", "label": i % 2}) for i in range(32)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    fields = {"data__train": folder / "a.jsonl", "data__eval": f"dev={folder / 'dev.jsonl'}",
              "model__architecture": "encoder", "evaluation__batches": 1, "optimizer__warmup_steps": 0,
              "optimizer__learning_rate": 0.01, "checkpoint__every": 3, "checkpoint__keep": 10}  # fmt: skip
    teacher = lmjax.train(
        tiny("classification", **fields, steps=12, model__num_layers=2), folder / "teacher", progress=False
    )
    student = tiny("classification", **fields, steps=6, tokenizer__path=teacher, teacher__place=teacher,
                   model__num_layers=1)  # fmt: skip
    return teacher, student


def digest(folder: pathlib.Path) -> str:
    """Returns a digest of all files of a workdir."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(str(path).encode() + path.read_bytes() for path in files)).hexdigest()


def test_a_student_goes_on_bit_for_bit_and_its_teacher_stays(runs, tmp_path):
    teacher, config = runs
    before = digest(teacher)
    whole = lmjax.train(config, tmp_path / "whole", progress=False)
    workdir = lmjax.train(config, resumed_from(whole, 3, tmp_path / "run"), progress=False)
    assert bits(workdir, 6) == bits(whole, 6)
    assert losses(workdir) == losses(whole)
    assert digest(teacher) == before
    assert not any("teacher" in path for path in bits(whole, 6)), "a checkpoint holds the teacher"
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    drawn = [line["train/classification_teacher/loss"] for line in lines if "train/loss" in line]
    assert drawn[-1] < 0.9 * drawn[0], "it does not learn what the teacher says"
    for line in (line for line in lines if "train/loss" in line):
        parts = 0.5 * line["train/classification/loss"] + 0.5 * line["train/classification_teacher/loss"]
        assert line["train/loss"] == pytest.approx(parts, rel=1e-5)
    assert json.loads((whole / "teacher.json").read_text())["place"] == str(teacher)
    results = cli.run(["evaluate", f"--workdir={whole}", f"--data=dev={config.data.eval[0].path}"])
    assert results["dev"]["accuracy"] >= 0.5


def test_another_teacher_is_refused_when_the_run_resumes(runs, tiny, tmp_path):
    _, config = runs
    workdir = lmjax.train(config, tmp_path / "run", progress=False)
    known = json.loads((workdir / "teacher.json").read_text())
    (workdir / "teacher.json").write_text(json.dumps(known | {"fingerprint": "0" * 32}))
    with pytest.raises(ConfigMismatchError, match=r"teacher\.place=.* is not the teacher that --workdir=.* began with"):
        lmjax.train(replace(config, {"steps": 8}), workdir, progress=False)


def test_what_cannot_teach_is_refused(runs, tiny, tmp_path, corpus):
    teacher, config = runs
    for fields, said in (
        ({"teacher.place": str(tmp_path / "nowhere")}, "nowhere"),
        (
            {"task.classification.labels": ("1", "0")},
            r"its labels are \('0', '1'\), and those of this run \('1', '0'\)",
        ),
        ({"teacher.weight": 0.0, "teacher.hard_weight": 0.0}, "nothing is learned"),
        ({"teacher.temperature": 0.0}, "temperature"),
    ):
        with pytest.raises(FlagError, match=said):
            open_teacher(build(replace(config, fields), tmp_path / "x"))
    for objective, fields, said in (
        ("next_token", {}, r"it is an encoder and the student a decoder, whose rows differ"),
        ("mlm", {"tokenizer__kind": "bpe", "tokenizer__vocab_size": 180}, "its tokenizer is another one"),
        ("mlm", {"tokenizer__path": teacher}, "it has no masked_lm head for mlm"),
        ("mlm", {"tokenizer__path": teacher, "task__length": 128, "model__max_length": 128}, "at most 64 tokens"),
    ):
        run = build(tiny(objective, teacher__place=teacher, **fields), tmp_path / objective / str(len(fields)))
        with pytest.raises(FlagError, match=said):
            open_teacher(run)
    with pytest.raises(FlagError, match="has no predictions to compare with a teacher's"):
        tiny("rtd", teacher__place=teacher)
