r"""A small encoder pretrained here against the same encoder from nothing, on the sentiment of SST-2, with 3 seeds.

experiments/sst2_classification.py says where the tables come from. Their sentences and the embedded corpus are read in
turn by masked language modelling; the labels of the sentences are not.

    cut -f1 train.tsv | sed G > sentences.txt
    lmjax train --objective=mlm --data=code=stdlib --data=reviews=sentences.txt --config.data.weights=1,1 --length=64 \
        --steps=2000 --workdir=runs/encoder
    lmjax sweep --sweep=experiments/ablations/pretrained_encoder.py --workdir=sweeps/pretrained_encoder --run
"""

from lmjax.sweep.space import Sweep, chain, param, product, seeds

ENCODER = "runs/encoder"


def get_sweep() -> Sweep:
    """Returns the sweep."""
    pretrained = param("init_from", [ENCODER])
    from_nothing = product(param("preset", ["nano_encoder"]), param("tokenizer.path", [ENCODER]))
    return Sweep(
        product(chain(pretrained, from_nothing), seeds(3)),
        base={
            "objective": "classification",
            "architecture": "encoder",
            "data": "train.tsv",
            "eval_data": "dev=dev.tsv",
            "data.column_names": "text,label",
            "length": 48,
            # Said for both arms: the default of fine-tuning is another than that of a new model.
            "batch_size": 16,
            "epochs": 3,
            "learning_rate": 1e-3,
            "evaluation.every": 400,
            "evaluation.batches": 55,
        },
    )
