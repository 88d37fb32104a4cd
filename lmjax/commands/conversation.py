"""What was said so far in a conversation at a terminal, and the commands that change it."""

from __future__ import annotations

from collections.abc import Callable

from lmjax.data.messages import ASSISTANT, SYSTEM, USER

CHAT_HELP = """:system TEXT          begins a new conversation, in which the model is told this first
:new                  begins a new conversation, with the same system message"""


class Conversation:
    """The messages so far.

    Attributes:
        messages: with role and content.
    """

    def __init__(self):
        self.messages: list[dict[str, str]] = []

    def asked(self, text: str) -> list[dict[str, str]]:
        """Returns the messages so far, and one more of the user."""
        return [*self.messages, {"role": USER, "content": text}]

    def answered(self, text: str, answer: str) -> None:
        """Appends a message of the user and its answer."""
        self.messages = [*self.asked(text), {"role": ASSISTANT, "content": answer}]

    def commands(self) -> dict[str, Callable[[str], None]]:
        """Returns the commands by name, each a function of what follows its name."""
        return {"new": lambda rest: self._begin(), "system": self._begin}

    def _begin(self, system: str = "") -> None:
        first = [message for message in self.messages[:1] if message["role"] == SYSTEM]
        self.messages = [{"role": SYSTEM, "content": system}] if system else first
