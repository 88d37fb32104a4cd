"""Base classes of the objectives that predict tokens: the features `targets` and `weights`, and their cross entropy."""

import dataclasses
import logging
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.data.packing import Plan, pack
from lmjax.data.store import Store
from lmjax.objectives.base import Batch, Features, Forward, Objective
from lmjax.objectives.divergences import Measure, vocab_divergence
from lmjax.objectives.losses import vocab_loss
from lmjax.objectives.prompts import PromptFormat
from lmjax.objectives.rows import source_target
from lmjax.objectives.sums import LossSum

_log = logging.getLogger(__name__)


class TokenPrediction(Objective):
    """An objective whose loss is the cross entropy of `targets`."""

    shares_logits: ClassVar[bool] = True

    def weights(self, batch: Batch) -> dict[str, jax.Array]:
        """Returns the sum of the targets' weights, which is the number of targets."""
        return {self.name: jnp.sum(batch["weights"])}

    def losses(self, forward: Forward, batch: Batch) -> dict[str, LossSum]:
        """Returns the sums over the targets; with weights `[batch, targets, parts]`, sums of shape `[parts]`."""
        hidden = self.predicting(forward.hidden, batch)
        sums = vocab_loss(
            hidden,
            forward.logits,
            batch["targets"],
            batch["weights"],
            chunk=self.vocab_chunk,
            penalties=forward.penalties,
            num_ids=self.tokenizer.vocab_size,
        )
        return {self.name: sums}

    def divergences(self, forward: Forward, other: Forward, batch: Batch, measure: Measure) -> dict[str, jax.Array]:
        """Returns the sums over the targets of the divergence of the vocabulary's distributions."""
        first, second = (self.predicting(each.hidden, batch) for each in (forward, other))
        heads = (forward.logits, other.logits)
        weights, chunk = batch["weights"], self.vocab_chunk
        return {self.name: vocab_divergence(first, second, heads, weights, chunk=chunk, measure=measure)}

    def predicting(self, hidden: jax.Array, batch: Batch) -> jax.Array:
        """Returns `[batch, targets, embed]`: the states at the predicted positions of `[batch, length, embed]`."""
        if self.predicts_at is None:
            return hidden
        return jnp.take_along_axis(hidden, batch[self.predicts_at][..., None], axis=1)

    def token_targets(self, batch: Batch | Features) -> dict[str, tuple[Any, Any]]:
        """Returns the targets and their weights."""
        return {self.name: (batch["targets"], batch["weights"])}


class SourceToTarget(TokenPrediction):
    """An objective that predicts a target from a source: in two rows of an encoder-decoder, or in one of a decoder."""

    architectures: ClassVar[tuple[str, ...]] = ("encoder_decoder", "decoder")

    def prompt_format(self) -> PromptFormat:
        """Returns the format of a source that ends in EOS; the target follows it, or is in the decoder's row."""
        t, end = self.tokenizer, (self.tokenizer.eos_id,)
        if not self.family.paired:
            return PromptFormat(before=(t.bos_id,), after=end, stop=end, never=self.never())
        return PromptFormat(after=end, start=(t.pad_id,), stop=end, never=self.never())

    def prefixed(self, prefix: str) -> PromptFormat:
        """Returns the format of a source that begins with words."""
        form = SourceToTarget.prompt_format(self)
        return dataclasses.replace(form, before=(*form.before, *self.tokenizer.encode(prefix)))

    def kept(self, source: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns how many tokens of sources and targets of these lengths a row has room for.

        In a decoder both share a row: where they do not fit, a target has `target_length` tokens, at most half of the
        row, or as many as its source leaves.
        """
        if self.family.paired:
            return np.minimum(source, self.length), np.minimum(target, self.target_length)
        room = min(self.target_length, self.length // 2)
        target = np.minimum(target, np.maximum(room, self.length - source))
        return np.minimum(source, self.length - target), target

    def report(self, whole: tuple[np.ndarray, np.ndarray], kept: tuple[np.ndarray, np.ndarray]) -> None:
        """Logs how many sources and targets lose how many tokens, given their lengths before and after."""
        lost = [np.subtract(*lengths) for lengths in zip(whole, kept, strict=True)]
        if any(each.any() for each in lost):
            said = [f"{np.count_nonzero(n):,} of {len(n):,} {what} lose {n.sum():,} tokens"
                    for what, n in zip(("sources", "targets"), lost, strict=True) if n.any()]  # fmt: skip
            rows = f"{self.length} and {self.target_length}" if self.family.paired else f"{self.length}"
            _log.warning(
                "%s: %s, because rows have %s tokens (task.length, task.target_length)",
                self.name,
                " and ".join(said),
                rows,
            )

    def row_positions(self, source: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Returns the number of positions in a row of `length` that sources and targets of these lengths take.

        An encoder-decoder has two rows; the one with the larger filled share counts, scaled to the encoder's length.
        """
        if not self.family.paired:
            return source + target
        return np.maximum(source, np.ceil(target * self.length / self.target_length).astype(np.int64))

    def plan(self, store: Store, cost: Callable[[np.ndarray], np.ndarray], seed: int) -> Plan:
        """Returns the pieces of documents in each row: one that fills the row, or several shorter ones.

        Args:
            store: the documents.
            cost: maps numbers of tokens of pieces to the positions that they take in a row of `length`; increasing.
            seed: of the plan.
        """
        lengths = np.arange(1, 2 * (self.length + self.target_length))
        longest = int(lengths[cost(lengths) <= self.length].max(initial=1))
        return pack(store.lengths, max_piece=longest, cost=cost, capacity=self.length, seed=seed)

    def row(self, pairs: list[tuple[np.ndarray, np.ndarray]], target_length: int | None = None) -> Features:
        """Returns the features of pairs that share a row, as `rows.source_target` makes them.

        Args:
            pairs: sources and targets.
            target_length: tokens in the decoder's row of an encoder-decoder; None: those of training.
        """
        return source_target(
            pairs,
            paired=self.family.paired,
            length=self.length,
            target_length=target_length or self.target_length,
            pad_id=self.tokenizer.pad_id,
            bos_id=self.tokenizer.bos_id,
        )
