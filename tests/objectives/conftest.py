"""Fixtures for the tests of objectives: a tokenizer of single characters, stores of given texts, and tasks."""

import dataclasses
import functools
import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.data.documents import Document
from lmjax.data.pipeline import example_stream
from lmjax.data.store import build_store
from lmjax.data.tokenizer import TokenizerConfig, train_tokenizer
from lmjax.objectives.base import Forward
from lmjax.objectives.task import Task, TaskConfig
from lmjax.runs.build import build
from lmjax.runs.trained import load_model
from lmjax.training.evaluate import Evaluator
from lmjax.training.step import make_eval_step

LETTERS = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(scope="session")
def tokenizer():
    """Every character is a token, so the arrays in the tests can be compared with texts."""
    return train_tokenizer([f"{LETTERS} ."] * 2, TokenizerConfig(kind="char", byte_fallback=False))


@pytest.fixture(scope="session")
def ids(tokenizer):
    """Returns a function from names of special tokens and strings of text to one list of ids."""
    special = {
        "PAD": tokenizer.pad_id,
        "BOS": tokenizer.bos_id,
        "EOS": tokenizer.eos_id,
        "CLS": tokenizer.cls_id,
        "SEP": tokenizer.sep_id,
        "MASK": tokenizer.mask_id,
        "S0": int(tokenizer.sentinel_ids[0]),
        "S1": int(tokenizer.sentinel_ids[1]),
    }

    def to_ids(*parts: str) -> list[int]:
        return [i for part in parts for i in ([special[part]] if part in special else tokenizer.encode(part))]

    return to_ids


@pytest.fixture(scope="session")
def make_store(tokenizer, tmp_path_factory):
    """Returns a function from documents, each a tuple of sentences or a (source, target) pair, to their store."""
    folder = tmp_path_factory.mktemp("stores")

    def make(documents: list[tuple[str, ...]], pairs: bool = False):
        digest = hashlib.sha256(json.dumps([documents, pairs]).encode()).hexdigest()
        return build_store(
            lambda: (Document(tuple(segments), "", pairs) for segments in documents),
            tokenizer,
            fingerprint_parts={"documents": digest},
            cache_dir=str(folder),
        )

    return make


@pytest.fixture(scope="session")
def make_task(tokenizer):
    """Returns a function (objective, architecture, **fields of TaskConfig) -> Task."""

    def make(objective: str, architecture: str, **fields) -> Task:
        return Task.build(TaskConfig(objective=tuple(objective.split(",")), **fields), tokenizer, architecture)

    return make


@pytest.fixture(scope="session")
def rng_of():
    """Returns the pipeline's generator of an example: (seed, epoch, index) -> generator."""
    return lambda index, epoch=0, seed=0: example_stream(seed, epoch, index)


@pytest.fixture(scope="session")
def sentences():
    """150 documents of 2 to 30 sentences of 1 to 6 random words; no two sentences are equal."""
    rng = np.random.default_rng(0)

    def word() -> str:
        return "".join(rng.choice(list(LETTERS), rng.integers(1, 8)))

    def sentence() -> str:
        return (
            " " + " ".join([*(word() for _ in range(rng.integers(0, 6))), "".join(rng.choice(list(LETTERS), 8))]) + "."
        )

    return [tuple(sentence() for _ in range(rng.integers(2, 31))) for _ in range(150)]


@pytest.fixture(scope="session")
def corpus(sentences, make_store):
    """The store of `sentences`."""
    return make_store(sentences)


@dataclasses.dataclass(kw_only=True)
class ToyForward(Forward):
    """Outputs by name, arrays or functions of their argument, and the names of those that were used.

    Attributes:
        outputs: "states", "logits", and those of heads; the names of a submodel's outputs begin with its name.
        calls: name and argument of each output that was used.
        within: the prefix of the names.
        second: what a second pass adds to the states, as other dropout masks change them; None: a multiple of them.
    """

    outputs: dict
    calls: list = dataclasses.field(default_factory=list)
    within: str = ""
    second: jax.Array | None = None

    @functools.cached_property
    def again(self):
        states, added = self.outputs["states"], self.second

        def change(x):
            return x * (1.5 + jnp.arange(x.shape[1]))[None, :, None] if added is None else x + added

        moved = (lambda batch: change(states(batch))) if callable(states) else change(states)
        return dataclasses.replace(self, outputs={**self.outputs, "states": moved})

    def _call(self, name, argument):
        self.calls.append((f"{self.within}{name}", argument))
        output = self.outputs[f"{self.within}{name}"]
        return output(argument) if callable(output) else output

    def states(self, batch):
        return self._call("states", batch)

    def logits(self, hidden):
        return self._call("logits", hidden)

    def head(self, name, hidden):
        return self._call(name, hidden)

    def submodel(self, name):
        return dataclasses.replace(self, within=f"{name}_")


@pytest.fixture(scope="session")
def forward_of():
    """Returns a function from a batch and outputs by name, as those of ToyForward, to a Forward."""
    return lambda batch, **outputs: ToyForward(batch=batch, key=jax.random.key(0), outputs=outputs)


@pytest.fixture(scope="session")
def toy_forward(tokenizer, forward_of):
    """Returns a function from a batch to the outputs of a model without attention, which is fast."""
    rng = np.random.default_rng(0)
    table, head, pair, yes = (
        jnp.asarray(rng.normal(size=shape), jnp.float32)
        for shape in ((tokenizer.vocab_size, 6), (6, tokenizer.vocab_size), (6, 2), (6,))
    )

    def states(batch):
        return table[batch.get("decoder_tokens", batch.get("tokens"))]

    def make(batch) -> ToyForward:
        return forward_of(
            batch,
            states=states,
            logits=lambda h: h @ head,
            next_sentence=lambda h: h[:, 0] @ pair,
            classifier=lambda h: h[:, 0] @ pair,
            tagger=lambda h: h @ pair,
            span=lambda h: (h @ yes, -(h @ yes)),
            embedding=lambda h: h[:, :2],
            choice=lambda h: h[:, :8] @ yes,
            replaced_token=lambda h: h @ yes,
            generator_states=states,
            generator_logits=lambda h: -(h @ head),
        )

    return make


@pytest.fixture(scope="session")
def within():
    """Returns whether `count` of `total` is within 5 standard deviations of the binomial distribution with `p`."""
    return lambda count, total, p: abs(count - total * p) <= 5 * np.sqrt(total * p * (1 - p))


@pytest.fixture(scope="session")
def evaluated_in_rows():
    """Returns a function from a trained run and its config to the losses of its evaluation sets in rows of a length.

    The run that it builds for them is not trained, so it compiles the evaluation alone.
    """

    def evaluate(workdir, config, length: int) -> dict[str, float]:
        longer = config.with_fields({"task": config.task.with_fields({"length": length})})
        run = build(longer, workdir.parent / f"rows of {length}")
        step, weights = jax.jit(make_eval_step(run.model, run.task)), run.config.task.loss_weights()
        evaluator = Evaluator(run.eval_sets, step, run.mesh, jnp.asarray(run.token_bytes()), weights)
        return evaluator(load_model(workdir).params)

    return evaluate
