"""Several labels, ordered classes and class weights: losses against their formulas, and what is refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lmjax
from lmjax.errors import DataError, FlagError
from lmjax.objectives.classification import Classification, ClassificationConfig
from lmjax.objectives.sums import NO_PENALTIES, Penalties
from lmjax.objectives.text_task import TEXT
from lmjax.runs.build import build
from lmjax.training.metrics import read_lines

LOGITS = np.array([[2.0, -1.0, 0.5], [0.1, 0.2, -3.0], [9.0, 9.0, 9.0]], np.float32)
WEIGHTS = np.array([1, 1, 0], np.float32)


def sums(forward_of, tokenizer, labels, penalties=NO_PENALTIES, **fields):
    config = ClassificationConfig(labels=("a", "b", "c"), **fields)
    task = Classification(config, tokenizer, "encoder", 8, 8, 0)
    batch = {"labels": jnp.asarray(labels), "label_weights": jnp.asarray(WEIGHTS)}
    forward = forward_of(batch, states=lambda b: None, classifier=jnp.asarray(LOGITS))
    forward.penalties = penalties
    found = task.losses(forward, batch)["classification"]
    assert float(task.weights(batch)["classification"]) == 2
    return jax.tree.map(float, found)


def test_several_labels_have_the_mean_of_their_binary_cross_entropies(forward_of, tokenizer):
    gold = np.array([[1, 0, 1], [0, 1, 0], [0, 0, 0]], np.float32)
    found = sums(forward_of, tokenizer, gold, kind="multiple")
    p = 1 / (1 + np.exp(-LOGITS))
    each = -(gold * np.log(p) + (1 - gold) * np.log(1 - p))[:2]
    assert found.loss == pytest.approx(each.mean(axis=1).sum(), rel=1e-5)
    # The first row has all labels right; the second predicts "a" too.
    assert (found.weight, found.correct) == (2, 1)
    assert sums(forward_of, tokenizer, gold, kind="multiple", threshold=0.52).correct == 1
    assert sums(forward_of, tokenizer, gold, kind="multiple", threshold=0.54).correct == 2
    weighted = sums(forward_of, tokenizer, gold, kind="multiple", class_weights=(3.0, 1.0, 1.0))
    assert weighted.loss == pytest.approx((each * np.where(gold[:2], [3, 1, 1], 1)).mean(axis=1).sum(), rel=1e-5)
    smoothed = sums(forward_of, tokenizer, gold, Penalties(label_smoothing=jnp.float32(0.2)), kind="multiple")
    soft = 0.8 * gold + 0.1
    expected = -(soft * np.log(p) + (1 - soft) * np.log(1 - p))[:2].mean(axis=1).sum()
    assert smoothed.loss + smoothed.penalty == pytest.approx(expected, rel=1e-5)


def test_ordered_classes_cost_more_the_farther_they_are(forward_of, tokenizer):
    """The loss is the divergence from shares exp(-falloff * distance**2), and 0 for these shares themselves."""
    found = sums(forward_of, tokenizer, [0, 1, 2], kind="ordered", falloff=0.5)
    shares = np.exp(-0.5 * (np.arange(3)[None] - np.array([0, 1])[:, None]) ** 2)
    shares /= shares.sum(axis=1, keepdims=True)
    log_probs = LOGITS[:2] - np.log(np.exp(LOGITS[:2]).sum(axis=1, keepdims=True))
    assert found.loss == pytest.approx((shares * (np.log(shares) - log_probs)).sum(), rel=1e-5)
    assert (found.weight, found.correct) == (2, 2)

    def cost(label, predicted):
        config = ClassificationConfig(labels=("a", "b", "c"), kind="ordered")
        task = Classification(config, tokenizer, "encoder", 8, 8, 0)
        batch = {"labels": jnp.array([label]), "label_weights": jnp.ones(1)}
        logits = -((np.arange(3.0) - predicted) ** 2)[None]
        forward = forward_of(batch, states=lambda b: None, classifier=jnp.asarray(logits, jnp.float32))
        return float(task.losses(forward, batch)["classification"].loss)

    assert cost(0, 0) == pytest.approx(0, abs=1e-6)
    assert cost(0, 0) < cost(0, 1) < cost(0, 2)


@pytest.mark.parametrize("kind", ["single", "ordered"])
def test_class_weights_multiply_the_loss_and_not_what_is_correct(forward_of, tokenizer, kind):
    plain = sums(forward_of, tokenizer, [0, 2, 1], kind=kind)
    ones = sums(forward_of, tokenizer, [0, 2, 1], kind=kind, class_weights=(1.0, 1.0, 1.0))
    for name in ("loss", "weight", "correct", "penalty"):
        assert getattr(ones, name) == pytest.approx(getattr(plain, name), rel=1e-6)
    first = sums(forward_of, tokenizer, [0, 2, 1], kind=kind, class_weights=(1.0, 1.0, 0.0))
    both = sums(forward_of, tokenizer, [0, 2, 1], kind=kind, class_weights=(1.0, 1.0, 3.0))
    assert both.loss == pytest.approx(3 * plain.loss - 2 * first.loss, rel=1e-5)
    # Without this, a loss that ignores the weights would be right.
    assert both.loss > plain.loss > first.loss
    assert (both.weight, both.correct) == (2, plain.correct)


@pytest.mark.parametrize(("threshold", "labels"), [(0.5, ["a", "c"]), (0.7, ["a"]), (0.2, ["a", "b", "c"])])
def test_the_labels_at_or_above_the_threshold_are_predicted(tokenizer, threshold, labels):
    config = ClassificationConfig(labels=("a", "b", "c"), kind="multiple", threshold=threshold)
    task = Classification(config, tokenizer, "encoder", 8, 8, 0)
    found = task.predict(None, [], [{"logits": LOGITS[0].astype(np.float64)}])
    assert found["labels"] == labels
    np.testing.assert_allclose(list(found["scores"].values()), 1 / (1 + np.exp(-LOGITS[0])), rtol=1e-6)
    assert task.right({"labels": tuple(reversed(labels))}, found)
    assert not task.right({"labels": ()}, found)


def records(tiny, tmp_path, lines, kind, **fields):
    path, held = tmp_path / "train.jsonl", tmp_path / "held.jsonl"
    for each in (path, held):
        each.write_text("\n".join(lines) + "\n")
    values = {"data__train": path, "data__eval": f"dev={held}", "task__classification__kind": kind}
    return tiny("classification", model__architecture="encoder", **values | fields)


MANY = ['{"text": "an owl", "labels": ["bird", "small"]}', '{"text": "an elk", "labels": ["big"]}',
        '{"text": "", "labels": []}', '{"text": "a swan", "labels": ["bird", "big"]}']  # fmt: skip


def test_records_of_several_labels(tiny, tmp_path):
    run = build(records(tiny, tmp_path, MANY, "multiple", task__classification__balanced=True), tmp_path / "run")
    config = run.config.task.classification
    assert config.labels == ("big", "bird", "small")
    # (records - n) / n
    assert config.class_weights == (1, 1, 3)
    rows = [run.train_examples(i, np.random.default_rng(0)) for i in range(4)]
    assert [row["labels"].tolist() for row in rows] == [[0, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 0]]
    table = tmp_path / "dev.tsv"
    table.write_text("text\tlabels\nan owl\tbird small\nan elk\t\n")
    held = records(tiny, tmp_path, MANY, "multiple", data__eval=f"dev={table}")
    built = build(held, tmp_path / "table")
    store = built.eval_sets[0].examples.rows.store
    assert [store.value(i, "labels") for i in range(2)] == [("bird", "small"), ()]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"text": "a", "labels": ["bird", ""]}', "dev.jsonl:1: 'labels' is empty; give each record a label"),
        ('{"text": "a", "labels": ["bird", "fish"]}', "dev.jsonl:1: 'labels' is 'fish'; the known ones are big, bird"),
        ('{"text": "a", "labels": "bird"}', "dev.jsonl:1: 'labels' is 'bird', and must be a list of strings"),
        ('{"text": "a", "label": "bird"}', "dev.jsonl:1: no 'labels' among the fields text, label"),
    ],
)
def test_labels_that_cannot_be_are_refused_with_file_and_line(tiny, tmp_path, line, said):
    (tmp_path / "dev.jsonl").write_text(line + "\n")
    with pytest.raises(DataError, match=said):
        build(records(tiny, tmp_path, MANY, "multiple", data__eval=f"dev={tmp_path / 'dev.jsonl'}"), tmp_path / "run")


def test_weights_are_given_or_learned(tiny, tmp_path):
    both = {"task__classification__balanced": True, "task__classification__labels": "big,bird,small"}
    config = records(tiny, tmp_path, MANY, "multiple", **both, task__classification__class_weights="1,2,3")
    with pytest.raises(FlagError, match=r"balanced=true and class_weights=\(1.0, 2.0, 3.0\): .* give one"):
        build(config, tmp_path / "run")


@pytest.mark.parametrize("kind", ["ordered", "multiple"])
def test_a_tiny_model_learns_32_examples_of_other_kinds_whatever_the_padding(tiny, tmp_path, kind):
    """To near-zero loss; then rows twice as long give the same loss."""
    # Ordered classes, or none to two labels of each text.
    label = {
        "ordered": lambda k: {"label": k},
        "multiple": lambda k: {"labels": ["big"] * (k > 1) + ["bird"] * (k % 2)},
    }
    words = ("fox", "cow", "owl", "elm")
    lines = [json.dumps({"text": f"{i} {w}"} | label[kind](k)) for i in range(8) for k, w in enumerate(words)]
    fields = {"epochs": 40, "optimizer__learning_rate": 0.02, "optimizer__warmup_steps": 5, "evaluation__batches": 4,
              "model__dropout__residual": 0.0, "model__dropout__attention": 0.0}  # fmt: skip
    if kind == "ordered":
        fields["task__classification__falloff"] = 4.0
    config = records(tiny, tmp_path, lines, kind, **fields)
    workdir = lmjax.train(config, tmp_path / "run", progress=False)
    last = read_lines(workdir)[-1]
    assert last["eval/dev/classification/loss"] < 0.02
    assert last["eval/dev/classification/accuracy"] == 1
    longer = config.with_fields({"init_from": str(workdir), "steps": 1, "epochs": None,
                                 "task": config.task.with_fields({"length": 64})})  # fmt: skip
    again = read_lines(lmjax.train(longer, tmp_path / "longer", progress=False))[0]
    np.testing.assert_allclose(
        again["eval/dev/classification/loss"], last["eval/dev/classification/loss"], rtol=1e-3, atol=1e-6
    )


def test_ordered_names_need_their_order(tiny, tmp_path):
    names = ['{"text": "a", "label": "low"}', '{"text": "b", "label": "high"}']
    with pytest.raises(DataError, match=r"labels high,low are names; give them in their order, lowest first, with"):
        build(records(tiny, tmp_path, names, "ordered"), tmp_path / "run")
    given = records(tiny, tmp_path, names, "ordered", task__classification__labels="low,high")
    assert build(given, tmp_path / "run").config.task.classification.labels == ("low", "high")
    numbers = [f'{{"text": "{i}", "label": {i}}}' for i in (10, 2, 2, 2)]
    ordered = records(tiny, tmp_path, numbers, "ordered", task__classification__balanced=True)
    config = build(ordered, tmp_path / "numbers").config.task.classification
    assert (config.labels, config.class_weights) == (("2", "10"), (4 / 6, 4 / 2))


def test_weights_need_labels():
    with pytest.raises(ValueError, match="name the labels, and give one weight of at least 0 for each"):
        ClassificationConfig(class_weights=(1.0, 2.0))
    assert ClassificationConfig(labels=("a",), kind="multiple").labels == ("a",)
    assert Classification.known_columns(ClassificationConfig())[0].name == TEXT
