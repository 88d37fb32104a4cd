"""The collectives, shardings and costs of the compiled steps of small runs on 8 CPU devices."""

import collections
import json

import jax
import pytest

from lmjax import config as configs
from lmjax.commands.train import train_run
from lmjax.errors import FlagError
from lmjax.model.language_model import abstract_params
from lmjax.model.parameters import count_parameters, unboxed
from lmjax.model.quantized import quantize_layers
from lmjax.parallel.chips import CHIPS
from lmjax.parallel.collectives import counted
from lmjax.parallel.memory import Memory, held
from lmjax.parallel.mesh import make_mesh
from lmjax.runs.ahead import check_planned, compile_ahead
from lmjax.runs.meshes import candidates
from lmjax.runs.pretrained import open_pretrained

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
COUNTS = {
    "decoder, data": {"all-reduce data": 1},
    "decoder, fsdp": {"all-gather fsdp": 22, "all-reduce fsdp": 22},
    "encoder, fsdp and tensor": {
        "all-gather fsdp": 23, "all-reduce data": 1, "all-reduce data+fsdp": 1,
        "all-reduce fsdp": 2, "all-reduce tensor": 14,
    },
    "encoder-decoder, tensor": {"all-reduce data": 1, "all-reduce tensor": 32},
    "decoder, fsdp, microbatches": {
        "all-gather fsdp": 22, "all-reduce data": 1, "all-reduce data+fsdp": 1, "all-reduce fsdp": 1,
    },
    "decoder, experts": {"all-gather data": 3, "all-reduce data": 1, "all-reduce expert": 6},
}  # fmt: skip
# Parameters with each of the rules, on a mesh of data, fsdp and tensor.
SHARDINGS = {
    "embedding/table": "P('tensor', 'fsdp')",
    "output_bias": "P('tensor',)",
    "backbone/inputs/types/table": "P(None, 'fsdp')",
    "backbone/stack/final_norm/scale": "P(None,)",
    "backbone/stack/layer_0/attention/query/kernel": "P('fsdp', 'tensor', None)",
    "backbone/stack/layer_0/attention/key/kernel": "P('fsdp', 'tensor', None)",
    "backbone/stack/layer_0/attention/out/kernel": "P('tensor', None, 'fsdp')",
    "backbone/stack/layer_0/mlp/gate/kernel": "P('fsdp', 'tensor')",
    "backbone/stack/layer_0/mlp/down/kernel": "P('tensor', 'fsdp')",
}


# By run: bytes of its parameters on one device, and how many have each sharding.
_DENSE = {
    "P('fsdp', 'tensor')": 6, "P('fsdp', 'tensor', None)": 9, "P('tensor', 'fsdp')": 4, "P('tensor', None, 'fsdp')": 3,
    "P(None,)": 7,
}  # fmt: skip
SPLIT = {
    "decoder, data": (624_384, _DENSE),
    "decoder, fsdp": (79_616, _DENSE),
    "encoder, fsdp and tensor": (158_720, _DENSE | {"P('tensor',)": 1, "P(None, 'fsdp')": 1}),
    "encoder-decoder, tensor": (
        332_032,
        {
            "P('fsdp', 'tensor')": 12, "P('fsdp', 'tensor', None)": 27, "P('tensor', 'fsdp')": 7,
            "P('tensor', None, 'fsdp')": 9, "P(None,)": 17,
        },
    ),
    "decoder, fsdp, microbatches": (157_440, _DENSE),
    "decoder, experts": (
        627_456,
        {
            "P('expert', 'fsdp', 'tensor')": 6, "P('expert', 'tensor', 'fsdp')": 3, "P('fsdp', 'tensor', None)": 9,
            "P('fsdp', None)": 3, "P('tensor', 'fsdp')": 1, "P('tensor', None, 'fsdp')": 3, "P(None,)": 7,
        },
    ),
}  # fmt: skip


