"""The messages of a conversation: their roles, and the checks of a record's `messages`."""

from typing import Any, NamedTuple

from lmjax.data.fields import check_text
from lmjax.errors import DataError

SYSTEM, USER, ASSISTANT = ROLES = ("system", "user", "assistant")
# Noncharacters of Unicode that mark places in a conversation: the middle of what spells a special token, and the begin
# and end of what the assistant writes.
MARK = "\ufdd0"
RESERVED = (MARK, "\ufdd1", "\ufdd2")
_NEED = 'messages is a list of {"role": ..., "content": ...} with the roles ' + ", ".join(ROLES)


class Message(NamedTuple):
    """What one side of a conversation says."""

    role: str
    content: str


def read_messages(where: str, given: Any, *, answered: bool) -> tuple[Message, ...]:
    """Returns the messages of a record.

    Args:
        where: file and line of the record, for error messages.
        given: the value of its field `messages`.
        answered: whether the assistant must have a message, to be learned; otherwise the last message must be one that
            it can answer.

    Raises:
        DataError: the value is no list of messages, or a role or a content is missing or unknown.
    """
    if not isinstance(given, list):
        raise DataError(f"{where}: 'messages' is {str(given)[:40]!r}; {_NEED}")
    if not given:
        raise DataError(f"{where}: 'messages' is empty; remove the record")
    found = tuple(_message(f"{where}: messages[{number}]", each) for number, each in enumerate(given))
    if answered and all(message.role != ASSISTANT for message in found):
        raise DataError(f"{where}: no message of the assistant, so there is nothing to learn; remove the record")
    if not answered and found[-1].role == ASSISTANT:
        raise DataError(f"{where}: the last message is the assistant's, so there is nothing to answer; remove it")
    return found


def _message(where: str, given: Any) -> Message:
    if not isinstance(given, dict):
        raise DataError(f"{where} is {str(given)[:40]!r}; {_NEED}")
    if missing := [name for name in Message._fields if given.get(name) is None]:
        raise DataError(f"{where}: no {missing[0]!r}; {_NEED}")
    role, content = given["role"], given["content"]
    if role not in ROLES:
        raise DataError(f"{where}: the role {str(role)[:40]!r}; the roles are {', '.join(ROLES)}, and no tools")
    if others := [name for name, value in given.items() if name not in Message._fields and value is not None]:
        raise DataError(f"{where}: {others[0]!r} is not read; a message has a role and a content")
    if not isinstance(content, str):
        raise DataError(f"{where}: 'content' is {str(content)[:40]!r}, and must be a string")
    check_text(where, "content", content)
    if odd := [char for char in RESERVED if char in content]:
        raise DataError(f"{where}: 'content' holds U+{ord(odd[0]):04X}, which is no character; remove it")
    return Message(role, content)
