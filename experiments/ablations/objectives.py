"""Pretraining objectives on every family that can train them, at equal FLOPs, with 3 seeds.

    lmjax sweep --sweep=experiments/ablations/objectives.py --workdir=sweeps/objectives --run

The losses of different objectives cannot be compared with each other: what the models are worth is seen when each is
fine-tuned on the same task, as experiments/ablations/objectives_tuned.py does.

Raffel et al. 2020, arXiv:1910.10683, table 2, orders such arms for models of 220 M parameters: encoder-decoders with
denoising first, then decoders with a prefix, then language models.
"""

from lmjax.objectives.registry import OBJECTIVES
from lmjax.sweep.space import Sweep, chain, param, product, seeds

PRETRAINING = ("next_token", "prefix_lm", "span_corruption", "denoise", "mlm", "masked_diffusion")


def get_sweep() -> Sweep:
    """Returns the sweep."""
    arms = chain(
        *(
            product(param("objective", [name]), param("architecture", OBJECTIVES[name].architectures))
            for name in PRETRAINING
        )
    )
    return Sweep(product(arms, seeds(3)), base={"length": 128, "steps": 600}, match="flops")
