"""Prompts: generation and scoring give a model the same rows as training, in every field."""

import types

import jax
import numpy as np
import pytest

from lmjax.inference.generate.requests import make_requests
from lmjax.inference.generate.writing import read_prompts
from lmjax.inference.loaded import LoadedModel
from lmjax.inference.score.rows import _fields
from lmjax.inference.score.texts import Encoded, Reader, ScoreConfig
from lmjax.model.config import ModelConfig
from lmjax.objectives.registry import OBJECTIVES
from lmjax.objectives.task import TaskConfig, prompt_format
from lmjax.parallel.mesh import ParallelConfig, make_mesh

# What does not predict tokens, or writes labels that it learned, has other rows; those of chat are of a template.
ASIDE = ("chat", *(name for name, o in OBJECTIVES.items() if o.learned or not o.shares_logits))
WRITING = [(n, a) for n, o in OBJECTIVES.items() for a in o.architectures if a != "encoder" and n not in ASIDE]
LENGTH = 24


def loaded_model(name, architecture, tokenizer) -> LoadedModel:
    """Returns a model that is never run, because only its inputs are tested."""
    sizes = {"vocab_size": tokenizer.vocab_size, "embed_dim": 8, "num_heads": 1, "mlp_dim": 8, "num_layers": 1}
    config = ModelConfig(architecture=architecture, max_length=LENGTH, **sizes)
    model = types.SimpleNamespace(config=config, has_vocabulary=True)
    form = prompt_format(TaskConfig(objective=(name,)), tokenizer, architecture)
    return LoadedModel(model, None, tokenizer, form, make_mesh(ParallelConfig(), jax.devices()[:1]))


def trained_row(name, architecture, make_task, make_store, seed):
    """Returns a row with one text, its source, tokens and targets; of UL2's denoisers, that of mode S."""
    task = make_task(name, architecture, length=LENGTH, target_length=LENGTH)
    pairs = OBJECTIVES[name].wants_pairs
    store = make_store([("abcdefg", "hijk")] if pairs else [("abcdefghijk",)], pairs)
    rows = task.examples(store, 0).sources[2 if name == "denoise" else 0].rows
    f = rows.features(0, np.random.default_rng(seed))
    side = "decoder_" if architecture == "encoder_decoder" else ""
    tokens = f[f"{side}tokens"][f[f"{side}segment_ids"] > 0].tolist()
    first = int(np.flatnonzero(f["weights"])[0])
    source = f["encoder_tokens"][f["encoder_segment_ids"] > 0].tolist() if side else tokens[: first + 1]
    return f, source, tokens, f["targets"][f["weights"] > 0].tolist()


@pytest.mark.parametrize(("name", "architecture"), WRITING)
def test_scoring_reads_the_rows_of_training(name, architecture, make_task, make_store, tokenizer):
    """Tokens, targets and attention: all fields of scoring equal those of training."""
    loaded = loaded_model(name, architecture, tokenizer)
    form, reader = loaded.prompts, Reader.of(loaded, ScoreConfig())
    for seed in range(5):
        f, source, _, targets = trained_row(name, architecture, make_task, make_store, seed)
        context = source[len(form.before) : len(source) - len(form.after)]
        assert form.around(context) == source, "the tokens around a source are not those of the objective"
        spans = {tokenizer.mask_id, *tokenizer.sentinel_ids[:-3].tolist()}
        assert not set(context) & (tokenizer.special_ids - spans), "more tokens around a source than in the format"
        (piece,) = reader.pieces(Encoded(context, targets))
        for field, array in _fields(loaded, [piece], (LENGTH, LENGTH)).items():
            np.testing.assert_array_equal(array, f[field], err_msg=field)
        assert ("prefix" in f) == form.bidirectional
        assert list(piece.targets) == targets
        assert [f["targets"][i] for i in piece.at] == targets
        assert targets[-1] in form.stop
        assert not set(targets) & set(form.never)


@pytest.mark.parametrize(("name", "architecture"), WRITING)
def test_writing_begins_with_the_rows_of_training(name, architecture, make_task, make_store, tokenizer, monkeypatch):
    """The prompt is the row up to the token that predicts the first target, with the same prefix as in training."""
    loaded, seen = loaded_model(name, architecture, tokenizer), []
    monkeypatch.setattr(
        "lmjax.inference.generate.decode.prefill", lambda _, fields, **__: (seen.append(fields), (None, None))[1]
    )
    f, source, tokens, targets = trained_row(name, architecture, make_task, make_store, 0)
    # A decoder that predicts whole texts can continue after any part of one.
    context = source[len(loaded.prompts.before) : len(source) - len(loaded.prompts.after)] or targets[:3]
    requests = make_requests(loaded, [context_ids := loaded.prompts.around(context)], [0], 2, ["it"])
    if not set(context) & tokenizer.special_ids:
        assert requests == make_requests(loaded, [tokenizer.decode(context)], [0], 2, ["it"])
    assert context_ids in (source, tokens[:4])
    read_prompts(loaded, requests, new_columns=2, limit=2, stop=(), chunk=32)
    side = "decoder_" if architecture == "encoder_decoder" else ""
    count = int((seen[0][f"{side}segment_ids"] > 0).sum())
    assert seen[0][f"{side}tokens"][0, -count:].tolist() == tokens[:count]
    if side:
        read = seen[0]["encoder_segment_ids"] > 0
        assert seen[0]["encoder_tokens"][read].tolist() == source
    assert ("prefix" in seen[0]) == ("prefix" in f)
    if "prefix" in f:
        np.testing.assert_array_equal(seen[0]["prefix"][0, -count:], f["prefix"][:count])
