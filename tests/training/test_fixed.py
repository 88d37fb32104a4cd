"""Arrays that a step reads and never changes: no gradient of them, and none of them in the state or in the program."""

import jax
import numpy as np
import pytest

from lmjax.model.parameters import flat
from lmjax.parallel.mesh import to_device
from lmjax.runs.build import build
from lmjax.training.fixed import Fixed
from lmjax.training.state import state_maker
from lmjax.training.step import loss_and_gradients, make_eval_step, make_train_step


@pytest.fixture(scope="module")
def parts(tiny, tmp_path_factory):
    """Returns a run, its first state, a batch, and the state with the token table as a fixed array."""
    run = build(tiny(model__head__tied=False), tmp_path_factory.mktemp("run"))
    state = state_maker(run.model, run.config.optimizer, run.hparams, 0, run.mesh)[0]()
    base, rest = {"embedding": state.params["embedding"]}, {**state.params}
    del rest["embedding"]
    opt_state = jax.tree.map(
        lambda x: {name: y for name, y in x.items() if name != "embedding"} if isinstance(x, dict) else x,
        state.opt_state,
        is_leaf=lambda x: isinstance(x, dict),
    )
    batch = to_device(run.stages[0].local_batch(), run.mesh)
    return run, state, batch, state.replace(params=rest, opt_state=opt_state), Fixed(base=base)


def test_the_gradient_is_that_of_the_whole_model_without_the_fixed_parameters(parts):
    run, state, batch, left, fixed = parts
    sums, whole = loss_and_gradients(run.model, run.task, state, batch, run.hparams, 1)
    found, grads = loss_and_gradients(run.model, run.task, left, batch, run.hparams, 1, fixed=fixed)
    assert "embedding" in whole
    assert "embedding" not in grads
    jax.tree.map(np.testing.assert_array_equal, found, sums)
    for path, grad in flat(grads).items():
        np.testing.assert_allclose(grad, flat(whole)[path], rtol=1e-6, atol=1e-7, err_msg=path)


def test_they_are_arguments_of_the_compiled_steps_and_not_in_the_new_state(parts):
    """An array that a traced function captures would be a constant of the program, once in each."""
    run, state, batch, left, fixed = parts
    step = jax.jit(make_train_step(run.model, run.task, run.config.optimizer, 1))
    arguments = (left, batch, run.hparams, fixed)
    assert len(jax.tree.leaves(step.lower(*arguments).args_info)) == len(jax.tree.leaves(arguments))
    after, _ = step(*arguments)
    assert jax.tree.structure(after) == jax.tree.structure(left)
    evaluate = jax.jit(make_eval_step(run.model, run.task))
    bytes_of = run.token_bytes()
    jax.tree.map(
        np.testing.assert_array_equal,
        evaluate(left.params, batch, bytes_of, fixed),
        evaluate(state.params, batch, bytes_of),
    )
