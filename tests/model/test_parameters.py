"""The parameter table lists the parameters of the model."""

import jax

from lmjax.model.language_model import init_params
from lmjax.model.parameters import count_parameters, parameter_table


def test_the_table_lists_every_parameter_and_the_total(build):
    model, _ = build("decoder")
    params = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    lines = parameter_table(params).splitlines()
    assert len(lines) == 2 + len(jax.tree.leaves(params))
    rows = {line.split()[0]: line.split()[1:] for line in lines}
    assert rows["embedding/table"] == ["64", "x", "16", "vocab", "embed", "1,024"]
    kernel = rows["backbone/stack/layers/mlp/up/kernel"]
    assert kernel == ["2", "x", "16", "x", "24", "layers", "embed", "mlp", "768"]
    assert lines[-1].split() == ["total", f"{count_parameters(params):,}"]
    assert count_parameters(params) == sum(leaf.size for leaf in jax.tree.leaves(params))
    assert len({len(line) for line in lines}) == 1, "columns are aligned"
