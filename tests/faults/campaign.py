"""The long form of the tests of faults: `python -m tests.faults.campaign --flips=600` prints a table in Markdown."""

from __future__ import annotations

import argparse
import importlib
import os
import pathlib
import tempfile

# Each part of the campaign is a module `campaign_NAME` with `rows(folder, number)`: lines of the table.
PARTS = {
    "flips": "bits flipped in a checkpoint",
    "kills": "kills of a run at any time",
    "points": "kills of a run at each of chosen points, such as in a save",
    "calls": "system calls of whole runs that fail, or in which a run is killed",
    "writes": "system calls that fail in what a run writes and reads, without its model",
    "inputs": "commands with bad input",
    "deaths": "processes of a pair killed or stopped",
    "soak": "minutes of training, evaluating and saving beside a reader",
    "served": "minutes of 32 clients of a server, some of whom go away or send hostile bodies",
    "api": "minutes of schemathesis (which is installed apart) against a server",
    "fuzz": "minutes for each reader of files that others wrote, which are changed at random",
}


def main() -> None:
    """Runs the parts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, text in PARTS.items():
        parser.add_argument(f"--{name}", type=int, default=0, metavar="N", help=text)
    asked = {name: number for name, number in vars(parser.parse_args()).items() if number}
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    print("| fault | tries | outcome |\n|---|---|---|")
    for name, number in asked.items():
        part = importlib.import_module(f"tests.faults.campaign_{name}")
        with tempfile.TemporaryDirectory() as folder:
            for row in part.rows(pathlib.Path(folder), number):
                print(row, flush=True)


if __name__ == "__main__":
    main()
