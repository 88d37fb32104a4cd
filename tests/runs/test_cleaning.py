"""Copies and what a filter finds are left out of the training data alone; the held-out data stays as it is."""

import hashlib
import json

import numpy as np
import pytest

from lmjax.data.splits import is_held_out
from lmjax.errors import ConfigMismatchError, DataError, FlagError
from lmjax.runs import cleaning
from lmjax.runs.cleaning import EARLIER, HELD_OUT, REMOVED
from lmjax.runs.data import open_data
from tests.analysis.test_inside import classifier

SHARE = 0.4
WORDS = ("king", "queen", "river", "house", "tree", "goes", "sees", "under", "never", "old", "young", "away", "home")


def long_text(number):
    return " ".join(np.random.default_rng(number).choice(WORDS, 40))


def side(text):
    """Returns whether a text is held out, by its group."""
    return is_held_out(hashlib.blake2b(text.strip().encode(), digest_size=16).hexdigest(), SHARE)


def on(held_out, number=0, change=lambda text: text):
    """Returns texts that are held out or not, each with a change of it that is not held out, from `number` on."""
    while True:
        text = long_text(number)
        if side(text) == held_out and not side(change(text)):
            return text, change(text)
        number += 1


def shouted(text):
    return f"{text.upper()} !"


def edited(text):
    return " ".join([*text.split()[:-1], "changed"])


@pytest.fixture
def opened(tiny, tmp_path):
    """Returns a function from texts and fields to a run's data, its training texts, and its held-out texts."""

    def open_texts(texts, workdir="run", **fields):
        path = tmp_path / "texts.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        config = tiny(data__train=path, data__held_out=SHARE, tokenizer__byte_fallback="true",
                      data__cache_dir=tmp_path / "cache", **fields)  # fmt: skip
        data = open_data(config, tmp_path / workdir)
        stores = (data.train["train"], data.evaluated["heldout"])
        return data, *([data.tokenizer.decode(s.document(i).tolist()) for i in range(s.num_documents)] for s in stores)

    return open_texts


@pytest.mark.parametrize(
    ("dedup", "gone"),
    [("none", set()), ("exact", {"same"}), ("loose", {"same", "shouted"}), ("near", {"same", "shouted", "edited"})],
)
def test_copies_of_held_out_and_of_earlier_documents_are_left_out(opened, dedup, gone):
    if dedup == "near":
        pytest.importorskip("datasketch")
    # Each base has a copy of every kind; that of a held-out base is trained on unless it is found.
    texts, kinds = [], {}
    for number, held_out in ((0, True), (1000, False)):
        base, loud = on(held_out, number, shouted)
        other, near = on(held_out, number + 500, edited)
        texts += [base, f" {base}\n", loud, other, near]
        kinds |= {loud: "shouted", near: "edited"}
    rest = [long_text(i) for i in range(5000, 5030)]
    data, training, held_out = opened([*texts, *rest], data__dedup=dedup)
    plain = opened([*texts, *rest], "plain")
    assert held_out == plain[2], "the held-out part is another one"
    left = [text for text in plain[1] if not ("same" in gone and text == f" {texts[5]}\n")]
    expected = [text for text in left if kinds.get(text) not in gone]
    assert training == expected
    counts = data.removed["train"]["left out"] if dedup != "none" else {}
    pairs = len(gone - {"same"})
    # White space does not part a copy from its base, so that the same text is never on both sides.
    assert counts == {name: n for name, n in ((HELD_OUT, pairs), (EARLIER, pairs + ("same" in gone))) if n}


def test_a_copy_of_one_of_two_near_held_out_documents_is_found():
    """Held-out documents that are near to each other are all compared with, not the first of them alone."""
    pytest.importorskip("datasketch")
    seen = cleaning._Seen("near", 0.8)
    words, other = [f"w{i}" for i in range(60)], [f"x{i}" for i in range(60)]
    first, second, third = (" ".join(x) for x in (words, other[:5] + words[5:], other[:5] + words[5:55] + other[55:]))
    seen.add(first, HELD_OUT)
    seen.add(second, HELD_OUT)
    apart = cleaning._Seen("near", 0.8)
    apart.add(first, HELD_OUT)
    assert apart.copy_of(third) is None, "the texts of this test are too near"
    assert seen.copy_of(third) == HELD_OUT


