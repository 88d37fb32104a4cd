"""The alignment error rate is that of its definition, and words are aligned by the attention of their own tokens."""

import numpy as np
import pytest

from lmjax.analysis.alignment import Aligned, align, alignment_error_rate, read_gold, word_attention
from lmjax.errors import DataError, FlagError
from tests.inference.scoring import tiny

SOURCE, TARGET = "The kings sees houses", "A queen goes under"


def links(text):
    return frozenset(tuple(map(int, link.split("-"))) for link in text.split())


def test_the_error_rate_by_hand():
    """Of four links, two are sure ones of three, and one more is possible: 1 - (2 + 3) / (4 + 3)."""
    gold = Aligned("a b c", "x y z", links("0-0 1-1 2-2"), links("0-0 1-1 2-2 0-1"))
    found = links("0-0 1-1 0-1 2-0")
    assert alignment_error_rate([found], [gold]) == pytest.approx(2 / 7)
    assert alignment_error_rate([gold.sure], [gold]) == 0
    assert alignment_error_rate([links("1-0")], [gold]) == 1
    # Links are counted over all pairs, not averaged over them.
    assert alignment_error_rate([found, gold.sure], [gold, gold]) == pytest.approx(1 - (5 + 6) / (7 + 6))


def test_words_are_read_as_their_tokens_are():
    loaded = tiny("encoder_decoder", num_layers=2)
    found = word_attention(loaded, SOURCE, TARGET)
    tokens = [
        [loaded.tokenizer.encode(w if not i else f" {w}") for i, w in enumerate(t.split())] for t in (SOURCE, TARGET)
    ]
    assert any(len(ids) > 1 for ids in tokens[0] + tokens[1]), "each word is one token, so that this tests little"
    reads, writes = ([i for ids in of for i in ids] for of in tokens)
    output = loaded([[*reads, loaded.tokenizer.eos_id]], targets=[writes], output_attentions=True)
    for layer in range(2):
        weights = output.cross_attentions[layer][0].mean(axis=0)
        row = 0
        for t, ids in enumerate(tokens[1]):
            column = 0
            for s, of in enumerate(tokens[0]):
                # Row i reads the token before the i-th of the target, and so predicts that one.
                part = weights[row : row + len(ids), column : column + len(of)].sum(axis=1).mean()
                assert found[layer, t, s] == pytest.approx(part, abs=1e-5)
                column += len(of)
            row += len(ids)
    pair = Aligned(SOURCE, TARGET, frozenset(), frozenset())
    for layer in (0, -1):
        assert align(loaded, [pair], layer)[0] == {(int(s), t) for t, s in enumerate(found[layer].argmax(axis=1))}
    with pytest.raises(FlagError, match="layer=2: the model has 2 layers"):
        align(loaded, [pair], 2)
    with pytest.raises(FlagError, match="needs an encoder-decoder"):
        word_attention(tiny("decoder"), SOURCE, TARGET)


def test_gold_alignments_are_read_and_checked(tmp_path):
    path = tmp_path / "gold.jsonl"
    path.write_text('{"source": "a b", "target": "x y z", "sure": "0-0 1-2", "possible": "1-1"}\n')
    (pair,) = read_gold(str(path))
    assert (pair.sure, pair.possible) == (links("0-0 1-2"), links("0-0 1-2 1-1"))
    for sure, message in (("2-0", r"gold\.jsonl:1: link 2-0 of texts with 2 and 3 words"), ("0:0", "'0:0' is no link")):
        path.write_text(f'{{"source": "a b", "target": "x y z", "sure": "{sure}"}}\n')
        with pytest.raises(DataError, match=message):
            read_gold(str(path))


def test_a_model_that_copies_has_no_error(monkeypatch):
    """With attention on the word itself the links are the diagonal; on the next one, none of them is right."""
    loaded = tiny("encoder_decoder")
    text = "The king goes"
    gold = [Aligned(text, text, links("0-0 1-1 2-2"), links("0-0 1-1 2-2"))]
    for shift, rate in ((0, 0), (1, 1)):
        weights = np.roll(np.eye(3), shift, axis=1)[None]
        monkeypatch.setattr("lmjax.analysis.alignment.word_attention", lambda *_, w=weights: w)
        assert alignment_error_rate(align(loaded, gold), gold) == rate
