"""Flags: named data sets, the errors for unknown names, and that setting a field twice is an error."""

import json

import pytest
from absl import flags

from lmjax import cli
from lmjax.commands import convert_flags, facts, train_flags
from lmjax.commands.flags import data_fields
from lmjax.errors import FlagError


@pytest.mark.parametrize(
    ("specs", "fields"),
    [
        ([], {}),
        (["a.txt"], {"data.train": "a.txt", "data.mixture": ()}),
        (["runs/a=b.txt"], {"data.train": "runs/a=b.txt", "data.mixture": ()}),
        (["code=a.txt"], {"data.mixture": ("code=a.txt",)}),
        (["code=a.txt", "lib=stdlib"], {"data.mixture": ("code=a.txt", "lib=stdlib")}),
        (["x=runs/a=b.txt", "y=b"], {"data.mixture": ("x=runs/a=b.txt", "y=b")}),
    ],
)
def test_a_path_and_named_sets_are_told_apart(specs, fields):
    assert data_fields(specs) == fields


def test_of_several_sets_each_needs_a_name():
    with pytest.raises(
        FlagError, match=r"--data=b\.txt: with several sets each needs a name; write --data=NAME=b\.txt"
    ):
        data_fields(["code=a.txt", "b.txt"])


def answer(*argv: str) -> str:
    """Returns the error message for a command line."""
    with pytest.raises(FlagError) as error:
        cli.run(argv)
    return str(error.value)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("train", "--num_layers=3"), "--num_layers: no such flag; did you mean --config.model.num_layers?"),
        (("train", "--batch-size=3"), "did you mean --batch_size?"),
        (("train", "--learning-rte=3"), "did you mean --learning_rate?"),
        (("train", "--every=3"), "did you mean --config.model.moe.every or "),
        (("train", "--dropout=0.1"), "did you mean --config.model.dropout.residual or"),
        (("train", "--dropout_rate=0.1"), "it is now --config.model.dropout.residual"),
        (
            ("train", "--config.model.qk_norm=head"),
            "qk_norm: this field is now --config.model.attention.qk_norm",
        ),
        (("train", "--hidden_size=3"), "--help lists all flags"),
        (("train", "--config.num_layer=3"), "no field num_layer in config; did you mean --config.model.num_layers?"),
        (("train", "--config.modle.num_layers=3"), "did you mean --config.model.num_layers?"),
        (("train", "--config.lr=3"), "did you mean --lr?"),
        (("train", "--config.model=3"), "is a group; set one of"),
        (("train", "--config.optimizer.beta1=0.8"), "did you mean --config.optimizer.adamw.beta1 or"),
        (("train", "--optimizer=lion", "--config.optimizer.beta1=0.8"), "did you mean --config.optimizer.lion.beta1?"),
        (
            ("train", "--config.optimizer.name=sgd", "--config.optimizer.momentum=0"),
            "did you mean --config.optimizer.sgd.momentum?",
        ),
        (("train", "--config.optimizer.muon_rms=0.3"), "did you mean --config.optimizer.muon.rms?"),
        (("train", "--config.model.mlp=swigul"), "--config.model.mlp=swigul: no mlp 'swigul'; did you mean swiglu?"),
        (("train", "--preset=GPT-2"), "did you mean gpt2? (--help lists all"),
        (("train", "--objective=mlm,nps"), "no objective 'nps'; did you mean nsp?"),
        (("train", "--optimizer=adamx"), "did you mean adam"),
        (("train", "--schedule=cosin"), "did you mean cosine?"),
        (("train", "--parallel=mehs"), "did you mean mesh?"),
        (("tokenizer", "--kind=bep"), "did you mean bpe?"),
        (("convert", "--family=lama"), "did you mean llama?"),
        (("generate", "--preset=gpt-2"), "did you mean gpt2?"),
        (
            ("generate", "--dtype=bf16"),
            "no dtype 'bf16'; did you mean bfloat16? choose one of float32, bfloat16",
        ),
        (("generate", "--temprature=1"), "did you mean --temperature?"),
        (("generate", "Once upon a time"), "such as --prompt='Once upon a time'"),
        (("evaluate", "--task=perplexty"), "did you mean perplexity?"),
        (("evaluate", "--config.seed=1"), "evaluate has no config"),
        (("train", "data.txt"), "such as --data=data.txt"),
        (("train", "steps=3"), "write --steps=3"),
        (("train", "--data"), "--data: give it a value, as --data=VALUE"),
        (("train", "--lr=fast"), "--learning_rate=fast: the value must be a number"),
        (("trian",), "did you mean train?"),
    ],
)
def test_a_wrong_name_is_answered_with_the_nearest(argv, words):
    assert words in answer(*argv)


@pytest.mark.parametrize("flag", sorted(train_flags.SAME))
def test_a_field_that_is_set_twice_is_refused(flag):
    """The user must decide which of two values applies."""
    path = train_flags.SAME[flag]
    values = {"objective": "mlm", "architecture": "encoder", "optimizer": "adam", "schedule": "linear"}
    values |= {"on_divergence": "rollback"}
    value = values.get(flag, "mesh" if flag == "parallel" else "3")
    said = answer("train", f"--{flag}={value}", f"--config.{path}={value}")
    assert said == f"--{flag} and --config.{path}={value}: both set the same field; give one of them"
    assert "twice" in answer("train", f"--config.{path}={value}", f"--config.{path}={value}")


def test_a_flag_that_is_given_twice_is_refused():
    assert "--learning_rate is given 2 times" in answer("train", "--lr=1", "--learning_rate=2")


def test_short_flags_are_fields_of_the_config(capsys):
    cli.run(["train", "--lr=0.5", "--batch_size=3", "--length=24", "--warmup_steps=7", "--print_config"])
    config, _ = json.JSONDecoder().raw_decode(capsys.readouterr().out)
    assert (config["optimizer"]["learning_rate"], config["optimizer"]["warmup_steps"]) == (0.5, 7)
    assert (config["batch_size"], config["task"]["length"]) == (3, 24)
    assert set(train_flags.SAME.values()) <= set(facts.fields(*facts.CONFIG))


def test_a_format_that_others_write_is_named_with_what_to_do():
    values = convert_flags.define()
    with pytest.raises(flags.IllegalFlagValueError, match="--format=onnx: lmjax itself writes no ONNX; leave out"):
        values(["lmjax", "--format=onnx"])
    with pytest.raises(flags.IllegalFlagValueError, match="choose one of stablehlo, gguf"):
        values(["lmjax", "--format=onyx"])
