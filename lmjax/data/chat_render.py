"""Renders conversations with a chat template, in a process of its own, because templates are untrusted.

This script reads a request as JSON from standard input and writes a list of answers as JSON to standard output. It
imports only the standard library and jinja2 (extra `chat`), so that it starts fast and runs by its path. The
environment is that of transformers (`apply_chat_template` of 5.24): jinja2's immutable sandbox with the same
extensions, filters and names.

The process has limits on memory and CPU time, and can open no file after it has read the request.
"""

import codecs
import datetime
import importlib.metadata
import json
import pprint  # noqa: F401  (this and the next module are imported by jinja2 itself, when no file can be opened any more)
import sys

import jinja2.debug
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox
import jinja2.utils
from jinja2.exceptions import SecurityError, TemplateError

MOST_CHARS = 2**20  # of a rendered conversation
_MEMORY = 2**30
_SECONDS = 60
# Noncharacters of Unicode, put around what `{% generation %}` blocks render.
_OPEN, _CLOSE = "\ufdd1", "\ufdd2"


class Generation(jinja2.ext.Extension):
    """`{% generation %}...{% endgeneration %}`: the text that the assistant writes."""

    tags = frozenset({"generation"})

    def parse(self, parser):
        """Returns the node of a block, whose text is put between marks."""
        self.environment.has_generation = True
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

    def _marked(self, caller):
        return f"{_OPEN}{caller()}{_CLOSE}"


class Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """The sandbox, in which a product or a power of extreme size is an error, and is not computed at compilation."""

    intercepted_binops = frozenset({"*", "**"})
    has_generation = False

    def call_binop(self, context, operator, left, right):
        """Returns a product or a power."""
        if isinstance(left, int) and isinstance(right, int):
            bits = (left.bit_length() * abs(right)) if operator == "**" else left.bit_length() + right.bit_length()
            if bits > 1024:
                raise OverflowError(f"a number of more than {bits} bits")
        elif operator == "*" and not isinstance(left, float) and not isinstance(right, float):
            count, items = (left, right) if isinstance(left, int) else (right, left)
            if count * len(items) > MOST_CHARS:
                raise OverflowError(f"more than {MOST_CHARS:,} characters")
        return super().call_binop(context, operator, left, right)


class Names(jinja2.utils.Namespace):
    """A namespace, in which no name begins with an underscore."""

    def __init__(*arguments, **named):
        self, *given = arguments
        values = dict(*given, **named)
        for name in values:
            Names._check(name)
        jinja2.utils.Namespace.__init__(self, values)

    def __setitem__(self, name, value):
        Names._check(name)
        jinja2.utils.Namespace.__setitem__(self, name, value)

    @staticmethod
    def _check(name):
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError(f"the name {name!r} begins with an underscore")


def environment() -> Sandbox:
    """Returns the environment of templates."""

    def raise_exception(message):
        raise TemplateError(message)

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    made = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])
    made.filters["tojson"] = tojson
    made.globals["raise_exception"] = raise_exception
    made.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    # A function, because templates need none of the attributes of the class.
    made.globals["dict"] = lambda *given, **named: dict(*given, **named)
    made.globals["namespace"] = Names
    return made


def answer(template, request, conversation) -> dict:
    """Returns the text of a conversation, and the spans of the characters that the assistant writes; or an error.

    Without `{% generation %}` blocks, an assistant's message spans what it adds to the text of the messages before it
    with the generation prompt, up to its last special token if only white space follows.
    """
    messages, prompt = conversation["messages"], conversation["prompt"]
    request = {**request, "tools": conversation.get("tools")}
    try:
        text, spans = _unmarked(_render(template, request, messages, prompt))
        if prompt or template.environment.has_generation:
            return {"text": text, "spans": spans}
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = _render(template, request, messages[:number], True)
            after = _render(template, request, messages[: number + 1], False)
            kept = after.rstrip()
            if not (after.startswith(before) and text.startswith(kept)):
                return {"error": "it renders a message otherwise once others follow, and has no generation blocks"}
            end = len(kept) if kept.endswith(tuple(request["specials"])) else len(after)
            spans.append((len(before), min(end, len(text))))
        return {"text": text, "spans": spans}
    except MemoryError:
        return {"error": "it needs too much memory"}
    except Exception as error:
        return {"error": _said(error)}


def _render(template, request, messages, prompt) -> str:
    parts, size = [], 0
    names = {"messages": messages, "tools": request["tools"], "documents": None, "add_generation_prompt": prompt}
    for part in template.generate({**request["variables"], **names}):
        parts.append(part)
        size += len(part)
        if size > MOST_CHARS:
            raise OverflowError(f"more than {MOST_CHARS:,} characters")
    return "".join(parts)


def _unmarked(marked: str) -> tuple[str, list[tuple[int, int]]]:
    """Returns a text without the marks of its spans, and the spans."""
    parts, spans, at, begun = [], [], 0, 0
    for number, piece in enumerate(marked.replace(_CLOSE, _OPEN).split(_OPEN)):
        parts.append(piece)
        begun, at = at, at + len(piece)
        if number % 2:
            spans.append((begun, at))
    return "".join(parts), spans


def _said(error: Exception) -> str:
    kind = "" if type(error) is TemplateError else f"{type(error).__name__}: "
    return f"{kind}{error}"[:300]


def _limit() -> None:
    """Limits memory and CPU time, and forbids to open files and to start processes, where the system can."""
    try:
        import resource
    except ImportError:
        return
    limits = {"RLIMIT_AS": _MEMORY, "RLIMIT_CPU": _SECONDS, "RLIMIT_NOFILE": 3, "RLIMIT_NPROC": 0, "RLIMIT_CORE": 0}
    for name, most in limits.items():
        try:
            resource.setrlimit(getattr(resource, name), (most, most))
        except (AttributeError, OSError, ValueError):
            continue


def main() -> None:
    """Answers the request on standard input."""
    version = tuple(int(part) for part in importlib.metadata.version("jinja2").split(".")[:3])
    if version < (3, 1, 6):
        sys.exit('jinja2 before 3.1.6 has known ways out of its sandbox: pip install -U "lmjax[chat]"')
    request = json.load(sys.stdin)
    made = environment()
    codecs.lookup("unicode_escape")  # imported at the first string of a template
    _limit()
    try:
        template = made.from_string(request["template"])
        answers = [answer(template, request, each) for each in request["conversations"]]
    except Exception as error:
        answers = [{"error": _said(error)}] * len(request["conversations"])
    sys.stdout.write(json.dumps(answers))


if __name__ == "__main__":
    main()
