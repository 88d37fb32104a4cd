"""The share of masked words, 15, 30 or 40 % (Wettig et al. 2023, arXiv:2202.08005, section 3).

    lmjax sweep --sweep=experiments/ablations/mask_rate.py --workdir=sweeps/mask_rate --run

The losses of different rates cannot be compared: the more words are masked, the harder each is to predict. Which
encoder is better is seen after fine-tuning, with `--grid='init_from=sweeps/mask_rate/runs/NAME,...'` and a task.
"""

from lmjax.sweep.space import Sweep, param, product, seeds


def get_sweep() -> Sweep:
    """Returns the sweep."""
    return Sweep(
        product(param("task.mlm.mask_rate", [0.15, 0.3, 0.4]), seeds(3)),
        base={"objective": "mlm", "length": 128, "steps": 1000},
    )
