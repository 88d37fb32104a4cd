"""Methods of lmjax explain that read many texts: probes, similarities, features, the tuned lens and steering."""

import json
import re

import numpy as np
import pytest

from lmjax import cli
from lmjax.analysis.inside import cut_rows
from lmjax.analysis.probes import cka, layer_vectors, probe
from lmjax.analysis.steering import direction, steer
from lmjax.errors import DataError, FlagError
from lmjax.inference.generate.generate import GenerateConfig, generate
from lmjax.runs.trained import load_model
from tests.commands.test_explain import check

KINGS = ["The old king goes", "The young king sees", "A king sees the river", "The king goes", "Old king", "king, king"]
QUEENS = ["The old queen goes", "The young queen sees", "A queen sees the river", "The queen", "Old queen", "queen"]


@pytest.fixture
def files(tmp_path):
    """Returns the paths of texts with labels, of texts alone, and of the two kinds of texts."""
    rows = [row for king, queen in zip(KINGS, QUEENS, strict=True) for row in ((king, "king"), (queen, "queen"))]
    (tmp_path / "labels.tsv").write_text("text\tlabel\n" + "".join(f"{a}\t{b}\n" for a, b in rows))
    (tmp_path / "texts.txt").write_text("\n".join([*KINGS, *QUEENS]) + "\n")
    (tmp_path / "kings.txt").write_text("\n".join(KINGS) + "\n")
    (tmp_path / "queens.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in QUEENS))
    return tmp_path


def run(*argv):
    return cli.run(["explain", *argv])


def test_what_layers_know_is_told_without_a_text(folder, files, capsys):
    pytest.importorskip("sklearn")
    path = files / "page.html"
    methods = "--method=probe,cka,features"
    parts = run(f"--model={folder}", methods, f"--labels={files}/labels.tsv", f"--data={files}/texts.txt",
                "--features=20", "--active=2", "--train_steps=20", "--seeds=3", f"--output={path}")  # fmt: skip
    assert [part.title for part in parts] == ["probes", "similarity of layers", "features"]
    out = capsys.readouterr().out
    rows = [line.split("\t") for line in (files / "labels.tsv").read_text().splitlines()[1:]]
    loaded = load_model(folder)
    (own,) = probe(layer_vectors(loaded, [text for text, _ in rows]), [label for _, label in rows], seeds=3)
    assert float(re.search(r"best layer: layer 0, accuracy ([\d.]+)", out)[1]) == round(own.accuracy.value, 3)
    assert float(re.search(r"selectivity there: ([+-][\d.]+)", out)[1]) == round(own.selectivity, 3)
    assert "most common label: 0.500" in out
    assert re.search(r"dead features, of all texts: \d+ of 20\n", out)
    assert re.search(r"with what the features restore: \d", out)
    check(path.read_text())


def test_layers_of_two_models_are_compared(folder, files):
    (part,) = run(f"--model={folder}", "--method=cka", f"--data={files}/texts.txt", f"--other={folder}",
                  "--tokens=last", "--output=-")  # fmt: skip
    loaded = load_model(folder)
    vectors = layer_vectors(loaded, cut_rows(loaded, [*KINGS, *QUEENS]), "last")["layer_0"]
    assert cka(vectors, vectors) == pytest.approx(1)
    assert part.summary == ("layer 0: layer 0 1.00",)


def test_a_tuned_lens_is_shown_beside_the_lens(folder, files):
    (part,) = run(f"--model={folder}", "--text=The old king", "--method=tuned_lens", f"--data={files}/texts.txt",
                  "--train_steps=5", "--output=-")  # fmt: skip
    assert "trained on 12 texts in 5 steps" in part.note
    assert re.fullmatch(r"after each layer: [+-][\d.]+, [+-][\d.]+", part.summary[0])


def test_explained_and_generated_texts_are_steered_by_the_same_direction(folder, files, capsys):
    sides = [f"--towards={files}/kings.txt", f"--away={files}/queens.jsonl"]
    (part,) = run(f"--model={folder}", "--text=The old", "--method=steering", *sides, "--strengths=0,6",
                  "--max_new_tokens=4", "--layer=0", "--output=-")  # fmt: skip
    loaded = load_model(folder)
    way = direction(loaded, KINGS, QUEENS, 0)
    for line, strength in zip(part.summary, (0, 6), strict=True):
        model = steer(loaded, {"layer_0": np.float32(strength) * way})
        written = generate(model, ["The old"], GenerateConfig(max_new_tokens=4))[0][0].text.strip()
        assert line.startswith(f"+{strength}: ")
        assert line.endswith(written)
    capsys.readouterr()
    cli.run(["generate", f"--model={folder}", "--prompt=The old", "--max_new_tokens=4",
             f"--steer_towards={files}/kings.txt", f"--steer_away={files}/queens.jsonl", "--steer_layer=0",
             "--steer_strength=6"])  # fmt: skip
    assert capsys.readouterr().out.strip() == written
    assert written != generate(loaded, ["The old"], GenerateConfig(max_new_tokens=4))[0][0].text.strip()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--method=probe"], "--method=probe needs --labels=FILE"),
        (["--method=steering", "--text=a", "--towards={tmp}/kings.txt"], "--method=steering needs --away=FILE"),
        (["--method=attention", "--text=a", "--data={tmp}/texts.txt"], "--data=.*: is for --method=cka or features"),
        (["--method=cka,lens", "--data={tmp}/texts.txt"], "needs --text=TEXT"),
        (["--method=probe", "--labels={tmp}/texts.txt"], "not a file of records"),
        (["--method=features", "--data={tmp}/texts.txt", "--layer=7"], "--layer=7: the model has 1 layers"),
        (["--method=cka", "--data={tmp}/texts.txt", "--strengths=much"], "--strengths=much: give numbers"),
    ],
)
def test_what_does_not_fit_is_refused(flags, message, folder, files):
    with pytest.raises((FlagError, DataError), match=message):
        run(f"--model={folder}", *(flag.format(tmp=files) for flag in flags), "--output=-")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--steer_layer=0"], "--steer_layer=0: steering also needs --steer_towards"),
        (["--steer_strength=2"], "--steer_strength=2.0: give --steer_towards"),
        (["--steer_towards={tmp}/kings.txt", "--steer_away={tmp}/kings.txt", "--steer_layer=3"], "--steer_layer=3: "),
    ],
)
def test_steering_that_does_not_fit_is_refused(flags, message, folder, files):
    with pytest.raises(FlagError, match=message):
        cli.run(["generate", f"--model={folder}", "--prompt=a", *(flag.format(tmp=files) for flag in flags)])
