"""`--filter` of `lmjax generate`: texts that a rule finds are refused, written again, or marked."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Sequence

from absl import flags

from lmjax.audit.filters import Rule, file_rule, model_rule, reasons
from lmjax.commands.prompts import Prompts
from lmjax.errors import FlagError
from lmjax.inference.generate.generate import GenerateConfig, Generation, generate
from lmjax.inference.loaded import LoadedModel
from lmjax.phases import phase
from lmjax.runs.trained import load_model

# From the numbers of prompts and a seed of each to their texts.
Again = Callable[[Sequence[int], Sequence[int]], list[list[Generation]]]


@dataclasses.dataclass
class Filter:
    """Checks texts, and counts what it finds.

    Attributes:
        how: refuse, resample or mark.
        rules: that find texts.
        tries: how often a text is written again.
        texts: that were checked.
        found: texts that a rule found at first, by reason.
        again: of these, those that were written again and not found then.
    """

    how: str
    rules: Sequence[Rule]
    tries: int
    texts: int = 0
    found: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    again: int = 0

    def check(self, config: GenerateConfig) -> None:
        """Raises FlagError if a text that is written again would be the same."""
        if self.how == "resample" and (config.sampling.temperature == 0 or config.beams is not None):
            raise FlagError(
                "--filter=resample: the likeliest text is the same each time; give --temperature=T without --beams, or "
                "--filter=refuse"
            )

    def __call__(
        self, made: list[list[Generation]], seed: int, again: Again
    ) -> tuple[list[list[Generation]], list[list[str | None]]]:
        """Returns the texts that are shown, and why each was found; None: it was not.

        A refused text is empty.

        Args:
            made: the texts of each prompt.
            seed: of the first prompt; text i of try t has the seed `seed + i + t * prompts`.
            again: writes texts again.
        """
        why = self._reasons(made)
        self.texts += sum(map(len, made))
        self.found.update(reason for own in why for reason in own if reason)
        made = list(made)
        for attempt in range(1, self.tries + 1 if self.how == "resample" else 1):
            bad = [i for i, own in enumerate(why) if any(own)]
            if not bad:
                break
            written = again(bad, [seed + i + attempt * len(made) for i in bad])
            for i, own, now in zip(bad, written, self._reasons(written), strict=True):
                made[i], why[i] = own, now
                self.again += not any(now)
        if self.how != "mark":
            made = [
                [dataclasses.replace(x, text="", ids=()) if reason else x for x, reason in zip(of, own, strict=True)]
                for of, own in zip(made, why, strict=True)
            ]
        return made, why

    def shown(self, text: str, reason: str | None) -> str:
        """Returns a text as it is printed."""
        if reason is None:
            return text
        return f"[found: {reason}] {text}" if self.how == "mark" else f"[refused: {reason}]"

    def told(self) -> str:
        """Returns a line that says what was found so far."""
        of = ", ".join(f"{count:,} {reason}" for reason, count in self.found.items()) or "none"
        end = {"mark": "marked", "refuse": "refused"}.get(self.how)
        left = self.found.total() - self.again
        return f"filter: of {self.texts:,} texts, found {of}; " + (
            f"{left:,} {end}" if end else f"{self.again:,} written again, {left:,} refused"
        )

    def _reasons(self, made: Sequence[Sequence[Generation]]) -> list[list[str | None]]:
        """Returns why each text of each prompt is found."""
        found = iter(reasons(self.rules, [each.text for of in made for each in of]))
        return [[next(found) for _ in of] for of in made]


def filter_of(values: flags.FlagValues) -> Filter | None:
    """Returns the filter of the flags; None without --filter.

    Raises:
        FlagError: flags that do not fit together, or a model that is no classifier.
        DataError: a file that cannot be read.
    """
    how = values["filter"].value
    given = [name for name in ("words", "patterns", "model") if values[f"filter_{name}"].value]
    if how is None:
        if given:
            raise FlagError(f"--filter_{given[0]}: say what is done with a text that it finds: --filter=refuse")
        return None
    if not given:
        raise FlagError(f"--filter={how}: say what finds a text: --filter_words, --filter_patterns or --filter_model")
    label = values["filter_label"].value or ""
    if label and "model" not in given:
        raise FlagError(f"--filter_label={label}: is a label of --filter_model=PLACE; give that too")
    rules = [file_rule(kind, values[f"filter_{kind}"].value, f"filter_{kind}") for kind in given if kind != "model"]
    if "model" in given:
        place = values["filter_model"].value
        with phase(f"loading {place}"):
            judge = load_model(place)
        named = f"--filter_label={label}: {place}" if label else f"--filter_model={place}"
        rules.append(model_rule(judge, label, values["filter_threshold"].value, named)[0])
    return Filter(how, rules, values["filter_tries"].value)


def filtered(
    loaded: LoadedModel, draft: LoadedModel | None, prompts: Prompts, config: GenerateConfig, kept: Filter | None
) -> tuple[list[list[Generation]], list[list[str | None]]]:
    """Returns the texts for each prompt as the filter leaves them, and why it found each; None: it did not."""
    found = generate(loaded, prompts.texts, config, draft=draft, names=prompts.names)
    if kept is None:
        return found, [[None] * len(texts) for texts in found]

    def again(numbers: Sequence[int], seeds: Sequence[int]) -> list[list[Generation]]:
        texts, names = ([each[i] for i in numbers] for each in (prompts.texts, prompts.names))
        return generate(loaded, texts, config, draft=draft, names=names, seeds=seeds)

    return kept(found, config.seed, again)
