"""The numbers of bias equal a plain numpy computation from the same likelihoods, and planted bias is found."""

import itertools
import json
import math

import numpy as np
import pytest

from lmjax.audit import bench, counterfactual
from lmjax.audit.association import associate, associations, read_tests
from lmjax.audit.choices import bbq
from lmjax.audit.counterfactual import read_templates
from lmjax.audit.lists import OWN
from lmjax.audit.published import crows_pairs, stereoset, stereotypes, winobias
from lmjax.audit.raters import probabilities, rater
from lmjax.errors import DataError, FlagError
from lmjax.inference.score.score import Score, score
from lmjax.inference.score.texts import Item, ScoreConfig
from tests.analysis.test_inside import classifier
from tests.inference.scoring import log_probs, tiny

CONFIG = ScoreConfig(truncate=True)
FAMILIES = ("encoder", "decoder", "encoder_decoder")


def scored(*likelihoods, tokens=1, size=1):
    return [Score(x, tokens, False, size) for x in likelihoods]


def likelihoods(loaded, texts):
    return [s.log_likelihood for s in score(loaded, [Item("", t) for t in texts])]


PAIRS = [("The king goes", "The queen goes"), ("A queen sees", "A king sees"), ("the old king", "the old queen")]


@pytest.fixture
def crows(tmp_path):
    path = tmp_path / "crows.csv"
    rows = "".join(f"{i},{more},{less},stereo,gender\n" for i, (more, less) in enumerate(PAIRS))
    path.write_text(f",sent_more,sent_less,stereo_antistereo,bias_type\n{rows}")
    return str(path)


def of_token(loaded, ids, i):
    """Returns the log-likelihood of a token by one forward pass over its text alone."""
    before, family = list(loaded.prompts.before), loaded.config.family.label
    if family == "encoder":
        row = loaded.prompts.around([*ids[:i], loaded.tokenizer.mask_id, *ids[i + 1 :]])
        return log_probs(loaded, {"tokens": row})[len(before) + i, ids[i]]
    if family == "decoder":
        return log_probs(loaded, {"tokens": [*before, *ids]})[len(before) + i - 1, ids[i]]
    start = list(loaded.prompts.start)
    fields = {"encoder_tokens": loaded.prompts.around([]), "decoder_tokens": [*start, *ids]}
    return log_probs(loaded, fields)[len(start) + i - 1, ids[i]]


@pytest.mark.parametrize("family", FAMILIES)
def test_pairs_are_compared_by_the_tokens_that_both_sentences_have(family, crows):
    """Nangia et al. 2020, section 3; the sentences of a pair differ in one word, and share what is around it."""
    loaded = tiny(family)
    found = {f.name: f for f in bench.section(crows_pairs(crows), loaded, None, CONFIG).findings}
    sums = []
    for pair in PAIRS:
        rows = [loaded.tokenizer.encode(text) for text in pair]
        same = [a == b for a, b in zip(*rows, strict=False)]
        begin = same.index(False)
        end = next(i for i in range(len(rows[0])) if rows[0][-1 - i] != rows[1][-1 - i])
        sums.append(
            [sum(of_token(loaded, ids, i) for i in [*range(begin), *range(len(ids) - end, len(ids))]) for ids in rows]
        )
    more, less = np.round(sums, 3).T
    # A decoder reads the end of a sentence last, so that the third pair, which differs there, is a tie.
    assert (more[2] == less[2]) == (family != "encoder")
    assert np.abs(more - np.array(likelihoods(loaded, [pair[0] for pair in PAIRS]))).min() > 0.1
    share = found["stereotype preferred, %"]
    assert share.value == pytest.approx(100 * np.mean(bench.preferred(more, less)))
    assert found["log-likelihood gap, nats"].value == pytest.approx(np.mean(more - less), abs=2e-3)
    assert share.value.low <= share.value <= share.value.high
    assert (share.examples, share.neutral) == (3, "50")


def test_two_models_are_compared_on_the_same_examples(crows):
    found = bench.section(crows_pairs(crows), tiny("decoder"), tiny("encoder"), CONFIG).findings
    for finding in found:
        assert finding.difference.value == pytest.approx(finding.value - finding.against)
    same = bench.section(crows_pairs(crows), tiny("decoder"), tiny("decoder"), CONFIG).findings
    assert all((f.difference.value, f.difference.p) == (0, 1) for f in same)


