"""GPT-2 small from scratch (Radford et al. 2019; numbers that the paper does not give are nanoGPT's, train_gpt2.py).

480 rows of 1,024 tokens in each of 600,000 steps; AdamW at 6e-4 with 2,000 steps of warm-up and a cosine schedule that
ends at one tenth.

    lmjax train --config=experiments/gpt2_small.py --data='webtext/*.jsonl.gz'

Hardware: nanoGPT took four days on 8 A100. Result: not run here; the tests run a step at nano width.
"""

from lmjax.config import Config
from lmjax.data.sources import DataConfig
from lmjax.data.tokenizer import TokenizerConfig
from lmjax.model.presets import PRESETS
from lmjax.objectives.task import TaskConfig
from lmjax.training.checkpoint import CheckpointConfig
from lmjax.training.evaluate import EvaluationConfig
from lmjax.training.hyperparameters import OptimizerConfig


def get_config(variant: str = "") -> Config:
    """Returns the recipe."""
    del variant
    return Config(
        steps=600_000,
        batch_size=480,
        accumulation=4,
        task=TaskConfig(objective=("next_token",), length=1024, vocab_chunk=128),
        model=PRESETS["gpt2"].model_copy(update={"vocab_size": 0, "dtype": "bfloat16", "dropout": {}}),
        data=DataConfig(workers=8),
        tokenizer=TokenizerConfig(vocab_size=50_000),
        optimizer=OptimizerConfig(learning_rate=6e-4, warmup_steps=2_000, final_ratio=0.1, weight_decay=0.1),
        evaluation=EvaluationConfig(every=1_000, batches=64),
        checkpoint=CheckpointConfig(every=1_000),
    )
