"""`lmjax generate`: continues or answers prompts with a trained model, or fills in masks with an encoder."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import pathlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import flags
from pydantic import ValidationError

from lmjax.commands.conversation import Conversation
from lmjax.commands.filtering import Filter, filter_of, filtered
from lmjax.commands.generate_flags import BEAMS, FIELDS, LISTS
from lmjax.commands.models import draft_of, in_processes, named, opened, prepare, random_of
from lmjax.commands.prompts import Prompts, new_file, prompt_files, read_prompts, write_records
from lmjax.commands.repl import Repl, history
from lmjax.commands.steering import steered, steering_sides
from lmjax.data.chat import MESSAGES
from lmjax.errors import FlagError
from lmjax.inference.defaults import GenerationDefaults, merged
from lmjax.inference.generate.fill_mask import Filling, fill_mask, mask_text
from lmjax.inference.generate.generate import GenerateConfig, Generation, stream
from lmjax.inference.generate.prompt_cache import PromptFiles
from lmjax.inference.generate.requests import chatting
from lmjax.inference.loaded import LoadedModel
from lmjax.inference.texts import Text, is_conversation
from lmjax.model.presets import PRESETS
from lmjax.nearest import nearest
from lmjax.paths import expanded, read_regular
from lmjax.phases import phase
from lmjax.runs.pretrained import open_pretrained

# Configs nested in GenerateConfig.
_PARTS = ("sampling", "processors", "beams")
# The only settings of these for an encoder, which fills masks.
_OF_MASKS = ("top_k",)
# Characters of a prompt that are shown above its text.
_SHOWN = 60


@in_processes
def main(values: flags.FlagValues) -> list[list[Generation]] | list[list[list[Filling]]] | None:
    """Returns the texts for each prompt, or the fillings of its masks; None after a conversation."""
    settings = {name: values[name].value for name in (*FIELDS, *LISTS) if values[name].value not in (None, [])}
    place, encoder, defaults = _place(values)
    sides = steering_sides(values)
    output = new_file(values["output"].value)
    if encoder:
        given = (*settings, "draft", "conversation", "filter")
        if surplus := [name for name in given if name not in _OF_MASKS and values[name].value]:
            raise FlagError(
                f"--{surplus[0]}: {place} is an encoder, which fills masks and writes no text; leave it out"
            )
        top_k = _integer("top_k", settings.get("top_k", "5"))
    else:
        config = configure(settings, values["draft"].value, defaults)
        _say(config, defaults)
    prompts = read_prompts(values["prompt"].value, values["prompts"].value)
    if encoder and prompts and (odd := next((n for n, t in zip(*prompts, strict=True) if is_conversation(t)), None)):
        raise FlagError(f"{odd}: a conversation, and {place} is an encoder, which fills masks; give texts")
    if prompts is None and output:
        raise FlagError(f"--output={output}: a conversation is written to the terminal; give --prompts=FILE")
    prepare()
    kept = filter_of(values)
    if kept is not None:
        kept.check(config)
    one = bool(not encoder and prompts and len(prompts.texts) == 1 and not output and kept is None and not config.beams)
    files = prompt_files(values, one)
    if values["preset"].value:
        loaded = random_of(values, place, _integer("seed", values["seed"].value or "0"))
    else:
        several = bool(not encoder and (values["draft"].value or config.beams or (prompts and len(prompts.texts) > 1)))
        loaded = opened(values, place, several_rows=several)
    loaded = steered(values, sides, loaded)
    if encoder:
        return _fill(loaded, prompts, top_k, output)
    loaded = chatting(loaded) if values["conversation"].value else loaded
    draft = draft_of(values)
    if prompts is None:
        said = Conversation() if loaded.prompts.chat else None
        with history():
            Repl(settings, functools.partial(_prepared, loaded, draft, said, kept), said).run()
        return None
    return _write(loaded, draft, prompts, config, output, kept, files)


def _place(values: flags.FlagValues) -> tuple[str, bool, GenerationDefaults]:
    """Returns where the model is, whether it only fills masks, and its generation defaults; reads only its config."""
    flag = named(values, "generate", ("model", "workdir", "preset"))
    place, is_preset = values[flag].value, flag == "preset"
    if is_preset != bool(values["tokenizer"].value):
        raise FlagError(
            f"--preset={place}: needs --tokenizer=PATH, because a preset has none"
            if is_preset
            else f"--tokenizer={values['tokenizer'].value}: {place} has its own; leave it out"
        )
    if is_preset and values["step"].value is not None:
        raise FlagError(f"--step={values['step'].value}: a preset has no checkpoints; leave it out")
    accepted = values["accept_fields"].value
    if is_preset and accepted:
        raise FlagError(f"--accept_fields={accepted[0]}: a preset has no config.json; leave it out")
    if is_preset:
        return place, not PRESETS[place].family.causal, GenerationDefaults()
    found = open_pretrained(place, values["step"].value, accepted)
    return place, not (found.config.family.causal or found.unmasks), found.defaults


def _integer(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError as e:
        raise FlagError(f"--{name}={text}: the value must be an integer") from e


def _say(config: GenerateConfig, defaults: GenerationDefaults) -> None:
    """Prints which settings come from the model's own file, and which of that file's are not supported."""
    used = config.model_dump()
    parts = ((used, defaults.whole), *((used[name] or {}, getattr(defaults, name)) for name in _PARTS))
    shown = [f"{name}={value}" for there, own in parts for name, value in own.items() if there.get(name) == value]
    if shown:
        print(f"{defaults.source}: {', '.join(shown)} (flags win)", file=sys.stderr)
    if defaults.ignored:
        said = ", ".join(f"{name}={value!r}"[:60] for name, value in defaults.ignored.items())
        print(f"WARNING: {defaults.source}: {said}: lmjax has no counterpart, and writes without", file=sys.stderr)


def configure(
    settings: Mapping[str, Any], draft: str | None = None, defaults: GenerationDefaults | None = None
) -> GenerateConfig:
    """Returns the generation config: the given flags, and for the others the settings of the model's own file.

    Args:
        settings: values by flag, as text.
        draft: the name of the draft model, if there is one.
        defaults: the settings of the model's own file.

    Raises:
        FlagError: an unknown flag, or an invalid value.
    """
    if unknown := [name for name in settings if name not in (*FIELDS, *LISTS)]:
        hint = nearest(unknown[0], (*FIELDS, *LISTS)) or f"there are {', '.join((*FIELDS, *LISTS))}"
        raise FlagError(f"{unknown[0]}: no such setting; {hint}")
    if draft and "beams" in settings:
        raise FlagError(f"--beams={settings['beams']} and --draft={draft}: beam search uses no draft; leave one out")
    searches = "beams" in settings or bool(defaults and defaults.searches)
    lone = [name for name in BEAMS if name in settings and not searches]
    if lone:
        raise FlagError(f"--{lone[0]}={settings[lone[0]]}: is for beam search; give --beams=N too, or leave it out")
    values: dict[str, Any] = {}
    for name, value in settings.items():
        *parents, field = (FIELDS | LISTS)[name].split(".")
        if name == "json_schema":
            value = _schema_text(value)
        if name in LISTS and isinstance(value, str):
            value = (value,)
        functools.reduce(lambda at, parent: at.setdefault(parent, {}), parents, values)[field] = value
    try:
        return GenerateConfig.model_validate(merged(values, defaults or GenerationDefaults(), drafted=bool(draft)))
    except ValidationError as e:
        raise _explained(e) from e


def _schema_text(value: str) -> str:
    """Returns a schema as JSON, given as JSON or as the name of a file."""
    if value.lstrip()[:1] in ("{", "["):
        return value
    try:
        return read_regular(expanded(value)).decode()
    except (OSError, ValueError) as e:
        reason = getattr(e, "strerror", None) or "not UTF-8"
        raise FlagError(
            f"--json_schema={value[:80]}: cannot be read ({reason}); name a file, or give an object as JSON"
        ) from e


def _explained(error: ValidationError) -> FlagError:
    """Returns an error about the first invalid field of a config, with the name of its flag."""
    first = error.errors()[0]
    message = first["msg"].removeprefix("Value error, ")
    # pydantic appends the member of a union, or the number of a list's item, to the field's name.
    path = ".".join(str(part) for part in first["loc"])
    flag = next((n for n, p in (FIELDS | LISTS).items() if path == p or path.startswith(f"{p}.")), None)
    if flag is None:
        return FlagError(f"--{message}")
    return FlagError(f"--{flag}={first['input']}: {message[0].lower()}{message[1:]}")


def _fill(
    loaded: LoadedModel, prompts: Prompts | None, top_k: int, output: pathlib.Path | None
) -> list[list[list[Filling]]] | None:
    """Returns an encoder's fillings for the masks of each prompt, and prints or saves them."""

    def show(text: str, number: int) -> None:
        (found,) = fill_mask(loaded, [text], top_k)
        for place, mask in enumerate(found, 1):
            print(f"{place}: {_filled([each._asdict() for each in mask])}")

    if prompts is None:
        with history():
            Repl({}, lambda settings: show).run()
        return None
    with phase("filling the masks"):
        found = fill_mask(loaded, prompts.texts, top_k)
    records = [
        {"prompt": text, "masks": [[each._asdict() for each in mask] for mask in masks]}
        for text, masks in zip(prompts.texts, found, strict=True)
    ]
    if output:
        write_records(output, records)
        return found
    for record in records:
        print(record["prompt"])
        for number, mask in enumerate(record["masks"], 1):
            print(f"  {number}: {_filled(mask)}")
    return found


