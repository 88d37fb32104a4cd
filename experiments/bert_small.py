"""BERT-small, one of the compact BERTs pretrained from scratch (Turc et al. 2019, arXiv:1908.08962, section 4).

4 layers of width 512; otherwise the recipe of `bert_base.py` with a quarter of its steps and a higher learning rate.

    lmjax train --config=experiments/bert_small.py --data='books/*.txt'

Hardware: one GPU with 24 GB is enough. Result: not run here; the tests run a step at nano width.
"""

from lmjax.config import Config
from lmjax.data.sources import DataConfig
from lmjax.data.tokenizer import TokenizerConfig
from lmjax.model.presets import PRESETS
from lmjax.objectives.task import TaskConfig
from lmjax.training.checkpoint import CheckpointConfig
from lmjax.training.evaluate import EvaluationConfig
from lmjax.training.hyperparameters import OptimizerConfig
from lmjax.training.optimizers.adam import AdamW


def get_config(variant: str = "") -> Config:
    """Returns the recipe."""
    del variant
    return Config(
        steps=250_000,
        batch_size=256,
        task=TaskConfig(objective=("mlm", "nsp"), length=128),
        model=PRESETS["bert_small"].model_copy(update={"vocab_size": 0, "dtype": "bfloat16"}),
        data=DataConfig(workers=8),
        tokenizer=TokenizerConfig(vocab_size=30_000),
        optimizer=OptimizerConfig(
            learning_rate=5e-4,
            schedule="linear",
            warmup_steps=10_000,
            final_ratio=0.0,
            weight_decay=0.01,
            adamw=AdamW(beta2=0.999, epsilon=1e-6),
        ),
        evaluation=EvaluationConfig(every=5_000, batches=64),
        checkpoint=CheckpointConfig(every=5_000),
    )
