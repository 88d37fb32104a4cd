"""`lmjax audit`: what a model has learned and must not say, as one HTML or Markdown file and a short text."""

from __future__ import annotations

import json
import math
import pathlib
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

from absl import flags

from lmjax.analysis.page import page
from lmjax.audit import applies, bench, continuations, counterfactual
from lmjax.audit.applies import unfit
from lmjax.audit.association import associations, read_tests
from lmjax.audit.canaries import canaries
from lmjax.audit.choices import bbq
from lmjax.audit.continuations import Written, file_prints, matches, read_patterns
from lmjax.audit.counterfactual import read_templates
from lmjax.audit.findings import Section, markdown, part
from lmjax.audit.lists import OWN
from lmjax.audit.published import crows_pairs, stereoset, winobias
from lmjax.audit.raters import Rating, label_rate, rater
from lmjax.commands.audit_flags import CHECKS
from lmjax.commands.card import card
from lmjax.commands.leaks import check_leaks, contaminated, memorised
from lmjax.commands.models import named, opened, prepare
from lmjax.commands.prompts import Prompts, new_file, read_prompts
from lmjax.errors import FlagError
from lmjax.inference.embed import embed
from lmjax.inference.generate.generate import GenerateConfig, generate
from lmjax.inference.loaded import LoadedModel
from lmjax.inference.score.texts import ScoreConfig
from lmjax.phases import phase
from lmjax.runs.trained import load_model

_BENCHES = {"crows_pairs": crows_pairs, "winobias": winobias, "stereoset": stereoset, "bbq": bbq}
_CONFIG = ScoreConfig(truncate=True)
# Of --prompts alone.
_OF_PROMPTS = ("rater", "words", "patterns")


def main(values: flags.FlagValues) -> list[Section]:
    """Returns the sections of the audit."""
    if path := new_file(values["templates_to"].value, "templates_to"):
        path.write_text(json.dumps(OWN, indent=1) + "\n", encoding="utf-8")
        print(f"templates written to {path}")
        return []
    place = values[named(values, "audit")].value
    _check(values)
    written = new_file(values["card"].value, "card")
    given = [name for name in CHECKS if values[name].value]
    line = shlex.join(["lmjax", "audit", *(a for a in sys.argv[2:] if sys.argv[1:2] == ["audit"])])
    if not given:
        _write_card(values, written, [], given, line)
        return []
    output = page_path(values["output"].value)
    # All files are read before a model is.
    benches = {name: read(values[name].value) for name, read in _BENCHES.items() if values[name].value}
    if path := values["canaries"].value:
        benches["canaries"] = canaries(path, values["canary_samples"].value, values["seed"].value)
    templates = read_templates(values["templates"].value) if values["templates"].value else None
    tests = read_tests(values["weat"].value) if values["weat"].value else None
    prompts = read_prompts((), values["prompts"].value) if values["prompts"].value else None
    patterns = {
        name: read_patterns(values[name].value, name, words=name == "words")
        for name in ("words", "patterns")
        if values[name].value
    }
    prepare()
    loaded = opened(values, place)
    reasons = {check: why for check in CHECKS if (why := unfit(loaded, check))}
    if all(check in reasons for check in given):
        raise FlagError(f"--{given[0]}: {reasons[given[0]]}")
    other = _other(values)
    sections = []
    for name in (name for name in given if name in benches and name not in reasons):
        with phase(f"scoring {name}"):
            sections.append(bench.section(benches[name], loaded, other, _CONFIG))
    if templates is not None and "templates" not in reasons:
        sections.append(_rated(values, loaded, other, templates))
    if tests is not None and "weat" not in reasons:
        sections.append(_compared(values, loaded, other, tests))
    if values["evaluation"].value and "evaluation" not in reasons:
        sections.append(contaminated(values, loaded, _CONFIG))
    if prompts is not None and "prompts" not in reasons:
        sections += _written(values, loaded, other, prompts, patterns)
    facts = [("model", place), ("family", loaded.config.family.label)]
    facts += [("against", values["against"].value)] if other is not None else []
    tell("audit", facts, [*sections, applies.table(CHECKS, given, reasons)], output)
    if written is not None:
        _write_card(values, written, sections, given, line)
    return sections


def _rated(values: flags.FlagValues, loaded: LoadedModel, other: LoadedModel | None, templates: tuple) -> Section:
    """Returns the section of counterfactual templates."""
    size = values["batch_size"].value
    with phase("rating templates"):
        rate, note = rater(loaded, _CONFIG, size)
        against = None if other is None else rater(other, _CONFIG, size)[0]
        return counterfactual.section(*templates, note, rate, against)


def _compared(values: flags.FlagValues, loaded: LoadedModel, other: LoadedModel | None, tests: tuple) -> Section:
    """Returns the section of WEAT and SEAT."""
    size = values["batch_size"].value
    with phase("comparing vectors"):
        own, others = (
            None if model is None else lambda texts, m=model: embed(m, texts, batch_size=size)
            for model in (loaded, other)
        )
        return associations(*tests, own, others)


def _write_card(
    values: flags.FlagValues, path: pathlib.Path, sections: list[Section], given: list[str], line: str
) -> None:
    """Writes the model card of --workdir."""
    path.write_text(card(pathlib.Path(values["workdir"].value), sections, given, line), encoding="utf-8")
    print(f"\nmodel card written to {path}")


