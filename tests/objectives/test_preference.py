"""Preferences: losses against float64 references, what rows hold, what is cut, and what is refused with its line."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.data.documents import Document
from lmjax.data.store import build_store
from lmjax.errors import DataError, FlagError
from lmjax.objectives.dpo import DPO, DPOConfig
from lmjax.objectives.kto import KTO, KTOConfig, partners
from lmjax.objectives.orpo import ORPO, ORPOConfig, log_odds
from lmjax.objectives.preference import answer_format
from lmjax.objectives.prompts import PromptFormat
from lmjax.objectives.registry import OBJECTIVES, settings
from lmjax.objectives.reward import Reward, RewardConfig
from lmjax.objectives.simpo import SimPO, SimPOConfig
from lmjax.runs.build import build

TRIPLES = [{"prompt": f"p{i}", "chosen": "good " * (1 + i % 3), "rejected": f"bad {i}"} for i in range(12)]
VOCAB, ROWS, LENGTH = 11, 5, 9


def log_sigmoid(x):
    return -np.log1p(np.exp(-x))


@pytest.fixture(scope="module")
def recorded():
    """A batch of answers whose last row does not count, logits, and the float64 log-probabilities of the answers."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (ROWS, LENGTH, VOCAB)).astype(np.float32)
    targets = rng.integers(0, VOCAB, (ROWS, LENGTH)).astype(np.int32)
    answer_ids = np.array([[0, 0, 1, 1, 1, 0, 2, 2, 0], [0, 1, 0, 0, 2, 2, 2, 2, 0], [1, 1, 2, 2, 0, 0, 0, 0, 0],
                           [0, 1, 1, 1, 1, 1, 0, 2, 0], [0, 0, 0, 0, 0, 0, 0, 0, 0]], np.int32)  # fmt: skip
    references = np.append(rng.normal(-6, 1, (ROWS - 1, 2)), [[np.nan, np.inf]], axis=0).astype(np.float32)
    exact = logits.astype(np.float64)
    each = np.take_along_axis(exact, targets[..., None], -1)[..., 0] - np.log(np.exp(exact).sum(-1))
    found = np.stack([(each * (answer_ids == n)).sum(1) for n in (1, 2)], -1)[:-1]
    counts = np.stack([(answer_ids == n).sum(1) for n in (1, 2)], -1)[:-1]
    batch = {"targets": targets, "answer_ids": answer_ids, "references": references,
             "row_weights": np.float32([1, 1, 1, 1, 0]), "labels": np.int32([1, 0, 0, 1, 1])}  # fmt: skip
    # Logits that do not count may be anything.
    logits[-1] = np.nan
    return {name: jnp.asarray(x) for name, x in batch.items()}, jnp.asarray(logits), found, counts


def measured(objective, recorded, forward_of, chunk=0):
    batch, logits, *_ = recorded
    forward = forward_of(batch, states=logits, logits=lambda hidden: hidden)
    return objective.losses(forward, batch)[objective.name]


def assert_sums(found, losses, right, means):
    count = len(losses)
    assert float(found.weight) == count
    np.testing.assert_allclose(float(found.loss), losses.sum(), rtol=2e-6)
    assert float(found.correct) == right.sum()
    for name, values in means.items():
        np.testing.assert_allclose(float(found.means[name].total), np.sum(values), rtol=2e-5, err_msg=name)
        assert float(found.means[name].weight) == len(values)
    assert found.means.keys() == means.keys()


def dpo_losses(ratios, beta, loss, smoothing):
    """TRL's `dpo_loss` in numpy."""
    margins = ratios[:, 0] - ratios[:, 1]
    if loss == "ipo":
        return (margins - 1 / (2 * beta)) ** 2
    if loss == "hinge":
        return np.maximum(0, 1 - beta * margins)
    return -(1 - smoothing) * log_sigmoid(beta * margins) - smoothing * log_sigmoid(-beta * margins)


