"""Attention of one query a row over keys in rows of one length, and over keys in pages, on a CPU.

    python experiments/bench/paged_attention.py [--rounds=15]

Sixteen rows of twelve heads of width 64, in twelve layers, of which a step of a server reads everything once. Rows hold
576 slots each, as many as the longest text needs; pages (Kwon et al. 2023, arXiv:2309.06180) hold what the texts have,
4,096 slots of all rows together. Times are medians of the rounds; the forms take turns, and each is compared with the
plain one first. Give the machine nothing else to do.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

LAYERS, ROWS, HEADS, WIDTH = 12, 16, 12, 64
LONGEST, HELD = 576, 4096


def in_rows(query: jax.Array, key: jax.Array, value: jax.Array, owner: jax.Array) -> jax.Array:
    """Returns `[rows, heads, width]` for keys and values `[rows, heads, slots, width]`."""
    del owner
    scores = jnp.einsum("bhd,bhkd->bhk", query, key)
    return jnp.einsum("bhk,bhkd->bhd", jax.nn.softmax(scores, -1), value)


def in_pages(query: jax.Array, key: jax.Array, value: jax.Array, owner: jax.Array) -> jax.Array:
    """Returns the same for keys and values `[pages, heads, slots, width]`; `owner` has the row of each page."""
    scores = jnp.einsum("phd,phkd->phk", query[owner], key)
    largest = jax.ops.segment_max(jnp.max(scores, -1), owner, ROWS)
    weights = jnp.exp(scores - largest[owner][..., None])
    mixed = jax.ops.segment_sum(jnp.einsum("phk,phkd->phd", weights, value), owner, ROWS)
    return mixed / jax.ops.segment_sum(weights.sum(-1), owner, ROWS)[..., None]


def check() -> None:
    """Raises AssertionError if the two forms differ for rows of equal length."""
    rng = np.random.default_rng(0)
    query = rng.normal(size=(ROWS, HEADS, WIDTH)).astype(np.float32)
    key, value = rng.normal(size=(2, ROWS, HEADS, 128, WIDTH)).astype(np.float32)
    order = rng.permutation(2 * ROWS)
    paged = (np.concatenate(np.split(x, 2, axis=2))[order] for x in (key, value))
    found = in_pages(query, *paged, jnp.asarray(np.tile(np.arange(ROWS), 2)[order]))
    np.testing.assert_allclose(found, in_rows(query, key, value, None), atol=1e-5)


def stepping(form: Callable[..., jax.Array], batch: int, slots: int, owner: np.ndarray | None) -> Callable[[], float]:
    """Returns a function that computes all layers once and returns the seconds."""
    keys = jax.random.split(jax.random.key(0), 2 * LAYERS + 1)
    shape = batch, HEADS, slots, WIDTH
    query = jax.random.normal(keys[0], (ROWS, HEADS, WIDTH))
    layers = [
        (jax.random.normal(a, shape), jax.random.normal(b, shape)) for a, b in zip(keys[1::2], keys[2::2], strict=True)
    ]

    @jax.jit
    def run(query: jax.Array, layers: list[tuple[jax.Array, jax.Array]], owner: jax.Array | None) -> jax.Array:
        for key, value in layers:
            query += form(query, key, value, owner)
        return query

    run(query, layers, owner).block_until_ready()

    def timed() -> float:
        start = time.perf_counter()
        run(query, layers, owner).block_until_ready()
        return time.perf_counter() - start

    return timed


def main() -> None:
    """Prints the milliseconds of each form."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    check()
    forms = {f"rows of {LONGEST} slots": stepping(in_rows, ROWS, LONGEST, None)}
    for page in (32, 64, 128):
        count = HELD // page
        owner = np.random.default_rng(0).permutation(np.arange(count) % ROWS)
        forms[f"{count} pages of {page} slots"] = stepping(in_pages, count, page, owner)
    forms[f"rows of {HELD // ROWS} slots"] = stepping(in_rows, ROWS, HELD // ROWS, None)
    times = {name: [] for name in forms}
    for _ in range(rounds):
        for name, timed in forms.items():
            times[name].append(timed())
    for name, found in times.items():
        print(f"{name:24} {1000 * statistics.median(found):6.1f} ms")


if __name__ == "__main__":
    main()
