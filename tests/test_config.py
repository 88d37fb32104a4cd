"""The config: its error messages, its JSON form, and that every field is read by some code."""

import ast
import pathlib

import pydantic
import pytest

from lmjax.config import Config, default_config, from_json, load_experiment, resolve
from lmjax.errors import DataError, FlagError
from lmjax.model.presets import PRESETS
from lmjax.training.optimizers import OPTIMIZERS

ROOT = pathlib.Path(__file__).parent.parent


def fields(schema: type[pydantic.BaseModel] = Config):
    """Yields the name of every field of the config and its groups."""
    for name, info in schema.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, pydantic.BaseModel):
            yield from fields(info.annotation)
        yield name


def names_read() -> set[str]:
    """Returns every attribute that lmjax reads, and every string, for fields that are read by name."""
    found = set()
    for path in (ROOT / "lmjax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                found.add(node.attr)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
    return found


# An optimizer's group is read by the name of the chosen optimizer.
READ = names_read() | set(OPTIMIZERS)


@pytest.mark.parametrize("name", sorted(set(fields())))
def test_every_field_is_read(name):
    assert name in READ, f"no code reads {name}"


def test_the_config_survives_json_and_serves_as_a_key(tmp_path):
    config = resolve(objective=("mlm", "nsp"), overrides={"steps": "7", "optimizer.clip_norm": "none"})
    (tmp_path / "config.json").write_text(config.to_json())
    again = from_json(tmp_path / "config.json")
    assert again == config
    assert hash(again) == hash(config)
    assert again.optimizer.clip_norm is None
    assert again.digest() == config.digest() != default_config().digest()


@pytest.mark.parametrize(
    ("objective", "architecture"),
    [("next_token", "decoder"), ("mlm,nsp", "encoder"), ("span_corruption", "encoder_decoder")],
)
def test_the_family_follows_from_the_objective(objective, architecture):
    assert resolve(objective=tuple(objective.split(","))).model.architecture == architecture


def test_a_config_file_with_a_path_of_before_is_answered_with_the_one_of_today(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(default_config().to_json().replace('"scan_layers":', '"qk_norm": "none", "scan_layers":'))
    with pytest.raises(DataError, match=r"config\.json: .*--config\.model: qk_norm is now attention\.qk_norm"):
        from_json(path)


def test_architecture_overrides_where_it_makes_sense():
    assert resolve(objective=("span_corruption",), architecture="decoder").model.architecture == "decoder"


def test_lists_of_patterns_and_stages_are_flags():
    overrides = {
        "optimizer.group_patterns": "embedding,.*norm.*",
        "optimizer.group_factors": "0.1,0",
        "stages.until": "100,300",
        "stages.batch_size": "4,8",
        "optimizer.schedule": "joined",
        "optimizer.joined.schedules": "constant,cosine",
        "optimizer.joined.shares": "0.8,0.2",
    }
    config = resolve(overrides=overrides)
    assert config.optimizer.group_patterns == ("embedding", ".*norm.*")
    assert config.optimizer.group_factors == (0.1, 0.0)
    assert config.stages.until == (100, 300)
    assert config.optimizer.joined.shares == (0.8, 0.2)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_makes_a_run(preset):
    objective = {"encoder": "mlm", "decoder": "next_token", "encoder_decoder": "span_corruption"}
    architecture = PRESETS[preset].architecture
    followed = PRESETS[preset].model_copy(update={"vocab_size": 0})
    assert resolve(objective=(objective[architecture],), preset=preset).model == followed


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"model.num_layer": "3"}, ("no field num_layer in model", "did you mean --config.model.num_layers?")),
        ({"modle.num_layers": "3"}, ("no field modle in config", "did you mean --config.model.num_layers?")),
        ({"model.attention_window": "3"}, ("--config.model.attention_window", "now --config.model.attention.window")),
        ({"model.attention.windw": "3"}, ("no field windw in attention", "--config.model.attention.window?")),
        ({"model.attention": "3"}, ("attention is a group", "window")),
        ({"model.attention.global_every": "3"}, ("--config.model.attention:", "set window")),
        ({"steps.more": "3"}, ("steps is a value, not a group",)),
        ({"model": "3"}, ("model is a group", "num_layers")),
        ({"model.num_layers": "many"}, ("--config.model.num_layers=many", "integer")),
        ({"model.num_layers": "0"}, ("--config.model.num_layers=0", "greater than 0")),
        ({"steps": "-1"}, ("--config.steps=-1", "greater than or equal to 1")),
        ({"optimizer.learning_rate": "nan"}, ("--config.optimizer.learning_rate=nan", "finite")),
        ({"optimizer.learning_rate": "1e309"}, ("--config.optimizer.learning_rate", "finite")),
        ({"optimizer.schedule": "cosin"}, ("--config.optimizer.schedule=cosin", "'cosine'", "'wsd'", "'joined'")),
        ({"optimizer.name": "sdg"}, ("--config.optimizer.name=sdg", "'sgd'")),
        ({"optimizer.group_patterns": "embedding,norm"}, ("group_patterns has 2 and group_factors 0",)),
        ({"optimizer.joined.schedules": "constant,cosine"}, ("schedule=cosine", "as many shares")),
        ({"optimizer.beta1": "0.8"}, ("--config.optimizer.beta1: this field is now --config.optimizer.adamw.beta1",)),
        ({"stages.until": "5,3"}, ("--config.stages", "must rise")),
        ({"stages.until": "5", "stages.length": "1024"}, ("1024", "max_length=512")),
        ({"minutes": "0"}, ("--config.minutes=0", "greater than 0")),
        ({"model.embed_dim": "190"}, ("embed_dim=190", "num_heads=4")),
        ({"task.length": "4096"}, ("4096", "max_length=512")),
        ({"accumulation": "3"}, ("--config.batch_size=16", "--config.accumulation=3")),
        ({"steps_per_call": "10", "parallel.kind": "pmap"}, ("steps_per_call=10", "--parallel=mesh")),
        ({"steps_per_call": "10", "evaluation.every": "5"}, ("steps_per_call=10", "evaluation.every=5", "at most 5")),
        ({"steps_per_call": "10", "checkpoint.every": "9"}, ("steps_per_call=10", "checkpoint.every=9", "at most 9")),
        ({"task.mlm.replace_by_mask": "0.95"}, ("replace_by_mask=0.95", "more than 1")),
        ({"data.held_out": "0"}, ("--config.data.held_out=0", "--eval_data")),
        (
            {"optimizer.warmup_steps": "9", "optimizer.warmup_share": "0.1"},
            ("--config.optimizer", "warmup_steps=9 and warmup_share=0.1", "give one, and none for the other"),
        ),
        ({"task.tagging.repair": "true"}, ("repair=true", "set scheme=bio")),
        ({"task.question_answering.threshold": "1"}, ("threshold=1", "no_answer=true", "leave it out")),
        ({"task.classification.threshold": "0.4"}, ("threshold=0.4", "kind=multiple", "leave it out")),
        ({"task.classification.falloff": "2"}, ("falloff=2", "kind=ordered", "leave it out")),
    ],
)
def test_what_cannot_work_is_refused_in_words(overrides, words):
    with pytest.raises(FlagError) as caught:
        resolve(overrides=overrides)
    assert all(word in str(caught.value) for word in words), caught.value
    assert len(str(caught.value).splitlines()) <= 2


