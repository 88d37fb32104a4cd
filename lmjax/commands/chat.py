"""`lmjax chat`: a conversation with a model at a terminal, written by the engine of `lmjax serve`."""

from __future__ import annotations

import json
import pathlib
import queue
import sys
import time
from collections.abc import Callable
from typing import Any

from absl import flags
from pydantic import ValidationError

from lmjax import strict_json
from lmjax.commands.chat_flags import SETTINGS
from lmjax.commands.models import named, opened, prepare
from lmjax.commands.prompts import unspeakable
from lmjax.commands.repl import history, typed
from lmjax.data.messages import ASSISTANT, SYSTEM, USER
from lmjax.errors import DataError, FlagError, UserError
from lmjax.paths import expanded, read_regular
from lmjax.phases import phase
from lmjax.serving.bodies import ChatBody
from lmjax.serving.config import EngineConfig
from lmjax.serving.engine import Engine
from lmjax.serving.errors import ApiError
from lmjax.serving.served import Served
from lmjax.serving.ticket import Ended, Failed

HELP = """/system TEXT     begins a new conversation, in which the model is told this first
/new             begins a new conversation, with the same system message
/again           another answer to the last message
/undo            takes back the last message and its answer
/history         shows the conversation
/set NAME=VALUE  changes a setting, such as /set temperature=0.7; /set temperature=none takes it back
/show            lists what is set
/save FILE       writes the conversation and the settings to a new file
/load FILE       goes on with a conversation of a file
/quit            leaves, as Ctrl-D does; Ctrl-C stops an answer"""


def main(values: flags.FlagValues) -> None:
    """Talks until the input ends."""
    place = values[named(values, "chat")].value
    given = {name: values[name].value for name in SETTINGS if values[name].value is not None}
    messages = [{"role": SYSTEM, "content": values["system"].value}] if values["system"].value else []
    talk = Talk(messages, {})
    for name, value in given.items():
        talk.set(name, value, flag=True)
    if values["load"].value:
        talk.load(values["load"].value)
    prepare()
    loaded = opened(values, place)
    config = EngineConfig(rows=1, max_length=values["max_length"].value, beams=0)
    served = Served(place, Engine(loaded, config), loaded)
    if not served.engine.writes or (served.chat is None and not loaded.config.family.paired):
        raise FlagError(f"{place}: this {loaded.config.family.label} has no chat template; try lmjax generate")
    with phase("compiling"):
        served.engine.start()
    try:
        with history():
            talk.run(served)
    finally:
        served.engine.close()