def test_a_filter_leaves_out_what_it_finds_and_a_copy_of_it_is_no_copy(opened, tmp_path):
    words, patterns = tmp_path / "words.txt", tmp_path / "patterns.txt"
    words.write_text("Secret\n")
    patterns.write_text("[0-9]{3}\n")
    texts = ["a secret thing", "A secretary sees", "call 123 now", "call 12 now", "SECRET!", "secret.", "never"]
    texts += [long_text(i) for i in range(20)]
    fields = {"data__filter__words": words, "data__filter__patterns": patterns, "data__dedup": "loose"}
    data, training, held_out = opened(texts, **fields)
    plain = opened(texts, "plain")
    assert held_out == plain[2]
    found = [t for t in plain[1] if "secret" in t.lower().strip("!.").split() or "123" in t]
    assert training == [text for text in plain[1] if text not in found]
    assert sum(data.removed["train"]["left out"].values()) == len(found) > 0
    assert data.removed["train"]["documents"] == len(plain[1])
    # The second document has the words of a first one that the filter leaves out, and stays.
    reasons = cleaning.Cleaning(None, (cleaning.Rule("!", lambda texts: ["!" in t for t in texts], 1),), "loose", 0.8,
                                {}, tmp_path)._reasons(["a king!", "A king", "a king"],
                                                       cleaning._Seen("loose", 0.8))  # fmt: skip
    assert reasons == ["!", None, EARLIER]


def test_documents_in_other_languages_are_left_out(opened):
    pytest.importorskip("py3langid")
    german = [f"Der alte König geht im Jahr {i} nach Hause zu seinem Fluss." for i in range(8)]
    english = [f"The old king goes home to his river in the year {i}." for i in range(8)]
    _, training, held_out = opened([*german, *english], data__filter__languages="de,fr")
    plain = opened([*german, *english], "plain")
    assert training == [text for text in plain[1] if text in german]
    assert 0 < len(training) < len(plain[1])
    assert held_out == plain[2]
    with pytest.raises(FlagError, match=r"config\.data\.filter\.languages=german: no such language"):
        opened(english, "wrong", data__filter__languages="german")


def test_a_classifier_filters_by_the_probability_of_its_label(opened, monkeypatch):
    from lmjax.audit.raters import probabilities

    judge = classifier()
    monkeypatch.setattr("lmjax.runs.trained.load_model", lambda place: judge)
    texts = [f"The {a} {b}." for a in WORDS for b in WORDS[:3]]
    rates = dict(zip(texts, probabilities(judge, texts)["dull"], strict=True))
    threshold = float(np.median(list(rates.values())))
    fields = {"data__filter__model": "judge", "data__filter__label": "dull", "data__filter__threshold": threshold}
    _, training, held_out = opened(texts, **fields)
    plain = opened(texts, "plain")
    assert (training, held_out) == ([t for t in plain[1] if rates[t] < threshold], plain[2])
    assert 0 < len(training) < len(plain[1])
    with pytest.raises(FlagError, match=r"filter\.model=judge, label=wrong: has the labels dull, fine"):
        opened(texts, "wrong", **{**fields, "data__filter__label": "wrong"})


def test_what_was_left_out_is_known_to_a_run_that_goes_on(opened, tmp_path, monkeypatch):
    """A run that resumes reads stores and counts; another filter is other data; nothing left is an error."""
    words = tmp_path / "words.txt"
    words.write_text("secret\n")
    texts = [*(f"secret {i}" for i in range(4)), *(long_text(i) for i in range(20))]
    read, found = (sum(not side(text) for text in part) for part in (texts, texts[:4]))
    fields = {"data__filter__words": words}
    first, training, _ = opened(texts, **fields)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/data.json").write_text(json.dumps(first.identity))
    (tmp_path / "run" / REMOVED).write_text(json.dumps(first.removed))
    with monkeypatch.context() as patch:
        patch.setattr(cleaning, "_chunks", lambda *_: pytest.fail("the documents are read again"))
        again, same, _ = opened(texts, **fields)
    assert (again.removed, same, again.train["train"].fingerprint) == (
        first.removed, training, first.train["train"].fingerprint)  # fmt: skip
    assert cleaning.told(again.removed) == [
        f"train: left out of {read} training documents: {found} with one of the words"
    ]
    known = first.removed["train"] | {"kept": "0" * 16}
    (tmp_path / "run" / REMOVED).write_text(json.dumps({"train": known}))
    with pytest.raises(ConfigMismatchError, match="leaves other documents of train out on this machine"):
        opened(texts, **fields)
    words.write_text("secret\nhidden\n")
    with pytest.raises(ConfigMismatchError, match="trained on other data: cleaning changed"):
        opened(texts, **fields)
    words.write_text("\n".join(["secret", *WORDS]))
    with pytest.raises(
        DataError, match=rf"leave none of the {read} training documents of train \({read} with one of the words"
    ):
        opened(texts, "none", **fields)
    with pytest.raises(DataError, match=r"--config\.data\.filter\.words: .*missing.txt"):
        opened(texts, "missing", data__filter__words=tmp_path / "missing.txt")
    with pytest.raises(FlagError, match=r"label='x' is a label of filter\.model"):
        opened(texts, "label", data__filter__label="x")
