"""The tiny models of a server for tests, and a process that serves them: `python -m tests.serving.models PORT`."""

import dataclasses
import sys

import jax
import jax.numpy as jnp

from lmjax.data.chat import DEFAULT
from lmjax.model.outputs_first import outputs_first
from lmjax.serving.config import EngineConfig
from lmjax.serving.engine import Engine
from lmjax.serving.served import Served
from tests.inference.scoring import tiny
from tests.inference.writers import writer

SMALL = EngineConfig(rows=3, chunk=16, max_length=64, queue=64, beams=3)


def with_template(loaded):
    """Returns a model whose tokenizer has a chat template."""
    return dataclasses.replace(loaded, tokenizer=loaded.tokenizer.with_template(DEFAULT))


def in_rows(loaded):
    """Returns a model with its kernels in the order in which `lmjax serve` keeps them."""
    return dataclasses.replace(loaded, params=outputs_first(jax.tree.map(jnp.copy, loaded.params)))


def loaded_models() -> dict:
    """A decoder that chats, one without a template, an encoder-decoder and an encoder."""
    found = {
        "decoder": with_template(writer("rope")),
        "plain": writer("rope", 1),
        "both": writer("both"),
        "encoder": tiny("encoder"),
    }
    return {name: in_rows(loaded) for name, loaded in found.items()}


def served_models() -> dict:
    """The models, each with an engine that has started."""
    found = {}
    for name, model in loaded_models().items():
        engine = Engine(model, SMALL)
        engine.start()
        found[name] = Served(name, engine, model)
    return found


def main() -> None:
    """Serves until a signal."""
    from lmjax.serving.app import Limits, make_app
    from lmjax.serving.server import listen, run

    port = int(sys.argv[1])
    with listen("127.0.0.1", port) as listening:
        models = served_models()
        engines = [each.engine for each in models.values()]
        app = make_app(models, Limits(body_seconds=5.0))
        run(app, listening, engines, drain=5.0, url=f"http://127.0.0.1:{listening.getsockname()[1]}")


if __name__ == "__main__":
    main()
