"""Character-level tiny Shakespeare, compared with nanoGPT's published CPU recipe.

nanoGPT (https://github.com/karpathy/nanoGPT, README, "I only have a macbook"): 4 layers, 4 heads, width 128, context
64, batch 12, 2,000 steps, no dropout, the last tenth of the text held out; validation loss 1.88.

    lmjax train --config=experiments/tinyshakespeare.py --data=input.txt
    lmjax train --config=experiments/tinyshakespeare.py:best --data=input.txt
"""

from lmjax.config import Config
from lmjax.data.sources import DataConfig
from lmjax.data.tokenizer import TokenizerConfig
from lmjax.model.config import ModelConfig
from lmjax.objectives.task import TaskConfig
from lmjax.training.checkpoint import CheckpointConfig
from lmjax.training.evaluate import EvaluationConfig
from lmjax.training.hyperparameters import OptimizerConfig
from lmjax.training.optimizers.adam import AdamW

VARIANTS = ("", "best")


def get_config(variant: str = "") -> Config:
    """Returns nanoGPT's recipe; the variant `best` is our own recipe for the same time."""
    nanogpt = Config(
        seed=1337,
        batch_size=12,
        task=TaskConfig(objective=("next_token",), length=64),
        model=ModelConfig(
            architecture="decoder",
            vocab_size=0,
            embed_dim=128,
            num_heads=4,
            mlp_dim=512,
            num_layers=4,
            max_length=64,
            biases=(),
            mlp="gelu",
            initializer="scaled",
            scan_layers=False,
        ),
        data=DataConfig(train="input.txt", split="tail", held_out=0.1),
        tokenizer=TokenizerConfig(kind="char", byte_fallback=False),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=100, final_ratio=0.1, adamw=AdamW(beta2=0.99)),
        steps=2000,
        evaluation=EvaluationConfig(every=250, batches=1000),
        checkpoint=CheckpointConfig(every=500),
    )
    return nanogpt if variant == "" else _best(nanogpt)


def _best(config: Config) -> Config:
    """Returns a better recipe for the same time: longer rows, rotary positions, gated MLPs, a higher learning rate."""
    model = config.model.model_copy(
        update={"norm": "rmsnorm", "mlp": "swiglu", "mlp_dim": 384, "positions": "rope", "max_length": 128}
    )
    return config.model_copy(
        update={
            "steps": 1500,
            "batch_size": 8,
            "task": config.task.model_copy(update={"length": 128}),
            "model": model,
            "optimizer": OptimizerConfig(
                learning_rate=4e-3, warmup_steps=100, final_ratio=0.02, adamw=AdamW(beta2=0.99)
            ),
        }
    )