@pytest.mark.parametrize("chunk", [0, 4])
@pytest.mark.parametrize(
    ("loss", "smoothing", "per_token"),
    [("sigmoid", 0.0, False), ("sigmoid", 0.2, False), ("ipo", 0.0, False), ("ipo", 0.0, True), ("hinge", 0.0, False)],
)
def test_dpo_is_that_of_the_papers(recorded, forward_of, tokenizer, loss, smoothing, per_token, chunk):
    beta = 0.3
    config = DPOConfig(beta=beta, loss=loss, label_smoothing=smoothing, per_token=per_token)
    found = measured(DPO(config, tokenizer, "decoder", LENGTH, LENGTH, chunk), recorded, forward_of)
    batch, _, log_probs, counts = recorded
    ratios = log_probs - np.asarray(batch["references"], np.float64)[:-1]
    compared = ratios / counts if per_token else ratios
    margins = beta * (compared[:, 0] - compared[:, 1])
    means = {"margin": margins, "chosen_log_ratio": ratios[:, 0], "rejected_log_ratio": ratios[:, 1]}
    assert_sums(found, dpo_losses(compared, beta, loss, smoothing), margins > 0, means)


def test_orpo_is_that_of_the_paper(recorded, forward_of, tokenizer):
    beta = 0.7
    found = measured(ORPO(ORPOConfig(beta=beta), tokenizer, "decoder", LENGTH, LENGTH, 0), recorded, forward_of)
    _, _, log_probs, counts = recorded
    mean = log_probs / counts
    odds = np.exp(mean) / (1 - np.exp(mean))
    ratios = np.log(odds[:, 0] / odds[:, 1])
    means = {"margin": beta * (mean[:, 0] - mean[:, 1]), "log_odds_ratio": ratios,
             "chosen_log_prob": mean[:, 0], "rejected_log_prob": mean[:, 1]}  # fmt: skip
    assert_sums(found, -mean[:, 0] - beta * log_sigmoid(ratios), mean[:, 0] > mean[:, 1], means)


def test_the_odds_of_a_certain_answer_are_finite():
    value, slope = jax.value_and_grad(log_odds)(jnp.float32(0.0))
    assert np.isfinite(value)
    assert np.isfinite(slope)


def test_simpo_is_that_of_the_paper(recorded, forward_of, tokenizer):
    config = SimPOConfig(beta=1.7, gamma=0.4)
    found = measured(SimPO(config, tokenizer, "decoder", LENGTH, LENGTH, 0), recorded, forward_of)
    _, _, log_probs, counts = recorded
    mean = log_probs / counts
    margins = 1.7 * (mean[:, 0] - mean[:, 1])
    means = {"margin": margins, "chosen_log_prob": mean[:, 0], "rejected_log_prob": mean[:, 1]}
    assert_sums(found, -log_sigmoid(margins - 0.4), margins > 0, means)


@pytest.mark.parametrize("moved", [0.0, 8.0])
def test_kto_is_that_of_the_paper(recorded, forward_of, tokenizer, moved):
    """Once with an estimate of the divergence below 0, which counts as 0, and once with one above it."""
    batch, logits, log_probs, _ = recorded
    batch = batch | {"references": batch["references"] - jnp.array([[0.0, moved]])}
    config = KTOConfig(beta=0.4, desirable_weight=1.5, undesirable_weight=0.5)
    found = measured(KTO(config, tokenizer, "decoder", LENGTH, LENGTH, 0), (batch, logits), forward_of)
    ratios = log_probs - np.asarray(batch["references"], np.float64)[:-1]
    z = max(ratios[:, 1].mean(), 0)
    assert (z > 0) == (moved > 0)
    good = np.array([True, False, False, True])
    over = np.where(good, ratios[:, 0] - z, z - ratios[:, 0])
    losses = np.where(good, 1.5, 0.5) * (1 - np.exp(log_sigmoid(0.4 * over)))
    means = {
        "kl": np.full(4, z),
        "desirable_reward": 0.4 * ratios[good, 0],
        "undesirable_reward": 0.4 * ratios[~good, 0],
    }
    assert_sums(found, losses, over > 0, means)


def test_the_divergence_of_kto_has_no_gradient(recorded, tokenizer):
    kto = KTO(KTOConfig(), tokenizer, "decoder", LENGTH, LENGTH, 0)
    ratios = jnp.array([[0.1, 3.0], [0.2, 2.0], [0.3, 1.0], [0.4, 4.0], [0.0, 0.0]])
    slope = jax.grad(lambda r: kto.compared(r, recorded[0])["kto"].loss)(ratios)
    assert np.all(slope[:-1, 0] != 0)
    assert not np.any(slope[:, 1])


