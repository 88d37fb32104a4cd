"""The losses of each document: their sums are the evaluation's own, and each document has its own targets."""

import dataclasses
import json

import flax.linen as nn
import jax
import numpy as np
import pytest

from lmjax.commands.train import train
from lmjax.config import from_json
from lmjax.errors import CheckpointError, DataError
from lmjax.evaluation.documents import DocumentLosses, document_losses, make_target_step
from lmjax.model.language_model import init_params
from lmjax.parallel.mesh import ParallelConfig, make_mesh
from lmjax.runs.build import build
from lmjax.runs.documents import document_files, read_documents, score_documents, scored
from lmjax.runs.pretrained import open_pretrained
from lmjax.training.evaluate import Evaluator
from lmjax.training.metrics import read_lines
from lmjax.training.step import make_eval_step

PLAIN = {"tokenizer__byte_fallback": "true", "evaluation__every": 0, "steps": 2, "evaluation__batches": 2}
SMALL = {"model__num_layers": 1, "task__vocab_chunk": 7}
LABELLED = {"data__train": "records.jsonl", "model__architecture": "encoder", "evaluation__batches": 9}
RUNS = {
    "denoise": {"model__architecture": "decoder"},
    "mlm,nsp": {},
    "rtd": {},
    "masked_diffusion": {},
    "span_corruption": {"evaluation__batches": 100},
    "next_token,prefix_lm": {},
    "classification": LABELLED,
    "embedding": LABELLED,
}


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    words = ("good", "bad")
    lines = [{"text": f"a {words[i % 2]} king sees {i}", "label": words[i % 2]} for i in range(40)]
    path = tmp_path_factory.mktemp("records") / "records.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


def initial(run):
    return nn.unbox(jax.jit(lambda: init_params(run.model, jax.random.key(0)))())


@pytest.mark.parametrize("objective", RUNS)
def test_the_sums_over_documents_are_those_of_the_evaluation(objective, tiny, tmp_path, records):
    """Of every objective's loss, correct predictions and bytes, in every batch, the last one with padding included."""
    values = PLAIN | SMALL | RUNS[objective]
    if values.get("data__train"):
        values["data__train"] = records
    run = build(tiny(objective, **values), tmp_path)
    # As of a tokenizer that adds a space before each text: its tokens have more bytes than the texts.
    run = dataclasses.replace(run, eval_sets=tuple(dataclasses.replace(e, text_bytes=0.7) for e in run.eval_sets))
    params = initial(run)
    weights = run.config.task.loss_weights()
    evaluator = Evaluator(
        run.eval_sets, jax.jit(make_eval_step(run.model, run.task)), run.mesh, run.token_bytes(), weights
    )
    metrics = evaluator(params)
    losses = scored(run, params, 0, run.eval_sets)["heldout"]
    assert losses.loss == pytest.approx(metrics["eval/heldout/loss"], rel=2e-6)
    for i, name in enumerate(losses.names):
        nats, weight = losses.nats[i].sum(), losses.weights[i].sum()
        assert nats / weight == pytest.approx(metrics[f"eval/heldout/{name}/loss"], rel=2e-6)
        correct = losses.correct[i].sum() / weight
        assert correct == pytest.approx(metrics[f"eval/heldout/{name}/accuracy"], rel=1e-6)
        bits = metrics.get(f"eval/heldout/{name}/bits_per_byte")
        if bits is None:
            assert not losses.num_bytes[i].any()
        else:
            assert nats / np.log(2) / losses.num_bytes[i].sum() == pytest.approx(bits, rel=2e-6)
    if values.get("data__train"):
        assert set(losses.weights[0]) == {1.0}, "one row for each record"


