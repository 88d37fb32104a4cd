"""`lmjax rate`: samples two answers to each prompt, asks which one is better, and writes preferences."""

from __future__ import annotations

import itertools
import json
import pathlib
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from absl import flags

from lmjax import strict_json
from lmjax.commands.generate import configure
from lmjax.commands.generate_flags import LISTS
from lmjax.commands.models import described, named, opened, prepare
from lmjax.commands.prompts import Prompts, new_file, read_prompts, unspeakable, write_records
from lmjax.commands.rate_flags import FIELDS
from lmjax.data.fields import Fields, field_of, read_fields, text_of
from lmjax.data.files import Faults
from lmjax.data.preferences import CHOSEN, PROMPT, REJECTED, PreferenceFormat
from lmjax.errors import DataError, FlagError, SaveError
from lmjax.evaluation.records import prompt as prompt_of
from lmjax.inference.generate.config import GenerateConfig
from lmjax.inference.generate.generate import generate
from lmjax.inference.generate.requests import chatting
from lmjax.inference.loaded import LoadedModel
from lmjax.phases import phase

Prompt = str | list[dict[str, str]]
CHOICES = ("a", "b", "skip")
_NEED = "a rating needs prompt, choice (a, b or skip), and a and b or neither"


class Pair(NamedTuple):
    """A prompt and two answers."""

    prompt: Prompt
    a: str
    b: str


class Rating(NamedTuple):
    """A line of a file of ratings.

    Attributes:
        where: file and line.
        prompt: the prompt.
        choice: one of `CHOICES`.
        pair: the answers; None: they are sampled.
    """

    where: str
    prompt: Prompt
    choice: str
    pair: Pair | None


class Counts:
    """What became of the prompts, for the last line that is printed."""

    def __init__(self) -> None:
        self.written = self.skipped = self.equal = self.known = 0

    def __str__(self) -> str:
        parts = [f"{self.written:,} preference(s) written"]
        parts += [f"{self.known:,} rated before"] * bool(self.known) + [f"{self.skipped:,} skipped"] * bool(
            self.skipped
        )
        return ", ".join(parts + [f"{self.equal:,} with equal or empty answers"] * bool(self.equal))


def main(values: flags.FlagValues) -> int:
    """Returns the number of preferences, or of pairs of answers, that were written."""
    to, answers, path = (values[name].value for name in ("to", "answers", "ratings"))
    if bool(to) == bool(answers):
        raise FlagError("lmjax rate needs one of --to=FILE (preferences) and --answers=FILE (answers, rated elsewhere)")
    if answers and path:
        raise FlagError(f"--answers={answers} and --ratings={path}: answers are sampled or rated; give one of them")
    output = new_file(answers, "answers")
    ratings = _read_ratings(path) if path else None
    known = _read_preferences(pathlib.Path(to)) if to else set()
    if ratings is not None and all(each.pair for each in ratings.values()):
        if model := next((n for n in ("model", "workdir", "prompts") if values[n].value), None):
            print(f"--{model} is not needed: each rating has its answers", file=sys.stderr)
        return _write(to, known, ((each.pair, each.choice) for each in ratings.values()))
    if not values["prompts"].value:
        raise FlagError("lmjax rate needs --prompts=FILE, from which answers are sampled; or --ratings with a and b")
    if to and ratings is None and not sys.stdin.isatty():
        raise FlagError(
            "lmjax rate asks at a terminal, and there is none; give --ratings=FILE, or sample alone with --answers=FILE"
        )
    prompts = read_prompts((), values["prompts"].value)
    config = _config(values)
    prepare()
    loaded = opened(values, values[named(values, "rate")].value)
    loaded = chatting(loaded) if values["conversation"].value else loaded
    if output is not None:
        sampled = list(_sampled(loaded, prompts, config, set(), 0))
        pairs = [{PROMPT: p.prompt, "a": p.a, "b": p.b} for p in sampled if _differ(p)]
        write_records(output, pairs)
        print(f"{len(pairs):,} pair(s) of answers written to {output}, {len(sampled) - len(pairs):,} equal or empty")
        return len(pairs)
    if ratings is None:
        return _write(to, known, _asked(_sampled(loaded, prompts, config, known, 1)))
    there = {_key(text) for text in prompts.texts}
    if odd := next((r for key, r in ratings.items() if not r.pair and key not in there), None):
        raise DataError(f"{odd.where}: its prompt is not in --prompts={values['prompts'].value}, so it has no answers")
    unrated = {key for key in there if key not in ratings or ratings[key].pair}
    sampled = _sampled(loaded, prompts, config, known | unrated, 0)
    given = ((each.pair, each.choice) for each in ratings.values() if each.pair)
    return _write(to, known, itertools.chain(given, ((p, ratings[_key(p.prompt)].choice) for p in sampled)))


