"""An objective is added by its own file and one line: here a toy, and one that reads texts with labels."""

import csv
import dataclasses
import json
from typing import ClassVar

import numpy as np
import pytest

import lmjax
from lmjax.config import Config, default_config
from lmjax.data.columns import Column
from lmjax.data.packing import pack
from lmjax.data.pipeline import batches
from lmjax.errors import DataError, FlagError
from lmjax.objectives.base import ObjectiveConfig, Rows
from lmjax.objectives.registry import OBJECTIVES, objective_types
from lmjax.objectives.rows import PackedPieces, source_target
from lmjax.objectives.task import TaskConfig
from lmjax.objectives.token_prediction import TokenPrediction
from lmjax.runs.build import build
from lmjax.training.metrics import read_lines
from tests.toys import registered

LABELS = ("n", "y")


class MirrorConfig(ObjectiveConfig):
    """Settings of the toy."""

    shift: int = 0


@dataclasses.dataclass(frozen=True)
class MirroredPieces(PackedPieces, Rows):
    """Packed pieces, each followed by the same tokens in reverse order."""

    objective: "Mirror"

    def features(self, index, rng):
        pieces = self.tokens(index)
        return self.objective.row([(np.roll(p, self.objective.config.shift), p[::-1]) for p in pieces])


@dataclasses.dataclass(frozen=True)
class Mirror(TokenPrediction):
    """Predicts the tokens of a text in reverse order."""

    config: MirrorConfig
    name: ClassVar[str] = "mirror"
    architectures: ClassVar[tuple[str, ...]] = ("decoder",)

    def row(self, pairs):
        t = self.tokenizer
        return source_target(pairs, paired=False, length=self.length, target_length=0, pad_id=t.pad_id, bos_id=t.bos_id)

    def rows(self, store, seed):
        cost = lambda n: 2 * n  # noqa: E731
        return MirroredPieces(
            store, pack(store.lengths, max_piece=self.length // 2, cost=cost, capacity=self.length, seed=seed), self
        )


@dataclasses.dataclass(frozen=True)
class LabelledTexts(Rows):
    """Rows with one record each: its text, then the token of its label."""

    store: object
    objective: "Labels"

    def __len__(self):
        return self.store.num_documents

    def features(self, index, rng):
        (text,) = self.store.texts(index, "text")
        label = self.objective.tokenizer.encode(self.store.value(index, "label"))
        row = self.objective.row([(text[: self.objective.length - 2], np.array(label))])
        return {**row, "scores": np.float32(self.store.value(index, "score"))}

    def documents(self, index):
        return [index]


@dataclasses.dataclass(frozen=True)
class Labels(Mirror):
    """Predicts the label of a text after the text."""

    config: ObjectiveConfig
    name: ClassVar[str] = "labels"
    columns: ClassVar[tuple[Column, ...]] = (Column("text"), Column("label", "string"), Column("score", "number"))

    def rows(self, store, seed):
        return LabelledTexts(store, self)

    def sample(self, store, room):
        return None


@pytest.fixture
def toy():
    with registered(Mirror):
        yield


@pytest.fixture
def labels():
    with registered(Labels):
        yield


RECORDS = [{"text": f"case {chr(97 + i % 26)}{chr(97 + i // 26)} ny", "label": LABELS[i % 3 == 0], "score": i / 4}
           for i in range(60)]  # fmt: skip


def written(folder, kind, records=RECORDS):
    path = folder / f"labelled.{kind}"
    with path.open("w", newline="") as file:
        if kind == "jsonl":
            file.writelines(json.dumps(record) + "\n" for record in records)
        else:
            rows = csv.DictWriter(file, list(records[0]), delimiter="\t", lineterminator="\n")
            rows.writeheader()
            rows.writerows(records)
    return path


@pytest.mark.usefixtures("samples")
def test_a_toy_trains_is_evaluated_and_shows_a_sample(toy, tiny, tmp_path, capsys):
    path = tmp_path / "texts.txt"
    path.write_text("\n\n".join(record["text"] for record in RECORDS))
    config = tiny("mirror", data__train=path, steps=2, task__mirror__shift=1, task__mirror__loss_weight=0.5)
    assert config.task.mirror == MirrorConfig(shift=1, loss_weight=0.5)
    workdir = lmjax.train(config, tmp_path / "run", progress=False)
    lines = read_lines(workdir)
    assert [line["step"] for line in lines if "train/mirror/loss" in line] == [1, 2]
    evaluated = [line["eval/heldout/mirror/loss"] for line in lines if "eval/heldout/mirror/loss" in line]
    assert len(evaluated) == 2
    assert evaluated[1] != evaluated[0]
    shown = capsys.readouterr().out
    assert "heldout mirror perplexity" in shown
    assert "a held-out prompt:\n  | " in shown
    assert "continued:\n  | " in shown


def test_a_toy_is_answered_like_any_other(toy):
    assert default_config(("mirror",)).model.architecture == "decoder"
    with pytest.raises(FlagError, match="did you mean mirror"):
        objective_types(("miror",))
    assert objective_types(("mirror", "next_token"))


def test_what_a_test_registers_is_gone_behind_it(tiny):
    before = TaskConfig().model_dump_json()
    with registered(Mirror):
        assert "mirror" in TaskConfig().model_dump()
    assert TaskConfig().model_dump_json() == before
    assert "mirror" not in OBJECTIVES
    assert not hasattr(tiny().task, "mirror")
    assert Config.model_validate_json(tiny().to_json()) == tiny()


@pytest.mark.parametrize("kind", ["jsonl", "tsv"])
def test_labels_travel_with_their_texts(labels, tiny, tmp_path, kind):
    """Labels pass from a file of either format through split, store and shuffling to the batch with their text."""
    config = tiny("labels", data__train=written(tmp_path, kind))
    run = build(config, tmp_path / "run")
    known = {record["text"]: record for record in RECORDS}
    seen = set()
    with batches(run.train_examples, run.train_examples.mixture, seed=0, batch_size=4, num_steps=20) as found:
        for batch in found:
            for row in range(4):
                weights, tokens = batch["weights"][row], batch["tokens"][row]
                assert weights.sum() == 1
                end = int(np.flatnonzero(weights)[0])
                text = run.tokenizer.decode(tokens[1 : end + 1].tolist())
                record = known[text]
                assert run.tokenizer.decode(batch["targets"][row, end : end + 1].tolist()) == record["label"]
                assert batch["scores"][row] == np.float32(record["score"])
                seen.add(text)
    assert len(seen) == len(run.train_examples) < len(RECORDS)
    held_out = run.eval_sets[0].examples.rows.store
    assert held_out.num_documents + len(seen) == len(RECORDS)


def test_an_objective_with_labels_trains_and_is_evaluated(labels, tiny, tmp_path):
    config = tiny("labels", data__train=written(tmp_path, "jsonl"), steps=2)
    lines = read_lines(lmjax.train(config, tmp_path / "run", progress=False))
    assert 0 <= lines[-1]["eval/heldout/labels/accuracy"] <= 1
    again = lmjax.train(config.model_copy(update={"steps": 3}), tmp_path / "run", progress=False)
    assert read_lines(again)[-1]["step"] == 3, "the workdir does not recognise its own data"


@pytest.mark.parametrize(
    ("kind", "line"),
    [("jsonl", 3), ("tsv", 1)],
)
def test_a_missing_label_is_named_with_its_line(labels, tiny, tmp_path, kind, line):
    without = [{"text": "a case", "gold": "y"}] * 3
    records = without if kind == "tsv" else [*RECORDS[:2], *without]
    path = written(tmp_path, kind, records)
    with pytest.raises(DataError) as error:
        build(tiny("labels", data__train=path), tmp_path / "run")
    assert str(error.value) == (
        f"{path}:{line}: no 'label' among the fields text, gold; a record needs text and label and score"
    )


def test_what_reads_records_is_not_mixed_with_running_text(labels):
    said = (
        r"labels reads records of text \(text\), label \(string\), score \(number\) and next_token reads running text"
    )
    with pytest.raises(FlagError, match=said):
        objective_types(("next_token", "labels"))
