r"""A stated preference, taught to a nano decoder: of two docstrings for a function, the shorter one is better.

    python experiments/preferences/shorter.py --workdir=runs/shorter

A decoder learns to write the first line of a docstring from the code of a function (the embedded corpus, functions of
at most 300 characters). For functions of other modules it writes two docstrings each, a program that compares their
lengths is the rater, and the model is trained on what it prefers. Everything is done by the commands that it
prints:

    lmjax train --objective=seq2seq --architecture=decoder --data=pairs.jsonl --workdir=base
    lmjax rate --workdir=base --prompts=prompts.jsonl --answers=answers.jsonl
    lmjax rate --ratings=rated.jsonl --to=preferences.jsonl
    lmjax train --init_from=base --objective=dpo --data=preferences.jsonl --workdir=dpo

Measured on functions of further modules, with 95 % intervals over functions: the win rate of one sampled docstring
against one of the base model by the same rater (a tie counts half, an empty docstring loses); its length; the
Kullback-Leibler divergence from the base model, estimated from the sampled docstrings, in nats per docstring and per
token; and the nats per token that the model gives to the true docstrings, which say what the preference costs. "before"
is the base model with other seeds. Hardware: two CPU cores. experiments/README.md has the result.
"""

import argparse
import hashlib
import json
import pathlib
import shlex
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

import lmjax
from lmjax.cli import run
from lmjax.data import stdlib
from lmjax.evaluation.intervals import Measured, of_means, of_sums
from lmjax.inference.generate.sampling import SamplingConfig

LONGEST = 300  # characters of a function
TOKENS = 24  # of a docstring
# Arms: flags of a training on the preferences, and the records that it reads.
ARMS: Mapping[str, tuple[str, ...]] = {
    "dpo, beta 0.1": ("--objective=dpo", "--config.task.dpo.beta=0.1"),
    "dpo, beta 1": ("--objective=dpo", "--config.task.dpo.beta=1"),
    "simpo": ("--objective=simpo",),
    "orpo": ("--objective=orpo",),
    "kto, beta 0.1": ("--objective=kto",),
}


def share(module: str) -> float:
    """Returns a number from 0 to 1 that a module always has."""
    return int(hashlib.sha256(module.encode()).hexdigest()[:8], 16) / 2**32


def better(a: str, b: str) -> float:
    """Returns 1 if the rater prefers the first docstring, 0 if it prefers the second, and 0.5 for a tie."""
    sizes = [len(text.strip()) or 10**6 for text in (a, b)]
    return 0.5 if sizes[0] == sizes[1] else float(sizes[0] < sizes[1])


