"""Phases: long ones are reported while they run, short ones are not, and an imported library reports nothing."""

import re
import sys
import time

import pytest

from lmjax import phases
from lmjax.phases import phase, tell


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(phases, "_MOMENT", 0.05)
    monkeypatch.setattr(phases, "_TERMINAL", 0.05)
    monkeypatch.setattr(phases, "_LOG", 0.1)
    yield
    tell(False)


def test_what_takes_long_is_named_while_it_lasts(capsys):
    tell()
    with phase("compiling"):
        time.sleep(0.12)
        assert capsys.readouterr().err == "compiling ...\n"
        time.sleep(0.2)
    assert re.fullmatch(r"(compiling \.\.\. \d+ s\n)+", capsys.readouterr().err), "it lasts, and says so again"
    with phase("a moment"):
        pass
    assert capsys.readouterr().err == ""


def test_the_innermost_phase_is_told(capsys):
    tell()
    with phase("preparing"), phase("training a tokenizer"):
        time.sleep(0.12)
    assert "preparing" not in (err := capsys.readouterr().err)
    assert "training a tokenizer" in err


def test_a_terminal_gets_one_line_and_a_library_none(capsys, monkeypatch):
    with phase("compiling"):
        time.sleep(0.1)
    assert capsys.readouterr().err == ""
    tell()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with phase("compiling"):
        time.sleep(0.22)
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert err.endswith("\n")
    assert err.count("\r") >= 2


def test_an_error_ends_its_phase():
    tell()
    with pytest.raises(ValueError, match="x"), phase("compiling"):
        raise ValueError("x")
    assert not phases._running
