"""Makes the pictures of README.md, beside this file in `pictures/`.

    pip install -e '.[viz]'
    python colab/guide/pictures.py --runs=runs/pictures --sweep=sweeps/nsp

The three default runs of `lmjax train` are trained in RUNS, if they are not there already (six minutes on two CPU
cores). SWEEP is the folder of a sweep that has ended, as of experiments/ablations/nsp.py.
"""

import argparse
import pathlib

import matplotlib

matplotlib.use("svg")
# The same bytes for the same numbers.
matplotlib.rcParams |= {"svg.hashsalt": "lmjax", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}

import matplotlib.pyplot as plt  # noqa: E402

import lmjax  # noqa: E402
from lmjax.analysis.attention import self_attention  # noqa: E402
from lmjax.sweep.arms import arms_of, sweep_runs  # noqa: E402
from lmjax.sweep.ledger import Ledger  # noqa: E402
from lmjax.sweep.report import curve_of  # noqa: E402
from lmjax.training.metrics import read_metrics  # noqa: E402

HERE = pathlib.Path(__file__).parent
RUNS = {"decoder": ("next_token",), "encoder": ("mlm", "nsp"), "encoder-decoder": ("span_corruption",)}
LOSSES = {"decoder": "next_token", "encoder": "mlm", "encoder-decoder": "span_corruption"}
TEXT = "Return the number of items in the list."
ROOMS = (
    ("commands",),
    ("pipelines", "serving"),
    ("sweep",),
    ("runs",),
    ("config",),
    ("audit",),
    ("analysis", "compress", "evaluation"),
    ("adapters", "training", "inference", "interop", "parallel"),
    ("objectives",),
    ("data", "model"),
)
ABOUT = {
    "adapters": "LoRA and others", "audit": "bias, leaks", "compress": "fewer bits, less",
    "serving": "many requests at once, by HTTP",
    "commands": "flags and what is printed", "pipelines": "one line from Python", "sweep": "populations, reports",
    "runs": "a run, first to last step", "config": "composed of small configs", "analysis": "why, figures",
    "evaluation": "metrics, intervals", "training": "state, step, loop", "inference": "generate, score",
    "interop": "Hugging Face", "parallel": "mesh, processes", "objectives": "one file each: rows and losses",
    "data": "text to batches, no jax", "model": "one block, three families",
}  # fmt: skip


def losses(folder: pathlib.Path) -> plt.Figure:
    """Returns the held-out losses of the three runs, which are trained first if they are not there."""
    figure, axes = plt.subplots(figsize=(6.4, 2.8))
    for name, objective in RUNS.items():
        workdir = folder / name
        lmjax.train(lmjax.resolve(objective=objective), workdir)
        steps, values = read_metrics(workdir, f"eval/heldout/{LOSSES[name]}/loss")
        axes.plot(steps, values, marker="o", markersize=3, label=f"{name}: {','.join(objective)}")
    axes.set(xlabel="step", ylabel="held-out loss (nats per token)")
    axes.legend(frameon=False)
    return figure


def sweep(folder: pathlib.Path) -> plt.Figure:
    """Returns the learning curves of the arms of a sweep, with their intervals as bands."""
    ledger = Ledger(folder)
    metric = ledger.read()[0]["metric"]
    figure, axes = plt.subplots(figsize=(6.4, 2.8))
    for arm in arms_of(sweep_runs(ledger)):
        curve = curve_of(arm, metric)
        (line,) = axes.plot(curve.steps, curve.means, label=arm.label)
        axes.fill_between(curve.steps, curve.lows, curve.highs, color=line.get_color(), alpha=0.2, linewidth=0)
    axes.set(xlabel="step", ylabel=metric.removeprefix("eval/"))
    axes.set_ylim(top=7.5)
    axes.legend(frameon=False)
    return figure


def house() -> plt.Figure:
    """Returns the rooms of the code as boxes, in the order of who may import whom."""
    figure, axes = plt.subplots(figsize=(7.2, 3.6))
    for height, row in enumerate(reversed(ROOMS)):
        for i, room in enumerate(row):
            left, width = i / len(row), 1 / len(row)
            axes.add_patch(plt.Rectangle((left + 0.004, height + 0.06), width - 0.008, 0.88, facecolor="#dce8f2"))
            axes.text(left + width / 2, height + 0.62, f"{room}/" if room != "config" else "config.py",
                      ha="center", va="center", weight="bold")  # fmt: skip
            axes.text(left + width / 2, height + 0.28, ABOUT[room], ha="center", va="center", fontsize=7)
    axes.set(xlim=(0, 1), ylim=(0, len(ROOMS)))
    axes.axis("off")
    return figure


def main() -> None:
    """Makes all pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=pathlib.Path, default=pathlib.Path("runs/pictures"))
    parser.add_argument("--sweep", type=pathlib.Path, default=pathlib.Path("sweeps/nsp"))
    options = parser.parse_args()
    made = {"house.svg": house, "sweep.svg": lambda: sweep(options.sweep), "losses.svg": lambda: losses(options.runs),
            "attention.svg": lambda: self_attention(lmjax.load_model(options.runs / "encoder"), TEXT)}  # fmt: skip
    for name, make in made.items():
        path = HERE / "pictures" / name
        make().savefig(path, bbox_inches="tight", metadata={"Date": None})
        print(path)


if __name__ == "__main__":
    main()
