"""LMJAX_SMOKE=1 makes commands of notebooks small, and without it they are as they were written."""

import pytest

from lmjax.commands.smoke import small

TRAIN = ["train", "--objective=mlm", "--steps=600", "--lr=1e-3", "--config.model.num_layers=6", "--workdir=runs/a"]


def test_a_command_stays_as_it_is(monkeypatch):
    monkeypatch.delenv("LMJAX_SMOKE", raising=False)
    assert small(TRAIN) == TRAIN


def test_sizes_are_replaced_and_given_once(monkeypatch, tmp_path):
    monkeypatch.setenv("LMJAX_SMOKE", "1")
    monkeypatch.chdir(tmp_path)
    found = small(TRAIN)
    assert found[:4] == ["train", "--objective=mlm", "--lr=1e-3", "--workdir=runs/a"]
    assert {"--config.steps=3", "--config.model.num_layers=1", "--config.data.train=smoke.txt"} <= set(found)
    names = [argument.partition("=")[0] for argument in found]
    assert len(set(names)) == len(names)
    assert len((tmp_path / "smoke.txt").read_text().split("\n\n")) == 40


@pytest.mark.parametrize(
    ("flag", "left"),
    [
        ("--init_from=runs/b", "model.embed_dim"),
        ("--init_from=runs/b", "tokenizer.kind"),
        ("--config.tokenizer.path=t.model", "tokenizer.kind"),
        ("--data=pairs.csv", "data.train"),
    ],
)
def test_what_a_run_is_given_from_elsewhere_stays(monkeypatch, tmp_path, flag, left):
    monkeypatch.setenv("LMJAX_SMOKE", "1")
    monkeypatch.chdir(tmp_path)
    found = small([*TRAIN, flag])
    assert flag in found
    assert not [argument for argument in found if argument.startswith(f"--config.{left}")]
