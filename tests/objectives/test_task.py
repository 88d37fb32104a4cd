"""What holds for every objective in every family that can train it, and which combinations are refused."""

import functools
import itertools
import pickle

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.data.pipeline import batches, eval_batches
from lmjax.errors import FlagError
from lmjax.model.config import ModelConfig
from lmjax.model.language_model import LanguageModel, init_params
from lmjax.objectives.base import Outputs
from lmjax.objectives.task import COMBINATIONS, OBJECTIVES, Task, TaskConfig, architectures, objective_types

LENGTH, TARGET_LENGTH = 24, 16
CASES = [(",".join(n), a) for n in [*((o,) for o in OBJECTIVES), *COMBINATIONS] for a in architectures(n)]
FAMILIES = ("encoder", "decoder", "encoder_decoder")

every_case = pytest.mark.parametrize("case", CASES, ids="-".join, indirect=True)


@pytest.fixture(scope="module")
def small(sentences, make_store):
    """A store of running text and one of pairs, both with documents of one token and one that is long."""
    text = [*sentences[:12], ("a",), ("b", "c"), ("abcdefgh" * 30,)]
    pairs = [(d[0], d[1]) for d in sentences[:30]] + [("a", "b"), ("", "b"), ("a" * 200, "b"), ("a", "b" * 200)]
    return {False: make_store(text), True: make_store(pairs, pairs=True)}


@pytest.fixture(scope="module")
def case(request, small, make_task):
    """Returns (objective, architecture, the examples of its task)."""
    objective, architecture = request.param
    task = make_task(objective, architecture, length=LENGTH, target_length=TARGET_LENGTH, vocab_chunk=5)
    store = small[task.objectives[-1].wants_pairs]
    return objective, architecture, task.examples(store, 0)


def shapes(features):
    return {name: (array.shape, array.dtype.name) for name, array in features.items()}


def equal(first, second):
    return first.keys() == second.keys() and all(np.array_equal(first[k], second[k]) for k in first)


@every_case
def test_features_keep_to_the_contract(case, tokenizer, rng_of):
    _, architecture, examples = case
    expected = shapes(examples(0, rng_of(0)))
    for i in range(len(examples)):
        f = examples(i, rng_of(i))
        assert shapes(f) == expected, "a compiled step takes one shape"
        assert {dtype for _, dtype in expected.values()} == {"int32", "float32"}
        for name, array in f.items():
            if name.endswith("tokens") or name == "targets":
                assert array.min() >= 0
                assert array.max() < tokenizer.vocab_size
            if name.endswith("weights"):
                assert np.isin(array, (0, 1)).all()
        for prefix in ("encoder_", "decoder_") if architecture == "encoder_decoder" else ("",):
            length = TARGET_LENGTH if prefix == "decoder_" else LENGTH
            tokens, positions, segments = (f[f"{prefix}{n}"] for n in ("tokens", "positions", "segment_ids"))
            assert tokens.shape == positions.shape == segments.shape == (length,)
            filled = int((segments > 0).sum())
            assert filled, "an empty row"
            assert not segments[filled:].any(), "padding within a row"
            assert not tokens[filled:].any() or tokenizer.pad_id
            assert (np.diff(segments[:filled]) >= 0).all()
            for s in range(1, segments.max() + 1):
                assert positions[segments == s].tolist() == [*range((segments == s).sum())]
        if f.get("weights") is not None and len(f["weights"]) == length:
            assert not f["weights"][filled:].any(), "padding is predicted"
        if architecture == "encoder_decoder":
            assert f["encoder_segment_ids"].max() == f["decoder_segment_ids"].max(), "a target without its source"


@every_case
def test_examples_depend_on_seed_epoch_and_index_alone(case, rng_of):
    objective, _, examples = case
    again = pickle.loads(pickle.dumps(examples))
    assert len(again) == len(examples)
    for i in reversed(range(len(examples))):
        assert equal(examples(i, rng_of(i)), again(i, rng_of(i)))
    pickle.dumps(examples(0, rng_of(0)))
    changed = any(not equal(examples(i, rng_of(i)), examples(i, rng_of(i, epoch=1))) for i in range(len(examples)))
    assert changed == (objective not in ("next_token", "seq2seq"))
    with batches(examples, len(examples), seed=0, batch_size=2, shuffle=False) as iterator:
        stacked = next(iterator)
    assert equal(examples(1, rng_of(1)), {name: array[1] for name, array in stacked.items()})


@every_case
def test_plan_is_that_of_its_seed(case, small, rng_of):
    _, _, examples = case
    store = small[examples.task.objectives[-1].wants_pairs]
    same = examples.task.examples(store, 0)
    assert len(same) == len(examples)
    assert all(equal(examples(i, rng_of(i)), same(i, rng_of(i))) for i in range(len(examples)))