def _filled(mask: Sequence[Mapping[str, Any]]) -> str:
    """Returns the tokens for one mask and their probabilities as text, without the space that begins a word."""
    return ", ".join(f"{(each['text'].strip(' ') or each['text'])!r} {each['probability']:.3f}" for each in mask)


def _prepared(
    loaded: LoadedModel,
    draft: LoadedModel | None,
    said: Conversation | None,
    kept: Filter | None,
    settings: Mapping[str, Any],
) -> Callable[[str, int], Generation]:
    """Returns a function that prints the text for a prompt, with these settings; prompt i uses seed + i.

    In a conversation it also records what was asked and answered; an answer that is interrupted is not recorded.
    """
    config = configure(settings, "the model that was given" if draft else None, loaded.defaults)
    if kept is not None:
        kept.check(config)

    def write(prompt: str, number: int) -> Generation:
        whole = said.asked(prompt) if said else prompt
        own = config.model_copy(update={"seed": config.seed + number})
        if kept is None:
            found = _streamed(loaded, draft, whole, own)
        else:
            (((found,),), ((why,),)) = filtered(loaded, draft, Prompts(["--prompt"], [whole]), own, kept)
            print(kept.shown(found.text, why))
        if said:
            said.answered(prompt, found.text)
        return found

    return write


