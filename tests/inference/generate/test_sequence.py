"""Devices that split the positions of a prompt write the same texts, and each keeps its part of the keys and values."""

import dataclasses

import jax
import numpy as np
import pytest

from lmjax.errors import FlagError
from lmjax.inference.generate import decode
from lmjax.inference.generate.generate import GenerateConfig, generate
from lmjax.inference.generate.requests import Request
from lmjax.inference.generate.writing import pieces
from lmjax.parallel.mesh import ParallelConfig, make_mesh
from lmjax.runs.trained import inference_mesh
from tests.inference.writers import some_prompts, writer
from tests.thinned import thinned

pytestmark = pytest.mark.usefixtures("all_devices")


def split(loaded, ways=4):
    mesh = make_mesh(ParallelConfig(sequence=ways), jax.devices()[:ways])
    copied = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return dataclasses.replace(loaded, mesh=mesh, params=jax.device_put(loaded.params, copied))


@pytest.mark.parametrize(
    ("name", "more"),
    thinned([("window", {}), ("rope", {}), ("learned", {}), ("prefix", {}), ("rope", {"lookup": 2})], 5),
)
def test_split_prompts_give_the_same_texts(name, more):
    one, prompts = writer(name), some_prompts(3, 22, 9)
    config = GenerateConfig(max_new_tokens=2 if name == "learned" else 6, batch_size=4, **more)
    found, expected = ([texts[0] for texts in generate(each, prompts, config)] for each in (split(one), one))
    assert [x.ids for x in found] == [x.ids for x in expected]
    np.testing.assert_allclose([x.score for x in found], [x.score for x in expected], rtol=1e-5)


def test_each_device_keeps_its_part_of_the_keys():
    loaded = split(writer("rope"))
    (fields,) = pieces(loaded, [Request(0, 0, tuple(some_prompts(30)[0]))], chunk=8)
    with loaded.on_devices():
        _, cache = decode.prefill(loaded.params, fields, model=loaded.model, capacity=48)
    key = cache.layers[0]["attention"].key
    assert key.sharding.shard_shape(key.shape)[-2] == 48 // 4


def test_what_cannot_be_split_is_told():
    with pytest.raises(FlagError, match="--sequence=2: splits the prompt of a decoder"):
        inference_mesh(writer("both").config, 1, 2)
    with pytest.raises(FlagError, match="--sequence=9: with --tensor=2 it can be at most 4"):
        inference_mesh(writer("rope").config, 2, 9)
