"""Runs with an adapter: only the adapter is trained and kept, and the base must be the one that it was trained on."""

import dataclasses
import json
import shutil

import flax.linen as nn
import jax
import numpy as np
import pytest

import lmjax
from lmjax.axes import RULES
from lmjax.cli import run
from lmjax.commands.train import train
from lmjax.config import from_json, replace
from lmjax.errors import CheckpointError, ConfigMismatchError, FlagError
from lmjax.model.parameters import flat
from lmjax.parallel.mesh import ParallelConfig, make_mesh, to_device
from lmjax.runs.adapters import load_adapters
from lmjax.runs.adopt import beginning
from lmjax.runs.build import build
from lmjax.runs.pretrained import open_pretrained, storage_mesh
from lmjax.training.state import state_maker
from lmjax.training.step import loss_and_gradients
from tests.workdirs import bits, losses, resumed_from

pytestmark = pytest.mark.long

LORA = {"adapter.kind": "lora", "adapter.rank": 2, "optimizer.learning_rate": 0.1, "optimizer.warmup_steps": 1}


@pytest.fixture(scope="module")
def base(tiny, tmp_path_factory):
    """Returns the workdir of the base, a decoder."""
    return train(tiny(steps=2, model__num_layers=2), tmp_path_factory.mktemp("base") / "run", progress=False)


def adapting(tiny, base, **fields):
    """Returns the config of a run that adapts the base."""
    values = {"init_from": str(base), "tokenizer.path": str(base), "checkpoint.every": 2, "checkpoint.keep": 9}
    return replace(
        tiny(steps=4, model__num_layers=2),
        {**values, **LORA, **{path.replace("__", "."): x for path, x in fields.items()}},
    )


@pytest.fixture(scope="module")
def whole(tiny, base, tmp_path_factory):
    """Returns the config and the workdir of a run with an adapter and an average of it."""
    config = adapting(tiny, base, optimizer__ema_decay=0.5)
    return config, train(config, tmp_path_factory.mktemp("whole") / "run", progress=False)


def parameters(workdir):
    found = open_pretrained(workdir)
    unrolled = found.config.with_fields({"scan_layers": False})
    return flat(found.params(unrolled, storage_mesh(found.config, found.heads)))


def test_a_checkpoint_holds_the_adapter_alone(whole):
    found = bits(whole[1], 4)
    arrays = [name for name in found if "['params']" in name or "['average']" in name or "opt_state" in name]
    assert [name for name in arrays if "lora" in name]
    assert not [name for name in found if "kernel" in name or "table" in name or "norm" in name.lower()]


def test_the_run_is_the_base_and_what_the_adapter_adds_to_its_targets(whole, base):
    before, after = parameters(base), parameters(whole[1])
    moved = {path for path in before if not np.array_equal(before[path], after[path])}
    assert moved == {path for path in before if path.split("/")[-2] in ("query", "value")}


def test_a_killed_run_goes_on_bit_for_bit(whole, tmp_path):
    config, workdir = whole
    again = train(config, resumed_from(workdir, 2, tmp_path / "run"), progress=False)
    assert bits(again, 4) == bits(workdir, 4)
    assert losses(again) == losses(workdir)


def test_a_base_that_trains_on_stays_the_base_of_its_adapter(tiny, whole, base, tmp_path):
    """The newest checkpoint of the base is another one then; the adapter keeps to that of its own step."""
    moved = shutil.copytree(base, tmp_path / "base")
    config = adapting(tiny, moved)
    workdir = train(config, tmp_path / "run", progress=False)
    expected = parameters(workdir)
    train(tiny(steps=6, model__num_layers=2), moved, progress=False)
    for path, x in parameters(workdir).items():
        np.testing.assert_array_equal(x, expected[path], err_msg=path)


