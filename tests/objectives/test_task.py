"""Properties of every objective in every family that can train it, and combinations that are refused."""

import dataclasses
import functools
import itertools
import pickle
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.data.chat import ChatEncoder, ChatTemplate
from lmjax.data.documents import Document
from lmjax.data.pipeline import batches
from lmjax.data.store import build_store
from lmjax.errors import FlagError
from lmjax.model.config import ModelConfig
from lmjax.model.dropout import DropoutRates
from lmjax.model.language_model import LanguageModel, init_params
from lmjax.objectives.preference import AnswerRows
from lmjax.objectives.registry import OBJECTIVES, architectures, combinations, objective_types
from lmjax.objectives.sums import NO_PENALTIES, Penalties
from lmjax.objectives.task import Task, TaskConfig
from lmjax.training.forward import forward

LENGTH, TARGET_LENGTH = 24, 16
MIXTURES = (
    "next_token,prefix_lm,denoise",
    "mlm,nsp,rtd",
    "mlm,masked_diffusion",
    "span_corruption,prefix_lm,infilling",
    "dpo,orpo",
)
NAMES = [*OBJECTIVES, *map(",".join, combinations()), *MIXTURES]
CASES = [(n, a) for n in NAMES for a in architectures(tuple(n.split(",")))]
FAMILIES = ("encoder", "decoder", "encoder_decoder")
RECORDS = ("classification", "tagging", "question_answering", "embedding", "regression", "multiple_choice")
PREFERENCES = ("dpo", "orpo", "simpo", "kto", "reward", "dpo,orpo")
BINARY = ("nsp", "sop", "rtd", *RECORDS, *PREFERENCES)
# What is learned from the training data.
LEARNED = {name: {"labels": ("no", "yes")} for name in ("classification", "tagging", "text_to_text")}
LEARNED["regression"] = {"means": (1.0,), "deviations": (0.8,)}
# At this temperature the similarities of a random model differ little, and of two rows one is right.
LEARNED["embedding"] = {"form": "pairs", "temperature": 10.0}
# With these the answers' log-probabilities, which are far apart for answers of different lengths, hardly count.
LEARNED |= {"dpo": {"beta": 1e-4}, "kto": {"beta": 1e-4}, "simpo": {"beta": 0.1, "gamma": 0.0}, "orpo": {"beta": 1e-4}}

every_case = pytest.mark.parametrize("case", CASES, ids="-".join, indirect=True)


