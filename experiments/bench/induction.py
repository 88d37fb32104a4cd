"""An induction head: found by its attention, and proved by leaving it out.

    python experiments/bench/induction.py --write=letters.txt
    lmjax train --data=letters.txt --workdir=runs/induction --steps=5000 --batch_size=32 --length=64 --lr=0.004
      --config.tokenizer.kind=char --config.tokenizer.byte_fallback=false --config.model.embed_dim=64
      --config.model.num_heads=4 --config.model.mlp_dim=128 --config.model.num_layers=2 --config.model.positions=rope
    python experiments/bench/induction.py --model=runs/induction

A text is a row of random letters, three times. Prints the induction score of each head, and the probability of the
right letter in the second part of new texts, without each head in turn, with 95 % intervals over the texts.
"""

import argparse
import random
import string

import numpy as np

import lmjax
from lmjax.analysis.causal import ablation, without_heads
from lmjax.analysis.flow import induction
from lmjax.analysis.subject import next_token
from lmjax.evaluation.seeds import mean_interval


def letters(rng: random.Random, least: int = 8, most: int = 20) -> str:
    """Returns random letters."""
    return "".join(rng.choice(string.ascii_lowercase) for _ in range(rng.randint(least, most)))


def main() -> None:
    """Writes the texts, or prints the scores."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write")
    parser.add_argument("--model")
    parser.add_argument("--texts", type=int, default=50)
    options = parser.parse_args()
    if options.write:
        rng = random.Random(0)
        with open(options.write, "w", encoding="utf-8") as file:
            file.writelines(letters(rng) * 3 + "\n\n" for _ in range(20_000))
        return
    model, rng = lmjax.load_model(options.model), random.Random(1)
    scores = induction(model)
    subjects = []
    for _ in range(options.texts):
        text = letters(rng)
        place = rng.randrange(2, len(text) - 1)
        subjects.append(next_token(model, text + text[: place + 1], text[place + 1]))

    grids = [ablation(each) for each in subjects]

    def share(numbers: list[float]) -> str:
        mean = mean_interval(1 / (1 + np.exp(-np.array(numbers))))
        return f"{mean.value:.3f} ({mean.low:.3f} to {mean.high:.3f})"

    print(f"| none | | {share([grid.whole for grid in grids])} |")
    for layer, head in np.ndindex(scores.shape):
        print(f"| {layer}.{head} | {scores[layer, head]:.2f} | {share([g.values[layer, head] for g in grids])} |")
    found = [(int(layer), int(head)) for layer, head in np.argwhere(scores > 0.3)]
    names = " and ".join(f"{layer}.{head}" for layer, head in found)
    print(f"| {names} together | | {share([without_heads(each, found) for each in subjects])} |")


if __name__ == "__main__":
    main()
