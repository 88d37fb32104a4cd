"""Text generation: `generate` continues many prompts, `stream` yields the text of one during generation."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lmjax.errors import FlagError
from lmjax.inference.defaults import merged
from lmjax.inference.generate.beam import BeamSearch
from lmjax.inference.generate.config import GenerateConfig
from lmjax.inference.generate.constrain import Constraint
from lmjax.inference.generate.processors import Processors
from lmjax.inference.generate.progress import TextProgress, finish_reason, text_stream
from lmjax.inference.generate.prompt_cache import PromptFiles, check_files
from lmjax.inference.generate.requests import Request, answering, batches, check_memory, make_requests
from lmjax.inference.generate.rolling import RollingWriting, check_window
from lmjax.inference.generate.sampling import Sampling
from lmjax.inference.generate.speculative import SpeculativeWriting, check_draft
from lmjax.inference.generate.text import Generation
from lmjax.inference.generate.unmask import Masked, masked_requests, refuse, unmask
from lmjax.inference.generate.writing import Writing, read_alone
from lmjax.inference.loaded import LoadedModel, check_arguments
from lmjax.inference.row_lengths import check_length
from lmjax.inference.texts import Text, check_list
from lmjax.streams import SEEDS


def check(
    loaded: LoadedModel,
    prompts: Sequence[Text],
    config: GenerateConfig,
    *,
    seeds: Sequence[int] | None = None,
    draft: LoadedModel | None = None,
    names: Sequence[str] | None = None,
) -> tuple[list[Request], Constraint | None]:
    """Returns the requests and the constraint of a call of `generate`; raises FlagError before anything is compiled."""
    check_list(prompts, "prompts", "texts")
    own = seeds is None
    seeds = [config.seed + i for i in range(len(prompts))] if own else seeds
    if len(seeds) != len(prompts):
        raise FlagError(f"seeds: {len(seeds)} for {len(prompts)} prompts; give one for each, or none")
    if odd := [seed for seed in seeds if not 0 <= seed < SEEDS]:
        given = f"--seed={config.seed}: the last prompt's seed would be {odd[-1]}" if own else f"seeds: {odd[0]}"
        raise FlagError(f"{given}; seeds go from 0 to {SEEDS - 1}")
    if names is None:
        names = ["--prompt"] if len(prompts) == 1 else [f"--prompt: number {i + 1}" for i in range(len(prompts))]
    size = loaded.config.vocab_size
    for name, ids in (("--stop_id", config.stop_ids), ("processors.banned", config.processors.banned)):
        if odd := [i for i in ids if not 0 <= i < size]:
            raise FlagError(f"{name}={odd[0]}: is not in the vocabulary; ids go from 0 to {size - 1}")
    if loaded.unmasks:
        refuse(config.model_dump(), GenerateConfig().model_dump(), draft)
        return masked_requests(loaded, prompts, seeds, config.max_new_tokens, names), None
    if steps := config.unmask.model_dump(exclude_defaults=True):
        name, value = steps.popitem()
        raise FlagError(
            f"--unmask_{name}={value}: is for an encoder that was trained on masked diffusion; leave it out"
        )
    rolling = config.window is not None
    if rolling:
        check_window(loaded, config, draft)
    requests = make_requests(loaded, prompts, seeds, config.max_new_tokens, names, rolling=rolling)
    if requests and not rolling:
        beams = config.beams.beams if config.beams else 1
        check_memory(loaded, requests, config.batch_size, beams, config.max_new_tokens, config.cache)
    if draft is not None:
        check_arguments(draft, None, GenerateConfig)
        check_draft(loaded, draft, config)
        for r in requests:
            check_length(draft.config, len(r.prompt), config.max_new_tokens, names[r.index], whose="the draft's")
    constraint = None
    if config.regex is not None or config.json_schema is not None:
        constraint = Constraint(
            loaded.tokenizer,
            stop_ids(loaded, config),
            regex=config.regex,
            schema=config.json_schema,
            vocab_size=size,
        )
        for r in requests:
            constraint.start(r.prompt)
    return requests, constraint


def generate(
    loaded: LoadedModel,
    prompts: Sequence[Text],
    config: GenerateConfig | None = None,
    *,
    seeds: Sequence[int] | None = None,
    draft: LoadedModel | None = None,
    names: Sequence[str] | None = None,
    files: PromptFiles | None = None,
) -> list[list[Generation]]:
    """Returns the texts generated for each prompt, best first: one, or `config.beams.num_return`.

    The result for a prompt depends on the prompt and its seed, not on the other prompts of its batch.

    Args:
        loaded: a decoder, an encoder-decoder, or an encoder that was trained on masked diffusion. The last one fills
            the masks of a prompt in place, or else writes `config.max_new_tokens` tokens after it.
        prompts: texts; token ids, which are used as they are; or conversations, lists of messages {"role", "content"}.
        config: settings. Fields that it does not set (all fields if it is None) are taken from the model's folder if
            they are given there, else from the defaults of `GenerateConfig`.
        seeds: one for each prompt; None: `config.seed`, `config.seed` + 1 and so on.
        draft: a smaller model with the same tokenizer, whose guesses the model checks several at a time (speculative
            decoding). The texts have the same distribution as without it.
        names: the names of the prompts in error messages, such as a file and a line; None: their number.
        files: for one prompt, the file from which its beginning is taken, and the one to which its cache is written.

    Raises:
        FlagError: an empty prompt, one that is too long, an id outside the vocabulary, or a constraint that no text
            satisfies.
    """
    config = resolved(loaded, config, drafted=draft is not None)
    loaded = answering(loaded, prompts)
    requests, constraint = check(loaded, prompts, config, seeds=seeds, draft=draft, names=names)
    check_files(loaded, config, len(prompts), files, drafted=draft is not None)

    def write(own: Sequence[Request]) -> list[list[Mapping[str, Any]]]:
        own = [dataclasses.replace(request, index=i) for i, request in enumerate(own)]
        return [[vars(x) for x in texts] for texts in _written(loaded, own, config, constraint, draft, files)]

    found = loaded.each(requests, write)
    return [[Generation(**x | {"ids": tuple(x["ids"])}) for x in texts] for texts in found]


def _written(
    loaded: LoadedModel,
    requests: Sequence[Request],
    config: GenerateConfig,
    constraint: Constraint | None,
    draft: LoadedModel | None,
    files: PromptFiles | None,
) -> list[list[Generation]]:
    """Returns the texts for each request, which this process generates; arguments as for `generate`, checked."""
    if loaded.unmasks:
        return _unmasked(loaded, requests, config)
    results: list[list[Generation]] = [[]] * len(requests)
    alone = draft is not None or config.lookup > 0 or config.window is not None
    for batch in batches(requests, 1 if alone else config.batch_size):
        if config.beams is not None:
            found = _beams(loaded, batch, config)
        else:
            found = [[each] for each in _Texts(loaded, batch, config, constraint, draft, files).all()]
        for request, generations in zip(batch, found, strict=True):
            results[request.index] = generations
    return results


def stream(
    loaded: LoadedModel,
    prompt: Text,
    config: GenerateConfig | None = None,
    *,
    draft: LoadedModel | None = None,
    name: str = "--prompt",
    files: PromptFiles | None = None,
) -> Iterator[str | Generation]:
    """Yields the generated text in parts, and at the end a `Generation` of the whole text.

    Beam search and unmasking know their text only at the end, and yield it in one part. Arguments and errors are those
    of `generate`; `name` is the name of the prompt in error messages. Errors of the arguments are raised by the call
    itself, before the first part is requested.
    """
    config = resolved(loaded, config, drafted=draft is not None)
    loaded = answering(loaded, [prompt])
    requests, constraint = check(loaded, [prompt], config, draft=draft, names=[name])
    check_files(loaded, config, 1, files, drafted=draft is not None)
    if config.beams is not None or loaded.unmasks:
        whole = _unmasked if loaded.unmasks else _beams
        (best, *_) = whole(loaded, requests, config)[0]
        return iter((best.text, best))
    return _Texts(loaded, requests, config, constraint, draft, files).pieces()


def resolved(loaded: LoadedModel, config: GenerateConfig | None, *, drafted: bool = False) -> GenerateConfig:
    """Returns a config completed by the settings of the model's folder; `drafted`: whether a draft model guesses."""
    check_arguments(loaded, config, GenerateConfig)
    given = {} if config is None else config.model_dump(exclude_unset=True)
    # A SamplingConfig or BeamConfig that the caller made sets these two fields, also where it left their defaults.
    if "sampling" in given:
        given["sampling"]["temperature"] = config.sampling.temperature
    if given.get("beams") is not None:
        given["beams"]["beams"] = config.beams.beams
    return GenerateConfig.model_validate(merged(given, loaded.defaults, drafted=drafted))


