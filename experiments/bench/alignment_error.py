"""The alignment error rate of each decoder layer's cross attention, on 50 pairs of Multi30k that were aligned by hand.

    zcat test_2016_flickr.de.gz > test.de; zcat test_2016_flickr.en.gz > test.en
    python experiments/bench/alignment_error.py --model=runs/multi30k --source=test.de --target=test.en

The model is one of `experiments/multi30k.py`, German to English. `multi30k_alignments.tsv` has the number of each line
from 1, and the links between the words of both sentences, numbered from 0, as `lmjax.analysis.alignment` takes them:
`sure` ones, and `possible` ones, such as that of an auxiliary to the verb of the other language. The sentences stand in
the corpus alone. The links were written by one annotator, who read both sentences; a second one has not checked them.

Prints the error rate of each layer with a 95 % bootstrap interval over the pairs, that of links along the diagonal, and
by how much more each layer errs than the diagonal, on the same pairs.
"""

import argparse
import csv
import json
import pathlib
import tempfile
from collections.abc import Iterable, Sequence

import numpy as np

import lmjax
from lmjax.analysis.alignment import Aligned, align, alignment_error_rate, read_gold
from lmjax.evaluation.intervals import Measurement, compare, of_sums

GOLD = pathlib.Path(__file__).with_name("multi30k_alignments.tsv")


def gold_of(source: str, target: str) -> list[Aligned]:
    """Returns the aligned pairs, given the files of sentences, one in each line."""
    texts = [pathlib.Path(path).read_text(encoding="utf-8").splitlines() for path in (source, target)]
    with GOLD.open(encoding="utf-8", newline="") as file, tempfile.NamedTemporaryFile("w", suffix=".jsonl") as made:
        for row in csv.DictReader(file, delimiter="\t"):
            here = {name: lines[int(row["line"]) - 1] for name, lines in zip(("source", "target"), texts, strict=True)}
            made.write(json.dumps(here | {name: row[name] for name in ("sure", "possible")}) + "\n")
        made.flush()
        return read_gold(made.name)


def measured(found: Sequence[Iterable[tuple[int, int]]], gold: Sequence[Aligned]) -> Measurement:
    """Returns the error rate of links."""
    rows = []
    for links, pair in zip(map(frozenset, found), gold, strict=True):
        rows.append((len(links & pair.sure) + len(links & pair.possible), len(links) + len(pair.sure)))
    made = of_sums(np.array(rows, float), lambda sums: {"rate": 1 - sums[:, 0] / sums[:, 1]})
    assert abs(made.values["rate"] - alignment_error_rate(found, gold)) < 1e-9
    return made


def main() -> None:
    """Prints the error rates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "source", "target"):
        parser.add_argument(f"--{name}", required=True)
    options = parser.parse_args()
    gold = gold_of(options.source, options.target)
    words = [(len(pair.source.split()), len(pair.target.split())) for pair in gold]
    print(f"{len(gold)} pairs, {sum(len(pair.sure) for pair in gold)} sure links")
    diagonal = [{(round(t * (s - 1) / max(1, n - 1)), t) for t in range(n)} for s, n in words]
    straight = measured(diagonal, gold)
    rate = straight.measured()["rate"]
    print(f"diagonal {rate:.3f} ({rate.low:.3f} to {rate.high:.3f})")
    loaded = lmjax.load_model(options.model)
    for layer in range(loaded.config.side_layers(True)):
        own = measured(align(loaded, gold, layer), gold)
        rate, less = own.measured()["rate"], compare(own, straight)["rate"]
        print(f"layer {layer}  {rate:.3f} ({rate.low:.3f} to {rate.high:.3f}), less the diagonal's: "
              f"{less.value:+.3f} ({less.low:+.3f} to {less.high:+.3f})", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
