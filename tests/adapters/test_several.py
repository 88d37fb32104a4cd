"""Several adapters of one base: one program for all, and a batch whose rows have adapters of their own."""

import jax
import numpy as np
import pytest

from lmjax.adapters.config import AdapterConfig
from lmjax.adapters.model import make_model, trained
from lmjax.adapters.several import together
from lmjax.errors import FlagError
from lmjax.model.language_model import LanguageModel


def several(adapted, architecture, fields):
    """Returns the plain model, its parameters, and for each name the model and all parameters with that adapter."""
    made = {name: adapted(architecture, each) for name, each in fields.items()}
    plain, base, *_ = next(iter(made.values()))
    models = {}
    for number, (name, (_, _, model, params)) in enumerate(made.items()):
        # The fixture draws the same numbers for all.
        own = jax.tree.map(lambda x, n=number: x * (1 - 0.5 * n), trained(params, model.adapter))
        models[name] = model, own
    return plain, base, models


def outputs(model, params, batch):
    return model.apply({"params": params}, batch, method=LanguageModel.outputs)


SAME = {name: {"targets": "query|out|down"} for name in "ab"}
CASES = {
    "lora": SAME,
    "dora": {name: {"kind": "dora", "targets": "query|out|down"} for name in "ab"},
    "ia3": {name: {"kind": "ia3"} for name in "ab"},
    "ranks": {"a": {"rank": 2, "targets": "query"}, "b": {"kind": "rslora", "rank": 4, "alpha": 3.0, "targets": "up"}},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("architecture", ["encoder", "decoder", "encoder_decoder"])
def test_each_row_is_as_with_its_adapter_alone(adapted, batch, architecture, case):
    plain, base, models = several(adapted, architecture, CASES[case])
    rows = batch(plain)
    alone = {}
    for name, (model, own) in models.items():
        alone[name] = outputs(model, together({name: (model.adapter, own)}).one(base, name), rows)["hidden"]
    assert np.abs(alone["a"] - alone["b"]).max() > 1e-3
    all_of_them = together({name: (model.adapter, own) for name, (model, own) in models.items()})
    shared = make_model(plain.config, plain.heads, all_of_them.config)
    names = ["b", "a", "a"]
    found = outputs(shared, all_of_them.by_row(base, names), rows)["hidden"]
    for row, name in enumerate(names):
        np.testing.assert_allclose(found[row], alone[name][row], atol=2e-5, rtol=1e-4, err_msg=name)
        whole = outputs(shared, all_of_them.one(base, name), rows)["hidden"]
        np.testing.assert_allclose(whole[row], alone[name][row], atol=2e-5, rtol=1e-4, err_msg=name)


def test_another_adapter_compiles_nothing_new(adapted, batch):
    plain, base, models = several(adapted, "decoder", CASES["ranks"])
    every = together({name: (model.adapter, own) for name, (model, own) in models.items()})
    model, traced = make_model(plain.config, plain.heads, every.config), []

    @jax.jit
    def run(params, rows):
        traced.append(1)
        return model.apply({"params": params}, rows)

    found = [run(every.one(base, name), batch(plain)) for name in ("a", "b", "a")]
    assert len(traced) == 1
    np.testing.assert_array_equal(found[0], found[2])


def test_what_rows_or_adapters_cannot_share_is_refused(adapted):
    _, base, models = several(adapted, "decoder", {"a": {"targets": "query"}, "b": {"targets": "embedding"}})
    every = together({name: (model.adapter, own) for name, (model, own) in models.items()})
    with pytest.raises(FlagError, match=r"embedding/lora_a: rows have adapters of their own only in"):
        every.by_row(base, ["a"])
    with pytest.raises(FlagError, match=r"there is no adapter 'c'; there are a, b"):
        every.one(base, "c")
    one = AdapterConfig(kind="dora"), {}
    with pytest.raises(FlagError, match=r"adapter a: kind=dora, whole=none: adapters that differ"):
        together({"a": one, "b": (AdapterConfig(kind="lora"), {})})
