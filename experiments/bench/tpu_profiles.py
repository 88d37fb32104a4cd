"""Profiles of four models for TPUs that are not here: FLOPs and bytes of a compiled training step against the least.

    python experiments/bench/tpu_profiles.py --models=bert_large,gpt2_xl --chips=v5e,v5p,v6e,4x4 --out=profiles.jsonl

Needs libtpu and no TPU; a step takes 1 to 3 minutes of a processor and 3 GB of memory. Steps that stand in the file are
not compiled again. All are in bfloat16, with scanned layers, full remat and without dropout.
"""

from __future__ import annotations

import argparse
import json
import pathlib

from lmjax import cli
from lmjax.errors import FlagError
from lmjax.parallel.cost import moved_by_source
from lmjax.parallel.hlo import Program

FLAGS = ("--config.model.dtype=bfloat16", "--config.model.remat=full", "--config.model.scan_layers=true",
         "--config.model.dropout.attention=0", "--config.model.dropout.residual=0")  # fmt: skip
# Model -> rows of a chip, and flags.
MODELS = {
    "bert_large": (32, ("--objective=mlm", "--length=512", "--config.model.vocab_size=30528")),
    "gpt2_xl": (16, ("--length=1024", "--config.model.vocab_size=50304")),
    "t5_large": (32, ("--objective=span_corruption", "--length=512", "--config.task.target_length=128",
                      "--config.model.vocab_size=32128")),
    "llama3_2_1b": (8, ("--length=2048", "--config.model.vocab_size=128256")),
}  # fmt: skip
# Chips -> the flags of the slice, and their number.
SLICES = {
    "v5e": (("--topology=v5e:1x1",), 1), "v5p": (("--topology=v5p:1x1x1",), 1), "v6e": (("--topology=v6e:1x1",), 1),
    "4x4": (("--topology=v5e:4x4", "--mesh=data=4,fsdp=4"), 16),
}  # fmt: skip
# Rows of a chip where those of the model do not fit, or where XLA computes layers again to make them fit.
FEWER = {("gpt2_xl", "v6e"): 8, ("gpt2_xl", "4x4"): 4}
# How much of the traffic is named.
NAMED = 12


def compiled(model: str, chips: str, texts: pathlib.Path | None) -> dict[str, object]:
    """Returns what a step computes and moves on a chip, and the least of both, or why it does not fit.

    Args:
        model: a name in `MODELS`.
        chips: a name in `SLICES`.
        texts: a folder for the text of the program; None: it is not kept.
    """
    rows, flags = MODELS[model]
    rows = FEWER.get((model, chips), rows)
    slice_flags, count = SLICES[chips]
    try:
        given = ["plan", f"--preset={model}", f"--batch_size={rows * count}", *slice_flags, *flags, *FLAGS]
        ahead = cli.run(given)
    except FlagError as e:
        return {"model": model, "chips": chips, "rows": rows, "refused": str(e)}
    if texts:
        (texts / f"{model}-{chips}.hlo").write_text(ahead.text)
    largest = list(moved_by_source(Program.parse(ahead.text)).items())[:NAMED]
    return {
        "model": model, "chips": chips, "rows": rows, "flops": ahead.load.flops, "needed": ahead.needed_flops / count,
        "own": ahead.model_flops / count, "moved": ahead.load.moved, "least": ahead.least_moved,
        "sent": sum(ahead.load.sent.values()), "memory": ahead.peak, "processor": ahead.cpu, "largest": largest,
    }  # fmt: skip


def line(row: dict) -> str:
    """Returns a line of the table."""
    head = f"{row['model']:12} {row['chips']:4}"
    if "refused" in row:
        return f"{head} {row['refused'][:120]}"
    return (
        f"{head} products {row['flops'] / 1e12:.2f} TFLOP, {row['flops'] / row['needed']:.3f} of the least; traffic "
        f"{row['moved'] / 1e9:.1f} GB, {row['moved'] / row['least']:.2f} of {row['least'] / 1e9:.1f} GB; peak "
        f"{row['memory'] / 1e9:.1f} GB"
    )


def main() -> None:
    """Compiles the steps that are missing, and prints all."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--chips", default=",".join(SLICES))
    parser.add_argument("--out", default="profiles.jsonl")
    parser.add_argument("--texts", type=pathlib.Path, help="a folder for the texts of the programs")
    given = parser.parse_args()
    path = pathlib.Path(given.out)
    known = [json.loads(text) for text in path.read_text().splitlines()] if path.exists() else []
    rows = {(row["model"], row["chips"]): row for row in known}
    for chips in given.chips.split(","):
        for model in given.models.split(","):
            if (model, chips) not in rows:
                rows[model, chips] = compiled(model, chips, given.texts)
                with path.open("a") as file:
                    file.write(json.dumps(rows[model, chips]) + "\n")
    print("\n".join(line(row) for row in rows.values()))


if __name__ == "__main__":
    main()
