"""Scores equal those of one text alone, computed without packing, for any row, batch and mesh."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.errors import FlagError
from lmjax.inference.loaded import PromptFormat
from lmjax.inference.score import rows as score_rows
from lmjax.inference.score.rows import batches, room
from lmjax.inference.score.score import Question, minimal_pairs, multiple_choice, perplexity, rolling, score
from lmjax.inference.score.texts import Item, Reader, ScoreConfig
from tests.inference.scoring import log_probs, prompts, tiny, tokenizer

pytestmark = pytest.mark.usefixtures("all_devices")

FAMILIES = ("encoder", "decoder", "encoder_decoder")
# Batches of four rows of 16 tokens: several items share a row, and there is more than one batch.
SMALL = ScoreConfig(row_length=16, batch_tokens=64)


def items(count: int = 9) -> list[Item]:
    rng = np.random.default_rng(1)
    lengths = zip(rng.integers(0, 6, count), rng.integers(1, 7, count), strict=True)
    return [Item(*(rng.integers(110, 180, n).tolist() for n in pair)) for pair in lengths]


def alone(loaded, item: Item) -> tuple[float, bool]:
    """Returns the score of an item, by one forward pass, or for an encoder by one pass for every prediction."""
    context, ids = (list(x) for x in item)
    t, architecture = tokenizer(), loaded.config.architecture
    if architecture == "encoder":
        found = []
        for i in range(len(ids)):
            row = [t.cls_id, *context, *ids[:i], t.mask_id, *ids[i + 1 :], t.sep_id]
            found.append(log_probs(loaded, {"tokens": row})[1 + len(context) + i])
    elif architecture == "decoder":
        found = log_probs(loaded, {"tokens": [t.bos_id, *context, *ids]})[len(context) :]
    else:
        fields = {"encoder_tokens": [*context, t.eos_id], "decoder_tokens": [t.pad_id, *ids]}
        found = log_probs(loaded, fields)
    return sum(row[i] for row, i in zip(found, ids, strict=False)), all(
        row.argmax() == i for row, i in zip(found, ids, strict=False)
    )


@pytest.mark.parametrize(
    ("architecture", "positions"),
    [
        ("encoder", "learned"),
        ("decoder", "learned"),
        ("decoder", "alibi"),
        ("encoder_decoder", "rope"),
        ("encoder_decoder", "relative"),
    ],
)
def test_a_score_is_that_of_the_item_alone(architecture, positions):
    """Packed with other texts, padded and batched, it equals the sum of float64 log-softmaxes of the text alone."""
    loaded = tiny(architecture, positions)
    given = items()
    for item, found in zip(given, score(loaded, given, SMALL), strict=True):
        expected, greedy = alone(loaded, item)
        assert found.log_likelihood == pytest.approx(expected, abs=1e-5 * len(item.continuation) + 1e-5)
        assert (found.tokens, found.greedy) == (len(item.continuation), greedy)


def test_rows_are_shared_and_a_neighbour_changes_nothing():
    loaded, given = tiny("decoder"), items()
    pieces = [piece for item in given for piece in Reader.of(loaded, SMALL).pieces(item)]
    rows = [{(row, id(batch)) for _, row, _, _ in batch.owners} for batch in batches(loaded, pieces, SMALL)]
    assert sum(map(len, rows)) < len(given), "no two items share a row"
    others = [
        item if i == 4 else Item(item.context, [i + 1 for i in item.continuation]) for i, item in enumerate(given)
    ]
    before, after = (score(loaded, every, SMALL) for every in (given, others))
    assert before[4] == after[4]
    assert before[3] != after[3]


def test_a_row_without_segments_would_change_a_score(monkeypatch):
    """Negative control of the test above: if texts of a row attend to each other, scores change."""
    loaded, given = tiny("decoder"), items()
    expected = [s.log_likelihood for s in score(loaded, given, SMALL)]
    whole = score_rows._fields

    def merged(*args):
        fields = whole(*args)
        return fields | {"segment_ids": np.minimum(fields["segment_ids"], 1)}

    monkeypatch.setattr(score_rows, "_fields", merged)
    assert max(abs(s.log_likelihood - e) for s, e in zip(score(loaded, given, SMALL), expected, strict=True)) > 0.1


@pytest.mark.parametrize("architecture", ["decoder", "encoder_decoder"])
def test_a_mesh_and_the_size_of_a_batch_change_nothing(architecture):
    given = items()
    expected = [s.log_likelihood for s in score(tiny(architecture), given, SMALL)]
    split = score(tiny(architecture, devices=4, tensor=2), given, small(batch_tokens=16, row_length=12))
    np.testing.assert_allclose([s.log_likelihood for s in split], expected, rtol=2e-6)


def small(**fields) -> ScoreConfig:
    return SMALL.model_copy(update=fields)


def test_the_projection_in_parts_gives_the_same(monkeypatch):
    loaded, given = tiny("decoder"), items()
    expected = score(loaded, given, SMALL)
    monkeypatch.setattr(score_rows, "_LOGITS", 192 * 16)
    assert score_rows._parts(loaded, (4, 16)) == 4
    np.testing.assert_allclose(
        [s.log_likelihood for s in score(loaded, given, SMALL)], [s.log_likelihood for s in expected], rtol=1e-6
    )


def test_block_after_block_gives_the_same_in_the_same_order(monkeypatch):
    """Pieces are in host memory one block at a time."""
    loaded, given = tiny("decoder"), items()
    expected = score(loaded, given, SMALL)
    monkeypatch.setattr(score_rows, "_BATCHES", 0.5)
    pieces = [piece for item in given for piece in Reader.of(loaded, SMALL).pieces(item)]
    assert len(list(score_rows._blocks(pieces, 32))) > 1
    np.testing.assert_allclose(
        [s.log_likelihood for s in score(loaded, given, SMALL)], [s.log_likelihood for s in expected], rtol=1e-6
    )


def test_a_prefix_is_seen_by_all_of_its_context():
    deep = tiny("decoder", num_layers=2)
    loaded = dataclasses.replace(deep, prompts=dataclasses.replace(prompts("decoder"), bidirectional=True))
    item = Item([120, 130, 140], [150, 160])
    causal, both = (score(m, [item, item], SMALL)[0].log_likelihood for m in (deep, loaded))
    row = [tokenizer().bos_id, *item.context, *item.continuation]
    found = log_probs(loaded, {"tokens": row, "prefix": [1, 1, 1, 1]})
    assert both == pytest.approx(found[3, 150] + found[4, 160], abs=1e-5)
    assert abs(both - causal) > 0.01


def test_within_word_masking_hides_the_rest_of_the_word():
    """Kauf and Ivanova 2023: at "hous" of "houses" the model must not see "es", at "es" it sees "hous"."""
    loaded, t = tiny("encoder"), tokenizer()
    config = small(within_word=True)
    ids = t.encode(" the houses")
    assert t.word_start[ids].tolist() == [True, True, False]
    pieces = list(Reader.of(loaded, config).pieces(([], ids)))
    around = [
        [t.cls_id, *row, t.sep_id] for row in ([t.mask_id, *ids[1:]], [ids[0], *[t.mask_id] * 2], [*ids[:2], t.mask_id])
    ]
    assert [list(p.tokens) for p in pieces] == around
    plain, hidden = (score(loaded, [Item("", " the houses")], c)[0].log_likelihood for c in (SMALL, config))
    expected = sum(log_probs(loaded, {"tokens": row})[i + 1, ids[i]] for i, row in enumerate(around))
    assert hidden == pytest.approx(expected, abs=1e-5)
    assert abs(plain - hidden) > 0.01


def test_the_end_of_a_text_is_predicted_where_that_is_asked():
    for architecture in ("decoder", "encoder_decoder"):
        loaded, end = tiny(architecture), tokenizer().eos_id
        asked, written = score(loaded, [Item("The king", " goes")], small(end=True)), tokenizer().encode(" goes")
        assert asked == [
            dataclasses.replace(s, bytes=5)
            for s in score(loaded, [Item(tokenizer().encode("The king"), [*written, end])], SMALL)
        ]


@pytest.mark.parametrize("architecture", FAMILIES)
def test_texts_become_ids_as_lm_eval_has_it(architecture):
    """White space at a context's end is part of the continuation; an encoder-decoder's sides are separate texts."""
    reader, t = Reader.of(tiny(architecture), SMALL), tokenizer()
    ((context, continuation, _),) = reader.encode([Item("The ", "king goes")], ["it"])
    if architecture == "encoder_decoder":
        assert (context, continuation) == (t.encode("The "), t.encode("king goes"))
    else:
        assert (context, continuation) == (t.encode("The"), t.encode(" king goes"))
    ((context, continuation, _),) = reader.encode([Item("", "The king")], ["it"])
    assert (context, continuation) == ([], t.encode("The king"))


@pytest.mark.parametrize("architecture", ["encoder", "decoder"])
def test_an_item_whose_join_lies_within_a_token_is_scored_whole_and_says_so(architecture):
    """The word king is one token: a score of its end alone would be too high, and without tokens the run would stop."""
    loaded, t = tiny(architecture), tokenizer()
    given = [Item("The old", " tree"), Item("The ki", "ng"), Item("The old ki", "ng goes")]
    found = score(loaded, given, SMALL)
    assert [s.apart for s in found] == [False, True, True]
    for item, s in zip(given, found, strict=True):
        ids = Item(*(t.encode(text) for text in item))
        assert t.decode(ids.continuation) == item.continuation
        assert (s.tokens, s.bytes) == (len(ids.continuation), len(item.continuation))
        assert s.log_likelihood == pytest.approx(alone(loaded, ids)[0], abs=1e-4)
    assert multiple_choice(loaded, [Question("The ki", ["ng", "nd"], 0)], SMALL)["apart"] > 0


@pytest.mark.parametrize("architecture", FAMILIES)
@pytest.mark.parametrize("stride", [None, 3])
def test_every_token_of_a_long_text_is_predicted_once(architecture, stride):
    loaded = tiny(architecture)
    reader, ids = Reader.of(loaded, small(stride=stride)), list(range(110, 160))
    pieces = list(reader.windows(ids))
    assert [i for p in pieces for i in p.targets] == ids
    assert max(len(p.tokens) for p in pieces) == 16
    assert all(0 <= a < len(p.tokens) for p in pieces for a in p.at)
    if architecture == "encoder":
        assert [p.tokens[a] for p in pieces for a in p.at] == [tokenizer().mask_id] * len(ids)
    else:
        # The input at each position is the token before the predicted one.
        inputs = [i for p in pieces for i in (p.tokens[a] for a in p.at)]
        assert inputs[1:] == ids[:-1]
        assert len(pieces[-1].tokens) == 16, "the last window is extended to the left until it is full"
    if stride:
        assert {len(p.targets) for p in pieces[1:-1]} <= {1, 3}


def test_a_window_is_what_lm_eval_cuts():
    utils = pytest.importorskip("lm_eval.utils")
    loaded, ids = tiny("decoder"), list(range(110, 160))
    theirs = [
        utils.make_disjoint_window(w)
        for w in utils.get_rolling_token_windows(ids, prefix_token=tokenizer().bos_id, max_seq_len=16, context_len=1)
    ]
    ours = [(p.tokens[: p.at[0] + 1], p.targets) for p in Reader.of(loaded, SMALL).windows(ids)]
    assert ours == [(list(context), list(wanted)) for context, wanted in theirs]


def test_a_long_text_is_the_sum_of_its_windows():
    """Windows of 16 inputs: 16 tokens after BOS, 16 after one token of context, and a full last window."""
    loaded, t = tiny("decoder"), tokenizer()
    ids = list(range(110, 150))
    row = [t.bos_id, *ids]
    expected = 0.0
    for low, begin, end in ((0, 0, 16), (16, 16, 32), (24, 32, 40)):
        found = log_probs(loaded, {"tokens": row[low:end]})
        expected += sum(found[i - low, ids[i]] for i in range(begin, end))
    assert rolling(loaded, [ids], SMALL)[0].log_likelihood == pytest.approx(expected, abs=1e-4)


def test_perplexity_and_bits_per_byte():
    loaded, texts = tiny("decoder"), ["The old king.", "A queen goes under the tree, singing and never going."]
    scores = rolling(loaded, texts, SMALL)
    nats = -sum(s.log_likelihood for s in scores)
    tokens, size = sum(len(tokenizer().encode(t)) for t in texts), sum(map(len, texts))
    assert perplexity(loaded, texts, SMALL) == {
        "nats_per_token": pytest.approx(nats / tokens),
        "perplexity": pytest.approx(math.exp(nats / tokens)),
        "bits_per_byte": pytest.approx(nats / size / math.log(2)),
        "tokens": tokens,
        "bytes": size,
    }


def test_the_likelier_text_and_choice_win():
    loaded = tiny("decoder")
    texts = [" king", " the river house, never", " a"]
    by = dict(zip(texts, score(loaded, [Item("The old", t) for t in texts], SMALL), strict=True))
    best = max(texts, key=lambda t: by[t].log_likelihood)
    per_byte = max(texts, key=lambda t: by[t].log_likelihood / len(t))
    per_token = max(texts, key=lambda t: by[t].log_likelihood / by[t].tokens)
    assert per_byte not in (best, per_token), "the texts must give different answers for each normalisation"
    questions = [Question("The old", texts, i) for i in range(3)]
    assert multiple_choice(loaded, questions, SMALL) == {
        "accuracy": pytest.approx(1 / 3), "accuracy_per_byte": pytest.approx(1 / 3), "questions": 3, "apart": 0,
    }  # fmt: skip
    right = multiple_choice(loaded, [Question("The old", texts, texts.index(best))], SMALL)
    assert (right["accuracy"], right["accuracy_per_byte"]) == (1, 0)
    first, second = sorted(
        (" the king", " a river"), key=lambda t: score(loaded, [Item("", t)], SMALL)[0].log_likelihood
    )
    pairs = [(second, first), (first, second), (second, first), (first, first)]
    assert minimal_pairs(loaded, pairs, SMALL) == {"accuracy": 2.5 / 4, "pairs": 4}


def test_equal_choices_are_a_guess_wherever_the_answer_stands():
    """A model with equal likelihoods scores like chance, not 1 if the right answers are all first."""
    same = [" the king"] * 4
    for answer in range(4):
        found = multiple_choice(tiny("decoder"), [Question("The old", same, answer)], SMALL)
        assert (found["accuracy"], found["accuracy_per_byte"]) == (0.25, 0.25)


def test_greedy_is_what_greedy_decoding_writes():
    """Of equally likely ids the first counts: with equal logits, no other continuation is greedy."""
    loaded = tiny("decoder")
    flat = dataclasses.replace(loaded, params=jax.tree.map(jnp.zeros_like, loaded.params))
    found = score(flat, [Item("", [0]), Item("", [1]), Item("", [0, 0]), Item("", [0, 1])], SMALL)
    assert [s.greedy for s in found] == [True, False, True, False]


def test_a_context_that_is_too_long_is_an_error_or_loses_its_beginning():
    loaded, long = tiny("decoder"), Item(list(range(110, 130)), [131, 132])
    with pytest.raises(FlagError, match=r"items\[0\]: its context has 20 tokens.*room for 14.*truncate"):
        score(loaded, [long], SMALL)
    cut = Item(long.context[-14:], long.continuation)
    assert score(loaded, [long], small(truncate=True)) == score(loaded, [cut], SMALL)


def test_long_rows_come_in_few_lengths():
    config = tiny("decoder", "rope").config.model_copy(update={"max_length": 4096})
    assert {room(config, 256, n) for n in range(1, 4097)} == {256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096}
    assert all(n <= room(config, 256, n) < 1.5 * n + 2 for n in range(257, 4097))


def test_dynamic_rotary_scaling_is_that_of_the_text_alone():
    """Dynamic scaling depends on the row's length: a text beyond the original length gets a row of its own length."""
    rope = tiny("decoder").config.rope.model_copy(update={"scaling": "dynamic", "factor": 4.0, "original_length": 8})
    loaded = tiny("decoder", "rope", rope=rope)
    given = [Item([120] * n, [130, 140]) for n in (9,)]
    for item, found in zip(given, score(loaded, given, SMALL), strict=True):
        row = [tokenizer().bos_id, *item.context, 130]
        # The last token is predicted but not read, so it does not lengthen the row.
        expected = log_probs(loaded, {"tokens": row}, room=max(len(row), 8))[len(row) - 2 : len(row)]
        assert found.log_likelihood == pytest.approx(expected[0, 130] + expected[1, 140], abs=2e-5)


