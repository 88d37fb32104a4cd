"""A run that starts from a trained model has the same config from Python and from the command line."""

import json

import pytest

import lmjax
from lmjax.commands import train_flags
from lmjax.commands.parsing import parse
from lmjax.commands.train import resolve_flags
from lmjax.errors import FlagError
from lmjax.objectives.registry import OBJECTIVES


@pytest.fixture(scope="module")
def source(tiny, tmp_path_factory):
    """The workdir of a classifier whose labels are those of its data; it has no checkpoint."""
    folder = tmp_path_factory.mktemp("source")
    lines = [json.dumps({"text": f"{i}", "label": ("no", "yes")[i % 2]}) for i in range(8)]
    for name in ("train", "dev"):
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    paths = {"data__train": folder / "train.jsonl", "data__eval": f"dev={folder / 'dev.jsonl'}"}
    config = tiny("classification", model__architecture="encoder", steps=1, evaluation__batches=1, **paths)
    return lmjax.train(config, folder / "run", progress=False)


def told(*argv):
    """Returns what `lmjax train` resolves."""
    values = train_flags.define()
    return resolve_flags(values, parse(values, argv, train_flags.SAME, command="train"))


@pytest.mark.parametrize(
    ("flags", "values"),
    [
        (["--objective=classification"], {"objective": ("classification",)}),
        (["--objective=tagging", "--lr=0.5"], {"objective": ("tagging",), "fields": {"optimizer.learning_rate": 0.5}}),
        (
            ["--objective=regression", "--config.steps=7"],
            {"objective": ("regression",), "overrides": {"steps": "7"}},
        ),
        (
            ["--objective=tagging", "--warmup_steps=3"],
            {"objective": ("tagging",), "fields": {"optimizer.warmup_steps": 3}},
        ),
        (["--config.task.length=32"], {"overrides": {"task.length": "32"}}),
        (
            ["--objective=classification", "--config.fresh=classifier_head"],
            {"objective": ("classification",), "overrides": {"fresh": "classifier_head"}},
        ),
    ],
    ids=["recipe", "a rate of one's own", "steps", "warm-up", "no objective", "fresh"],
)
def test_python_and_the_command_line_resolve_alike(source, flags, values):
    assert lmjax.resolve(init_from=source, **values) == told(f"--init_from={source}", *flags).config


def test_the_recipe_is_that_of_the_objective_and_gives_way(source):
    config = lmjax.resolve(objective=("classification",), init_from=source)
    flat, recipe = config.flat(), OBJECTIVES["classification"].recipe
    assert recipe.keys() >= {"epochs", "optimizer.learning_rate", "optimizer.warmup_share"}
    assert {path: flat[path] for path in recipe} == recipe
    assert (config.task.length, config.task.classification.labels) == (64, ("no", "yes"))
    assert (config.model.embed_dim, config.tokenizer.path) == (16, str(source))
    assert set(told(f"--init_from={source}", "--objective=classification").recipe) == {*recipe, "task.length"}
    mine = lmjax.resolve(objective=("classification",), init_from=source, fields={"steps": 9, "batch_size": 2})
    assert (mine.steps, mine.epochs, mine.batch_size) == (9, None, 2)
    assert mine.optimizer.learning_rate == recipe["optimizer.learning_rate"]
    fresh = lmjax.resolve(objective=("classification",), init_from=source, fields={"fresh": ("classifier_head",)})
    assert fresh.task.classification.labels == (), "a new head has no labels yet"
    without = lmjax.resolve(objective=("classification",))
    assert without.epochs is None
    assert without.optimizer.learning_rate != recipe["optimizer.learning_rate"]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"preset": "nano_encoder"}, "--preset=nano_encoder: --init_from brings its own model"),
        ({"objective": "classification"}, "objective='classification' is one text"),
        ({"objective": ("clasification",)}, "classification"),
    ],
)
def test_what_does_not_go_with_it_is_refused(source, values, said):
    with pytest.raises(FlagError, match=said):
        lmjax.resolve(init_from=source, **values)
    with pytest.raises(FlagError, match="--accept_fields=a: is for --init_from"):
        lmjax.resolve(accept_fields=["a"])