@pytest.fixture(scope="module")
def small(sentences, make_store, tokenizer, tmp_path_factory):
    """Returns a function from a task to a store of its kind, with documents of one token and a long document."""
    text = [*sentences[:12], ("a",), ("b", "c"), ("abcdefgh" * 30,)]
    pairs = [(d[0], d[1]) for d in sentences[:30]] + [("a", "b"), ("", "b"), ("a" * 200, "b"), ("a", "b" * 200)]
    texts = [("a", ""), ("", ""), ("b", "c"), ("abcdefgh" * 30, ""), ("a", "b" * 200), ("it", "so")]
    records = [Document(t, "", counts=(1, 1), values=(("no", "yes")[i % 2],)) for i, t in enumerate(texts)]
    words = [("a", " b"), (), ("",), tuple("abcdefgh" * 30), ("a", " " + "b" * 200), ("it", " so")]
    tagged = [
        Document(w, "", counts=(len(w),), values=(tuple(("no", "yes")[i % 2] for i in range(len(w))),), running=(True,))
        for w in words
    ]
    scored = [Document((*t, ""), "", counts=(1, 1, 1), values=(1.0,)) for t in (*texts[2:], *texts[:2])]
    folder = str(tmp_path_factory.mktemp("records"))

    def stored(name, documents):
        columns = OBJECTIVES[name].columns
        return build_store(lambda: iter(documents), tokenizer, fingerprint_parts={}, cache_dir=folder, columns=columns)

    asked = [("a b c", "b", ("b",), (2,)), ("", "a", (), ()), ("x" * 200 + "y", "a" * 99, ("xy",), (199,)),
             ("a b", "", ("a",), (0,))]  # fmt: skip
    questions = [Document((q,), "", counts=(1,), values=(c, "", a, s)) for c, q, a, s in asked]
    of = {"classification": records, "tagging": tagged, "question_answering": questions}
    labelled = {name: stored(name, documents) for name, documents in of.items()}
    labelled["text_to_text"] = labelled["classification"]
    speakers = ("f:1", "user", "assistant", "user", "assistant")
    said = [("a", "b", "", "c"), ("", "", "a", "b" * 200), ("a", "bc", "d" * 200, "e")]
    spoken = [Document(s, "", counts=(4,), values=(speakers,)) for s in said]
    labelled["chat"] = build_store(
        lambda: iter(spoken),
        tokenizer,
        fingerprint_parts={},
        cache_dir=folder,
        encoder=ChatEncoder(ChatTemplate.of(tokenizer)),
    )
    labelled["embedding"] = stored("embedding", scored)
    numbers = [Document(t, "", counts=(1, 1), values=(float(i % 3),)) for i, t in enumerate(texts)]
    labelled["regression"] = stored("regression", numbers)
    chosen = [("a", "b", ("c", "d")), ("", "", ("a", "")), ("x" * 200, "", ("a", "b" * 200)), ("it", "so", ("", "a"))]
    asked = [Document((c,), "", counts=(1,), values=(q, of, i % 2)) for i, (c, q, of) in enumerate(chosen)]
    labelled["multiple_choice"] = stored("multiple_choice", asked)
    triples = [("a b", "c", "it"), ("x" * 200, "a", "b"), ("so", "a" * 200, "b" * 200), ("it", "so", "a" * 90)]
    compared = [Document(t, "", counts=(1, 1, 1)) for t in triples]
    labelled |= dict.fromkeys(("dpo", "orpo", "simpo", "reward"), stored("dpo", compared))
    rated = [Document(t[:2], "", counts=(1, 1), values=(i % 2,)) for i, t in enumerate(triples)]
    labelled["kto"] = stored("kto", rated)
    stores = {False: make_store(text), True: make_store(pairs, pairs=True)}

    def store_of(task):
        objective = task.objectives[-1]
        return labelled[objective.name] if objective.columns else stores[objective.wants_pairs]

    return store_of


def settings_of(names):
    """Returns the settings that objectives have in these tests."""
    return {name: LEARNED[name] for name in names.split(",") if name in LEARNED}


def examples_of(task, store):
    """Returns the examples of a task; the reference of preferences finds every answer certain."""
    examples = task.examples(store, 0)
    sources = [
        dataclasses.replace(s, rows=dataclasses.replace(s.rows, references=np.zeros((len(s.rows), 2), np.float32)))
        if isinstance(s.rows, AnswerRows)
        else s
        for s in examples.sources
    ]
    return dataclasses.replace(examples, sources=tuple(sources))


@pytest.fixture(scope="module")
def case(request, small, make_task):
    """Returns (objective, architecture, the examples of its task)."""
    objective, architecture = request.param
    lengths = {"length": LENGTH, "target_length": TARGET_LENGTH}
    task = make_task(objective, architecture, **lengths, vocab_chunk=5, **settings_of(objective))
    return objective, architecture, examples_of(task, small(task))


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
            assert filled, "a row is empty"
            assert not segments[filled:].any(), "there is padding between tokens of a row"
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
    assert changed == (objective not in ("next_token", "seq2seq", "chat", "text_to_text", *RECORDS, *PREFERENCES))
    with batches(examples, examples.mixture, seed=0, batch_size=2, shuffle=False) as iterator:
        stacked = next(iterator)
    _, row = examples.mixture.row(1, seed=0, shuffle=False)
    assert equal(examples(row, rng_of(row)), {name: array[1] for name, array in stacked.items()})


@every_case
def test_plan_is_that_of_its_seed(case, small, rng_of):
    _, _, examples = case
    same = examples_of(examples.task, small(examples.task))
    assert len(same) == len(examples)
    assert all(equal(examples(i, rng_of(i)), same(i, rng_of(i))) for i in range(len(examples)))


def tiny_model(architecture, heads, vocab_size):
    """Returns a model and small random parameters, drawn in numpy: compiling an initialisation takes seconds."""
    config = ModelConfig(
        architecture=architecture, vocab_size=vocab_size, embed_dim=16, num_heads=4, mlp_dim=16, num_layers=1,
        max_length=LENGTH, mlp="relu", biases=(), scan_layers=False,
        embedding={"types": 2 if architecture == "encoder" else 0},
    )  # fmt: skip
    model = LanguageModel(config, heads)
    rng = np.random.default_rng(0)
    boxed = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    params = jax.tree.map(lambda x: rng.normal(0, 0.1, x.shape).astype(np.float32), nn.unbox(boxed))
    return model, params


