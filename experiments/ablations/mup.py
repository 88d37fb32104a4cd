"""The best learning rate at each width, with and without muP (Yang et al. 2022, arXiv:2203.03466, figure 1).

    lmjax sweep --sweep=experiments/ablations/mup.py --workdir=sweeps/mup --run

Widths of 64, 128 and 256, the base being 64, with heads of a quarter of the width. All learning rates of one width and
parametrisation are one population.
"""

from lmjax.sweep.space import Sweep, chain, param, product, seeds, zipped

WIDTHS = (64, 128, 256)


def get_sweep() -> Sweep:
    """Returns the sweep."""
    widths = zipped(
        param("model.embed_dim", WIDTHS),
        param("model.mlp_dim", [3 * width for width in WIDTHS]),
    )
    base = {"model.mup.width": 64.0, "model.mup.head_dim": 16}
    mup = product(widths, *(param(field, [value]) for field, value in base.items()))
    return Sweep(
        product(
            chain(widths, mup),
            param("optimizer.learning_rate", [2.0**power for power in range(-10, -3)]),
            seeds(init=2),
        ),
        base={
            "objective": "next_token",
            "length": 64,
            "batch_size": 8,
            "steps": 300,
            "model.num_layers": 2,
            "model.num_heads": 4,
        },
    )
