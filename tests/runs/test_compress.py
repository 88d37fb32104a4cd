"""Compressed models are workdirs like any other: read without their floating-point kernels, and computing the same."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest

import lmjax
from lmjax.cli import run
from lmjax.compress.calibrate import batches, layers, observe
from lmjax.errors import FlagError, UserError
from lmjax.model.parameter_paths import input_axes, is_hidden_matrix
from lmjax.model.parameters import count_parameters, flat
from lmjax.model.quantized import Quantized, as_matrices, in_full, is_quantized, quantize_layers
from lmjax.runs.pretrained import open_pretrained, storage_mesh
from lmjax.runs.start import start_from
from lmjax.runs.trained import load_model
from lmjax.training.checkpoint import SavedCheckpoints, checkpoint_folder
from tests.thinned import thinned

FORMS = ("int8_activations", "int8", "int4", "nf4", "fp8")


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return lmjax.train(
        tiny("next_token", steps=2, checkpoint__every=1, model__num_layers=2), folder / "run", progress=False
    )


@pytest.fixture(scope="module", params=thinned(FORMS, 2))
def made(request, trained, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("small") / request.param
    group = "16" if request.param in ("int4", "nf4") else "0"
    run(["compress", f"--model={trained}", f"--method={request.param}", f"--group={group}", f"--to={workdir}"])
    return request.param, workdir


def test_it_computes_what_the_numbers_of_its_codes_do_and_says_so_in_its_config(made, trained):
    method, workdir = made
    config = json.loads((workdir / "config.json").read_text())["model"]["quantization"]
    assert config["stored"]
    assert config["weights"] == method.removesuffix("_activations")
    assert json.loads((workdir / "made_of.json").read_text())["method"] == method
    whole, small = load_model(trained), load_model(workdir)
    kernels = [x for x in jax.tree.leaves(small.params, is_leaf=is_quantized) if isinstance(x, Quantized)]
    assert len(kernels) == 14, "7 kernels in each of 2 layers"
    codes = quantize_layers(whole.params, small.config.quantization)
    jax.tree.map(np.testing.assert_array_equal, codes, small.params)
    rounded = in_full(codes, "float32")
    text = "the king sees the river"
    found = small(text).logits
    expected = dataclasses.replace(whole, params=rounded)(text).logits
    np.testing.assert_allclose(found, expected, atol=0.05 if method == "int8_activations" else 1e-4)
    assert np.abs(found - whole(text).logits).max() > 1e-5


def test_it_is_loaded_without_its_floating_point_kernels_and_is_smaller_on_disk(made, trained, monkeypatch):
    method, workdir = made
    read, restored = SavedCheckpoints.restore, []

    def restore(self, abstract, step=None):
        restored.append(read(self, abstract, step))
        return restored[-1]

    monkeypatch.setattr(SavedCheckpoints, "restore", restore)
    monkeypatch.setattr(Quantized, "astype", lambda *_: pytest.fail("a kernel became floating-point numbers"))
    small = load_model(workdir)
    (state,) = restored
    leaves = jax.tree.leaves(state["params"], is_leaf=is_quantized)
    kernels = [x for x in leaves if isinstance(x, Quantized)]
    assert kernels
    bits = 4 if method in ("int4", "nf4") else 8
    assert all(x.values.nbytes * 8 == np.prod(x.shape) * bits for x in kernels)
    assert sum(x.nbytes for x in jax.tree.leaves(small.params)) == sum(x.nbytes for x in jax.tree.leaves(state))

    def size(place):
        folder = checkpoint_folder(place, SavedCheckpoints(place).steps[-1])
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

    assert size(workdir) < size(trained) / 2


def test_every_command_reads_it(made, tmp_path, capsys):
    method, workdir = made
    if method != "int8_activations":
        pytest.skip("one form is enough")
    (tmp_path / "text.txt").write_text("the old king goes under the house\n")
    assert run(["generate", f"--workdir={workdir}", "--prompt=the king", "--max_new_tokens=3", "--seed=1"])
    found = run(["evaluate", f"--workdir={workdir}", f"--data={tmp_path / 'text.txt'}"])
    assert found
    page = tmp_path / "page.html"
    run(["explain", f"--model={workdir}", "--text=the king", "--method=integrated", f"--output={page}"])
    assert page.stat().st_size
    assert run(["doctor", f"--workdir={workdir}"]) is not None


def test_numbers_can_be_had_back_and_adapters_are_trained_beside_codes(made, tiny, tmp_path):
    method, workdir = made
    if method != "nf4":
        pytest.skip("one form is enough")
    source = open_pretrained(workdir)
    lora = tiny("next_token", model__num_layers=2, init_from=workdir, tokenizer__path=workdir, steps=1,
                adapter__kind="lora",
                **{f"model__quantization__{name}": x for name, x in source.config.quantization})  # fmt: skip
    lmjax.train(lora, tmp_path / "lora", progress=False)
    adapted, codes = load_model(tmp_path / "lora"), load_model(workdir)
    assert not adapted.config.quantization.stored
    np.testing.assert_allclose(adapted("the king").logits, codes("the king").logits, atol=0.02)
    run(["convert", f"--workdir={workdir}", f"--to={tmp_path / 'hf'}"])
    np.testing.assert_allclose(load_model(tmp_path / "hf")("the king").logits, codes("the king").logits, atol=1e-4)
    plain = tiny(
        "next_token",
        model__num_layers=2,
        **{f"model__quantization__{name}": x for name, x in source.config.quantization},
    )
    with pytest.raises(FlagError, match=r"stored=true: codes are not trained; train an adapter"):
        lmjax.train(plain, tmp_path / "codes", progress=False)
    with pytest.raises(FlagError, match=r"is compressed; average the models that were not"):
        run(["average", f"--models={workdir},{workdir}", f"--to={tmp_path / 'mean'}"])


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--method=int3",), "int3"),
        (("--method=int4", "--group=3"), "group=3 does not divide embed_dim=16; choose a divisor"),
        (("--method=int8_activations", "--group=8"), "--group=8: --method=int8_activations has one scale"),
        (("--method=int4",), "quantization.group=64 does not divide embed_dim=16"),
        (("--method=int8", "--to=TRAINED"), "exists and is not empty; choose another"),
        (("--method=int8", "--model=/no/such"), "/no/such"),
        ((), "--method"),
        (("--method=gptq",), "--data=: --method=gptq needs texts"),
        (("--method=int8", "--data=text.txt"), "--data=text.txt: --method=int8 reads no text; leave it out"),
        (("--method=int8", "--weights=int4"), "--weights=int4: --method=int8 does not keep kernels so; leave it out"),
        (("--method=awq", "--group=16", "--data=/no/such.txt"), "/no/such.txt"),
        (("--method=int8", "--amount=0.3"), "--amount=0.3: --method=int8 takes no share away; leave it out"),
        (("--method=magnitude", "--amount=nan"), "--amount=nan: is no share"),
        (("--method=magnitude", "--group=8"), "--method=magnitude keeps no codes; leave them out"),
        (("--method=magnitude", "--pattern=2:4", "--amount=0.3"), "--pattern=2:4: makes two of each four"),
        (("--method=sparsegpt", "--scope=global", "--data=x"), "--scope=global: is for --method=magnitude"),
        (("--method=magnitude", "--rewind=7"), "has no such checkpoint; there are 1, 2"),
        (("--method=int8", "--to=/dev/null/new"), "--to=/dev/null/new: no folder can be made in /dev/null"),
        (("--method=heads", "--rewind=7", "--data=x"), "--rewind=7: --method=heads makes no zeros; leave it out"),
        (("--method=heads",), "--data=: --method=heads needs texts"),
        (("--method=int8", "--sensitivity=x.txt", "--data=x"), "--sensitivity=x.txt: is no name of a figure"),
        (("--method=int8", "--sensitivity=/no/such/x.svg", "--data=x"), "there is no folder /no/such"),
        (("--method=heads", "--sensitivity=x.svg", "--data=x"), "--method=heads keeps no kernel; leave it out"),
    ],
)
def test_what_cannot_work_is_refused_in_words(trained, tmp_path, flags, words):
    given = {"--model": trained, "--to": tmp_path / "new"} | {f.split("=")[0]: f.split("=")[1] for f in flags}
    given["--to"] = trained if given["--to"] == "TRAINED" else given["--to"]
    with pytest.raises(UserError) as caught:
        run(["compress", *(f"{name}={value}" for name, value in given.items())])
    assert words in str(caught.value)
    assert not (tmp_path / "new").exists()


def test_a_compressed_model_is_not_compressed_again(made, tmp_path):
    with pytest.raises(FlagError, match="is compressed already"):
        run(["compress", f"--model={made[1]}", "--method=int8", f"--to={tmp_path / 'again'}"])


def _outputs_error(whole, small, fields):
    """The summed squared error of the outputs of kernels, on what they read in the whole model."""
    params, found = flat(whole.params), flat(small.params)
    total = 0.0
    for path, inputs in observe(whole, whole.params, fields, layers(whole.params)).items():
        axes = input_axes(tuple(path.split("/")), params[path].ndim)
        change = as_matrices(found[path].astype("float32") - params[path], axes)
        total += np.sum(np.asarray(change) * (inputs.products @ np.asarray(change)))
    return total


@pytest.mark.parametrize("family", ["decoder", "encoder", "encoder_decoder"])
def test_calibrated_methods_lower_the_error_of_every_family(family, trained, tiny, tmp_path):
    place = trained
    if family != "decoder":
        objective = "mlm" if family == "encoder" else "span_corruption"
        fields = (
            {"model__share_layers": "true", "model__num_layers": "2"}
            if family == "encoder"
            else {"model__num_layers": "1"}
        )
        config = tiny(objective, steps=1, evaluation__batches=1, **fields)
        place = lmjax.train(config, tmp_path / "run", progress=False)
    texts = [f"the {a} {b} goes under the {c} river" for a in ("old", "young") for b in ("king", "queen") for c in "ab"]
    (tmp_path / "text.txt").write_text("\n\n".join(texts) + "\n")
    whole = load_model(place)
    given = batches(whole, [(text, None) for text in texts], 8, 32)
    errors = {}
    for method in ("int4", "gptq", "awq") if family == "decoder" else ("int4", "gptq"):
        data = () if method == "int4" else (f"--data={tmp_path / 'text.txt'}",)
        run(["compress", f"--model={place}", f"--method={method}", "--group=8", f"--to={tmp_path / method}", *data])
        errors[method] = _outputs_error(whole, load_model(tmp_path / method), given)
    assert errors["gptq"] < 0.9 * errors["int4"]
    if family == "decoder":
        assert errors["awq"] < errors["int4"]
        assert load_model(tmp_path / "awq").config.quantization.factors


def test_padding_is_no_input(trained):
    whole = load_model(trained)
    short, long = "the king", "the queen sees the old river and"
    together = observe(whole, whole.params, batches(whole, [(short, None), (long, None)], 9, 64), layers(whole.params))
    apart = [
        observe(whole, whole.params, batches(whole, [(t, None)], 9, 64), layers(whole.params)) for t in (short, long)
    ]
    for path, inputs in together.items():
        alone = apart[0][path].plus(apart[1][path])
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-3, atol=2e-3), inputs, alone)


def test_a_classifier_that_was_trained_for_its_codes_predicts_the_same_with_them(tiny, tmp_path):
    lines = [json.dumps({"text": f"{'no' if i % 2 else 'yes'} {i}", "label": i % 2}) for i in range(32)]
    (tmp_path / "data.jsonl").write_text("\n".join(lines) + "\n")
    config = tiny("classification", model__num_layers=2, data__train=tmp_path / "data.jsonl", steps=3,
                  model__architecture="encoder", optimizer__warmup_steps=0, optimizer__learning_rate=0.05,
                  model__quantization__weights="int8", model__quantization__activations="int8")  # fmt: skip
    place = lmjax.train(config, tmp_path / "run", progress=False)
    run(["compress", f"--model={place}", "--method=int8_activations", f"--to={tmp_path / 'small'}"])
    found = [run(["predict", f"--workdir={each}", f"--data={tmp_path / 'data.jsonl'}"]) for each in
             (place, tmp_path / "small")]  # fmt: skip
    assert [record["label"] for record in found[0]] == [record["label"] for record in found[1]]
    trained, small = (load_model(each)(["yes 3", "no 12"]).heads["classifier"] for each in (place, tmp_path / "small"))
    np.testing.assert_allclose(trained, small, atol=1e-3)


def _kernels(params):
    return {path: np.asarray(x) for path, x in flat(params).items() if is_hidden_matrix(tuple(path.split("/")))}


def _zeros(place, step=None):
    source = open_pretrained(place, step)
    return _kernels(source.params(source.config, storage_mesh(source.config, source.heads)))


def test_pruned_numbers_stay_zero_through_further_training(trained, tiny, tmp_path, capsys):
    run(["compress", f"--model={trained}", "--method=magnitude", "--amount=0.7", f"--to={tmp_path / 'sparse'}"])
    assert re.search(r"zeros in layers +(69.9|70.0)", capsys.readouterr().out)
    assert start_from(tmp_path / "sparse").fields["optimizer.sparsity.keep_zeros"]
    assert "optimizer.sparsity.keep_zeros" not in start_from(trained).fields
    config = tiny("next_token", model__num_layers=2, init_from=tmp_path / "sparse", tokenizer__path=tmp_path / "sparse",
                  steps=2, optimizer__sparsity__keep_zeros="true", optimizer__learning_rate=0.01, model__vocab_size=192,
                  optimizer__warmup_steps=0)  # fmt: skip
    lmjax.train(config, tmp_path / "on", progress=False)
    before, after, whole = (_zeros(place) for place in (tmp_path / "sparse", tmp_path / "on", trained))
    for path, x in before.items():
        assert 0.65 < (x == 0).mean() < 0.75
        np.testing.assert_array_equal(x == 0, after[path] == 0)
        np.testing.assert_array_equal(x[x != 0], whole[path][x != 0])
        assert (x != after[path]).any()


def test_a_ticket_has_the_zeros_of_the_end_and_the_numbers_of_the_beginning(trained, tmp_path):
    run(["compress", f"--model={trained}", "--method=magnitude", "--rewind=1", f"--to={tmp_path / 'ticket'}"])
    run(["compress", f"--model={trained}", "--method=magnitude", f"--to={tmp_path / 'pruned'}"])
    ticket, pruned, early = _zeros(tmp_path / "ticket"), _zeros(tmp_path / "pruned"), _zeros(trained, 1)
    for path, x in ticket.items():
        np.testing.assert_array_equal(x, np.where(pruned[path] == 0, 0, early[path]))
        assert (x != pruned[path]).any()


def test_pairs_of_zeros_by_what_the_model_reads(trained, tmp_path):
    (tmp_path / "text.txt").write_text("the old king goes under the house\n")
    for method in ("wanda", "sparsegpt"):
        run(["compress", f"--model={trained}", f"--method={method}", "--pattern=2:4", f"--to={tmp_path / method}",
             f"--data={tmp_path / 'text.txt'}"])  # fmt: skip
        for path, x in _zeros(tmp_path / method).items():
            axes = input_axes(tuple(path.split("/")), x.ndim)
            matrices = np.asarray(as_matrices(x, axes))
            fours = matrices.reshape(-1, 4, matrices.shape[-1])
            assert ((fours == 0).sum(1) == 2).all(), path


def test_a_model_without_some_heads_and_neurons_is_a_smaller_run(trained, tmp_path, capsys):
    (tmp_path / "text.txt").write_text("the old king goes under the house\n\na queen sees the river\n")
    for method, place in (("heads", trained), ("neurons", tmp_path / "heads")):
        run(["compress", f"--model={place}", f"--method={method}", f"--to={tmp_path / method}",
             f"--data={tmp_path / 'text.txt'}"])  # fmt: skip
    found, whole = load_model(tmp_path / "neurons"), load_model(trained)
    assert (found.config.num_heads, found.config.head_dim, found.config.mlp_dim) == (1, 8, 16)
    assert count_parameters(found.params) < 0.8 * count_parameters(whole.params)
    kept = json.loads((tmp_path / "heads" / "made_of.json").read_text())["kept"]
    assert all(len(each) == 1 for each in kept.values())
    assert run(["evaluate", f"--workdir={tmp_path / 'neurons'}", f"--data={tmp_path / 'text.txt'}"])


def test_a_figure_shows_what_each_kernel_alone_does(trained, tmp_path):
    pytest.importorskip("matplotlib")
    (tmp_path / "text.txt").write_text("the old king goes under the house\n")
    run(["compress", f"--model={trained}", "--method=int4", "--group=0", f"--to={tmp_path / 'small'}",
         f"--data={tmp_path / 'text.txt'}", f"--sensitivity={tmp_path / 'kernels.svg'}"])  # fmt: skip
    assert "layer_1" in (tmp_path / "kernels.svg").read_text()