@pytest.mark.parametrize("change", ["changed", "gone", "unnamed"])
def test_another_base_is_refused_when_resumed_and_when_loaded(tiny, base, whole, tmp_path, change):
    config, workdir = whole[0], resumed_from(whole[1], 2, tmp_path / "run")
    moved = shutil.copytree(base, tmp_path / "base")
    values = json.loads((workdir / "base.json").read_text())
    (workdir / "base.json").write_text(json.dumps(values | {"place": str(moved)}))
    parameters(workdir)
    if change == "changed":
        other = train(tiny(steps=2, seed=5, model__num_layers=2), tmp_path / "other", progress=False)
        shutil.rmtree(moved / "checkpoints")
        shutil.copytree(other / "checkpoints", moved / "checkpoints")
        message = r"base/checkpoints/2: the base of the adapter in .* has changed since .*restore them"
    elif change == "gone":
        shutil.rmtree(moved)
        message = r"is not there; put it back, or write in .*base.json where it is now"
    else:
        (workdir / "base.json").unlink()
        message = r"base.json: is missing"
    for use in (lambda: train(config, workdir, progress=False), lambda: lmjax.load_model(workdir)):
        with pytest.raises(CheckpointError, match=message):
            use()


def test_it_is_written_as_an_adapter_or_merged_into_a_whole_model(whole, tmp_path):
    run(["convert", f"--workdir={whole[1]}", f"--to={tmp_path / 'peft'}"])
    assert {path.name for path in (tmp_path / "peft").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    values = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert values["base_model_name_or_path"] == json.loads((whole[1] / "base.json").read_text())["place"]
    run(["convert", f"--workdir={whole[1]}", "--merge", f"--to={tmp_path / 'whole'}"])
    expected = parameters(whole[1])
    for path, x in parameters(tmp_path / "whole").items():
        np.testing.assert_array_equal(x, expected[path], err_msg=path)
    with pytest.raises(FlagError, match="--merge: is for --to and a run with an adapter"):
        run(["convert", f"--from={tmp_path / 'whole'}", "--merge", f"--to={tmp_path / 'other'}"])


def test_adapters_over_one_base_are_exchanged_and_one_for_each_row(tiny, base, whole, tmp_path):
    other = train(
        adapting(tiny, base, adapter__rank=3, adapter__targets="query|up"), tmp_path / "other", progress=False
    )
    run(["convert", f"--workdir={other}", f"--to={tmp_path / 'peft'}"])
    places = {"a": whole[1], "b": tmp_path / "peft"}
    every, texts = load_adapters(base, places), ["the king", "the queen"]
    alone = {"a": lmjax.load_model(whole[1])(texts).logits, "b": lmjax.load_model(other)(texts).logits}
    assert np.abs(alone["a"] - alone["b"]).max() > 1e-3
    for name, logits in alone.items():
        np.testing.assert_allclose(every[name](texts).logits, logits, atol=1e-4)
    mixed = every.by_row(["b", "a"])(texts).logits
    np.testing.assert_allclose(mixed[0], alone["b"][0], atol=1e-4)
    np.testing.assert_allclose(mixed[1], alone["a"][1], atol=1e-4)
    run(["generate", f"--model={base}", f"--adapter={places['b']}", "--prompt=the king", "--max_new_tokens=2"])
    with pytest.raises(CheckpointError, match=r"was trained on .* whose parameters are not those of .*other"):
        load_adapters(other, {"a": whole[1]})
    with pytest.raises(FlagError, match=r"--adapter=.*: holds no adapter"):
        load_adapters(base, {"a": base})


@pytest.mark.parametrize("scan", ["true", "false"])
def test_a_base_of_integers_is_the_same_model_in_training_and_afterwards(tiny, base, tmp_path, scan):
    fields = {"model__scan_layers": scan, "adapter__base_dtype": "int8", "adapter__targets": "query|down"}
    workdir = train(adapting(tiny, base, **fields), tmp_path / "run", progress=False)
    ours, theirs = parameters(workdir), parameters(base)
    kernel = "backbone/stack/layer_1/mlp/up/kernel"
    step = np.abs(theirs[kernel]).max(axis=0) / 127
    assert not np.array_equal(ours[kernel], theirs[kernel])
    assert (np.abs(ours[kernel] - theirs[kernel]) <= step * 0.5001).all(), "the nearest integer of each number"
    begun = beginning(build(from_json(workdir / "config.json"), workdir), progress=False, resumed=True)
    kept = flat(begun.fixed.base)
    path = kernel if scan == "false" else kernel.replace("layer_1", "layers")
    assert kept[path].values.dtype == np.int8
    rounded = np.asarray(kept[path].astype("float32"))
    np.testing.assert_allclose(rounded if scan == "false" else rounded[1], ours[kernel], atol=1e-7)
    # Several adapters over one base share its integers; a run alone has the numbers that they stand for.
    every, texts = load_adapters(base, {"a": workdir}), ["the king", "the queen"]
    np.testing.assert_allclose(every["a"](texts).logits, lmjax.load_model(workdir)(texts).logits, atol=1e-4)
    assert {x.dtype for x in jax.tree.leaves(every.loaded.params)} == {np.dtype("int8"), np.dtype("float32")}


def test_another_rank_is_another_run(whole):
    config, workdir = whole
    with pytest.raises(ConfigMismatchError, match=r"adapter.rank: 2 there, 3 here"):
        train(replace(config, {"adapter.rank": 3}), workdir, progress=False)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"init_from": ""}, "--config.adapter.kind=lora: adapts a trained model; give one with --init_from"),
        ({"adapter.kind": "none"}, "--config.adapter.rank=2: there is no adapter; give --config.adapter.kind=lora"),
    ],
)
def test_fields_that_cannot_work_are_refused(whole, fields, message):
    with pytest.raises(FlagError, match=message):
        replace(whole[0], fields)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    path = tmp_path_factory.mktemp("labels") / "rows.tsv"
    path.write_text("text\tlabel\n" + "".join(f"sees {i} the {x}\t{x}\n" for i in range(20) for x in ("river", "tree")))
    return path