@pytest.fixture(scope="module")
def decoder(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("decoder") / "it"
    config = tiny("next_token", **(PLAIN | {"evaluation__batches": 100}))
    return train(config, folder, progress=False)


def test_they_are_read_again_and_computed_again_after_more_steps(decoder):
    losses = score_documents(decoder)["heldout"]
    assert losses.loss == pytest.approx(read_lines(decoder)[-1]["eval/heldout/loss"], rel=2e-6)
    (path,) = document_files(decoder).values()
    before = path.read_bytes()
    again = read_documents(decoder)["heldout"]
    assert all(np.array_equal(x, y) for x, y in zip(vars(losses).values(), vars(again).values(), strict=True))
    dataclasses.replace(losses, step=1).save(path)
    assert not read_documents(decoder), "losses of an older checkpoint are not those of the run"
    score_documents(decoder)
    assert path.read_bytes() == before


def test_each_document_has_its_own_tokens_and_bytes(decoder):
    """Rows hold several documents; the targets of each are its tokens and EOS, its bytes those of its text."""
    losses, run = score_documents(decoder)["heldout"], build(from_json(decoder / "config.json"), decoder)
    (store,) = run.eval_sets[0].examples.stores.values()
    assert losses.weights[0].tolist() == (store.lengths + 1).tolist()
    texts = [run.tokenizer.decode(store.document(i).tolist()) for i in range(store.num_documents)]
    # The tokenizer marks the beginning of a text by a space, and `text_bytes` spreads such bytes evenly.
    assert losses.num_bytes[0] == pytest.approx([len(t.encode()) for t in texts], rel=0.05)


def test_masked_tokens_count_in_their_own_document(tiny, tmp_path):
    run = build(tiny("mlm", **(PLAIN | SMALL | {"evaluation__batches": 99})), tmp_path)
    examples = run.eval_sets[0].examples
    expected = np.zeros(examples.rows.store.num_documents)
    for first, batch in enumerate(run.eval_sets[0].batches()):
        for index in range(first * 8, min(first * 8 + 8, len(examples))):
            end = 0
            for document, _, length in examples.rows.bounds(index):
                begin, end = end, end + length + 2
                places, counted = (batch[name][index - first * 8] for name in ("prediction_positions", "weights"))
                expected[document] += ((places >= begin) & (places < end) & (counted > 0)).sum()
    losses = scored(run, initial(run), 0, run.eval_sets)["heldout"]
    assert losses.weights[0].tolist() == expected.tolist()


def test_a_document_alone_has_the_same_loss(decoder, tmp_path):
    """Whatever shares its rows and its batch: the loss of a document is that of an evaluation of its text alone."""
    losses, run = score_documents(decoder)["heldout"], build(from_json(decoder / "config.json"), decoder)
    params = open_pretrained(decoder).params(run.model.config, run.mesh)
    step = jax.jit(make_target_step(run.model, run.task))
    mesh = make_mesh(ParallelConfig(), jax.devices()[:1])
    params = jax.device_put(jax.device_get(params), jax.devices()[0])
    for batch_size in (1, 5):
        evaluated = dataclasses.replace(run.eval_sets[0], batch_size=batch_size, max_batches=1000)
        found = document_losses(
            evaluated, step, params, mesh=mesh, token_bytes=run.token_bytes(), loss_weights={"next_token": 1.0}
        )
        assert found.nats[0] == pytest.approx(losses.nats[0], rel=1e-5)
        assert found.weights.tolist() == losses.weights.tolist()


def test_runs_with_other_tokenizers_have_the_same_documents(decoder, tiny, tmp_path):
    """Pairs are found by the fingerprint of the texts; another part of the corpus has another one."""
    changes = {
        "same": {"tokenizer__kind": "bpe", "tokenizer__vocab_size": 400, "task__length": 24},
        "other": {"data__held_out": "0.3"},
    }
    here = score_documents(decoder)["heldout"]
    found = {}
    for name, values in changes.items():
        run = build(tiny("next_token", **(PLAIN | SMALL | values)), tmp_path / name)
        found[name] = scored(run, initial(run), 0, run.eval_sets)["heldout"]
    assert found["same"].fingerprint == here.fingerprint != found["other"].fingerprint
    assert found["same"].tokenizer != here.tokenizer


def test_errors_name_the_remedy(tmp_path, decoder):
    with pytest.raises(CheckpointError, match="train it first"):
        score_documents(tmp_path)
    (tmp_path / "documents-x.npz").write_bytes(b"PK no zip")
    with pytest.raises(DataError, match=r"documents-x.npz: cannot be read .*; remove it"):
        DocumentLosses.load(tmp_path / "documents-x.npz")
