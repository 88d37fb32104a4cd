"""Tables of functions and their docstrings from the embedded corpus, and how well the code's first line does for one.

    python experiments/bench/docstrings.py --to=FOLDER      # writes train.csv and test.csv there

A tenth of the modules are held out, of which 300 functions are drawn. The baseline is the line with the function's name
and parameters; it is measured as `lmjax evaluate --task=generation` measures a model. README.md has the results.
"""

import argparse
import csv
import hashlib
import pathlib

from lmjax.data.stdlib import documents
from lmjax.evaluation.generated import text_metrics
from lmjax.streams import random_stream

MOST_CODE, MOST_DOCSTRING, TESTED = 1200, 300, 300


def pairs() -> dict[str, list[tuple[str, str]]]:
    """Returns the code and the docstring of functions, for training and for the test."""
    found: dict[str, list[tuple[str, str]]] = {"train": [], "test": []}
    for document in documents(pairs=True):
        source, target = ("\n".join(part) if isinstance(part, tuple) else part for part in document.segments)
        if len(source) <= MOST_CODE and len(target) <= MOST_DOCSTRING:
            held_out = hashlib.blake2b(document.group.encode()).digest()[0] < 26
            found["test" if held_out else "train"].append((source, target))
    chosen = random_stream(0, "tested functions").permutation(len(found["test"]))[:TESTED]
    return found | {"test": [found["test"][i] for i in chosen]}


def main() -> None:
    """Writes the tables and prints the baseline's ROUGE-L with its 95 % bootstrap interval."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", required=True, type=pathlib.Path, help="a folder")
    folder = parser.parse_args().to
    folder.mkdir(parents=True, exist_ok=True)
    tables = pairs()
    for name, rows in tables.items():
        with (folder / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("source", "target"), *rows])
        print(f"{name}.csv: {len(rows):,} functions")
    lines = [code.strip().split("\n")[0] for code, _ in tables["test"]]
    lead = text_metrics([target for _, target in tables["test"]], lines).measured()["rougeL"]
    print(f"the first line of the code: ROUGE-L {lead:.3f} ({lead.low:.3f} to {lead.high:.3f})")


if __name__ == "__main__":
    main()
