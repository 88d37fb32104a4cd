"""Where a block normalises, at each learning rate (Xiong et al. 2020, arXiv:2002.04745, section 4).

lmjax sweep --sweep=experiments/ablations/norm_position.py --workdir=sweeps/norm_position --run
"""

from lmjax.sweep.space import Sweep, param, product, seeds


def get_sweep() -> Sweep:
    """Returns the sweep."""
    return Sweep(
        product(
            param("model.norm_position", ["pre", "post", "sandwich"]),
            param("optimizer.learning_rate", [1e-3, 3e-3, 1e-2]),
            seeds(3),
        ),
        base={"objective": "next_token", "length": 128, "steps": 500},
    )