def _streamed(
    loaded: LoadedModel,
    draft: LoadedModel | None,
    prompt: Text,
    config: GenerateConfig,
    name: str = "--prompt",
    files: PromptFiles | None = None,
    *,
    echo: bool = False,
) -> Generation:
    """Returns the text for a prompt, and prints it token by token; with `echo`, after the prompt itself."""
    start, first, found = time.perf_counter(), None, None
    with phase("compiling, and reading the prompt"):
        pieces = stream(loaded, prompt, config, draft=draft, name=name, files=files)
        opening = list(itertools.islice(pieces, 1))
    if echo:
        # The prompt goes to stderr: a terminal shows both, and a pipe receives only the generated text.
        follows = not loaded.config.family.paired and not loaded.prompts.chat
        end = "" if follows and not (loaded.unmasks and mask_text(loaded.tokenizer) in prompt) else "\n"
        print(_shown(prompt), end=end, file=sys.stderr, flush=True)
    for piece in itertools.chain(opening, pieces):
        first = first or time.perf_counter() - start
        if isinstance(piece, Generation):
            found = piece
        else:
            print(piece, end="", flush=True)
    print()
    _report(len(found.ids), time.perf_counter() - start, first)
    return found


def _shown(prompt: Text) -> str:
    """Returns a prompt as it is printed; of a conversation, its last message."""
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]


def _report(tokens: int, seconds: float, first: float | None = None) -> None:
    """Prints the speed of generation, with the time of compilation included."""
    behind = f", the first after {first:.2f} s" if first is not None else ""
    print(f"{tokens} tokens in {seconds:.2f} s, {tokens / seconds:.1f} a second{behind}", file=sys.stderr)


def _write(
    loaded: LoadedModel,
    draft: LoadedModel | None,
    prompts: Prompts,
    config: GenerateConfig,
    output: pathlib.Path | None,
    kept: Filter | None = None,
    files: PromptFiles | None = None,
) -> list[list[Generation]]:
    """Returns the texts for each prompt, in the order of the prompts, and prints or saves them."""
    several = config.beams is not None and config.beams.num_return > 1
    if len(prompts.texts) == 1 and not several and not output and kept is None:
        return [[_streamed(loaded, draft, prompts.texts[0], config, prompts.names[0], files, echo=True)]]
    start = time.perf_counter()
    with phase(f"writing behind {len(prompts.texts):,} prompt(s)"):
        found, why = filtered(loaded, draft, prompts, config, kept)
    _report(sum(len(each.ids) for texts in found for each in texts), time.perf_counter() - start)
    if kept is not None:
        print(kept.told(), file=sys.stderr)
    if output:
        write_records(
            output,
            (
                {"prompt" if isinstance(prompt, str) else MESSAGES: prompt}
                | dataclasses.asdict(each)
                | ({} if kept is None else {"filter": reason})
                for prompt, texts, of in zip(prompts.texts, found, why, strict=True)
                for each, reason in zip(texts, of, strict=True)
            ),
        )
        return found
    for prompt, texts, of in zip(prompts.texts, found, why, strict=True):
        for each, reason in zip(texts, of, strict=True):
            score = f" ({each.score:.3f})" if several else ""
            # A prompt of several lines is shown on one line.
            line = " ".join(_shown(prompt).splitlines())
            print(f"== {line if len(line) <= _SHOWN else line[: _SHOWN - 3] + '...'}{score}")
            print(each.text if kept is None else kept.shown(each.text, reason))
    return found
