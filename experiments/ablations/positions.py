"""Position schemes, trained on rows of 64 tokens (Press et al. 2022, arXiv:2108.12409; Kazemnejad et al. 2023).

lmjax sweep --sweep=experiments/ablations/positions.py --workdir=sweeps/positions --run
lmjax evaluate --workdir=sweeps/positions/runs/NAME --data=FILE --max_length=256
"""

from lmjax.sweep.space import Sweep, param, product, seeds


def get_sweep() -> Sweep:
    """Returns the sweep."""
    return Sweep(
        product(param("model.positions", ["learned", "sinusoidal", "rope", "alibi", "none"]), seeds(3)),
        base={"objective": "next_token", "length": 64, "model.max_length": 256, "steps": 1000},
    )
