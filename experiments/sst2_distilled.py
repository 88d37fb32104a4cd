r"""The sentiment of sentences by two layers of MiniLM, taught by all six, beside the same two layers without a teacher.

The teacher is the run of experiments/sst2_classification.py, whose header says where MODEL and the data come from. The
student begins with the teacher's third and sixth layer, as of TinyBERT's even mapping (Jiao et al. 2020,
arXiv:1909.10351, section 3), and learns its logits at a temperature (Hinton et al. 2015, arXiv:1503.02531).

    lmjax train --config=experiments/sst2_classification.py --init_from=MODEL --data=train.tsv --eval_data=dev=dev.tsv \
        --workdir=runs/sst2
    STUDENT="--init_from=runs/sst2 --config.model.num_layers=2 --config.init.layers=2,5"
    DATA="--data=train.tsv --eval_data=dev=dev.tsv"
    for s in 0 1 2; do
      lmjax train --config=experiments/sst2_distilled.py $STUDENT $DATA --seed=$s --workdir=runs/taught_$s
      lmjax train --config=experiments/sst2_distilled.py:alone $STUDENT $DATA --seed=$s --workdir=runs/alone_$s
    done
    lmjax compare runs/taught_0 runs/taught_1 runs/taught_2 runs/alone_0 runs/alone_1 runs/alone_2

Hardware: two CPU cores. experiments/README.md has the result after one epoch.
"""

import pathlib

from lmjax.config import Config, load_experiment, replace

VARIANTS = ("", "alone")


def get_config(variant: str = "") -> Config:
    """Returns the recipe; --init_from brings the student's parameters, and the variant `alone` has no teacher."""
    whole = load_experiment(str(pathlib.Path(__file__).with_name("sst2_classification.py")))
    return replace(
        whole,
        {
            "epochs": 4.0,
            "optimizer.learning_rate": 1e-4,
            "teacher.place": "" if variant == "alone" else "runs/sst2",
            "teacher.temperature": 2.0,
            "teacher.weight": 0.5,
            "teacher.hard_weight": 0.5,
        },
    )