def test_rewards_are_those_of_bradley_and_terry(forward_of, tokenizer):
    reward = Reward(RewardConfig(), tokenizer, "encoder", LENGTH, LENGTH, 0)
    scores = np.array([[1.5, -0.5], [0.0, 1.0], [np.nan, 1.0]])
    batch = {"row_weights": jnp.array([1.0, 1.0, 0.0])}
    forward = forward_of(batch, states=jnp.zeros((3, LENGTH, 2)), choice=jnp.asarray(scores, jnp.float32))
    margins = scores[:2, 0] - scores[:2, 1]
    found = reward.losses(forward, batch)["reward"]
    assert_sums(found, -log_sigmoid(margins), margins > 0, {"margin": margins, "chosen_reward": scores[:2, 0]})


def test_only_the_tokens_of_answers_have_a_gradient(recorded, tokenizer, forward_of):
    batch, logits, *_ = recorded
    logits = jnp.nan_to_num(logits)
    for objective in (DPO(DPOConfig(), tokenizer, "decoder", LENGTH, LENGTH, 0),
                      SimPO(SimPOConfig(), tokenizer, "decoder", LENGTH, LENGTH, 0)):  # fmt: skip
        slope = jax.grad(lambda x, o=objective: measured(o, (batch, x), forward_of).loss)(logits)
        np.testing.assert_array_equal(np.any(slope != 0, axis=-1), batch["answer_ids"] > 0)


@pytest.fixture(scope="module")
def make_rows(tokenizer, tmp_path_factory):
    """Returns a function from triples, a family and fields to the rows of dpo, or of another objective."""
    folder = str(tmp_path_factory.mktemp("triples"))

    def make(triples, architecture="decoder", *, name="dpo", length=24, target_length=16, **fields):
        kind = OBJECTIVES[name]
        texts = [tuple(x for x in t if isinstance(x, str)) for t in triples]
        made = [
            Document(own, "", counts=(1,) * len(own), values=t[len(own) :])
            for own, t in zip(texts, triples, strict=True)
        ]
        parts = {"triples": [list(map(str, t)) for t in triples], "name": name}
        store = build_store(
            lambda: iter(made), tokenizer, fingerprint_parts=parts, cache_dir=folder, columns=kind.columns
        )
        return kind(settings(kind)(**fields), tokenizer, architecture, length, target_length, 0).rows(store, 0)

    return make


def test_a_decoder_reads_the_prompt_before_each_answer(make_rows, ids):
    row = make_rows([("ab", "cd", "e")]).features(0, None)
    there = row["segment_ids"] > 0
    assert row["tokens"][there].tolist() == ids("BOS", "ab", "cd", "BOS", "ab", "e")
    assert row["targets"][there].tolist() == ids("ab", "cd", "EOS", "ab", "e", "EOS")
    assert row["answer_ids"][there].tolist() == [0, 0, 1, 1, 1, 0, 0, 2, 2]
    assert row["segment_ids"][there].tolist() == [1] * 5 + [2] * 4
    assert row["positions"][there].tolist() == [*range(5), *range(4)]
    assert not row["answer_ids"][~there].any()


def test_an_encoder_decoder_reads_the_prompt_in_its_encoder(make_rows, ids):
    row = make_rows([("ab", "cd", "e")], "encoder_decoder").features(0, None)
    assert row["encoder_tokens"][row["encoder_segment_ids"] > 0].tolist() == ids("ab", "EOS", "ab", "EOS")
    there = row["decoder_segment_ids"] > 0
    assert row["decoder_tokens"][there].tolist() == ids("PAD", "cd", "PAD", "e")
    assert row["targets"][there].tolist() == ids("cd", "EOS", "e", "EOS")
    assert row["answer_ids"][there].tolist() == [1, 1, 1, 2, 2]


def test_the_ids_around_a_prompt_are_those_of_the_settings(make_rows, ids):
    prompt = (tuple(ids("S0")), tuple(ids("SEP")), tuple(ids("PAD", "BOS")), tuple(ids("S1", "EOS")))
    row = make_rows([("ab", "cd", "e")], prompt=prompt).features(0, None)
    assert row["tokens"][:5].tolist() == ids("S0", "ab", "SEP", "c")
    assert row["targets"][3:6].tolist() == ids("cd", "S1")
    row = make_rows([("ab", "cd", "e")], "encoder_decoder", prompt=prompt).features(0, None)
    assert row["encoder_tokens"][:4].tolist() == ids("S0", "ab", "SEP")
    assert row["decoder_tokens"][:4].tolist() == ids("PAD", "BOS", "cd")
    assert row["targets"][:4].tolist() == ids("BOS", "cd", "S1")
    assert row["answer_ids"][:6].tolist() == [0, 1, 1, 1, 0, 2]


