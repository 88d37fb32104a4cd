r"""The runs of experiments/ablations/objectives.py, each fine-tuned on the sentiment of SST-2.

experiments/sst2_classification.py says where the tables come from. The pretraining reads their sentences, without their
labels, and the embedded corpus in turn:

    cut -f1 train.tsv | sed G > sentences.txt
    lmjax sweep --sweep=experiments/ablations/objectives.py --data=code=stdlib --data=reviews=sentences.txt \
        --config.data.weights=1,1 --workdir=sweeps/objectives --run
    lmjax sweep --sweep=experiments/ablations/objectives_tuned.py --workdir=sweeps/objectives_tuned --run

Decoders and encoder-decoders write the label as text (Raffel et al. 2020, section 2.4). Encoders cannot; their head
reads the mean of the states, because no objective here trains [CLS]. An arm of the report is what the runs began from:
objective and family, over the seeds of the pretraining.
"""

import pathlib

from lmjax.commands.sweep import load_sweep
from lmjax.sweep.space import Sweep, chain, param, product

PRETRAINED = "sweeps/objectives/runs"


def get_sweep() -> Sweep:
    """Returns the sweep."""
    parts = []
    for point in load_sweep(str(pathlib.Path(__file__).with_name("objectives.py"))).space:
        name = "-".join(f"{field}={value}" for field, value in point.items())
        parts.append(product(param("init_from", [f"{PRETRAINED}/{name}"]), task(point["architecture"])))
    return Sweep(
        chain(*parts),
        base={
            "data": "train.tsv",
            "eval_data": "dev=dev.tsv",
            "data.column_names": "text,label",
            "length": 48,
            "batch_size": 16,
            "epochs": 2,
            "learning_rate": 1e-3,
            "evaluation.every": 0,
            "evaluation.batches": 55,
        },
        metric="dev/accuracy",
    )


def task(architecture):
    """Returns what a family is fine-tuned with."""
    if architecture == "encoder":
        return product(
            param("architecture", ["encoder"]),
            param("objective", ["classification"]),
            param("model.head.pooling", ["mean"]),
        )
    return product(param("architecture", [architecture]), param("objective", ["text_to_text"]))
