"""Random streams: a separate stream for every purpose, and no generator is made elsewhere."""

import ast
import collections
import itertools
import pathlib
import re

import jax
import numpy as np
import pytest

import lmjax
from lmjax import streams
from lmjax.config import resolve
from lmjax.errors import FlagError
from lmjax.inference.generate.generate import GenerateConfig
from lmjax.runs.build import build
from lmjax.streams import SEEDS, global_stream, named_key, prng_key, prng_keys, random_stream, subseed

PACKAGE = pathlib.Path(lmjax.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
# The functions of numpy, Python and JAX that make generators and keys from seeds.
_MAKERS = re.compile(
    r"default_rng|SeedSequence|RandomState|Philox|PCG64|MT19937|SFC64|(?:np|numpy)\.random\.(?!Generator\b)\w+"
    r"|random\.key\b|PRNGKey|wrap_key_data|random_seed|^\s*(?:import random\b|from random import)",
    re.MULTILINE,
)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_streams_are_made_in_one_place(path):
    if path != pathlib.Path(streams.__file__):
        found = _MAKERS.findall(path.read_text())
        assert not found, f"{found}: take lmjax.streams, under a name of its own"


NAMED = {f.__name__ for f in (random_stream, global_stream, subseed, prng_key, prng_keys, named_key)}


def named_streams(path: pathlib.Path) -> list[str]:
    """Returns the names of streams in the calls of a file; every name must be a literal."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        function = getattr(node.func, "id", getattr(node.func, "attr", "")) if isinstance(node, ast.Call) else ""
        if (
            function in ("random_stream", "global_stream", "subseed", "prng_key", "prng_keys", "named_key")
            and len(node.args) > 1
        ):
            assert isinstance(node.args[1], ast.Constant), f"{path}:{node.lineno}: name the stream by a literal"
            names.append(node.args[1].value)
    return names


def test_every_name_stands_at_one_place():
    """Two purposes with one name would draw the same numbers."""
    counts = collections.Counter(n for p in SOURCES if p.name != "streams.py" for n in named_streams(p))
    assert len(counts) > 12
    assert not {name: count for name, count in counts.items() if count > 1}


ARGUMENTS = [
    *itertools.product((0, 1, 2**31, 2**32, 2**32 + 1, 2**63, SEEDS - 1), ("a", "b")),
    (0, "a", 0), (0, "a", 0, 0), (0, "a", 1), (0, "a", "0"), (0, "a", "0", 0), (1, "a", 0), (0, "a", 2**32),
    (0, "a0"), (0, 'a", 0'), (0, "a", "b/c"), (0, "a", "b", "c"),
]  # fmt: skip


def test_no_two_arguments_share_a_stream():
    """Numpy gives one stream for 0, (0, 0) and (0, 0, 0), and JAX one key for 0 and 2**32."""
    draws = {random_stream(*of).bytes(16) for of in ARGUMENTS}
    keys = {np.asarray(jax.random.key_data(prng_key(*of))).tobytes() for of in ARGUMENTS}
    seeds = {subseed(*of) for of in ARGUMENTS}
    assert len(draws) == len(keys) == len(seeds) == len(ARGUMENTS)
    assert all(0 <= seed < SEEDS for seed in seeds)
    children = {np.asarray(jax.random.key_data(named_key(prng_key(0, "a"), name))).tobytes() for name in "abc"}
    assert len(children - keys) == 3


def test_a_stream_is_what_it_always_was():
    """Batches and random numbers of a run depend on these values: with another hash, a config gives another run."""
    assert random_stream(0, "order", 0, 1).permutation(8).tolist() == [0, 5, 3, 2, 6, 4, 1, 7]
    keys = jax.random.key_data(prng_keys([3, SEEDS - 1], "sampling"))
    assert np.asarray(keys).tolist() == [[2416229897, 2281101078], [3297592251, 3667479365]]
    assert subseed(7, "stage", 1) == 6270053336894285139


def test_a_run_plans_no_two_kinds_of_rows_by_one_stream(tiny, corpus, tmp_path, monkeypatch):
    """Denoisers, sets and stages are each packed in a different order."""
    made, digest = collections.Counter(), streams._digest

    def counted(seed, name, of):
        made[seed, name, of] += 1
        return digest(seed, name, of)

    monkeypatch.setattr(streams, "_digest", counted)
    config = tiny("denoise", stages__until="4", stages__length="16")
    build(config, tmp_path)
    plans = {of: count for of, count in made.items() if of[1] == "packing"}
    assert len(plans) == 3 * 7, "two stages and a held-out set, of seven denoisers each"
    assert set(plans.values()) == {1}


@pytest.mark.parametrize("seed", [-1, SEEDS, 10**30])
def test_a_seed_that_cannot_be_honoured_is_refused(seed):
    with pytest.raises(FlagError, match=f"seed={seed}: "):
        resolve(fields={"seed": seed})
    for make in (random_stream, subseed, prng_key):
        with pytest.raises(FlagError, match=rf"--seed={seed}: seeds go from 0 to {SEEDS - 1}"):
            make(seed, "a")
    with pytest.raises(ValueError, match="seed"):
        GenerateConfig(seed=seed)


@pytest.mark.parametrize("seed", [2**32, SEEDS - 1])
def test_large_seeds_are_seeds(seed):
    assert resolve(fields={"seed": seed}).seed == seed
    assert GenerateConfig(seed=seed).seed == seed