def test_a_long_prompt_loses_its_beginning_and_a_long_answer_its_end(make_rows, ids, caplog):
    row = make_rows([("x" * 30 + "y", "a", "b"), ("p", "a" * 40, "b")]).features(0, None)
    assert "1 prompts lose their beginning and 1 have answers that lose their end" in caplog.text
    assert row["tokens"].tolist() == [*ids("BOS", "x" * 9 + "y", "a"), *ids("BOS", "x" * 9 + "y", "b")]
    assert row["answer_ids"].tolist() == [0] * 10 + [1, 1] + [0] * 10 + [2, 2]
    cut = make_rows([("x" * 30 + "y", "a", "b"), ("p", "a" * 40, "b")]).features(1, None)
    # The answers get what two prompts leave: 24 - 2 * 1, and the shorter one stays whole. No end is predicted.
    assert cut["targets"].tolist() == [*ids("p"), *ids("a" * 20), *ids("p", "b", "EOS")]


def test_answers_that_differ_only_in_what_is_cut_are_told(make_rows, caplog):
    make_rows([("p", "a" * 40, "a" * 41), ("p", "a", "b")])
    assert "1 teach nothing" in caplog.text


def test_a_row_too_short_for_two_answers_is_refused(make_rows):
    with pytest.raises(FlagError, match=r"--config.task.length=9: two answers share a row"):
        make_rows([("p", "a", "b")], length=9)


def test_kto_puts_the_answer_of_another_record_behind_a_prompt(make_rows, ids):
    rows = make_rows([("ab", "c", 1), ("de", "f", 0), ("gh", "i", 1)], name="kto")
    others = partners(3)
    assert sorted(others) == [0, 1, 2]
    assert all(others != np.arange(3))
    for i, (prompt, answer) in enumerate([("ab", "c"), ("de", "f"), ("gh", "i")]):
        row = rows.features(i, None)
        assert row["labels"] == (i != 1)
        assert row["tokens"][:8].tolist() == ids("BOS", prompt, answer, "BOS", prompt, "cfi"[others[i]])


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        ("encoder", [("CLS", "ab", "SEP", "c", "SEP"), ("CLS", "ab", "SEP", "de", "SEP")]),
        ("decoder", [("BOS", "ab", "c", "EOS"), ("BOS", "ab", "de", "EOS")]),
        ("encoder_decoder", [("ab", "EOS", "c", "EOS"), ("ab", "EOS", "de", "EOS")]),
    ],
)
def test_a_reward_model_reads_whole_answers(make_rows, ids, architecture, expected):
    row = make_rows([("ab", "c", "de")], architecture, name="reward").features(0, None)
    side = "encoder_" if architecture == "encoder_decoder" else ""
    for number, parts in enumerate(expected, 1):
        assert row[f"{side}tokens"][row[f"{side}segment_ids"] == number].tolist() == ids(*parts)
    assert row["text_ids"].tolist() == [1, 2]


def test_the_format_is_that_of_the_model_that_a_run_starts_from(tokenizer):
    form = PromptFormat(before=(5,), after=(6,), start=(7,), forced=(8,), stop=(9, 10), never=(1,))
    fields = DPO.continued(lambda: form)
    found = DPO(DPOConfig(**fields), tokenizer, "encoder_decoder", 24, 16, 0).prompt_format()
    assert (found.before, found.after, found.start, found.stop) == ((5,), (6,), (7, 8), (9, 10))
    assert not found.chat
    with pytest.raises(FlagError, match="bidirectional"):
        DPO.continued(lambda: PromptFormat(bidirectional=True, stop=(1,)))
    with pytest.raises(FlagError, match="no token that ends"):
        DPO.continued(PromptFormat)
    assert Reward.continued(PromptFormat) == {}, "an encoder writes no answers"


def test_smoothing_is_for_the_sigmoid():
    with pytest.raises(ValueError, match=r"label_smoothing=0.1 is for loss=sigmoid, not ipo"):
        DPOConfig(loss="ipo", label_smoothing=0.1)


