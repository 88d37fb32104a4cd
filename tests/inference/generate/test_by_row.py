"""Each row is chosen for as alone with its settings: equal to `sampling.Sampling`, whatever the other rows set."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.inference.generate.by_row import MOST_ALTERNATIVES, RowSampling, RowValues
from lmjax.inference.generate.config import GenerateConfig
from lmjax.inference.generate.processors import ProcessorConfig, Processors
from lmjax.inference.generate.sampling import Sampling, SamplingConfig
from lmjax.inference.generate.strategy import NOTHING, ChoiceInput

VOCAB = 97
SETTINGS = [
    SamplingConfig(),
    SamplingConfig(temperature=1.0),
    SamplingConfig(temperature=0.3, top_k=3),
    SamplingConfig(temperature=1.7, top_p=0.4),
    SamplingConfig(temperature=1.2, min_p=0.1),
    SamplingConfig(temperature=0.9, typical_p=0.3),
    SamplingConfig(temperature=2.0, top_k=30, top_p=0.8, min_p=0.01, typical_p=0.9),
]
PENALTIES = [ProcessorConfig(), ProcessorConfig(repetition_penalty=3.0), ProcessorConfig(min_new_tokens=5, banned=(7,))]


def _inputs(rows: int, stop=(5,), count=2) -> ChoiceInput:
    rng = np.random.default_rng(rows)
    tokens = rng.integers(0, VOCAB, (rows, 8)).astype(np.int32)
    written = np.repeat(np.arange(8)[None] < 6, rows, axis=0)
    return ChoiceInput(
        jnp.asarray(rng.normal(0, 3, (rows, VOCAB)), jnp.float32),
        jnp.asarray(tokens),
        jnp.asarray(written),
        jnp.full(rows, count, jnp.int32),
        jnp.full(rows, 9, jnp.int32),
        jnp.array(stop, jnp.int32),
    )


def _row(inputs: ChoiceInput, i: int) -> ChoiceInput:
    fields = {name: getattr(inputs, name)[i : i + 1] for name in ("logits", "tokens", "written", "count", "limit")}
    return inputs.replace(**fields)


def _values(configs, **more) -> RowValues:

    each = [RowValues.of(config, VOCAB, **{"stop": (5,)} | more) for config in configs]
    return jax.tree.map(lambda *x: np.concatenate(x), *each)


def test_every_row_gets_the_token_of_its_own_settings():
    configs = [GenerateConfig(sampling=s, processors=p) for s in SETTINGS for p in PENALTIES]
    inputs = _inputs(len(configs), stop=(-1,))
    seeds = list(range(len(configs)))
    strategy = RowSampling(_values(configs))
    state = strategy.start(seeds, 8)
    differs = False
    for step in range(4):
        now = inputs.replace(count=inputs.count + step)
        found = strategy.choose(now, state)
        for i, config in enumerate(configs):
            alone = Sampling.of(config.sampling, Processors.of(config.processors))
            one = _row(now, i).replace(stop=jnp.array([5]))
            wanted = alone.choose(one, alone.start([seeds[i]], 8))
            assert int(found.ids[i]) == int(wanted.ids[0]), config
            assert bool(found.state.done[i]) == bool(wanted.state.done[0])
            np.testing.assert_allclose(found.state.scores[i], wanted.state.scores[0], atol=1e-5)
            differs |= int(found.ids[i]) != int(jnp.argmax(inputs.logits[i]))
    assert differs, "some rows draw another token than the likeliest"


def test_stop_ids_bias_and_bans_belong_to_their_row():
    inputs = _inputs(3, stop=(-1,))
    best = [int(i) for i in jnp.argmax(inputs.logits, axis=1)]
    config = GenerateConfig()
    rows = [
        RowValues.of(config, VOCAB, stop=(best[0],)),
        RowValues.of(config, VOCAB, stop=(), bias={11: 100.0}),
        RowValues.of(config, VOCAB, stop=(), never=range(VOCAB)),
    ]

    strategy = RowSampling(jax.tree.map(lambda *x: np.concatenate(x), *rows))
    found = strategy.choose(inputs, strategy.start([0, 0, 0], 8))
    assert found.ids.tolist() == [best[0], 11, NOTHING]
    assert found.state.done.tolist() == [True, False, True]


@pytest.mark.parametrize(("presence", "frequency"), [(1.5, 0.0), (0.0, 0.5)])
def test_penalties_count_generated_tokens_and_not_the_prompt(presence, frequency):
    inputs = _inputs(1, stop=(-1,), count=3)
    tokens = inputs.tokens.at[0].set(jnp.array([1, 1, 2, 3, 4, 4, 0, 0]))  # generated: 3, 4, 4
    logits = jnp.zeros((1, VOCAB)).at[0, :5].set(jnp.array([0.0, 5.0, 5.0, 5.0, 5.2]))
    values = _values([GenerateConfig()], presence=presence, frequency=frequency)
    strategy = RowSampling(values)
    given = inputs.replace(tokens=tokens, logits=logits)
    assert int(strategy.choose(given, strategy.start([0], 8)).ids[0]) == 1, "the first id that was not generated"
    both = inputs.replace(tokens=tokens, logits=logits.at[0, 1:3].set(-9))
    wanted = 3 if frequency else 4  # 4 was generated twice, which counts for the frequency alone
    assert int(strategy.choose(both, strategy.start([0], 8)).ids[0]) == wanted


def test_alternatives_are_the_likeliest_tokens_of_the_model():
    inputs = _inputs(2, stop=(-1,))
    values = _values([GenerateConfig(processors=PENALTIES[1])] * 2, alternatives=3)
    strategy = RowSampling(values)
    chosen = strategy.choose(inputs, strategy.start([0, 1], 8)).state.chosen
    log_probs = np.asarray(inputs.logits) - np.logaddexp.reduce(np.asarray(inputs.logits), axis=1, keepdims=True)
    order = np.argsort(-log_probs, axis=1)[:, :MOST_ALTERNATIVES]
    assert chosen.likeliest.tolist() == order.tolist()
    np.testing.assert_allclose(chosen.likeliest_log_probs, np.take_along_axis(log_probs, order, 1), atol=1e-5)
    np.testing.assert_allclose(chosen.log_probs, log_probs[np.arange(2), np.asarray(chosen.ids)], atol=1e-5)
