"""A model of another family, depth or vocabulary begins with the parameters of a trained one."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

import lmjax
from lmjax.data.fast_tokenizer import load_tokenizer
from lmjax.data.tokenizer import TokenizerConfig, train_tokenizer
from lmjax.errors import FlagError
from lmjax.model.language_model import LanguageModel, init_params
from lmjax.model.parameters import flat, unboxed
from lmjax.model.transformer import unstack_layers
from lmjax.runs.adopt import initial_parameters
from lmjax.runs.build import build
from lmjax.runs.pretrained import open_pretrained, storage_mesh
from lmjax.runs.start import resolve
from lmjax.streams import prng_key
from tests.thinned import thinned

TEXT = {"data.held_out": "0.2", "task.length": "32", "task.target_length": "16", "batch_size": "8"}
QUICK = {"evaluation.batches": "1", "logging.tensorboard": "false"}


@pytest.fixture(scope="module")
def decoder(tiny, tmp_path_factory):
    """The workdir of a decoder of three layers."""
    config = tiny("next_token", model__num_layers=3, steps=2, optimizer__learning_rate=0.05, evaluation__batches=1)
    return lmjax.train(config, tmp_path_factory.mktemp("source") / "decoder", progress=False)


@pytest.fixture(scope="module")
def pair(tiny, tmp_path_factory):
    """The workdir of an encoder-decoder with two layers on one side and three on the other."""
    config = tiny("span_corruption", model__num_layers=2, model__num_decoder_layers=3, steps=1, evaluation__batches=1)
    return lmjax.train(config, tmp_path_factory.mktemp("source") / "pair", progress=False)


def arrays(place):
    """Returns the parameters of a workdir, unrolled, by path."""
    source = open_pretrained(place)
    config = source.config.with_fields({"scan_layers": False})
    return flat(source.params(config, storage_mesh(config, source.heads)))


def begun(place, corpus, workdir, **choices):
    """Returns the run that starts from a workdir, and its initial parameters, unrolled, by path."""
    overrides = TEXT | QUICK | choices.pop("overrides", {})
    config = resolve(init_from=place, overrides={"data.train": str(corpus), **overrides}, **choices)
    run = build(config, workdir)
    given = initial_parameters(run, progress=True)
    return run, flat(unstack_layers(given))


@pytest.mark.parametrize("scan", thinned(["true", "false"], 2))
def test_a_decoder_becomes_an_encoder(decoder, corpus, tmp_path, capsys, scan):
    run, ours = begun(decoder, corpus, tmp_path / "a", objective=("mlm",), architecture="encoder",
                      overrides={"model.scan_layers": scan})  # fmt: skip
    theirs = arrays(decoder)
    assert ours.keys() == theirs.keys(), "every parameter of the decoder has its place in the encoder"
    for path, x in theirs.items():
        np.testing.assert_array_equal(ours[path], x, err_msg=path)
    told = capsys.readouterr().err
    assert "decoder to encoder" in told
    assert "backbone/stack/layer_*/attention" in told
    # With its causal mask it is still the same model.
    batch = {"tokens": jnp.arange(2 * 16).reshape(2, 16) % run.tokenizer.vocab_size}
    params = jax.tree.map(jnp.asarray, initial_parameters(run, progress=False))
    encoder, causal = run.model, LanguageModel(run.model.config.with_fields({"architecture": "decoder"}))
    old = LanguageModel(open_pretrained(decoder).config.with_fields({"scan_layers": scan == "true"}))
    kept = open_pretrained(decoder).params(old.config, run.mesh)
    hidden = [m.apply({"params": p}, batch) for m, p in ((causal, params), (old, kept), (encoder, params))]
    np.testing.assert_array_equal(hidden[0], hidden[1])
    assert not np.allclose(hidden[0][:, :-1], hidden[2][:, :-1]), "an encoder's tokens see those after them"


@pytest.mark.parametrize("scan", thinned(["false", "true"], 2))
def test_an_encoder_decoder_begins_as_one_decoder_on_both_sides(decoder, corpus, tmp_path, capsys, scan):
    run, ours = begun(decoder, corpus, tmp_path / "a", objective=("span_corruption",), architecture="encoder_decoder",
                      overrides={"model.scan_layers": scan})  # fmt: skip
    theirs = arrays(decoder)
    for path, x in ours.items():
        origin = path.replace("backbone/encoder", "backbone").replace("backbone/decoder", "backbone")
        np.testing.assert_array_equal(x, theirs[origin.replace("cross_attention", "attention")], err_msg=path)
    assert any("cross_attention/key" in path for path in ours)
    assert "backbone/decoder/stack/layer_*/cross_attention" in capsys.readouterr().err
    # Without what cross-attention adds, its decoder is the decoder that it begins as.
    params = initial_parameters(run, progress=False)
    whole = unboxed(init_params(run.model, prng_key(0, "test")))
    assert {p: x.shape for p, x in flat(whole).items()} == {p: x.shape for p, x in flat(params).items()}

    def silent(path, x):
        return x * 0 if "cross_attention" in str(path) and "'out'" in str(path) else x

    tokens = jnp.arange(2 * 16).reshape(2, 16) % run.tokenizer.vocab_size
    pair = run.model.apply({"params": jax.tree_util.tree_map_with_path(silent, params)},
                           {"encoder_tokens": tokens, "decoder_tokens": tokens})  # fmt: skip
    old = LanguageModel(open_pretrained(decoder).config.with_fields({"scan_layers": scan == "true"}))
    alone = old.apply({"params": open_pretrained(decoder).params(old.config, run.mesh)}, {"tokens": tokens})
    np.testing.assert_allclose(pair, alone, atol=1e-6)


def test_a_new_encoder_decoder_learns(decoder, corpus, tmp_path):
    config = resolve(
        init_from=decoder,
        objective=("span_corruption",),
        architecture="encoder_decoder",
        overrides=TEXT | QUICK | {"data.train": str(corpus), "steps": "12", "optimizer.learning_rate": "0.01"},
    )
    workdir = lmjax.train(config, tmp_path / "run", progress=False)
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    found = [line["eval/heldout/loss"] for line in lines if "eval/heldout/loss" in line]
    assert np.isfinite(found).all()
    assert found[-1] < found[0] - 0.1


@pytest.mark.parametrize(("architecture", "objective"), [("encoder", "masked_diffusion"), ("decoder", "next_token")])
def test_a_side_of_an_encoder_decoder_is_a_model(pair, corpus, tmp_path, architecture, objective, capsys):
    run, ours = begun(pair, corpus, tmp_path / "a", objective=(objective,), architecture=architecture)
    theirs = arrays(pair)
    assert run.model.config.num_layers == {"encoder": 2, "decoder": 3}[architecture]
    for path, x in ours.items():
        np.testing.assert_array_equal(x, theirs[path.replace("backbone", f"backbone/{architecture}")], err_msg=path)
    assert any("layer_1/mlp" in path for path in ours)
    left = capsys.readouterr().err.partition("not used: ")[2]
    assert "cross_attention" in left
    assert ("backbone/encoder" in left) == (architecture == "decoder")


def test_a_decoder_without_a_mask_token_gets_one_for_masked_language_modelling(tiny, corpus, tmp_path, capsys):
    fast = tokenizers.Tokenizer(tokenizers.models.BPE())
    fast.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.add_special_tokens(["<|endoftext|>"])
    letters = tokenizers.trainers.BpeTrainer(vocab_size=300, show_progress=False, special_tokens=["<|endoftext|>"],
                                             initial_alphabet=fast.pre_tokenizer.alphabet())  # fmt: skip
    fast.train([str(corpus)], letters)
    fast.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    config = tiny("next_token", tokenizer__path=tmp_path, steps=1, evaluation__batches=1, model__vocab_size=300)
    source = lmjax.train(config, tmp_path / "run", progress=False)
    into = {"objective": ("mlm",), "architecture": "encoder"}
    with pytest.raises(FlagError, match=r"no .* token, .* or add it: --config\.tokenizer\.added="):
        begun(source, corpus, tmp_path / "a", **into)
    run, ours = begun(source, corpus, tmp_path / "b", **into, overrides={"tokenizer.added": "cls,sep,mask"})
    table, old = np.asarray(ours["embedding/table"]), np.asarray(arrays(source)["embedding/table"])
    assert table.shape[0] == run.model.config.vocab_size == 320
    np.testing.assert_array_equal(table[:300], old)
    np.testing.assert_allclose(table[run.tokenizer.mask_id], old.mean(0), rtol=1e-5)
    assert run.eval_sets[0].examples(0, np.random.default_rng(0))["tokens"].max() == run.tokenizer.mask_id
    assert "300 tokens begin as those of the same text, 3 as the mean of the table" in capsys.readouterr().err


def test_layers_are_chosen_and_repeated(decoder, corpus, tmp_path, capsys):
    theirs = arrays(decoder)
    for layers in ("2,0", "0,1,1,2,2"):
        chosen = layers.split(",")
        overrides = {"model.num_layers": str(len(chosen)), "init.layers": layers}
        _, ours = begun(decoder, corpus, tmp_path / layers, overrides=overrides)
        for own, other in enumerate(chosen):
            at = "backbone/stack/layer_{}/mlp/up/kernel"
            np.testing.assert_array_equal(ours[at.format(own)], theirs[at.format(other)])
        np.testing.assert_array_equal(
            ours["backbone/stack/final_norm/scale"], theirs["backbone/stack/final_norm/scale"]
        )
        assert f"layers of the decoder begin as {', '.join(chosen)}" in capsys.readouterr().err


def test_another_vocabulary_is_matched_by_its_pieces(decoder, corpus, tmp_path, capsys):
    train_tokenizer([corpus.read_text()], TokenizerConfig(vocab_size=420)).save(str(tmp_path / "bpe.model"))
    theirs, found = arrays(decoder), {}
    for how in ("mean", "pieces"):
        run, ours = begun(decoder, corpus, tmp_path / how, overrides={
            "tokenizer.path": str(tmp_path / "bpe.model"), "init.vocabulary": how})  # fmt: skip
        found[how] = np.asarray(ours["embedding/table"])
    known, new = load_tokenizer(str(decoder)), run.tokenizer
    table = np.asarray(theirs["embedding/table"])
    letter, word = new.encode("k")[0], next(i for i, x in enumerate(new.pieces) if x.isalpha() and len(x) > 1)
    for each in found.values():
        np.testing.assert_array_equal(each[letter], table[known.encode("k")[0]])
        np.testing.assert_array_equal(each[new.mask_id], table[known.mask_id])
    np.testing.assert_allclose(found["mean"][word], table[: known.vocab_size].mean(0), rtol=1e-5)
    np.testing.assert_allclose(found["pieces"][word], table[known.encode(new.pieces[word].decode())].mean(0), rtol=1e-5)
    assert "as the mean of their pieces" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"model.num_layers": "2"}, r"num_layers=2: init_from's model has 3 layers.*--config.init.layers=0,2"),
        ({"model.num_layers": "2", "init.layers": "0,3"}, r"init.layers: there is no layer 3; .* 0 to 2"),
        ({"init.layers": "0,1"}, r"init.layers names 2 layers, and --config.model.num_layers=3; .*num_layers=2"),
        ({"init.layers": "0,1,2", "model.mlp_dim": "48"}, r"mlp/down/.* is \(32,.* there and \(48,.* in this model"),
        ({"model.vocab_size": "256"}, r"embedding/table is .*; .*--config.init.vocabulary=pieces"),
    ],
)
def test_what_does_not_fit_is_refused(decoder, corpus, tmp_path, overrides, said):
    with pytest.raises(FlagError, match=said):
        begun(decoder, corpus, tmp_path / "a", overrides={"model.scan_layers": "false", **overrides})
