"""Copies, near duplicates, contamination and personal data are found where they are, and not elsewhere."""

import random

import numpy as np
import pytest

from lmjax.audit import documents
from lmjax.audit.documents import Documents
from lmjax.audit.duplicates import contamination, copies, grams, near_duplicates, words
from lmjax.audit.personal import is_account, personal
from lmjax.data.records import FieldNames
from lmjax.data.sources import DataConfig, read_unsplit
from lmjax.data.splits import is_held_out, open_splits
from tests.conftest import sentence


def kinds(text):
    return [found.kind for found in personal(text)]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("write to anna.b+c@mail.example.org, please", "e-mail"),
        ("call +49 30 123456 now", "telephone"),
        ("call (555) 123-4567", "telephone"),
        ("call 555-123-4567.", "telephone"),
        ("pay to DE89 3704 0044 0532 0130 00 today", "account (IBAN)"),
        ("pay to GB82WEST12345698765432", "account (IBAN)"),
        ("key AKIA" + "A" * 16, "secret key"),
        ("token ghp_" + "a1" * 18, "secret key"),
        ("-----BEGIN RSA PRIVATE " + "KEY-----", "secret key"),
    ],
)
def test_personal_data_is_found(text, kind):
    assert kinds(text) == [kind]


@pytest.mark.parametrize(
    "text",
    ["a @decorator and x@y", "in 1999-2004 at 3.14159265", "version 1.2.3, 12345678", "DE88 3704 0044 0532 0130 00",
     "1234567890123456", "2026-11-29 10:20:30", "sk-short", "AKIA and others"],
)  # fmt: skip
def test_what_is_none_is_not_found(text):
    assert not kinds(text)


def test_check_digits_of_an_account():
    assert is_account("FR14 2004 1010 0505 0001 3M02 606")
    assert not is_account("FR15 2004 1010 0505 0001 3M02 606")


def test_patterns_take_no_long_time_for_a_long_text():
    for text in ("a" * 200_000, "1 " * 100_000, "a.b" * 50_000 + "@", "DE12" + " ABCD" * 50_000, "+1 " + "1-" * 99_999):
        list(personal(text))


def test_copies_are_counted():
    texts = ["A king.", " A king.\n", "a  king", "A queen.", "A king."]
    found = copies(texts, [False, False, True, True, True])
    assert (found.exact, found.loose, found.largest, found.apart) == (2, 3, 3, 1)


@pytest.mark.parametrize("suffix", ["txt", "jsonl", "csv"])
def test_an_exact_copy_never_stands_in_both_parts(suffix, tmp_path):
    """Also in different files and sets, and with other white space around it."""
    rng = random.Random(0)
    texts = [sentence(rng) for _ in range(60)]
    write = {
        "txt": lambda texts: "\n\n".join(texts),
        "jsonl": lambda texts: "".join(f'{{"text": "{t}"}}\n' for t in texts),
        "csv": lambda texts: "text\n" + "".join(f'"{t}"\n' for t in texts),
    }[suffix]
    (tmp_path / f"one.{suffix}").write_text(write(texts))
    (tmp_path / f"two.{suffix}").write_text(write([f"{t} " for t in reversed(texts)]))
    sets = tuple(f"{name}={tmp_path}/{name}.{suffix}" for name in ("one", "two"))
    config = DataConfig(mixture=sets, held_out=0.4)
    splits = open_splits(config, pairs=False)
    train, held = ({d.text.strip() for read in part.values() for d in read()} for part in splits)
    assert train
    assert held
    assert not train & held
    assert train | held == set(texts)
    # And the split is the one that the report of copies speaks of.
    for found in read_unsplit(f"{tmp_path}/one.{suffix}", False, "error", "auto", FieldNames()):
        assert is_held_out(found.group, 0.4) == (found.text.strip() in held)


def test_near_duplicates_are_those_of_a_comparison_of_all_pairs():
    pytest.importorskip("datasketch")
    rng = random.Random(0)
    texts = [" ".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=60)) for _ in range(30)]
    texts += [f"{texts[i][:-2]} q" for i in range(5)]
    found = {(p.first, p.second): p.similarity for p in near_duplicates(texts, 0.8)}
    shingles = [grams(t, 5) for t in texts]
    expected = {}
    for i in range(len(texts)):
        for j in range(i):
            similarity = len(shingles[i] & shingles[j]) / len(shingles[i] | shingles[j])
            if similarity >= 0.8:
                expected[j, i] = similarity
    assert len(expected) == 5
    assert found == expected


def test_contamination_equals_a_search_for_every_run_of_words():
    rng = random.Random(0)
    training = [" ".join(rng.choices("abc", k=30)) for _ in range(5)]
    texts = [" ".join(rng.choices("abc", k=rng.randint(2, 12))) for _ in range(20)] + ["Q!", training[0][4:24], ""]
    size = 4
    expected = []
    for text in texts:
        own, count = words(text), min(size, len(words(text)))
        runs = {tuple(own[i : i + count]) for i in range(len(own) - count + 1)} if own else set()
        there = {tuple(w[i : i + count]) for w in map(words, training) for i in range(len(w) - count + 1)}
        expected.append(len(runs & there) / len(runs) if runs else 0)
    found = contamination(texts, training, size)
    np.testing.assert_allclose(found, expected)
    assert found[-2] == 1
    assert found[-3] == 0


def test_a_planted_example_is_contaminated_and_others_are_not():
    rng = np.random.default_rng(0)
    texts = [" ".join(map(str, rng.integers(0, 10_000, 20))) for _ in range(10)]
    data = Documents("data", [*texts[:1], "something else"], ["a", "b"])
    section = documents.contaminated(data, Documents("stdlib", texts, [""] * 10))
    assert section.findings[0].value == pytest.approx(10)
    assert [row[:2] for row in section.rows[1:]] == [("100%", "1")]


def test_personal_data_is_masked_in_a_report():
    data = Documents("data", ["a.king@mail.org"], ["a"])
    (_, hidden), (_, shown) = (documents.private(data, show).rows for show in (False, True))
    assert "king" not in hidden[1]
    assert shown[1] == "a.king@mail.org"


def test_lengths_are_those_of_the_words():
    data = Documents("stdlib", ["a b c", "d", "e, f; g! h 12"], ["a", "b", "c"])
    found = {f.name: f.value for f in documents.lengths(data).findings}
    assert found["words"] == 9
    assert found["words of a document: median"] == 3
    assert found["words of a document: longest"] == 5
    counts, names = documents.histogram(data)
    assert dict(zip(names, counts, strict=True)) == {"1 word": 1, "2 to 3 words": 1, "4 to 7 words": 1}


def test_languages_are_counted_and_an_unclear_one_is_told():
    pytest.importorskip("py3langid")
    texts = ["The old king goes home and the young queen sees the river.", "Der alte König geht nach Hause zum Fluss.",
             "Le vieux roi rentre chez lui et la reine le regarde.", "x", "A river flows by the old mill."]  # fmt: skip
    found = documents.spoken(Documents("stdlib", texts, texts))
    values = {f.name: f.value for f in found.findings}
    assert values["en: documents, %"] == 40
    assert values["de: documents, %"] == values["fr: documents, %"] == values["unclear: documents, %"] == 20
    sizes = [len(words(text)) for text in texts]
    assert values["de: words, %"] == pytest.approx(100 * sizes[1] / sum(sizes))
    assert found.rows[1] == ("en", texts[0])