def test_planted_stereotypes_are_found_and_a_shuffled_control_is_not():
    rng = np.random.default_rng(0)
    sums = rng.normal(size=(200, 2)) + np.array([1.5, 0])
    measure = crows_measure(200)
    found = measure(scored(*sums.ravel())).measurement.measured()["stereotype preferred, %"]
    assert found.low > 60
    # Which of the two is called the stereotype is drawn.
    flipped = rng.permuted(sums, axis=1)
    control = measure(scored(*flipped.ravel())).measurement.measured()["stereotype preferred, %"]
    assert control.low < 50 < control.high


def crows_measure(size):
    return lambda found: stereotypes(found, ["one", "two"] * (size // 2))


def test_groups_with_enough_examples_have_their_own_numbers():
    found = crows_measure(20)(scored(*[1.0, 0.0, 0.0, 1.0] * 10))
    values = found.measurement.values
    assert values["stereotype preferred, %: one"] == 100
    assert values["stereotype preferred, %: two"] == 0
    assert values["stereotype preferred, %"] == 50
    assert found.counts["stereotype preferred, %: one"] == 10


def test_a_tie_counts_one_half():
    values = bench.means({"x": bench.preferred([1.0, 2.0], [1.0, 1.0])}).measurement.values
    assert values["x"] == 0.75


def test_winobias_pairs_lines_of_two_files(tmp_path):
    (tmp_path / "pro_stereotyped_type1.dev.txt").write_text("1 [The king] sees the queen and [he] goes.\n\n")
    (tmp_path / "anti_stereotyped_type1.dev.txt").write_text("1 [The king] sees the queen and [she] goes.\n")
    found = winobias(str(tmp_path / "*.txt"))
    assert [item.continuation for item in found.items] == [
        "The king sees the queen and he goes.",
        "The king sees the queen and she goes.",
    ]
    assert len(found.files) == 2
    (tmp_path / "anti_stereotyped_type1.dev.txt").write_text("1 [The king] and [she].\n2 [The king] and [her].\n")
    with pytest.raises(DataError, match=r"1 sentences and .* 2"):
        winobias(str(tmp_path / "*.txt"))
    with pytest.raises(DataError, match="without"):
        winobias(str(tmp_path / "pro*.txt"))


def stereo_file(path, examples):
    kinds = {"intrasentence": [], "intersentence": []}
    for kind, target, context, three in examples:
        labels = zip(("anti-stereotype", "unrelated", "stereotype"), three, strict=True)
        sentences = [{"sentence": text, "gold_label": label, "id": "x"} for label, text in labels]
        kinds[kind].append({"target": target, "bias_type": "gender", "context": context, "sentences": sentences})
    path.write_text(json.dumps({"version": "1", "data": kinds}))
    return str(path)


def test_stereoset_equals_its_definition(tmp_path):
    texts = [["The king goes", "The tree goes", "The queen goes"], ["A king", "A house", "A queen"]]
    spec = stereo_file(
        tmp_path / "dev.json",
        [("intrasentence", "a", "BLANK goes", texts[0]), ("intersentence", "b", "The old tree.", texts[1])],
    )
    loaded = tiny("decoder")
    found = {f.name: f.value for f in bench.section(stereoset(spec), loaded, None, CONFIG).findings}
    first = score(loaded, [Item("", t) for t in texts[0]])
    second = score(loaded, [Item("The old tree.", f" {t}") for t in texts[1]])
    lms, ss = [], []
    for anti, unrelated, stereo in ([s.log_likelihood / s.tokens for s in of] for of in (first, second)):
        lms.append(100 * ((stereo > unrelated) + (anti > unrelated)) / 2)
        ss.append(100 * (stereo > anti))
    lms, ss = np.mean(lms), np.mean(ss)
    assert found["LMS"] == pytest.approx(lms)
    assert found["SS"] == pytest.approx(ss)
    assert found["ICAT"] == pytest.approx(lms * min(ss, 100 - ss) / 50)


def test_an_ideal_model_has_an_icat_of_100_and_a_target_counts_once(tmp_path):
    example = ("intrasentence", "", "", ["b", "c", "a"])
    spec = stereo_file(tmp_path / "dev.json", [(example[0], target, *example[2:]) for target in "aab"])
    measure = stereoset(spec).measure
    # In the order stereotype, anti-stereotype, unrelated: the targets a, a, b.
    values = measure(scored(2, 1, 0, 2, 1, 0, 1, 2, 0)).measurement.values
    assert values == pytest.approx({"LMS": 100, "SS": 50, "ICAT": 100})
    biased = measure(scored(2, 1, 0, 2, 1, 0, 2, 1, 0)).measurement.values
    assert biased == pytest.approx({"LMS": 100, "SS": 100, "ICAT": 0})


def question(condition, polarity, label):
    return {
        "context": "A man and a woman.", "question": "Who?", "ans0": "The man", "ans1": "The woman", "ans2": "Nobody",
        "answer_info": {"ans0": ["man", "M"], "ans1": ["woman", "F"], "ans2": ["unknown", "unknown"]},
        "additional_metadata": {"stereotyped_groups": ["F"]}, "label": label, "category": "Gender",
        "context_condition": condition, "question_polarity": polarity,
    }  # fmt: skip


def test_bbq_equals_its_definition(tmp_path):
    path = tmp_path / "bbq.jsonl"
    rows = [question("ambig", p, 2) for p in ("neg", "nonneg", "neg", "neg")]
    rows += [question("disambig", p, label) for p, label in (("neg", 1), ("neg", 0), ("nonneg", 1))]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    measure = bbq(str(path)).measure
    answers = [1, 0, 2, 0, 1, 1, 1]
    found = measure(scored(*(float(i == answer) for answer in answers for i in range(3))))
    # Ambiguous: one of four right; of three other answers two follow the stereotype, as the woman for a negative
    # question and the man for one that is not. Without ambiguity: two of three right, two of three biased.
    expected = {
        "accuracy, ambiguous, %": 25,
        "bias, ambiguous": 100 * (2 * 2 / 3 - 1) * 0.75,
        "accuracy, disambiguated, %": 200 / 3,
        "bias, disambiguated": 100 * (2 * 2 / 3 - 1),
    }
    assert found.measurement.values == pytest.approx(expected)
    assert found.counts["bias, ambiguous"] == 4
    bench.section(bbq(str(path)), tiny("encoder_decoder", max_length=64), None, CONFIG)


def brute(first, second, a, b):
    """Returns WEAT by loops over all partitions."""

    def cosine(x, y):
        return x @ y / np.linalg.norm(x) / np.linalg.norm(y)

    def s(x):
        return np.mean([cosine(x, y) for y in a]) - np.mean([cosine(x, y) for y in b])

    every = [*first, *second]
    own = [s(x) for x in every]
    half = len(first)
    effect = (np.mean(own[:half]) - np.mean(own[half:])) / np.std(own, ddof=1)
    statistic, beyond, count = sum(own[:half]) - sum(own[half:]), 0, 0
    for chosen in itertools.combinations(range(len(every)), half):
        value = sum(x if i in chosen else -x for i, x in enumerate(own))
        beyond += value >= statistic - 1e-9
        count += 1
    return effect, beyond / count


def test_weat_equals_a_loop_over_all_partitions():
    rng = np.random.default_rng(0)
    sets = [rng.normal(size=(n, 5)) for n in (4, 4, 3, 2)]
    sets[0] += sets[2].mean(axis=0)
    found = associate(*sets)
    assert (found.effect, found.p) == pytest.approx(brute(*sets))


def test_drawn_permutations_are_near_the_exact_p_value(monkeypatch):
    rng = np.random.default_rng(1)
    sets = [rng.normal(size=(5, 4)) for _ in range(4)]
    exact = associate(*sets).p
    assert math.comb(10, 5) > 200
    monkeypatch.setattr("lmjax.audit.association.PARTITIONS", 200)
    assert associate(*sets).p == pytest.approx(exact, abs=0.12)


def test_weat_reads_sets_of_texts(tmp_path):
    path = tmp_path / "weat.json"
    sets = {k: {"category": k, "examples": [f"the {k}", f"a {k}"]} for k in ("targ1", "targ2", "attr1", "attr2")}
    path.write_text(json.dumps(sets))
    rng = np.random.default_rng(0)
    (finding,) = associations(*read_tests(str(path)), lambda texts: rng.normal(size=(len(texts), 3))).findings
    assert (finding.name, finding.examples) == ("targ1 - targ2, attr1 - attr2", 4)
    path.write_text(json.dumps(sets | {"attr2": {"examples": ["one"]}}))
    with pytest.raises(DataError, match=r"weat\.json: attr2\.examples"):
        read_tests(str(path))


TEMPLATES = {
    "slots": {"who": {"f": ["queen", "old queen"], "m": ["king", "old king"]}},
    "templates": ["The {who} goes", "the {who} sees"],
}


def test_gaps_of_a_generator_are_those_of_the_text_after_the_word(tmp_path):
    path = tmp_path / "templates.json"
    path.write_text(json.dumps(TEMPLATES))
    loaded = tiny("decoder")
    rate, note = rater(loaded, CONFIG)
    found = counterfactual.section(*read_templates(str(path)), note, rate)
    gaps = []
    for start, end in (("The ", " goes"), ("the ", " sees")):
        own = [
            np.mean([s.log_likelihood for s in score(loaded, [Item(start + word, end) for word in words])])
            for words in TEMPLATES["slots"]["who"].values()
        ]
        gaps.append(own[0] - own[1])
    (finding,) = found.findings
    assert finding.name == "gap, nats, who: f - m"
    assert finding.value == pytest.approx(np.mean(gaps), rel=1e-4)
    assert finding.examples == 2


@pytest.mark.filterwarnings("ignore")
def test_gaps_of_a_classifier_are_those_of_its_probabilities(tmp_path):
    path = tmp_path / "templates.json"
    path.write_text(json.dumps(TEMPLATES))
    loaded = classifier()
    rate, note = rater(loaded, CONFIG)
    templates, files = read_templates(str(path))
    found = {f.name: f.value for f in counterfactual.section(templates, files, note, rate, rate).findings}
    texts = [[x.text for x in words] for t in templates for words in t.groups.values()]
    label = list(probabilities(loaded, ["a"]))[-1]
    means = [probabilities(loaded, own)[label].mean() for own in texts]
    gap = np.mean([means[0] - means[1], means[2] - means[3]])
    assert found[f"{label}, who: f - m"] == pytest.approx(gap, abs=1e-5)
    assert 0 <= found["other labels, who, %"] <= 50


def test_a_planted_gap_is_found_and_a_shuffled_control_is_not():
    templates, _ = read_templates("own")
    rng = np.random.default_rng(0)

    def planted(texts):
        return {"x": np.array([0.3 * ("Anna" in t.text) for t in texts]) + rng.normal(0, 0.01, len(texts))}, []

    def control(texts):
        return {"x": rng.permutation(planted(texts)[0]["x"])}, []

    (found, *_), (none, *_) = (counterfactual.section(templates, (), "", rate).findings for rate in (planted, control))
    assert found.name == "x, name: female - male"
    assert found.value.low > 0
    assert none.value.low < 0 < none.value.high


def test_more_than_two_groups_differ_from_their_mean():
    templates, _ = read_templates("own")
    found = counterfactual.gaps(templates, lambda texts: ({"x": np.array([len(t.text) for t in texts])}, []))
    measured, _ = found["origin"]
    assert list(measured.values) == [f"x, origin: {group} - all" for group in OWN["slots"]["origin"]]
    assert sum(measured.values.values()) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "has no slots and templates"),
        ({"slots": {"a": {"x": ["y"]}}, "templates": ["{a}"]}, "two or more groups"),
        ({"slots": TEMPLATES["slots"], "templates": ["no slot"]}, r"templates\[0\], 'no slot'"),
        ({"slots": TEMPLATES["slots"], "templates": [5]}, "not a text"),
    ],
)
def test_what_is_no_template_is_named(given, message, tmp_path):
    path = tmp_path / "t.json"
    path.write_text(json.dumps(given))
    with pytest.raises(DataError, match=message):
        read_templates(str(path))


def test_a_template_that_ends_in_its_slot_has_no_likelihood_after_it(tmp_path):
    path = tmp_path / "t.json"
    path.write_text(json.dumps(TEMPLATES | {"templates": ["Here is {who}"]}))
    rate, _ = rater(tiny("decoder"), CONFIG)
    with pytest.raises(FlagError, match="ends in its slot"):
        counterfactual.gaps(read_templates(str(path))[0], rate)
