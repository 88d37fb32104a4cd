"""The sets of masked tokens that bound the likelihood of a text under a model that writes by unmasking.

The bound is the mean, over all orders of the tokens, of the log-probability of predicting one after the other (see
`lmjax.objectives.masked_diffusion`): with n of L tokens masked, n uniform from 1 to L, the log-probabilities of the
masked tokens are added up with the factor L / n. Nie et al. 2025, arXiv:2502.09992, section 2.4, estimate it so.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

from lmjax.streams import random_stream


def mask_sets(count: int, draws: int) -> Iterator[tuple[list[int], float]]:
    """Yields sets of masked tokens, as ascending indices, and the factor on the sum of their log-probabilities.

    If there are at most `draws` sets, they are all of them, and the bound is exact. Otherwise their sizes are spread
    evenly over 1 to `count`, from a random offset, which leaves the estimate without bias and reduces its variance.
    Texts of the same number of tokens have the same sets, which makes their comparison less noisy.

    Args:
        count: tokens of the text, at least 1.
        draws: the most sets.
    """
    if 2**count - 1 <= draws:
        for size in range(1, count + 1):
            for chosen in itertools.combinations(range(count), size):
                yield list(chosen), 1 / (size * math.comb(count, size))
        return
    rng = random_stream(0, "scored masks", count)
    offset = rng.random()
    for draw in range(draws):
        size = min(int((draw + offset) * count / draws) + 1, count)
        yield sorted(rng.choice(count, size, replace=False).tolist()), count / (size * draws)
