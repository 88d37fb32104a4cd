"""A model with an adapter: the same for scanned and unrolled layers, with remat and merged; and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.adapters.config import AdapterConfig
from lmjax.adapters.merge import merged
from lmjax.adapters.model import AdaptedModel, make_model, trained, untrained
from lmjax.errors import FlagError
from lmjax.model.intercept import record
from lmjax.model.language_model import LanguageModel, init_params
from lmjax.model.parameters import flat, overlaid, unboxed
from lmjax.model.presets import PRESETS
from lmjax.model.transformer import stack_layers

FAMILIES = ("encoder", "decoder", "encoder_decoder")
EVERYWHERE = {"targets": ".*attention/(query|key|value|out)|up|down"}


def outputs(model, params, batch):
    return jax.jit(lambda p: model.apply({"params": p}, batch, method=LanguageModel.outputs))(params)


def close(found, expected, tolerance=1e-5):
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        scale = float(jnp.abs(x).max())
        np.testing.assert_allclose(found[name], x, atol=tolerance * scale, rtol=tolerance, err_msg=name)


@pytest.mark.parametrize("architecture", FAMILIES)
def test_a_new_adapter_is_the_base_exactly(adapted, batch, architecture):
    plain, base, model, _ = adapted(architecture, EVERYWHERE)
    new = overlaid(base, unboxed(init_params(model, jax.random.key(3))))
    expected = outputs(plain, base, batch(plain))
    for name, x in outputs(model, new, batch(plain)).items():
        np.testing.assert_array_equal(x, expected[name])


@pytest.mark.parametrize("kind", ["lora", "dora", "ia3"])
@pytest.mark.parametrize("architecture", FAMILIES)
def test_merged_is_unmerged(adapted, batch, architecture, kind):
    targets = {} if kind == "ia3" else EVERYWHERE
    plain, base, model, params = adapted(architecture, {"kind": kind, **targets})
    expected = outputs(model, params, batch(plain))
    assert np.abs(expected["hidden"] - outputs(plain, base, batch(plain))["hidden"]).max() > 0.01
    close(outputs(plain, merged(params, model.adapter), batch(plain)), expected)


@pytest.mark.parametrize("tied", [True, False])
def test_the_adapter_of_a_token_table_changes_look_up_and_logits_as_the_merged_table_does(adapted, batch, tied):
    plain, base, model, params = adapted("decoder", {"targets": "embedding"}, **{"head.tied": tied})
    expected = outputs(model, params, batch(plain))
    found = merged(params, model.adapter)
    assert flat(found).keys() == flat(base).keys()
    close(outputs(plain, found, batch(plain)), expected)


def test_adapters_of_experts(adapted, batch):
    fields = {"moe.num_experts": 3, "moe.top_k": 2}
    plain, base, model, params = adapted("decoder", {"targets": ".*moe/(up|down|router)"}, **fields)
    expected = outputs(model, params, batch(plain))
    assert np.abs(expected["hidden"] - outputs(plain, base, batch(plain))["hidden"]).max() > 0.01
    close(outputs(plain, merged(params, model.adapter), batch(plain)), expected)


def test_layers_that_share_parameters_share_their_adapter(adapted, batch):
    plain, _, model, params = adapted("encoder", EVERYWHERE, share_layers=True)
    assert {path.split("/")[2] for path in flat(trained(params, model.adapter))} == {"shared_layer"}
    close(
        outputs(plain, merged(params, model.adapter), batch(plain)),
        outputs(model, params, batch(plain)),
    )


@pytest.mark.parametrize("kind", ["lora", "dora", "ia3"])
def test_scanned_and_recomputed_layers_leave_outputs_and_gradients(adapted, batch, kind):
    plain, _, model, params = adapted("decoder", {"kind": kind})
    rows = batch(plain)

    def gradient(model, params):
        base, own = untrained(params, model.adapter), trained(params, model.adapter)
        loss = lambda own: jnp.sum(jnp.square(model.apply({"params": overlaid(base, own)}, rows)))  # noqa: E731
        return jax.jit(jax.value_and_grad(loss))(own)

    value, expected = gradient(model, params)
    assert flat(expected).keys() == flat(trained(params, model.adapter)).keys()
    for fields in ({"scan_layers": True}, {"remat": "full"}, {"scan_layers": True, "remat": "full"}):
        other = make_model(model.config.with_fields(fields), model.heads, model.adapter)
        scan = "scan_layers" in fields
        found, grads = gradient(other, unboxed(stack_layers(params)) if scan else params)
        np.testing.assert_allclose(found, value, rtol=1e-5)
        close(flat(grads), flat(unboxed(stack_layers(expected)) if scan else expected), 1e-4)


def test_what_is_recorded_is_what_the_adapter_gives(adapted, batch):
    """The functions that record activations see the outputs of the adapted layer, not those of the layer alone."""
    plain, base, model, params = adapted("decoder")
    name = "layer_0/attention/query"
    _, found = record(model, params, batch(plain), [name])
    _, expected = record(plain, merged(params, model.adapter), batch(plain), [name])
    np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-5)
    assert np.abs(found[name] - record(plain, base, batch(plain), [name])[1][name]).max() > 0.01


def test_parts_that_are_trained_whole_have_no_adapter(adapted):
    *_, model, params = adapted(
        "encoder", {"targets": "query|dense|classifier", "whole": ("classifier_head",)}, ("classifier",)
    )
    own = flat(trained(params, model.adapter))
    assert "classifier_head/classifier/kernel" in own
    assert not any("classifier_head" in path and "lora" in path for path in own)
    assert flat(untrained(params, model.adapter)).keys().isdisjoint(own)


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        (
            {"targets": "qeury"},
            r"adapter.targets=qeury: matches no layer; did you mean query\? the last names",
        ),
        ({"targets": "q_proj|v_proj"}, r"targets=q_proj\|v_proj: matches no layer; .*the last names are down, .*value"),
        ({"kind": "dora", "targets": "embedding"}, "embedding is a table or belongs to experts, which .*kind=dora"),
        ({"kind": "ia3", "targets": "embedding|key"}, "embedding is a table .*kind=ia3 cannot change; take lora"),
    ],
)
def test_targets_that_fit_no_layer_are_refused(adapter, message):
    config = PRESETS["nano_decoder"].with_fields({"vocab_size": 48})
    with pytest.raises(FlagError, match=message):
        make_model(config, (), AdapterConfig(**{"kind": "lora", **adapter}))


def test_without_a_kind_the_model_is_the_plain_one():
    assert not isinstance(make_model(PRESETS["nano_decoder"], (), AdapterConfig()), AdaptedModel)
    with pytest.raises(ValueError, match="no regular expression"):
        AdapterConfig(kind="lora", targets="(query")
