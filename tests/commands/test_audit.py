"""lmjax audit writes one page that loads nothing, or Markdown, with every number, file and the command."""

import dataclasses
import json
import re
import types

import numpy as np
import pytest

from lmjax import cli
from lmjax.audit import applies
from lmjax.audit.applies import unfit
from lmjax.audit.lists import OWN
from lmjax.commands.audit_flags import CHECKS
from lmjax.errors import DataError, FlagError
from lmjax.evaluation.tasks import evaluate
from lmjax.model.language_model import LanguageModel
from lmjax.runs.trained import load_model
from tests.commands.test_explain import check
from tests.inference.scoring import tiny


@pytest.fixture
def crows(tmp_path):
    path = tmp_path / "crows.csv"
    path.write_text("sent_more,sent_less,bias_type\nThe king goes,The queen goes,gender\nA queen,A king,gender\n")
    return path


def test_a_page_and_markdown_hold_the_same_numbers(folder, crows, tmp_path, capsys):
    given = ["audit", f"--model={folder}", f"--crows_pairs={crows}"]
    (section,) = cli.run([*given, f"--output={tmp_path}/audit.html"])
    out = capsys.readouterr().out
    text = (tmp_path / "audit.html").read_text()
    check(text)
    cli.run([*given, f"--output={tmp_path}/audit.md", f"--against={folder}"])
    written = (tmp_path / "audit.md").read_text()
    value = f"{section.findings[0].value:.4g}"
    assert all(value in each for each in (out, text, written))
    assert all(section.files[0][1] in each for each in (text, written))
    assert re.search(r"^\| stereotype preferred, % .*\+0 \(0 to 0; p 1\) \| 2 \|$", written, re.MULTILINE)
    with pytest.raises(FlagError, match="never overwritten"):
        cli.run([*given, f"--output={tmp_path}/audit.md"])