def test_mistakes_are_named():
    decoder, encoder = tiny("decoder"), tiny("encoder")
    with pytest.raises(FlagError, match=r"items\[1\]: the id 192 is not in the model's vocabulary of 192 rows"):
        score(decoder, [Item("", "a"), Item([1, 192], "a")])
    with pytest.raises(FlagError, match=r"items\[0\]: '' has no tokens; give it some text"):
        score(decoder, [Item("The king", "")])
    with pytest.raises(FlagError, match=r"items\[0\]: its continuation has 17 tokens, but the model reads at most 16"):
        score(decoder, [Item([], [120] * 17)])
    with pytest.raises(FlagError, match=r"texts\[0\]"):
        rolling(decoder, [""])
    with pytest.raises(FlagError, match="--max_length=17: the model's rows have at most 16 tokens"):
        rolling(decoder, ["a"], ScoreConfig(max_length=17))
    with pytest.raises(FlagError, match="stride=15: a window of 16 tokens has room for 14"):
        rolling(encoder, ["a"], ScoreConfig(stride=15))
    with pytest.raises(FlagError, match="end=True: an encoder"):
        score(encoder, [Item("", "a")], ScoreConfig(end=True))
    with pytest.raises(FlagError, match=r"within_word=True.*this is a decoder"):
        score(decoder, [Item("", "a")], ScoreConfig(within_word=True))
    headless = dataclasses.replace(encoder, model=encoder.model.clone(heads=()))
    with pytest.raises(FlagError, match="predicts no tokens; take a model with a masked_lm head"):
        score(headless, [Item("", "a")])
    with pytest.raises(FlagError, match=r"questions\[0\]: the answer 2 is none of 2 choices"):
        multiple_choice(decoder, [Question("", ["a", "b"], 2)])
    startless = dataclasses.replace(tiny("encoder_decoder"), prompts=PromptFormat())
    with pytest.raises(FlagError, match=r"prompts\.start: is empty"):
        score(startless, [Item("", "a")])