def stop_ids(loaded: LoadedModel, config: GenerateConfig) -> tuple[int, ...]:
    """Returns the ids that end a text."""
    return tuple(sorted({*loaded.prompts.stop, *config.stop_ids}))


def _processors(loaded: LoadedModel, config: GenerateConfig) -> Processors:
    """Returns the penalties and bans of the config, and the ids that the model itself bans or forces."""
    return Processors.of(config.processors, loaded.prompts)


def _unmasked(loaded: LoadedModel, requests: Sequence[Masked], config: GenerateConfig) -> list[list[Generation]]:
    """Returns the text of each request, whose masks are replaced in steps."""
    of = (config.unmask, config.sampling, config.processors.banned, config.stop, config.batch_size)
    return [[each] for each in unmask(loaded, requests, *of)]


def _beams(loaded: LoadedModel, batch: Sequence[Request], config: GenerateConfig) -> list[list[Generation]]:
    """Returns the best texts of each request by beam search."""
    strategy, stop = BeamSearch.of(config.beams, _processors(loaded, config)), stop_ids(loaded, config)
    writing = Writing(
        loaded,
        batch,
        strategy,
        stop=stop,
        max_new_tokens=config.max_new_tokens,
        chunk=config.prefill_chunk,
        kind=config.cache,
    )
    writing.advance(config.max_new_tokens)
    # The arrays have rows that fill up the batch.
    found = zip(batch, *(np.asarray(x) for x in strategy.results(writing.decoding.state)), strict=False)
    return [beam_texts(loaded, request, stop, *results) for request, *results in found]