# By run: FLOPs of the products of one device, and bytes that its kernels read and write. Times cannot be trusted on a
# machine that others use; these numbers are the same everywhere with one version of XLA.
WORK = {
    "decoder, data": (64_487_424, 31_212_028),
    "decoder, fsdp": (64_487_424, 19_412_756),
    "encoder, fsdp and tensor": (53_870_592, 23_978_804),
    "encoder-decoder, tensor": (80_117_760, 47_801_204),
    "decoder, fsdp, microbatches": (64_487_424, 27_253_479),
    "decoder, experts": (259_141_632, 76_348_632),
}


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
    if not jax.__version__.startswith("0.10."):
        pytest.skip("the counts are those of jax 0.10")
    assert counted(ahead(name).collectives, LEAST) == COUNTS[name]


@pytest.mark.parametrize("name", RUNS)
def test_a_step_does_not_work_more(ahead, name):
    """A step that computes or moves a tenth more is slower; where less is enough, the new numbers are recorded."""
    if not jax.__version__.startswith("0.10."):
        pytest.skip("the numbers are those of jax 0.10")
    flops, moved = WORK[name]
    assert ahead(name).load.flops <= 1.1 * flops
    assert ahead(name).load.moved <= 1.1 * moved


@pytest.mark.parametrize("name", RUNS)
def test_the_least_is_less_than_what_a_step_moves(ahead, name):
    """It has at least the parameters and moments, read and written, and the gradients, read."""
    made = ahead(name)
    params = held(made.state.params, Memory(0, "", False))
    assert 2 * 3 * params + params < made.least_moved < made.load.moved


def test_shardings_stay(ahead):
    """The optimizer's moments are beside the parameters."""
    state = ahead("encoder, fsdp and tensor").state
    leaves = jax.tree_util.tree_leaves_with_path(state.params)
    found = {"/".join(str(key.key) for key in path): str(x.sharding.spec) for path, x in leaves}
    assert {name: found[name] for name in SHARDINGS} == SHARDINGS
    moments = [str(x.sharding.spec) for x in jax.tree.leaves(state.opt_state) if x.ndim]
    assert sorted(moments) == sorted([*found.values()] * 2)


@pytest.mark.parametrize("name", RUNS)
def test_all_shardings_stay(ahead, name):
    """A rule that is lost for one kind of parameter changes the counts, and one that splits another way the bytes."""
    params = jax.tree.leaves(ahead(name).state.params)
    found = collections.Counter(str(x.sharding.spec) for x in params)
    assert (held(params, Memory(0, "", False)), found) == SPLIT[name]


@pytest.mark.parametrize("name", ["decoder, data", "decoder, fsdp", "encoder-decoder, tensor"])
def test_products_are_those_of_the_model(ahead, name):
    """On a mesh without experts, nothing is computed twice, and each device has its share."""
    found = ahead(name)
    assert found.load.flops == pytest.approx(found.model_flops / 8, rel=0.01)


def test_memory_of_parameters_and_optimizer(ahead):
    """AdamW has two moments; fsdp divides all that has its axis by 8, and data nothing."""
    plain, split = ahead("decoder, data"), ahead("decoder, fsdp")
    whole = sum(x.size * 4 for x in jax.tree.leaves(plain.state.params))
    assert plain.memory["parameters"] == whole
    assert plain.memory["optimizer"] == pytest.approx(2 * whole, abs=64)
    assert whole / 8 <= split.memory["parameters"] < whole / 6
    assert split.memory["optimizer"] == pytest.approx(2 * split.memory["parameters"], abs=64)
    assert held(split.state.params, Memory(0, "", False)) == split.memory["parameters"]


def test_gradients_of_data_parallel_rows_are_summed_once(ahead):
    """The bytes of one sum of all gradients in float32 by a ring of 8, beside those of a few counters.

    The tied table has gradients of the input and of the logits, and XLA on a CPU sums each over the devices.
    """
    found = ahead("decoder, data")
    params = found.state.params
    whole = sum(x.size * 4 for x in jax.tree.leaves(params))
    table = 4 * MODEL["model.vocab_size"] * MODEL["model.embed_dim"]
    (sent,) = found.load.sent.values()
    assert sent == pytest.approx(2 * 7 / 8 * (whole + table), rel=0.001)