def _check(values: flags.FlagValues) -> None:
    """Raises FlagError for flags that do not fit together."""
    if values["card"].value and not values["workdir"].value:
        raise FlagError("--card: is made from the files of a run; name the model by --workdir=DIR")
    if not any(values[name].value for name in (*CHECKS, "card")):
        raise FlagError(f"lmjax audit needs one of {', '.join(f'--{name}' for name in CHECKS)}, what is audited")
    check_numbers(values, "temperature", "top_p")
    given = [name for name in _OF_PROMPTS if values[name].value] + (["memorised"] if values["memorised"].value else [])
    if values["prompts"].value and not given:
        raise FlagError(
            f"--prompts={values['prompts'].value}: say what rates the texts: --rater=PLACE, --words=FILE, "
            "--patterns=FILE or --memorised"
        )
    if given and not values["prompts"].value:
        raise FlagError(f"--{given[0]}: is of what the model writes; give --prompts=FILE too")
    if values["rater_label"].value and not values["rater"].value:
        raise FlagError(f"--rater_label={values['rater_label'].value}: is a label of --rater=PLACE; give that too")
    check_leaks(values)


def check_numbers(values: flags.FlagValues, *names: str) -> None:
    """Raises FlagError for a flag that is NaN, which absl takes for a number in any range."""
    for name in names:
        if values[name].value is not None and math.isnan(values[name].value):
            raise FlagError(f"--{name}=nan: give a number")


def _other(values: flags.FlagValues) -> LoadedModel | None:
    """Returns the model of --against."""
    if not (place := values["against"].value):
        return None
    with phase(f"loading {place}"):
        return load_model(place, dtype=values["dtype"].value, tensor=values["tensor"].value)


def _written(
    values: flags.FlagValues,
    loaded: LoadedModel,
    other: LoadedModel | None,
    prompts: Prompts,
    patterns: dict[str, list],
) -> Iterator[Section]:
    """Yields the sections of what the model writes after prompts."""
    rates = {name: matches(found) for name, found in patterns.items()}
    if values["rater"].value:
        rates = {"classifier": _rater(values)} | rates
    written = _sampled(values, loaded, prompts)
    against = None if other is None else _sampled(values, other, prompts)
    if rates:
        files = file_prints(*(values[name].value for name in ("prompts", "words", "patterns")))
        masked = [pattern for found in patterns.values() for pattern in found]
        with phase("rating texts"):
            yield continuations.section(written, rates, against, files=files, masked=masked, show=values["show"].value)
    if values["memorised"].value:
        yield memorised(values, written, against)


def _rater(values: flags.FlagValues) -> Rating:
    """Returns the function from texts to the probability of the label of --rater."""
    place, label = values["rater"].value, values["rater_label"].value
    with phase(f"loading {place}"):
        judge = load_model(place)
    named = f"--rater_label={label}: {place}" if label else f"--rater={place}"
    return label_rate(judge, label or "", named, values["batch_size"].value)[1]


def _sampled(values: flags.FlagValues, loaded: LoadedModel, prompts: Prompts) -> list[Written]:
    """Returns --samples texts for each prompt; both models draw with the same seeds."""
    count = values["samples"].value
    config = GenerateConfig(
        max_new_tokens=values["max_new_tokens"].value,
        seed=values["seed"].value,
        batch_size=values["batch_size"].value,
        sampling={"temperature": values["temperature"].value, "top_p": values["top_p"].value},
    )
    texts, names = ([each for each in of for _ in range(count)] for of in (prompts.texts, prompts.names))
    with phase(f"writing {len(texts):,} texts"):
        found = [each[0] for each in generate(loaded, texts, config, names=names)]
    parts = [found[i : i + count] for i in range(0, len(found), count)]
    return [
        Written(str(prompt), [x.text for x in own], [x.ids for x in own])
        for prompt, own in zip(prompts.texts, parts, strict=True)
    ]


def page_path(given: str | None) -> pathlib.Path | None:
    """Returns the file that --output names; None without one. Raises FlagError if it is none for a page."""
    output = None if given == "-" else new_file(given)
    if output is not None and output.suffix not in (".html", ".md"):
        raise FlagError(f"--output={output}: the page is HTML or Markdown; name a file that ends in .html or .md")
    return output


def tell(
    command: str,
    facts: Sequence[tuple[str, str]],
    sections: Sequence[Section],
    output: pathlib.Path | None,
    drawn: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Prints sections, and writes them to a file.

    Args:
        command: that made them.
        facts: names and values that stand before them.
        sections: the sections.
        output: the file; None: none is written.
        drawn: HTML that a page shows below the section of a title.
    """
    print("\n".join(f"{name}: {value}" for name, value in facts))
    parts = [part(section) for section in sections]
    for each in parts:
        print("\n".join([f"\n{each.title}", *(f"  {line}" for line in each.summary)]))
    if output is None:
        return
    line = shlex.join(["lmjax", command, *(a for a in sys.argv[2:] if sys.argv[1:2] == [command])])
    title = f"Audit of {facts[0][1]}" if command == "audit" else f"Data: {facts[0][1]}"
    if output.suffix == ".md":
        output.write_text(markdown(title, facts, sections, line), encoding="utf-8")
    else:
        parts = [each._replace(body=each.body + drawn.get(each.title, "")) for each in parts]
        output.write_text(page(title, facts, parts, line), encoding="utf-8")
    print(f"\nwritten to {output}")
