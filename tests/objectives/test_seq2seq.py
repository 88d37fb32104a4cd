"""Sequence to sequence: the target is predicted from the source, and long texts are truncated at their ends."""

import numpy as np
import pytest

from lmjax.errors import DataError, FlagError

RNG = None  # the objective uses no random numbers


def row_of(examples, i=0):
    return {name: array.tolist() for name, array in examples(i, RNG).items()}


@pytest.mark.parametrize("source", ["abc", ""])
def test_features_for_an_encoder_decoder(source, make_store, make_task, ids):
    task = make_task("seq2seq", "encoder_decoder", length=8, target_length=9)
    n = len(source) + 1
    assert row_of(task.examples(make_store([(source, "xy")], pairs=True), 0)) == {
        "encoder_tokens": ids(source, "EOS") + ids("PAD") * (8 - n),
        "encoder_positions": [*range(n), *[0] * (8 - n)],
        "encoder_segment_ids": [1] * n + [0] * (8 - n),
        "decoder_tokens": ids("PAD", "xy") + ids("PAD") * 6,
        "decoder_positions": [0, 1, 2, *[0] * 6],
        "decoder_segment_ids": [1, 1, 1, *[0] * 6],
        "targets": ids("xy", "EOS") + ids("PAD") * 6,
        "weights": [1, 1, 1, *[0] * 6],
    }


@pytest.mark.parametrize("source", ["abc", ""])
def test_features_for_a_decoder(source, make_store, make_task, ids):
    task = make_task("seq2seq", "decoder", length=10, target_length=8)
    n = len(source)
    assert row_of(task.examples(make_store([(source, "xy")], pairs=True), 0)) == {
        "tokens": ids("BOS", source, "EOS", "xy") + ids("PAD") * (6 - n),
        "positions": [*range(n + 4), *[0] * (6 - n)],
        "segment_ids": [1] * (n + 4) + [0] * (6 - n),
        "targets": ids(source, "EOS", "xy", "EOS") + ids("PAD") * (6 - n),
        "weights": [0] * (n + 1) + [1] * 3 + [0] * (6 - n),
    }


def test_empty_target_is_an_end_alone(make_store, make_task, ids):
    task = make_task("seq2seq", "encoder_decoder", length=8, target_length=8)
    f = row_of(task.examples(make_store([("abc", "")], pairs=True), 0))
    assert f["targets"] == ids("EOS") + ids("PAD") * 7
    assert f["weights"] == [1] + [0] * 7


@pytest.mark.parametrize(
    ("architecture", "target_length", "source_kept", "target_kept"),
    [("encoder_decoder", 9, 11, 8), ("decoder", 9, 5, 5), ("decoder", 8, 5, 5), ("encoder_decoder", 20, 11, 19)],
)
def test_long_sides_are_cut_at_their_ends(
    architecture, target_length, source_kept, target_kept, make_store, make_task, ids
):
    """Only the beginning of a text that is too long remains, with EOS; in a decoder both texts share the row."""
    source, target = "abcdefghijklm" * 9, "nopqrstuvwxyz" * 9
    task = make_task("seq2seq", architecture, length=12, target_length=target_length)
    f = row_of(task.examples(make_store([(source, target)], pairs=True), 0))
    count = int(sum(f["weights"]))
    end = ids(target[:target_kept], "EOS")
    if architecture == "encoder_decoder":
        assert f["encoder_tokens"] == ids(source[:source_kept], "EOS")
        assert f["targets"][:count] == end
    else:
        assert f["tokens"] == ids("BOS", source[:source_kept], "EOS", target[:target_kept])
        assert f["targets"] == ids(source[:source_kept], "EOS") + end