def test_a_new_head_is_trained_whole_and_kept_with_the_adapter(tiny, labelled, tmp_path):
    encoder = train(tiny("mlm", steps=1), tmp_path / "base", progress=False)
    flags = {
        "init_from": encoder, "data": labelled, "objective": "classification", "config.adapter.kind": "lora",
        "steps": 2, "batch_size": 4, "length": 32, "config.data.held_out": 0.2, "config.logging.tensorboard": "false",
    }  # fmt: skip
    given = [f"--{name}={value}" for name, value in flags.items()]
    run(["train", *given, "--noprogress", f"--workdir={tmp_path / 'run'}"])
    assert from_json(tmp_path / "run" / "config.json").adapter.whole == ("classifier_head",)
    heads = {name for name in bits(tmp_path / "run", 2) if "classifier_head" in name and "params" in name}
    assert any("kernel" in name for name in heads)
    assert not any("masked" in name for name in bits(tmp_path / "run", 2))
    assert lmjax.load_model(tmp_path / "run").has_task
    config = from_json(tmp_path / "run" / "config.json")
    with pytest.raises(FlagError, match=r"has no classifier_head, so .*; add classifier_head"):
        train(replace(config, {"adapter.whole": ()}), tmp_path / "other", progress=False)


@pytest.mark.usefixtures("every_device")
def test_mesh_and_accumulation_leave_the_adapters_gradient(tiny, base, tmp_path):
    off = {"model__dropout__residual": 0.0, "model__dropout__attention": 0.0}
    built = build(adapting(tiny, base, **off), tmp_path / "run")
    rows = [built.train_examples(i, np.random.default_rng(i)) for i in range(8)]
    host = {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def gradients(parallel, accumulation, devices=None):
        mesh = make_mesh(ParallelConfig(**parallel), devices)
        run = dataclasses.replace(built, mesh=mesh)
        with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
            fixed, given = beginning(run, progress=False, resumed=True)
            make, _ = state_maker(run.model, run.config.optimizer, run.hparams, 0, mesh)
            # B is zero at first, and the gradient of A with it.
            state = make(given())
            state = state.replace(params=jax.tree.map(lambda x: x + 0.1, state.params))
            hparams, batch = jax.device_get(run.hparams), to_device(host, mesh)
            compute = jax.jit(
                lambda s, b, f: loss_and_gradients(run.model, run.task, s, b, hparams, accumulation, fixed=f)[1]
            )
            return flat(jax.device_get(compute(state, batch, fixed))), flat(fixed.base)

    expected, kept = gradients({}, 1, jax.devices()[:1])
    assert not expected.keys() & kept.keys()
    assert all(np.any(x != 0) for x in expected.values())
    for parallel, accumulation in (({"data": 2, "fsdp": 2, "tensor": 2}, 1), ({"data": 2, "fsdp": 2, "tensor": 2}, 2)):
        found, _ = gradients(parallel, accumulation)
        for path, x in expected.items():
            np.testing.assert_allclose(found[path], x, atol=1e-5, err_msg=path)
