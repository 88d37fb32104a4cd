"""The collectives, shardings and costs of the compiled steps of small runs on 8 CPU devices."""

import jax
import pytest

from lmjax import config as configs
from lmjax.errors import FlagError
from lmjax.parallel.collectives import counted
from lmjax.parallel.memory import Memory, held
from lmjax.parallel.mesh import make_mesh
from lmjax.runs.ahead import check_planned, compile_ahead

pytestmark = [pytest.mark.usefixtures("all_devices"), pytest.mark.filterwarnings("ignore::UserWarning")]

MODEL = {
    "model.embed_dim": 64, "model.num_heads": 4, "model.mlp_dim": 128, "model.num_layers": 3, "model.vocab_size": 512,
    "task.length": 32, "batch_size": 16, "model.max_length": 64,
}  # fmt: skip
# Collectives of at least this many bytes are the ones of parameters and activations; others are of counters.
LEAST = 1024
RUNS = {
    "decoder, data": ("next_token", {}, {}),
    "decoder, fsdp": ("next_token", {"fsdp": 8}, {}),
    "encoder, fsdp and tensor": ("mlm", {"data": 2, "fsdp": 2, "tensor": 2}, {}),
    "encoder-decoder, tensor": ("span_corruption", {"data": 2, "tensor": 4}, {}),
    "decoder, fsdp, microbatches": ("next_token", {"fsdp": 4, "data": 2}, {"accumulation": 2}),
    "decoder, experts": ("next_token", {"data": 2, "expert": 4}, {"model.moe.num_experts": 4}),
}
# By run: how many there are of each kind, along which axes. They belong to jax 0.10.2; a change of the rules or of the
# model that is meant changes them, and so may another version of XLA.
COUNTS = {}


@pytest.fixture(scope="module")
def ahead():
    """Returns a function from the name of a run to its compiled step, which it compiles once."""
    known = {}

    def compiled(name):
        if name not in known:
            objective, axes, fields = RUNS[name]
            config = configs.resolve(
                objective=(objective,), fields=MODEL | fields | {f"parallel.{k}": v for k, v in axes.items()}
            )
            known[name] = compile_ahead(config, make_mesh(config.parallel))
        return known[name]

    return compiled


@pytest.mark.parametrize("name", RUNS)
def test_collectives_stay(ahead, name):
    found = counted(ahead(name).collectives, LEAST)
    print(f"{name!r}: {found},")
    assert found == COUNTS[name]
