"""Preferences with a reference: its log-probabilities are computed once, and runs with it resume bit for bit."""

import json
import pathlib
import shutil

import flax.linen as nn
import jax
import numpy as np
import pytest

import lmjax
from lmjax.axes import RULES
from lmjax.errors import ConfigMismatchError, FlagError
from lmjax.inference.score.rows import Piece, RowConfig, token_scores
from lmjax.parallel.mesh import ParallelConfig, make_mesh, to_device
from lmjax.runs import references
from lmjax.runs.build import build
from lmjax.runs.documents import score_documents
from lmjax.runs.fit import layout
from lmjax.runs.references import REFERENCE, digest_of, referenced
from lmjax.runs.trained import load_model
from lmjax.training.metrics import read_lines
from lmjax.training.state import state_maker
from lmjax.training.step import loss_and_gradients
from tests.thinned import thinned
from tests.workdirs import bits, losses, resumed_from

pytestmark = pytest.mark.long

FAMILIES = ("decoder", "encoder_decoder")
WORDS = ("old", "king", "river", "tree", "sees", "never", "house", "young")
# Short updates of a large rate, without dropout: a handful of pairs is learned by heart.
LEARNS = {"optimizer__learning_rate": 0.01, "optimizer__warmup_steps": 2, "model__dropout__residual": 0,
          "model__dropout__attention": 0}  # fmt: skip


def triples(count=24):
    rng = np.random.default_rng(0)
    return [
        {
            "prompt": " ".join(rng.choice(WORDS, 2)),
            "chosen": f"{rng.choice(WORDS)} goes",
            "rejected": f"under {rng.choice(WORDS)}",
        }
        for _ in range(count)
    ]


def rated():
    return [
        {"prompt": r["prompt"], "completion": r[name], "label": name == "chosen"}
        for r in triples()
        for name in ("chosen", "rejected")
    ]


@pytest.fixture(scope="module")
def bases(tiny, tmp_path_factory):
    """Returns the workdir of a trained model of each family."""
    folder = tmp_path_factory.mktemp("bases")
    pairs = folder / "pairs.jsonl"
    pairs.write_text("".join(json.dumps({"source": r["prompt"], "target": r["chosen"]}) + "\n" for r in triples(60)))
    common = {"steps": 2, "data__train": pairs}
    made = {
        # Its prompts begin with a word and end in EOS, which no setting of the preferences says.
        "decoder": tiny("seq2seq", model__architecture="decoder", task__seq2seq__prefix="sees ", **common),
        "encoder_decoder": tiny("seq2seq", model__architecture="encoder_decoder", **common),
    }
    return {name: lmjax.train(config, folder / name, progress=False) for name, config in made.items()}


@pytest.fixture
def preferring(bases, tmp_path):
    """Returns a function from an objective, a family and fields to a config that starts from its trained model."""

    def make(name="dpo", family="decoder", records=None, **fields):
        records = records or (rated() if name == "kto" else triples())
        path, dev = tmp_path / "preferences.jsonl", tmp_path / "dev.jsonl"
        for each in (path, dev):
            each.write_text("".join(json.dumps(record) + "\n" for record in records))
        values = {
            "data.train": str(path), "data.eval": f"dev={dev}", "data.cache_dir": str(tmp_path / "cache"),
            "batch_size": "8", "steps": "4", "epochs": "none", "task.length": "64", "task.target_length": "40",
            "evaluation.batches": "8", "logging.every": "1", "logging.tensorboard": "false",
        }  # fmt: skip
        values |= {path.replace("__", "."): str(value) for path, value in fields.items()}
        return lmjax.resolve(objective=(name,), init_from=bases[family], overrides=values)

    return make


def with_references(config, workdir):
    run = build(config, workdir)
    with layout(run):
        return referenced(run)


def found(run):
    return run.train_examples.rows.references


