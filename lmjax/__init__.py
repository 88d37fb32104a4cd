"""lmjax: encoder, decoder and encoder-decoder language models in JAX, from one block and one loop.

This is the public API for scripts and notebooks. Each name is loaded at its first use, so `import lmjax` is fast:

    config = lmjax.resolve(objective=("next_token",), overrides={"model.num_layers": "4"})
    lmjax.train(config, pathlib.Path("runs/mine"))
    model = lmjax.load_model("runs/mine")
    lmjax.generate(model, ["Return the"], lmjax.GenerateConfig(max_new_tokens=32))[0][0].text
    lmjax.evaluate(model, "test.txt")["bits_per_byte"]
    model(["A text."], output_attentions=True).attentions[0]
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lmjax.commands.train import train as train
    from lmjax.config import Config as Config
    from lmjax.evaluation.tasks import evaluate as evaluate
    from lmjax.inference.embed import embed as embed
    from lmjax.inference.forward import ModelOutput as ModelOutput
    from lmjax.inference.generate.config import GenerateConfig as GenerateConfig
    from lmjax.inference.generate.fill_mask import fill_mask as fill_mask
    from lmjax.inference.generate.generate import generate as generate
    from lmjax.inference.generate.generate import stream as stream
    from lmjax.inference.loaded import LoadedModel as LoadedModel
    from lmjax.inference.score.score import perplexity as perplexity
    from lmjax.inference.score.score import score as score
    from lmjax.inference.score.texts import Item as Item
    from lmjax.runs.start import resolve as resolve
    from lmjax.runs.trained import load_model as load_model

__version__ = "0.1.0"

# Where each public name is defined.
_HOMES = {
    "Config": "lmjax.config",
    "GenerateConfig": "lmjax.inference.generate.config",
    "Item": "lmjax.inference.score.texts",
    "LoadedModel": "lmjax.inference.loaded",
    "ModelOutput": "lmjax.inference.forward",
    "embed": "lmjax.inference.embed",
    "evaluate": "lmjax.evaluation.tasks",
    "fill_mask": "lmjax.inference.generate.fill_mask",
    "generate": "lmjax.inference.generate.generate",
    "load_model": "lmjax.runs.trained",
    "perplexity": "lmjax.inference.score.score",
    "resolve": "lmjax.runs.start",
    "score": "lmjax.inference.score.score",
    "stream": "lmjax.inference.generate.generate",
    "train": "lmjax.commands.train",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lmjax' has no attribute {name!r}; it offers {', '.join(_HOMES)}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