def beam_texts(
    loaded: LoadedModel, request: Request, stop: Sequence[int], ids: np.ndarray, lengths: np.ndarray, scores: np.ndarray
) -> list[Generation]:
    """Returns the texts of a request that beam search has found, best first; `BeamSearch.results` has its arrays."""
    forced, texts = loaded.prompts.forced, []
    for row, length, score in zip(ids, lengths, scores, strict=True):
        if texts and not length:
            break  # There are fewer finished texts than `num_return`.
        written = row[len(forced) : length].tolist()
        stream = text_stream(loaded, request)
        text = "".join([*(stream.push(token) for token in written if token not in stop), stream.finish()])
        reason = finish_reason(written, stop, stuck=not length)
        texts.append(Generation(text, (*forced, *written), float(score), reason))
    return texts


class _Texts:
    """The host's state of a batch of texts during sampling or greedy decoding."""

    def __init__(
        self,
        loaded: LoadedModel,
        batch: Sequence[Request],
        config: GenerateConfig,
        constraint: Constraint | None,
        draft: LoadedModel | None,
        files: PromptFiles | None = None,
    ):
        files = files or PromptFiles()
        self._config, stop = config, stop_ids(loaded, config)
        given = config.processors.model_dump(exclude_defaults=True)
        bans = ", ".join(f"{name}={value}" for name, value in given.items())
        self._texts = [
            TextProgress(loaded, r, stop_ids=stop, stop=config.stop, constraint=constraint, bans=bans) for r in batch
        ]
        strategy = Sampling.of(config.sampling, _processors(loaded, config))
        if draft is not None or config.lookup:
            self._writing = SpeculativeWriting(loaded, draft, batch[0], strategy, config, stop)
            return
        if config.window is not None:
            self._writing = RollingWriting(
                loaded, batch[0], strategy, config, stop, allowed=self._allowed(), files=files
            )
            return
        read = None
        if files != PromptFiles():
            with loaded.on_devices():
                read = read_alone(loaded, batch[0], config, stop, files)
        self._writing = Writing(
            loaded,
            batch,
            strategy,
            stop=stop,
            max_new_tokens=config.max_new_tokens,
            chunk=config.prefill_chunk,
            kind=config.cache,
            allowed=self._allowed(),
            read=read,
        )

    def all(self) -> list[Generation]:
        """Returns the texts after generating all of them to their end."""
        self._take()
        while not self._writing.finished.all():
            watched = self._texts[0].constrained or bool(self._config.stop)
            self._writing.advance(1 if watched else self._config.max_new_tokens, self._allowed())
            self._take()
        return [self._generation(i) for i in range(len(self._texts))]

    def pieces(self) -> Iterator[str | Generation]:
        """Yields the first text in parts, and then its `Generation`."""
        yield self._take()
        while not self._writing.finished.all():
            self._writing.advance(1, self._allowed())
            yield self._take()
        before = len(self._texts[0].text)
        found = self._generation(0)
        yield found.text[before:]
        yield found

    def _allowed(self) -> np.ndarray | None:
        """Returns the mask of the ids that each constraint allows next; None: there is no constraint."""
        masks = [text.allowed() for text in self._texts]
        return np.stack(masks) if self._texts[0].constrained else None

    def _take(self) -> str:
        """Processes the new tokens and ends texts at their stop strings; returns the new part of the first text."""
        written, finished = self._writing.written(), self._writing.finished
        first = len(self._texts[0].text)
        ended = np.zeros(len(self._texts), bool)
        for i, (text, row) in enumerate(zip(self._texts, written, strict=True)):
            for token in row[len(text.ids) :].tolist():
                if text.over or text.stuck:
                    break  # The columns after it are filler.
                text.push(token)
            ended[i] = text.ended_here
        if (ended & ~finished).any():
            self._writing.finish(ended)
        return self._texts[0].text[first:]

    def _generation(self, i: int) -> Generation:
        """Returns the `Generation` of a text that has ended."""
        return self._texts[i].finish(self._writing.score(i, len(self._texts[i].ids)))