@pytest.mark.parametrize("family", thinned(FAMILIES, 2))
def test_they_are_those_of_the_scores_of_the_same_model(preferring, bases, tmp_path, family):
    """`lmjax evaluate` computes them by another way: each answer as a text of its own, in rows of another length."""
    run = with_references(preferring(family=family), tmp_path / "run")
    loaded, rows = load_model(bases[family]), run.train_examples.rows
    t, form, pieces = run.tokenizer, rows.objective.form, []
    assert (form.before, form.after) == (loaded.prompts.before, loaded.prompts.after)
    for record in triples():
        source = form.around(t.encode(record["prompt"]))
        for name in ("chosen", "rejected"):
            answer = [*t.encode(record[name]), t.eos_id]
            begun = list(form.start) if family == "encoder_decoder" else source
            at = range(len(begun) - 1, len(begun) - 1 + len(answer))
            given = source if family == "encoder_decoder" else None
            pieces.append(Piece([*begun, *answer[:-1]], at, answer, given))
    scores = [score.sum() for score, _ in token_scores(loaded, pieces, RowConfig())]
    np.testing.assert_allclose(found(run), np.reshape(scores, (-1, 2)), rtol=1e-5)


@pytest.mark.parametrize("name", thinned(["kto", "dpo"], 2))
def test_a_run_begins_at_its_reference(preferring, tmp_path, name):
    """The loss is log 2 (of kto: a half) before the first update, and no margin is left."""
    workdir = lmjax.train(preferring(name), tmp_path / "run", progress=False)
    first, *_, last = read_lines(workdir)
    assert first["step"] == 0
    assert first[f"eval/dev/{name}/loss"] == pytest.approx(0.5 if name == "kto" else np.log(2), rel=1e-6)
    shown = ("kl", "desirable_reward") if name == "kto" else ("margin", "chosen_log_ratio", "rejected_log_ratio")
    for each in shown:
        assert abs(first[f"eval/dev/{name}/{each}"]) < 1e-5
    # A comparison of runs computes the loss of each record, with the same references.
    scored = score_documents(workdir)["dev"]
    assert scored.loss == pytest.approx(last["eval/dev/loss"], rel=1e-5)
    assert set(scored.weights[0]) == {1.0}


@pytest.mark.parametrize(("name", "family"), [(n, "decoder") for n in ("orpo", "simpo", "kto", "reward")] + [
    ("dpo", "encoder_decoder")])  # fmt: skip
def test_a_handful_of_preferences_is_learned(preferring, tmp_path, name, family):
    fields = LEARNS | {"steps": 40, f"task__{name}__beta": 1.0}
    if name == "reward":
        del fields["task__reward__beta"]
    config = preferring(name, family, **fields)
    lines = read_lines(lmjax.train(config, tmp_path / "run", progress=False))
    last = lines[-1]
    assert last[f"eval/dev/{name}/accuracy"] == 1
    trained = [line for line in lines if f"train/{name}/loss" in line]
    assert trained[-1][f"train/{name}/loss"] < trained[0][f"train/{name}/loss"]
    if name == "kto":
        assert last["eval/dev/kto/desirable_reward"] > 0 > last["eval/dev/kto/undesirable_reward"]
    else:
        assert last[f"eval/dev/{name}/margin"] > 0
        assert trained[-1][f"train/{name}/margin"] > 0


def test_the_padding_of_rows_changes_nothing(preferring, tmp_path):
    values = [found(with_references(preferring(task__length=length), tmp_path / str(length))) for length in (56, 64)]
    np.testing.assert_allclose(*values, rtol=1e-5)


def test_they_are_computed_once(preferring, tmp_path, monkeypatch):
    config = preferring()
    first = found(with_references(config, tmp_path / "first"))
    assert len(list((tmp_path / "cache").glob("references-*/*.npy"))) == 2, "one for each set"
    monkeypatch.setattr(references, "_scorer", lambda *_: pytest.fail("they are computed again"))
    # Another run with another beta reads them.
    np.testing.assert_array_equal(found(with_references(preferring(task__dpo__beta=0.5), tmp_path / "other")), first)


