"""Generation settings of a folder apply: texts equal transformers', flags override, unsupported fields are reported."""

import json
import pathlib
import shutil

import numpy as np
import pytest

from lmjax.cli import run
from lmjax.commands.generate import configure
from lmjax.errors import DataError, FlagError
from lmjax.inference.defaults import GenerationDefaults
from lmjax.inference.generate.generate import GenerateConfig, generate, resolved
from lmjax.interop.families import FAMILIES
from lmjax.interop.generation import GENERATION, read_defaults, said
from lmjax.runs.pretrained import open_pretrained
from lmjax.runs.trained import load_model
from tests.inference.generate.defaults import FOLDER, SETTINGS, prompts, settings


def copy(name: str, folder: pathlib.Path, values: dict | None, config: dict | None = None) -> pathlib.Path:
    """Returns a recorded model's folder with these generation settings, or with these fields in its config.json."""
    shutil.copytree(FOLDER / name, folder, ignore=shutil.ignore_patterns("*.npz"))
    if values is not None:
        (folder / GENERATION).write_text(json.dumps(values))
    if config is not None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder


def until_stop(ids: list[int], stop: tuple[int, ...]) -> list[int]:
    return next((ids[: i + 1] for i, token in enumerate(ids) if token in stop), ids)


@pytest.mark.parametrize(("name", "number"), [(name, i) for name in SETTINGS for i in range(len(SETTINGS[name]))])
def test_the_texts_are_transformers(name, number, tmp_path):
    values = settings(name)[number]
    with np.load(FOLDER / name / "defaults.npz") as recorded:
        expected = recorded["ids"][number].tolist()
    # Every other case has the settings in config.json, like older checkpoints.
    place = copy(name, tmp_path / "x", *((values, None) if number % 2 else (None, values)))
    loaded = load_model(str(place))
    found = [texts[0] for texts in generate(loaded, prompts(name))]
    for prompt, ours, theirs in zip(prompts(name), found, expected, strict=True):
        whole = theirs[: values.get("max_new_tokens", values.get("max_length", 0) - 1)]
        assert list(ours.ids) == until_stop(whole, loaded.prompts.stop), prompt


GREEDY = {"sampling": {"temperature": 0.0}}
LLAMA_3 = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "eos_token_id": [5, 6], "max_length": 4096}
QWEN = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05}
BART_CNN = {
    "max_length": 142,
    "min_length": 56,
    "num_beams": 4,
    "length_penalty": 2.0,
    "early_stopping": True,
    "no_repeat_ngram_size": 3,
}


@pytest.mark.parametrize(
    ("values", "flags", "expected"),
    [
        ({}, {}, {}),
        (LLAMA_3, {}, {"sampling": {"temperature": 0.6, "top_p": 0.9, "top_k": 50}}),
        (LLAMA_3, {"temperature": "0"}, {}),
        (LLAMA_3, {"top_k": "7"}, {"sampling": {"temperature": 0.6, "top_p": 0.9, "top_k": 7}}),
        (LLAMA_3, {"beams": "3"}, {"beams": {"beams": 3}}),
        (LLAMA_3, {"regex": "a"}, {"sampling": {"temperature": 0.6, "top_p": 0.9, "top_k": 50}, "regex": "a"}),
        (
            QWEN,
            {"temperature": "1.5"},
            {
                "sampling": {"temperature": 1.5, "top_p": 0.8, "top_k": 20},
                "processors": {"repetition_penalty": 1.05},
            },
        ),
        (QWEN, {"repetition_penalty": "1", "temperature": "0"}, {"processors": {"repetition_penalty": 1.0}}),
        ({"top_p": 0.5, "temperature": 0.3}, {}, {}),
        ({"top_p": 0.5, "temperature": 0.3}, {"temperature": "2"}, {"sampling": {"temperature": 2.0, "top_p": 0.5}}),
        (
            BART_CNN,
            {},
            {
                "max_new_tokens": 32,
                "processors": {"min_length": 56, "no_repeat_ngram": 3},
                "beams": {"beams": 4, "length_penalty": 2.0, "early_stopping": True},
            },
        ),
        (
            BART_CNN,
            {"max_new_tokens": "9", "min_new_tokens": "0", "beams": "2", "length_penalty": "1"},
            {
                "max_new_tokens": 9,
                "processors": {"min_new_tokens": 0, "no_repeat_ngram": 3},
                "beams": {"beams": 2, "length_penalty": 1.0, "early_stopping": True},
            },
        ),
        (
            BART_CNN,
            {"temperature": "0.9"},
            {
                "max_new_tokens": 32,
                "processors": {"min_length": 56, "no_repeat_ngram": 3},
                "sampling": {"temperature": 0.9},
            },
        ),
        (
            BART_CNN | {"num_return_sequences": 3},
            {"beams": "2"},
            {
                "max_new_tokens": 32,
                "processors": {"min_length": 56, "no_repeat_ngram": 3},
                "beams": {"beams": 2, "length_penalty": 2.0, "early_stopping": True},
            },
        ),
        (
            BART_CNN | {"num_return_sequences": 3},
            {"num_return": "2"},
            {
                "max_new_tokens": 32,
                "processors": {"min_length": 56, "no_repeat_ngram": 3},
                "beams": {"beams": 4, "length_penalty": 2.0, "early_stopping": True, "num_return": 2},
            },
        ),
    ],
)
def test_flags_win_and_take_away_what_does_not_go_with_them(values, flags, expected, tmp_path):
    name = "bart_trained" if values is not LLAMA_3 and "num_beams" in values else "gpt2_trained"
    defaults = open_pretrained(str(copy(name, tmp_path / "x", values))).defaults
    config = configure(flags, None, defaults)
    assert config == GenerateConfig.model_validate(expected)
    assert not defaults.ignored
    # Merging the merged settings again changes nothing.
    loaded = load_model(str(tmp_path / "x"))
    assert resolved(loaded, config) == config
    assert resolved(loaded, None) == configure({}, None, defaults)
    assert resolved(loaded, GenerateConfig.model_validate(GREEDY)).sampling.temperature == 0


