"""Caches of prompts in files: a text is the same with and without, and another model's or a damaged file is refused."""

import dataclasses

import jax
import numpy as np
import pytest

from lmjax.errors import DataError, FlagError
from lmjax.inference.generate import decode
from lmjax.inference.generate.config import GenerateConfig
from lmjax.inference.generate.generate import generate, stream
from lmjax.inference.generate.prompt_cache import PromptFiles
from tests.inference.writers import some_prompts, writer

(PROMPT,) = some_prompts(30, seed=5)
CONFIG = GenerateConfig(max_new_tokens=8, prefill_chunk=16)
KINDS = {
    "rope": ("rope", {}),
    "window": ("window", {}),
    "int8": ("rope", {"cache": "int8"}),
    "rolling": ("rope", {"window": 9, "sinks": 2}),
}


def written(loaded, prompt, config, load=None, save=None):
    (text,) = generate(loaded, [prompt], config, files=PromptFiles(load, save))[0]
    return text


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_goes_on_from_a_file_as_if_it_were_read_at_once(kind, tmp_path, monkeypatch):
    name, settings = KINDS[kind]
    loaded, config = writer(name), CONFIG.model_copy(update=settings)
    (expected,) = generate(loaded, [PROMPT], config)[0]
    first, second = tmp_path / "first", tmp_path / "second"
    # Few tokens follow, so that the last ones attend to keys of the file in every layer.
    written(loaded, PROMPT[:28], config, save=first)
    again = written(loaded, PROMPT, config, load=first, save=second)
    assert again.ids == expected.ids
    assert again.score == pytest.approx(expected.score, abs=2e-3)
    # The second file holds the whole prompt; of the same prompt, its last token alone is read again.
    if kind == "rope":
        read = []
        whole = decode.extend
        monkeypatch.setattr(
            decode, "extend", lambda p, f, c, **k: read.append(f["tokens"].shape) or whole(p, f, c, **k)
        )
        assert written(loaded, PROMPT, config, load=second).ids == expected.ids
        assert read == [(1, 1)]
        *_, streamed = stream(loaded, PROMPT, config, files=PromptFiles(second))
        assert streamed.ids == expected.ids


def test_what_is_in_the_file_matters(tmp_path):
    """The negative control: a cache of another beginning with the same ids gives another text."""
    loaded = writer("rope")
    written(loaded, PROMPT[:21], CONFIG, save=tmp_path / "file")
    from safetensors import safe_open
    from safetensors.numpy import save_file

    with safe_open(tmp_path / "file", "numpy") as file:
        about, arrays = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    spoilt = {n: -x if n.endswith("value") else x for n, x in arrays.items()}
    save_file(spoilt, tmp_path / "spoilt", metadata=about)
    right, wrong = (written(loaded, PROMPT, CONFIG, load=tmp_path / name) for name in ("file", "spoilt"))
    assert right.score != pytest.approx(wrong.score, abs=1e-3)


def test_files_that_do_not_fit(tmp_path):
    loaded, file = writer("rope"), tmp_path / "file"
    written(loaded, PROMPT[:21], CONFIG, save=file)
    other = dataclasses.replace(loaded, params=jax.tree.map(lambda x: x * np.float32(2), loaded.params))
    with pytest.raises(FlagError, match="its model is"):
        written(other, PROMPT, CONFIG, load=file)
    with pytest.raises(FlagError, match="its cache_dtype is compute, not int8"):
        written(loaded, PROMPT, CONFIG.model_copy(update={"cache": "int8"}), load=file)
    with pytest.raises(FlagError, match="its window is None, not 9"):
        written(loaded, PROMPT, CONFIG.model_copy(update={"window": 9}), load=file)
    with pytest.raises(FlagError, match="holds 21 tokens, and the prompt does not begin with them"):
        written(loaded, PROMPT[1:], CONFIG, load=file)
    with pytest.raises(FlagError, match="file: exists; choose another"):
        written(loaded, PROMPT, CONFIG, save=file)
    with pytest.raises(FlagError, match="none: is no file"):
        written(loaded, PROMPT, CONFIG, load=tmp_path / "none")
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(DataError, match="is no prompt cache, or a damaged one"):
        written(loaded, PROMPT, CONFIG, load=file)


@pytest.mark.parametrize(
    ("name", "prompts", "settings", "said"),
    [
        ("both", 1, {}, "is for decoders"),
        ("prefix", 1, {}, "from left to right"),
        ("rope", 2, {}, "holds one prompt, and 2 are given"),
        ("rope", 1, {"beams": {"beams": 2}}, "leave out --beams"),
    ],
)
def test_what_has_no_prompt_cache(name, prompts, settings, said, tmp_path):
    with pytest.raises(FlagError, match=said):
        generate(
            writer(name),
            [PROMPT[:8]] * prompts,
            GenerateConfig(max_new_tokens=8, **settings),
            files=PromptFiles(save=tmp_path / "file"),
        )
    assert not (tmp_path / "file").exists()