def test_a_kill_while_they_are_computed_loses_one_file_at_most(preferring, tmp_path, monkeypatch):
    monkeypatch.setattr(references, "_ROWS", 10)
    whole = found(with_references(preferring(), tmp_path / "whole"))
    folder, _ = (tmp_path / "cache").glob("references-*")
    assert {path.name for path in folder.iterdir()} == {"0-10.npy", "10-20.npy", "20-24.npy"}
    (folder / "0-10.npy").write_bytes((folder / "0-10.npy").read_bytes()[:-3])
    np.save(folder / "20-24.npy", np.zeros((3, 2), np.float32))
    (folder / "tmpabc").write_bytes(b"what a killed process has left")
    kept = (folder / "10-20.npy").stat().st_mtime_ns
    again = with_references(preferring(), tmp_path / "again")
    np.testing.assert_array_equal(found(again), whole)
    np.testing.assert_array_equal(again.eval_sets[0].examples.rows.references, whole)
    assert (folder / "10-20.npy").stat().st_mtime_ns == kept


def test_a_resumed_run_reads_them_and_goes_on_bit_for_bit(preferring, bases, tmp_path, monkeypatch):
    config = preferring(steps=6, checkpoint__every=3, checkpoint__keep=5, evaluation__every=3)
    whole = lmjax.train(config, tmp_path / "whole", progress=False)
    monkeypatch.setattr(references, "_scorer", lambda *_: pytest.fail("they are computed again"))
    workdir = lmjax.train(config, resumed_from(whole, 3, tmp_path / "run"), progress=False)
    assert bits(workdir, 6) == bits(whole, 6)
    assert losses(workdir) == losses(whole)


def test_a_reference_that_changed_is_not_taken_for_the_old_one(preferring, bases, tmp_path):
    """A run that goes on reads what is stored of the old model; if that is lost, the old model must be there."""
    base = shutil.copytree(bases["decoder"], tmp_path / "base")
    config = preferring(steps=4, checkpoint__every=2, checkpoint__keep=5, init_from=base)
    whole = lmjax.train(config, tmp_path / "whole", progress=False)
    known, old = json.loads((whole / REFERENCE).read_text())["parameters"], found(with_references(config, whole))
    other = preferring(steps=1)
    shutil.rmtree(base)
    shutil.copytree(lmjax.train(other, tmp_path / "other", progress=False), base)
    lmjax.train(config, resumed_from(whole, 2, tmp_path / "goes on"), progress=False)
    changed = found(with_references(config, tmp_path / "new"))
    assert json.loads((tmp_path / "new" / REFERENCE).read_text())["parameters"] != known
    for folder in (tmp_path / "cache").glob("references-*"):
        shutil.rmtree(folder)
    with pytest.raises(ConfigMismatchError, match="its parameters are not those that this run started from"):
        lmjax.train(config, resumed_from(whole, 2, tmp_path / "refused"), progress=False)
    assert np.abs(changed - old).max() > 1e-4


def test_a_model_with_a_new_part_is_no_reference(preferring, tmp_path):
    config = preferring(fresh="embedding")
    with pytest.raises(FlagError, match="embedding/table is new, and --objective=dpo compares the model"):
        lmjax.train(config, tmp_path / "run", progress=False)


def test_the_digest_is_that_of_names_and_values():
    params = {"a": {"b": np.ones((2, 3), np.float32)}, "c": np.float32(2)}
    same = {"c": np.float32(2), "a": {"b": np.ones((2, 3), np.float32)}}
    assert digest_of(params) == digest_of(same)
    for other in ({**params, "c": np.float32(3)}, {"a": {"d": params["a"]["b"]}, "c": params["c"]},
                  {"a": {"b": np.ones((3, 2), np.float32)}, "c": params["c"]}):  # fmt: skip
        assert digest_of(params) != digest_of(other)


def gradients(run, parallel, accumulation, devices):
    mesh = make_mesh(ParallelConfig(**parallel), devices)
    features = [run.train_examples(i, np.random.default_rng(i)) for i in range(8)]
    batch = {name: np.stack([f[name] for f in features]) for name in features[0]}
    batch["row_weights"][-1] = 0
    # The reference differs from the model, so that no margin is 0.
    batch["references"] = batch["references"] + np.random.default_rng(0).normal(0, 2, (8, 2)).astype(np.float32)
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        make_state, _ = state_maker(run.model, run.config.optimizer, run.hparams, 0, mesh)
        state, hparams = make_state(), jax.device_get(run.hparams)
        compute = jax.jit(lambda s, b: loss_and_gradients(run.model, run.task, s, b, hparams, accumulation))
        return jax.device_get(compute(state, to_device(batch, mesh)))