def padded_batch(examples, rng_of):
    """Returns two rows of every source and two rows of padding."""
    rows = sorted({int(i) for i in (*examples.mixture.offsets[:-1], *examples.mixture.offsets[:-1] + 1)})
    features = [examples(i, rng_of(i)) for i in rows]
    features += 2 * [jax.tree.map(np.zeros_like, features[0])]
    return {name: np.stack([f[name] for f in features]) for name in features[0]}


@every_case
def test_a_model_learns_from_it_and_padding_rows_change_nothing(case, tokenizer, rng_of):
    """The loss of a random model is about log(classes) and has a gradient; tokens in padding rows do not change it."""
    _, architecture, examples = case
    task = examples.task
    model, params = tiny_model(architecture, task.heads, tokenizer.vocab_size)
    padded = padded_batch(examples, rng_of)

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # compiled for two calls
    def run(params, batch):
        def loss(params):
            passed = forward(
                model, params, batch, key=jax.random.key(0), dropout_rates=DropoutRates(), penalties=NO_PENALTIES
            )
            sums = task.losses(passed, batch)
            return sum(s.loss / whole[name] for name, s in sums.items()), sums

        whole = task.weights(batch)
        gradient, sums = jax.grad(loss, has_aux=True)(params)
        return gradient, sums, whole

    gradient, sums, whole = run(params, padded)
    assert set(sums) == set(whole) == set(TaskConfig(objective=tuple(case[0].split(","))).loss_weights())
    for name, s in sums.items():
        classes = 2 if name in BINARY else tokenizer.vocab_size
        expected = np.log(classes)
        if name == "question_answering":
            # The classes are the tokens of the context, and [CLS].
            expected = np.log(1 + (padded["context_ids"] > 0).sum(axis=1))[padded["span_weights"] > 0].mean()
        if name == "regression":
            # The mean square of the standardised targets, of which a random model predicts about 0.
            expected = np.square(padded["scores"][padded["label_weights"] > 0]).mean()
        if name == "orpo":
            # The cross entropy of the better answer.
            expected = np.log(tokenizer.vocab_size)
        if name == "kto":
            expected = 0.5
        np.testing.assert_allclose(s.loss / whole[name], expected, rtol=0.1)
        assert s.weight == whole[name] > 1
        assert s.correct is None if name == "regression" else 0 <= s.correct <= s.weight
        assert s.penalty == 0
    for path, g in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.isfinite(g).all()
        # A constant on the logits of all positions, or choices, does not change which of them is the answer.
        named = jax.tree_util.keystr(path)
        assert np.any(g) or named in [f"['{head}_head']['classifier']['bias']" for head in ("span", "choice")], (
            f"{named} has no gradient"
        )

    poisoned = {name: array.copy() for name, array in padded.items()}
    for name, array in poisoned.items():
        if name.endswith("tokens") or name in ("targets", "next_sentence_labels", "labels"):
            array[-2:] = 1
    for first, second in zip(*map(jax.tree.leaves, (run(params, poisoned), (gradient, sums, whole))), strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-7)


@every_case
def test_penalties_are_those_that_the_objective_takes(case, rng_of, toy_forward):
    """Without this, a run could be given a penalty that has no effect."""
    examples = case[2]
    # One row of each source: penalties of opposite labels may cancel.
    batch = {name: array[::2] for name, array in padded_batch(examples, rng_of).items()}
    taken = {n for o in examples.task.objectives for n in o.penalised_by(o.config)}
    for name in ("z_loss", "label_smoothing", "r_drop"):
        passed = toy_forward(batch)
        passed.penalties = Penalties(**{name: jnp.float32(0.1)})
        sums = examples.task.losses(passed, batch)
        assert any(abs(float(s.penalty)) > 0 for s in sums.values()) == (name in taken), name
        assert all(abs(float(s.penalty)) < 1e6 for s in sums.values()), f"{name} counts what cannot be"