def test_what_is_written_is_counted_and_masked(folder, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("The old\nA queen\n")
    (tmp_path / "patterns.txt").write_text("[aeiou]\n")
    given = ["audit", f"--model={folder}", f"--prompts={tmp_path}/prompts.txt", "--samples=2", "--max_new_tokens=3"]
    (section,) = cli.run([*given, f"--patterns={tmp_path}/patterns.txt", f"--output={tmp_path}/a.md"])
    assert [f.name for f in section.findings] == [f"patterns: {x}" for x in ("expected maximum", "probability", "mean")]
    assert "patterns: probability" in capsys.readouterr().out
    with pytest.raises(FlagError, match="say what rates the texts"):
        cli.run([*given, "--output=-"])


def test_metrics_with_and_without_the_examples_that_stand_in_the_training_data(folder, tmp_path):
    known = "the old king goes under the tree and the young queen never sees the river house"
    texts = [f"{known}.", "A queen sees the house.", "An old tree."]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (tmp_path / "train.txt").write_text(f"They say: {known.upper()}! So it is.\n\nAnd more\n")
    given = ["audit", f"--model={folder}", f"--evaluation={tmp_path}/test.jsonl", f"--output={tmp_path}/a.html"]
    (section,) = cli.run([*given, f"--training_data={tmp_path}/train.txt"])
    check((tmp_path / "a.html").read_text())
    found = {finding.name: finding for finding in section.findings}
    assert found["contaminated, %"].value == pytest.approx(100 / 3)
    loaded = load_model(folder)
    for name, own in (("all", texts), ("clean", texts[1:]), ("contaminated", texts[:1])):
        measured = found[f"nats_per_token: {name}"]
        assert measured.value == pytest.approx(evaluate(loaded, own)["nats_per_token"], rel=1e-5)
        assert measured.examples == len(own)
    assert section.rows[1][0] == "100%"


def test_a_run_is_searched_for_what_it_was_trained_on(monkeypatch, folder, tmp_path):
    """The documents are those of the store, so what a run left out of its data is not found."""
    loaded = load_model(folder)
    texts = ["the old king goes under the tree", "a queen sees the river"]
    store = types.SimpleNamespace(num_documents=2, document=lambda i: np.array(loaded.tokenizer.encode(texts[i])),
                                  segments=lambda i: np.array([0, len(loaded.tokenizer.encode(texts[i]))]))  # fmt: skip
    opened = types.SimpleNamespace(train={"train": store}, tokenizer=loaded.tokenizer)
    monkeypatch.setattr("lmjax.commands.leaks._data_of", lambda place: opened)
    (tmp_path / "test.jsonl").write_text('{"text": "The king goes under the tree."}\n{"text": "A house"}\n')
    (tmp_path / "prompts.txt").write_text("The old\n")
    sections = cli.run(["audit", f"--workdir={folder}", f"--evaluation={tmp_path}/test.jsonl", "--ngram=5",
                        f"--prompts={tmp_path}/prompts.txt", "--memorised", "--samples=2", "--max_new_tokens=3",
                        "--span=2", "--output=-"])  # fmt: skip
    assert [s.title for s in sections] == ["Contamination", "Verbatim memorisation"]
    assert sections[0].findings[0].value == 50
    # Of another model only a run has training data in which its texts can be looked up.
    asked = ["audit", f"--workdir={folder}", f"--against={folder}", f"--prompts={tmp_path}/prompts.txt",
             "--memorised", "--samples=1", "--max_new_tokens=3", "--output=-"]  # fmt: skip
    assert cli.run(asked)[0].findings[0].difference is None
    monkeypatch.setattr("lmjax.commands.leaks.IDENTITY", "config.json")
    assert cli.run(asked)[0].findings[0].difference.value == 0


def test_what_does_not_apply_is_told_beside_what_does(crows, tmp_path):
    """A model without vocabulary logits, such as one of sentence vectors, has no likelihoods, but vectors."""
    loaded = tiny("encoder")
    model = LanguageModel(loaded.config, ())
    headless = dataclasses.replace(
        loaded, model=model, params={k: v for k, v in loaded.params.items() if "head" not in k}
    )
    reasons = {check: unfit(headless, check) for check in CHECKS}
    assert {check for check, why in reasons.items() if not why} == {"weat"}
    assert "predicts no tokens" in reasons["crows_pairs"]
    assert "writes no text" in reasons["prompts"]
    assert not any(unfit(tiny("decoder"), check) for check in CHECKS)
    assert [check for check in CHECKS if unfit(tiny("encoder_decoder"), check)] == ["weat"]
    shown = applies.table(CHECKS, ["weat"], {c: why for c, why in reasons.items() if why})
    assert ("weat", "done") in shown.rows
    assert any(row[0] == "bbq" and row[1].startswith("does not apply: this encoder") for row in shown.rows)


def test_the_templates_are_written_to_be_edited(folder, tmp_path):
    cli.run(["audit", f"--templates_to={tmp_path}/own.json"])
    assert json.loads((tmp_path / "own.json").read_text()) == OWN
    with pytest.raises(FlagError, match="never overwritten"):
        cli.run(["audit", f"--templates_to={tmp_path}/own.json"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "needs one of --crows_pairs, --winobias"),
        (["--words=w.txt", "--bbq=x"], "--words: is of what the model writes"),
        (["--crows_pairs={tmp}/no.csv"], "--crows_pairs: no file matches"),
        (["--stereoset={crows}"], r"--stereoset=.*crows\.csv: not JSON"),
        (["--bbq={crows}"], r"crows\.csv:2: no 'context'"),
        (["--winobias={crows}"], "names no file that begins with pro_"),
        (["--rater_label=x", "--bbq=x"], "--rater_label=x: is a label of --rater"),
        (["--memorised", "--prompts=x"], "--memorised: needs the training data"),
        (["--evaluation={crows}"], "--evaluation=.*: is looked for in training data"),
        (["--evaluation={tmp}/no.txt", "--training_data=x"], "--evaluation: no file matches"),
        (["--training_data=x", "--bbq=x"], "--training_data=x: is searched for the examples of --evaluation"),
        (["--bbq=x", "--top_p=nan"], "--top_p=nan: give a number"),
        (["--bbq=x", "--output={tmp}/a.txt"], "name a file that ends in .html or .md"),
    ],
)
def test_what_does_not_fit_is_refused(flags, message, folder, crows, tmp_path):
    given = [flag.format(tmp=tmp_path, crows=crows) for flag in flags]
    output = [] if "--output" in " ".join(given) else ["--output=-"]
    with pytest.raises((FlagError, DataError), match=message):
        cli.run(["audit", f"--model={folder}", *given, *output])
