"""Fixtures for the tests of data: a text in many scripts and a small tokenizer trained on it."""

import gzip

import pytest

from lmjax.data.tokenizer import TokenizerConfig, train_tokenizer

TEXT = (
    "The quick brown fox jumps over the lazy dog. It was not amused, and said so twice.\n\n"
    "def area(width, height):\n    if width < 0:\n        return None\n    return width * height\n\n"
    "Straße, Äpfel und Öl: früh übt sich. 快速的棕色狐狸跳过懒狗。 naïve café\r\n\tтекст 🙂\n"  # noqa: RUF001
)


@pytest.fixture(scope="session")
def text() -> str:
    return TEXT


@pytest.fixture(scope="session")
def tokenizer():
    """Returns a unigram tokenizer of 430 ids with byte fallback."""
    return train_tokenizer([TEXT] * 20, TokenizerConfig(vocab_size=430))


@pytest.fixture
def write(tmp_path):
    def write(name: str, content: str | bytes) -> str:
        data = content.encode() if isinstance(content, str) else content
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return str(path)

    return write
