"""The names and sizes that the flags of `lmjax serve` give, before any model is loaded."""

import pytest

from lmjax.commands import serve, serve_flags
from lmjax.errors import FlagError


def parsed(*arguments):
    values = serve_flags.define()
    values(["lmjax", *arguments])
    return values


def test_a_model_is_named_by_its_flag_or_its_place(tmp_path):
    odd = tmp_path / "a=b"
    odd.mkdir()
    assert serve.named_places("model", ["runs/mine", "x=org/gpt2", "org/small", str(odd)]) == {
        "mine": "runs/mine",
        "x": "org/gpt2",
        "small": "org/small",
        "a=b": str(odd),
    }
    for flag, given, said in (
        ("model", ["a/x", "b/x"], "the name x is given twice"),
        ("model", ["=a"], "give NAME=PLACE"),
        ("model", [""], "give NAME=PLACE"),
        ("adapter", ["place"], "requests ask for it by NAME"),
    ):
        with pytest.raises(FlagError, match=f"--{flag}=.*{said}"):
            serve.named_places(flag, given)


def test_sizes_are_checked_with_the_name_of_their_flag():
    config = serve.configure(parsed("--rows=3", "--prefill_chunk=32", "--cache_dtype=int8", "--prefixes=0"))
    assert (config.rows, config.chunk, config.cache, config.prefixes) == (3, 32, "int8", 0)
    for flag in ("rows=0", "rows=many", "prefill_chunk=1", "cache_dtype=int4", "timeout=nan", "max_length=9999999"):
        with pytest.raises(FlagError, match=f"--{flag}: "):
            serve.configure(parsed(f"--{flag}"))


def test_what_does_not_fit_together_is_told_first(monkeypatch):
    pytest.importorskip("starlette")
    pytest.importorskip("prometheus_client")
    monkeypatch.delenv("LMJAX_TOKEN", raising=False)
    for arguments, said in (
        ((), "needs --model=PLACE"),
        (("--model=a", "--model=b", "--adapter=c=d"), "is for a single --model"),
        (("--model=a", "--adapter=a=d"), "--model has this name too"),
        (("--model=a", "--host=0.0.0.0"), "give --token=SECRET"),
    ):
        with pytest.raises(FlagError, match=said):
            serve.main(parsed(*arguments))