class Talk:
    """A conversation and its settings.

    Attributes:
        messages: with role and content.
        settings: fields of a body of /v1/chat/completions.
    """

    def __init__(self, messages: list[dict[str, str]], settings: dict[str, Any]):
        self.messages, self.settings = messages, settings
        self._answers = 0

    def run(self, served: Served, read: Callable[[str], str] = input) -> None:
        """Answers messages until the input ends.

        Args:
            served: the model.
            read: from the text that is shown before a line to the line.
        """
        print(HELP, file=sys.stderr)
        for line in map(str.strip, typed(read)):
            if line in ("/quit", "/q"):
                return
            try:
                if line.startswith("/"):
                    self._command(line, served)
                elif line:
                    if wrong := unspeakable(line):
                        raise FlagError(f"the message: {wrong}")
                    self._say(line, served)
            except (UserError, ApiError) as e:
                print(f"lmjax: {e}", file=sys.stderr)

    def set(self, name: str, value: str, *, flag: bool = False) -> None:
        """Changes a setting; raises FlagError for one that does not exist or cannot have this value."""
        shown = f"--{name}={value}" if flag else f"/set {name}={value}"
        if name not in ChatBody.model_fields or name in ("model", "user", "messages", "stream", "stream_options", "n"):
            raise FlagError(f"{shown}: no such setting; there are {', '.join(SETTINGS)}")
        wanted = {key: old for key, old in self.settings.items() if key != name}
        if value != "none":
            try:
                wanted[name] = json.loads(value)
            except (ValueError, RecursionError):
                wanted[name] = value
        _body([{"role": USER, "content": "-"}], wanted, shown)
        self.settings = wanted

    def load(self, place: str) -> None:
        """Goes on with the conversation of a file; raises DataError if it holds none."""
        try:
            found = json.loads(read_regular(expanded(place)))
        except OSError as e:
            raise DataError(f"{place}: cannot be read ({e.strerror}); name a file that /save has written") from e
        except (ValueError, RecursionError) as e:
            raise DataError(f"{place}: not JSON; name a file that /save has written") from e
        if not isinstance(found, dict) or found.keys() != {"messages", "settings"}:
            raise DataError(f"{place}: has not 'messages' and 'settings'; name a file that /save has written")
        messages, settings = found["messages"], found["settings"]
        if not isinstance(settings, dict) or not isinstance(messages, list):
            raise DataError(f"{place}: 'messages' must be a list and 'settings' an object; /save writes them so")
        # Checked as the body that it becomes, in which a conversation has a message at least.
        _body(messages or [{"role": USER, "content": "-"}], settings, place)
        self.messages, self.settings = messages, settings

    def save(self, place: str) -> None:
        """Writes the conversation to a new file; raises FlagError if it exists or cannot be written."""
        path = pathlib.Path(expanded(place))
        try:
            with path.open("x", encoding="utf-8") as file:
                values = {"messages": self.messages, "settings": self.settings}
                file.write(strict_json.dumps(values, ensure_ascii=False, indent=1) + "\n")
        except OSError as e:
            raise FlagError(f"/save {place}: {e.strerror}; name a new file in a folder that exists") from e

    def _command(self, line: str, served: Served) -> None:
        name, _, rest = line[1:].partition(" ")
        rest = rest.strip()
        system = [message for message in self.messages[:1] if message["role"] == SYSTEM]
        if name == "new":
            self.messages = system
        elif name == "system":
            self.messages = [{"role": SYSTEM, "content": rest}] if rest else []
        elif name in ("again", "undo"):
            last = next((i for i in range(len(self.messages) - 1, -1, -1) if self.messages[i]["role"] == USER), None)
            if last is None:
                raise FlagError(f"/{name}: nothing was said yet")
            asked, self.messages = self.messages[last]["content"], self.messages[:last]
            if name == "again":
                self._say(asked, served)
        elif name == "history":
            print("\n".join(f"{each['role']}: {each['content']}" for each in self.messages) or "nothing was said yet")
        elif name == "set" and "=" in rest:
            key, _, value = rest.partition("=")
            self.set(key.strip(), value.strip())
        elif name == "show":
            print("\n".join(f"{key}={value}" for key, value in sorted(self.settings.items())) or "nothing is set")
        elif name in ("save", "load") and rest:
            (self.save if name == "save" else self.load)(rest)
        else:
            print(HELP, file=sys.stderr)

    def _say(self, text: str, served: Served) -> None:
        """Prints the answer to a message as it is written; one that was stopped stays as far as it came."""
        asked = [*self.messages, {"role": USER, "content": text}]
        settings = dict(self.settings)
        if "seed" in settings:
            settings["seed"] += self._answers
        body = _body(asked, settings, "the message")
        ids, loaded = served.conversation(body.messages, body.tools)
        events: queue.Queue = queue.Queue()
        start = time.perf_counter()
        (ticket,) = served.tickets([ids], loaded, body, lambda _, event: events.put(event), whole=True)
        served.engine.submit([ticket])
        said, tokens = "", 0
        try:
            while not isinstance(event := events.get(), Ended | Failed):
                print(event.text, end="", flush=True)
                said, tokens = said + event.text, tokens + 1
            if isinstance(event, Failed):
                raise event.error
            print(event.rest, end="")
            said += event.rest
        except KeyboardInterrupt:
            ticket.cancel()
        print()
        seconds = time.perf_counter() - start
        print(f"{tokens} tokens in {seconds:.2f} s, {tokens / seconds:.1f} a second", file=sys.stderr)
        self._answers += 1
        self.messages = [*asked, {"role": ASSISTANT, "content": said}]


def _body(messages: list[Any], settings: dict[str, Any], name: str) -> ChatBody:
    """Returns a conversation as a body; raises FlagError, with `name`, for what is none."""
    try:
        return ChatBody.model_validate_json(json.dumps({**settings, "messages": messages}))
    except ValidationError as e:
        first = e.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise FlagError(f"{name}: {place}: {first['msg'][:1].lower()}{first['msg'][1:]}") from e
