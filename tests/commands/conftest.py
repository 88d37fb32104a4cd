"""A small checkpoint for tests of commands."""

import pytest

from lmjax.interop.export import choose_family, export
from lmjax.interop.tokenizer_export import export_tokenizer
from tests.inference.scoring import tiny, tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Returns a Hugging Face checkpoint of a small GPT-2 with a length of 16 tokens."""
    path = tmp_path_factory.mktemp("checkpoint") / "hf"
    loaded = tiny("decoder")
    export(
        choose_family(loaded.config, (), None, {}),
        loaded.config,
        loaded.params,
        path,
        extra={f"{role}_token_id": i for role, i in tokenizer().role_ids.items()},
        beside=lambda new: export_tokenizer(tokenizer(), new, "gpt2", 16),
    )
    return path
