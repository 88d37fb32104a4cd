"""Vectors of sentences from MiniLM, trained on the scores of STS-B (Cer et al. 2017), and their Spearman correlation.

STS-B has 5,749 pairs for training and 1,500 for development, with scores from 0 to 5. all-MiniLM-L6-v2 (22.7 M
parameters) reaches 0.820 on its test part by its authors. The files of STS-B have no header.

    lmjax evaluate --model=all-MiniLM-L6-v2/ --data=dev.csv --column_names=text,text2,score
    lmjax train --config=experiments/stsb_embedding.py --init_from=all-MiniLM-L6-v2/ --data=train.csv \
        --eval_data=dev=dev.csv --workdir=runs/stsb
    lmjax evaluate --workdir=runs/stsb --data=dev.csv --column_names=text,text2,score
"""

from lmjax.config import Config
from lmjax.data.sources import DataConfig
from lmjax.model.config import ModelConfig
from lmjax.model.groups import DropoutConfig, EmbeddingConfig, HeadConfig
from lmjax.objectives.task import TaskConfig
from lmjax.training.checkpoint import CheckpointConfig
from lmjax.training.evaluate import EvaluationConfig
from lmjax.training.hyperparameters import OptimizerConfig


def get_config(variant: str = "") -> Config:
    """Returns the recipe of the objective without a warm-up, on MiniLM's architecture, which `--init_from` brings."""
    del variant
    return Config(
        batch_size=64,
        epochs=1.0,
        task=TaskConfig(objective=("embedding",), length=64),
        model=ModelConfig(
            architecture="encoder",
            vocab_size=0,
            embed_dim=384,
            num_heads=12,
            mlp_dim=1536,
            num_layers=6,
            max_length=512,
            norm_position="post",
            norm_epsilon=1e-12,
            mlp="gelu",
            scan_layers=False,
            embedding=EmbeddingConfig(types=2, norm=True),
            head=HeadConfig(vector_pooling="mean"),
            dropout=DropoutConfig(residual=0.1, attention=0.1),
        ),
        data=DataConfig(train="train.csv", column_names=("text", "text2", "score")),
        optimizer=OptimizerConfig(learning_rate=2e-5, schedule="linear", final_ratio=0.0, weight_decay=0.01),
        evaluation=EvaluationConfig(every=0, batches=24),
        checkpoint=CheckpointConfig(every=90),
    )
