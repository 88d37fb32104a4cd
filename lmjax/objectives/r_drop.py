"""R-Drop: two passes with different dropout, whose predictions are drawn together.

For each prediction, Liang et al. 2021 (arXiv:2106.14448, section 2) minimise
-log P1 - log P2 + alpha * (KL(P1 || P2) + KL(P2 || P1)) / 2. Here it is half of that, so that the loss and the learning
rate keep their scale: the mean of both cross entropies, and alpha / 2 times the mean of both divergences. Alpha is
`task.r_drop`.
"""

import jax

from lmjax.objectives.base import Batch, Forward, Objective
from lmjax.objectives.divergences import SYMMETRIC
from lmjax.objectives.sums import LossSum


def losses(objective: Objective, forward: Forward, batch: Batch) -> dict[str, LossSum]:
    """Returns the loss sums of an objective by name: of one pass, or of two passes with what R-Drop adds.

    There is one pass if `forward.penalties` has no R-Drop, or if the objective does not take it.
    """
    sums, alpha = objective.losses(forward, batch), forward.penalties.r_drop
    if alpha is None or "r_drop" not in objective.penalised_by(objective.config):
        return sums
    means = jax.tree.map(lambda x, y: (x + y) / 2, sums, objective.losses(forward.again, batch))
    apart = objective.divergences(forward, forward.again, batch, SYMMETRIC)
    return {name: s.replace(penalty=s.penalty + alpha / 2 * apart[name]) for name, s in means.items()}
