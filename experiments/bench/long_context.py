"""Texts of the synthetic tasks of `lmjax evaluate --task=long_context`, to train a small decoder on them.

    python experiments/bench/embedded_texts.py --to=texts
    python experiments/bench/long_context.py --write=tasks.jsonl --texts=texts/train.jsonl
    lmjax train --data=tasks.jsonl --workdir=runs/long ...        # experiments/README.md has the whole command
    lmjax evaluate --workdir=runs/long --task=long_context --data=texts/test.jsonl --lengths=128,256,512 --examples=8 \
        --predictions=answers.jsonl --figures=maps
    python experiments/bench/long_context.py --table=answers.jsonl

A text of --write is a prompt, what is around it from the texts for training, and its answer. The numbers, names and
places are drawn by other seeds than those of the evaluation, and the texts around are others, but the sentences are
made in the same way: the result says what a model can learn to find, and not what it does without such training.
Lengths are mostly short ones, from which a model learns to look up what it has read.
"""

import argparse
import collections
import json
import pathlib

from lmjax.evaluation.intervals import of_means
from lmjax.evaluation.long_context import LongConfig, answered, examples

# Approximate tokens of the prompts, and how many of 100 have them.
LENGTHS = {80: 55, 120: 25, 240: 12, 470: 8}
# Letters of a token, about; there is no tokenizer yet.
LETTERS = 3


def write(path: pathlib.Path, texts: list[str], count: int) -> None:
    """Writes about `count` texts, of all tasks alike, in a random order."""
    found = []
    for seed, (length, share) in enumerate(LENGTHS.items(), start=1):
        # Five tasks at five depths.
        config = LongConfig(lengths=(length,), depths=5, examples=max(1, count * share // 2500), seed=seed)
        for each in examples(config, texts, lambda text: -(-len(text) // LETTERS)):
            found.append(f"{each.prompt} {' '.join(each.answers)}.")
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in found), encoding="utf-8")
    print(f"{path}: {len(found):,} texts of {sum(map(len, found)):,} letters")


def table(path: pathlib.Path, lengths: list[str]) -> None:
    """Prints the mean share of right answers by task and length, and by task and depth, with 95 % intervals."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    deepest = max(line["depth"] for line in lines)
    for line in lines:
        line["depth"], line["length"] = line["depth"] / max(deepest, 1), int(lengths[line["length"]])
    for name in ("length", "depth"):
        columns: dict = collections.defaultdict(lambda: collections.defaultdict(list))
        for line in lines:
            columns[line["task"]][line[name]].append(answered(line["answers"], line["text"]))
        places = sorted({line[name] for line in lines})
        print(f"| {name} | " + " | ".join(map(str, places)) + " |\n" + "|---" * (len(places) + 1) + "|")
        for task, found in columns.items():
            means = of_means({str(place): found[place] for place in places}).measured()
            cells = (f"{m:.2f} ({m.low:.2f} to {m.high:.2f})" for m in means.values())
            print(f"| {task} | " + " | ".join(cells) + " |")


def main() -> None:
    """Writes the texts, or prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=pathlib.Path, help="a new file")
    parser.add_argument("--texts", type=pathlib.Path, help="a file of embedded_texts.py")
    parser.add_argument("--count", type=int, default=20_000, help="texts")
    parser.add_argument("--table", type=pathlib.Path, help="what lmjax evaluate --predictions wrote")
    parser.add_argument("--lengths", default="128,256,512", help="as for lmjax evaluate")
    options = parser.parse_args()
    if options.write:
        texts = [json.loads(line)["text"] for line in options.texts.read_text().splitlines()]
        write(options.write, texts, options.count)
    if options.table:
        table(options.table, options.lengths.split(","))


if __name__ == "__main__":
    main()