def write(path: pathlib.Path, records: Iterable[Mapping[str, object]]) -> pathlib.Path:
    """Writes records as JSON lines, unless the file is there from an earlier try."""
    if not path.exists():
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def read(path: pathlib.Path) -> list[dict]:
    """Returns the records in a file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def command(*argv: str) -> None:
    """Prints a command of lmjax, and runs it."""
    print("$ lmjax " + shlex.join(argv), flush=True)
    run([*argv, *(["--noprogress"] if argv[0] == "train" else [])])


def prepare(folder: pathlib.Path, options: argparse.Namespace) -> list[tuple[str, str]]:
    """Returns the functions of the test with their docstrings, after making the base model and the preferences."""
    pairs = [d for d in stdlib.documents(pairs=True) if len(d.segments[0]) <= LONGEST]
    parts: list[list[tuple[str, str]]] = [[], [], []]
    for each in pairs:
        # 60 % of the modules teach the base model, 30 % are for ratings, and 10 % for the test.
        parts[int(np.searchsorted([0.6, 0.9], share(each.group), "right"))].append(each.segments)
    taught, prompted, tested = parts[0], parts[1][: options.rated], parts[2][: options.tested]
    print(f"{len(taught):,} functions for the base model, {len(prompted):,} to be rated, {len(tested):,} for the test")
    data = write(folder / "pairs.jsonl", ({"source": s, "target": t} for s, t in taught))
    base, answers = folder / "base", folder / "answers.jsonl"
    command("train", "--objective=seq2seq", "--architecture=decoder", f"--data={data}", f"--workdir={base}",
            f"--steps={options.base_steps}", "--config.data.held_out=0.05")  # fmt: skip
    prompts = write(folder / "prompts.jsonl", ({"prompt": source} for source, _ in prompted))
    if not answers.exists():
        command("rate", f"--workdir={base}", f"--prompts={prompts}", f"--answers={answers}", "--batch_size=64",
                f"--max_new_tokens={TOKENS}")  # fmt: skip
    choices = {1.0: "a", 0.0: "b", 0.5: "skip"}
    rated = write(
        folder / "rated.jsonl", (pair | {"choice": choices[better(pair["a"], pair["b"])]} for pair in read(answers))
    )
    command("rate", f"--ratings={rated}", f"--to={folder / 'preferences.jsonl'}")
    singles = [
        {"prompt": r["prompt"], "completion": r[name], "label": name == "chosen"}
        for r in read(folder / "preferences.jsonl")
        for name in ("chosen", "rejected")
    ]
    write(folder / "singles.jsonl", singles)
    return tested


def train(folder: pathlib.Path, name: str, flags: Sequence[str], options: argparse.Namespace) -> pathlib.Path:
    """Returns the workdir of an arm, after its training."""
    workdir = folder / name.replace(", ", "-").replace(" ", "-")
    data = folder / ("singles.jsonl" if "--objective=kto" in flags else "preferences.jsonl")
    command("train", f"--init_from={folder / 'base'}", *flags, f"--data={data}", f"--workdir={workdir}",
            f"--steps={options.steps}", f"--lr={options.rate}", "--batch_size=16", "--length=288",
            "--config.data.held_out=0.05", "--config.evaluation.every=0")  # fmt: skip
    return workdir


def written(model: lmjax.LoadedModel, prompts: Sequence[str], seed: int) -> list:
    """Returns a sampled docstring for each function."""
    sampling = SamplingConfig(temperature=1.0)
    config = lmjax.GenerateConfig(max_new_tokens=TOKENS, sampling=sampling, seed=seed, batch_size=64)
    return [texts[0] for texts in lmjax.generate(model, prompts, config)]


def measured(
    model: lmjax.LoadedModel, base: lmjax.LoadedModel, tested: Sequence[tuple[str, str]], against: Sequence[str]
) -> dict[str, Measured]:
    """Returns the metrics of a model by name, with their intervals."""
    prompts = [source for source, _ in tested]
    found = written(model, prompts, seed=10**6)
    items = [lmjax.Item(model.tokenizer.encode(prompt), each.ids) for prompt, each in zip(prompts, found, strict=True)]
    own, other = ([s.log_likelihood for s in lmjax.score(each, items)] for each in (model, base))
    ratios, counts = np.subtract(own, other), np.array([len(each.ids) for each in found])
    wins = [better(each.text, text) for each, text in zip(found, against, strict=True)]
    means = {"wins": wins, "characters": [len(each.text.strip()) for each in found],
             "empty": [not each.text.strip() for each in found], "KL": ratios}  # fmt: skip
    true = lmjax.score(model, [lmjax.Item(*pair) for pair in tested])
    sums = np.array([[s.log_likelihood, s.tokens] for s in true])
    per_token = of_sums(np.stack([ratios, counts], 1), lambda x: {"KL per token": x[:, 0] / x[:, 1]})
    cost = of_sums(sums, lambda x: {"true, nats per token": -x[:, 0] / x[:, 1]})
    return of_means(means).measured() | per_token.measured() | cost.measured()


def table(rows: Mapping[str, Mapping[str, Measured]]) -> str:
    """Returns metrics by the name of the model as a table in Markdown."""
    names = list(next(iter(rows.values())))
    lines = ["| | " + " | ".join(names) + " |", "|---" * (1 + len(names)) + "|"]
    for name, row in rows.items():
        lines.append(f"| {name} | " + " | ".join(f"{x:.3f} [{x.low:.3f}, {x.high:.3f}]" for x in row.values()) + " |")
    return "\n".join(lines)


def main() -> None:
    """Runs the experiment and prints a table; a second run in the same folder goes on where the first one ended."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/shorter"))
    parser.add_argument("--base_steps", type=int, default=600)
    parser.add_argument("--rated", type=int, default=800, help="most functions to be rated")
    parser.add_argument("--tested", type=int, default=400, help="most functions of the test")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rate", type=float, default=2e-4)
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=list(ARMS))
    options = parser.parse_args()
    options.workdir.mkdir(parents=True, exist_ok=True)
    tested = prepare(options.workdir, options)
    base = lmjax.load_model(options.workdir / "base")
    against = [each.text for each in written(base, [source for source, _ in tested], seed=0)]
    rows = {"before": measured(base, base, tested, against)}
    for name in options.arms:
        workdir = train(options.workdir, name, ARMS[name], options)
        rows[name] = measured(lmjax.load_model(workdir), base, tested, against)
        print(table({name: rows[name]}), flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
