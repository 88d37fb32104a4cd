"""BERT with and without next-sentence prediction (Devlin et al. 2019, section 5.1; Liu et al. 2019, section 4.2).

    lmjax sweep --sweep=experiments/ablations/nsp.py --workdir=sweeps/nsp --run

Both arms have the same model and rows of the same length. What is compared is the loss of the masked words.
"""

from lmjax.sweep.space import Sweep, param, product, seeds


def get_sweep() -> Sweep:
    """Returns the sweep."""
    return Sweep(
        product(param("objective", ["mlm", "mlm,nsp"]), seeds(3)),
        base={"preset": "nano_encoder", "length": 128, "steps": 1000},
        metric="eval/heldout/mlm/loss",
    )