@pytest.fixture
def written(tiny, tmp_path):
    """Returns a function from an objective and records to a config of a run on them."""

    def make(name, records, **fields):
        for path in (tmp_path / "data.jsonl", tmp_path / "dev.jsonl"):
            path.write_text("".join(json.dumps(record) + "\n" for record in records))
        paths = {"data__train": tmp_path / "data.jsonl", "data__eval": f"dev={tmp_path / 'dev.jsonl'}"}
        return tiny(name, **paths, init_from=tmp_path / "base", **fields)

    return make


GOOD = {"prompt": "p", "chosen": "a", "rejected": "b"}


@pytest.mark.parametrize(
    ("name", "record", "said"),
    [
        ("dpo", {"prompt": "p", "chosen": "a"}, "no 'rejected' among the fields prompt, chosen; a record needs prompt"),
        ("dpo", GOOD | {"rejected": "a"}, "'chosen' and 'rejected' are equal, so there is no preference to learn"),
        ("simpo", GOOD | {"prompt": " "}, "'prompt' is empty; write it, or remove the record"),
        ("orpo", GOOD | {"chosen": ""}, "'chosen' is empty; write it, or remove the record"),
        ("dpo", GOOD | {"rejected": 7}, "'rejected' is '7', and must be a string"),
        ("dpo", GOOD | {"prompt": [{"role": "user", "content": "p"}]}, "chat=true of the objective"),
        ("dpo", GOOD | {"chosen": [{"role": "assistant", "content": "p"}]}, "is a list of messages, and prompts are"),
        ("kto", {"prompt": "p", "completion": "a"}, "no 'label' among the fields prompt, completion"),
        ("kto", {"prompt": "p", "completion": "a", "label": "so"}, "'label' is 'so'; true is for a good answer"),
        ("kto", {"prompt": "p", "completion": "a", "label": None}, "'label' is 'None'; true is for a good answer"),
        ("reward", {"prompt": "p", "chosen": "a"}, "no 'rejected' among the fields prompt, chosen"),
    ],
)
def test_records_that_cannot_be_are_refused_with_file_and_line(written, tmp_path, name, record, said):
    good = {"prompt": "p", "completion": "a", "label": True} if name == "kto" else GOOD
    with pytest.raises(DataError, match=rf"(data|dev).jsonl:3: .*{said}"):
        build(written(name, [good, good, record]), tmp_path / "run")


def test_labels_of_many_kinds_are_read(written, tmp_path):
    labels = [True, False, 1, 0, "true", "False", "1", "0"]
    records = [{"prompt": f"p{i}", "completion": "a", "label": label} for i, label in enumerate(labels)]
    rows = build(written("kto", records), tmp_path / "run").train_examples.rows
    assert [int(rows.features(i, None)["labels"]) for i in range(8)] == [1, 0] * 4


def test_conversations_are_rendered_with_the_template(written, tmp_path):
    said = [{"role": "user", "content": "ab"}]
    records = [{"prompt": said, "chosen": [{"role": "assistant", "content": "cd"}], "rejected": "e"},
               {"prompt": "fg", "chosen": "h", "rejected": "i"}] * 3  # fmt: skip
    run = build(
        written("dpo", records, task__dpo__chat=True, task__length=64, tokenizer__byte_fallback=True), tmp_path / "run"
    )
    rows, t = run.train_examples.rows, run.tokenizer
    found = {}
    for i in range(len(rows)):
        row = rows.features(i, None)
        tokens, targets, owners = (row[name] for name in ("tokens", "targets", "answer_ids"))
        first = int(np.argmax(owners == 1))
        found[t.decode(tokens[1 : first + 1].tolist())] = [targets[owners == n].tolist() for n in (1, 2)]
    expected = {"User:\nab\nAssistant:\n": ("cd", "e"), "User:\nfg\nAssistant:\n": ("h", "i")}
    assert found == {k: [[*t.encode(text), t.eos_id] for text in texts] for k, texts in expected.items()}
    form = answer_format(DPOConfig(chat=True), t, run.task.objectives[0].family)
    assert form.chat
    assert form.stop == (t.eos_id,)


def test_without_a_reference_there_is_no_comparison(tiny, tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in TRIPLES))
    with pytest.raises(FlagError, match="--objective=dpo: compares the model with the one that it starts from"):
        build(tiny("dpo", data__train=path), tmp_path / "run")
    row = build(tiny("simpo", data__train=path), tmp_path / "run").train_examples.rows.features(0, None)
    assert "references" not in row
