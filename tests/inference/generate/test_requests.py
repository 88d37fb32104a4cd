"""From prompts to batches: impossible requests are refused, with a remedy, before anything is compiled."""

import dataclasses
import functools

import numpy as np
import pydantic
import pytest

from lmjax.data.tokenizer import TokenizerConfig, train_tokenizer
from lmjax.errors import FlagError
from lmjax.inference.generate import decode, speculative_rounds
from lmjax.inference.generate.generate import GenerateConfig, check, generate, stream
from lmjax.inference.generate.requests import Request, batches, bucket, columns
from tests.inference.scoring import TEXT, tiny, tokenizer
from tests.inference.writers import some_prompts, writer


@pytest.mark.parametrize(
    ("length", "chunk", "expected"),
    [(1, None, 16), (16, None, 16), (17, None, 32), (300, None, 512), (5, 512, 16), (17, 20, 20), (20, 20, 20),
     (21, 20, 40), (40, 16, 48), (48, 16, 48)],
)  # fmt: skip
def test_few_widths_are_compiled_for(length, chunk, expected):
    assert bucket(length, chunk) == expected


def test_prompts_stand_at_the_right():
    found = columns([[7, 8, 9], [5]], 4, 1)
    np.testing.assert_array_equal(found["tokens"], [[1, 7, 8, 9], [1, 1, 1, 5]])
    np.testing.assert_array_equal(found["positions"], [[0, 0, 1, 2], [0, 0, 0, 0]])
    np.testing.assert_array_equal(found["segment_ids"], [[0, 1, 1, 1], [0, 0, 0, 1]])


def test_batches_hold_every_request_once_the_longest_first():
    requests = [Request(i, 0, (1,) * n) for i, n in enumerate((3, 9, 1, 9, 4))]
    found = [[r.index for r in batch] for batch in batches(requests, 2)]
    assert found == [[1, 3], [4, 0], [2]]
    assert [*batches([], 2)] == []


LEARNED = functools.partial(writer, "learned", max_length=16)  # Rows of 16.


def both_learned():
    return writer("both", positions="learned", max_length=16)


