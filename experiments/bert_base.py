"""BERT-base from scratch (Devlin et al. 2019, arXiv:1810.04805, appendix A.2).

256 rows in each of a million steps, with rows of 128 tokens for the first nine tenths and of 512 for the rest; Adam
with decoupled weight decay, and a linear schedule after 10,000 steps of warm-up.

    lmjax train --config=experiments/bert_base.py --data='books/*.txt'

Hardware: the paper used 16 TPU chips for four days. Result: not run here; the tests run a step at nano width.
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
from lmjax.training.stages import StagesConfig


def get_config(variant: str = "") -> Config:
    """Returns the recipe."""
    del variant
    return Config(
        steps=1_000_000,
        batch_size=256,
        task=TaskConfig(objective=("mlm", "nsp"), length=512),
        stages=StagesConfig(until=(900_000,), length=(128,)),
        model=PRESETS["bert_base"].model_copy(update={"vocab_size": 0, "dtype": "bfloat16"}),
        data=DataConfig(workers=8),
        tokenizer=TokenizerConfig(vocab_size=30_000),
        optimizer=OptimizerConfig(
            learning_rate=1e-4,
            schedule="linear",
            warmup_steps=10_000,
            final_ratio=0.0,
            weight_decay=0.01,
            adamw=AdamW(beta2=0.999, epsilon=1e-6),
        ),
        evaluation=EvaluationConfig(every=10_000, batches=64),
        checkpoint=CheckpointConfig(every=5_000),
    )
