"""Methods of compression: the bytes of a model against its quality, each paired with the model itself.

    python experiments/bench/compressed_models.py --model=runs/sst2 --data=dev.tsv --calibration=train.tsv \
        --column_names=text,label --to=runs/sst2-small --figure=sst2-small.svg

Each method of GRID compresses the model as `lmjax compress` does, and a process of its own measures the result on the
records of --data: accuracy for a classifier; nats per token of texts for another model, or of the targets of pairs for
an encoder-decoder, which without targets reads the first half of a text and writes the second one.

Prints a row for each: the bytes of its parameters in memory, the files of its checkpoint, the peak memory of its
process beyond that of one that only imports lmjax, the quality, and the difference to the model with a 95 % interval
of the paired bootstrap over records. Rows whose method does not fit the model say why. What is in --to already is
neither made nor measured again, so that a run that was stopped goes on.

--speed adds, for a machine where nothing else runs, how many records a classifier reads in a second, and how many
tokens another model writes: greedily, one text at a time. All models are opened first, and then take turns.
"""

import argparse
import dataclasses
import json
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping

import jax
import numpy as np

from lmjax.compress.tradeoff import Point, figure
from lmjax.data.records import USUAL_NAMES
from lmjax.data.sources import read_unsplit
from lmjax.errors import FlagError
from lmjax.evaluation.predicted import evaluate_models, predict_documents, read_documents
from lmjax.inference.generate.config import GenerateConfig
from lmjax.inference.generate.generate import generate
from lmjax.inference.generate.processors import ProcessorConfig
from lmjax.inference.loaded import LoadedModel
from lmjax.inference.score.score import rolling, score
from lmjax.runs.compress import Compression, compress
from lmjax.runs.trained import load_model
from lmjax.training.checkpoint import checkpoint_folder, saved_steps

# Settings beside the method; codes of 4 bits have groups of 64 inputs. An amount is a share of what every model has, or
# the name of a field, of which at least one part leaves.
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
    "a quarter of the heads": {"method": "heads", "amount": 0.25},
    "a quarter of the neurons": {"method": "neurons", "amount": 0.25},
    "one layer less": {"method": "layers", "amount": 0.0},
}
# Parts of which a method that takes a share away takes at least one.
PARTS = {"heads": "kv_heads", "layers": "num_layers"}
DRAWS = 2000
# Of speed: records that a classifier reads, texts that another model writes, their tokens, and turns.
READ, WRITTEN, TOKENS, TURNS = 128, 4, 64, 5


def records(options: argparse.Namespace, count: int) -> list[tuple[str, str | None]]:
    """Returns the first records of --data: texts, each with its target or None."""
    read = read_unsplit(options.data, False, "error", "auto", USUAL_NAMES, header=options.columns)
    return [each.record for each, _ in zip(read, range(count), strict=False)]


def quality(model: LoadedModel, options: argparse.Namespace) -> list[list[float]]:
    """Returns a total and its weight for each record, `[records, 2]`: right or wrong and 1, or nats and tokens."""
    if model.has_task:
        found = evaluate_models([model], read_documents(options.data, model.task, header=options.columns))
        names = [column.name for column in type(model.task).known_columns(model.task.config)]
        names = [name for name in names if name in model.task.gold]
        both = zip(found.truths, found.predictions, strict=True)
        return [[float(all(truth[n] == predicted[n] for n in names)), 1.0] for truth, predicted in both]
    texts = records(options, options.records)
    if model.config.family.paired:
        found = score(model, [halves(*each, options.letters) for each in texts])
    else:
        found = rolling(model, [each.source[: options.letters] for each in texts])
    return [[-s.log_likelihood, float(s.tokens)] for s in found]


def work(model: LoadedModel, options: argparse.Namespace) -> tuple[Callable[[], object], int]:
    """Returns what is timed, and its records or tokens."""
    if model.has_task:
        given = read_documents(options.data, model.task, header=options.columns)[:READ]
        return lambda: predict_documents(model, given), len(given)
    texts = [source if model.config.family.paired else source[:100] for source, _ in records(options, WRITTEN)]
    how = GenerateConfig(max_new_tokens=TOKENS, processors=ProcessorConfig(min_new_tokens=TOKENS), batch_size=1)
    return lambda: generate(model, texts, how), TOKENS * len(texts)


def speeds(places: Mapping[str, pathlib.Path], options: argparse.Namespace) -> dict[str, list[float]]:
    """Returns by name what each model reads or writes in a second, in each of its turns."""
    jobs = {name: work(load_model(place), options) for name, place in places.items()}
    found: dict[str, list[float]] = {name: [] for name in jobs}
    for run, _ in jobs.values():
        run()
    print("all programs are compiled", file=sys.stderr, flush=True)
    for _ in range(TURNS):
        for name, (run, units) in jobs.items():
            start = time.perf_counter()
            run()
            found[name].append(units / (time.perf_counter() - start))
    return found


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
    print(json.dumps(found))


