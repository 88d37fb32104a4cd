"""Checkpoints of several files are written completely, and read tensor by tensor: no whole file is in memory."""

import json
import subprocess
import sys

import ml_dtypes
import numpy as np

from lmjax.interop.checkpoint import describe, shapes
from lmjax.interop.shards import INDEX, SINGLE, Shards, write_shards

TENSORS = {f"t{i}": np.arange(100, dtype=np.float32) + i for i in range(5)} | {"h": np.ones((2, 3), ml_dtypes.bfloat16)}


def test_what_is_written_is_read(tmp_path):
    write_shards(tmp_path, TENSORS.items(), 10**6)
    shards = Shards(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {SINGLE}
    for name, tensor in TENSORS.items():
        assert shards.read(name).dtype == tensor.dtype
        np.testing.assert_array_equal(shards.read(name), tensor)


def test_files_hold_no_more_than_they_may(tmp_path):
    write_shards(tmp_path, TENSORS.items(), 900)
    files = sorted(p.name for p in tmp_path.glob("*.safetensors"))
    assert files == [f"model-{i:05}-of-00003.safetensors" for i in (1, 2, 3)]
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in TENSORS.values())
    assert Shards(tmp_path).headers.keys() == TENSORS.keys()


# Loads a checkpoint in a separate process, and prints by how much its memory grew, and the bytes of the parameters.
LOAD = """
import pathlib, sys
import jax
from lmjax.interop.checkpoint import Checkpoint
from lmjax.runs.pretrained import storage_mesh
from lmjax.training.metrics import peak_host_memory

folder = pathlib.Path(sys.argv[1])
checkpoint = Checkpoint(folder)
config = checkpoint.description.config
mesh = storage_mesh(config, ())
jax.block_until_ready(jax.numpy.ones(8) @ jax.numpy.ones(8))
before = peak_host_memory()
params = jax.block_until_ready(checkpoint.params(config, mesh))
print(peak_host_memory() - before, sum(x.nbytes for x in jax.tree.leaves(params)), checkpoint.shards.largest_file)
"""


def test_the_host_holds_little_more_than_the_parameters(tmp_path):
    """In addition to the parameters, which are in host memory too on a CPU, less than 1.3 times the largest file."""
    values = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 32_000,
        "hidden_size": 512,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "intermediate_size": 2048,
        "max_position_embeddings": 64,
    }
    (tmp_path / "config.json").write_text(json.dumps(values))
    found = describe(tmp_path / "config.json", values)
    sizes = shapes(found.config, found.heads)
    named = (
        (name, np.ones(shape, np.float32))
        for row in found.rows()
        for name, shape in zip(row.theirs, row.layout.shapes([sizes[p] for p in row.ours]), strict=True)
    )
    write_shards(tmp_path, named, 100 * 10**6)
    done = subprocess.run([sys.executable, "-c", LOAD, str(tmp_path)], capture_output=True, text=True, check=True)
    grown, size, largest = map(int, done.stdout.split())
    assert size > 3 * largest
    assert grown < size + 1.3 * largest