@pytest.fixture(scope="module")
def planned():
    """A function from fields to the compiled step of the small decoder."""

    def compiled(objective="next_token", **fields):
        given = MODEL | {name.replace("__", "."): value for name, value in fields.items()}
        config = configs.resolve(objective=(objective,), fields=given)
        return compile_ahead(config, make_mesh(config.parallel))

    return compiled


def test_replicas_of_pmap_are_planned_as_a_mesh_that_splits_the_batch(ahead, planned):
    found, mesh = planned(parallel__kind="pmap"), ahead("decoder, data")
    assert (found.load, found.memory) == (mesh.load, mesh.memory)


@pytest.mark.parametrize("base_dtype", ["param", "int8"])
def test_an_adapter_has_a_base_without_gradients_and_moments(ahead, planned, base_dtype):
    whole = ahead("decoder, fsdp")
    found = planned(
        adapter__kind="lora", adapter__base_dtype=base_dtype, adapter__rank=2, init_from="base", parallel__fsdp=8
    )
    base = unboxed(abstract_params(whole.run.model.config, whole.run.model.heads))
    kept = jax.eval_shape(quantize_layers, base) if base_dtype == "int8" else base
    sizes = sorted((x.size * x.dtype.itemsize for x in jax.tree.leaves(kept)), reverse=True)
    # Scales and norms are small, and not all are divided.
    assert sum(sizes) / 8 <= found.memory["the adapter's base"] <= sum(sizes) / 8 + sum(x for x in sizes if x < 1000)
    # Rank 2 on query and value of three layers: 2 x (64 + 64) numbers each.
    trained = 3 * 2 * 2 * (64 + 64)
    assert count_parameters(found.state.params) == trained
    assert found.memory["optimizer"] <= whole.memory["optimizer"] * trained / count_parameters(whole.state.params) * 8
    assert found.model_flops == pytest.approx(whole.model_flops * 2 / 3)
    assert found.model_flops / 8 <= found.load.flops < whole.load.flops


def test_a_teacher_is_computed_and_held_beside_the_run(planned, tiny, tmp_path):
    train_run(tiny("next_token", steps=1), tmp_path / "teacher", progress=False)
    place = str(tmp_path / "teacher")
    source = open_pretrained(place)
    small = {"model.vocab_size": source.config.vocab_size}
    found = planned(teacher__place=place, tokenizer__path=place, **small)
    assert found.memory["teacher"] == 4 * count_parameters(abstract_params(source.config, source.heads))
    assert found.load.flops * 8 >= found.needed_flops > found.run.flops_per_step(found.run.stages[-1], computed=True)
    with pytest.raises(FlagError, match=r"--config\.tokenizer\.path"):
        planned(teacher__place=place, **small)
    # The search for a layout counts it as the plan does.
    taught = configs.replace(found.run.config, {"parallel.fsdp": 1})
    alone = configs.replace(taught, {"teacher.place": ""})
    ranked = [
        {each.name: each for each in candidates(config, ("vocabulary",), jax.devices()[:8], CHIPS["TPU v5e"])}
        for config in (taught, alone)
    ]
    assert ranked[0].keys() == ranked[1].keys()
    for name, each in ranked[0].items():
        assert each.seconds > ranked[1][name].seconds, name
        split = each.config.parallel.fsdp * each.config.parallel.tensor
        assert each.memory - ranked[1][name].memory == pytest.approx(found.memory["teacher"] / split, rel=1e-6), name


def test_what_a_reference_predicts_is_a_part_of_the_batch(planned, tmp_path):
    records = tmp_path / "pairs.jsonl"
    lines = [{"prompt": f"p{i}", "chosen": "good " * (1 + i % 3), "rejected": f"bad {i}"} for i in range(32)]
    records.write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = {"data.train": str(records), "data.held_out": 0.2, "data.cache_dir": str(tmp_path / "cache")}
    tokens = {"tokenizer.kind": "char", "tokenizer.byte_fallback": False}
    found = planned("dpo", init_from="base", **data, **tokens)
    assert found.load.flops > 0
    assert found.memory["the adapter's base"] == found.memory["teacher"] == 0


def test_recorded_predictions_are_not_planned():
    with pytest.raises(FlagError, match=r"--config\.teacher\.place=taught"):
        check_planned(configs.resolve(fields={"teacher.place": "taught.safetensors"}))
