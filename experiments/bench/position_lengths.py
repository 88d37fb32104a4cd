"""Every position scheme, trained on rows of 128 tokens and evaluated on rows of up to 4,096.

    python experiments/bench/position_lengths.py --to=FOLDER --steps=250

Writes the texts of the embedded corpus (`embedded_texts.py`), trains the runs of `experiments/ablations/positions.py`
on them with three seeds, and prints the loss of the same tokens with ever longer contexts: each of --spans spans of 64
tokens in held-out sources is predicted behind the tokens before it, as many as make a row of each length. Nats per
token, the mean over seeds with a 95 % interval, and the same of each seed's difference to rows of 128. What is in
FOLDER already is not trained again.
"""

import argparse
import json
import pathlib
import subprocess
import sys

import numpy as np

import lmjax
from lmjax.evaluation.seeds import mean_interval
from lmjax.inference.score.texts import Item, ScoreConfig

HERE = pathlib.Path(__file__).parent
TRAINED, LENGTHS, SPAN = 128, (128, 256, 512, 1024, 2048, 4096), 64


def train(folder: pathlib.Path, steps: int) -> list[pathlib.Path]:
    """Trains the runs, and returns their workdirs."""
    texts, sweep = folder / "texts", folder / "sweep"
    if not texts.exists():
        subprocess.run([sys.executable, HERE / "embedded_texts.py", f"--to={texts}"], check=True)
    command = [sys.executable, "-m", "lmjax.cli", "sweep", f"--sweep={HERE.parent / 'ablations/positions.py'}", "--run"]
    command += [f"--workdir={sweep}", f"--data={texts / 'train.jsonl'}", f"--steps={steps}", f"--length={TRAINED}"]
    subprocess.run([*command, f"--config.model.max_length={LENGTHS[-1]}"], check=True)
    return sorted(path for path in (sweep / "runs").iterdir() if (path / "config.json").exists())


def items(model: lmjax.LoadedModel, path: pathlib.Path, count: int) -> list[list[int]]:
    """Returns parts of the texts, of as many tokens as the longest row has room for, evenly from all of them."""
    room, texts = LENGTHS[-1] - 2, [json.loads(line)["text"] for line in path.read_text().splitlines()]
    rows = [model.tokenizer.encode(text) for text in texts]
    starts = [(i, start) for i, row in enumerate(rows) for start in range(0, len(row) - room, SPAN)]
    chosen = np.random.default_rng(0).permutation(len(starts))[:count]
    return [rows[i][start : start + room] for i, start in (starts[n] for n in sorted(chosen))]


def losses(model: lmjax.LoadedModel, parts: list[list[int]]) -> list[float]:
    """Returns the nats per token of the last SPAN tokens of each part in rows of each length."""
    found = []
    for length in LENGTHS:
        config = ScoreConfig(max_length=length, batch_tokens=LENGTHS[-1])
        given = [Item(part[-(length - 2) : -SPAN], part[-SPAN:]) for part in parts]
        scores = lmjax.score(model, given, config)
        found.append(-sum(s.log_likelihood for s in scores) / sum(s.tokens for s in scores))
    return found


def main() -> None:
    """Trains, evaluates, and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", required=True, type=pathlib.Path, help="a folder")
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--spans", type=int, default=48)
    options = parser.parse_args()
    found: dict[str, list[list[float]]] = {}
    for workdir in train(options.to, options.steps):
        model = lmjax.load_model(workdir)
        parts = items(model, options.to / "texts/long.jsonl", options.spans)
        found.setdefault(model.config.positions, []).append(losses(model, parts))
        print(workdir.name, *(f"{loss:.3f}" for loss in found[model.config.positions][-1]), file=sys.stderr, flush=True)
    for title, of in (("nats per token", lambda x: x), (f"less those in rows of {TRAINED}", lambda x: x - x[:, :1])):
        print(f"| {title} | " + " | ".join(map(str, LENGTHS)) + " |\n" + "|---" * (len(LENGTHS) + 1) + "|")
        for scheme, seeds in found.items():
            means = [mean_interval(column) for column in of(np.array(seeds)).T]
            cells = (f"{m.value:.3f} ({m.low:.3f} to {m.high:.3f})" for m in means)
            print(f"| {scheme} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
