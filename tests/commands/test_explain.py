"""lmjax explain writes one page that loads nothing, and names what the model says and why."""

import base64
import html.parser
import json
import re

import numpy as np
import pytest

from lmjax import cli
from lmjax.analysis.attribution import METHODS, AttributionConfig, Replaced, attribute
from lmjax.analysis.case import Case, Push
from lmjax.analysis.faithfulness import SHARES, chance, judge, randomised, ranked
from lmjax.analysis.page import Part, bars, coloured_text, grid, maps, page, table
from lmjax.analysis.studies import STUDIES
from lmjax.analysis.subject import decision, likeness, masked_token, next_token, sentence
from lmjax.analysis.views import VIEWS, view
from lmjax.commands.explain_flags import define
from lmjax.errors import FlagError
from tests.analysis.test_inside import classifier
from tests.inference.scoring import tiny

TEXT = "The old king goes"


class Tags(html.parser.HTMLParser):
    """Collects the tags of a page that are not closed in order, and the addresses in it."""

    VOID = ("meta",)

    def __init__(self):
        super().__init__()
        self.open, self.wrong, self.addresses = [], [], []

    def handle_starttag(self, tag, attrs):
        self.addresses += [value for name, value in attrs if name in ("src", "href", "srcset")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.addresses += [value for name, value in attrs if name in ("src", "href", "srcset")]

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


def check(text):
    """Asserts that a page is whole and loads nothing."""
    tags = Tags()
    tags.feed(text)
    assert not tags.wrong
    assert not tags.open
    assert not tags.addresses
    assert "http" not in text
    assert "url(" not in text
    assert "@import" not in text


def test_a_page_is_written_and_the_same_is_told(folder, tmp_path, capsys):
    path = tmp_path / "page.html"
    parts = cli.run(
        ["explain", f"--model={folder}", "--text=The old king", "--method=occlusion,attention,lens", f"--output={path}"]
    )
    out = capsys.readouterr().out
    assert [part.title for part in parts] == ["occlusion", "attention", "logit lens"]
    assert re.search(r"^probability: 0\.\d+$", out, re.MULTILINE)
    assert f"written to {path}" in out
    text = path.read_text()
    check(text)
    assert "prefers-color-scheme:dark" in text
    assert "width=device-width" in text
    with pytest.raises(FlagError, match="never overwritten"):
        cli.run(["explain", f"--model={folder}", "--text=The old king", f"--output={path}"])


def test_patching_tells_two_prompts_apart_by_their_answers(folder, capsys):
    given = ["explain", f"--model={folder}", "--text=The old king", "--corrupted=The old tree", "--output=-"]
    (part,) = cli.run([*given, "--token= sees", "--against= goes"])
    assert part.title == "activation patching"
    assert "explained: ▁sees against ▁goes" in capsys.readouterr().out
    with pytest.raises(FlagError, match="with as many tokens"):
        cli.run([*given[:3], "--corrupted=The old tree sees the river", "--output=-"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "needs --text=TEXT"),
        (["--text= "], "--text: an empty text"),
        (["--text=a", "--method=patching"], "needs --corrupted=TEXT"),
        (["--text=a", "--label=good"], "are for a classifier"),
        (["--text=a", "--question=b"], "--question: this model answers no questions"),
        (["--text=a", "--method=magic"], "no method 'magic'"),
        (["--text=a", "--target=b", "--corrupted=c"], "leave out --target"),
    ],
)
def test_what_does_not_fit_is_refused(flags, message, folder):
    with pytest.raises(FlagError, match=message):
        cli.run(["explain", f"--model={folder}", *flags, "--output=-"])