def measured(place: pathlib.Path, options: argparse.Namespace, kept: pathlib.Path) -> dict[str, object]:
    """Returns what another process measures, or has measured with the same options before."""
    asked = {name: getattr(options, name) for name in ("model", "data", "column_names", "records", "letters")}
    asked["calibration"] = options.calibration
    found = json.loads(kept.read_text()) if kept.exists() else {}
    if found.get("asked") != asked:
        command = [sys.executable, __file__, *sys.argv[1:], f"--measure={place}"]
        made = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(made.stdout.splitlines()[-1]) | {"asked": asked}
        kept.write_text(json.dumps(found))
    return found | {"scores": np.array(found["scores"])}


def compression(name: str, model: LoadedModel, options: argparse.Namespace) -> Compression:
    """Returns what a row of GRID does with a model."""
    values = {"method": name} | GRID[name]
    if values["method"] in PARTS:
        values["amount"] = max(values["amount"], 1 / getattr(model.config, PARTS[values["method"]]))
    how = Compression(**values)
    if how.chosen.reads:
        how = dataclasses.replace(how, data=options.calibration, column_names=options.columns)
    return how


def row(name: str, found: dict, whole: dict, place: pathlib.Path, speed: str) -> tuple[str, Point]:
    """Returns a line of the table, and the model's point in the figure."""
    chosen = np.random.default_rng(0).integers(len(found["scores"]), size=(DRAWS, len(found["scores"])))
    scores = found["scores"], whole["scores"]
    rates = [x[:, 0].sum() / x[:, 1].sum() for x in scores]
    drawn = [x[chosen, 0].sum(1) / x[chosen, 1].sum(1) for x in scores]
    low, high = np.percentile(drawn[0] - drawn[1], (2.5, 97.5))
    folder = checkpoint_folder(place, saved_steps(place)[-1])
    disk = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    sizes = f"{found['memory'] / 1e6:.3g} | {disk / 1e6:.3g} | {found['peak'] / 1e6:.0f} | {speed}"
    change = "" if found is whole else f"{rates[0] - rates[1]:+.4f} ({low:+.4f} to {high:+.4f})"
    line = f"| {name} | {sizes} | {rates[0]:.4f} | {change} |"
    ends = (rates[0], rates[0]) if found is whole else (rates[1] + low, rates[1] + high)
    return line, Point(found["memory"] / 1e6, rates[0], *ends)


def arguments() -> argparse.Namespace:
    """Returns the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--column_names", default="")
    parser.add_argument("--to", required=True, type=pathlib.Path)
    parser.add_argument("--records", type=int, default=200, help="of texts that are scored; a classifier reads all")
    parser.add_argument("--letters", type=int, default=2000, help="of each text that are scored, from its beginning")
    parser.add_argument("--only", default="", help="names of rows, joined by semicolons")
    parser.add_argument("--speed", action="store_true", help="measure speeds; else those that --to has are printed")
    parser.add_argument("--figure", default="", help="a file for the figure of bytes against quality")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.columns = tuple(name for name in options.column_names.split(",") if name)
    return options


def main() -> None:
    """Prints the table, and draws the figure."""
    options = arguments()
    if options.measure:
        measure(options.measure, options)
        return
    model, to = load_model(options.model), options.to
    to.mkdir(parents=True, exist_ok=True)
    places, rows = {"none": pathlib.Path(options.model)}, {}
    for name in options.only.split(";") if options.only else GRID:
        place = to / name.replace(" ", "_").replace("/", "-").replace("%", "")
        try:
            if not place.exists():
                compress(options.model, compression(name, model, options), place)
            places[name] = place
        except FlagError as e:
            rows[name] = f"| {name} | {e} |" + " |" * 5
    found = {name: measured(place, options, to / f"{place.name}.json") for name, place in places.items()}
    kept = to / "speeds.json"
    if options.speed:
        kept.write_text(json.dumps(speeds(places, options)))
    turns = json.loads(kept.read_text()) if kept.exists() else {}
    points = {}
    for name, place in places.items():
        speed = f"{statistics.median(turns[name]):.0f}" if name in turns else ""
        rows[name], points[name] = row(name, found[name], found["none"], place, speed)
    kind = "accuracy" if model.has_task else "nats per token"
    speed = "records read per second" if model.has_task else "tokens written per second"
    print(f"| method | MB in memory | MB on disk | peak MB | {speed} | {kind} | difference |\n" + "|---" * 7 + "|")
    print("\n".join(rows[name] for name in ("none", *GRID) if name in rows))
    if options.figure:
        title = f"{pathlib.Path(options.model).name}; intervals of the difference to the whole model"
        figure(points, quality=kind, higher=model.has_task, title=title).savefig(options.figure)


if __name__ == "__main__":
    main()
