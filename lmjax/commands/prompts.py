"""The prompts of a command, from its flags, a file or a pipe, and the file of its results."""

from __future__ import annotations

import json
import pathlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from lmjax.data.files import suffix
from lmjax.errors import DataError, FlagError
from lmjax.evaluation.records import read_fields

_RECORDS = (".jsonl", ".json", ".csv", ".tsv")
_NEEDED = "a record needs a prompt, a text that is not empty"


class Prompts(NamedTuple):
    """Prompts, and what messages call each of them."""

    names: list[str]
    texts: list[str]


def read_prompts(given: Sequence[str], path: str | None) -> Prompts | None:
    """Returns the prompts of --prompt, of the file of --prompts, or of a pipe; None if there is none of these.

    A pipe holds one prompt: all of it, less the last line feed.

    Raises:
        FlagError: two of these are given, or --prompt is empty.
        DataError: the file or the pipe cannot be read, holds nothing, or has a bad line.
    """
    if given and path:
        raise FlagError(f"--prompt and --prompts={path}: prompts come from one of them; give one")
    if path:
        return _from_file(path)
    if given:
        found = Prompts([f"--prompt={text[:40]!r}" for text in given], list(given))
    elif sys.stdin is None or sys.stdin.isatty():
        return None
    else:
        try:
            found = Prompts(["standard input"], [sys.stdin.read().removesuffix("\n")])
        except UnicodeDecodeError as e:
            raise DataError(f"standard input: not UTF-8 ({e.reason}); convert it") from e
    for name, text in zip(*found, strict=True):
        if not text.strip():
            raise FlagError(f"{name}: an empty prompt; give it a text")
        if wrong := unspeakable(text):
            raise FlagError(f"{name}: {wrong}")
    return found


def unspeakable(text: str) -> str:
    """Returns what is wrong with the characters of a prompt; empty if nothing is."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return "bytes that are not UTF-8, or half a surrogate pair; remove them"
    return "a NUL character; remove it" if "\x00" in text else ""


def _from_file(path: str) -> Prompts:
    if not pathlib.Path(path).is_file():
        raise DataError(f"--prompts={path}: there is no such file; name a text, JSONL or CSV file")
    if suffix(path) in _RECORDS:
        found = [(where, fields.get("prompt")) for where, fields in read_fields(path)]
    else:
        found = list(_text_lines(path))
    for where, text in found:
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{where}: {'no prompt' if text is None else f'prompt is {text!r}'}; {_NEEDED}")
        if wrong := unspeakable(text):
            raise DataError(f"{where}: {wrong}")
    if not found:
        raise DataError(f"--prompts={path}: the file is empty; give it a prompt in each line")
    return Prompts([where for where, _ in found], [text for _, text in found])


def _text_lines(path: str) -> Iterable[tuple[str, str]]:
    content = pathlib.Path(path).read_bytes().removesuffix(b"\n")
    for number, line in enumerate(content.split(b"\n") if content else (), 1):
        try:
            yield f"{path}:{number}", line.decode("utf-8-sig" if number == 1 else "utf-8").removesuffix("\r")
        except UnicodeDecodeError as e:
            raise DataError(f"{path}:{number}: not UTF-8 (the line's byte {e.start + 1}); convert the file") from e


def new_file(path: str | None) -> pathlib.Path | None:
    """Returns the file that --output names, which is not there yet; FlagError if it is, or its folder is not."""
    if not path:
        return None
    output = pathlib.Path(path)
    if output.exists() or not output.parent.is_dir():
        wrong = "exists, and is never overwritten" if output.exists() else "is in no folder that there is"
        raise FlagError(f"--output={output}: {wrong}; name a new file")
    return output


def write_records(output: pathlib.Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Writes records as JSON lines into a file that must not be there."""
    with output.open("x", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