@every_case
def test_sums_add_up_over_the_parts_of_a_batch(case, rng_of, toy_forward):
    """For accumulation and the mesh. The discriminator's sum is excepted: it depends on tokens sampled per batch.

    So are sums that compare all rows of a batch: the step computes them from all microbatches (`test_step.py`).
    """
    _, _, examples = case
    task = examples.task
    batch = padded_batch(examples, rng_of)
    half = len(batch["tokens" if "tokens" in batch else "decoder_tokens"]) // 2
    parts = [jax.tree.map(lambda x, s=s: x[s], batch) for s in (slice(0, half), slice(half, None))]
    compute = jax.jit(lambda b: (task.losses(toy_forward(b), b), task.weights(b), task.token_targets(b)))
    whole, *halves = jax.device_get([compute(b) for b in (batch, *parts)])
    for name, expected in whole[0].items():
        if name not in ("rtd", "embedding", "kto"):
            total = halves[0][0][name] + halves[1][0][name]
            for a, b in zip(jax.tree.leaves(total), jax.tree.leaves(expected), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-5)
        assert halves[0][1][name] + halves[1][1][name] == whole[1][name] == expected.weight
    for name, (_, weights) in whole[2].items():
        assert weights.sum() == whole[1][name], "perplexity and bits per byte use other targets than the loss"
    assert set(whole[2]) == set(whole[0]) - set(BINARY)


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_batch_has_no_weight_and_no_loss(name, make_task, small, rng_of, toy_forward):
    task = make_task(name, architectures(tuple(name.split(",")))[0], length=LENGTH, **settings_of(name))
    f = task.examples(small(task), 0)(0, rng_of(0))
    empty = {k: jnp.zeros((2, *v.shape), v.dtype) for k, v in f.items()}
    assert not any(float(w) for w in task.weights(empty).values())
    assert not any(float(x) for x in jax.tree.leaves(jax.jit(lambda b: task.losses(toy_forward(b), b))(empty)))


def test_names_in_any_order_make_the_same_task(make_task):
    assert objective_types(("nsp", "mlm")) == objective_types(("mlm", "nsp"))
    names = ("prefix_lm", "next_token", "denoise")
    for order in itertools.permutations(names):
        task = make_task(",".join(order), "decoder")
        assert [o.name for o in task.objectives] == sorted(names)
    assert (
        make_task("nsp,mlm", "encoder").heads == make_task("mlm,nsp", "encoder").heads == ("masked_lm", "next_sentence")
    )


def test_loss_weights_are_those_of_the_chosen_objectives():
    config = TaskConfig(objective=("mlm", "nsp"), nsp={"loss_weight": 0.25}, next_token={"loss_weight": 9.0})
    assert config.loss_weights() == {"mlm": 1.0, "nsp": 0.25}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("mlm,next_token", "no family trains all of these: mlm needs encoder; next_token needs decoder; leave one out"),
        ("infilling,next_token", "no family trains all of these"),
        ("seq2seq,span_corruption", "seq2seq reads pairs and span_corruption reads running text; train one of them"),
        ("mlm,nsp,sop", "nsp and sop train the same head on different labels; leave one out"),
        ("mlm,nsp,mlm", "give one or several of next_token, .*, each once"),
        ("", "no objective ''"),
    ],
)
def test_what_cannot_be_trained_together_is_refused(names, message, tokenizer):
    with pytest.raises(FlagError, match=f"^--objective={names}: .*{message}"):
        Task.build(TaskConfig(objective=tuple(names.split(","))), tokenizer, "encoder")


def test_no_objective_is_refused(tokenizer):
    with pytest.raises(FlagError, match="--objective=: give one or several"):
        Task.build(TaskConfig(objective=()), tokenizer, "encoder")


def test_unknown_objective_names_what_there_is(tokenizer):
    with pytest.raises(FlagError, match="--objective=nope: no objective 'nope'; choose one of next_token, mlm, nsp"):
        Task.build(TaskConfig(objective=("nope",)), tokenizer, "decoder")


@pytest.mark.parametrize(
    ("name", "architecture"),
    [(n, a) for n in NAMES for a in FAMILIES if (n, a) not in CASES],
    ids=str,
)
def test_a_family_that_cannot_is_refused(name, architecture, tokenizer):
    names = tuple(name.split(","))
    remedy = " or ".join(architectures(names))
    with pytest.raises(
        FlagError, match=f"--architecture={architecture} cannot train --objective={name}; it needs {remedy}"
    ) as error:
        Task.build(TaskConfig(objective=names), tokenizer, architecture)
    written = re.search(r"can write .* as a text \(--objective=seq2seq", str(error.value))
    assert bool(written) == (name in ("tagging", "question_answering"))


