"""A whole training run in straight lines of code that use the parts of lmjax; read it from top to bottom.

A decoder learns to predict the next token of a text file with blank lines between documents; one twentieth is held out:

    python experiments/minimal.py input.txt 300
"""

import pathlib
import sys
import tempfile

import jax
import jax.numpy as jnp
import optax

from lmjax.data.documents import Document
from lmjax.data.pipeline import batches
from lmjax.data.sentences import split_sentences
from lmjax.data.store import build_store
from lmjax.data.tokenizer import TokenizerConfig, train_tokenizer
from lmjax.model.language_model import LanguageModel, init_params
from lmjax.model.parameters import unboxed
from lmjax.model.presets import PRESETS
from lmjax.objectives.task import Task, TaskConfig
from lmjax.streams import prng_key

path, steps = pathlib.Path(sys.argv[1]), int(sys.argv[2])
documents = [Document(split_sentences(text), "") for text in path.read_text().split("\n\n") if text.strip()]
held_out, train = documents[::20], [d for i, d in enumerate(documents) if i % 20]
tokenizer = train_tokenizer((d.text for d in train), TokenizerConfig(kind="char", byte_fallback=False))

# Documents become token ids on disk, then packed rows of 128 positions: tokens, targets, weights, segment ids.
task = Task.build(TaskConfig(objective=("next_token",), length=128), tokenizer, "decoder")
cache = tempfile.mkdtemp()
stores = [build_store(lambda d=d: iter(d), tokenizer, fingerprint_parts={"documents": len(d)}, cache_dir=cache)
          for d in (train, held_out)]  # fmt: skip
rows, held_out_rows = (task.examples(store, seed=0) for store in stores)

model = LanguageModel(PRESETS["nano_decoder"].model_copy(update={"vocab_size": tokenizer.vocab_size}))
params = unboxed(init_params(model, prng_key(0, "parameters of the minimal run")))
optimizer = optax.adamw(optax.warmup_cosine_decay_schedule(0, 4e-3, steps // 10, steps))
state = optimizer.init(params)


def loss(params, batch):
    """Returns the mean cross entropy in nats per token; padding has weight 0."""
    hidden = model.apply({"params": params}, batch)
    logits = model.apply({"params": params}, hidden, method="logits")
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"])
    return jnp.sum(nats * batch["weights"]) / jnp.sum(batch["weights"])


@jax.jit
def step(params, state, batch):
    """Returns the parameters and the optimizer's state after one update, and the loss before it."""
    value, gradients = jax.value_and_grad(loss)(params, batch)
    updates, state = optimizer.update(gradients, state, params)
    return optax.apply_updates(params, updates), state, value


with batches(rows, rows.mixture, seed=0, batch_size=16, num_steps=steps) as stream:
    for number, batch in enumerate(stream, 1):
        params, state, value = step(params, state, batch)
        if number % 50 == 0 or number == steps:
            print(f"step {number}: {value:.3f} nats per token")
with batches(held_out_rows, held_out_rows.mixture, seed=0, batch_size=4, num_steps=4) as stream:
    losses = [float(jax.jit(loss)(params, batch)) for batch in stream]
print(f"held out: {sum(losses) / len(losses):.3f} nats per token")
