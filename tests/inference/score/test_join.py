"""Context and continuation: the whole continuation is scored, even if a token would span both."""

import pytest

from lmjax.inference.score.join import join
from tests.inference.tokenizers import MAKERS, tokenizer

TEXT = 'def f(x):\n\treturn  x["count"]\r\n\n  Grüße aus Köln, the option parser\'s arguments. 快速的棕色🙂 end'
PAIRS = [(TEXT[:i], TEXT[i:]) for i in range(len(TEXT))] + [
    ("The option", "s"), ("argu", "ments"), (" ", "x"), ("x  ", "  y"), ("x", " "), ("a", "\u0301"), ("", "x"),
]  # fmt: skip


@pytest.mark.parametrize("kind", MAKERS)
def test_the_scored_ids_decode_to_the_whole_continuation(kind):
    """After the context's ids they decode to the joint text, split at every character of code, words and scripts."""
    t = tokenizer(kind)
    apart = 0
    for (context, continuation), found in zip(PAIRS, join(t, PAIRS), strict=True):
        kept, whole = context.rstrip(), t.encode(context + continuation)
        rest = context[len(kept) :] + continuation
        assert found.context == t.encode(kept)
        behind = t.decode([*found.context, *found.continuation]) == t.decode(whole)
        assert behind or t.decode(found.continuation) == t.decode(t.encode(rest)), (context, continuation)
        if t.decode(t.encode(rest)).strip():
            assert found.continuation, "a continuation has no ids to score"
        begins = whole[: len(found.context)] == found.context
        assert found.apart == ([*found.context, *found.continuation] != whole) or not begins
        apart += found.apart
    if kind != "char":
        assert apart, "the texts need tokens that span context and continuation"


def test_a_token_that_spans_the_join_is_not_scored_by_its_tail():
    """Dropping as many tokens as the context has from the joint text loses a part of the continuation."""
    t = tokenizer("bpe")
    wrong = 0
    for (context, continuation), found in zip(PAIRS, join(t, PAIRS), strict=True):
        tail = t.decode(t.encode(context + continuation)[len(found.context) :])
        wrong += found.apart and tail.strip() != continuation.strip()
    assert wrong > 5, "the texts need continuations that splitting the joint text would shorten"


def test_text_that_a_tokenizer_drops_is_nothing_to_score():
    (found,) = join(tokenizer("word_piece"), [("x", " ")])
    assert (found.continuation, found.apart) == ([], False)
