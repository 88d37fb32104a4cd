"""Several processes evaluate, generate and predict together: each computes a share, and the first writes the whole."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import pytest

from lmjax.cli import run
from tests.thinned import thinned

ROOT = pathlib.Path(__file__).parents[2]
SMALL = ("--config.model.num_layers=1", "--config.model.embed_dim=16", "--config.model.num_heads=2",
         "--config.model.mlp_dim=32", "--config.model.max_length=64", "--length=64", "--batch_size=8", "--steps=1",
         "--config.tokenizer.kind=char", "--config.tokenizer.byte_fallback=false", "--noprogress",
         "--config.logging.tensorboard=false", "--config.data.held_out=0.2",
         "--config.evaluation.batches=1")  # fmt: skip
# Neither 2 nor 4 processes have equal shares, and each of 4 has a text.
TEXTS = [f"{word} {i}. It is {word * (i % 3 + 1)}" for i, word in enumerate(("dawn", "a king", "x", "two", "sea"))]
COMMANDS = {
    "evaluate": ("evaluate", "--data={at}/texts.jsonl", "--output={to}"),
    "generate": ("generate", "--prompts={at}/texts.txt", "--max_new_tokens=6", "--temperature=1", "--batch_size=2",
                 "--output={to}"),
    "filtered": ("generate", "--prompts={at}/texts.txt", "--max_new_tokens=6", "--temperature=1", "--filter=resample",
                 "--filter_words={at}/words.txt", "--output={to}"),
    "targets": ("evaluate", "--task=pairs", "--data={at}/pairs.jsonl", "--output={to}"),
    "predict": ("predict", "--data={at}/texts.jsonl", "--output={to}"),
    "metrics": ("evaluate", "--data={at}/labels.tsv", "--predictions={to}"),
}  # fmt: skip
CASES = [(name, count) for name in COMMANDS for count in (2, 4)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a decoder and a classifier, and data for them."""
    place = tmp_path_factory.mktemp("processes")
    labels = "".join(f"{text}\t{i % 2}\n" for i, text in enumerate(TEXTS + [f"{x}." for x in TEXTS * 7]))
    (place / "labels.tsv").write_text(f"text\tlabel\n{labels}")
    (place / "texts.txt").write_text("\n".join(TEXTS))
    (place / "words.txt").write_text("e\n")
    (place / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    pairs = [{"source": text, "target": text[::-1]} for text in TEXTS]
    (place / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return place


def model(folder, name):
    """Returns the workdir of the model of a command, trained once."""
    kind = "classification" if name in ("predict", "metrics") else "next_token"
    workdir = folder / kind
    if not workdir.exists():
        run(["train", f"--objective={kind}", f"--data={folder / 'labels.tsv'}", f"--workdir={workdir}", *SMALL])
    return workdir


def command(folder, name, workdir, output):
    """Returns a command with its flags, which writes to `output`."""
    return [part.format(at=folder, to=output) for part in COMMANDS[name]] + [f"--workdir={workdir}"]


@pytest.mark.parametrize(("name", "count"), thinned(CASES, len(CASES)))
def test_processes_write_what_one_process_does(folder, name, count, capsys):
    workdir = model(folder, name)
    one, several = folder / f"{name}{count}_one.json", folder / f"{name}{count}_several.json"
    run(command(folder, name, workdir, one))
    capsys.readouterr()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    cluster = [f"--num_processes={count}", f"--coordinator_address={address}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": "cpu"}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "lmjax", *command(folder, name, workdir, several), *cluster, f"--process_id={i}"],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for i in range(count)
    ]  # fmt: skip
    said = [process.communicate(timeout=240) for process in started]
    assert [process.returncode for process in started] == [0] * count, said
    lines = [line for out, _ in said[1:] for line in out.splitlines() if not line.startswith("[Gloo]")]
    assert not lines, "more than one process printed results"
    found = [read(path) for path in (one, several)]
    assert same(*found), found


def read(path):
    """Returns the value of a JSON file, or those of a JSON Lines file."""
    text = path.read_text()
    return json.loads(text) if text.startswith("{\n") else list(map(json.loads, text.splitlines()))


def same(one, other):
    """Returns whether JSON values are equal, numbers to a relative 1e-5."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == pytest.approx(other, rel=1e-5) if isinstance(one, float) else one == other
