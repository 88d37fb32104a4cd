"""Forms of a product of one row with kernels of 8-bit integers on a CPU, beside the float32 product.

    python experiments/bench/int8_products.py [--rounds=20]

The kernels are those of GPT-2's twelve layers (85 M numbers), each with a scale for every output. Times are processor
time for all of them, the median of the rounds, and the forms take turns, so that other work on the machine does not
favour one. Every form is compared with the float32 product first.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.model.cpu import dot
from lmjax.model.quantized import Quantized

LAYERS, SHAPES = 12, ((768, 2304), (768, 768), (768, 3072), (3072, 768))
TILE = 64


def in_full(x: jax.Array, codes: jax.Array, scales: jax.Array) -> jax.Array:
    """Returns the product with a kernel whose numbers were made before."""
    return x @ codes * scales


def library(x: jax.Array, codes: jax.Array, scales: jax.Array) -> jax.Array:
    """Returns the product as the modules of lmjax compute it: the numbers of the kernel are written to memory first."""
    return dot(x, Quantized(codes, scales[None], core=codes.shape).astype(jnp.float32), 1, None)


def scaled_after(x: jax.Array, codes: jax.Array, scales: jax.Array) -> jax.Array:
    """Returns the product with the codes as floating-point numbers, and scales the result."""
    return x @ codes.astype(jnp.float32) * scales


def summed(x: jax.Array, codes: jax.Array, scales: jax.Array) -> jax.Array:
    """Returns the same as a sum over the rows of the kernel."""
    return jnp.sum(x[0][:, None] * codes.astype(jnp.float32), 0)[None] * scales


def tiles(x: jax.Array, codes: jax.Array, scales: jax.Array) -> jax.Array:
    """Returns the same with codes `[tiles, inputs, 64]`."""
    return jnp.sum(x[0][None, :, None] * codes.astype(jnp.float32), 1).reshape(1, -1) * scales


def integers(x: jax.Array, codes: jax.Array, scales: jax.Array, rows: int = 1) -> jax.Array:
    """Returns the product of integers, the inputs being rounded too; `rows`: equal rows that are multiplied."""
    scale = jnp.max(jnp.abs(x)) / 127
    rounded = jnp.repeat(jnp.round(x / scale).astype(jnp.int8), rows, 0)
    y = jax.lax.dot_general(rounded, codes, (((1,), (0,)), ((), ())), preferred_element_type=jnp.int32)
    return y[:1].astype(jnp.float32) * (scales * scale)


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    codes = [[rng.integers(-127, 128, shape, dtype=np.int8) for shape in SHAPES] for _ in range(LAYERS)]
    scales = [[np.float32(rng.random(shape[1]) * 1e-3) for shape in SHAPES] for _ in range(LAYERS)]

    def stored(change: Callable[[np.ndarray], np.ndarray]) -> list[list[jax.Array]]:
        return [[jnp.asarray(np.ascontiguousarray(change(kernel))) for kernel in layer] for layer in codes]

    plain = stored(lambda kernel: kernel)
    tiled = stored(lambda kernel: kernel.reshape(len(kernel), -1, TILE).transpose(1, 0, 2))
    forms: dict[str, tuple[Callable[..., jax.Array], list[list[jax.Array]]]] = {
        "float32": (in_full, stored(np.float32)),
        "library": (library, plain),
        "scaled after the product": (scaled_after, plain),
        "sum over the kernel's rows": (summed, plain),
        "sum over rows, in tiles of 64 outputs": (tiles, tiled),
        "product of integers": (integers, plain),
        "product of integers, four equal rows": (lambda *given: integers(*given, rows=4), plain),
    }

    def program(form: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
        def run(x: jax.Array, kernels: list, scales: list) -> jax.Array:
            for kernel, scale in zip(kernels, scales, strict=True):
                attended = form(jnp.tanh(form(x, kernel[0], scale[0])[:, :768]), kernel[1], scale[1])
                x = x + form(jnp.tanh(form(attended, kernel[2], scale[2])), kernel[3], scale[3])
            return x

        return jax.jit(run)

    x = jnp.float32(rng.standard_normal((1, 768)))
    programs = {name: (program(form), kernels) for name, (form, kernels) in forms.items()}
    wanted = None
    for name, (run, kernels) in programs.items():
        found = run(x, kernels, scales)
        wanted = found if wanted is None else wanted
        difference = float(jnp.max(jnp.abs(found - wanted)) / jnp.max(jnp.abs(wanted)))
        assert difference < (0.2 if "integers" in name else 1e-3), (name, difference)
    spent: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(args.rounds):
        for name, (run, kernels) in programs.items():
            start = time.process_time()
            run(x, kernels, scales).block_until_ready()
            spent[name].append(time.process_time() - start)
    print("| form | processor time of all kernels (ms) | float32 is faster by |")
    print("|---|---|---|")
    for name, times in spent.items():
        ratio = statistics.median(t / f for t, f in zip(times, spent["float32"], strict=True))
        print(f"| {name} | {1e3 * statistics.median(times):.1f} | {ratio:.2f} x |")


if __name__ == "__main__":
    main()
