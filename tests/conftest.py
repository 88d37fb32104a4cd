"""Settings and fixtures of every test: 8 CPU devices (most see one), strict ranks, a private cache, a tiny corpus."""

import gc
import os
import pathlib
import random
import shutil
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Programs that are compiled again, for another test or in a process that a test starts, are read from a folder. Each of
# pytest's workers has its own: jax writes an entry in place, so that another process could read a part of it.
os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="lmjax-programs-")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
# The tests' many tiny programs compile in half the time, to the same arithmetic; so do those of processes they start.
jax.config.update("jax_disable_most_optimizations", True)
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
# And in a quarter of that time by XLA's older way of making kernels, in one piece for each program.
_QUICK = "--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters --xla_cpu_parallel_codegen_split_count=1"
if _QUICK not in os.environ.get("XLA_FLAGS", ""):  # as of the process that started this one
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_QUICK}".strip()

# As the command line sets it: collecting garbage among the objects of traces took a fourteenth of the tests' time.
gc.set_threshold(10_000, 10, 10)

WORDS = ("a", "the", "old", "young", "king", "queen", "river", "house", "tree", "goes", "sees", "under", "never")


@pytest.fixture(scope="session", autouse=True)
def _private_cache(tmp_path_factory):
    """Points lmjax's cache of stores and tokenizers at a folder of this test session."""
    before = os.environ.get("LMJAX_CACHE")
    os.environ["LMJAX_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["LMJAX_CACHE"]
    else:
        os.environ["LMJAX_CACHE"] = before


_EVERY_DEVICE = jax.devices


@pytest.fixture(scope="session", autouse=True)
def _one_device():
    """Shows lmjax the first of the 8 devices alone, which halves the time to compile and to train a tiny model."""
    first = jax.devices()[:1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda *_: first)
        yield


@pytest.fixture(scope="session", autouse=True)
def _freed_memory_is_handed_back():
    """Keeps runs from changing the memory of the test's process, which trains thousands of models."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lmjax.commands.train.keep_freed_memory", lambda: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def _reports_without_samples():
    """Leaves the sample of generated text out of a run's last report, which takes a quarter of a tiny run's time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lmjax.commands.report.showcase", lambda *_: "")
        yield


@pytest.fixture
def samples(monkeypatch):
    """Puts the sample back into the reports of one test."""
    from lmjax.inference.generate.showcase import showcase

    monkeypatch.setattr("lmjax.commands.report.showcase", showcase)


@pytest.fixture(scope="module")
def all_devices(_one_device):
    """Shows lmjax all 8 devices in the tests of a file, which runs then use."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", _EVERY_DEVICE)
        yield


@pytest.fixture
def every_device(monkeypatch):
    """Shows lmjax all 8 devices in one test."""
    monkeypatch.setattr(jax, "devices", _EVERY_DEVICE)


_MOST_MEMORY = 3 << 30


def _memory() -> int:
    """Returns the resident bytes of this process; 0 where the system does not say."""
    path = pathlib.Path("/proc/self/statm")
    return int(path.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if path.exists() else 0


@pytest.fixture(scope="module", autouse=True)
def _programs_of_one_file():
    """Forgets compiled programs after a file where they fill the memory: thousands of files' tests run in a process."""
    yield
    if _memory() > _MOST_MEMORY:
        jax.clear_caches()
        gc.collect()


def pytest_unconfigure():
    shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)


def pytest_collection_modifyitems(items):
    """Puts the files that take long first: the last file to end then is a short one."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


def sentence(rng: random.Random) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(3, 9))).capitalize() + "."


@pytest.fixture(scope="session")
def _texts(tmp_path_factory) -> pathlib.Path:
    """A file of 60 short documents, blank lines between them."""
    rng = random.Random(0)
    documents = (" ".join(sentence(rng) for _ in range(rng.randint(2, 6))) for _ in range(60))
    path = tmp_path_factory.mktemp("corpus") / "texts.txt"
    path.write_text("\n\n".join(documents) + "\n")
    return path


@pytest.fixture(scope="session")
def corpus(_texts) -> pathlib.Path:
    """The same file; `tiny` does not use this name, because tests/objectives has a corpus of its own."""
    return _texts


@pytest.fixture(scope="session")
def tiny(_texts):
    """A function from an objective and overrides to a config that compiles in seconds and has dropout on.

    Its model has one layer, which takes a third less time to trace and to compile than two: say `model__num_layers=2`
    where a second one matters.
    """
    from lmjax.config import Config, resolve

    def build(objective: str = "next_token", **overrides: object) -> Config:
        values = {
            "data.train": str(_texts),
            "data.held_out": "0.2",
            "tokenizer.kind": "char",
            "tokenizer.byte_fallback": "false",
            "batch_size": "8",
            "task.length": "32",
            "task.target_length": "16",
            "model.embed_dim": "16",
            "model.num_heads": "2",
            "model.mlp_dim": "32",
            "model.num_layers": "1",
            "model.max_length": "64",
            "model.dropout.residual": "0.1",
            "model.dropout.attention": "0.1",
            "steps": "8",
            # Small updates: what must be equal up to rounding stays equal over some steps.
            "optimizer.warmup_steps": "40",
            "evaluation.batches": "2",
            "logging.every": "1",
            "logging.tensorboard": "false",
        }
        values |= {path.replace("__", "."): str(value) for path, value in overrides.items()}
        return resolve(objective=tuple(objective.split(",")), overrides=values)

    return build
