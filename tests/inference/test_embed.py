"""Vectors of texts: what they are made of, in batches of any size, and through the files of sentence-transformers."""

import json

import numpy as np
import pytest

import lmjax
from lmjax.cli import run
from lmjax.errors import FlagError
from lmjax.evaluation.predicted import as_documents, predict_documents
from lmjax.inference.embed import embed
from lmjax.interop.sentence import MODULES
from lmjax.runs.pretrained import open_pretrained
from lmjax.runs.trained import load_model

pytestmark = pytest.mark.long

TEXTS = ["the king", "", "a tree", "the old king sees the river", "a tree", "queen", "under the house", "never"]


@pytest.fixture(scope="module", params=["encoder", "decoder"])
def place(request, tiny, tmp_path_factory):
    """A folder with the workdir of a run of two steps, after which vectors differ more than at the start."""
    folder = tmp_path_factory.mktemp(request.param)
    path = folder / "train.tsv"
    path.write_text("text\ttext2\n" + "".join(f"{text}\t{text}s\n" for text in TEXTS))
    (folder / "dev.tsv").write_text(path.read_text())
    biases = "query,key,value,out,up,gate,down,norm,project_in,project_out"
    bert = {"norm_position": "post", "norm": "layernorm", "mlp": "gelu", "positions": "learned", "biases": biases,
            "embedding__types": 2, "embedding__norm": True, "head__transform": True, "head__bias": True}  # fmt: skip
    exported = {
        "encoder": {f"model__{name}": value for name, value in bert.items()},
        "decoder": {"model__embedding__types": 0, "model__head__bias": False},
    }[request.param]
    config = tiny("embedding", data__train=path, data__eval=f"dev={folder / 'dev.tsv'}", steps=2,
                  model__architecture=request.param, model__head__unit_length=request.param == "encoder",
                  optimizer__learning_rate=0.1, optimizer__warmup_steps=1, **exported)  # fmt: skip
    lmjax.train(config, folder / "run", progress=False)
    return folder


@pytest.fixture(scope="module")
def loaded(place):
    return load_model(place / "run")


def test_a_vector_is_of_its_text_alone(loaded):
    """Of the hidden states of a forward pass over this text, in batches of any size, also of an empty text."""
    found = lmjax.embed(loaded, TEXTS)
    assert (found.shape, found.dtype) == ((8, 16), np.float32)
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found[2], found[4])
    assert np.abs(found[0] - found[2]).max() > 1e-3, "all texts have the same vector"
    for size in (1, 7, 64):
        np.testing.assert_allclose(embed(loaded, TEXTS, batch_size=size), found, atol=1e-6)
    output = loaded([TEXTS[0]])
    hidden = output.hidden[0][output.mask[0]]
    vector = hidden[-1] if loaded.config.family.causal else hidden.mean(axis=0)
    unit = loaded.config.head.unit_length
    np.testing.assert_allclose(found[0], vector / np.linalg.norm(vector) if unit else vector, atol=1e-5)
    np.testing.assert_allclose(output.heads["embedding"][0], found[0], atol=1e-5)
    assert embed(loaded, []).shape == (0, 16)
    assert np.isfinite(embed(loaded, ["king " * 100])).all(), "a long text is cut"


def test_a_narrower_vector_is_its_first_numbers(loaded):
    whole, narrow = embed(loaded, TEXTS), embed(loaded, TEXTS, width=4)
    expected = whole[:, :4]
    if loaded.config.head.unit_length:
        expected = expected / np.linalg.norm(expected, axis=-1, keepdims=True)
    np.testing.assert_allclose(narrow, expected, atol=1e-6)
    with pytest.raises(FlagError, match="width=17: vectors of this model have 16 numbers"):
        embed(loaded, TEXTS, width=17)
    with pytest.raises(FlagError, match="one text; give a list"):
        embed(loaded, "the king")


def test_a_prediction_is_the_cosine_of_two_texts_or_the_vector_of_one(loaded):
    first, second = embed(loaded, ["the king", "a tree"])
    records = [{"text": "the king", "text2": "a tree"}, {"text": "the king"}]
    pair, single = predict_documents(loaded, as_documents(records, loaded.task, gold=False))
    cosine = first @ second / np.linalg.norm(first) / np.linalg.norm(second)
    assert pair["similarity"] == pytest.approx(float(cosine), abs=1e-5)
    np.testing.assert_allclose(single["embedding"], first, atol=1e-5)


def test_sentence_transformers_folders_go_out_and_come_in(place, loaded, tmp_path):
    """A model goes out with its pooling and its length, and comes in with them, as a model or as a workdir."""
    expected = embed(loaded, TEXTS)
    run(["convert", f"--workdir={place / 'run'}", f"--to={tmp_path / 'out'}"])
    modules = json.loads((tmp_path / "out" / MODULES).read_text())
    kinds = [module["type"].rpartition(".")[2] for module in modules]
    assert kinds == ["Transformer", "Pooling", "Normalize"][: 2 + loaded.config.head.unit_length]
    pooling = json.loads((tmp_path / "out" / "1_Pooling" / "config.json").read_text())
    assert pooling["pooling_mode_mean_tokens"] == (not loaded.config.family.causal)
    assert pooling["pooling_mode_lasttoken"] == loaded.config.family.causal
    run(["convert", f"--from={tmp_path / 'out'}", f"--workdir={tmp_path / 'in'}"])
    for folder in ("out", "in"):
        again = load_model(tmp_path / folder)
        assert again.length == 32
        assert again.has_task
        np.testing.assert_allclose(embed(again, TEXTS), expected, atol=1e-5)
    changed = pooling | {"pooling_mode_mean_tokens": False, "pooling_mode_lasttoken": False}
    (tmp_path / "out" / "1_Pooling" / "config.json").write_text(json.dumps(changed | {"pooling_mode_max_tokens": True}))
    with pytest.raises(FlagError, match=r"config\.json: pooling max_tokens: lmjax implements one of mean_tok"):
        open_pretrained(tmp_path / "out")
    (tmp_path / "out" / MODULES).write_text(json.dumps([*modules, {"type": "sentence_transformers.models.Dense"}]))
    with pytest.raises(FlagError, match="lmjax implements Transformer, Pooling and Normalize, in this order, and not"):
        open_pretrained(tmp_path / "out")