@pytest.mark.parametrize("name", thinned(["dpo", "kto"], 2))
def test_mesh_and_accumulation_leave_loss_and_gradient(preferring, tmp_path, every_device, name):
    run = with_references(preferring(name, model__dropout__residual=0, model__dropout__attention=0), tmp_path / "run")
    expected = gradients(run, {}, 1, jax.devices()[:1])
    assert expected[0][name].weight == 7
    for parallel, accumulation, devices in (({}, 4, 1), ({"data": 2, "fsdp": 2, "tensor": 2}, 2, 8)):
        made = gradients(run, parallel, accumulation, jax.devices()[:devices])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), made, expected)


def test_a_reward_model_scores_answers_alone_and_in_pairs(preferring, tmp_path):
    workdir = lmjax.train(preferring("reward", **LEARNS, steps=40), tmp_path / "run", progress=False)
    loaded = load_model(workdir)
    metrics = lmjax.evaluate(loaded, triples(), task="own")
    assert metrics["accuracy"] == 1
    from lmjax.evaluation.predicted import as_documents, predict_documents

    pair = triples()[0]
    alone = [{"prompt": pair["prompt"], "completion": pair[name]} for name in ("chosen", "rejected")]
    both, *single = predict_documents(loaded, as_documents([pair, *alone], loaded.task, gold=False))
    np.testing.assert_allclose([both["score"], both["rejected reward"]], [each["score"] for each in single], rtol=1e-4)
    assert both["margin"] == pytest.approx(both["score"] - both["rejected reward"])


def test_a_model_of_conversations_is_asked_as_it_was_trained(tiny, tmp_path):
    """The prompt of each answer is what `lmjax generate` gives the model, and the answer ends as those it learned."""
    said = [
        [{"role": "user", "content": r["prompt"]}, {"role": "assistant", "content": r["chosen"]}] for r in triples()
    ]
    for name, records in (("chats", [{"messages": each} for each in said]), ("train", triples()), ("dev", triples())):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    chats = {
        "data__train": tmp_path / "chats.jsonl",
        "tokenizer__byte_fallback": True,
        "task__length": 64,
        "model__max_length": 128,
    }
    base = lmjax.train(tiny("chat", steps=1, **chats), tmp_path / "base", progress=False)
    overrides = {"data.train": str(tmp_path / "train.jsonl"), "data.eval": f"dev={tmp_path / 'dev.jsonl'}"}
    config = lmjax.resolve(objective=("dpo",), init_from=base, overrides=overrides)
    assert config.task.dpo.chat
    run, loaded = build(config, tmp_path / "run"), load_model(base)
    row, record, t = run.train_examples.rows.features(0, None), triples()[0], run.tokenizer
    prompt = list(loaded.ids(record["prompt"], "it"))
    for number, name in ((1, "chosen"), (2, "rejected")):
        own = row["segment_ids"] == number
        answer = [*t.encode(record[name]), t.eos_id]
        assert row["tokens"][own].tolist() == [*prompt, *answer[:-1]]
        assert row["targets"][row["answer_ids"] == number].tolist() == answer
    form = run.task.objectives[0].prompt_format()
    assert form.chat
    # A loaded model also bans the padding rows of its vocabulary.
    never = tuple(i for i in loaded.prompts.never if i < t.vocab_size)
    assert (set(form.stop), form.never) == (set(loaded.prompts.stop), never)


def test_the_reference_of_an_adapter_is_its_base(preferring, tmp_path):
    lines = read_lines(
        lmjax.train(preferring(adapter__kind="lora", adapter__rank=2, **LEARNS), tmp_path / "run", progress=False)
    )
    assert lines[0]["eval/dev/dpo/loss"] == pytest.approx(np.log(2), rel=1e-6)
    assert lines[-1]["eval/dev/dpo/loss"] < np.log(2)


def test_workers_read_them_too(preferring, tmp_path):
    config = preferring(data__workers=1, steps=1)
    lines = read_lines(lmjax.train(config, tmp_path / "run", progress=False))
    assert [np.isfinite(line["train/dpo/loss"]) for line in lines if "train/dpo/loss" in line] == [True]
    assert pathlib.Path(config.data.cache_dir).is_dir()