CASES = {
    "decoder": lambda: [next_token(tiny("decoder", num_layers=2), TEXT)],
    "encoder": lambda: [masked_token(tiny("encoder"), "The [MASK] goes")],
    "classifier": lambda: [decision(classifier(), {"text": TEXT})],
    "likeness": lambda: [likeness(tiny("encoder"), TEXT, "A queen")],
    "encoder_decoder": lambda: sentence(tiny("encoder_decoder"), TEXT, max_new_tokens=3),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore")
def test_each_method_has_a_part_for_each_family_or_says_why_not(name):
    pytest.importorskip("sklearn")
    subjects = CASES[name]()
    loaded = subjects[0].loaded
    paired = loaded.config.family.paired
    push = Push("encoder/layer_0" if paired else "layer_0", np.ones(16), (0.0, 2.0), TEXT * (name == "decoder"), 2)
    case = Case(loaded, subjects[0].fields, subjects, AttributionConfig(samples=20), push=push)
    # Patching needs another text, and a tuned lens needs texts to be trained on.
    none = {"patching", "tuned_lens"} | (set() if name in ("decoder", "encoder_decoder") else {"direct"})
    parts = []
    for method in [*VIEWS, *(each for each in METHODS if each != "shap")]:
        if method in none:
            with pytest.raises(FlagError):
                view(method, case)
        else:
            parts.append(view(method, case))
    check(page("A <title>", [("model", "x & y")], parts, "lmjax explain --text='<b>'"))


def test_a_model_that_predicts_nothing_still_shows_its_attention():
    loaded = tiny("encoder")
    case = Case(loaded, loaded.rows([TEXT]), (), AttributionConfig())
    assert view("rollout", case).body
    with pytest.raises(FlagError, match="predicts nothing for this text"):
        view("integrated", case)


def test_maps_hold_the_weights_and_a_text_cannot_end_the_script():
    weights = np.random.default_rng(0).random((2, 3, 2, 2)).astype(np.float32)
    found = maps(weights, ["</script><b>", "b"], ["c", "▁d"])
    blob = json.loads(re.search(r"<script type=\"application/json\">(.*?)</script>", found, re.DOTALL)[1])
    assert blob["rows"] == ["</script><b>", "b"]
    assert blob["cols"] == ["c", "d"]
    numbers = np.frombuffer(base64.b64decode(blob["data"]), np.uint8).reshape(weights.shape)
    np.testing.assert_allclose(numbers / 255 * blob["most"], weights, atol=blob["most"] / 500)
    assert blob["names"][blob["first"]] == "layer 1, head 0"


def test_colours_follow_sign_and_size():
    text = coloured_text(["▁a", "b", "<c>"], [1.0, -0.5, 0.0], [False, False, True])
    assert "rgba(var(--up),0.750)" in text
    assert "rgba(var(--down),0.375)" in text
    assert "&lt;c&gt;" in text
    cells = grid(np.array([[0.5, np.nan]]), ["layer 0"], ["x", "y"])
    assert cells.count("<td") == 2
    assert cells.count("<td></td>") == 1


def test_the_best_tokens_of_an_oracle_are_more_comprehensive_than_random_ones():
    subject = decision(classifier(), {"text": "The old king goes under the river"})
    scores = attribute(subject, "occlusion").scores
    own = judge(subject, scores)
    rows = Replaced(subject, AttributionConfig())
    order = np.argsort(-scores[subject.free], kind="stable")
    shares = []
    for share in SHARES:
        there = np.ones((1, len(order)), bool)
        there[0, order[: max(1, int(np.ceil(share * len(order))))]] = False
        shares.append(subject.probability - 1 / (1 + np.exp(-rows(there)[0])))
    assert own.comprehensiveness == pytest.approx(np.mean(shares), abs=1e-5)
    assert own.deletion[0] == pytest.approx(own.insertion[-1], abs=1e-5)
    assert own.deletion[-1] == pytest.approx(own.insertion[0], abs=1e-5)
    random = chance(subject, orders=10)["comprehensiveness"]
    assert random.low <= random.mean <= random.high
    assert own.comprehensiveness > random.mean


def test_methods_are_ranked_by_their_means_over_texts():
    subjects = [decision(classifier(), {"text": text}) for text in (TEXT, "A queen sees the river")]
    found = ranked(subjects, ["occlusion", "random"]).measured(resamples=50)
    expected = [judge(each, attribute(each, "occlusion").scores).comprehensiveness for each in subjects]
    assert found["occlusion comprehensiveness"] == pytest.approx(np.mean(expected))
    assert found["occlusion comprehensiveness"].low <= found["occlusion comprehensiveness"]
    assert set(found) == {f"{m} {x}" for m in ("occlusion", "random") for x in ("comprehensiveness", "sufficiency")}


def test_shuffled_weights_change_an_attribution_and_not_random_scores():
    subject = decision(classifier(), {"text": "The old king goes under the river"})
    found = dict(randomised(subject, "integrated"))
    assert list(found) == ["(the head)", "to layer 0", "to the inputs"]
    assert found["to the inputs"] < 0.9
    np.testing.assert_allclose(list(dict(randomised(subject, "random")).values()), 1.0)


def test_the_flag_lists_every_method():
    assert all(method in define()["method"].help for method in (*VIEWS, *METHODS, *STUDIES))


def test_a_page_is_for_readers_of_words_and_of_numbers():
    found = page("x", [("explained", "▁the against ▁a")], [Part("p", "what '▁of' reads, ▁", "")], "lmjax")
    assert "<b>the against a</b>" in found
    assert "&#x27;of&#x27; reads, ▁" in found
    rows = [("name", "text", "interval"), ("a", "a text of some words", "+0.1 (-0.2 to 0.3; p 0.5)"), ("b", "", "1")]
    assert re.findall(r"<td( class=\"words\")?>", table(rows)) == ["", ' class="words"', ""] * 2
    widths = [float(x) for x in re.findall(r"width=\"([\d.]+)\" height", bars([-1.0, -4.0], ["a", "b"]))]
    assert widths == [100, 400]
