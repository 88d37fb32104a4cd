"""How often the statistics of a report hold the truth, over simulated sweeps with known effects.

Command: python experiments/bench/interval_coverage.py            (about a minute on a CPU core)

Every sweep has arms with three seeds on the same documents. The loss of a run on a document is the effect of the arm,
plus noise of the seed, of the document, of the arm on the document, and of the run on the document. For each kind of
noise the table shows

- the share of 95 % intervals of differences that hold the true difference (93 to 97 % is wanted), and the least and
  the largest share of any pair of arms;
- the share of 95 % intervals of means over seeds that hold the true mean;
- the share of sweeps in which some pair of arms without a true difference has p < 0.05 after Holm (at most 6 %);
- the same after the runs of a sweep without true effects were given random arms: a permuted-label control;
- the power: how often the largest true difference is found (without Holm), which is the difference that
  `planned_detectable` promises to find in 80 % of the sweeps.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Callable

import numpy as np

from lmjax.evaluation.seeds import compare_runs, holm, mean_interval, planned_detectable

ARMS, SEEDS, DOCUMENTS, DRAWS = 4, 3, 150, 999
# Standard deviations in nats: seeds, arms on documents, and runs on documents; and the shape of what documents add.
KINDS = {
    "seeds and documents": (0.01, 0.05, 0.05, "normal"),
    "mostly seeds": (0.02, 0.02, 0.02, "normal"),
    "mostly documents": (0.003, 0.2, 0.1, "normal"),
    "no noise of seeds": (0.0, 0.1, 0.1, "normal"),
    "skewed documents": (0.01, 0.1, 0.05, "lognormal"),
    "heavy-tailed documents": (0.01, 0.1, 0.05, "t3"),
}
_DOCUMENT = 0.5


def shaped(rng: np.random.Generator, shape: tuple[int, ...], kind: str) -> np.ndarray:
    """Returns numbers with mean 0 and variance 1: normal, lognormal (skewed), or Student's t with 3 degrees."""
    if kind == "normal":
        return rng.standard_normal(shape)
    if kind == "t3":
        return rng.standard_t(3, shape) / np.sqrt(3)
    return (rng.lognormal(0, 1, shape) - np.exp(0.5)) / np.sqrt((np.e - 1) * np.e)


def simulated(rng: np.random.Generator, sweeps: int, effects: np.ndarray, noise: tuple) -> np.ndarray:
    """Returns the losses of simulated sweeps, `[sweeps, arms, seeds, documents]`."""
    seed, arm, run, kind = noise
    arms = len(effects)
    return (
        effects[None, :, None, None]
        + seed * rng.standard_normal((sweeps, arms, SEEDS, 1))
        + _DOCUMENT * shaped(rng, (sweeps, 1, 1, DOCUMENTS), kind)
        + arm * shaped(rng, (sweeps, arms, 1, DOCUMENTS), kind)
        + run * shaped(rng, (sweeps, arms, SEEDS, DOCUMENTS), kind)
    )


def measure(sweeps: int, noise: tuple, seed: int = 0, compare: Callable = compare_runs) -> dict[str, float]:
    """Returns the shares of a row of the table, by name.

    Args:
        sweeps: number of simulated sweeps.
        noise: an entry of `KINDS`.
        seed: of the simulation.
        compare: the comparison that is measured.
    """
    rng = np.random.default_rng(seed)
    largest = _findable(noise)
    effects = np.array([0.0, 0.0, largest / 2, largest])
    pairs = list(itertools.combinations(range(ARMS), 2))

    def compared(losses: np.ndarray) -> list:
        return [compare(losses[:, i], losses[:, j], DRAWS) for i, j in pairs]

    losses = simulated(rng, sweeps, effects, noise)
    found = compared(losses)
    held = [
        float(np.mean((c.low <= effects[i] - effects[j]) & (effects[i] - effects[j] <= c.high)))
        for c, (i, j) in zip(found, pairs, strict=True)
    ]
    # On given documents, a mean over seeds varies with the seeds alone.
    means = [mean_interval(runs) for runs in effects[0] + noise[0] * rng.standard_normal((sweeps, SEEDS))]
    without = simulated(rng, sweeps, np.zeros(ARMS), noise)
    null = compared(without)
    # Each run keeps its losses and gets the arm of another run of its sweep. Without true effects: with them, the runs
    # of a permuted arm would be those of a mixture, far from normal, and a test of means is not made for that.
    order = rng.permuted(np.tile(np.arange(ARMS * SEEDS), (sweeps, 1)), axis=1)
    runs = without.reshape(sweeps, ARMS * SEEDS, DOCUMENTS)
    permuted = compared(np.take_along_axis(runs, order[..., None], 1).reshape(losses.shape))
    return {
        "intervals": float(np.mean(held)),
        "least": min(held),
        "largest": max(held),
        "means": float(np.mean([m.low <= effects[0] <= m.high for m in means])) if noise[0] else float("nan"),
        "false": _any_found(null),
        "permuted": _any_found(permuted),
        "power": float(np.mean(found[pairs.index((0, ARMS - 1))].p < 0.05)),
    }


def _any_found(comparisons: list) -> float:
    """Returns the share of sweeps in which some p-value is below 0.05 after Holm."""
    p = np.stack([c.p for c in comparisons], axis=1)
    return float(np.mean([min(holm(row)) < 0.05 for row in p]))


def _findable(noise: tuple) -> float:
    """Returns the difference of two arms that one comparison finds with a probability of 80 %."""
    seed, arm, run, _ = noise
    deviation = math.sqrt(seed**2 + run**2 / DOCUMENTS)
    return planned_detectable(SEEDS, seed_deviation=deviation, document_error=arm * math.sqrt(2 / DOCUMENTS))


def main() -> None:
    """Prints the table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sweeps", type=int, default=1000, help="simulated sweeps of each kind of noise")
    sweeps = parser.parse_args().sweeps
    print(
        "| noise | intervals of differences | least, largest pair | of means | false after Holm | permuted | power |\n"
        "|---|---|---|---|---|---|---|"
    )
    for name, noise in KINDS.items():
        x = {key: f"{100 * value:.1f} %" for key, value in measure(sweeps, noise).items()}
        print(
            f"| {name} | {x['intervals']} | {x['least']}, {x['largest']} | {x['means']} | {x['false']} | "
            f"{x['permuted']} | {x['power']} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
