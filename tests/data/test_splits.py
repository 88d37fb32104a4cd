"""The split: no held-out text is trained on, it is the same on every machine, and an empty part is an early error."""

import json

import pydantic
import pytest

from lmjax.data.sources import DataConfig, NamedSet
from lmjax.data.splits import open_splits
from lmjax.errors import DataError, FlagError


def json_lines(records):
    return "".join(json.dumps(record) + "\n" for record in records)


def one_training_set(config, *, pairs):
    train, evals = open_splits(config, pairs=pairs)
    assert [*train] == ["train"]
    return train["train"], evals


@pytest.fixture
def corpus(write):
    # Each text occurs twice, and both copies must be in the same part.
    return write("corpus.jsonl", json_lines({"text": f"This is text {i % 1000}."} for i in range(2000)))


def test_held_out_texts_are_never_trained_on(corpus):
    train, evals = one_training_set(DataConfig(train=corpus, held_out=0.1), pairs=False)
    training, held_out = [d.text for d in train()], [d.text for d in evals["heldout"]()]
    assert len(training) + len(held_out) == 2000
    assert not set(training) & set(held_out), "held-out texts are trained on"
    assert 0.06 < len(held_out) / 2000 < 0.14
    assert [d.text for d in train()] == training, "a second reading differs"


def test_the_split_is_the_same_on_every_machine(corpus):
    _, evals = open_splits(DataConfig(train=corpus, held_out=0.01), pairs=False)
    numbers = sorted({int(d.text[13:-1]) for d in evals["heldout"]()})
    golden = [99, 134, 231, 426, 492, 529, 675, 728, 763, 788, 896]
    assert numbers == golden, "the split changed: recorded held-out losses are of other texts"


def test_white_space_around_a_text_does_not_part_it_from_its_duplicate(write):
    path = write("a.jsonl", json_lines({"text": text} for i in range(300) for text in (f"text {i}", f" text {i}\n")))
    train, evals = one_training_set(DataConfig(train=path, held_out=0.3), pairs=False)
    assert not {d.text.strip() for d in train()} & {d.text.strip() for d in evals["heldout"]()}


def test_a_source_with_two_targets_is_on_one_side(write):
    rows = [{"source": f"source {i}", "target": f"target {i} {j}"} for i in range(300) for j in range(2)]
    train, evals = one_training_set(DataConfig(train=write("a.jsonl", json_lines(rows)), held_out=0.3), pairs=True)
    assert not {d.segments[0] for d in train()} & {d.segments[0] for d in evals["heldout"]()}


def test_the_tail_split_cuts_one_long_text_as_nanogpt_does(write):
    text = "".join(f"Line {i}.\n\n" for i in range(999)) + "ä" * 7
    train, evals = one_training_set(DataConfig(train=write("a.txt", text), held_out=0.1, split="tail"), pairs=False)
    (training,), (held_out,) = list(train()), list(evals["heldout"]())
    assert training.text == text[: int(len(text) * 0.9)]
    assert held_out.text == text[int(len(text) * 0.9) :]


def test_named_sets_leave_the_training_data_whole(write, corpus):
    sets = (NamedSet(name="a", path=write("a.txt", "A.")), NamedSet(name="b", path=write("b.txt", "B.")))
    train, evals = one_training_set(DataConfig(train=corpus, eval=sets), pairs=False)
    assert len(list(train())) == 2000
    assert {name: [d.text for d in read()] for name, read in evals.items()} == {"a": ["A."], "b": ["B."]}
    assert open_splits(DataConfig(train=corpus, held_out=0), pairs=False).evals == {}


def test_splits_that_cannot_be_had_are_refused(write, corpus):
    one = write("one.txt", "A single text.")
    with pytest.raises(
        DataError, match=r"one document found .*data\.held_out=0\.05 leaves no document on the held-out"
    ):
        list(open_splits(DataConfig(train=one), pairs=False).evals["heldout"]())
    with pytest.raises(FlagError, match=r"data\.split.*data\.split=hash"):
        open_splits(DataConfig(train=one, split="tail"), pairs=True)
    with pytest.raises(FlagError, match=r"data\.split"):
        open_splits(DataConfig(split="tail"), pairs=False)
    with pytest.raises(FlagError, match=r"data\.eval: 'x' reads .*one\.txt.* and so does data\.train"):
        open_splits(DataConfig(train=one, eval=(NamedSet(name="x", path=one.replace("one", "on?")),)), pairs=False)
    with pytest.raises(DataError, match="no file matches"):
        open_splits(DataConfig(train=corpus + "x"), pairs=False)


@pytest.fixture
def mixture(write):
    """Returns two sets of 400 texts; every tenth text is in both."""
    texts = {name: [f"text {i} of {'both' if i % 10 == 0 else name}." for i in range(400)] for name in ("a", "b")}
    paths = {name: write(f"{name}.jsonl", json_lines({"text": t} for t in found)) for name, found in texts.items()}
    return DataConfig(mixture=tuple(f"{name}={path}" for name, path in paths.items()), held_out=0.3)


