"""A ladder of models for a scaling law: sizes times lengths of training, as one combinator. Imports no jax."""

from __future__ import annotations

from collections.abc import Sequence

from lmjax.errors import FlagError
from lmjax.sweep.space import Space, param, product


def ladder(
    widths: Sequence[int], steps: Sequence[int], *, head_dim: int = 32, width_per_layer: int = 32, cooldown: float = 0.2
) -> Space:
    """Returns a space of models of several widths, each trained for several numbers of steps.

    Depth and heads grow with the width, so that the models have the same shape. The schedule is warmup-stable-decay: of
    every length the end is cooled down, so that every run is comparable (Hägele et al. 2024, arXiv:2405.18392,
    section 4.2). The three sizes and lengths that a law needs are the least.

    Args:
        widths: embed_dim of each model, multiples of `head_dim`.
        steps: numbers of steps.
        head_dim: width of a head.
        width_per_layer: width divided by the number of layers.
        cooldown: share of the steps in which the learning rate falls.

    Raises:
        FlagError: a width is no multiple of `head_dim`.
    """
    if odd := [width for width in widths if width < head_dim or width % head_dim]:
        raise FlagError(f"ladder: the width {odd[0]} is no multiple of head_dim={head_dim}; choose widths that are")
    sizes = Space(
        tuple(
            {
                "model.embed_dim": width,
                "model.num_layers": max(1, round(width / width_per_layer)),
                "model.num_heads": width // head_dim,
                "model.mlp_dim": 4 * width,
            }
            for width in widths
        )
    )
    schedule = product(param("optimizer.schedule", ["wsd"]), param("optimizer.wsd.cooldown", [cooldown]))
    return product(sizes, param("steps", steps), schedule)
