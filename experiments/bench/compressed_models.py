"""Methods of compression: the bytes of a model against its quality, each paired with the model itself.

    python experiments/bench/compressed_models.py --model=runs/sst2 --data=dev.tsv --calibration=train.tsv \
        --column_names=text,label --to=runs/sst2-small

Each method of GRID compresses the model as `lmjax compress` does, and the result is measured on all records of --data:
accuracy for a classifier, nats per token of texts for another model. Prints a row for each: the bytes of its parameters
in memory, the files of its checkpoint, the quality, and the difference to the model with a 95 % interval of the paired
bootstrap over records. Rows whose method does not fit the model say why. What is in --to already is measured again and
not made again.
"""

import argparse
import pathlib

import jax
import numpy as np

from lmjax.data.records import USUAL_NAMES
from lmjax.data.sources import read_unsplit
from lmjax.errors import FlagError
from lmjax.evaluation.predicted import compared, evaluate_models, read_documents
from lmjax.inference.loaded import LoadedModel
from lmjax.inference.score.score import rolling
from lmjax.runs.compress import Compression, compress
from lmjax.runs.trained import load_model
from lmjax.training.checkpoint import checkpoint_folder, saved_steps

# Settings beside the method; codes of 4 bits have groups of 64 inputs.
GRID = {
    "int8": {},
    "fp8": {},
    "int8_activations": {},
    "smoothquant": {},
    "int4, one scale": {"method": "int4", "group": 0},
    "int4": {},
    "nf4": {},
    "awq": {},
    "gptq": {},
    "magnitude 50 %": {"method": "magnitude"},
    "wanda 50 %": {"method": "wanda"},
    "sparsegpt 50 %": {"method": "sparsegpt"},
    "magnitude 2:4": {"method": "magnitude", "pattern": "2:4"},
    "wanda 2:4": {"method": "wanda", "pattern": "2:4"},
    "sparsegpt 2:4": {"method": "sparsegpt", "pattern": "2:4"},
    "heads 25 %": {"method": "heads", "amount": 0.25},
    "neurons 25 %": {"method": "neurons", "amount": 0.25},
    "layers 1/6": {"method": "layers", "amount": 1 / 6},
}
DRAWS = 2000


def quality(model: LoadedModel, options: argparse.Namespace) -> object:
    """Returns what `row` compares: the evaluation of a classifier, or nats and tokens of each text `[texts, 2]`."""
    if model.has_task:
        return evaluate_models([model], read_documents(options.data, model.task, header=options.columns))
    read = read_unsplit(options.data, False, "error", "auto", USUAL_NAMES, header=options.columns)
    scores = rolling(model, [each.text for each, _ in zip(read, range(options.records), strict=False)])
    return np.array([(-s.log_likelihood, s.tokens) for s in scores])


def row(found: object, whole: object) -> str:
    """Returns the columns with the quality and its difference to that of the whole model."""
    if not isinstance(found, np.ndarray):
        difference = compared(found, whole)[0]["accuracy"]
        value = found.measurement.values["accuracy"]
        return f"{value:.4f} | {difference.value:+.4f} ({difference.low:+.4f} to {difference.high:+.4f})"
    chosen = np.random.default_rng(0).integers(len(found), size=(DRAWS, len(found)))
    rates = [x[:, 0].sum() / x[:, 1].sum() for x in (found, whole)]
    drawn = [x[chosen, 0].sum(1) / x[chosen, 1].sum(1) for x in (found, whole)]
    low, high = np.percentile(drawn[0] - drawn[1], (2.5, 97.5))
    return f"{rates[0]:.4f} | {rates[0] - rates[1]:+.4f} ({low:+.4f} to {high:+.4f})"


def sizes(model: LoadedModel, place: pathlib.Path) -> str:
    """Returns the columns with the bytes of a model, in memory and on disk, in MB."""
    memory = sum(x.nbytes for x in jax.tree.leaves(model.params))
    folder = checkpoint_folder(place, saved_steps(place)[-1])
    disk = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return f"{memory / 1e6:.1f} | {disk / 1e6:.1f}"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--column_names", default="")
    parser.add_argument("--to", required=True, type=pathlib.Path)
    parser.add_argument("--records", type=int, default=200, help="of texts that are scored; a classifier reads all")
    parser.add_argument("--only", default="", help="names of rows, joined by semicolons")
    options = parser.parse_args()
    options.columns = tuple(name for name in options.column_names.split(",") if name)
    model = load_model(options.model)
    whole = quality(model, options)
    print("| method | MB in memory | MB on disk | quality | difference |\n|---|---|---|---|---|")
    print(f"| none | {sizes(model, pathlib.Path(options.model))} | {row(whole, whole)} |", flush=True)
    for name in options.only.split(";") if options.only else GRID:
        how = Compression(**{"method": name.split(",")[0]} | GRID[name])
        if how.chosen.reads:
            how = Compression(**vars(how) | {"data": options.calibration, "column_names": options.columns})
        place = options.to / name.replace(" ", "_").replace("/", "-").replace("%", "")
        try:
            if not place.exists():
                compress(options.model, how, place)
        except FlagError as e:
            print(f"| {name} | {e} | | | |", flush=True)
            continue
        small = load_model(place)
        print(f"| {name} | {sizes(small, place)} | {row(quality(small, options), whole)} |", flush=True)


if __name__ == "__main__":
    main()
