"""Each seed of `config.seeds` varies its own source of randomness and no other."""

import jax
import numpy as np
import pytest

from lmjax.runs.build import build
from lmjax.training.state import state_maker

# By source of randomness, what of a run it may change.
CHANGES = {"init": {"parameters"}, "order": {"rows"}, "dropout": {"steps"}, "subset": {"rows", "documents"}}


def made(config, workdir):
    """Returns what a run draws: its parameters, the key of its steps, its documents, and its first rows."""
    run = build(config, workdir)
    seeds = [config.seed_of(source) for source in ("init", "dropout")]
    make, _ = state_maker(run.model, config.optimizer, run.hparams, seeds[0], run.mesh, dropout_seed=seeds[1])
    state = make()
    stage = run.stages[0]
    return {
        "parameters": np.concatenate([np.ravel(x) for x in jax.tree.leaves(state.params)]).tolist(),
        "steps": jax.random.key_data(state.key).tolist(),
        "documents": sum(store.num_tokens for store in run.train_examples.stores.values()),
        "rows": [{name: x.tolist() for name, x in stage.example(i)[-1].items()} for i in range(3)],
    }


@pytest.fixture(scope="module")
def plain(tiny, tmp_path_factory):
    return made(tiny("mlm", data__subset=0.7), tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize("source", CHANGES)
def test_a_seed_varies_its_source_alone(tiny, plain, tmp_path, source):
    found = made(tiny("mlm", data__subset=0.7, **{f"seeds__{source}": 7}), tmp_path)
    assert {name for name in plain if found[name] != plain[name]} == CHANGES[source]


def test_the_runs_seed_is_that_of_every_source_without_its_own(tiny, tmp_path):
    whole = made(tiny("mlm", data__subset=0.7, seed=7), tmp_path / "a")
    each = tiny("mlm", data__subset=0.7, seed=3, **{f"seeds__{source}": 7 for source in CHANGES})
    assert whole == made(each, tmp_path / "b")
