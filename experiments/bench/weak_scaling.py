"""Weak scaling of a 7B decoder by the compiler: what each chip computes, moves and sends, with 2 rows of 4,096 a chip.

    python experiments/bench/weak_scaling.py --chips=8,64,512,4096 --out=weak_scaling.jsonl --draw=weak_scaling.svg

Needs libtpu and no TPU; a size takes about 80 s of a processor and 2 GB of memory. Sizes that stand in the file are not
compiled again.
"""

from __future__ import annotations

import argparse
import json
import pathlib

from lmjax import cli
from lmjax.axes import MESH_AXES
from lmjax.runs.meshes import counts_of, least_sent

# Chips -> the slice, and the devices of data and of fsdp, which extends over one or two sides of the torus.
SIZES = {8: ("2x2x2", 2, 4), 64: ("4x4x4", 4, 16), 512: ("8x8x8", 64, 8), 4096: ("16x16x16", 256, 16)}
FLAGS = ("--preset=llama2_7b", "--length=4096", "--config.model.dtype=bfloat16", "--config.model.remat=full",
         "--config.model.scan_layers=true", "--config.model.vocab_size=32000", "--config.model.dropout.attention=0",
         "--config.model.dropout.residual=0")  # fmt: skip


def compiled(chips: int) -> dict[str, float]:
    """Returns what a chip computes (FLOP), moves, sends and must send at least (bytes), and the bytes that it holds."""
    sides, data, fsdp = SIZES[chips]
    mesh = f"--mesh=data={data},fsdp={fsdp}"
    ahead = cli.run(["plan", f"--topology=v5p:{sides}", mesh, f"--batch_size={2 * chips}", *FLAGS])
    sizes = dict.fromkeys(MESH_AXES, 1) | {"data": data, "fsdp": fsdp}
    least = least_sent(ahead.run.config, sizes, counts_of(ahead.run.config, ahead.run.model.heads))
    return {
        "chips": chips, "flops": ahead.load.flops, "moved": ahead.load.moved, "sent": sum(ahead.load.sent.values()),
        "least": sum(least.values()), "memory": ahead.total, "processor": ahead.cpu,
    }  # fmt: skip


def draw(rows: list[dict[str, float]], path: str) -> None:
    """Draws FLOP and bytes of a chip over the number of chips."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3))
    left, right = figure.subplots(1, 2)
    chips = [row["chips"] for row in rows]
    left.plot(chips, [row["flops"] / 1e12 for row in rows], "o-")
    left.set(title="products of a chip", ylabel="TFLOP in a step")
    right.plot(chips, [row["sent"] / 1e9 for row in rows], "o-", label="compiled")
    right.plot(chips, [row["least"] / 1e9 for row in rows], "--", label="formula")
    right.set(title="sent by a chip", ylabel="GB in a step")
    right.legend()
    for each in (left, right):
        each.set_xscale("log", base=2)
        each.set_xticks(chips, map(str, chips))
        each.set_xlabel("chips")
        # From zero, with room above the lines.
        each.margins(y=0.15)
        each.set_ylim(bottom=0)
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    """Compiles the sizes that are missing, and draws all."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--chips", default="8,64,512,4096")
    parser.add_argument("--out", default="weak_scaling.jsonl")
    parser.add_argument("--draw")
    given = parser.parse_args()
    path = pathlib.Path(given.out)
    rows = {row["chips"]: row for row in map(json.loads, path.read_text().splitlines())} if path.exists() else {}
    for chips in map(int, given.chips.split(",")):
        if chips not in rows:
            rows[chips] = compiled(chips)
            with path.open("a") as file:
                file.write(json.dumps(rows[chips]) + "\n")
    for row in sorted(rows.values(), key=lambda row: row["chips"]):
        print({name: f"{value:.5g}" for name, value in row.items()}, f"sent/least {row['sent'] / row['least']:.3f}")
    if given.draw:
        draw(sorted(rows.values(), key=lambda row: row["chips"]), given.draw)


if __name__ == "__main__":
    main()