def test_each_set_of_a_mixture_is_held_out_under_its_own_name(mixture):
    train, evals = open_splits(mixture, pairs=False)
    assert [*train] == [*evals] == ["a", "b"]
    training, held_out = ({name: {d.text for d in read()} for name, read in side.items()} for side in (train, evals))
    for name in ("a", "b"):
        assert len(training[name]) + len(held_out[name]) == 400
    assert not (training["a"] | training["b"]) & (held_out["a"] | held_out["b"]), (
        "a text of both sets is trained on and held out"
    )


def test_a_set_is_split_alike_alone_and_in_a_mixture(mixture):
    """Its tokenised store and its held-out loss then do not depend on the sets it is mixed with."""
    alone, evals = one_training_set(DataConfig(train=mixture.mixture[0].path, held_out=0.3), pairs=False)
    train, mixed = open_splits(mixture, pairs=False)
    assert [d.text for d in alone()] == [d.text for d in train["a"]()]
    assert [d.text for d in evals["heldout"]()] == [d.text for d in mixed["a"]()]


def test_mixtures_that_cannot_be_had_are_refused(write):
    one = write("one.txt", "A single text.")
    with pytest.raises(FlagError, match=r"data\.mixture: 'b' reads .*one\.txt.*, and so does 'a'"):
        open_splits(DataConfig(mixture=(f"a={one}", f"b={one}")), pairs=False)
    with pytest.raises(FlagError, match=r"data\.eval: 'x' reads .*one\.txt.* and so does data\.mixture"):
        open_splits(DataConfig(mixture=(f"a={one}",), eval=(f"x={one}",)), pairs=False)
    for fields, message in (
        ({"mixture": ("a=x", "a=y")}, "two training sets have the same name"),
        (
            {"mixture": ("a=x", "b=y"), "weights": (1,)},
            "data.weights=1.0 has the length 1, but the mixture has 2 sets; give one",
        ),
        ({"mixture": ("x.txt",)}, "a set is written NAME=PATH"),
        ({"mixture": ("a=x",), "weights": (-1,)}, "greater than or equal to 0"),
    ):
        with pytest.raises(pydantic.ValidationError, match=message):
            DataConfig(**fields)


def test_an_empty_side_is_told_before_any_document_is_given(write):
    """In any order of reading, because otherwise the sets before the empty one would be tokenised first."""
    one, more = (
        write("one.txt", "One text\nof lines."),
        write("more.jsonl", json_lines([{"text": str(i)} for i in range(99)])),
    )
    message = r"one document found in .*one\.txt.*data\.documents=lines.*data\.split=tail.*--eval_data=PATH"
    for config in (DataConfig(train=one), DataConfig(mixture=(f"more={more}", f"one={one}"))):
        splits = open_splits(config, pairs=False)
        for read in (*splits.train.values(), *splits.evals.values()):
            with pytest.raises(DataError, match=message):
                next(read())
    with pytest.raises(DataError, match=r"2 documents found in .*held_out=0\.001 leaves no .*; give more documents"):
        next(
            one_training_set(
                DataConfig(train=write("2.jsonl", '{"text": "a"}\n{"text": "b"}\n'), held_out=0.001), pairs=False
            )[0]()
        )
    empty = write("empty.txt", "\n")
    with pytest.raises(DataError, match=r"empty\.txt' holds no documents"):
        next(one_training_set(DataConfig(train=more, eval=(f"x={empty}",)), pairs=False)[0]())


def test_looking_at_the_split_reads_no_more_than_it_must(write):
    path = write("a.jsonl", json_lines({"text": f"{i}"} for i in range(9999)) + "no JSON\n")
    train, _ = one_training_set(DataConfig(train=path), pairs=False)
    assert next(train()).text == "0"


def test_a_subset_takes_a_share_of_the_training_documents_alone(corpus):
    def numbers(share, seed):
        train, evals = open_splits(DataConfig(train=corpus, held_out=0.1, subset=share), pairs=False, subset_seed=seed)
        return [{int(d.text[13:-1]) for d in read()} for read in (train["train"], evals["heldout"])]

    (whole, held_out), (some, same), (more, _), (other, _) = (
        numbers(share, seed) for share, seed in ((None, 0), (0.3, 0), (0.6, 0), (0.3, 1))
    )
    assert held_out == same, "the held-out part depends on the subset of the training documents"
    assert some < more < whole, "a larger subset of the same seed does not hold the smaller one"
    assert 0.2 < len(some) / len(whole) < 0.4
    assert some != other, "the seed changes nothing"
    with pytest.raises(DataError, match=r"data\.subset=1e-12"):
        list(open_splits(DataConfig(train=corpus, subset=1e-12), pairs=False).train["train"]())
