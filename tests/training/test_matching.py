"""Hidden states and attention of a student and its teacher, against numpy in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.config import resolve
from lmjax.errors import FlagError
from lmjax.model.intercept import record
from lmjax.model.language_model import LanguageModel, init_params
from lmjax.model.parameters import unboxed
from lmjax.model.presets import PRESETS
from lmjax.runs.build import build
from lmjax.streams import prng_key
from lmjax.training.fixed import Fixed
from lmjax.training.matching import HIDDEN, Pair, matched, pairs
from lmjax.training.state import state_maker
from lmjax.training.step import loss_and_gradients
from lmjax.training.teacher import Teacher

FIELDS = {"model__dropout__residual": 0, "model__dropout__attention": 0, "model__scan_layers": "false",
          "model__num_layers": 2, "teacher__place": "random", "teacher__hidden_weight": 0.3,
          "teacher__attention_weight": 0.4}  # fmt: skip


def case(tiny, workdir, objective, **fields):
    run = build(tiny(objective, **FIELDS, **fields), workdir)
    deep = run.config.model.with_fields({"num_layers": 4, "num_decoder_layers": None})
    model = LanguageModel(deep, run.model.heads)
    params = jax.tree.map(lambda x: 5 * x, unboxed(init_params(model, prng_key(7, "teacher"))))
    make_state, _ = state_maker(run.model, run.config.optimizer, run.hparams, 0, run.mesh)
    teacher = Teacher(params, run.config.teacher, model)
    batch = jax.tree.map(jnp.asarray, run.stages[0].local_batch())
    return run, make_state(), Fixed(teacher=teacher), batch


@pytest.mark.parametrize(
    ("objective", "sides"),
    [("mlm", ("",)), pytest.param("span_corruption", ("encoder_", "decoder_"), marks=pytest.mark.slow)],
)
def test_the_losses_are_those_of_the_recorded_layers(tiny, tmp_path, objective, sides):
    run, state, fixed, batch = case(tiny, tmp_path, objective)
    of = jax.jit(functools.partial(loss_and_gradients, run.model, run.task, fixed=fixed), static_argnums=3)
    sums, grads = of(state, batch, run.hparams, 1)
    squared = divergence = count = 0
    for side in sides:
        present, place = np.asarray(batch[f"{side}segment_ids"]) > 0, side.replace("_", "/")
        count += present.sum()
        for ours, theirs in ((0, 1), (1, 3)):  # two layers learn from the second and the fourth of four
            names = [[f"{place}layer_{i}", f"{place}layer_{i}/attention/weights"] for i in (ours, theirs)]
            models = ((run.model, state.params), (fixed.teacher.model, fixed.teacher.params))
            seen = [record(m, p, batch, kept)[1] for (m, p), kept in zip(models, names, strict=True)]
            (hidden, weights), (wanted, probabilities) = (
                [np.asarray(each[name], np.float64) for name in kept] for each, kept in zip(seen, names, strict=True)
            )
            squared += (present * np.square(hidden - wanted).mean(-1)).sum() / 2
            logs = np.log(np.maximum(probabilities, 1e-300)) - np.log(np.maximum(weights, 1e-12))
            divergence += (present * (probabilities * logs).sum(-1).mean(1)).sum() / 2
    np.testing.assert_allclose(sums["teacher_hidden"].loss, squared, rtol=1e-3)
    np.testing.assert_allclose(sums["teacher_attention"].loss, divergence, rtol=1e-3)
    np.testing.assert_allclose(sums["teacher_hidden"].weight, count)
    assert run.hparams.loss_weights["teacher_hidden"] == np.float32(0.3)
    parts = of(state, batch, run.hparams, 4)
    same = functools.partial(np.testing.assert_allclose, rtol=5e-3, atol=5e-4)
    jax.tree.map(same, parts, (sums, grads))
    assert any(np.any(g) for g in jax.tree.leaves(grads))


def test_layers_are_spread_evenly_or_chosen():
    student, teacher = (PRESETS["bert_base"].with_fields({"num_layers": n}) for n in (4, 12))
    assert [(p.student, p.teacher) for p in pairs(student, teacher, ())] == [
        ("layer_0", "layer_2"), ("layer_1", "layer_5"), ("layer_2", "layer_8"), ("layer_3", "layer_11")
    ]  # fmt: skip
    assert [p.teacher for p in pairs(student, teacher, (0, 1, 1, 3))] == ["layer_0", "layer_1", "layer_1", "layer_3"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"teacher.hidden_weight": "1", "model.scan_layers": "true"}, r"need --config\.model\.scan_layers=false"),
        ({"teacher.attention_weight": "1", "teacher.place": "x.safetensors"}, "with a teacher in memory"),
        ({"teacher.layers": "1,2"}, "needs hidden_weight or attention_weight"),
        ({"teacher.layers": "1", "teacher.hidden_weight": "1", "model.scan_layers": "false"}, r"the student's 2"),
    ],
)
def test_what_cannot_match_is_refused(fields, said):
    with pytest.raises(FlagError, match=said):
        resolve(objective=("mlm",), overrides={"teacher.place": "x", "model.num_layers": "2", **fields})


def test_padding_adds_nothing():
    rng, batch = np.random.default_rng(0), {"segment_ids": jnp.array([[1, 1, 0]])}
    ours, theirs = (jnp.asarray(rng.normal(size=(1, 3, 4)), jnp.float32) for _ in range(2))
    found = [Pair("", "layer_0", "layer_1")]
    sums = matched(found, {"layer_0": ours}, {"layer_1": theirs}, batch)[HIDDEN]
    expected = np.mean(np.square(np.asarray(ours - theirs)), axis=-1)[0, :2].sum()
    np.testing.assert_allclose((sums.loss, sums.weight), (expected, 2), rtol=1e-6)
