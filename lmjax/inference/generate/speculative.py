"""Speculative decoding: several tokens are guessed, and the model checks them all in one pass.

Leviathan et al. 2023, arXiv:2211.17192, algorithm 1: a guess is accepted with probability min(1, p / q), where p is the
model's distribution and q that of the guess. The first rejected guess is replaced by a draw from max(p - q, 0),
normalised. The texts are then distributed as if each token were drawn from p. A smaller model guesses, or the tokens
are copied that followed an earlier occurrence of the last tokens (prompt lookup). Both p and q are taken after
penalties, temperature and filters.

Texts are generated one at a time: the rows of a batch already use the processor fully, and guessing would save nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from lmjax.errors import FlagError
from lmjax.inference.generate.config import GenerateConfig
from lmjax.inference.generate.requests import Request, bucket
from lmjax.inference.generate.sampling import Sampling
from lmjax.inference.generate.speculative_rounds import SpeculativeState, rounds
from lmjax.inference.generate.writing import read_prompts
from lmjax.inference.loaded import LoadedModel


def check_draft(loaded: LoadedModel, draft: LoadedModel, config: GenerateConfig) -> None:
    """Raises FlagError if the draft does not fit the model, or the config excludes a draft."""
    if config.lookup:
        raise FlagError(f"--draft and --lookup={config.lookup} both guess; give one")
    if config.beams is not None:
        raise FlagError(f"--draft and --beams={config.beams.beams} cannot be combined; leave one out")
    if config.regex is not None or config.json_schema is not None:
        raise FlagError("--draft and --regex or --json_schema cannot be combined; leave one out")
    if not (draft.config.family.continues and loaded.config.family.continues):
        raise FlagError(
            f"--draft needs two decoders, and these are {loaded.config.family.label} and"
            f" {draft.config.family.label}; for other models use --lookup"
        )
    mine, theirs = loaded.tokenizer, draft.tokenizer
    if theirs.fingerprint != mine.fingerprint and theirs.pieces != mine.pieces:
        raise FlagError("--draft has another tokenizer than the model; its ids would mean other texts")
    if draft.config.vocab_size != loaded.config.vocab_size:
        raise FlagError(
            f"--draft has logits for {draft.config.vocab_size} ids and the model for {loaded.config.vocab_size}; take a"
            " draft of the same vocabulary"
        )


class SpeculativeWriting:
    """One request during speculative decoding, with the interface of `Writing`."""

    def __init__(
        self,
        loaded: LoadedModel,
        draft: LoadedModel | None,
        request: Request,
        strategy: Sampling,
        config: GenerateConfig,
        stop: Sequence[int],
    ):
        """Reads the prompt and runs the first round.

        Args:
            loaded: the model.
            draft: the smaller model; None: prompt lookup.
            request: the text.
            strategy: sampling or greedy decoding.
            config: limits, and how many tokens are guessed.
            stop: ids that end the text.
        """
        self._loaded, self._draft, self._config = loaded, draft, config
        self._form = config.draft_tokens, config.lookup
        guesses = config.draft_tokens
        arguments = {
            # The last round may write guesses beyond the limit, which `written` cuts off.
            "new_columns": bucket(config.max_new_tokens + guesses + 1),
            "limit": config.max_new_tokens,
            "stop": stop,
            "chunk": config.prefill_chunk,
            "kind": config.cache,
            "slack": guesses + 1,
        }
        with loaded.on_devices():
            _, cache, prompts = read_prompts(loaded, [request], **arguments)
        drafted = None
        if draft is not None:
            with draft.on_devices():
                _, drafted, _ = read_prompts(draft, [request], **arguments)
        self.start = int(prompts["column"][0])
        self.decoding = SpeculativeState(
            # A round begins by reading the last token: its slot is freed.
            cache=cache.rewind(cache.filled - 1),
            draft=None if drafted is None else drafted.rewind(drafted.filled - 1),
            state=strategy.start([request.seed], prompts["tokens"].shape[1]),
            gains=np.zeros(prompts["tokens"].shape, np.float32),
            rounds=np.int32(0),
            **prompts | {name: prompts[name][0] for name in ("column", "count", "limit")},
        )
        self.advance(1)

    @property
    def finished(self) -> np.ndarray:
        """Returns bool `[1]`: whether the text has ended."""
        return np.asarray(self.decoding.state.done)

    def advance(self, steps: int, allowed: None = None) -> None:
        """Runs at most `steps` rounds; fewer if the text ends."""
        assert allowed is None
        draft = self._draft
        with self._loaded.on_devices():
            self.decoding = rounds(
                self._loaded.params,
                None if draft is None else draft.params,
                self.decoding,
                np.int32(steps),
                model=self._loaded.model,
                draft=None if draft is None else draft.model,
                guesses=self._form[0],
                lookup=self._form[1],
            )

    def written(self) -> np.ndarray:
        """Returns int32 `[1, tokens]`: the generated tokens, up to the limit."""
        count = int(self.decoding.column) - self.start
        forced = int(self.decoding.count) - count
        end = self.start + min(count, self._config.max_new_tokens - forced)
        return np.asarray(self.decoding.tokens)[:, self.start : end]

    def score(self, row: int, count: int) -> float:
        """Returns the sum of the log-probabilities of the text's first `count` tokens."""
        return float(np.asarray(self.decoding.gains)[row, self.start : self.start + count].sum())

    def finish(self, ended: np.ndarray) -> None:
        """Marks the text as ended if `ended`, bool `[1]`, is True."""
        state = self.decoding.state
        self.decoding = self.decoding.replace(state=state.replace(done=state.done | jnp.asarray(ended)))
