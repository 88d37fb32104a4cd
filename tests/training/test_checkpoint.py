"""Which checkpoints stay, and that a restored state equals the saved one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.errors import SaveError
from lmjax.training.checkpoint import CheckpointConfig, Checkpoints


def state(value):
    return {"x": jnp.full(3, float(value)), "key": jax.random.key(value), "n": jnp.int32(value)}


def abstract():
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state(0))


def saved(path, losses, keep=2):
    with Checkpoints(path, CheckpointConfig(keep=keep)) as checkpoints:
        for step, loss in losses.items():
            if loss is not None:
                checkpoints.note(step, loss)
            checkpoints.save(step, state(step))
        checkpoints.wait()
        return checkpoints.steps, checkpoints.best_step


def test_the_newest_and_the_best_stay(tmp_path):
    assert saved(tmp_path, {1: 3.0, 2: 1.0, 3: 2.0, 4: 2.5, 5: 2.6}) == ([2, 4, 5], 2)


def test_a_nan_is_never_the_best_and_never_drives_the_best_out(tmp_path):
    assert saved(tmp_path, {1: 3.0, 2: 1.0, 3: float("nan"), 4: float("nan"), 5: 2.0}) == ([2, 4, 5], 2)


def test_steps_without_an_evaluation_are_kept_as_the_newest_only(tmp_path):
    assert saved(tmp_path, {1: None, 2: 1.0, 3: None, 4: None, 5: None}) == ([2, 4, 5], 2)


def test_what_was_saved_comes_back_bit_for_bit(tmp_path):
    saved(tmp_path, {7: 1.0})
    with Checkpoints(tmp_path, CheckpointConfig()) as checkpoints:
        restored = checkpoints.restore(abstract())
    np.testing.assert_array_equal(restored["x"], state(7)["x"])
    assert int(restored["n"]) == 7
    np.testing.assert_array_equal(jax.random.key_data(restored["key"]), jax.random.key_data(state(7)["key"]))


def test_a_donated_buffer_does_not_reach_the_checkpoint(tmp_path):
    """The next step overwrites the state's memory while the save is still running."""
    scale = jax.jit(lambda s: jax.tree.map(lambda x: x * 2, s), donate_argnums=0)
    values = {"x": jnp.arange(2**20, dtype=jnp.float32)}
    expected = np.array(values["x"])
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), values)
    with Checkpoints(tmp_path, CheckpointConfig()) as checkpoints:
        checkpoints.save(1, values)
        for _ in range(3):
            values = scale(values)
        checkpoints.wait()
        np.testing.assert_array_equal(checkpoints.restore(shapes)["x"], expected)


def test_nothing_to_restore_is_none(tmp_path):
    with Checkpoints(tmp_path, CheckpointConfig()) as checkpoints:
        assert checkpoints.restore(abstract()) is None


def test_a_checkpoint_that_cannot_be_written_is_a_save_error(tmp_path):
    (tmp_path / "checkpoints").write_text("a file in the way")
    with pytest.raises(SaveError, match="could not be saved"):
        saved(tmp_path, {1: None})


def test_a_loss_that_is_known_after_the_save_counts(tmp_path):
    """A run that is asked to stop saves first; its step is evaluated after it resumes, in another process."""
    saved(tmp_path, {1: None, 2: None})
    with Checkpoints(tmp_path, CheckpointConfig(keep=1)) as checkpoints:
        assert checkpoints.best_step is None
        checkpoints.note(1, 1.0)
        checkpoints.note(2, 2.0)
        checkpoints.note(9, 0.5)  # evaluated, and not saved
        assert checkpoints.best_step == 1
        checkpoints.save(3, state(3))
        checkpoints.wait()
        assert (checkpoints.steps, checkpoints.best_step) == ([1, 3], 1)
