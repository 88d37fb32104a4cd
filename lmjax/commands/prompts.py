"""Reads the prompts of a command from its flags, a file or a pipe, and writes the file of its results."""

from __future__ import annotations

import functools
import pathlib
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple

import jax
from absl import flags

from lmjax import strict_json
from lmjax.data.fields import has_fields
from lmjax.data.files import Faults, read_file, read_lines
from lmjax.errors import DataError, FlagError
from lmjax.evaluation.records import prompt, read_records
from lmjax.inference.generate.prompt_cache import PromptFiles


class Prompts(NamedTuple):
    """Prompts, texts or conversations, and their names in messages."""

    names: list[str]
    texts: list[str | list[dict[str, str]]]


def read_prompts(given: Sequence[str], path: str | None) -> Prompts | None:
    """Returns the prompts from --prompt, from the file of --prompts, or from a pipe; None without any of these.

    The whole of a pipe, without the last line feed, is one prompt.

    Raises:
        FlagError: --prompt and --prompts are both given, or a prompt is empty.
        DataError: the file or the pipe cannot be read, is empty, or has an invalid line.
    """
    if given and path:
        raise FlagError(f"--prompt and --prompts={path}: prompts come from only one of them; give one")
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
    """Returns what is wrong with the characters of a prompt; empty if all are valid."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return "bytes that are not UTF-8, or half a surrogate pair; remove them"
    return "a NUL character; remove it" if "\x00" in text else ""


def _from_file(path: str) -> Prompts:
    if not pathlib.Path(path).is_file():
        raise DataError(f"--prompts={path}: there is no such file; name a text, JSONL or CSV file")
    if has_fields(path):
        found = [(where, prompt(where, fields)) for where, fields in read_records(path)]
    else:
        found = list(read_file(path, functools.partial(_text_lines, path), Faults("error")))
    if not found:
        raise DataError(f"--prompts={path}: the file is empty; give it a prompt in each line")
    return Prompts([where for where, _ in found], [text for _, text in found])


def _text_lines(path: str, file: BinaryIO) -> Iterator[tuple[str, str]]:
    for line in read_lines(path, file):
        where = f"{path}:{line.number}"
        if line.fault or not line.text.strip():
            raise DataError(line.fault or f"{where}: an empty prompt; remove the line or give it a text")
        yield where, line.text.removesuffix("\n")


def new_file(path: str | None, flag: str = "output", kind: str = "file") -> pathlib.Path | None:
    """Returns the path that a flag names, not made yet; raises FlagError if it exists or its folder does not.

    Args:
        path: the flag's value; None or empty: it was not given.
        flag: its name.
        kind: what is written there, a file or a folder.
    """
    if not path:
        return None
    output = pathlib.Path(path)
    if output.exists() or not output.parent.is_dir():
        wrong = "exists, and is never overwritten" if output.exists() else "is in a folder that does not exist"
        raise FlagError(f"--{flag}={output}: {wrong}; name a new {kind}")
    return output


def write_records(output: pathlib.Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Writes records as JSON lines to a file that must not exist yet; of several processes, the first one writes."""
    if jax.process_index():
        return
    with output.open("x", encoding="utf-8") as file:
        for record in records:
            file.write(strict_json.dumps(record, ensure_ascii=False) + "\n")


def prompt_files(values: flags.FlagValues, one: bool) -> PromptFiles | None:
    """Returns the files of --prompt_cache and --save_prompt_cache; None: neither is given.

    Args:
        values: the flags.
        one: whether one text is written behind one prompt, to the terminal.

    Raises:
        FlagError: one is given and `one` is False.
    """
    given = {name: values[name].value for name in ("prompt_cache", "save_prompt_cache")}
    if not any(given.values()):
        return None
    if not one:
        flag = next(f"--{name}={path}" for name, path in given.items() if path)
        raise FlagError(f"{flag}: is for a decoder and one --prompt, whose text goes to the terminal; leave it out")
    return PromptFiles(*(pathlib.Path(path) if path else None for path in given.values()))