def _key(prompt: Prompt) -> str:
    """Returns what tells prompts apart."""
    return json.dumps(prompt, sort_keys=True)


def _config(values: flags.FlagValues) -> GenerateConfig:
    """Returns the settings of sampling: those given, those of the model's own file, and temperature 1 without any."""
    settings = {name: values[name].value for name in (*FIELDS, *LISTS) if values[name].value not in (None, [])}
    place = values[named(values, "rate")].value
    config = configure(settings, None, described(values, place).defaults)
    if config.beams is not None:
        raise FlagError(f"{place}: its own generation settings search with beams; give --temperature=1 to sample")
    if config.sampling.temperature == 0:
        if "temperature" in settings:
            raise FlagError("--temperature=0: both answers would be equal; give a temperature above 0")
        config = configure(settings | {"temperature": "1.0"}, None, described(values, place).defaults)
    return config


def _sampled(
    loaded: LoadedModel, prompts: Prompts, config: GenerateConfig, left_out: set[str], at_once: int
) -> Iterator[Pair]:
    """Yields the answers to each prompt; those to prompt i have the seeds `config.seed` + 2i and the one after it.

    Args:
        loaded: the model.
        prompts: the prompts; one that stands there twice is answered once.
        config: of sampling.
        left_out: keys of prompts that are left out.
        at_once: prompts that are answered together; 0: as many as `config.batch_size` has room for.
    """
    first = {_key(text): i for i, text in reversed(list(enumerate(prompts.texts)))}
    numbers = sorted(i for key, i in first.items() if key not in left_out)
    at_once = at_once or max(1, config.batch_size // 2)
    # Prompts that follow each other have seeds that do.
    runs = itertools.groupby(enumerate(numbers), lambda each: each[1] - each[0])
    for run in ([i for _, i in group] for _, group in runs):
        for start in range(0, len(run), at_once):
            part = run[start : start + at_once]
            texts, names = ([of[i] for i in part for _ in range(2)] for of in (prompts.texts, prompts.names))
            own = config.model_copy(update={"seed": config.seed + 2 * part[0]})
            with phase(f"answering {len(part)} prompt(s)"):
                found = [each.text for (each,) in generate(loaded, texts, own, names=names)]
            yield from map(Pair, texts[::2], found[::2], found[1::2])


def _asked(pairs: Iterator[Pair]) -> Iterator[tuple[Pair, str]]:
    """Yields the pairs with what the user chooses, until they quit."""
    for pair in pairs:
        if not _differ(pair):
            yield pair, "skip"
            continue
        print(shown(pair, shutil.get_terminal_size().columns))
        choice = ask(input)
        if choice == "quit":
            return
        yield pair, choice


def ask(read: Callable[[str], str]) -> str:
    """Returns `a`, `b`, `skip` or `quit`.

    Args:
        read: from the text that is shown before a line to the line.
    """
    while True:
        try:
            said = read("better: a, b, s(kip) or q(uit)? ").strip().lower()
        except EOFError:
            return "quit"
        for choice in (*CHOICES, "quit"):
            if said and choice.startswith(said):
                return choice


def shown(pair: Pair, width: int) -> str:
    """Returns a prompt, and below it the two answers side by side, in lines of at most `width` characters."""
    column = max(8, (width - 3) // 2)

    def lines(text: str, size: int) -> list[str]:
        return [part for line in text.expandtabs(4).splitlines() for part in textwrap.wrap(line, size, **kept) or [""]]

    kept: dict[str, Any] = {"drop_whitespace": False, "replace_whitespace": False}
    said = pair.prompt if isinstance(pair.prompt, str) else "\n".join(m["content"] for m in pair.prompt)
    left, right = (["-- " + name, *lines(text, column)] for name, text in (("a", pair.a), ("b", pair.b)))
    rows = itertools.zip_longest(left, right, fillvalue="")
    return "\n".join(["", *lines(said, max(8, width)), *(f"{a:<{column}} | {b}".rstrip() for a, b in rows)])


def _differ(pair: Pair) -> bool:
    """Returns whether two answers can be a preference: they differ, and neither is empty or holds what no text may."""
    return pair.a != pair.b and all(text.strip() and not unspeakable(text) for text in (pair.a, pair.b))


def _write(to: str, known: set[str], rated: Iterator[tuple[Pair, str]]) -> int:
    """Returns the number of preferences that are appended to a file, each as soon as it is rated."""
    counts, known = Counts(), set(known)
    try:
        with open(to, "a", encoding="utf-8") as file:
            for pair, choice in rated:
                if not _differ(pair):
                    counts.equal += 1
                elif _key(pair.prompt) in known:
                    counts.known += 1
                elif choice == "skip":
                    counts.skipped += 1
                else:
                    chosen, rejected = (pair.a, pair.b) if choice == "a" else (pair.b, pair.a)
                    record = {PROMPT: pair.prompt, CHOSEN: chosen, REJECTED: rejected}
                    file.write(strict_json.dumps(record, ensure_ascii=False) + "\n")
                    file.flush()
                    known.add(_key(pair.prompt))
                    counts.written += 1
    except OSError as e:
        raise SaveError(f"--to={to}: cannot be written ({e.strerror}); {counts}") from e
    finally:
        print(f"{to}: {counts}")
    return counts.written


def _read_ratings(path: str) -> dict[str, Rating]:
    """Returns the ratings in a file by the key of their prompt.

    Raises:
        DataError: a line is no rating, or a prompt is rated twice.
    """
    if not pathlib.Path(path).is_file():
        raise DataError(f"--ratings={path}: there is no such file; name JSONL with prompt and choice")
    found: dict[str, Rating] = {}
    for where, fields in read_fields(path, Faults("error")):
        prompt = _prompt(where, fields)
        choice = text_of(where, fields, "choice", _NEED).strip().lower()
        if choice not in CHOICES:
            raise DataError(f"{where}: 'choice' is {choice[:40]!r}; {_NEED}")
        if ("a" in fields) != ("b" in fields):
            raise DataError(f"{where}: has one of 'a' and 'b'; {_NEED}")
        pair = Pair(prompt, *(text_of(where, fields, name, _NEED) for name in "ab")) if "a" in fields else None
        if other := found.get(_key(prompt)):
            raise DataError(f"{where}: rates the same prompt as {other.where}; keep one of them")
        found[_key(prompt)] = Rating(where, prompt, choice, pair)
    if not found:
        raise DataError(f"--ratings={path}: the file is empty; give it a rating in each line")
    return found


def _prompt(where: str, fields: Fields) -> Prompt:
    """Returns the prompt of a rating or a preference, a text or a list of messages."""
    given = field_of(where, fields, PROMPT, _NEED) if PROMPT in fields else None
    return given if isinstance(given, list) else prompt_of(where, fields)


def _end_last_line(path: pathlib.Path, content: bytes) -> None:
    """Ends the last line of a file with a line feed, or removes the line if it is not whole JSON."""
    last = content.rpartition(b"\n")[-1]
    try:
        json.loads(last)
    except ValueError:
        with path.open("r+b") as file:
            file.truncate(len(content) - len(last))
    else:
        with path.open("ab") as file:
            file.write(b"\n")


def _read_preferences(path: pathlib.Path) -> set[str]:
    """Returns the keys of the prompts in a file of preferences; removes a last line that was cut by a kill.

    Raises:
        DataError: another line is no preference, or the file cannot be read.
        FlagError: the folder of the file does not exist.
    """
    if path.suffix != ".jsonl":
        raise FlagError(f"--to={path}: preferences are JSONL; name a file that ends in .jsonl")
    if not path.exists():
        if not path.parent.is_dir():
            raise FlagError(f"--to={path}: is in a folder that does not exist; make it first")
        return set()
    try:
        content = path.read_bytes()
        if content and not content.endswith(b"\n"):
            _end_last_line(path, content)
    except OSError as e:
        raise DataError(f"--to={path}: cannot be read ({e.strerror}); name another file") from e
    found, form = set(), PreferenceFormat(chat=True)
    for where, fields in read_fields(str(path), Faults("error")):
        for name in (PROMPT, CHOSEN, REJECTED):
            field_of(where, fields, name, "a preference needs prompt, chosen and rejected")
        form.checked(where, form.arranged(where, fields))
        found.add(_key(fields[PROMPT]))
    return found
