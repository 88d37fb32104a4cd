"""AWQ of a whole model, layer after layer, against a forward pass and a search in float64 that are written here."""

import numpy as np

from lmjax.compress.calibrate import batches
from lmjax.compress.layers import by_awq, changed
from lmjax.model.parameters import flat
from lmjax.model.quantized import QuantizationConfig
from tests.inference.scoring import tiny

TEXTS = ("The young king goes under the old tree", "a queen sees the river house", "never the houses")
FIELDS = {"num_layers": 2, "norm": "rmsnorm", "biases": (), "mlp": "relu", "positions": "none"}
GROUP = 4


def norm(x, scale):
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-5) * scale


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def layer(x, weights, kernels, seen):
    """Returns what a layer makes of `[length, embed]`; `seen` gets the inputs of each of its kernels."""
    h = norm(x, weights["attention_norm/scale"])
    for name in ("query", "key", "value"):
        seen[f"attention/{name}"].append(h)
    q, k, v = (np.einsum("le,ehd->hld", h, kernels[f"attention/{name}"]) for name in ("query", "key", "value"))
    mixed = softmax(np.einsum("hld,hmd->hlm", q, k) / np.sqrt(q.shape[-1])) @ v
    seen["attention/out"].append(mixed.transpose(1, 0, 2).reshape(len(x), -1))
    x = x + np.einsum("hld,hde->le", mixed, kernels["attention/out"])
    h = norm(x, weights["mlp_norm/scale"])
    seen["mlp/up"].append(h)
    hidden = np.maximum(h @ kernels["mlp/up"], 0)
    seen["mlp/down"].append(hidden)
    return x + hidden @ kernels["mlp/down"]


def searched(kernel, x, inputs):
    """Returns the kernel, rounded to 4 bits, whose outputs on `x` err least over the grid of strengths."""
    matrix, best = kernel.reshape(inputs, -1), (np.inf, None)
    for strength in np.arange(10) / 10:
        s = np.maximum(np.abs(x).mean(0), 1e-8) ** strength
        s = s / np.sqrt(s.max() * s.min())
        groups = (matrix * s[:, None]).reshape(-1, GROUP, matrix.shape[1])
        scale = np.abs(groups).max(1, keepdims=True) / 7
        found = (np.round(groups / scale) * scale).reshape(matrix.shape) / s[:, None]
        best = min(best, (np.square(x @ (found - matrix)).sum(), found), key=lambda each: each[0])
    return best[1].reshape(kernel.shape)


def test_each_layer_reads_what_the_rounded_layers_before_it_make():
    loaded = tiny("encoder", **FIELDS)
    config = QuantizationConfig(weights="int4", group=GROUP, stored=True, factors=True)
    found = flat(changed(loaded, batches(loaded, [(text, None) for text in TEXTS], 9, 16), by_awq(config)))
    params = {path: np.asarray(x, np.float64) for path, x in flat(loaded.params).items()}
    rows = [params["embedding/table"][list(loaded.encode(text))] for text in TEXTS]
    for number in range(2):
        start = f"backbone/stack/layer_{number}/"
        own = {path.removeprefix(start): x for path, x in params.items() if path.startswith(start)}
        kernels = {path.removesuffix("/kernel"): x for path, x in own.items() if path.endswith("kernel")}
        seen = {name: [] for name in kernels}
        for x in rows:
            layer(x, own, kernels, seen)
        for name, kernel in kernels.items():
            x = np.concatenate(seen[name])
            kernels[name] = searched(kernel, x, x.shape[-1])
            ours = np.asarray(found[f"{start}{name}/kernel"].astype("float32"), np.float64)
            assert np.abs(kernels[name] - kernel).max() > 1e-2
            np.testing.assert_allclose(ours, kernels[name], atol=1e-4, err_msg=f"{number} {name}")
        rows = [layer(x, own, kernels, {name: [] for name in kernels}) for x in rows]