MIXED = ("prefix_lm", "denoise", "next_token")


@pytest.fixture(scope="module")
def mixed(corpus, make_task):
    """Returns the examples of three objectives at rates 1, 2 and 0.5, and those of each alone, by name."""
    rates = {"prefix_lm": {"rate": 1}, "denoise": {"rate": 2}, "next_token": {"rate": 0.5}}
    alone = {name: make_task(name, "decoder", length=32).examples(corpus, 0) for name in MIXED}
    return make_task(",".join(MIXED), "decoder", length=32, **rates).examples(corpus, 0), alone


def test_rows_come_at_the_rates_that_were_asked_for(mixed):
    examples, _ = mixed
    rows = [examples.mixture.row(g, seed=0)[1] for g in range(4096)]
    names = [o.name for o in examples.task.objectives]
    found = [examples.sources[examples.mixture.source(row)[0]] for row in rows]
    counts = {name: sum(names[s.group] == name for s in found) for name in names}
    assert all(abs(counts[name] - 4096 * share) < 20 for name, share in zip(MIXED, (2 / 7, 4 / 7, 1 / 7), strict=True))


def test_a_mixed_row_is_the_row_of_its_objective(mixed, rng_of):
    examples, alone = mixed
    for source, first in zip(examples.sources, examples.mixture.offsets[:-1], strict=True):
        name = examples.task.groups[source.group][0].name
        own = alone[name].sources[
            examples.sources.index(source) - [s.group for s in examples.sources].index(source.group)
        ]
        row, plain = examples(int(first) + 2, rng_of(2)), own.rows.features(2, rng_of(2))
        assert row["objective_ids"] == source.group
        for feature, array in row.items():
            if feature in plain:
                np.testing.assert_array_equal(array, plain[feature])
            else:
                assert feature == "objective_ids" or not array.any()


def test_each_objective_of_a_mixture_has_the_loss_that_it_has_alone(mixed, rng_of, toy_forward):
    examples, alone = mixed
    rows = range(0, len(examples), 17)
    batch = {}
    for i in rows:
        for name, array in examples(i, rng_of(i)).items():
            batch.setdefault(name, []).append(array)
    batch = {name: jnp.stack(arrays) for name, arrays in batch.items()}
    sums = jax.jit(lambda b: examples.task.losses(toy_forward(b), b))(batch)
    for group, (objective,) in enumerate(examples.task.groups):
        own = jax.tree.map(lambda x, g=group: x[np.asarray(batch["objective_ids"]) == g], batch)
        task = alone[objective.name].task
        expected = jax.jit(lambda b, t=task: t.losses(toy_forward(b), b))(own)[objective.name]
        assert expected.weight > 100
        for a, b in zip(jax.tree.leaves(sums[objective.name]), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5)


def test_a_mixture_computes_its_logits_once(mixed, rng_of, toy_forward):
    examples, _ = mixed
    batch = jax.tree.map(lambda x: x[None], examples(0, rng_of(0)))
    forward = toy_forward(batch)
    examples.task.losses(forward, batch)
    assert sorted(name for name, _ in forward.calls) == ["logits", "states"]


def test_features_of_different_sizes_share_the_larger_one(make_task, small, rng_of):
    """With different mask rates of mlm and rtd, the row with fewer predictions is padded."""
    task = make_task("mlm,rtd", "encoder", length=LENGTH, mlm={"mask_rate": 0.1}, rtd={"mask_rate": 0.4})
    examples = task.examples(small(task), 0)
    f = examples(0, rng_of(0))
    assert f["targets"].shape == f["prediction_positions"].shape == f["weights"].shape == (10,)
    assert not f["weights"][3:].any()
    assert not f["replaced_token_weights"].any(), "rtd has a loss on a row of mlm"


def test_epochs_count_how_often_the_data_was_read(mixed, corpus):
    examples, _ = mixed
    places = sum(examples.mixture.slots)
    epochs = examples.epochs(3 * places + 5, seed=0)
    counts = np.zeros(len(examples.sources))
    for g in range(3 * places + 5):
        counts[examples.mixture.source(examples.mixture.row(g, seed=0)[1])[0]] += 1
    assert epochs == {"train": pytest.approx((counts / examples.mixture.sizes).sum())}
