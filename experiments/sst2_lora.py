r"""The sentiment of sentences (`sst2_classification.py`) with an adapter, LoRA of rank 8, and with all parameters.

    DATA="--init_from=MODEL --data=train.tsv --eval_data=dev=dev.tsv"
    lmjax train --config=experiments/sst2_lora.py:lora $DATA --config.adapter.kind=lora --config.adapter.rank=8 \
        --workdir=runs/lora
    lmjax train --config=experiments/sst2_lora.py:full $DATA --workdir=runs/full
    lmjax compare runs/full runs/lora

The first line of a run says how many parameters are trained, their share, and the bytes of their optimizer state;
metrics.jsonl has the peak memory and the steps a second. Hardware: two CPU cores. experiments/README.md has the result.
"""

import pathlib

from lmjax.config import Config, load_experiment, replace

VARIANTS = ("lora", "full")
# The product of LoRA's two matrices is zero at first, so that it takes larger steps to move.
_RATES = {"lora": 1e-3, "full": 5e-5}


def get_config(variant: str = "lora") -> Config:
    """Returns the recipe of a variant; --init_from brings the model."""
    whole = load_experiment(str(pathlib.Path(__file__).with_name("sst2_classification.py")))
    return replace(whole, {"optimizer.learning_rate": _RATES[variant]})
