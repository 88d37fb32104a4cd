"""The embedded corpus: the standard library of the running Python, which every machine has without a download.

Prose: the language reference (`pydoc_data.topics`, one document per topic) and the docstrings (one document each).
Code: the sources of the modules. Pairs: the source of a function without its docstring, and the first line of the
docstring. A text that occurs twice is included once. All documents of a module are one group, so that a docstring and
the source that contains it are in the same part of the split. Tests, bundled packages, generated tables and modules
that depend on the machine are left out.
"""

import ast
import functools
import hashlib
import importlib
import inspect
import pathlib
import platform
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterator

from lmjax.data.documents import Document
from lmjax.data.sentences import split_sentences
from lmjax.errors import DataError

_LEFT_OUT = re.compile(
    r"(^|/)(tests?|idle_test|_bundled|__pycache__|site-packages|dist-packages|lib-dynload|pydoc_data)/"
    r"|^encodings/(?!__init__|aliases|idna|punycode|utf|unicode|raw|undefined)|(^|/)_sysconfig_?data"
)
_MIN_CHARS = 40  # a shorter docstring is not used as a document
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def documents(pairs: bool) -> Iterator[Document]:
    """Yields the documents of the standard library in a fixed order: texts, or pairs.

    Raises:
        DataError: this Python is installed without the sources of its library.
    """
    yield from _documents(pairs)


@functools.lru_cache(maxsize=2)  # parsing takes seconds, and a run reads the corpus several times
def _documents(pairs: bool) -> tuple[Document, ...]:
    seen = set()
    found = []
    for document in _read(pairs):
        if document.segments not in seen:
            seen.add(document.segments)
            found.append(document)
    if not found:
        raise DataError(
            "--data: the embedded corpus needs the sources of Python's standard library, and this Python has none; "
            "give --data a path"
        )
    return tuple(found)


def fingerprint() -> str:
    """Returns a hex digest of the Python version and of all texts of the corpus."""
    digest = hashlib.blake2b(platform.python_version().encode(), digest_size=16)
    for name, text in (*_topics().items(), *_modules()):
        digest.update(hashlib.blake2b(f"{name}\0{text}".encode()).digest())
    return digest.hexdigest()


def _read(pairs: bool) -> Iterator[Document]:
    if not pairs:
        for name, text in sorted(_topics().items()):
            yield Document(split_sentences(text.strip("\n")), f"topic {name}")
    for name, source in _modules():
        group = f"module {name}"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # warnings about invalid escapes in old sources
                tree = ast.parse(source)
        except (SyntaxError, ValueError):
            continue  # a template rather than a module
        if pairs:
            yield from (Document(pair, group, pair=True) for pair in _pairs(source, tree))
        else:
            yield from (Document(split_sentences(text), group) for text in _docstrings(tree))
            yield Document(split_sentences(source), group)


def _topics() -> dict[str, str]:
    try:
        return importlib.import_module("pydoc_data.topics").topics
    except ImportError:  # some distributions leave it out
        return {}


def _modules() -> Iterator[tuple[str, str]]:
    """Yields the dotted name and the source of each module in the corpus."""
    root = pathlib.Path(sysconfig.get_path("stdlib"))
    # Only the library's own folders are entered: installed packages beside them have ten times as many files.
    tops = [path for path in root.iterdir() if path.name.removesuffix(".py") in sys.stdlib_module_names]
    for path in sorted(path for top in tops for path in (top.rglob("*.py") if top.is_dir() else [top])):
        name = path.relative_to(root).as_posix()
        if path.suffix != ".py" or _LEFT_OUT.search(name):
            continue
        try:
            source = path.read_text(encoding="utf-8")
        except (OSError, ValueError):
            continue  # unreadable, or not UTF-8
        if source.strip():
            yield name.removesuffix(".py").replace("/", "."), source


def _blocks(tree: ast.Module) -> Iterator[ast.AST]:
    """Yields the module and all statements in it that have a body, in the order of the source."""
    stack: list[ast.AST] = [tree]
    while stack:
        node = stack.pop()
        yield node
        stack += [child for child in reversed(node.body) if isinstance(getattr(child, "body", None), list)]


def _docstrings(tree: ast.Module) -> Iterator[str]:
    for node in _blocks(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, *_FUNCTIONS)):
            text = ast.get_docstring(node)
            if text and len(text) >= _MIN_CHARS:
                yield text


def _pairs(source: str, tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yields the source of each function without its docstring, dedented, and the first line of the docstring."""
    lines = source.split("\n")
    for node in _blocks(tree):
        if not isinstance(node, _FUNCTIONS) or len(node.body) < 2:
            continue
        docstring = ast.get_docstring(node)
        if not docstring or not docstring.strip():
            continue
        first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
        text = node.body[0]
        kept = lines[first - 1 : text.lineno - 1] + lines[text.end_lineno : node.end_lineno]
        yield inspect.cleandoc("\n" + "\n".join(kept)), docstring.strip().split("\n")[0].strip()
