"""The best learning rate at each width, with and without muP (Yang et al. 2022, arXiv:2203.03466, figure 1).

    lmjax sweep --sweep=experiments/ablations/mup.py --workdir=sweeps/mup --run

Widths of 32, 64 and 128, the base being 32. All learning rates of one width and parametrisation are one population.
"""

from lmjax.sweep.space import Sweep, chain, param, product, seeds, zipped

WIDTHS = (32, 64, 128)


def get_sweep() -> Sweep:
    """Returns the sweep."""
    widths = zipped(
        param("model.embed_dim", WIDTHS),
        param("model.mlp_dim", [3 * width for width in WIDTHS]),
    )
    base = {"model.mup.width": 32.0, "model.mup.head_dim": 8}
    mup = product(widths, *(param(field, [value]) for field, value in base.items()))
    return Sweep(
        product(
            chain(widths, mup),
            param("optimizer.learning_rate", [2.0**power for power in range(-11, -3)]),
            seeds(init=3),
        ),
        base={"objective": "next_token", "length": 64, "steps": 200, "model.num_heads": 4},
    )
