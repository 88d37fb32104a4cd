"""The base Transformer for translation (Vaswani et al. 2017, arXiv:1706.03762, sections 5 and 6.1).

About 25,000 source and target tokens (200 rows of 128) in each of 100,000 steps; Adam with beta2 0.98, 4,000 steps of
warm-up and then an inverse square root schedule; label smoothing 0.1, dropout 0.1, a shared vocabulary of 37,000
tokens.

    lmjax train --config=experiments/transformer_base.py --data=wmt14.en-de.tsv.gz

The file has a header, and source and target are separated by a tab. Hardware: the paper used 8 P100 for 12 hours.
Result: not run here; the tests run a step at nano width. `multi30k.py` is a recipe for small machines.
"""

from lmjax.config import Config
from lmjax.data.sources import DataConfig
from lmjax.data.tokenizer import TokenizerConfig
from lmjax.model.presets import PRESETS
from lmjax.objectives.task import TaskConfig
from lmjax.training.checkpoint import CheckpointConfig
from lmjax.training.evaluate import EvaluationConfig
from lmjax.training.hyperparameters import OptimizerConfig
from lmjax.training.optimizers.adam import Adam


def get_config(variant: str = "") -> Config:
    """Returns the recipe."""
    del variant
    return Config(
        steps=100_000,
        batch_size=200,
        task=TaskConfig(objective=("seq2seq",), length=128, target_length=128, label_smoothing=0.1),
        model=PRESETS["transformer_base"].model_copy(update={"vocab_size": 0}),
        data=DataConfig(workers=8),
        tokenizer=TokenizerConfig(vocab_size=37_000),
        optimizer=OptimizerConfig(
            name="adam",
            # The paper's d_model**-0.5 * warmup**-0.5.
            learning_rate=7e-4,
            schedule="rsqrt",
            warmup_steps=4_000,
            adam=Adam(beta2=0.98, epsilon=1e-9),
            weight_decay=0.0,
            clip_norm=None,
        ),
        evaluation=EvaluationConfig(every=1_000, batches=64),
        checkpoint=CheckpointConfig(every=1_000),
    )
