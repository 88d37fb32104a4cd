"""The page: its files load nothing from elsewhere, fit the endpoints, and it works in a browser where there is one."""

import re

import pytest

from lmjax.serving import app, bodies
from tests.serving.browser import CHROMIUM, Page
from tests.serving.http import ask


def test_the_page_is_served_under_a_policy_and_loads_nothing_from_elsewhere(server):
    for path, (name, _) in app.PAGES.items():
        status, headers, content = ask(server, path)
        assert status == 200
        assert "default-src 'none'" in headers["content-security-policy"]
        assert content.decode() == (app.PAGE / name).read_text()
        assert not re.findall(r"(?:src|href)=\"(?:https?:)?//", content.decode())
        assert "innerHTML" not in content.decode(), "a text of a model is no HTML"


def test_its_sliders_and_ids_exist():
    html = (app.PAGE / "index.html").read_text()
    script = "".join((app.PAGE / name).read_text() for name in ("page.js", "views.js"))
    sliders = re.findall(r'^  \["(\w+)", ', script, re.MULTILINE)
    assert len(sliders) > 10
    assert set(sliders) <= set(bodies.Written.model_fields)
    ids = set(re.findall(r'id="([\w-]+)"', html)) | set(sliders)
    assert set(re.findall(r'\$\("([\w-]+)"\)', script)) <= ids


@pytest.fixture(scope="module")
def browser(_server, tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("no browser")
    with Page(_server.url, tmp_path_factory.mktemp("profile")) as page:
        yield page


def choose(browser, model):
    browser(f'$("model").value = "{model}"; $("model").dispatchEvent(new Event("change"))')


def test_text_is_coloured_and_its_alternatives_are_shown(server, browser):
    choose(browser, "decoder")
    browser('$("prompt").value = "The young king"; $("max_tokens").value = 9; $("temperature").value = 0')
    browser('$("prompt").focus()')
    browser.press("Enter", modifiers=2)
    browser.until('$("state").textContent.includes("ended by")')
    body = {"model": "decoder", "prompt": "The young king", "max_tokens": 9, "temperature": 0}
    wanted = ask(server, "/v1/completions", body)[2]["choices"][0]["text"]
    pieces = browser('[...document.querySelectorAll("#written .tok")].map((x) => x.textContent)')
    assert len(pieces) == 9
    assert wanted.startswith("".join(piece for piece in pieces if not piece.startswith("<"))[:2])
    assert browser('new Set([...document.querySelectorAll(".tok")].map((x) => x.style.background)).size') > 1
    browser('$("written").focus()')
    browser.press("ArrowRight")
    assert browser('!$("tip").hidden && $("tip").querySelectorAll("tr").length') >= 8
    browser.press("Escape")
    assert browser('$("tip").hidden')


def test_conversations_and_stops(server, browser):
    choose(browser, "decoder")
    browser('choose("chat"); $("message").value = "a"; $("max_tokens").value = 9; send()')
    assert browser("talk.length") == 2
    assert browser('document.querySelectorAll("#talk .said.assistant .tok").length') == 9
    browser("again()")
    assert browser("talk.length") == 2
    assert browser('document.querySelectorAll("#talk .said").length') == 2
    browser('$("regex").value = "("; void write()')
    browser.until('$("state").className === "bad"')
    assert "--regex" in browser('$("state").textContent')
    browser('$("defaults").click()')


def test_masks_and_what_a_model_cannot_do_is_hidden(server, browser):
    choose(browser, "encoder")
    assert browser('$("tab-text").hidden && $("tab-chat").hidden && !$("mask").hidden')
    browser("fill()")
    assert browser('$("fillings").querySelectorAll("tr").length') == 10
    choose(browser, "plain")
    assert browser('$("tab-chat").hidden && !$("text").hidden')


def test_the_tree_of_a_beam_search_is_drawn_and_can_be_walked(server, browser):
    choose(browser, "decoder")
    browser('choose("beams"); $("beam-prompt").value = "The young king"; $("beam-count").value = 3')
    browser('$("beam-tokens").value = 5; $("beam-prompt").focus()')
    browser.press("Enter", modifiers=2)
    browser.until('$("found").children.length === 3')
    body = {"model": "decoder", "prompt": "The young king", "beams": 3, "max_tokens": 5}
    wanted = ask(server, "/beams", body)[2]
    assert browser('$("tree").querySelectorAll(".node").length') == len(wanted["nodes"])
    # Of the best text, every token is marked; from its end the arrow keys lead back, and to the next one again.
    best = [node := wanted["texts"][0]["node"]]
    while (node := wanted["nodes"][node]["parent"]) is not None:
        best.append(node)
    assert browser('$("tree").querySelectorAll(".node.on").length') == len(best)
    browser('$("tree").focus()')
    browser.press("ArrowLeft")
    assert browser("tree.at") == best[1]
    assert f"Step {len(best) - 1}:" in browser('$("node").textContent')
    browser.press("ArrowRight")
    assert browser("tree.nodes[tree.at].parent") == best[1]
    browser('$("found").querySelectorAll("button")[1].click()')
    assert browser("tree.at") == wanted["texts"][1]["node"]


@pytest.mark.parametrize("model", ["encoder", "both"])
def test_attention_is_drawn_for_each_layer_and_head(server, browser, model):
    choose(browser, model)
    browser('choose("attention"); $("looked").value = "The young king"; $("target").value = "a queen"; look()')
    body = {"model": model, "text": "The young king"} | ({"target": "a queen"} if model == "both" else {})
    shown = ask(server, "/attention", body)[2]["maps"][-1]
    assert browser('$("map").querySelectorAll("rect").length') == len(shown["queries"]) * len(shown["keys"])
    assert browser('[...$("queries").children].map((x) => x.textContent)') == shown["queries"]
    browser('$("head").value = 1; $("head").dispatchEvent(new Event("change")); read(1); $("queries").focus()')
    browser.press("ArrowRight")
    row = shown["weights"][-1][1][2]
    most = shown["keys"][row.index(max(row))]
    assert browser('$("cell").textContent') == f"{shown['queries'][2]} reads {most} with {max(row):.3f}"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_can_be_read_in_both_schemes(server, browser, scheme):
    browser.call("Emulation.setDeviceMetricsOverride", width=360, height=700, deviceScaleFactor=1, mobile=True)
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    for tab in ("mask", "attention", "beams"):
        choose(browser, "encoder" if tab == "mask" else "decoder")
        browser(f'choose("{tab}")')
        assert browser("document.documentElement.scrollWidth") <= 360
    colours = browser("[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]")
    ink, back = (sum(map(int, re.findall(r"\d+", each)[:3])) for each in colours)
    assert ink < 200 < 600 < back if scheme == "light" else back < 200 < 600 < ink
    browser.call("Emulation.clearDeviceMetricsOverride")


def test_its_code_has_complained_of_nothing(server, browser):
    expected = ("400",)  # the answer to the wrong expression above
    assert not [each for each in browser.complaints if not any(word in each for word in expected)]
