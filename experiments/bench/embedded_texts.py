"""Texts of the embedded corpus as files: a part for training, and held-out modules.

    python experiments/bench/embedded_texts.py --to=FOLDER      # writes train.jsonl, test.jsonl and long.jsonl there

A tenth of the modules are held out. test.jsonl has their docstrings and sources, and the topics of the language
reference that are held out; long.jsonl has the sources of at least --long letters alone, which train.jsonl lacks too.
"""

import argparse
import hashlib
import json
import pathlib

from lmjax.data.stdlib import documents


def main() -> None:
    """Writes the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", required=True, type=pathlib.Path, help="a folder")
    parser.add_argument("--long", type=int, default=40_000, help="letters of a long source")
    options = parser.parse_args()
    options.to.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[str]] = {"train": [], "test": [], "long": []}
    for document in documents(pairs=False):
        text = "".join(document.segments)
        held_out = hashlib.blake2b(document.group.encode()).digest()[0] < 26
        found["test" if held_out else "train"].append(text)
        if held_out and len(text) >= options.long:
            found["long"].append(text)
    for name, texts in found.items():
        lines = (json.dumps({"text": text}) + "\n" for text in texts)
        (options.to / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        print(f"{name}.jsonl: {len(texts)} texts of {sum(map(len, texts)):,} letters")


if __name__ == "__main__":
    main()
