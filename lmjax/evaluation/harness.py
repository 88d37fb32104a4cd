"""Adapter from a loaded model to lm-evaluation-harness (Gao et al. 2021; package lm-eval, extra `harness`).

Only this module imports the package, so it must not be imported at the top of another one.
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager
from pydantic import ValidationError

from lmjax.errors import FlagError
from lmjax.inference.generate.generate import GenerateConfig, generate
from lmjax.inference.generate.processors import ProcessorConfig
from lmjax.inference.generate.sampling import SamplingConfig
from lmjax.inference.loaded import LoadedModel
from lmjax.inference.score.score import rolling, score
from lmjax.inference.score.texts import Item, Reader, ScoreConfig
from lmjax.nearest import nearest

# The default max_gen_toks of lm-eval's own models.
_WRITTEN = 256
# Settings of a task's generation_kwargs, and our fields; those of _SAMPLING have an effect only if tokens are sampled.
_SAMPLING = {name: name for name in ("temperature", "top_k", "top_p", "min_p", "typical_p")}
_PROCESSORS = {"repetition_penalty": "repetition_penalty", "no_repeat_ngram_size": "no_repeat_ngram"}


class HarnessModel(LM):
    """A model of any family for `lm_eval.simple_evaluate(model=...)`.

    Encoders can score, but only those that were trained on masked diffusion can generate.

    A context that is too long is truncated at its beginning, as in lm-eval's own models. The ids that the prompt format
    puts before a text are kept.
    """

    def __init__(self, loaded: LoadedModel, config: ScoreConfig):
        super().__init__()
        self.loaded = loaded
        self.config = config.model_copy(update={"truncate": True})

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Returns (log-likelihood, whether greedy) of each (context, continuation).

        For an encoder these are pseudo-log-likelihoods, or lower bounds (`lmjax.inference.score.score`).
        """
        found = score(self.loaded, [Item(*request.args) for request in requests], self.config)
        if apart := sum(s.apart for s in found):
            # lm-eval would score only a part of these continuations, so its own numbers may be better.
            print(f"{apart} of {len(found)} continuations are encoded apart from their contexts", file=sys.stderr)
        return [(s.log_likelihood, s.greedy) for s in found]

    def loglikelihood_rolling(self, requests: Sequence[Instance]) -> list[float]:
        """Returns the log-likelihood of each text; long texts are scored in windows."""
        return [
            s.log_likelihood
            for s in rolling(self.loaded, [text for (text,) in (r.args for r in requests)], self.config)
        ]

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """Returns the text generated for each context, up to the first of the task's stop strings."""
        if not self.loaded.config.family.causal and not self.loaded.unmasks:
            raise FlagError("an encoder writes no text; choose tasks that score (loglikelihood, multiple_choice)")
        written: list[str] = [""] * len(requests)
        alike: dict[GenerateConfig, list[int]] = {}
        for i, request in enumerate(requests):
            alike.setdefault(generate_config(request.args[1]), []).append(i)
        for config, members in alike.items():
            prompts = [self._prompt(requests[i].args[0], config.max_new_tokens) for i in members]
            for i, found in zip(members, generate(self.loaded, prompts, config), strict=True):
                written[i] = found[0].text
        return written

    def _prompt(self, context: str, count: int) -> list[int]:
        """Returns the ids of a context in the prompt format, truncated at its beginning if it is too long."""
        loaded, reader = self.loaded, Reader.of(self.loaded, self.config)
        ids = loaded.tokenizer.encode(context)
        written = 0 if loaded.config.family.paired else count
        room = max(reader.limit - reader.around - written, 1)
        return reader.context_ids(ids[-room:])


def generate_config(settings: Mapping[str, Any]) -> GenerateConfig:
    """Returns the config for a task's generation_kwargs; raises FlagError for a setting that has no counterpart."""
    settings = dict(settings)
    stop = settings.pop("until", None) or ()
    limits = [settings.pop(name, None) for name in ("max_gen_toks", "max_new_tokens", "max_tokens")]
    draws = settings.pop("do_sample", float(settings.get("temperature") or 0) > 0)
    if (beams := settings.pop("num_beams", 1)) != 1:
        raise FlagError(f"generation_kwargs: num_beams={beams}: a beam search takes no stop strings; leave it out")
    if unknown := settings.keys() - _SAMPLING.keys() - _PROCESSORS.keys():
        known = ", ".join(("until", "max_gen_toks", "do_sample", *_SAMPLING, *_PROCESSORS))
        raise FlagError(f"generation_kwargs: {', '.join(sorted(unknown))}: no counterpart here; there are {known}")
    given = {name: value for name, value in settings.items() if value is not None and (draws or name in _PROCESSORS)}
    # As in transformers, sampling without a given temperature uses 1.
    sampling = ({"temperature": 1.0} if draws else {}) | {n: x for n, x in given.items() if n in _SAMPLING}
    try:
        return GenerateConfig(
            max_new_tokens=next((n for n in limits if n is not None), _WRITTEN),
            sampling=SamplingConfig(**sampling),
            processors=ProcessorConfig(**{_PROCESSORS[n]: x for n, x in given.items() if n in _PROCESSORS}),
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
        )
    except ValidationError as e:
        error = e.errors()[0]
        raise FlagError(
            f"generation_kwargs: {'.'.join(map(str, error['loc']))}={error['input']}: {error['msg']}"
        ) from e


def run_tasks(
    loaded: LoadedModel,
    names: Sequence[str],
    config: ScoreConfig,
    include_path: str | None = None,
    limit: int | None = None,
) -> dict[str, dict[str, float]]:
    """Returns every metric of every task, by lm-eval's names.

    Args:
        loaded: the model.
        names: of tasks or of groups of tasks.
        config: settings of scoring.
        include_path: a folder of tasks (YAML); if it is given, only its tasks are known.
        limit: examples of each task; None: all.

    Raises:
        FlagError: an unknown task, or a folder that does not exist.
    """
    if include_path is not None and not pathlib.Path(include_path).is_dir():
        raise FlagError(f"--include_path={include_path}: there is no such folder; name one with tasks in YAML")
    manager = TaskManager(include_path=include_path, include_defaults=include_path is None)
    known = set(manager.all_tasks)
    if missing := [name for name in names if name not in known]:
        hint = nearest(missing[0], known) or (f"there are {', '.join(sorted(known)[:20])}" if include_path else "")
        raise FlagError(f"--harness={','.join(names)}: no task {missing[0]!r}{'; ' if hint else ''}{hint}")
    found = simple_evaluate(
        model=HarnessModel(loaded, config),
        tasks=list(names),
        task_manager=manager,
        limit=limit,
        bootstrap_iters=0,
        log_samples=False,
    )
    return {
        task: {name.removesuffix(",none"): x for name, x in metrics.items() if isinstance(x, int | float)}
        for task, metrics in found["results"].items()
    }
