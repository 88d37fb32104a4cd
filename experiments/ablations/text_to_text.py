r"""A classifier's head against labels written as text (Raffel et al. 2020, section 2.4), from one decoder.

experiments/sst2_classification.py says where the tables come from, and experiments/ablations/pretrained_encoder.py how
`sentences.txt` is made. Both arms start from the same decoder and read the same sentences, with 3 seeds.

    lmjax train --data=code=stdlib --data=reviews=sentences.txt --config.data.weights=1,1 --length=64 --steps=2000 \
        --workdir=runs/decoder
    lmjax sweep --sweep=experiments/ablations/text_to_text.py --workdir=sweeps/text_to_text --run
"""

from lmjax.sweep.space import Sweep, param, product, seeds

DECODER = "runs/decoder"


def get_sweep() -> Sweep:
    """Returns the sweep."""
    return Sweep(
        product(param("init_from", [DECODER]), param("objective", ["classification", "text_to_text"]), seeds(3)),
        base={
            "architecture": "decoder",
            "data": "train.tsv",
            "eval_data": "dev=dev.tsv",
            "data.column_names": "text,label",
            "length": 48,
            "epochs": 3,
            "learning_rate": 1e-3,
            "evaluation.every": 400,
            "evaluation.batches": 55,
        },
    )
