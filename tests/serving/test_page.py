"""The page: its files load nothing from elsewhere, fit the endpoints, and it works in a browser where there is one."""

import re
import shutil
import subprocess

import pytest

from lmjax.serving import app, bodies
from tests.serving.http import ask

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def test_the_page_is_served_under_a_policy_and_loads_nothing_from_elsewhere(server):
    for path, (name, _) in app._PAGES.items():
        status, headers, content = ask(server, path)
        assert status == 200
        assert "default-src 'none'" in headers["content-security-policy"]
        assert content.decode() == (app.PAGE / name).read_text()
        assert not re.findall(r"(?:src|href)=\"(?:https?:)?//", content.decode())
        assert "innerHTML" not in content.decode(), "a text of a model is no HTML"


def test_its_sliders_and_ids_exist():
    html, script = (app.PAGE / "index.html").read_text(), (app.PAGE / "page.js").read_text()
    sliders = re.findall(r'^  \["(\w+)", ', script, re.MULTILINE)
    assert len(sliders) > 10
    assert set(sliders) <= set(bodies.Written.model_fields)
    ids = set(re.findall(r'id="([\w-]+)"', html)) | set(sliders)
    assert set(re.findall(r'\$\("([\w-]+)"\)', script)) <= ids


@pytest.mark.skipif(CHROMIUM is None, reason="no browser")
@pytest.mark.parametrize(
    ("act", "wanted"),
    [
        ('$("model").value = "decoder"; fit(); $("max_tokens").value = 9; write()', 'class="tok"'),
        ('$("model").value = "decoder"; fit(); choose("chat"); $("message").value = "a"; send()', "said assistant"),
        ('$("model").value = "encoder"; fit(); fill()', "Mask 1"),
    ],
    ids=["text", "chat", "mask"],
)
def test_it_works_in_a_browser(server, monkeypatch, tmp_path, act, wanted):
    copied = tmp_path / "page"
    shutil.copytree(app.PAGE, copied)
    with (copied / "page.js").open("a") as file:
        file.write(f"\nload().then(() => {{ {act}; }});\n")
    monkeypatch.setattr(app, "PAGE", copied)
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
               "--virtual-time-budget=8000", "--dump-dom", server.url]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert wanted in done.stdout, done.stderr[-500:]
    assert 'class="bad"' not in done.stdout
