"""A run of masked diffusion from training to text and to its bound, by the commands."""

import json
import re

import pytest

from lmjax.cli import run
from lmjax.commands.train import train
from lmjax.errors import FlagError


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "diffusion"
    train(tiny("masked_diffusion", steps=2), str(workdir))
    return workdir


def test_it_writes_behind_a_prompt_and_into_one(trained, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("The old\nThe [MASK][MASK]d king\n")
    output = tmp_path / "out.jsonl"
    flags = [f"--workdir={trained}", "--max_new_tokens=7", "--unmask_steps=3", "--unmask_order=random"]
    run(["generate", *flags, f"--prompts={tmp_path / 'prompts.txt'}", f"--output={output}"])
    after, inside = map(json.loads, output.read_text().splitlines())
    assert (len(after["ids"]), len(after["text"])) == (7, 7)
    assert re.fullmatch("The ..d king", inside["text"])
    assert after["finished"] == inside["finished"] == "length"
    capsys.readouterr()
    run(["generate", *flags, "--prompt=The old"])
    assert capsys.readouterr().out == f"{after['text']}\n"
    with pytest.raises(FlagError, match="--regex=a: this model writes by replacing masks"):
        run(["generate", *flags, "--prompt=The old", "--regex=a"])


def test_its_likelihood_is_called_a_bound(trained, corpus, capsys):
    (found,) = run(["evaluate", f"--workdir={trained}", f"--data={corpus}", "--draws=2"]).values()
    assert "encoder, upper bounds of nats and bits, from 2 sets of masks for each text" in capsys.readouterr().out
    # Of a model that learned nothing, all texts have about the loss of the held-out ones in training.
    lines = map(json.loads, (trained / "metrics.jsonl").read_text().splitlines())
    losses = [line["eval/heldout/loss"] for line in lines if "eval/heldout/loss" in line]
    assert found["nats_per_token"] == pytest.approx(losses[-1], rel=0.05)


@pytest.mark.usefixtures("samples")
def test_the_end_of_training_suggests_a_prompt_without_masks_and_shows_a_text(trained, tiny, tmp_path, capsys):
    train(tiny("masked_diffusion", steps=1), str(tmp_path / "run"))
    said = capsys.readouterr().out
    assert "continued:" in said
    assert re.search(r"lmjax generate --workdir=\S+ --prompt='[^\[\]]*'\n", said)
