"""Methods of compression: the bytes of a model against its quality, each paired with the model itself.

    python experiments/bench/compressed_models.py --model=runs/sst2 --data=dev.tsv --calibration=train.tsv \
        --column_names=text,label --to=runs/sst2-small --figure=sst2-small.svg

Each method of GRID compresses the model as `lmjax compress` does, and a process of its own measures the result on the
records of --data: accuracy for a classifier; nats per token of texts for another model, or of the targets of pairs for
an encoder-decoder, which without targets reads the first half of a text and writes the second one.

Prints a row for each: the bytes of its parameters in memory, the files of its checkpoint, the peak memory of its
process beyond that of one that only imports lmjax, the quality, and the difference to the model with a 95 % interval
of the paired bootstrap over records. --speed adds what a second pass reads in a second (records of a classifier, else
tokens), for a machine where nothing else runs. Rows whose method does not fit the model say why. What is in --to
already is measured again and not made again.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import time

import jax
import numpy as np

from lmjax.compress.tradeoff import Point, figure
from lmjax.data.records import USUAL_NAMES
from lmjax.data.sources import read_unsplit
from lmjax.errors import FlagError
from lmjax.evaluation.predicted import evaluate_models, read_documents
from lmjax.inference.loaded import LoadedModel
from lmjax.inference.score.score import rolling, score
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


def quality(model: LoadedModel, options: argparse.Namespace) -> list[list[float]]:
    """Returns a total and its weight for each record, `[records, 2]`: right or wrong and 1, or nats and tokens."""
    if model.has_task:
        found = evaluate_models([model], read_documents(options.data, model.task, header=options.columns))
        names = [column.name for column in type(model.task).known_columns(model.task.config)]
        names = [name for name in names if name in model.task.gold]
        both = zip(found.truths, found.predictions, strict=True)
        return [[float(all(truth[n] == predicted[n] for n in names)), 1.0] for truth, predicted in both]
    read = read_unsplit(options.data, False, "error", "auto", USUAL_NAMES, header=options.columns)
    texts = [each.record for each, _ in zip(read, range(options.records), strict=False)]
    if model.config.family.paired:
        found = score(model, [halves(*each, options.letters) for each in texts])
    else:
        found = rolling(model, [each.source[: options.letters] for each in texts])
    return [[-s.log_likelihood, float(s.tokens)] for s in found]


def halves(source: str, target: str | None, letters: int) -> tuple[str, str]:
    """Returns a source and its target, or the halves of a text without one."""
    middle = min(len(source), letters) // 2
    return (source[:middle], source[middle : 2 * middle]) if target is None else (source, target)


def memory(name: str) -> int:
    """Returns a number of bytes that Linux says of this process: VmRSS now, or VmHWM at most."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024


def measure(place: str, options: argparse.Namespace) -> None:
    """Prints as JSON what a process that opens a model measures."""
    before = memory("VmRSS")
    model = load_model(place)
    found = {"scores": quality(model, options), "peak": memory("VmHWM") - before}
    found["memory"] = sum(x.nbytes for x in jax.tree.leaves(model.params))
    if options.speed:
        start = time.perf_counter()
        weight = sum(each[1] for each in quality(model, options))
        found["speed"] = weight / (time.perf_counter() - start)
    print(json.dumps(found))


def measured(place: pathlib.Path | str, options: argparse.Namespace) -> dict[str, object]:
    """Returns what another process measures."""
    command = [sys.executable, __file__, *sys.argv[1:], f"--measure={place}"]
    made = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(made.stdout.splitlines()[-1])
    return found | {"scores": np.array(found["scores"])}


def row(name: str, found: dict, whole: dict, place: pathlib.Path) -> tuple[str, Point]:
    """Returns a line of the table, and the model's point in the figure."""
    chosen = np.random.default_rng(0).integers(len(found["scores"]), size=(DRAWS, len(found["scores"])))
    scores = found["scores"], whole["scores"]
    rates = [x[:, 0].sum() / x[:, 1].sum() for x in scores]
    drawn = [x[chosen, 0].sum(1) / x[chosen, 1].sum(1) for x in scores]
    low, high = np.percentile(drawn[0] - drawn[1], (2.5, 97.5))
    folder = checkpoint_folder(place, saved_steps(place)[-1])
    disk = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    speed = f"{found['speed']:.0f}" if "speed" in found else ""
    sizes = f"{found['memory'] / 1e6:.3g} | {disk / 1e6:.3g} | {found['peak'] / 1e6:.0f} | {speed}"
    line = f"| {name} | {sizes} | {rates[0]:.4f} | {rates[0] - rates[1]:+.4f} ({low:+.4f} to {high:+.4f}) |"
    ends = (rates[0], rates[0]) if found is whole else (rates[1] + low, rates[1] + high)
    return line, Point(found["memory"] / 1e6, rates[0], *ends)


def main() -> None:
    """Prints the table, and draws the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--column_names", default="")
    parser.add_argument("--to", required=True, type=pathlib.Path)
    parser.add_argument("--records", type=int, default=200, help="of texts that are scored; a classifier reads all")
    parser.add_argument("--letters", type=int, default=2000, help="of each text that are scored, from its beginning")
    parser.add_argument("--only", default="", help="names of rows, joined by semicolons")
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--figure", default="", help="a file for the figure of bytes against quality")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.columns = tuple(name for name in options.column_names.split(",") if name)
    if options.measure:
        measure(options.measure, options)
        return
    classifies = load_model(options.model).has_task
    kind = "accuracy" if classifies else "nats per token"
    whole, points = measured(options.model, options), {}
    print(f"| method | MB in memory | MB on disk | peak MB | per second | {kind} | difference |\n" + "|---" * 7 + "|")
    for name in ("none", *(options.only.split(";") if options.only else GRID)):
        place, found = pathlib.Path(options.model), whole
        if name != "none":
            how = Compression(**{"method": name.split(",")[0]} | GRID[name])
            if how.chosen.reads:
                how = Compression(**vars(how) | {"data": options.calibration, "column_names": options.columns})
            place = options.to / name.replace(" ", "_").replace("/", "-").replace("%", "")
            try:
                if not place.exists():
                    compress(options.model, how, place)
            except FlagError as e:
                print(f"| {name} | {e} |" + " |" * 5, flush=True)
                continue
            found = measured(place, options)
        line, points[name] = row(name, found, whole, place)
        print(line, flush=True)
    if options.figure:
        title = f"{pathlib.Path(options.model).name}; intervals of the difference to the whole model"
        figure(points, quality=kind, higher=classifies, title=title).savefig(options.figure)


if __name__ == "__main__":
    main()