@pytest.mark.parametrize(
    ("objective", "name"),
    [
        *((name, "z_loss") for name in ("regression", "embedding", "nsp")),
        *((name, "r_drop") for name in ("nsp", "embedding", "rtd")),
        *((name, "label_smoothing") for name in ("regression", "embedding", "question_answering", "multiple_choice")),
    ],
)
def test_a_penalty_that_no_loss_takes_is_refused(objective, name):
    with pytest.raises(FlagError, match=rf"task.{name}=0.1: the loss of {objective} does not take it; leave it out"):
        resolve(objective=(objective,), overrides={f"task.{name}": "0.1"})
    dropout = {"model.dropout.residual": "0.1"}
    assert resolve(objective=("mlm", "nsp"), overrides={f"task.{name}": "0.1"} | dropout)
    with pytest.raises(FlagError, match=r"z_loss=0.1: the loss of classification does not take it"):
        resolve(objective=("classification",), overrides={"task.z_loss": "0.1", "task.classification.kind": "multiple"})


@pytest.mark.parametrize(
    ("objective", "architecture", "words"),
    [
        ("mlm", "decoder", ("--architecture=decoder", "encoder")),
        ("next_token", "encoder", ("--architecture=encoder", "decoder")),
        ("next_token,mlm", None, ("--objective=next_token,mlm", "mlm needs encoder")),
        ("next_tokens", None, ("no objective 'next_tokens'",)),
    ],
)
def test_an_objective_that_the_family_cannot_do_is_refused(objective, architecture, words):
    with pytest.raises(FlagError) as caught:
        resolve(objective=tuple(objective.split(",")), architecture=architecture)
    assert all(word in str(caught.value) for word in words), caught.value


EXPERIMENT = """
from lmjax.config import default_config

VARIANTS = ("", "wide")


def get_config(variant):
    config = default_config(("mlm",))
    return config.model_copy(update={"seed": 5 if variant == "wide" else 4})
"""


def test_rows_of_targets_follow_from_the_objective_unless_they_are_given():
    def places(objective: str, **overrides: str) -> int:
        return resolve(objective=(objective,), overrides=overrides).task.default_target_length()

    assert places("span_corruption") == 29
    assert places("span_corruption", **{"task.length": "64"}) < 20
    assert places("span_corruption", **{"task.length": "64", "task.target_length": "48"}) == 48
    assert places("infilling") == places("seq2seq") == 128
    with pytest.raises(FlagError, match=r"--config\.task\.target_length: rows of \d+ tokens do not fit"):
        places("span_corruption", **{"task.length": "512", "task.span_corruption.noise_density": "0.9"})


def test_flags_go_over_an_experiment(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(EXPERIMENT)
    config = resolve(experiment=f"{path}:wide", overrides={"steps": "3"})
    assert (config.seed, config.steps, config.task.objective) == (5, 3, ("mlm",))
    assert resolve(experiment=str(path), objective=("next_token",)).model.architecture == "decoder"
    with pytest.raises(FlagError, match="no variant 'tall'"):
        load_experiment(f"{path}:tall")


def test_a_missing_experiment_is_named():
    with pytest.raises(FlagError, match=r"nowhere\.py"):
        load_experiment("nowhere.py")


def test_none_is_a_choice_where_a_field_has_it_and_no_value_elsewhere():
    overrides = {"model.attention.qk_norm": "none", "model.remat": "none", "model.head_dim": "none", "minutes": "None"}
    config = resolve(overrides=overrides, fields={"model.attention.qk_norm": "head"})
    assert (config.model.attention.qk_norm, config.model.remat) == ("none", "none")
    assert (config.model.head_dim, config.minutes) == (None, None)