def test_what_cannot_be_honoured_is_said(tmp_path, capsys):
    neutral = {
        "encoder_repetition_penalty": 1.0,
        "guidance_scale": 1.0,
        "epsilon_cutoff": 0,
    }
    odd = {"sequence_bias": [[[5], -1.0]], "encoder_no_repeat_ngram_size": 3, "num_return_sequences": 2}
    place = copy("gpt2_trained", tmp_path / "x", neutral | odd | {"max_new_tokens": 4, "repetition_penalty": 1.5})
    assert set(open_pretrained(str(place)).defaults.ignored) == set(odd)
    run(["generate", f"--model={place}", "--prompt=a"])
    shown = capsys.readouterr().err
    assert f"{GENERATION}: max_new_tokens=4, repetition_penalty=1.5 (flags win)" in shown
    assert all(f"{name}=" in shown for name in odd)
    assert "no counterpart" in shown
    assert not any(name in shown for name in neutral)
    run(["generate", f"--model={place}", "--prompt=a", "--repetition_penalty=1.1", "--max_new_tokens=5"])
    assert "flags win" not in capsys.readouterr().err
    drawn = copy("gpt2_trained", tmp_path / "y", {"do_sample": True, "num_beams": 2})
    assert open_pretrained(str(drawn)).defaults.ignored == {"do_sample": True}


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": -1},
        {"do_sample": True, "top_p": 3},
        {"num_beams": "many"},
        {"num_beams": 0},
        {"length_penalty": True},
        {"early_stopping": 3},
        {"max_new_tokens": 0},
        {"repetition_penalty": "big"},
        {"suppress_tokens": [4000]},
        {"begin_suppress_tokens": [-1]},
        {"forced_eos_token_id": "</s>"},
        {"bad_words_ids": [4]},
        {"bad_words_ids": [[4, 4000]]},
    ],
)
def test_settings_without_meaning_are_told_by_file_and_field(values, tmp_path):
    place = copy("gpt2_trained", tmp_path / "x", values)
    with pytest.raises(DataError, match=rf"{GENERATION}.*correct it"):
        load_model(str(place))


def test_the_file_is_kept_on_the_way_in_and_out(tmp_path):
    """An imported checkpoint, and an export of it, generate like the original."""
    place = copy("gpt2_trained", tmp_path / "x", QWEN)
    run(["convert", f"--from={place}", f"--workdir={tmp_path / 'in'}"])
    run(["convert", f"--workdir={tmp_path / 'in'}", f"--to={tmp_path / 'out'}"])
    run(["convert", f"--from={place}", f"--to={tmp_path / 'through'}"])
    first = open_pretrained(str(place)).defaults
    assert first.processors
    for folder in ("in", "out", "through"):
        assert open_pretrained(str(tmp_path / folder)).defaults == first
    old = copy("bart_trained", tmp_path / "old", None, {"forced_eos_token_id": 1, "num_beams": 3})
    run(["convert", f"--from={old}", f"--workdir={tmp_path / 'old-in'}"])
    assert (
        open_pretrained(str(tmp_path / "old-in")).defaults == open_pretrained(str(old)).defaults != GenerationDefaults()
    )


def test_what_the_class_says_where_no_file_does(tmp_path):
    """BART and related families force the end of a text, by a default of their config classes."""
    transformers = pytest.importorskip("transformers")
    for name, family in FAMILIES.items():
        config = getattr(transformers, next(iter(family.heads))).config_class()
        theirs = transformers.GenerationConfig.from_model_config(config).to_dict()
        _, ours = said(tmp_path, {"model_type": name})
        assert ours.get("forced_eos_token_id") == theirs.get("forced_eos_token_id"), name
        assert ours.get("forced_bos_token_id") == theirs.get("forced_bos_token_id"), name


def test_first_barts_force_the_beginning_by_another_name(tmp_path):
    _, found = said(tmp_path, {"model_type": "bart", "bos_token_id": 3, "force_bos_token_to_be_generated": True})
    assert (found["forced_bos_token_id"], found["forced_eos_token_id"]) == (3, 2)
    _, found = said(tmp_path, {"model_type": "bart", "forced_eos_token_id": None, "max_length": 20})
    assert "forced_eos_token_id" not in found
    assert "max_length" not in found


def test_an_encoder_has_none(tmp_path):
    (tmp_path / GENERATION).write_text('{"num_beams": "many"}')
    config = open_pretrained(str(FOLDER / "gpt2")).config
    with pytest.raises(DataError):
        read_defaults(tmp_path, {}, config)
    assert read_defaults(tmp_path, {}, config.model_copy(update={"architecture": "encoder"})) == GenerationDefaults()
    with pytest.raises(FlagError, match=r"--num_return=2: .*--beams=N"):
        configure({"num_return": "2"}, None, GenerationDefaults())