ID = "ids go from 0 to 191"
# Model, prompts, config, further arguments, the error message.
WRONG = {
    "blank": (LEARNED, [" \n"], {}, {}, "--prompt is empty; write what"),
    "no ids": (LEARNED, [[3], []], {}, {}, "--prompt: number 2 has no tokens"),
    "no list": (LEARNED, "The king", {}, {}, "prompts='The king' is one text; give a list"),
    "no prompt": (LEARNED, [3, 4], {}, {}, "--prompt: number 1 is 3; give a text or a list of ids"),
    "beyond": (LEARNED, [[3], [4, 192]], {}, {}, f"--prompt: number 2: id 192 is not in the vocabulary; {ID}"),
    "negative": (LEARNED, [[-1]], {}, {}, f"--prompt: id -1 is not in the vocabulary; {ID}"),
    "stop id": (LEARNED, [[3]], {"stop_ids": (192,)}, {}, f"--stop_id=192: is not in the vocabulary; {ID}"),
    "banned": (LEARNED, [[3]], {"processors": {"banned": (500,)}}, {}, f"processors.banned=500: is not .*{ID}"),
    "seeds": (LEARNED, [[3]], {}, {"seeds": [1, 2]}, "seeds: 2 for 1 prompts; give one for each"),
    "seed": (LEARNED, [[3]], {}, {"seeds": [-1]}, "seeds: -1; seeds go from 0 to 18446744073709551615"),
    "long": (LEARNED, [[3] * 17], {}, {}, "has 17 tokens and --max_new_tokens=8, and the model's rows have 16"),
    "long by one": (LEARNED, [[3] * 10], {}, {}, "rows have 16; shorten it, or set --max_new_tokens to at most 7"),
    "rope": (lambda: writer("rope"), [[3] * 58], {}, {}, "rows have 64; .*at most 7"),
    "encoder side": (both_learned, [[3], [3] * 17], {}, {}, "number 2 has 17 tokens, and the model's rows have 16; s"),
    "answer": (both_learned, [[3]], {"max_new_tokens": 17}, {}, "--max_new_tokens=17: .*writes at most 16; set that"),
    "forced": (both_learned, [[3]], {"max_new_tokens": 2}, {}, "--max_new_tokens=2: the first 2 .*set at least 3"),
    "encoder": (lambda: tiny("encoder"), ["The king"], {}, {}, "an encoder, which generates no text unless it was"),
    "regex": (LEARNED, [[3]], {"regex": "[k-a]"}, {}, r"--regex=\[k-a\]: .*change the pattern"),
    "impossible": (LEARNED, [[3]], {"regex": "7+"}, {}, r"--regex=7\+: no text matches it that this tokenizer"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_written_is_said_before_anything_compiles(name):
    make, prompts, values, arguments, message = WRONG[name]
    if "regex" in values:
        pytest.importorskip("llguidance")
    loaded, programs = make(), (decode.prefill, decode.begin, speculative_rounds.rounds)
    config, before = GenerateConfig.model_validate({"max_new_tokens": 8} | values), [p._cache_size() for p in programs]
    with pytest.raises(FlagError, match=message):
        generate(loaded, prompts, config, **arguments)
    if len(prompts) == 1 and not arguments:
        # The call itself raises, not the first `next`.
        with pytest.raises(FlagError, match=message):
            stream(loaded, prompts[0], config)
    assert [p._cache_size() for p in programs] == before


def test_the_longest_prompts_that_fit_are_taken():
    config = GenerateConfig(max_new_tokens=8)
    for loaded, longest in ((LEARNED(), 9), (writer("rope"), 57), (both_learned(), 16)):
        (request,), _ = check(loaded, some_prompts(longest), config)
        assert len(request.source or request.prompt) == longest
    # Relative positions have no limit.
    check(writer("both"), some_prompts(500), GenerateConfig(max_new_tokens=500))
    (request,), _ = check(writer("both"), [[5, 6]], GenerateConfig())
    assert request == Request(0, 0, (tokenizer().pad_id, 150, 120), (5, 6))
    (request,), _ = check(LEARNED(), ["The king"], config, seeds=[9])
    assert request == Request(0, 9, (tokenizer().bos_id, *tokenizer().encode("The king")))


def other_tokenizer():
    other = train_tokenizer([TEXT] * 20, TokenizerConfig(vocab_size=150, byte_fallback=False))
    return dataclasses.replace(LEARNED(), tokenizer=other)


@pytest.mark.parametrize(
    ("loaded", "draft", "values", "message"),
    [
        (LEARNED, other_tokenizer, {}, "--draft has another tokenizer than the model"),
        (
            LEARNED,
            lambda: writer("learned", vocab_size=200),
            {},
            "--draft has logits for 200 ids and the model for 192; take",
        ),
        (LEARNED, both_learned, {}, "two decoders, and these are decoder and encoder-decoder; .* --lookup"),
        (both_learned, LEARNED, {}, "two decoders, and these are encoder-decoder and decoder; .* --lookup"),
        (LEARNED, LEARNED, {"lookup": 2}, "--draft and --lookup=2 both guess; give one"),
        (LEARNED, LEARNED, {"beams": {"beams": 3}}, "--draft and --beams=3 .*leave one out"),
        (LEARNED, LEARNED, {"regex": "a"}, "--draft and --regex .*leave one out"),
        (
            LEARNED,
            lambda: writer("learned", max_length=8),
            {},
            "has 3 tokens and --max_new_tokens=7, and the draft's rows have 8",
        ),
    ],
)
def test_guesses_that_would_not_fit(loaded, draft, values, message):
    config = GenerateConfig.model_validate({"max_new_tokens": 7} | values)
    with pytest.raises(FlagError, match=message):
        generate(loaded(), [[3, 4, 5]], config, draft=draft())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"beams": {"beams": 2}, "stop": ("x",)}, "beams=2 and stop strings .*leave one out"),
        ({"beams": {"beams": 2}, "sampling": {"temperature": 0.5}}, "beams=2 and temperature=0.5 .*leave one out"),
        ({"beams": {"beams": 2}, "regex": "x"}, "beams=2 and regex or json_schema .*leave one out"),
        ({"beams": {"beams": 2}, "lookup": 3}, "beams=2 and lookup=3 .*leave one out"),
        ({"lookup": 3, "regex": "x"}, "lookup=3 and regex or json_schema .*leave one out"),
        ({"regex": "x", "json_schema": "{}"}, "regex and json_schema are both given"),
        ({"stop": ("",)}, "stop='' would end every text"),
        ({"max_new_tokens": 0}, "max_new_tokens.*greater than or equal to 1.*0"),
        ({"lookup": 17}, "lookup.*less than or equal to 16.*17"),
        ({"prefill_chunk": 8}, "prefill_chunk.*greater than or equal to 16.*8"),
        ({"seed": -1}, "seed.*greater than or equal to 0.*-1"),
        ({"cache": "int4"}, "cache.*'compute' or 'int8'.*int4"),
    ],
)
def test_choices_that_exclude_each_other(values, message):
    with pytest.raises(pydantic.ValidationError, match=f"(?s){message}"):
        GenerateConfig.model_validate(values)
