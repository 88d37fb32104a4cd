"""T5-small from scratch (Raffel et al. 2020, arXiv:1910.10683, sections 3.1.1, 3.1.2 and 3.1.4).

2^16 tokens in each of 2^19 steps (128 rows of 512, targets of 114); Adafactor at 0.01 with an inverse square root
schedule after 10,000 steps; no dropout.

    lmjax train --config=experiments/t5_small.py --data='c4/*.jsonl.gz'
    lmjax train --config=experiments/t5_small.py:ul2 --data='c4/*.jsonl.gz'    # a mixture of denoisers instead

Hardware: the paper used TPU pods. Result: not run here; the tests run a step at nano width.
"""

from lmjax.config import Config, replace
from lmjax.data.sources import DataConfig
from lmjax.data.tokenizer import TokenizerConfig
from lmjax.model.presets import PRESETS
from lmjax.objectives.task import TaskConfig
from lmjax.training.checkpoint import CheckpointConfig
from lmjax.training.evaluate import EvaluationConfig
from lmjax.training.hyperparameters import OptimizerConfig

VARIANTS = ("", "ul2")


def get_config(variant: str = "") -> Config:
    """Returns T5's recipe; the variant `ul2` has the objectives of Tay et al. 2023 (arXiv:2205.05131)."""
    config = Config(
        steps=2**19,
        batch_size=128,
        task=TaskConfig(objective=("span_corruption",), length=512),
        model=PRESETS["t5_small"].model_copy(update={"vocab_size": 0, "dtype": "bfloat16", "dropout": {}}),
        data=DataConfig(workers=8),
        tokenizer=TokenizerConfig(kind="unigram", vocab_size=32_000),
        optimizer=OptimizerConfig(
            name="adafactor",
            learning_rate=0.01,
            schedule="rsqrt",
            warmup_steps=10_000,
            weight_decay=0.0,
            clip_norm=None,
        ),
        evaluation=EvaluationConfig(every=5_000, batches=64),
        checkpoint=CheckpointConfig(every=5_000),
    )
    if variant == "":
        return config
    return replace(config, {"task.objective": ("denoise",)})
