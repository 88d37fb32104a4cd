"""A model card holds what the files of a run say: its data and what they lack, its metrics, its audit, its limits."""

import json

import pytest

import lmjax
from lmjax.cli import run
from lmjax.errors import FlagError
from lmjax.model.parameters import count_parameters
from lmjax.training.metrics import read_lines


@pytest.fixture(scope="module")
def workdir(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("card")
    (folder / "words.txt").write_text("queen\n")
    config = tiny(steps=2, tokenizer__byte_fallback="true", data__filter__words=folder / "words.txt")
    return lmjax.train(config, folder / "mine", progress=False)


def part(text, title):
    return text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def test_a_card_of_a_run_alone(workdir, tmp_path):
    assert run(["audit", f"--workdir={workdir}", f"--card={tmp_path / 'MODEL_CARD.md'}"]) == []
    text = (tmp_path / "MODEL_CARD.md").read_text()
    identity, last = json.loads((workdir / "data.json").read_text()), read_lines(workdir)[-1]
    removed = json.loads((workdir / "removed.json").read_text())["train"]["left out"]["with one of the words"]
    params = count_parameters(lmjax.load_model(workdir).params)
    assert text.startswith("# Model card of mine\n")
    assert f"* parameters: {params:,}\n" in part(text, "Model")
    data = part(text, "Training data")
    assert all(f"`{identity[name]}`" in data for name in ("train", "tokenizer"))
    assert f"{removed:,} with one of the words" in data
    assert "* held out: 20% of the training text" in data
    assert "* steps: 2 of 8 rows of 32 tokens" in part(text, "Training")
    assert f"| heldout/loss | {last['eval/heldout/loss']:.4g} |" in part(text, "Metrics")
    assert "No audit was made" in part(text, "Audit")
    limits = part(text, "Limits")
    assert "longer than 32 tokens" in limits
    assert "Not audited: crows_pairs, winobias" in limits
    assert "Nothing was left out" not in limits
    with pytest.raises(FlagError, match="never overwritten"):
        run(["audit", f"--workdir={workdir}", f"--card={tmp_path / 'MODEL_CARD.md'}"])


def test_a_card_holds_the_checks_of_its_audit(workdir, tmp_path):
    (tmp_path / "crows.csv").write_text("sent_more,sent_less,bias_type\nThe king goes,The queen goes,gender\n")
    given = ["audit", f"--workdir={workdir}", f"--crows_pairs={tmp_path / 'crows.csv'}", "--output=-"]
    (section,) = run([*given, f"--card={tmp_path / 'card.md'}"])
    audit, limits = (part((tmp_path / "card.md").read_text(), title) for title in ("Audit", "Limits"))
    assert f"### {section.title}\n" in audit
    assert f"| {section.findings[0].value:.4g} |" in audit
    assert f"fingerprint `{section.files[0][1]}`" in audit
    assert "Not audited: winobias" in limits
    with pytest.raises(FlagError, match="--card: is made from the files of a run; name the model by --workdir"):
        run(["audit", "--model=gpt2/", f"--card={tmp_path / 'other.md'}"])
