"""Several updates in one call: which calls are made, in which order batches are read, and that a run is the same."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lmjax
from lmjax.data.unpadding import size_of
from lmjax.errors import StuckError, WorkerError
from lmjax.model import cpu
from lmjax.training.calls import CallPlan, Reader, placed, several
from lmjax.training.metrics import read_lines
from tests.training.test_unpadding import written
from tests.workdirs import bits, resumed_from, untimed_lines


@pytest.mark.parametrize("most", [1, 2, 3, 7])
@pytest.mark.parametrize("every", [(4, 6), (0, 5), (0, 0), (7, 7)])
def test_calls_never_run_past_what_is_due_and_are_the_same_from_any_step(most, every):
    plan, steps, stage = CallPlan(most, every), 23, 11

    def walk(step):
        found = []
        while step < steps:
            count = plan.updates(step, stage if step < stage else None, steps)
            found.append((step, count))
            step += count
        assert step == steps
        return found

    whole = walk(0)
    for step, count in whole:
        assert count == 1 or step // most == (step + count - 1) // most
        inside = range(step + 1, step + count)
        assert not [n for n in inside if n == stage or any(e and n % e == 0 for e in every)]
        assert walk(step) == [each for each in whole if each[0] >= step]
    # Calls are as large as they can be.
    for step, count in whole:
        dues = [
            n
            for n in range(step + 1, step + most)
            if n == stage or n > steps - 1 or any(e and n % e == 0 for e in every)
        ]
        assert (count == most) == (step % most == 0 and not dues)


def test_an_error_of_the_data_comes_after_all_batches_before_it():
    def batches(error):
        yield from ({"x": np.int32(n)} for n in range(5))
        raise error

    for error in (WorkerError("gone"), StuckError("stuck")):
        reader = Reader(batches(error), alone=True)
        assert [b["x"] for b in reader.take(3)] == [0, 1, 2]
        assert [b["x"] for b in reader.take(3)] == [3, 4]
        for _ in range(2):
            with pytest.raises(type(error), match=str(error)):
                reader.take(3)
        # Other processes would make calls that this one cannot make.
        reader = Reader(batches(error), alone=False)
        assert [b["x"] for b in reader.take(3)] == [0, 1, 2]
        with pytest.raises(type(error), match=str(error)):
            reader.take(3)


def test_batches_are_placed_together_if_they_can_be():
    place = lambda batch, stacked: (stacked, {name: x.shape for name, x in batch.items()})  # noqa: E731
    one, other = ({"x": np.zeros((2, n)), "y": np.zeros(2)} for n in (3, 4))
    assert placed([one], 1, place) == [((False, {"x": (2, 3), "y": (2,)}), 1)]
    assert placed([one] * 3, 3, place) == [((True, {"x": (3, 2, 3), "y": (3, 2)}), 3)]
    assert [call.updates for call in placed([one] * 2, 3, place)] == [1, 1]
    assert [call.batch[1]["x"] for call in placed([one, other, one], 3, place)] == [(2, 3), (2, 4), (2, 3)]
    lacking = {"x": one["x"]}
    assert [call.updates for call in placed([one, lacking], 2, place)] == [1, 1]
    assert size_of({"unpadded_source": np.zeros((5, 6, 7))}, 2) == 3


@pytest.mark.parametrize("scan", [jax.lax.scan, cpu.scan])
@pytest.mark.parametrize("count", [1, 5])
def test_a_scan_is_a_loop(scan, count):
    xs = {"a": jnp.arange(count * 3.0).reshape(count, 3), "key": jax.random.split(jax.random.key(0), count)}

    def body(carry, x):
        carry = carry * 0.5 + x["a"]
        return carry, (carry.sum(), jax.random.normal(x["key"]))

    carry, ys = jax.jit(lambda carry, xs: scan(body, carry, xs))(jnp.ones(3), xs)
    expected, rows = jnp.ones(3), []
    for index in range(count):
        expected, row = body(expected, jax.tree.map(lambda x, index=index: x[index], xs))
        rows.append(row)
    np.testing.assert_allclose(carry, expected, rtol=1e-6)
    np.testing.assert_allclose(ys, np.transpose(rows), rtol=1e-6)


def test_a_slice_is_cut_out_once_and_not_in_every_loop_that_reads_it():
    """As `jax.lax.scan` does, which is the negative control."""

    def body(carry, x):
        wide = jnp.sin(carry) * x[:, None]
        return wide @ wide.T + x[:, None], (jnp.cos(wide) + x[:, None]).sum(axis=0)

    def slices(scan):
        xs = jax.ShapeDtypeStruct((6, 64), np.float32), jax.ShapeDtypeStruct((64, 64), np.float32)
        text = jax.jit(lambda xs, carry: scan(body, carry, xs)).lower(*xs).compile().as_text()
        # Cutting out the first slice needs no computed position.
        return len(re.findall(r"f32\[1,64\]\S* dynamic-slice\(", text))

    assert slices(cpu.scan) == 1
    assert slices(jax.lax.scan) > 1


def test_several_updates_of_one_are_the_step_itself():
    step = lambda state, batch: (state, batch)  # noqa: E731
    assert several(step, 1) is step


@pytest.fixture
def cases(tmp_path):
    return {
        "packed rows of several sizes": (
            ("classification",),
            {"model__architecture": "encoder", "task__length": 64, "data__train": written(tmp_path, "classification"),
             "model__max_length": 128, "batch_size": 4},
        ),
        "microbatches, stages and an average": (
            ("next_token",),
            {"accumulation": 2, "stages__until": "4", "stages__length": "16", "optimizer__ema_decay": 0.9,
             "optimizer__spike_factor": 1.5, "optimizer__spike_warmup": 1},
        ),
        "two losses": (("mlm,nsp",), {}),
        "an encoder and a decoder on a mesh": (("span_corruption",), {"parallel__fsdp": 2, "parallel__tensor": 2}),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["packed rows of several sizes", "microbatches, stages and an average", "two losses",
                                  "an encoder and a decoder on a mesh"])  # fmt: skip
def test_a_run_of_several_updates_in_a_call_is_that_of_single_ones(request, tiny, tmp_path, cases, name):
    """Up to rounding, with the metrics of every step; and it resumes bit for bit."""
    objective, fields = cases[name]
    if "mesh" in name:
        request.getfixturevalue("every_device")
    shared = {"steps": 11, "evaluation__every": 4, "checkpoint__every": 4, "checkpoint__keep": 10} | fields
    runs = {
        count: lmjax.train(tiny(*objective, **shared, steps_per_call=count), tmp_path / str(count), progress=False)
        for count in (1, 2, 4)
    }
    lines = untimed_lines(runs[1])
    assert [line["step"] for line in lines if "train/loss" in line] == [*range(1, 12)]
    for count in (2, 4):
        for line, expected in itertools.zip_longest(untimed_lines(runs[count]), lines):
            assert line == pytest.approx(expected, rel=1e-5)
    again = lmjax.train(
        tiny(*objective, **shared, steps_per_call=4), resumed_from(runs[4], 4, tmp_path / "again"), progress=False
    )
    assert bits(again, 11) == bits(runs[4], 11)
    assert untimed_lines(again) == untimed_lines(runs[4])
    speeds = [line["train/steps_per_second"] for line in read_lines(again) if "train/loss" in line]
    assert max(speeds) < 1e5


def test_calls_that_are_longer_than_the_run_are_told(tiny, tmp_path, caplog):
    lmjax.train(tiny(steps=2, steps_per_call=5), tmp_path / "run", progress=False)
    assert "steps_per_call=5 is more than the run of 2 steps" in caplog.text
