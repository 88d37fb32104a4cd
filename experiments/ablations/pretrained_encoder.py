r"""A small encoder pretrained here against the same encoder from nothing, on the sentiment of SST-2, with 3 seeds.

experiments/sst2_classification.py says where the tables come from. Their sentences and the embedded corpus are read in
turn by masked language modelling; the labels of the sentences are not.

    cut -f1 train.tsv | sed G > sentences.txt
    lmjax train --objective=mlm --data=code=stdlib --data=reviews=sentences.txt --config.data.weights=1,1 --length=64 \
        --steps=2000 --workdir=runs/encoder
    lmjax sweep --sweep=experiments/ablations/pretrained_encoder.py --workdir=sweeps/pretrained_encoder --run
"""

from lmjax.objectives.registry import OBJECTIVES
from lmjax.sweep.space import Sweep, chain, param, product, seeds

ENCODER = "runs/encoder"


def get_sweep() -> Sweep:
    """Returns the sweep."""
    pretrained = param("init_from", [ENCODER])
    from_nothing = product(param("preset", ["nano_encoder"]), param("tokenizer.path", [ENCODER]))
    rates = param("optimizer.learning_rate", [3e-4, 1e-3])
    return Sweep(
        product(chain(pretrained, from_nothing), rates, seeds(3)),
        # The recipe of fine-tuning, with its schedule, is said for both arms: a new model has another one.
        base={
            **{k: v for k, v in OBJECTIVES["classification"].recipe.items() if k != "optimizer.learning_rate"},
            "objective": "classification",
            "architecture": "encoder",
            "data": "train.tsv",
            "eval_data": "dev=dev.tsv",
            "data.column_names": "text,label",
            "length": 48,
            "batch_size": 16,
            # Masked words do not train the vector of [CLS].
            "model.head.pooling": "mean",
            "evaluation.every": 0,
            "evaluation.batches": 55,
        },
        metric="dev/accuracy",
    )
