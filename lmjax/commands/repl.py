"""A conversation with a model at a terminal: each line is a prompt, and settings can be changed between prompts."""

from __future__ import annotations

import contextlib
import os
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from lmjax.commands.conversation import CHAT_HELP, Conversation
from lmjax.commands.prompts import unspeakable
from lmjax.errors import FlagError, UserError

HELP = """:set temperature=0.8  changes a flag of this command; :set temperature=none takes it back
:show                 lists what is set
:quit                 leaves, as Ctrl-D does; Ctrl-C stops a text"""


def typed(read: Callable[[str], str] = input) -> Iterator[str]:
    """Yields the lines of a terminal until the input ends; Ctrl-C drops the line that is being typed.

    Args:
        read: from the text that is shown before a line to the line.
    """
    while True:
        try:
            line = read("> ")
        except KeyboardInterrupt:
            print()
            continue
        except EOFError:
            print()
            return
        yield line


class Repl:
    """Reads prompts and prints the text for each of them.

    Attributes:
        settings: the current settings, as text by flag.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        prepare: Callable[[Mapping[str, Any]], Callable[[str, int], Any]],
        conversation: Conversation | None = None,
    ):
        """Prepares a conversation.

        Args:
            settings: the flags that were given.
            prepare: from settings to a function that prints the text for a prompt, given the prompt and the number of
                prompts before it; raises UserError for invalid settings.
            conversation: the messages so far, which its own commands change; None: each prompt stands alone.
        """
        self._count = 0
        self._commands = conversation.commands() if conversation else {}
        self._help = f"{CHAT_HELP}\n{HELP}" if conversation else HELP
        self.settings = dict(settings)
        self._prepare = prepare
        self._write = prepare(self.settings)

    def run(self, read: Callable[[str], str] = input) -> None:
        """Answers prompts until the input ends.

        Args:
            read: from the text that is shown before a line to the line.
        """
        print(self._help, file=sys.stderr)
        for line in typed(read):
            if line.strip() in (":quit", ":q"):
                return
            if not line.strip():
                continue
            try:
                self._command(line.strip()) if line.startswith(":") else self._answer(line)
            except UserError as e:
                print(f"lmjax: {e}", file=sys.stderr)
            except KeyboardInterrupt:
                print()

    def _answer(self, prompt: str) -> None:
        if wrong := unspeakable(prompt):
            raise FlagError(f"the prompt: {wrong}")
        self._count += 1
        self._write(prompt, self._count - 1)

    def _command(self, line: str) -> None:
        name, _, rest = line[1:].partition(" ")
        if name in self._commands:
            self._commands[name](rest.strip())
        elif name == "show":
            print("\n".join(f"{key}={value}" for key, value in sorted(self.settings.items())) or "nothing is set")
        elif name == "set" and "=" in rest:
            key, _, value = rest.partition("=")
            wanted = {k: v for k, v in self.settings.items() if k != key.strip()}
            if value.strip() != "none":
                wanted[key.strip()] = value.strip()
            # Invalid settings raise here, and leave the old ones in place.
            self._write = self._prepare(wanted)
            self.settings = wanted
        else:
            print(self._help, file=sys.stderr)


@contextlib.contextmanager
def history() -> Iterator[None]:
    """Lets the arrow keys recall the lines of earlier conversations, where Python has readline."""
    try:
        import readline
    except ImportError:
        yield
        return
    state = os.environ.get("XDG_STATE_HOME") or pathlib.Path.home() / ".local" / "state"
    path = pathlib.Path(state) / "lmjax" / "history"
    with contextlib.suppress(OSError):
        readline.read_history_file(path)
    readline.set_history_length(1000)
    try:
        yield
    finally:
        # If the folder cannot be written to, the history is not saved.
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)
            readline.write_history_file(path)
