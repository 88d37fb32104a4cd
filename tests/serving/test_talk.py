"""`lmjax chat`: its answers are those of the server, and its commands change, save and load the conversation."""

import json

import pytest

from lmjax.commands.chat import Talk
from lmjax.errors import DataError, FlagError
from tests.serving.http import ask

GREEDY = {"temperature": 0, "max_tokens": 3}


def talked(server, talk, *lines):
    """Says lines to a model."""
    left = iter(lines)

    def read(_):
        try:
            return next(left)
        except StopIteration:
            raise EOFError from None

    talk.run(server.models["decoder"], read)
    return talk


def test_each_message_is_answered_after_all_before_it(server, capsys):
    talk = talked(server, Talk([], dict(GREEDY)), "a", "b")
    out = capsys.readouterr().out
    for end in (1, 3):
        body = {"model": "decoder", "messages": talk.messages[:end], **GREEDY}
        wanted = ask(server, "/v1/chat/completions", body)[2]["choices"][0]["message"]["content"]
        assert talk.messages[end] == {"role": "assistant", "content": wanted}
        assert wanted in out
    assert [each["role"] for each in talk.messages] == ["user", "assistant", "user", "assistant"]
    talked(server, talk, "/undo")
    assert len(talk.messages) == 2
    before = talk.messages[-1]
    talked(server, talk, "/set temperature=2", "/set seed=4", "/again")
    assert len(talk.messages) == 2
    assert talk.messages[-1] != before, "a temperature gives another answer"
    talked(server, talk, "/system Be a king.", "/new")
    assert talk.messages == [{"role": "system", "content": "Be a king."}]


def test_a_conversation_is_saved_and_loaded(server, tmp_path, capsys):
    file = tmp_path / "talk.json"
    talk = talked(server, Talk([], dict(GREEDY)), "the river", f"/save {file}")
    other = talked(server, Talk([], {}), f"/load {file}")
    assert (other.messages, other.settings) == (talk.messages, talk.settings)
    capsys.readouterr()
    talked(server, talk, f"/save {file}", "/history", "/show", "/nonsense")
    out, err = capsys.readouterr()
    assert "File exists" in err
    assert "user: the river" in out
    assert "max_tokens=3" in out
    for content in ("[", "[]", '{"messages": 3, "settings": {}}', '{"messages": [{"role": "x"}], "settings": {}}'):
        file.write_text(content)
        with pytest.raises((DataError, FlagError), match=str(file)):
            Talk([], {}).load(str(file))
    file.write_text(json.dumps({"messages": [], "settings": {"temperature": float("nan")}}))
    with pytest.raises(FlagError, match="finite"):
        Talk([], {}).load(str(file))


@pytest.mark.parametrize("setting", ["temperature=-1", "temperature=hot", "stream=true", "nothing=1", "max_tokens=0"])
def test_a_wrong_setting_is_told_and_changes_nothing(server, setting, capsys):
    talk = talked(server, Talk([], dict(GREEDY)), f"/set {setting}")
    assert setting in capsys.readouterr().err
    assert talk.settings == GREEDY


def test_ctrl_c_stops_an_answer(server, monkeypatch):
    talk = Talk([], {"temperature": 0})
    shown = []

    def interrupted(*text, **_):
        shown.append(text)
        if len(shown) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr("builtins.print", interrupted)
    talked(server, talk, "the river")
    assert talk.messages[-1]["role"] == "assistant"
    # The fixture waits until nothing is being written: the rest of the answer was cancelled.