def tiny_model(architecture, heads, vocab_size):
    """Returns a model and small random parameters, drawn in numpy: compiling an initialisation takes seconds."""
    config = ModelConfig(
        architecture=architecture, vocab_size=vocab_size, embed_dim=16, num_heads=2, mlp_dim=16, num_layers=2,
        max_length=LENGTH, mlp="relu", use_bias=False, num_types=2 if architecture == "encoder" else 0,
    )  # fmt: skip
    model = LanguageModel(config, heads)
    rng = np.random.default_rng(0)
    boxed = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    params = jax.tree.map(lambda x: rng.normal(0, 0.1, x.shape).astype(np.float32), nn.unbox(boxed))
    return model, params


@every_case
def test_a_model_learns_from_it_and_padding_rows_change_nothing(case, tokenizer):
    """The loss of a random model is about log(classes), and it has a gradient; padding rows may hold anything."""
    _, architecture, examples = case
    task = examples.task
    model, params = tiny_model(architecture, task.heads, tokenizer.vocab_size)
    with eval_batches(examples, 2, seed=0, batch_size=4) as iterator:
        padded = next(iterator)
    assert all(array[:2].any() or name == "next_sentence_labels" for name, array in padded.items())
    assert all(not array[2:].any() for array in padded.values())

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # compiled for two calls
    def run(params, batch):
        def loss(params):
            def head(method):
                return lambda h: model.apply({"params": params}, h, method=method)

            outputs = Outputs(model.apply({"params": params}, batch), head("logits"), head("next_sentence"))
            sums = task.losses(outputs, batch)
            return sum(s.loss / whole[name] for name, s in sums.items()), sums

        whole = task.weights(batch)
        gradient, sums = jax.grad(loss, has_aux=True)(params)
        return gradient, sums, whole

    gradient, sums, whole = run(params, padded)
    assert set(sums) == set(whole) == {o.name for o in task.objectives}
    for name, s in sums.items():
        np.testing.assert_allclose(s.loss / whole[name], np.log(2 if name == "nsp" else tokenizer.vocab_size), rtol=0.1)
        assert s.weight == whole[name] > 1
        assert 0 <= s.correct <= s.weight
    for path, g in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.isfinite(g).all()
        assert np.any(g), f"{jax.tree_util.keystr(path)} has no gradient"

    poisoned = {name: array.copy() for name, array in padded.items()}
    for name, array in poisoned.items():
        if name.endswith("tokens") or name in ("targets", "next_sentence_labels"):
            array[2:] = 1
    for first, second in zip(*map(jax.tree.leaves, (run(params, poisoned), (gradient, sums, whole))), strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", [",".join(n) for n in [*((o,) for o in OBJECTIVES), *COMBINATIONS]])
def test_an_empty_batch_has_weight_one(name, make_task, small, rng_of):
    task = make_task(name, architectures(tuple(name.split(",")))[0], length=LENGTH)
    f = task.examples(small[task.objectives[-1].wants_pairs], 0)(0, rng_of(0))
    empty = {k: jnp.zeros((2, *v.shape), v.dtype) for k, v in f.items()}
    assert [float(w) for w in task.weights(empty).values()] == [1.0] * len(task.objectives)


def test_names_in_any_order_make_the_same_task(make_task):
    assert objective_types(("nsp", "mlm")) == objective_types(("mlm", "nsp"))
    assert (
        make_task("nsp,mlm", "encoder").heads == make_task("mlm,nsp", "encoder").heads == ("masked_lm", "next_sentence")
    )


def test_loss_weights_are_those_of_the_chosen_objectives():
    config = TaskConfig(objective=("mlm", "nsp"), nsp={"loss_weight": 0.25}, next_token={"loss_weight": 9.0})
    assert config.loss_weights() == {"mlm": 1.0, "nsp": 0.25}


@pytest.mark.parametrize(
    "names", [n for n in itertools.combinations_with_replacement(OBJECTIVES, 2) if n not in COMBINATIONS], ids=",".join
)
def test_objectives_that_share_no_rows_are_refused(names, tokenizer):
    with pytest.raises(FlagError, match=f"--objective={','.join(names)}: .*together go: mlm,nsp"):
        Task.build(TaskConfig(objective=names), tokenizer, "encoder")


@pytest.mark.parametrize("names", [("mlm", "nsp", "mlm"), ()])
def test_odd_numbers_of_objectives_are_refused(names, tokenizer):
    with pytest.raises(FlagError, match="--objective="):
        Task.build(TaskConfig(objective=names), tokenizer, "encoder")


def test_unknown_objective_names_what_there_is(tokenizer):
    with pytest.raises(FlagError, match="--objective=nope: no objective 'nope'; choose of next_token, mlm, nsp"):
        Task.build(TaskConfig(objective=("nope",)), tokenizer, "decoder")


@pytest.mark.parametrize(
    ("name", "architecture"),
    [(n, a) for n in [*OBJECTIVES, "mlm,nsp"] for a in FAMILIES if (n, a) not in CASES],
    ids=str,
)
def test_a_family_that_cannot_is_refused(name, architecture, tokenizer):
    names = tuple(name.split(","))
    remedy = " or ".join(architectures(names))
    with pytest.raises(
        FlagError, match=f"--architecture={architecture} cannot train --objective={name}; it needs {remedy}"
    ):
        Task.build(TaskConfig(objective=names), tokenizer, architecture)