@pytest.mark.parametrize("architecture", ["encoder_decoder", "decoder"])
def test_every_pair_is_in_one_row_and_its_sides_meet(architecture, make_store, make_task, tokenizer):
    """In packed rows each target has the segment id of its own source."""
    rng = np.random.default_rng(0)

    def word():
        return "".join(rng.choice(list("abcdefgh"), rng.integers(0, 12)))

    documents = [(f"z{word()}", f"z{word()}") for _ in range(100)]
    task = make_task("seq2seq", architecture, length=64, target_length=32)
    examples = task.examples(make_store(documents, pairs=True), 0)
    found = []
    for i in range(len(examples)):
        f = examples(i, RNG)
        encoder = "encoder_" if architecture == "encoder_decoder" else ""
        decoder = "decoder_" if architecture == "encoder_decoder" else ""
        for s in range(1, f[f"{decoder}segment_ids"].max() + 1):
            target = f["targets"][(f[f"{decoder}segment_ids"] == s) & (f["weights"] > 0)]
            source = f[f"{encoder}tokens"][f[f"{encoder}segment_ids"] == s]
            if architecture == "decoder":
                source = source[1 : len(source) - len(target) + 1]
            assert source[-1] == target[-1] == tokenizer.eos_id
            found.append((tokenizer.decode(source), tokenizer.decode(target)))
    assert sorted(found) == sorted(documents)
    assert len(examples) < 40, "short pairs do not share rows"


def test_running_text_is_refused(corpus, make_task):
    with pytest.raises(DataError, match=r"seq2seq needs \(source, target\) pairs"):
        make_task("seq2seq", "decoder", length=16).examples(corpus, 0)


@pytest.mark.parametrize("architecture", ["encoder_decoder", "decoder"])
def test_a_prefix_is_before_each_source_and_each_prompt(architecture, make_store, make_task, ids):
    task = make_task("seq2seq", architecture, length=16, target_length=8, seq2seq={"prefix": "say "})
    row = row_of(task.examples(make_store([("abc", "xy")], pairs=True), 0))
    (objective,) = task.objectives
    prompt = objective.prompt_format().around(ids("abc"))
    tokens = row["encoder_tokens"] if architecture == "encoder_decoder" else row["tokens"]
    begin = ids() if architecture == "encoder_decoder" else ids("BOS")
    assert tokens[: len(prompt)] == prompt == [*begin, *ids("say ", "abc", "EOS")]
    assert sum(row["weights"]) == 3
    with pytest.raises(FlagError, match=r"seq2seq.prefix='say say say ': 12 tokens are half or more of a row of 16"):
        make_task("seq2seq", architecture, length=16, seq2seq={"prefix": "say say say "}).examples(
            make_store([("abc", "xy")], pairs=True), 0
        )


@pytest.mark.parametrize(
    ("architecture", "said"),
    [
        ("encoder_decoder", "1 of 3 sources lose 5 tokens and 2 of 3 targets lose 8 tokens, because rows have 16 and"),
        ("decoder", "1 of 3 sources lose 13 tokens and 1 of 3 targets lose 3 tokens, because rows have 16 tokens"),
    ],
)  # fmt: skip
def test_what_is_truncated_is_counted(architecture, said, make_store, make_task, caplog):
    """A source of 20 letters, a target of 10 and one of 12, each with its end."""
    store = make_store([("a" * 20, "b" * 10), ("c" * 2, "d" * 12), ("e", "f")], pairs=True)
    make_task("seq2seq", architecture, length=16, target_length=8).examples(store, 0)
    assert said in caplog.text
    caplog.clear()
    make_task("seq2seq", architecture, length=48, target_length=24).examples(store, 0)
    assert not caplog.text


def test_a_short_side_leaves_its_room_to_the_other_one(make_store, make_task, ids):
    task = make_task("seq2seq", "decoder", length=16, target_length=8)
    f = row_of(task.examples(make_store([("ab", "c" * 20)], pairs=True), 0))
    assert f["targets"] == ids("ab", "EOS", "c" * 12, "EOS")
    f = row_of(task.examples(make_store([("a" * 20, "c")], pairs=True), 0))
    assert f["targets"] == ids("a" * 13, "EOS", "c", "EOS")
