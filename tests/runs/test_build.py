"""A run from a mixture: data sets at their rates, each with its own held-out part, and resumed bit for bit."""

import json
import pathlib
import shutil

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from lmjax.commands.train import train
from lmjax.errors import ConfigMismatchError, FlagError
from lmjax.runs.build import build
from tests.workdirs import bits, losses, resumed_from

STEPS, EVERY = 6, 3


@pytest.fixture(scope="module")
def sets(corpus, tmp_path_factory):
    """Returns the tests' corpus as two files: "large" has three quarters of its documents, "small" the rest."""
    texts = corpus.read_text().split("\n\n")
    folder = tmp_path_factory.mktemp("sets")
    for name, part in (("large", texts[: 3 * len(texts) // 4]), ("small", texts[3 * len(texts) // 4 :])):
        (folder / f"{name}.txt").write_text("\n\n".join(part) + "\n")
    return {name: str(folder / f"{name}.txt") for name in ("large", "small")}


@pytest.fixture(scope="module")
def config(tiny, sets):
    """Returns a config with two data sets and two objectives."""
    options = {"steps": STEPS, "checkpoint__every": EVERY, "evaluation__every": EVERY, "checkpoint__keep": 10}
    mixture = ",".join(f"{name}={path}" for name, path in sets.items())
    options |= {"task__length": 64, "data__weights": "1,2"}
    return tiny("next_token,prefix_lm", data__mixture=mixture, data__held_out=0.4, **options)


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """Returns the workdir of an uninterrupted run."""
    return train(config, tmp_path_factory.mktemp("whole") / "run", progress=False)


def test_sets_come_as_often_as_their_tokens_weights_and_temperature_say(config, tmp_path):
    def rates(name, **data):
        own = config.model_copy(update={"data": config.data.model_copy(update=data)})
        examples = build(own, tmp_path / name).train_examples
        shares = dict.fromkeys(examples.stores, 0.0)
        for source in examples.sources:
            shares[source.name] += source.rate
        tokens = np.array([store.num_tokens for store in examples.stores.values()])
        return [*shares.values()] / np.sum([*shares.values()]), tokens

    for name in ("plain", "hot", "given"):
        (tmp_path / name).mkdir()
    shares, tokens = rates("plain", weights=())
    np.testing.assert_allclose(shares, tokens / tokens.sum())
    shares, _ = rates("hot", weights=(), temperature=3.0)
    np.testing.assert_allclose(shares, tokens ** (1 / 3) / (tokens ** (1 / 3)).sum())
    shares, _ = rates("given")
    np.testing.assert_allclose(shares, [1 / 3, 2 / 3])


def test_a_set_is_tokenised_once_whatever_it_is_mixed_with(config, tiny, sets, tmp_path):
    """With the same tokenizer, a data set has the same store in a mixture as alone."""
    for name in ("mixed", "alone"):
        (tmp_path / name).mkdir()
    mixed = build(config, tmp_path / "mixed")
    path = {"tokenizer__path": tmp_path / "mixed" / "tokenizer.model"}
    alone = build(tiny("next_token", data__train=sets["small"], data__held_out=0.4, **path), tmp_path / "alone")
    assert mixed.train_examples.stores["small"].path == alone.train_examples.stores["train"].path
    assert mixed.eval_sets[1].examples.rows.store.path == alone.eval_sets[0].examples.rows.store.path


def test_each_set_and_objective_has_its_own_metrics(config, whole):
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    evaluated = lines[0]
    for name in ("large", "small"):
        for objective in ("next_token", "prefix_lm"):
            assert 4 < evaluated[f"eval/{name}/{objective}/perplexity"] < 400
            assert evaluated[f"eval/{name}/{objective}/bits_per_byte"] > 1
    assert not any(name.startswith("eval/heldout") for line in lines for name in line)
    last = next(line for line in reversed(lines) if "train/loss" in line)
    total = last["train/next_token/loss"] + last["train/prefix_lm/loss"]
    assert last["train/loss"] == pytest.approx(total, rel=1e-6)


def test_epochs_are_those_of_the_rows_that_were_read(config, whole):
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    last = next(line for line in reversed(lines) if "train/loss" in line)
    examples = build(config, whole).train_examples
    read = dict.fromkeys(examples.stores, 0.0)
    for g in range(STEPS * config.batch_size):
        source = examples.sources[examples.mixture.source(examples.mixture.row(g, config.seed)[1])[0]]
        read[source.name] += 1 / len(source.rows)
    assert {name: last[f"data/{name}/epochs"] for name in read} == pytest.approx(read)
    assert max(read.values()) > 1, "no epoch ends within the run"


def test_a_mixed_run_resumes_bit_for_bit(config, whole, tmp_path):
    workdir = train(config, resumed_from(whole, EVERY, tmp_path / "run"), progress=False)
    assert bits(workdir, STEPS) == bits(whole, STEPS)
    assert losses(workdir) == losses(whole)


def test_a_set_that_changed_is_refused(config, whole, sets):
    path = pathlib.Path(sets["small"])
    text = path.read_text()
    try:
        path.write_text(f"{text}\n\nOne more.\n")
        with pytest.raises(ConfigMismatchError, match="trained on other data: train changed"):
            build(config, whole)
    finally:
        path.write_text(text)


def test_a_run_keeps_the_tokenizer_of_a_checkpoint_and_reads_it_back_bit_for_bit(tiny, tmp_path):
    """The checkpoint's folder may not exist any more when the run resumes."""
    source, workdir = tmp_path / "checkpoint", tmp_path / "run"
    source.mkdir()
    workdir.mkdir()
    characters = {c: i for i, c in enumerate(["<|endoftext|>", *sorted(ByteLevel.alphabet())])}
    fast = Tokenizer(BPE(characters, []))
    fast.pre_tokenizer = ByteLevel(add_prefix_space=False)
    fast.save(str(source / "tokenizer.json"))
    (source / "config.json").write_text('{"model_type": "gpt2"}')
    config = tiny("next_token", tokenizer__path=source)
    first = build(config, workdir)
    shutil.rmtree(source)
    again = build(config, workdir)
    assert again.tokenizer.fingerprint == first.tokenizer.fingerprint
    assert again.train_examples.stores["train"].path == first.train_examples.stores["train"].path
    assert again.tokenizer.bos_id == 0, "the token that begins a text was not taken from the checkpoint"
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(FlagError, match=r"no (classifier|mask)"):
        build(tiny("mlm", tokenizer__path=workdir), other).stages[-1].local_batch()
