"""The forward pass for objectives: an objective can use a new head, and the outputs are those of the model."""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.model.dropout import DropoutRates
from lmjax.model.heads import HEADS
from lmjax.model.heads.base import Head, Output, class_logits
from lmjax.model.language_model import LanguageModel
from lmjax.objectives.base import Objective
from lmjax.objectives.sums import NO_PENALTIES, LossSum
from lmjax.objectives.task import Task
from lmjax.parallel.mesh import ParallelConfig, make_mesh, to_device
from lmjax.runs.build import build
from lmjax.training.forward import forward
from lmjax.training.state import state_maker
from lmjax.training.step import make_train_step


class RowLengthHead(Head):
    """Predicts the number of a row's tokens from their mean state; added as the docstring of the package says."""

    outputs = (Output("row_length", ("batch",)),)
    subtree = "row_length_head"
    reads = ("segment_ids",)

    @classmethod
    def flops(cls, config, size):
        """Returns the FLOPs of one output for each row."""
        return 2 * config.embed_dim * size.rows

    @nn.compact
    def __call__(self, hidden, segment_ids=None):
        """Returns float32 `[batch]` for states `[batch, length, embed]`."""
        real = jnp.ones(hidden.shape[:2]) if segment_ids is None else segment_ids
        return class_logits(self.config, 1, jnp.mean(hidden * (real > 0)[..., None], axis=1), bias=True)[:, 0]


@dataclasses.dataclass(frozen=True)
class RowLength(Objective):
    """The squared error of each row's number of tokens."""

    name: ClassVar[str] = "row_length"
    architectures: ClassVar[tuple[str, ...]] = ("encoder",)
    heads: ClassVar[tuple[str, ...]] = ("row_length",)

    def rows(self, store, seed):
        """Is not called here."""
        raise NotImplementedError

    def weights(self, batch):
        """Returns the number of rows."""
        return {self.name: jnp.float32(len(batch["tokens"]))}

    def losses(self, forward, batch):
        """Returns the sum of the squared errors over the rows."""
        error = forward.head("row_length", forward.hidden) - jnp.sum(batch["segment_ids"] > 0, axis=1)
        return {self.name: LossSum(jnp.sum(error**2), self.weights(batch)[self.name], None, jnp.zeros(()))}


@pytest.fixture
def toy_head(monkeypatch):
    """Puts the head into the registry for one test."""
    monkeypatch.setitem(HEADS, "row_length", RowLengthHead)


@pytest.fixture(scope="module")
def electra(tiny, tmp_path_factory):
    """Returns a run of replaced token detection, and a batch."""
    run = build(tiny("rtd"), tmp_path_factory.mktemp("electra"))
    rows = [run.train_examples(i, np.random.default_rng(i)) for i in range(8)]
    return run, {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def test_a_head_that_is_registered_is_built_and_trained(toy_head, electra):
    """Only its class and a line of the registry are needed: model, initialisation and step have no code for it."""
    run, batch = electra
    objective = RowLength(*(getattr(run.task.objectives[0], f.name) for f in dataclasses.fields(Objective)))
    task = Task(((objective,),), ("row_length",))
    model = LanguageModel(run.config.model, task.heads)
    hparams = jax.device_get(run.hparams).replace(loss_weights={"row_length": np.float32(1)})
    mesh = make_mesh(ParallelConfig(), jax.devices()[:1])
    make_state, _ = state_maker(model, run.config.optimizer, hparams, 0, mesh)
    state = make_state()
    assert jax.tree.map(jnp.shape, state.params["row_length_head"]) == {"classifier": {"kernel": (16, 1), "bias": (1,)}}
    before = jax.device_get(state.params)
    step = jax.jit(make_train_step(model, task, run.config.optimizer, 1))
    state, metrics = step(state, to_device(batch, mesh), hparams)
    lengths = np.sum(batch["segment_ids"] > 0, axis=1)
    error = np.mean(lengths**2.0)
    assert float(metrics["row_length/loss"]) == pytest.approx(error, rel=0.5), "the first prediction is not near 0"
    for part in ("row_length_head", "backbone", "embedding"):
        same = jax.tree.map(np.array_equal, before[part], jax.device_get(state.params[part]))
        assert not all(jax.tree.leaves(same)), f"{part} does not change"


def passed(electra, rates):
    run, batch = electra
    params = nn.unbox(jax.eval_shape(lambda: run.model.init(jax.random.key(0), batch, method="outputs")))["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), params)
    key = jax.random.key(1)
    found = forward(run.model, params, batch, key=key, dropout_rates=rates, penalties=NO_PENALTIES)
    return found, run.model.apply({"params": params}, batch, method="outputs")


def test_heads_and_submodels_give_what_the_model_gives(electra):
    found, expected = passed(electra, DropoutRates())
    np.testing.assert_allclose(found.hidden, expected["hidden"], atol=1e-5)
    states = found.head("replaced_token", found.hidden)
    np.testing.assert_allclose(states, expected["replaced_token"], atol=1e-5)
    generator = found.submodel("generator")
    assert generator.hidden.shape != found.hidden.shape, "the states are not the generator's, which is smaller"
    np.testing.assert_allclose(generator.logits(generator.hidden), expected["generator_logits"], atol=1e-4)
    with pytest.raises(ValueError, match="no head 'pooler'"):
        found.head("pooler", found.hidden)


def test_dropout_is_in_the_passes_of_the_model_and_of_a_submodel(electra):
    plain, _ = passed(electra, DropoutRates())
    dropped, _ = passed(electra, electra[0].config.model.dropout.rates())
    for a, b in ((plain, dropped), (plain.submodel("generator"), dropped.submodel("generator"))):
        assert np.abs(a.hidden - b.hidden).max() > 0.01
        assert b.hidden is b.hidden, "the states are computed once for each objective"
